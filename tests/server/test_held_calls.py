"""Held calls that are taken up again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sipush.core.held_call import HeldCall
from sipush.errors import LocationError
from sipush.location.memory import MemoryStore
from sipush.location.store import Written
from sipush.server.held_calls import BEGINNING, KEPT
from tests.bench.in_process import Server, configuration, invite, register_from, response
from tests.server.stores import FallibleStore, LastingStore


def cancel_of(invite: bytes) -> bytes:
    """The caller's CANCEL."""
    head = invite.partition(b"\r\nContact:")[0].replace(b"INVITE", b"CANCEL")
    return head + b"\r\nContent-Length: 0\r\n\r\n"


async def held_by(server: Server) -> HeldCall:
    """A call that the server holds, as it has written it down."""
    await server.register()
    server.phone_leaves()
    await server.send(server.caller, invite(1))
    (text,) = await server.proxy.store.claim_held_calls("", 15, own=True)
    return HeldCall.from_json(text)


async def take_over(server: Server, held: HeldCall) -> None:
    """What a start does."""
    await server.proxy.store.put_held_call("", held.id, held.to_json())
    taking_over = asyncio.ensure_future(server.proxy.held_calls.take_over(server.proxy.resume))
    await server.proxy.held_calls.recovered.wait()
    taking_over.cancel()


async def test_what_would_not_outlive_us_is_not_written_down(tmp_path: Path) -> None:
    server = Server(configuration(tmp_path))
    assert isinstance(server.proxy.store, MemoryStore)
    await server.register()
    server.phone_leaves()
    await server.send(server.caller, invite(1))
    assert server.proxy.active == 1
    assert await server.proxy.store.claim_held_calls("", 15, own=True) == []
    await server.phone_returns()
    assert server.phone.sent[-1].startswith(b"INVITE ")


async def test_a_call_that_was_over_long_ago_leaves_nothing_behind(tmp_path: Path) -> None:
    """Its removal is lost when the store is away; its transaction once stayed for ever."""
    held = await held_by(Server(configuration(tmp_path), LastingStore()))
    over = replace(held, final=480, ended_epoch=time.time() - KEPT - 1)
    server = Server(configuration(tmp_path), LastingStore())
    await take_over(server, over)
    assert server.proxy.layer.server_transactions == 0
    assert await server.proxy.store.claim_held_calls("", 15, own=True) == []


async def test_a_call_whose_users_cannot_be_looked_up_just_now_goes_on(tmp_path: Path) -> None:
    held = await held_by(Server(configuration(tmp_path), LastingStore()))
    store = FallibleStore()
    store.down = True
    server = Server(configuration(tmp_path), store)
    await take_over(server, held)
    assert server.proxy.active == 1
    store.down = False
    await server.register()
    assert server.phone.sent[-1].startswith(b"INVITE ")


async def test_a_phone_that_was_called_just_before_a_crash_may_answer_after_it(
    tmp_path: Path,
) -> None:
    """Over a stream it has another flow by then, and may answer before it registers there."""
    dead = Server(configuration(tmp_path), LastingStore())
    held = await held_by(dead)
    await dead.phone_returns()
    answer = response(dead.phone.sent[-1], "200 OK")
    server = Server(configuration(tmp_path), dead.proxy.store)
    server.phone_leaves()
    await take_over(server, held)
    await server.send(server.wire(3), answer)
    assert server.caller.sent[-1].startswith(b"SIP/2.0 200 ")


def earlier(held: HeldCall, seconds: float) -> HeldCall:
    """The same call, so many seconds ago."""
    for branch in held.context["branches"]:
        for name in ("probe_at", "bucket_at", "timer_c_at", "tombstone_at"):
            if name in branch:
                branch[name] -= seconds
    return replace(held, created_epoch=held.created_epoch - seconds)


def told(server: Server) -> list[bytes]:
    """What the caller has heard."""
    return [data.partition(b"\r\n")[0] for data in server.caller.sent]


async def test_a_call_whose_hold_is_over_is_refused_and_nothing_else(tmp_path: Path) -> None:
    held = await held_by(Server(configuration(tmp_path), LastingStore()))
    server = Server(configuration(tmp_path), LastingStore())
    await take_over(server, earlier(held, 3600))
    await server.register()
    assert told(server) == [b"SIP/2.0 480 Temporarily Unavailable"]
    assert not any(data.startswith(b"INVITE ") for data in server.phone.sent)
    assert server.pushed.requests == []


