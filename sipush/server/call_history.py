"""The last calls step by step, for whoever asks why a phone did not ring (``[admin]``)."""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict
from typing import NamedTuple

from sipush.sip.message import Request

HALF = 50
"Steps of a call that are kept from its beginning, and as many from its end."
REFUSED_SHARE = 4
"Of so many calls kept one may be a call that was refused: strangers make many."
_LONGEST = 4000
"Characters of a text that are kept: what the log looks at."


class Step(NamedTuple):
    """What happened, and when."""

    at_epoch: float
    event: str
    "As in the log."
    method: str
    from_caller: bool
    "Of a request inside the dialog: which of the two has sent it."
    facts: dict[str, object]


class Ladder:
    """One call. The names in it are what its caller wrote."""

    __slots__ = (
        "call_id",
        "callee",
        "caller_tag",
        "from_name",
        "from_uri",
        "left_out",
        "number",
        "steps",
    )

    def __init__(self, number: int, request: Request) -> None:
        self.number = number
        "Its name where a Call-ID would not do: strangers write those."
        self.call_id = request.call_id[:_LONGEST]
        sender = request.from_
        self.from_name = sender.display_name[:_LONGEST]
        self.from_uri = sender.uri[:_LONGEST]
        self.caller_tag = sender.tag or ""
        self.callee = request.to.uri[:_LONGEST]
        self.steps: list[Step] = []
        self.left_out = 0
        "Steps between the first HALF and the others."

    def add(self, event: str, request: Request, facts: dict[str, object]) -> None:
        """One more step: of the INVITE, or of a request inside its dialog. Keeps ``facts``."""
        if len(self.steps) >= 2 * HALF:
            self.left_out += 1
            del self.steps[HALF]
        for name, value in facts.items():
            if isinstance(value, str) and len(value) > _LONGEST:
                facts[name] = value[:_LONGEST]
        from_caller = (request.from_.tag or "") == self.caller_tag
        self.steps.append(Step(time.time(), event, request.method, from_caller, facts))


class CallHistory:
    """The ladders of the last ``size`` calls, and of some that were refused before."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._numbers = itertools.count(1)
        self._routed: OrderedDict[str, Ladder] = OrderedDict()
        "By Call-ID, the oldest first; below likewise."
        self._refused: OrderedDict[str, Ladder] = OrderedDict()

    @property
    def newest_first(self) -> list[Ladder]:
        """All of them."""
        ladders = [*self._routed.values(), *self._refused.values()]
        return sorted(ladders, key=lambda each: -each.steps[0].at_epoch)

    def get(self, call_id: str) -> Ladder | None:
        """The call of that Call-ID, if it is known."""
        return self._routed.get(call_id) or self._refused.get(call_id)

    def numbered(self, number: int) -> Ladder | None:
        """The call of that number, if it is still known."""
        return next((each for each in self.newest_first if each.number == number), None)

    def arrived(self, request: Request, flow: str) -> Ladder | None:
        """The ladder a request belongs to: that of its call, which an INVITE may begin."""
        ladder = self.get(request.call_id)
        if ladder is None:
            if request.method != "INVITE" or request.to.tag:
                return None
            ladder = Ladder(next(self._numbers), request)
            _keep(self._refused, ladder, max(1, self._size // REFUSED_SHARE))
        ladder.add("arrived", request, {"uri": request.uri, "flow": flow})
        return ladder

    def routed(self, ladder: Ladder) -> None:
        """Its caller may call: no stranger can push it out any more."""
        if self._refused.pop(ladder.call_id, None) is not None:
            _keep(self._routed, ladder, self._size)

    def acknowledged(self, ack: Request) -> None:
        """The ACK of a 2xx has come."""
        if (ladder := self.get(ack.call_id)) is not None:
            ladder.add("arrived", ack, {"uri": ack.uri})


def _keep(ladders: OrderedDict[str, Ladder], ladder: Ladder, size: int) -> None:
    while len(ladders) >= size:
        ladders.popitem(last=False)
    ladders[ladder.call_id] = ladder
