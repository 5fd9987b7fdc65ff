"""The port to one push service."""

from __future__ import annotations

from typing import Protocol

from sipush.core.push_request import PushOutcome, PushRequest


class PushProvider(Protocol):
    """One service for one app."""

    name: str
    "``apns``, ``fcm`` or ``webhook``: for logs and metrics."
    max_in_flight: int
    "How many sends may be busy at once."
    retry_delays: tuple[float, ...]
    """Seconds before each further try of a push that failed for the moment: as many tries as the
    service and the device can bear, the first not counted."""

    async def ready(self) -> PushOutcome | None:
        """Have all that a send needs, such as a connection. Why that cannot be had, or None."""

    async def send(self, request: PushRequest) -> PushOutcome:
        """Deliver one push, trying once. May be cancelled at any time."""

    async def close(self) -> None:
        """Close connections. May be called twice."""