async def test_a_phone_that_comes_a_moment_after_the_hold_sees_the_call_begin_and_end(
    tmp_path: Path,
) -> None:
    held = await held_by(Server(configuration(tmp_path), LastingStore()))
    hold = held.context["branches"][0]["bucket_at"] - time.time()
    server = Server(configuration(tmp_path), LastingStore())
    await take_over(server, earlier(held, hold + 5))
    await server.register()
    assert told(server) == [b"SIP/2.0 480 Temporarily Unavailable"]
    invites = [data for data in server.phone.sent if data.startswith(b"INVITE ")]
    assert len(invites) == 1
    await server.send(server.phone, response(invites[0], "180 Ringing"))
    assert server.phone.sent[-1].startswith(b"CANCEL ")


async def test_a_silent_phone_is_not_called_for_a_call_whose_hold_is_over(tmp_path: Path) -> None:
    dead = Server(configuration(tmp_path), LastingStore())
    held = await held_by(dead)
    branch = held.context["branches"][0]
    branch |= {"state": "probing", "number": 1, "target": branch["target"] | {"live": True}}
    for seconds, calls in ((0, 1), (3600, 0)):
        server = Server(configuration(tmp_path), LastingStore())
        await take_over(server, earlier(held, seconds))
        invites = [data for data in server.phone.sent if data.startswith(b"INVITE ")]
        assert len(invites) == calls


class CountingStore(LastingStore):
    """A store that counts how often a held call is written down."""

    written = 0

    async def put_held_call(
        self, owner: str, held_id: str, held: bytes, written: Written | None = None
    ) -> None:
        self.written += 1
        await self.unchanged.put_held_call(owner, held_id, held, written)


async def test_what_changes_in_one_turn_of_the_loop_is_written_down_once(tmp_path: Path) -> None:
    store = CountingStore()
    server = Server(configuration(tmp_path), store)
    await held_by(server)
    (forwarding,) = server.proxy._forwardings.values()
    before = store.written
    for _ in range(2):
        tasks = [server.proxy.held_calls.changed(forwarding) for _ in range(3)]
        assert tasks[0] is not None
        await tasks[0]
    assert store.written == before + 2


async def test_a_sign_of_life_that_changes_nothing_is_not_written_down(tmp_path: Path) -> None:
    store = CountingStore()
    server = Server(configuration(tmp_path), store)
    await held_by(server)
    (forwarding,) = server.proxy._forwardings.values()
    before = store.written
    forwarding.flow_active("a flow that many devices share")
    await asyncio.sleep(0)
    assert store.written == before


class WatchingStore(LastingStore):
    """A store that sees what the caller has heard when the end of a held call is stored."""

    server: Server

    def __init__(self) -> None:
        super().__init__()
        self.heard_before: dict[int, list[bytes]] = {}

    async def put_held_call(
        self, owner: str, held_id: str, held: bytes, written: Written | None = None
    ) -> None:
        await self.unchanged.put_held_call(owner, held_id, held, written)
        final = HeldCall.from_json(held).final
        heard = [each.partition(b"\r\n")[0] for each in self.server.caller.sent]
        self.heard_before.setdefault(final, heard)


async def test_the_caller_hears_of_an_answer_when_that_is_stored(tmp_path: Path) -> None:
    """Else who goes on after a crash cancels the call, or has another phone answer it."""
    store = WatchingStore()
    server = store.server = Server(configuration(tmp_path), store)
    await server.register()
    assert (await server.wake()).startswith(b"SIP/2.0 200 ")
    assert store.heard_before[200][-1] == b"SIP/2.0 180 Ringing"


class StoreThatSeesCancels(LastingStore):
    """A store that sees which requests the phone has got when an answer is stored."""

    server: Server
    got_before: tuple[bytes, ...] = ()

    async def put_held_call(
        self, owner: str, held_id: str, held: bytes, written: Written | None = None
    ) -> None:
        await self.unchanged.put_held_call(owner, held_id, held, written)
        if HeldCall.from_json(held).final == 200:
            self.got_before = self.got_before or methods(self.server)


