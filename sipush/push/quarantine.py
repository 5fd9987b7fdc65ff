"""Tokens that a push service has refused without saying that they are dead.

They are not forgotten, for by a fault of the service or of our settings it says so of all devices;
and they are not pushed for a while, for a service takes those who go on for a nuisance.
"""

from __future__ import annotations

from collections.abc import Callable

from sipush.core.push_request import PushKind, PushRequest

LASTS = 300.0
"Seconds, unless the device registers before."
MAX_TOKENS = 10_000


class Quarantine:
    """Whose pushes are not worth a request."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock``: UNIX seconds."""
        self._clock = clock
        self._since: dict[tuple[str, str, bool], float] = {}
        "In the order in which they came."

    def holds(self, request: PushRequest) -> bool:
        """Whether the token that this push is for was refused a moment ago."""
        since = self._since.get(_key(request))
        if since is None:
            return False
        return request.record.updated_epoch <= since and 0 <= self._clock() - since < LASTS

    def add(self, request: PushRequest) -> None:
        """The service has refused the token."""
        key = _key(request)
        self._since.pop(key, None)
        self._since[key] = self._clock()
        if len(self._since) > MAX_TOKENS:
            del self._since[next(iter(self._since))]


def _key(request: PushRequest) -> tuple[str, str, bool]:
    """The tokens, and which of them is meant."""
    record = request.record
    return record.call_token, record.message_token, request.kind is PushKind.CALL
