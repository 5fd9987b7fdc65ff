"""Where a call goes that nobody took, by cause (W3)."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.e2e.daemon import in_time
from tests.e2e.fallback_server import FallbackServer
from tests.e2e.world import World, apns_token, x_push

pytestmark = pytest.mark.parametrize("store_type", ["sqlite"], indirect=True)


def by_cause(pbx: FallbackServer) -> dict[str, str]:
    """A box for each cause."""
    causes = ("unreachable", "no_answer", "busy", "declined")
    return {cause: pbx.uri(cause.replace("_", "-")) for cause in causes}


@pytest.mark.parametrize(
    ("end", "status", "cause", "reason"),
    [
        ("refused", 486, "busy", "user-busy"),
        ("refused", 600, "busy", "user-busy"),
        ("refused", 603, "declined", "deflection"),
        ("rang, then refused", 480, "no-answer", "no-answer"),
        ("rang on", 408, "no-answer", "no-answer"),
        ("never woke", 480, "unreachable", "unavailable"),
    ],
)
async def test_a_call_goes_on_by_cause(
    world: World, end: str, status: int, cause: str, reason: str
) -> None:
    async with FallbackServer() as pbx:
        daemon = await world.start(
            wake={"hold": 0.5, "no_answer": 1.0},
            users={world.aor("bob"): {"fallback": by_cause(pbx)}},
        )
        if end == "never woke":
            await world.sleeping(daemon, "bob", "UDP", x_push(apns_token()))
        else:
            bob = await world.phone(daemon, "bob")
            await bob.register()
        alice = await world.phone(daemon, "alice")
        call = await alice.call("bob")
        if end != "never woke":
            incoming = await bob.incoming()
            if end.startswith("rang"):
                incoming.reply(180)
            if end.endswith("refused"):
                await incoming.refuse(status)
            else:
                await incoming.cancelled()
        answer, to_pbx = await in_time(call.final(), pbx.answers(daemon))
        assert answer.status == 200
        assert to_pbx.invite.uri == pbx.uri(cause)
        assert to_pbx.invite.all("diversion") == [
            f"<sip:{world.aor('bob')}>;reason={reason};counter=1"
        ]
        assert to_pbx.invite.all("history-info") == [
            f"<sip:{world.aor('bob')}?Reason=SIP%3Bcause%3D{status}>;index=1",
            f"<{pbx.uri(cause)}>;index=1.1;mp=1",
        ]


async def test_a_cause_without_a_fallback_ends_the_call(world: World) -> None:
    daemon = await world.start(
        users={world.aor("bob"): {"fallback": {"unreachable": f"sip:{world.aor('carol')}"}}}
    )
    bob = await world.phone(daemon, "bob")
    await bob.register()
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    final, _ = await in_time(call.final(), (await bob.incoming()).refuse(486))
    assert final.status == 486


async def test_the_domain_has_a_fallback_for_causes_the_user_has_none_for(world: World) -> None:
    async with FallbackServer() as pbx:
        daemon = await world.start(
            users={world.aor("bob"): {"fallback": {"unreachable": pbx.uri("bobs-own")}}},
            domains={
                world.domain: {"fallback": {"busy": pbx.uri("busy"), "unreachable": "sip:x@y"}}
            },
        )
        alice = await world.phone(daemon, "alice")
        call = await alice.call("bob")
        answer, own = await in_time(call.final(), pbx.answers(daemon))
        await in_time(call.hang_up(answer), own.hung_up())
        bob = await world.phone(daemon, "bob")
        await bob.register()
        call = await alice.call("bob")
        await (await bob.incoming()).refuse(486)
        _, of_domain = await in_time(call.final(), pbx.answers(daemon))
        assert [own.invite.uri, of_domain.invite.uri] == [pbx.uri("bobs-own"), pbx.uri("busy")]


async def test_an_extension_that_sleeps_is_woken_as_fallback(world: World, transport: str) -> None:
    daemon = await world.start(
        wake={"hold": 8.0}, users={world.aor("bob"): {"fallback": f"sip:{world.aor('carol')}"}}
    )
    push = x_push(apns_token())
    await world.sleeping(daemon, "carol", transport, push)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await world.pushes.next()
    carol = await world.registered(daemon, "carol", transport, push)
    incoming = await carol.incoming()
    answer, _ = await in_time(call.final(), incoming.answer())
    assert answer.status == 200
    assert incoming.invite["diversion"].startswith(f"<sip:{world.aor('bob')}>;reason=unavailable")
    await in_time(call.hang_up(answer), incoming.hung_up())


async def test_fallbacks_that_lead_in_a_circle_end(world: World) -> None:
    daemon = await world.start(
        wake={"hold": 0.4},
        users={
            world.aor("bob"): {"fallback": f"sip:{world.aor('carol')}"},
            world.aor("carol"): {"fallback": f"sip:{world.aor('bob')}"},
        },
    )
    for user in ("bob", "carol"):
        await world.sleeping(daemon, user, "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    assert (await call.final()).status == 480
    assert len(world.pushes.all) == 2


async def test_each_step_of_a_chain_is_told(world: World) -> None:
    async with FallbackServer() as pbx:
        daemon = await world.start(
            users={
                world.aor("bob"): {"fallback": {"busy": f"sip:{world.aor('carol')}"}},
                world.aor("carol"): {"fallback": pbx.uri("carols-box")},
            }
        )
        bob = await world.phone(daemon, "bob")
        await bob.register()
        alice = await world.phone(daemon, "alice")
        call = await alice.call("bob")
        await (await bob.incoming()).refuse(486)
        answer, incoming = await in_time(call.final(), pbx.answers(daemon))
        assert answer.status == 200
        assert [value.partition(";counter")[0] for value in incoming.invite.all("diversion")] == [
            f"<sip:{world.aor('carol')}>;reason=unavailable",
            f"<sip:{world.aor('bob')}>;reason=user-busy",
        ]


@pytest.mark.parametrize("way", ["fallback", "forward", "fallback, forward"])
async def test_the_fallback_of_one_who_takes_no_calls_counts_wherever_a_call_comes_from(
    world: World, way: str
) -> None:
    async with FallbackServer() as pbx:
        bob, carol, dave = map(world.aor, ("bob", "carol", "dave"))
        first, _, then = way.partition(", ")
        daemon = await world.start(
            users={
                bob: {first: f"sip:{dave if then else carol}"},
                dave: {"ha1_md5": world.ha1("dave"), "forward": f"sip:{carol}"},
                carol: {"do_not_disturb": True, "fallback": {"busy": pbx.uri("busy-box")}},
            }
        )
        await world.sleeping(daemon, "carol", "UDP", x_push(apns_token()))
        alice = await world.phone(daemon, "alice")
        call = await alice.call("bob")
        answer, incoming = await in_time(call.final(), pbx.answers(daemon))
        assert answer.status == 200
        assert incoming.invite.uri == pbx.uri("busy-box")
        newest = incoming.invite.all("diversion")[0]
        assert newest == f"<sip:{carol}>;reason=user-busy;counter=1"
        assert not world.pushes.all


@pytest.mark.parametrize("box", ["carols", "nowhere"])
async def test_a_user_whose_calls_are_sent_on_is_told_below_whom_they_come_from(
    world: World, box: str
) -> None:
    """``nowhere``: his calls would go back, and so to his own fallback."""
    async with FallbackServer() as pbx:
        bob, carol = world.aor("bob"), world.aor("carol")
        forward = pbx.uri("box") if box == "carols" else f"sip:{bob}"
        daemon = await world.start(
            users={
                bob: {"fallback": f"sip:{carol}"},
                carol: {"forward": forward, "fallback": pbx.uri("box")},
            }
        )
        alice = await world.phone(daemon, "alice")
        call = await alice.call("bob")
        answer, incoming = await in_time(call.final(), pbx.answers(daemon))
        assert answer.status == 200
        why, status = ("unconditional", 302) if box == "carols" else ("unavailable", 480)
        assert incoming.invite.all("diversion") == [
            f"<sip:{carol}>;reason={why};counter=1",
            f"<sip:{bob}>;reason=unavailable;counter=1",
        ]
        assert incoming.invite.all("history-info") == [
            f"<sip:{bob}?Reason=SIP%3Bcause%3D480>;index=1",
            f"<sip:{carol}?Reason=SIP%3Bcause%3D{status}>;index=1.1;mp=1",
            f"<{pbx.uri('box')}>;index=1.1.1;mp=1.1",
        ]


async def test_a_chain_goes_on_where_the_server_died_and_tells_every_step(world: World) -> None:
    async with FallbackServer() as pbx:
        daemon = await world.start(
            wake={"hold": 60.0},
            users={
                world.aor("bob"): {"fallback": {"busy": f"sip:{world.aor('carol')}"}},
                world.aor("carol"): {"fallback": {"declined": pbx.uri("carols-box")}},
            },
        )
        bob = await world.phone(daemon, "bob")
        await bob.register()
        push = x_push(apns_token())
        await world.sleeping(daemon, "carol", "UDP", push)
        alice = await world.phone(daemon, "alice")
        call = await alice.call("bob")
        await (await bob.incoming()).refuse(486)
        await world.pushes.next()
        await daemon.restart_after_kill()
        to_carol = await (await world.registered(daemon, "carol", "UDP", push)).incoming()
        assert to_carol.invite.all("diversion") == [
            f"<sip:{world.aor('bob')}>;reason=user-busy;counter=1"
        ]
        await to_carol.refuse(603)
        answer, to_pbx = await in_time(call.final(), pbx.answers(daemon))
        assert answer.status == 200
        assert to_pbx.invite.all("diversion") == [
            f"<sip:{world.aor('carol')}>;reason=deflection;counter=1",
            f"<sip:{world.aor('bob')}>;reason=user-busy;counter=1",
        ]
        assert to_pbx.invite.all("history-info") == [
            f"<sip:{world.aor('bob')}?Reason=SIP%3Bcause%3D486>;index=1",
            f"<sip:{world.aor('carol')}?Reason=SIP%3Bcause%3D603>;index=1.1;mp=1",
            f"<{pbx.uri('carols-box')}>;index=1.1.1;mp=1.1",
        ]


async def test_a_call_goes_on_five_times_and_no_more(world: World) -> None:
    names = [f"step-{number}" for number in range(7)]
    daemon = await world.start(
        users={
            world.aor(name): {"ha1_md5": world.ha1(name), "fallback": f"sip:{world.aor(after)}"}
            for name, after in pairwise(names)
        }
        | {world.aor(names[-1]): {"ha1_md5": world.ha1(names[-1])}}
    )
    phones = [await world.phone(daemon, name) for name in names]
    for phone in phones:
        await phone.register()
    alice = await world.phone(daemon, "alice")
    call = await alice.call(names[0])
    for phone in phones[:6]:
        await (await phone.incoming()).refuse(486)
    assert (await call.final()).status == 486
    assert phones[6].wire.count("INVITE") == 0


async def test_where_a_call_has_been_is_told_as_uris(world: World) -> None:
    name, john = "john doe", f"sip:john%20doe@{world.domain}"
    async with FallbackServer() as pbx:
        daemon = await world.start(
            users={
                world.aor("bob"): {"fallback": john},
                world.aor(name): {"ha1_md5": world.ha1(name), "fallback": pbx.uri("box")},
            }
        )
        phone = await world.phone(daemon, name)
        await phone.register()
        alice = await world.phone(daemon, "alice")
        call = await alice.call("bob")
        incoming = await phone.incoming()
        assert incoming.invite.all("history-info")[1] == f"<{john}>;index=1.1;mp=1"
        await incoming.refuse(486)
        _, to_pbx = await in_time(call.final(), pbx.answers(daemon))
        assert to_pbx.invite.all("diversion")[0] == f"<{john}>;reason=user-busy;counter=1"
        assert to_pbx.invite.all("history-info")[1].startswith(f"<{john}?Reason=")
