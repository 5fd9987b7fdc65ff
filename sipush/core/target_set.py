"""The target set of a request (RFC 3261 §16.5) and the order in which it is tried (§16.6)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from sipush.core.bindings import Aor, PushRecord

PATIENCE: Final = 4.0
"Seconds that a server may stay silent before the next one is tried."


@dataclass(slots=True, init=False)
class Target:
    """One member of the target set (§16.5): a device, or a URI the call falls back to."""

    device: str
    "Unique in the context: ``full_device``; for what is not one of ours, its URI or another word."
    uri: str
    "Request-URI to forward with; empty when there is no contact."
    flow: str
    """Name of the flow that leads there, or to the first of ``route``; empty: resolve ``route`` or
    ``uri``."""
    route: tuple[str, ...]
    "Route values to add, topmost first (the Path of RFC 3327)."
    live: bool
    "Whether a request can be sent there now: its flow is up, or cannot be known to be down."
    push: PushRecord | None
    "How to wake it; None when it must not be woken for this request."
    hold: float
    "Seconds this request may wait for the device; without ``push``: for another flow of it."
    push_always: bool
    "Push in parallel with forwarding, not only when the device is unreachable."
    others: tuple[Target, ...]
    "Further flows of the device, in the order in which they are tried when this one fails."
    hop: str
    "URI to resolve instead of ``uri``: that of a Route which the request has already; or empty."
    aor: Aor
    "Whose device it is; of something that is not a device the same as ``device``."
    key: str
    "Its device key, without reg-id. Empty: it is not a device of ours."

    def __init__(
        self,
        device: str,
        uri: str = "",
        flow: str = "",
        route: tuple[str, ...] = (),
        *,
        live: bool = False,
        push: PushRecord | None = None,
        hold: float = 0.0,
        push_always: bool = False,
        others: tuple[Target, ...] = (),
        hop: str = "",
        aor: Aor = "",
        key: str = "",
    ) -> None:
        self.device = device
        self.uri = uri
        self.flow = flow
        self.route = route
        self.live = live
        self.push = push
        self.hold = hold
        self.push_always = push_always
        self.others = others
        self.hop = hop
        self.aor = aor or device
        self.key = key

    @property
    def wakeable(self) -> bool:
        """Whether waiting for it makes sense."""
        return self.push is not None and self.hold > 0


@dataclass(slots=True, init=False)
class Turn:
    """What is tried together, while the rest of the target set waits."""

    targets: tuple[Target, ...]
    aor: Aor
    "The member of a ring group whose turn it is, or empty."

    def __init__(self, targets: tuple[Target, ...], aor: Aor = "") -> None:
        self.targets = targets
        self.aor = aor


@dataclass(slots=True, init=False)
class TargetSet:
    """Where a request goes: one turn after the other until somebody answers."""

    turns: tuple[Turn, ...]
    turn_time: float | None
    "Seconds until the next turn; None: when this one's branches have all failed."
    only_until_heard: bool
    "The time counts only while nothing was heard of the turn, and not for the last one."
    members: bool
    "The targets belong to several people: who declines (6xx) speaks for himself only."

    def __init__(
        self,
        turns: tuple[Turn, ...],
        turn_time: float | None = None,
        *,
        only_until_heard: bool = False,
        members: bool = False,
    ) -> None:
        self.turns = turns
        self.turn_time = turn_time
        self.only_until_heard = only_until_heard
        self.members = members

    @staticmethod
    def of(*targets: Target) -> TargetSet:
        """All at once."""
        return TargetSet((Turn(targets),))

    @staticmethod
    def in_order(uris: Iterable[str]) -> TargetSet:
        """Servers, one after the other until one shows signs of life."""
        turns = (Turn((Target(device=uri, uri=uri, live=True),)) for uri in uris)
        return TargetSet(tuple(turns), PATIENCE, only_until_heard=True, members=True)

    @property
    def all(self) -> tuple[Target, ...]:
        """The targets of every turn."""
        return tuple([target for turn in self.turns for target in turn.targets])


NOWHERE: Final = TargetSet(())


@dataclass(slots=True, init=False)
class Search:
    """How far a target set has been tried. Times are seconds, monotonic."""

    pending: list[Turn]
    turn_time: float | None
    only_until_heard: bool
    members: bool
    first_branch: int
    "Number of the first branch of this target set."
    aor: Aor
    "Of the current turn."
    turn_branch: int
    "Number of the first branch of the current turn."
    turn_at: float | None
    "When the current turn is over."
    over: list[Aor]
    "Members who have had their turn, or have declined."

    def __init__(self, targets: TargetSet, first_branch: int, over: list[Aor]) -> None:
        """A search that has not begun; ``over`` is that of the one before."""
        self.pending = list(targets.turns)
        self.turn_time = targets.turn_time
        self.only_until_heard = targets.only_until_heard
        self.members = targets.members
        self.first_branch = first_branch
        self.aor = ""
        self.turn_branch = 0
        self.turn_at = None
        self.over = over

    def next_turn(self, branch: int, now: float) -> tuple[Target, ...]:
        """Begin the next turn, whose first branch will be number ``branch``; its targets."""
        turn = self.pending.pop(0)
        self.aor, self.turn_branch, self.turn_at = turn.aor, branch, None
        if self.over:
            called = {turn.aor, *(target.aor for target in turn.targets)}
            self.over = [aor for aor in self.over if aor not in called]
        if self.turn_time is None or (self.only_until_heard and not self.pending):
            return turn.targets
        limit = self.turn_time
        self.turn_at = now + limit
        return tuple(replace(target, hold=min(target.hold, limit)) for target in turn.targets)

    def end_turn(self) -> None:
        """The current turn has failed; the member does not come back when it wakes."""
        self.turn_at = None
        if self.aor:
            self.over.append(self.aor)
            self.aor = ""

    def stop(self) -> None:
        """No further turn."""
        self.pending.clear()
        self.turn_at = None

    def put_off(self, target: Target) -> bool:
        """Keep a device that has registered before its member's turn; False when it is not."""
        for number, turn in enumerate(self.pending):
            if turn.aor and turn.aor == target.aor:
                others = (each for each in turn.targets if each.device != target.device)
                self.pending[number] = Turn((*others, target), turn.aor)
                return True
        return False
