"""Binding-refresh pushes: a sleeping app registers before its binding expires (RFC 8599 §5.5).

What is due is in the store: it survives a restart, and of many nodes one sends each push.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable

import structlog

from sipush.core.bindings import Aor
from sipush.core.push_request import PushKind, PushRequest, PushResult
from sipush.core.registration import REFRESH_AHEAD
from sipush.errors import LocationError
from sipush.location.store import LocationStore
from sipush.push.dispatcher import Dispatcher
from sipush.server.dead_tokens import remove_dead_token

INTERVAL = 5.0
"Seconds between two looks at what is due: well within what REFRESH_AHEAD leaves."

log = structlog.get_logger()


RegistrarOf = Callable[[Aor], str | None]
"The registrar of a user, where that is another server."

Taken = dict[tuple[Aor, str], float]
"(AOR, device) that the store has handed out, with the UNIX time at which its binding is over."


async def push_refreshes(
    store: LocationStore, dispatcher: Dispatcher, registrar_of: RegistrarOf
) -> None:
    """Push whatever falls due, for ever."""
    taken: Taken = {}
    while True:
        try:
            await push_due(store, dispatcher, registrar_of, taken)
        except LocationError as error:
            log.warning("refreshes_put_off", devices=len(taken), reason=str(error))
        await asyncio.sleep(INTERVAL)


async def push_due(
    store: LocationStore, dispatcher: Dispatcher, registrar_of: RegistrarOf, taken: Taken
) -> None:
    """Push what could not be looked up before, then whatever is due now.

    The store hands each out once: what it says nothing more about stays in ``taken``. Raises
    LocationError when there is something left to do.
    """
    now = time.time()
    for which in [which for which, until in taken.items() if until <= now]:
        del taken[which]
    errors: list[LocationError] = []

    async def push(which: tuple[Aor, str]) -> None:
        aor, device = which
        try:
            await push_refresh(store, dispatcher, aor, device, now, away=bool(registrar_of(aor)))
        except LocationError as error:
            errors.append(error)
        else:
            del taken[which]

    due = [*taken]
    while True:
        await asyncio.gather(*map(push, due))
        if errors:
            raise errors[0]
        now = time.time()
        due = await store.take_refreshes(now)
        if not due:
            return
        taken.update(dict.fromkeys(due, now + REFRESH_AHEAD))


async def push_refresh(
    store: LocationStore,
    dispatcher: Dispatcher,
    aor: Aor,
    device: str,
    now_epoch: float,
    *,
    away: bool = False,
) -> None:
    """Push one device, unless it has registered meanwhile or is gone.

    Raises LocationError, and has not pushed it then.

    ``away``: its registrar is elsewhere, and about to forget it, even if its binding is over here.
    """
    location = await store.lookup(aor, now_epoch)
    binding = next((b for b in location.bindings if b.device == device), None)
    record = location.push_record(device)
    if record is None or (binding is None and not away):
        return
    until = now_epoch + REFRESH_AHEAD if binding is None else binding.expires_epoch
    if until > now_epoch + REFRESH_AHEAD:
        return
    outcome = await dispatcher.send(
        PushRequest(
            kind=PushKind.REFRESH,
            push_id=str(uuid.uuid4()),
            record=record,
            deadline_epoch=until,
            created_epoch=now_epoch,
            call_id=binding.call_id if binding else "",
            from_user="",
            from_name="",
        )
    )
    if outcome.result is PushResult.TOKEN_DEAD:
        await remove_dead_token(store, record)
