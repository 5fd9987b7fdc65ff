"""The port to one push service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from sipush.core.push_request import PushOutcome, PushRequest

Leave = Callable[[], None]
Begin = Callable[[Leave], Awaitable[bool]]
"""Has the push ``leave`` in the same turn of the event loop in which that it begins is out of our
hands; what can only leave later awaits it. False: the push is withdrawn, and has not left."""


class WithdrawnError(Exception):
    """The push is not wanted any more; nothing was sent."""


def later() -> None:
    """The ``Leave`` of what cannot leave within a turn of the event loop."""


async def begin_now(begin: Begin | None, leave: Leave = later) -> None:
    """To be awaited when nothing stands between a push and its open connection any more.

    Raises WithdrawnError, and what ``leave`` raises.
    """
    if begin is None:
        leave()
    elif not await begin(leave):
        raise WithdrawnError


class PushProvider(Protocol):
    """One service for one app."""

    name: str
    "``apns``, ``fcm``, ``webpush`` or ``webhook``: for logs and metrics."
    max_in_flight: int
    "How many sends may be busy at once."
    retry_delays: tuple[float, ...]
    """Seconds before each further try of a push that failed for the moment: as many tries as the
    service and the device can bear, the first not counted."""
    knows_repeats: bool
    """Whether what arrives twice does no harm. Otherwise a push that may have arrived is tried once
    more, and one that a service asks to send later, too."""

    async def send(self, request: PushRequest, begin: Begin | None = None) -> PushOutcome:
        """Deliver one push, trying once. May be cancelled at any time.

        ``begin``: for ``begin_now``. Raises WithdrawnError and PayloadTooLargeError.
        """

    async def close(self) -> None:
        """Close connections. May be called twice."""
