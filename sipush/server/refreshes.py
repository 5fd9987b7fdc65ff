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

INTERVAL = 5.0
"Seconds between two looks at what is due: well within what REFRESH_AHEAD leaves."

log = structlog.get_logger()


RegistrarOf = Callable[[Aor], str | None]
"The registrar of a user, where that is another server."


async def push_refreshes(
    store: LocationStore, dispatcher: Dispatcher, registrar_of: RegistrarOf
) -> None:
    """Push whatever falls due, for ever."""
    while True:
        try:
            while due := await store.take_refreshes(time.time()):
                now = time.time()
                pushes = (
                    push_refresh(store, dispatcher, aor, device, now, away=bool(registrar_of(aor)))
                    for aor, device in due
                )
                await asyncio.gather(*pushes)
        except LocationError as error:
            log.warning("refreshes_put_off", reason=str(error))
        await asyncio.sleep(INTERVAL)


async def push_refresh(
    store: LocationStore,
    dispatcher: Dispatcher,
    aor: Aor,
    device: str,
    now_epoch: float,
    *,
    away: bool = False,
) -> None:
    """Push one device, unless it has registered meanwhile or is gone. Raises LocationError.

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
            to_user=aor.rpartition("@")[0],
            to_uri=f"sip:{aor}",
        )
    )
    if outcome.result is PushResult.TOKEN_DEAD:
        await store.remove_push_record(record)
