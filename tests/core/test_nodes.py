"""What nodes on one store know of each other's phones."""

from __future__ import annotations

import pytest

from sipush.core.bindings import Binding
from sipush.core.nodes import THIS_FLOW, is_away, is_in_clear, path_here, route_key, way_to
from sipush.core.outbound import RouteToken, device_digest, encode_route_token
from sipush.core.rejection import Rejection
from sipush.core.routing import ToAor, ToDialog, ToFlow, destination
from tests.core.test_routing import CALL, KEY, REALM, invite

NODE = "sip:192.0.2.1:5060;transport=tcp"
OTHER = "sip:192.0.2.2:5060;transport=tcp"
EDGE = "<sip:198.51.100.7;lr>"
FLOW = "tcp/192.0.2.1:5060/198.51.100.7:49152"


def path(node: str = NODE, key: bytes = KEY) -> str:
    return path_here(node, FLOW, "bob@example.com", "token:1", key)


def binding(*path: str) -> Binding:
    return Binding("bob@example.com", "token:1", "sip:bob@h", "", 9e9, "c", 1, FLOW, path=path)


@pytest.mark.parametrize(
    ("of", "seen_by", "flow", "goes_through"),
    [
        ((path(NODE),), NODE, FLOW, ()),
        ((path(NODE),), OTHER, "", (path(NODE),)),
        ((path(NODE),), "", "", (path(NODE),)),
        (("<sip:edge.example;lr>",), NODE, "", ("<sip:edge.example;lr>",)),
        ((), NODE, FLOW, ()),
        ((THIS_FLOW, EDGE), "", FLOW, (EDGE,)),
        ((path(NODE), EDGE), NODE, FLOW, (EDGE,)),
        ((path(NODE), EDGE), OTHER, "", (path(NODE), EDGE)),
    ],
    ids=[
        "ours",
        "another's",
        "before we had a name",
        "an edge of the operator",
        "no path",
        "who is no peer",
        "who is no peer, at our node",
        "who is no peer, at another",
    ],
)
def test_only_we_do_without_the_path_that_leads_to_us(
    of: tuple[str, ...], seen_by: str, flow: str, goes_through: tuple[str, ...]
) -> None:
    assert way_to(binding(*of), seen_by) == (flow, goes_through)


def test_a_phone_behind_a_proxy_is_at_the_node_that_has_the_flow() -> None:
    bound = binding(path(NODE), "<sip:198.51.100.7;lr;node>")
    assert (is_away(bound, NODE), is_away(bound, OTHER)) == (False, True)


@pytest.mark.parametrize(
    ("of", "in_clear"),
    [((path(OTHER),), True), ((path(f"sips:{OTHER[4:]}"),), False), ((path(NODE),), False)],
)
def test_a_secure_call_needs_a_secure_way_to_the_other_node(
    of: tuple[str, ...], in_clear: bool
) -> None:
    assert is_in_clear(binding(*of), NODE) == in_clear


def test_a_node_that_comes_by_the_path_gets_to_the_flow() -> None:
    request = invite("sip:bob@198.51.100.7:49152", f"Route: {path()}")
    where = destination(request, REALM, route_key(KEY, NODE))
    assert where == ToFlow(RouteToken(FLOW, "bob@example.com", device_digest("token:1")))
    assert not request.headers.values("route")


def test_a_route_behind_that_of_the_node_stays() -> None:
    behind = "<sip:proxy.example;lr>"
    request = invite("sip:bob@198.51.100.7:49152", f"Route: {path()}", f"Route: {behind}")
    assert isinstance(destination(request, REALM, route_key(KEY, NODE)), ToFlow)
    assert request.headers.values("route") == [behind]


@pytest.mark.parametrize(
    "route",
    [path(key=b"x" * 32), path(OTHER), path(NODE).replace("sip:", "sip:A")],
    ids=["of another store", "of another node", "made up"],
)
def test_no_other_route_gets_there(route: str) -> None:
    request = invite("sip:bob@198.51.100.7:49152", f"Route: {route}")
    assert isinstance(destination(request, REALM, route_key(KEY, NODE)), Rejection)


def test_the_token_of_a_dialog_is_none_of_a_node() -> None:
    key = route_key(KEY, NODE)
    token = encode_route_token(RouteToken(FLOW), CALL, key)
    request = invite("sip:bob@198.51.100.7:49152", f"Route: <sip:{token}@192.0.2.1;lr>")
    assert isinstance(destination(request, REALM, key), Rejection)


def test_the_tokens_of_two_nodes_follow_each_other() -> None:
    ours, theirs = (
        encode_route_token(RouteToken(flow), CALL, route_key(KEY, node))
        for flow, node in (("a", NODE), ("b", OTHER))
    )
    request = invite(
        "sip:bob@198.51.100.7:49152",
        f"Route: <sip:{ours}@192.0.2.1;lr>",
        f"Route: <sip:{theirs}@192.0.2.2;lr>",
        to_tag=";tag=2",
    )
    assert destination(request, REALM, route_key(KEY, NODE)) == ToDialog(RouteToken("a"))
    assert request.headers.values("route") == [f"<sip:{theirs}@192.0.2.2;lr>"]


def test_alone_the_key_is_that_of_the_store() -> None:
    assert route_key(KEY, "") == KEY
    assert destination(invite(), REALM, KEY) == ToAor("bob@example.com")
