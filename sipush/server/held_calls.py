"""Held calls outlive their process: written down while they wait, taken over after a crash."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog

from sipush.core.bindings import Location
from sipush.core.held_call import HeldCall, freeze, storable, vias
from sipush.errors import LocationError
from sipush.location.store import LocationStore, Written
from sipush.push.provider import Leave
from sipush.server import waking
from sipush.server.tasks import Tasks

if TYPE_CHECKING:
    from sipush.server.forwarding import Forwarding

LEASE = 15.0
"Seconds after its last sign of life that a process keeps its held calls."
KEPT = 32.0
"64*T1: seconds after its end that a call is kept. Its final response may have to be repeated."
BEGINNING = 4
"""Pushes whose begin is on its way to the store: a crash never costs more. In Redis about as many
as it reads at once."""

log = structlog.get_logger()


class HeldCalls:
    """The calls of this process that the store knows, and those of the dead."""

    def __init__(self, store: LocationStore) -> None:
        self.owner = ""
        "This process, named by what it listens on: so it finds its own after a restart."
        self._store = store
        self._tasks = Tasks()
        self._held: dict[str, bool] = {}
        "By id: whether the store has had a state of it."
        self._beginning = asyncio.Semaphore(BEGINNING)
        self._ended: dict[str, asyncio.TimerHandle] = {}
        self._unwritten: dict[str, asyncio.Task[None]] = {}
        "What writes down the calls that have changed in this turn of the loop."
        self._closing = False
        self.recovered = asyncio.Event()
        "Our calls of an earlier life go on, or the store did not tell them."

    def holds(self, forwarding: Forwarding) -> bool:
        """Whether this request is written down, as far as the store can."""
        return forwarding.is_named and forwarding.push_id in self._held

    def changed(self, forwarding: Forwarding) -> asyncio.Task[None] | None:
        """The state of a request changed: write it down, and forget it some time after its end.

        The task ends when the store has it; None for a request that the store does not know.
        """
        if not self.holds(forwarding) or (held_id := forwarding.push_id) in self._ended:
            return None
        if forwarding.context.done:
            loop = asyncio.get_running_loop()
            self._ended[held_id] = loop.call_later(KEPT, self._forget, forwarding)
        if held_id not in self._unwritten:
            self._unwritten[held_id] = self._tasks.spawn(self._write(forwarding))
        return self._unwritten[held_id]

    async def _write(self, forwarding: Forwarding) -> None:
        """Whatever changes from here on is written down by another one."""
        del self._unwritten[forwarding.push_id]
        await self.store(forwarding)

    def drop(self, held_id: str) -> None:
        """A call that has just been claimed goes on in another one."""
        del self._held[held_id]
        self._tasks.spawn(self._remove_stored(held_id))

    async def replace(self, held_id: str, forwardings: list[Forwarding]) -> None:
        """A call that has just been claimed is one of these already, or over."""
        for forwarding in forwardings:
            if forwarding.is_named and forwarding.push_id == held_id:
                await self.store(forwarding)
                return
        if held_id not in self._ended:
            self.drop(held_id)

    def _forget(self, forwarding: Forwarding) -> None:
        forwarding.forgotten()
        self._remove(forwarding.push_id)

    def _remove(self, held_id: str) -> None:
        del self._held[held_id]
        self._ended.pop(held_id).cancel()
        self._tasks.spawn(self._remove_stored(held_id))

    async def _remove_stored(self, held_id: str) -> None:
        await self._quietly(self._store.remove_held_call(self.owner, held_id))

    async def begin(self, forwarding: Forwarding, leave: Leave) -> bool:
        """Write down that a push begins, and have it ``leave`` as soon as that is out of our hands.

        False: the store knows the call and did not take this, so the push has not left. Raises
        what ``leave`` raises.
        """
        known = self._held.get(forwarding.push_id)
        if not known:
            if known is not None:
                await self.store(forwarding)
            leave()
            return True
        async with self._beginning:
            left: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._tasks.spawn(self._begin(forwarding, leave, left))
            return await left

    async def _begin(
        self, forwarding: Forwarding, leave: Leave, left: asyncio.Future[bool]
    ) -> None:
        def written() -> None:
            if left.done():  # nobody waits for it any more
                return
            try:
                leave()
            except Exception as error:
                left.set_exception(error)
            else:
                left.set_result(True)

        stored = await self.store(forwarding, written)
        if not left.done():
            left.set_result(False)
            return
        # It has left, and the store did not take it: whoever goes on from there would push again.
        while not stored and self.holds(forwarding) and not self._closing:
            await asyncio.sleep(waking.STORE_PAUSE)
            stored = await self.store(forwarding)

    async def store(self, forwarding: Forwarding, written: Written | None = None) -> bool:
        """Write a held call down; without a store it goes on, but would not survive a crash.

        False: the store has an earlier state, and the next process would go on from that.
        ``written``: for ``put_held_call``.
        """
        if not self._store.outlives_us:
            return True
        held = describe(forwarding)
        known = self._held.setdefault(held.id, False)
        put = self._store.put_held_call(self.owner, held.id, held.to_json(), written)
        stored = await self._quietly(put)
        if stored and held.id in self._held:
            self._held[held.id] = True
        return stored or not known

    async def _quietly(self, work: Awaitable[None]) -> bool:
        """Whether the store did it."""
        try:
            await work
        except LocationError as error:
            log.warning("held_call_not_stored", reason=str(error))
            return False
        return True

    async def take_over(self, resume: Callable[[HeldCall], Awaitable[None]]) -> None:
        """Resume our calls of an earlier life, then for ever those whose process has died."""
        own = True
        while True:
            try:
                stored = await self._store.claim_held_calls(self.owner, LEASE, own=own)
            except LocationError as error:
                log.warning("held_calls_not_claimed", reason=str(error))
            else:
                own = False
                # All at once: meanwhile nobody is heard.
                await asyncio.gather(*(self._resume(text, resume) for text in stored))
            self.recovered.set()
            await asyncio.sleep(LEASE / 3)

    async def _resume(self, text: bytes, resume: Callable[[HeldCall], Awaitable[None]]) -> None:
        try:
            held = HeldCall.from_json(text)
            if held.final and held.ended_epoch + KEPT <= time.time():
                # Nobody repeats anything any more: it is here because the store was not there.
                await self._remove_stored(held.id)
                return
            self._held[held.id] = True
            await resume(held)
        except Exception:  # one call that cannot be resumed must not cost the others
            log.exception("call_not_resumed")

    async def close(self) -> None:
        """Finish writing. What is still held is left for the next process."""
        self._closing = True
        for held_id in list(self._ended):
            self._remove(held_id)
        await self._tasks.finish()


def describe(forwarding: Forwarding) -> HeldCall:
    """Everything another process needs to go on with this request."""
    now, way = asyncio.get_running_loop().time(), forwarding.way
    return HeldCall(
        id=forwarding.push_id,
        request=storable(forwarding.request),
        flow=forwarding.transaction.flow.name,
        push_id=forwarding.push_id,
        tag=forwarding.tag,
        context=freeze(forwarding.context, now, time.time()),
        caller_aor=forwarding.caller_aor,
        aors=way.aors,
        destinations=way.destinations,
        fallbacks={cause.value: uri for cause, uri in way.fallbacks.items()},
        diversions=tuple(
            (d.uri, d.status, d.cause.value if d.cause else "") for d in way.diversions
        ),
        created_epoch=forwarding.created_epoch,
        cancel_reason=forwarding.cancel_reason or "",
        final=forwarding.final,
        ended_epoch=forwarding.ended_epoch,
        wake_ups=waking.describe(forwarding),
        merged=tuple([(o.flow.name, vias(o.request)) for o in forwarding.transaction.merged]),
        left=forwarding.transaction.left,
        seen={aor: registrations(location) for aor, location in forwarding.seen.items()},
    )


def registrations(location: Location) -> dict[str, float]:
    """When each device registered last: UNIX seconds."""
    return {binding.device: binding.registered_epoch for binding in location.bindings}
