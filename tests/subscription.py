"""A browser's push subscription whose other end is not ours: Mozilla's ``http_ece`` decrypts."""

from __future__ import annotations

import os
import secrets
from base64 import urlsafe_b64encode
from typing import Any
from urllib.parse import quote

import http_ece
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sipush.demo.push_service import PushService


class Subscription:
    """What ``pushManager.subscribe`` gives a page."""

    def __init__(self, service: PushService) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._secret = os.urandom(16)
        point = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.p256dh = _base64url(point)
        self.auth = _base64url(self._secret)
        self.endpoint = service.subscribe(secrets.token_urlsafe(150), self._decrypt)

    @property
    def keys(self) -> dict[str, str]:
        """As X-Push has them."""
        return {"p256dh": self.p256dh, "auth": self.auth}

    def to_json(self) -> dict[str, Any]:
        """As ``PushSubscription.toJSON`` has it."""
        return {"endpoint": self.endpoint, "expirationTime": None, "keys": self.keys}

    def x_push(self, app_id: str) -> str:
        """The push header of its page."""
        return (
            f'device-os=web;device-uid="{self.endpoint}";p256dh={self.p256dh};auth={self.auth}'
            f";allow-call-push=true;allow-message-push=true;app-id={app_id}"
        )

    def rfc8599(self) -> str:
        """The Contact URI parameters of its page."""
        return f"pn-provider=webpush;pn-prid={quote(self.endpoint, safe='')}"

    def _decrypt(self, body: bytes) -> bytes:
        try:
            message: bytes = http_ece.decrypt(body, private_key=self._key, auth_secret=self._secret)
        except http_ece.ECEException as error:
            raise ValueError(str(error)) from error
        return message


def _base64url(value: bytes) -> str:
    return urlsafe_b64encode(value).decode().rstrip("=")
