"""What the local APNs, FCM and webhook receiver got, in a test's words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from sipush.demo.push_service import PushService, ReceivedPush
from tests.e2e.wire import PATIENCE


@dataclass(frozen=True, slots=True)
class Push:
    """One push."""

    received: ReceivedPush

    @property
    def service(self) -> str:
        """``apns``, ``fcm`` or ``webhook``."""
        return self.received.service

    @property
    def token(self) -> str:
        """The device's token; for a webhook the user."""
        return self.received.token

    @property
    def data(self) -> dict[str, Any]:
        """The keys the app (or its operator) reads."""
        payload = self.received.payload
        return payload if self.service == "apns" else payload["data"]

    @property
    def push_id(self) -> str:
        """What must come again as X-Push-Id of the INVITE."""
        name = "call_id" if self.service == "webhook" else "x-push-id"
        return str(self.data[name])


class Pushes:
    """The checking push service, seen from a test."""

    def __init__(self, service: PushService) -> None:
        self.service = service

    def app_settings(self, app_id: str, *services: str) -> dict[str, Any]:
        """``[apps."app_id"]`` for this service; ``services``: only these."""
        whole = self.service.app_config(webhook="webhook" in services)
        app: dict[str, Any] = whole.model_dump(mode="json", exclude_none=True)
        if services:
            app = {
                name: value
                for name, value in app.items()
                if name in services or name not in ("apns", "fcm", "webhook")
            }
        return app

    async def next(self, patience: float = PATIENCE) -> Push:
        """The next push nobody has taken yet; it broke no rule of its service."""
        try:
            received = await self.service.next_push(patience)
        except TimeoutError:
            raise AssertionError("no push came") from None
        assert not received.violations, received.violations
        return Push(received)

    @property
    def all(self) -> list[Push]:
        """Every push so far, in order."""
        return [Push(received) for received in list(self.service.pushes)]

    def assert_each_device_at_most_once_per_call(self) -> None:
        """W4, and no rule of any service broken."""
        assert self.service.violations == []
        counts = Counter((push.push_id, push.token) for push in self.all)
        assert max(counts.values(), default=1) == 1, f"pushed twice: {counts}"
