"""How many calls may wait for sleeping devices at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from sipush.core.bindings import Aor
from sipush.core.rejection import Rejection
from sipush.sip.status import Status

RETRY_AFTER = (("Retry-After", "10"),)
"Seconds: by then a device has woken, or will not."


@dataclass(slots=True)
class HeldCallLimits:
    """Counts held calls: each costs pushes, and the phones' batteries."""

    per_caller: int = 10
    per_callee: int = 10
    _counts: Counter[str] = field(default_factory=Counter)

    def refusal(self, caller: Aor, callee: Aor) -> Rejection | None:
        """Why one more is not held. ``caller`` is empty for a peer, who calls for many."""
        if caller and self._counts.get("from " + caller, 0) >= self.per_caller:
            status = Status.SERVICE_UNAVAILABLE
            return Rejection(status, "Too Many Held Calls of This Caller", RETRY_AFTER)
        if self._counts.get("to " + callee, 0) >= self.per_callee:
            return Rejection(Status.BUSY_HERE, "Too Many Held Calls", RETRY_AFTER)
        return None

    def hold(self, caller: Aor, callee: Aor, counted: set[str]) -> None:
        """Count a call, by each name once; ``counted`` is its own, for ``release``."""
        names = {"to " + callee} | ({"from " + caller} if caller else set())
        self._counts.update(names - counted)
        counted |= names

    def release(self, counted: set[str]) -> None:
        """The call is over."""
        for name in counted:
            self._counts[name] -= 1
            if self._counts[name] <= 0:
                del self._counts[name]
        counted.clear()
