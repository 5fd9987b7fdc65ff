"""Ring groups: one address-of-record that rings the devices of several users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sipush.core.bindings import Aor
from sipush.core.target_set import TargetSet, Turn


@dataclass(frozen=True, slots=True)
class Group:
    """A ring group of the configuration."""

    members: tuple[Aor, ...]
    turn_time: float | None = None
    "Seconds each member rings before the next one does; None: all ring at once."

    def target_set(self, members: Sequence[Turn], *, in_turn: bool = True) -> TargetSet:
        """What a request to the group is forwarded to; one turn of ``members`` for each."""
        if in_turn and self.turn_time is not None:
            return TargetSet(tuple(members), self.turn_time, members=True)
        everybody = tuple(target for member in members for target in member.targets)
        return TargetSet((Turn(everybody),), members=True)
