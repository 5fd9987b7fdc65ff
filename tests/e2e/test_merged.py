"""The same INVITE by another way: a proxy forks, a caller fails over (§8.2.2.2, RFC 3263)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.e2e.daemon import PBX, Daemon, in_time
from tests.e2e.wire import OutCall, Phone, new_branch
from tests.e2e.world import World, apns_token, x_push


async def pbx(world: World, daemon: Daemon, transport: str = "UDP") -> Phone:
    """One port of the trusted peer."""
    return await world.phone(daemon, "200", transport, ip=PBX)


def again(call: OutCall, phone: Phone, uri: str = "") -> OutCall:
    """The INVITE of a call once more, in a transaction of its own, from another port."""
    other = replace(call, phone=phone, branch=new_branch())
    request_uri, other.uri = other.uri, uri or other.uri
    other.resend_invite()
    other.uri = request_uri
    return other


async def test_a_call_that_comes_twice_wakes_the_phone_once_and_rings_it_once(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    first = await (await pbx(world, daemon, transport)).call("bob", challenged=False)
    pushed = await world.pushes.next()
    await first.expect(180)
    second = again(first, await pbx(world, daemon, transport))
    await second.expect(180)
    reborn = await world.registered(daemon, "bob", transport, push)
    incoming = await reborn.incoming()
    assert incoming.push_id == pushed.push_id
    incoming.reply(183)
    rings = await in_time(first.expect(183), second.expect(183))
    assert [each.tag("to") for each in rings] == [incoming.tag] * 2
    answers = await in_time(first.expect(200), second.final(), incoming.answer())
    assert [each.status for each in answers[:2]] == [200, 200]
    await in_time(second.hang_up(answers[1]), incoming.hung_up())
    await reborn.wire.heard()
    assert reborn.wire.count("INVITE") == 1
    assert len(world.pushes.all) == 1


async def test_a_caller_that_lost_its_connection_goes_on_by_another_way(world: World) -> None:
    """RFC 3263 §4.3: over what its SRV records name next, here UDP."""
    daemon = await world.daemon()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "UDP", push)
    lost = await pbx(world, daemon, "TCP")
    first = await lost.call("bob", challenged=False)
    await world.pushes.next()
    lost.kill()
    second = again(first, await pbx(world, daemon))
    await second.expect(180)
    reborn = await world.registered(daemon, "bob", "UDP", push)
    answer, incoming = await in_time(second.final(), reborn.rings_and_answers())
    assert answer.status == 200
    await in_time(second.request(answer, "INFO"), incoming.requested("INFO"))
    await in_time(incoming.hang_up(), second.hung_up())
    assert len(world.pushes.all) == 1


async def test_a_refusal_goes_back_every_way(world: World, transport: str) -> None:
    daemon = await world.daemon()
    bob = await world.registered(daemon, "bob", transport, x_push(apns_token()))
    first = await (await pbx(world, daemon, transport)).call("bob", challenged=False)
    incoming = await bob.incoming()
    incoming.reply(180)
    await first.expect(180)
    second = again(first, await pbx(world, daemon, transport))
    await second.expect(180)
    refused = await in_time(first.final(), second.final(), incoming.refuse(486))
    assert [each.status for each in refused[:2]] == [486, 486]


@pytest.mark.parametrize("gives_up", ["older", "newest"])
async def test_who_gives_up_the_newest_way_gives_up_the_call(world: World, gives_up: str) -> None:
    daemon = await world.daemon()
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    first = await (await pbx(world, daemon)).call("bob", challenged=False)
    incoming = await bob.incoming()
    incoming.reply(180)
    await first.expect(180)
    second = again(first, await pbx(world, daemon))
    await second.expect(180)
    if gives_up == "older":
        cancelled, final = await in_time(first.cancel(), first.final())
        assert (cancelled.status, final.status) == (200, 487)
        answer, _ = await in_time(second.final(), incoming.answer())
        assert answer.status == 200
        assert bob.wire.count("CANCEL") == 0
    else:
        await in_time(second.cancel(), incoming.cancelled())
        finals = await in_time(first.final(), second.final())
        assert [each.status for each in finals] == [487, 487]


async def test_both_ways_outlive_a_crash(world: World) -> None:
    daemon = await world.start(wake={"hold": 60.0, "probe": 0.25})
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "UDP", push)
    first = await (await pbx(world, daemon)).call("bob", challenged=False)
    await world.pushes.next()
    second = again(first, await pbx(world, daemon))
    await second.expect(180)
    await daemon.restart_after_kill()
    await daemon.log_event("call_resumed")
    third = again(first, await pbx(world, daemon))
    reborn = await world.registered(daemon, "bob", "UDP", push)
    incoming = await reborn.incoming()
    incoming.reply(183)
    rings = await in_time(*(each.expect(183) for each in (first, second, third)))
    assert {each.tag("to") for each in rings} == {incoming.tag}
    answer, _ = await in_time(third.final(), incoming.answer())
    assert answer.status == 200
    assert reborn.wire.count("INVITE") == 1
    assert len(world.pushes.all) == 1


async def test_a_proxy_that_forks_to_two_users_reaches_both(world: World) -> None:
    daemon = await world.daemon()
    tokens = {user: apns_token() for user in ("bob", "carol")}
    for user, token in tokens.items():
        await world.sleeping(daemon, user, "UDP", x_push(token))
    first = await (await pbx(world, daemon)).call("bob", challenged=False)
    # To is the same: only the Request-URI says whom it is for.
    other = await pbx(world, daemon)
    plain = other.wire.send

    def to_carol(text: str | bytes) -> None:
        assert isinstance(text, str)
        plain(text.replace(f"INVITE {first.uri} ", f"INVITE sip:{world.aor('carol')} "))

    other.wire.send = to_carol  # type: ignore[method-assign]
    second = again(first, other)
    pushes = [await world.pushes.next(), await world.pushes.next()]
    assert {push.token for push in pushes} == set(tokens.values())
    carol = await world.registered(daemon, "carol", "UDP", x_push(tokens["carol"]))
    answer, _ = await in_time(second.final(), carol.rings_and_answers())
    assert answer.status == 200
    assert first.phone.wire.count(200) == 0


async def test_nobody_hears_of_a_call_that_is_not_his(world: World) -> None:
    """Who knows its Call-ID and From tag makes a call of his own."""
    daemon = await world.daemon()
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    incoming = await bob.incoming()
    incoming.reply(180)
    await call.expect(180)
    carol = await world.phone(daemon, "carol")
    spy = replace(call, phone=carol, cseq=call.cseq - 1, authorization="")
    spy.send_invite()
    await spy.authorize(await spy.expect(407))
    spied = await bob.incoming()
    await spied.refuse(482)
    assert "carol" in spied.invite["from"]
    await in_time(call.cancel(), call.final(), incoming.cancelled())
    await carol.wire.heard()
    assert carol.wire.count(180) == 0


async def test_forks_of_forks_come_to_an_end(world: World) -> None:
    daemon = await world.daemon()
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    proxy = await pbx(world, daemon)
    first = await proxy.call("bob", challenged=False)
    incoming = await bob.incoming()
    incoming.reply(180)
    others = [again(first, proxy) for _ in range(9)]
    refused = await others[-1].expect(482)
    assert f"branch={others[-1].branch}" in refused["via"]
    await in_time(*(each.cancel() for each in others[:-1]), incoming.cancelled())
    await proxy.wire.heard()
    assert proxy.wire.count(487) == 9


async def test_a_way_that_was_given_up_stays_so_after_a_crash(world: World) -> None:
    daemon = await world.start(wake={"hold": 60.0, "probe": 0.25})
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "UDP", push)
    first = await (await pbx(world, daemon)).call("bob", challenged=False)
    await world.pushes.next()
    ways = [again(first, await pbx(world, daemon)) for _ in range(2)]
    await in_time(*(each.expect(180) for each in ways))
    for older in (first, ways[0]):
        await in_time(older.cancel(), older.final())
    await daemon.restart_after_kill()
    await daemon.log_event("call_resumed")
    reborn = await world.registered(daemon, "bob", "UDP", push)
    answer, _ = await in_time(ways[1].final(), reborn.rings_and_answers())
    assert answer.status == 200
    for older in (first, ways[0]):
        await older.phone.wire.heard()
        assert older.phone.wire.count(487) >= 1
        assert older.phone.wire.count(200) == 1  # of the CANCEL
