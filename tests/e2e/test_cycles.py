"""Kill, push, wake, answer, over and over: no lost call, no second push (SIPUSH_CYCLES=200)."""

from __future__ import annotations

from tests.e2e.daemon import in_time
from tests.e2e.world import World, apns_token, x_push


async def test_every_cycle_ends_in_a_call_with_exactly_one_push(
    world: World, transport: str, cycles: int, wake_times: list[float]
) -> None:
    daemon = await world.daemon()
    push = x_push(apns_token())
    bob = await world.registered(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice", transport)
    for cycle in range(1, cycles + 1):
        bob.kill()
        call = await alice.call("bob")
        pushed = await world.pushes.next()
        bob = await world.phone(daemon, "bob", transport)
        refresh = await bob.register(push)
        incoming = await bob.incoming()
        wake_times.append(incoming.invite.at - refresh.sent_at)
        assert incoming.push_id == pushed.push_id
        incoming.reply(180)
        await call.expect(180)
        answer, _ = await in_time(call.final(), incoming.answer())
        assert answer.status == 200
        bye, _ = await in_time(call.hang_up(answer), incoming.hung_up())
        assert bye.status == 200
        assert len(world.pushes.all) == cycle
