"""The port to one push service."""

from __future__ import annotations

from typing import Protocol

from sipush.core.push_request import PushOutcome, PushRequest


class PushProvider(Protocol):
    """One service for one app."""

    name: str
    "``apns``, ``fcm`` or ``webhook``: for logs and metrics."

    async def send(self, request: PushRequest) -> PushOutcome:
        """Deliver one push. Never raises but CancelledError, never outlives the deadline."""

    async def close(self) -> None:
        """Close connections. May be called twice."""