def methods(server: Server) -> tuple[bytes, ...]:
    """Of the requests that the phone has got."""
    return tuple(each.split()[0] for each in server.phone.sent if not each.startswith(b"SIP"))


async def test_another_phone_hears_of_an_answer_when_that_is_stored(tmp_path: Path) -> None:
    """Else a crash undoes the answer, and that phone was told what is not true."""
    store = StoreThatSeesCancels()
    server = store.server = Server(configuration(tmp_path), store)
    await server.register()
    other = server.wire(3)
    await server.send(other, register_from(3, server.credentials()))
    server.phone_leaves()
    await server.send(server.caller, invite(1))
    await server.phone_returns()
    await server.send(server.phone, response(server.phone.sent[-1], "180 Ringing"))
    await server.send(other, response(other.sent[-1], "200 OK"))
    assert store.got_before == (b"INVITE",)
    assert methods(server) == (b"INVITE", b"CANCEL")


class StoreThatSeesRinging(LastingStore):
    """A store that sees what the caller has heard when a call is stored first."""

    server: Server

    def __init__(self) -> None:
        super().__init__()
        self.heard_before: list[bytes] = []
        self.has_stored = asyncio.Event()

    async def put_held_call(
        self, owner: str, held_id: str, held: bytes, written: Written | None = None
    ) -> None:
        if not self.has_stored.is_set():
            self.heard_before = list(self.server.caller.sent)
        await self.unchanged.put_held_call(owner, held_id, held, written)
        self.has_stored.set()


async def rings_beside_a_silent_phone(tmp_path: Path) -> tuple[Server, StoreThatSeesRinging, bytes]:
    """A call to two phones, of which one rings; what the silent one has got."""
    store = StoreThatSeesRinging()
    server = store.server = Server(configuration(tmp_path), store)
    await server.register()
    other = server.wire(3)
    await server.send(other, register_from(3, server.credentials()))
    await server.send(server.caller, invite(1))
    await server.send(other, response(other.sent[-1], "180 Ringing"))
    return server, store, server.phone.sent[-1]


async def test_the_caller_hears_a_phone_ring_beside_a_silent_one_when_the_call_is_stored(
    tmp_path: Path,
) -> None:
    """Else a crash would cost him a call on which he relies."""
    server, store, _ = await rings_beside_a_silent_phone(tmp_path)
    assert server.caller.sent == []
    await store.has_stored.wait()
    assert store.heard_before == []
    await server.refresh()  # and meanwhile all that there was to do
    assert [each.split()[1] for each in server.caller.sent] == [b"100", b"180"]


async def test_the_caller_hears_a_phone_ring_at_once_when_the_other_one_has_spoken(
    tmp_path: Path,
) -> None:
    server, store, called = await rings_beside_a_silent_phone(tmp_path)
    await server.send(server.phone, response(called, "180 Ringing"))
    assert [each.split()[1] for each in server.caller.sent] == [b"180", b"180"]
    assert not store.has_stored.is_set()


