"""Tokens that their push service has disowned (RFC 8599 §5.5)."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from sipush.core.bindings import PushRecord
from sipush.errors import LocationError
from sipush.location.store import LocationStore

log = structlog.get_logger()

Tell = Callable[..., None]
"""(event, facts by name)."""


async def remove_dead_token(
    store: LocationStore, record: PushRecord, tell: Tell | None = None, warn: Tell | None = None
) -> None:
    """Forget it, unless the device has another by now. It is told to the log if not given."""
    try:
        removed = await store.remove_push_record(record)
    except LocationError as error:  # the next push hears it again
        (warn or log.warning)("push_record_not_removed", aor=record.aor, reason=str(error))
    else:
        (tell or log.info)("push_record_removed", aor=record.aor, removed=removed)
