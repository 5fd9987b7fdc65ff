"""Transaction timers (RFC 3261 §17 and table 4, RFC 6026 §7)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Timer(Enum):
    """The timers of the four transaction machines, and of a proxy."""

    __hash__ = object.__hash__  # members are single; Enum's own hash is slow for a table's key

    A = "A"
    "INVITE request retransmission, unreliable transports."
    B = "B"
    "INVITE client transaction timeout."
    C = "C"
    "Whatever a proxy waits for: an answer to an INVITE (§16.6 step 11), a device that is asleep."
    D = "D"
    "Wait for retransmitted final responses to an INVITE."
    E = "E"
    "Non-INVITE request retransmission, unreliable transports."
    F = "F"
    "Non-INVITE client transaction timeout."
    G = "G"
    "INVITE final response retransmission, unreliable transports."
    H = "H"
    "Wait for the ACK."
    I = "I"  # noqa: E741 - the RFC's name
    "Wait for retransmitted ACKs."
    J = "J"
    "Wait for retransmitted non-INVITE requests."
    K = "K"
    "Wait for retransmitted non-INVITE responses."
    L = "L"
    "Wait for further 2xx of the TU after the first was sent."
    M = "M"
    "Wait for further 2xx after the first arrived."
    CANCEL = "CANCEL"
    "Wait for the final response to an INVITE that was cancelled (§9.1)."


_DOUBLED: Final = frozenset({Timer.A, Timer.E, Timer.G})
_WAIT_T4: Final = frozenset({Timer.I, Timer.K})


@dataclass(frozen=True, slots=True)
class Timers:
    """The base values every timer derives from, in seconds (§17.1.1.1)."""

    t1: float = 0.5
    "Round-trip time estimate."
    t2: float = 4.0
    "Longest interval between retransmissions."
    t4: float = 5.0
    "Longest time a message stays in the network."

    def delay(self, timer: Timer, repeats: int = 0) -> float:
        """How long ``timer`` runs when it has already been set ``repeats`` times."""
        if timer not in _DOUBLED:
            return self.t4 if timer in _WAIT_T4 else 64 * self.t1
        interval = self.t1 * float(2**repeats)
        return interval if timer is Timer.A else min(interval, self.t2)