class StoreThatFillsUp(LastingStore):
    """A store that takes the first state of a call, and then no more for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[dict[str, Any]] = []
        self.emptied = False
        self.refused = asyncio.Event()

    async def put_held_call(
        self, owner: str, held_id: str, held: bytes, written: Written | None = None
    ) -> None:
        if self.states and not self.emptied:
            self.refused.set()
            raise LocationError("disk full")
        await self.unchanged.put_held_call(owner, held_id, held, written)
        self.states.append(HeldCall.from_json(held).context["branches"][0])


async def test_a_push_whose_begin_cannot_be_stored_waits_for_the_store(tmp_path: Path) -> None:
    """A process that took the call over would push as well."""
    store = StoreThatFillsUp()
    server = Server(configuration(tmp_path), store)
    await server.register()
    server.phone_leaves()
    calling = asyncio.ensure_future(server.send(server.caller, invite(1)))
    await store.refused.wait()
    assert not server.pushed.requests
    assert "push_begun" not in store.states[-1]
    store.emptied = True
    await calling
    assert len(server.pushed.requests) == 1
    assert store.states[1]["push_begun"]


async def test_a_push_for_a_call_that_the_store_does_not_know_waits_for_nothing(
    tmp_path: Path,
) -> None:
    store = StoreThatFillsUp()
    store.states.append({})  # it is full from the start
    server = Server(configuration(tmp_path), store)
    await server.register()
    server.phone_leaves()
    await server.send(server.caller, invite(1))
    assert len(server.pushed.requests) == 1


def begins(held: bytes) -> bool:
    """Whether the push of a held call is on its way, or may be."""
    return bool(HeldCall.from_json(held).context["branches"][0].get("push_begun"))


class StoreThatHandsOver(LastingStore):
    """A store that hands over what it was given, and only then hears that it was refused."""

    server: Server

    def __init__(self) -> None:
        super().__init__()
        self.refuses = True
        self.pushed_before_and_after: list[int] = []
        self.has_begun = asyncio.Event()

    async def put_held_call(
        self, owner: str, held_id: str, held: bytes, written: Written | None = None
    ) -> None:
        if written is not None:
            requests = self.server.pushed.requests
            self.pushed_before_and_after = [len(requests)]
            written()
            self.pushed_before_and_after.append(len(requests))
            if self.refuses:
                self.refuses = False
                raise LocationError("out of memory")
        await self.unchanged.put_held_call(owner, held_id, held)
        if begins(held):
            self.has_begun.set()


async def test_a_push_leaves_in_the_turn_in_which_its_begin_is_handed_over(tmp_path: Path) -> None:
    """Whoever is killed in between has not sent it, and nobody else will."""
    store = StoreThatHandsOver()
    store.refuses = False
    server = store.server = Server(configuration(tmp_path), store)
    await held_by(server)
    assert store.pushed_before_and_after == [0, 1]
    assert len(server.pushed.requests) == 1


async def test_a_begin_that_was_refused_when_its_push_had_left_is_stored_again(
    tmp_path: Path,
) -> None:
    """Else who goes on after a crash would push again."""
    store = StoreThatHandsOver()
    server = store.server = Server(configuration(tmp_path), store)
    await server.register()
    server.phone_leaves()
    await server.send(server.caller, invite(1))
    await store.has_begun.wait()
    assert store.pushed_before_and_after == [0, 1]
    assert len(server.pushed.requests) == 1


class StoreThatIsAsked(LastingStore):
    """A store that waits before it hands over that a push begins."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    async def put_held_call(
        self, owner: str, held_id: str, held: bytes, written: Written | None = None
    ) -> None:
        if written is not None:
            self.asked.set()
            await self.may.wait()
        await self.unchanged.put_held_call(owner, held_id, held, written)


async def test_a_push_does_not_leave_when_the_call_is_over_before_its_begin_is_handed_over(
    tmp_path: Path,
) -> None:
    store = StoreThatIsAsked()
    server = Server(configuration(tmp_path), store)
    await server.register()
    server.phone_leaves()
    called = invite(1)
    calling = asyncio.ensure_future(server.send(server.caller, called))
    await store.asked.wait()
    cancelling = asyncio.ensure_future(server.send(server.caller, cancel_of(called)))
    store.may.set()
    await calling
    await cancelling
    assert server.caller.sent[-1].startswith(b"SIP/2.0 487 ")
    assert server.pushed.requests == []


class SlowStore(LastingStore):
    """A store that takes some turns of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: set[str] = set()
        self.most_begun_and_not_sent = 0
        self.sent: Callable[[], int] = lambda: 0

    async def put_held_call(
        self, owner: str, held_id: str, held: bytes, written: Written | None = None
    ) -> None:
        if begins(held):
            self.begun.add(held_id)
            on_the_way = len(self.begun) - self.sent()
            self.most_begun_and_not_sent = max(self.most_begun_and_not_sent, on_the_way)
        for _ in range(20):
            await asyncio.sleep(0)
        await self.unchanged.put_held_call(owner, held_id, held, written)


async def test_few_pushes_are_begun_and_not_sent(tmp_path: Path) -> None:
    """So few are lost when the process is killed."""
    store = SlowStore()
    server = Server(configuration(tmp_path), store)
    store.sent = lambda: len(server.pushed.requests)
    await server.register()
    server.phone_leaves()
    calls = 3 * BEGINNING
    await asyncio.gather(*(server.send(server.caller, invite(n)) for n in range(calls)))
    assert len(server.pushed.requests) == len(store.begun) == calls
    assert store.most_begun_and_not_sent == BEGINNING
