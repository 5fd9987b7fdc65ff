"""The branches of a response context, and what it can ask of its driver."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sipush.core.fallback import Cause
from sipush.core.target_set import Target


class BranchState(Enum):
    """Where one branch stands."""

    CALLING = "calling"
    "Forwarded; nothing but a 100 heard."
    PROBING = "probing"
    "Forwarded without an answer, and pushed: whichever comes first."
    PROCEEDING = "proceeding"
    "A 101-199 came: the device is ringing."
    WAKING = "waking"
    "In the push bucket: nothing is forwarded, the device is expected to register."
    COMPLETED = "completed"


class CancelCause(Enum):
    """Why a branch is cancelled: becomes the CANCEL's Reason, and only when true (RFC 3326)."""

    CALLER = "caller"
    ANSWERED_ELSEWHERE = "answered-elsewhere"
    DECLINED_ELSEWHERE = "declined-elsewhere"
    NO_ANSWER = "no-answer"


@dataclass(frozen=True, slots=True)
class Forward:
    """Send the request to the branch's target in a new client transaction (§16.6)."""

    branch: int


@dataclass(frozen=True, slots=True)
class Retransmit:
    """Send the request once more in the client transaction the branch has."""

    branch: int


@dataclass(frozen=True, slots=True)
class RequestPush:
    """Ask the PNS to wake the device; useless after ``deadline`` (seconds, monotonic)."""

    branch: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Cancel:
    """CANCEL the client transaction of the branch (§16.10)."""

    branch: int
    cause: CancelCause


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop retransmitting on the branch; CANCEL it should it turn out to be alive."""

    branch: int


@dataclass(frozen=True, slots=True)
class RemovePushRecord:
    """The PNS disowned the branch's token: remove it unless it has changed (RFC 8599 §5.5)."""

    branch: int


@dataclass(frozen=True, slots=True)
class CancelPush:
    """Tell the device, if its PNS can carry that, that the call it was pushed for is over."""

    branch: int


@dataclass(frozen=True, slots=True)
class HangUp:
    """ACK and BYE an answer that nobody waits for any more."""

    branch: int


@dataclass(frozen=True, slots=True)
class FallBack:
    """Nobody answered: find the fallback's targets and hand them to ``fall_back``."""

    status: int
    "What the caller would get without a fallback."
    cause: Cause


@dataclass(frozen=True, slots=True)
class Respond:
    """Send ``status`` upstream: the branch's own response if it has that status, else ours."""

    status: int
    branch: int | None = None


Action = (
    Forward
    | Retransmit
    | RequestPush
    | Cancel
    | Abandon
    | RemovePushRecord
    | CancelPush
    | HangUp
    | FallBack
    | Respond
)


SUPERSEDED = 0
"Status of a branch that another branch of the same device took over: it does not count."


@dataclass(slots=True)
class Branch:
    """One element of the target set, from push to final response."""

    id: int
    target: Target
    state: BranchState
    status: int = SUPERSEDED
    "Final status when COMPLETED; 0 when another branch took the device over."
    number: int = 0
    "Which of the client transactions of its device is its last one; 0: it had none."
    broken: bool = False
    "Its flow broke under the request: the next flow carries the same client transaction."
    cancelling: CancelCause | None = None
    "It is cancelled as soon as it shows a sign of life."
    pushed: bool = False
    "The device was pushed for this request; never twice."
    push_begun: bool = False
    "Its push is on its way, or may be: after a crash it is not sent again."
    pushing: bool = False
    "``push_finished`` is still to come."
    awaited: bool = False
    "It was pushed, and has neither registered nor answered since."
    heard: bool = False
    "The device itself, or a proxy before it, answered something."
    rang: bool = False
    "It sent a 101-199, or Timer C ran out."
    merged: int = 0
    "How often the device has said that it has the call in another client transaction (482)."
    probe_at: float | None = None
    bucket_at: float | None = None
    timer_c_at: float | None = None
    tombstone_at: float | None = None
    "Until when the device, pushed for a call that is over, gets the INVITE and its CANCEL."
    cause: CancelCause = CancelCause.NO_ANSWER
    "Of the tombstone."
    late: bool = False
    "Forwarded under a tombstone, only to be cancelled."

    @property
    def superseded(self) -> bool:
        """Whether another branch took the device over."""
        return self.state is BranchState.COMPLETED and self.status == SUPERSEDED

    def finish(self, status: int) -> None:
        """It got its final response, or needs none any more."""
        self.state, self.status = BranchState.COMPLETED, status
        self.probe_at = self.bucket_at = self.timer_c_at = None
