"""Where requests inside a dialog go, against the tables of docs/in-dialog.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from sipush.core.in_dialog import Surroundings, sides
from sipush.core.nodes import path_here
from sipush.core.outbound import RouteToken, device_digest
from tests.core.test_routing import binding
from tests.sip.messages import request

PAGE = Path(__file__).parents[2] / "docs" / "in-dialog.md"
WAS, ELSEWHERE, PEER, OTHER_PEER = "192.0.2.7", "192.0.2.9", "10.0.0.1", "10.0.0.2"
OWN_PORT, NAMED, NAMED_BY_A_PEER = 40000, 5070, 5080
THEN, OTHER, SECOND = (f"tcp/192.0.2.1:6379/{WAS}:{OWN_PORT}/{n}" for n in range(3))
"To a port of ours that is nobody's business there."
PATH = path_here("sip:n2.example;transport=tcp", "f", "bob@x", "d", b"k")


def rows(heading: str) -> list[tuple[str, ...]]:
    section = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[1:]]


def surroundings(flows: dict[str, bool | None], *, on_our_host: bool = False) -> Surroundings:
    hosts = (WAS, PEER, OTHER_PEER)
    return Surroundings(
        flows.get,
        lambda host: host in (PEER, OTHER_PEER),
        lambda ip: on_our_host and ip == WAS,
        {(host, NAMED_BY_A_PEER) for host in hosts},
        "sip:n1.example;transport=tcp",
    )


# -- where the side is --

URIS = {
    "its own": f"sip:bob@{WAS}:{OWN_PORT}",
    "its own, other port": f"sip:bob@{WAS}:6379",
    "elsewhere": f"sip:bob@{ELSEWHERE}",
    "a peer": f"sip:bob@{PEER}",
}
BOUND = {
    "none": [],
    "over it": [binding(flow=THEN)],
    "over another, open": [binding(flow=OTHER)],
    "over another, closed": [binding(flow=OTHER)],
    "over another, gone": [binding(flow=OTHER)],
    "over two others, closed and open": [binding(flow=OTHER), binding(flow=SECOND)],
    "over another, open, and it": [binding(flow=OTHER), binding(flow=THEN)],
    "of another device": [binding("e", OTHER)],
    "at another node": [binding(flow=OTHER, path=(PATH, "<sip:192.0.2.50;lr>"))],
}
TOKENS = {
    "phone": RouteToken(THEN, "bob@x", device_digest("d")),
    "guest": RouteToken(THEN),
    "none of ours": RouteToken(""),
}
OPEN = {"open": True, "closed": False, "gone": None, "none": None}
GOES = {
    "the flow then": (THEN, ()),
    "the other flow": (OTHER, ()),
    "the second flow": (SECOND, ()),
    "its Path": ("", (PATH,)),
    "Request-URI": ("", ()),
}


@pytest.mark.parametrize(
    ("side", "then", "bound", "uri", "goes", "at_once", "waits"), rows("Where the side is")
)
def test_a_side_is_where_its_newest_flow_is(
    side: str, then: str, bound: str, uri: str, goes: str, at_once: str, waits: str
) -> None:
    other = None if "gone" in bound else "closed" not in bound
    here = surroundings({THEN: OPEN[then], OTHER: other, SECOND: True})
    bye = request("BYE", URIS[uri])
    target = here.side(TOKENS[side], bye, BOUND[bound])
    assert target.uri == URIS[uri]
    assert (target.flow, target.route) == GOES[goes]
    assert target.live is (at_once == "yes")
    assert f"{target.hold:.0f} s" == waits


def test_a_side_is_known_by_its_device_or_by_its_contact() -> None:
    device = RouteToken("f", "bob@x", device_digest("d"))
    mine, other = binding(), binding("other")
    for bindings in ([mine], [other, mine], [mine, other]):
        assert sides(device, bindings, "sip:else@where") == [mine]
        assert sides(device, bindings, other.contact) == [mine]
    assert list(sides(device, [other], other.contact)) == []
    assert sides(RouteToken("f", "bob@x"), [other, mine], mine.contact) == [mine]
    assert sides(device, [], mine.contact) == []


def test_a_side_without_instance_and_token_is_where_its_contact_is() -> None:
    first, second = binding("contact:sip:a"), binding("contact:sip:b")
    token = RouteToken("f", "bob@x", device_digest(first.device))
    for bindings in ([second, first], [second], [binding("instance:x"), second]):
        assert sides(token, bindings, second.contact) == [second]
    assert sides(token, [second, first], "sip:else@where") == [first]
    named = RouteToken("f", "bob@x", device_digest("instance:x"))
    both = [second, binding("instance:x")]
    assert sides(named, both, second.contact) == both[1:]


# -- where a guest is called back --

PORTS = {
    "usual": ("", ":5060", ":5061"),
    "its own": (f":{OWN_PORT}",),
    "named": (f":{NAMED}",),
    "a peer's": (f":{NAMED_BY_A_PEER}",),
    "other": (":6379", ":40001", ":0"),
}


@pytest.mark.parametrize(
    ("who", "at", "allowed"),
    [(row[0], row[1], row[2:]) for row in rows("Where a guest is called back")],
)
def test_a_guest_is_called_back_where_sip_is_spoken(
    who: str, at: str, allowed: tuple[str, ...]
) -> None:
    was = PEER if who == "peer" else WAS
    ip = {"where it was": was, "another peer": OTHER_PEER, "elsewhere": ELSEWHERE}[at]
    token = RouteToken(THEN.replace(WAS, was), port=NAMED)
    here = surroundings({}, on_our_host=who == "caller on our host")
    for ports, answer in zip(PORTS.values(), allowed, strict=True):
        for port in ports:
            assert here.leads_back(f"sip:x@{ip}{port}", ip, token) is (answer == "yes"), port


def test_a_port_that_nobody_has_named_is_none() -> None:
    """A token without a port has 0 there, and a flow without an address none."""
    for flow in ("", THEN):
        assert not surroundings({}).leads_back(f"sip:x@{WAS}:6379", WAS, RouteToken(flow))


@pytest.mark.parametrize(
    ("was", "asked"),
    [
        (WAS, ["sip:192.0.2.8;lr"]),
        (PEER, ["sip:192.0.2.8;lr", "sip:bob@pbx.example"]),
    ],
)
def test_the_topmost_route_comes_first_and_only_a_peer_has_a_name(
    was: str, asked: list[str]
) -> None:
    bye = request("BYE", "sip:bob@pbx.example")
    for route in ("<sip:192.0.2.8;lr>", "<sip:192.0.2.9;lr>"):
        bye.headers.append("Route", route)
    token = RouteToken(THEN.replace(WAS, was))
    assert surroundings({}).ways_back(token, bye) == asked
