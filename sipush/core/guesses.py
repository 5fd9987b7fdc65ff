"""Guesses at one user's password from many addresses: slowed, without locking the user out.

Each address alone stays below what ``abuse.Guard`` bans. So failures are also counted by user; but
only those from where this user has never signed in, and only there the user is slowed. ``now`` is
monotonic, in seconds. Users who do not exist are treated alike: nobody learns who does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from sipush.core.bindings import Aor, Location
from sipush.core.outbound import came_from
from sipush.core.recent import Recent
from sipush.sip.message import Request
from sipush.sip.push_params import HEADERS

FAMILIAR_FOR = 30 * 86400.0
"Seconds after a sign-in that its source is familiar to the user."

_FAMILIAR: Final = 1 << 17
"""Pairs of user and source remembered, in a megabyte. If one seems familiar by chance, nobody who
guesses can know which, and ``abuse.Guard`` counts his failures still. Where one is forgotten, the
user is slowed during guesses, unless the request shows that it is a device of his."""

MAX_GUESSED = 50_000
"Users remembered whose password somebody got wrong."

MARK_LENGTH = 16
"Characters that an instance id or a token has at least, to be taken for a device's own."


@dataclass(slots=True)
class _Guessed:
    left: float
    filled_at: float
    told_at: float = -math.inf


class Guesses:
    """Counts failed sign-ins by user. ``allowed`` within ``window`` seconds; 0: any number."""

    def __init__(self, allowed: int, window: float) -> None:
        self.allowed = allowed
        self.window = window
        self._guessed: dict[Aor, _Guessed] = {}
        self._familiar = Recent(_FAMILIAR)

    def __len__(self) -> int:
        return len(self._guessed)

    def signed_in(self, aor: Aor, source: str, now: float) -> None:
        """The source is familiar from now on."""
        number = hash((aor, source))
        if self._familiar.until(number) - now <= FAMILIAR_FOR / 2:
            self._familiar.put(number, now + FAMILIAR_FOR)

    def failed(self, aor: Aor, source: str, now: float) -> bool:
        """A wrong password; True when the user is slowed by it, told once in a window."""
        if not self.allowed or self._is_familiar(aor, source, now):
            return False
        guessed = self._guessed.get(aor)
        if guessed is None:
            if len(self._guessed) >= MAX_GUESSED:
                self._forget(now)
            guessed = self._guessed[aor] = _Guessed(self.allowed, now)
        guessed.left, guessed.filled_at = max(self._left(guessed, now) - 1, 0.0), now
        if guessed.left >= 1 or now - guessed.told_at < self.window:
            return False
        guessed.told_at = now
        return True

    def is_guessed(self, aor: Aor) -> bool:
        """Whether anybody got the user's password wrong lately: else there is nothing to ask."""
        return aor in self._guessed

    def wait(self, aor: Aor, source: str, now: float) -> float:
        """Seconds until a password from there is looked at again; 0: at once."""
        guessed = self._guessed.get(aor)
        if guessed is None or not self.allowed or self._is_familiar(aor, source, now):
            return 0.0
        return max(1 - self._left(guessed, now), 0.0) * self.window / self.allowed

    def _is_familiar(self, aor: Aor, source: str, now: float) -> bool:
        return self._familiar.until(hash((aor, source))) > now

    def _left(self, guessed: _Guessed, now: float) -> float:
        earned = max(now - guessed.filled_at, 0.0) * self.allowed / self.window
        return min(guessed.left + earned, self.allowed)

    def _forget(self, now: float) -> None:
        """Those who are whole again, and the oldest half if that is not enough."""
        kept = {
            aor: each for aor, each in self._guessed.items() if self._left(each, now) < self.allowed
        }
        if len(kept) > MAX_GUESSED // 2:
            kept = dict(list(kept.items())[len(kept) // 2 :])
        self._guessed = kept


def is_own_device(request: Request, address: str, location: Location) -> bool:
    """Whether a request shows signs of a device of this user, though it may be in a new place.

    It comes from where one is registered, or it names the instance or a push token of one, which
    nobody else knows.
    """
    if any(came_from(address, binding.flow) for binding in location.bindings):
        return True
    devices = [binding.device for binding in location.bindings]
    devices += [record.device for record in location.push_records]
    marks = {device.partition(":")[2].partition(";")[0] for device in devices if _is_own(device)}
    for record in location.push_records:
        marks |= {record.call_token, record.message_token}
    spoken = "\n".join(line for name, line in request.headers if name in _SPEAKING).lower()
    return any(len(mark) >= MARK_LENGTH and mark.lower() in spoken for mark in marks)


def _is_own(device: str) -> bool:
    return device.startswith(("instance:", "token:"))


_SPEAKING: Final = frozenset({"contact", *HEADERS})
