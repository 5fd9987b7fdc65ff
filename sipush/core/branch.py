"""The branches of a response context, and what it can ask of its driver."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

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


@dataclass(slots=True, init=False)
class _OfBranch:
    """What is asked about one branch. The initialisers of a dataclass would not be compiled."""

    branch: int

    def __init__(self, branch: int) -> None:
        self.branch = branch


@dataclass(slots=True, init=False)
class Forward(_OfBranch):
    """Send the request to the branch's target in a new client transaction (§16.6)."""


@dataclass(slots=True, init=False)
class Retransmit(_OfBranch):
    """Send the request once more in the client transaction the branch has."""


@dataclass(slots=True, init=False)
class Follow:
    """The device has moved while it rings: CANCEL and ACK, if there are any, go over ``flow``."""

    branch: int
    flow: str

    def __init__(self, branch: int, flow: str) -> None:
        self.branch = branch
        self.flow = flow


@dataclass(slots=True, init=False)
class RequestPush:
    """Ask the PNS to wake the device; useless after ``deadline`` (seconds, monotonic)."""

    branch: int
    deadline: float

    def __init__(self, branch: int, deadline: float) -> None:
        self.branch = branch
        self.deadline = deadline


@dataclass(slots=True, init=False)
class Cancel:
    """CANCEL the client transaction of the branch (§16.10)."""

    branch: int
    cause: CancelCause

    def __init__(self, branch: int, cause: CancelCause) -> None:
        self.branch = branch
        self.cause = cause


@dataclass(slots=True, init=False)
class Abandon:
    """Stop retransmitting on the branch; CANCEL it should it turn out to be alive."""

    branch: int
    moved: bool
    "Its device goes on in another branch: a CANCEL is asked for when it is due."

    def __init__(self, branch: int, *, moved: bool = False) -> None:
        self.branch = branch
        self.moved = moved


@dataclass(slots=True, init=False)
class RemovePushRecord(_OfBranch):
    """The PNS disowned the branch's token: remove it unless it has changed (RFC 8599 §5.5)."""


@dataclass(slots=True, init=False)
class CancelPush(_OfBranch):
    """Tell the device, if its PNS can carry that, that the call it was pushed for is over."""


@dataclass(slots=True, init=False)
class HangUp(_OfBranch):
    """ACK and BYE an answer that nobody waits for any more."""


@dataclass(slots=True, init=False)
class FallBack:
    """Nobody answered: find the fallback's targets and hand them to ``fall_back``."""

    status: int
    "What the caller would get without a fallback."
    cause: Cause

    def __init__(self, status: int, cause: Cause) -> None:
        self.status = status
        self.cause = cause


@dataclass(slots=True, init=False)
class Respond:
    """Send ``status`` upstream: the branch's own response if it has that status, else ours."""

    status: int
    branch: int | None

    def __init__(self, status: int, branch: int | None = None) -> None:
        self.status = status
        self.branch = branch


Action = (
    Forward
    | Retransmit
    | Follow
    | RequestPush
    | Cancel
    | Abandon
    | RemovePushRecord
    | CancelPush
    | HangUp
    | FallBack
    | Respond
)


SUPERSEDED: Final = 0
"Status of a branch that another branch of the same device took over: it does not count."


@dataclass(slots=True, init=False)
class Branch:
    """One element of the target set, from push to final response."""

    id: int
    target: Target
    state: BranchState
    status: int
    "Final status when COMPLETED; 0 when another branch took the device over."
    number: int
    "Which of the client transactions of its device is its last one; 0: it had none."
    broken: bool
    "Its flow broke under the request: the next flow carries the same client transaction."
    cancelling: CancelCause | None
    "It is cancelled as soon as it shows a sign of life."
    pushed: bool
    "The device was pushed for this request; never twice."
    push_begun: bool
    "Its push is on its way, or may be: after a crash it is not sent again."
    pushing: bool
    "``push_finished`` is still to come."
    awaited: bool
    "It was pushed, and has neither registered nor answered since."
    heard: bool
    "The device itself, or a proxy before it, answered something."
    rang: bool
    "It sent a 101-199, or Timer C ran out."
    merged: int
    "How often the device has said that it has the call in another client transaction (482)."
    probe_at: float | None
    bucket_at: float | None
    timer_c_at: float | None
    tombstone_at: float | None
    "Until when the device, pushed for a call that is over, gets the INVITE and its CANCEL."
    cause: CancelCause
    "Of the tombstone."
    late: bool
    "Forwarded under a tombstone, only to be cancelled."
    told: bool
    "CancelPush was asked for."

    def __init__(self, id: int, target: Target, state: BranchState) -> None:
        self.id = id
        self.target = target
        self.state = state
        self.status = SUPERSEDED
        self.number = self.merged = 0
        self.broken = False
        self.cancelling = None
        self.pushed = self.push_begun = self.pushing = self.awaited = False
        self.heard = self.rang = False
        self.probe_at = self.bucket_at = self.timer_c_at = self.tombstone_at = None
        self.cause = CancelCause.NO_ANSWER
        self.late = self.told = False

    @property
    def superseded(self) -> bool:
        """Whether another branch took the device over."""
        return self.state is BranchState.COMPLETED and self.status == SUPERSEDED

    def finish(self, status: int) -> None:
        """It got its final response, or needs none any more."""
        self.state, self.status = BranchState.COMPLETED, status
        self.probe_at = self.bucket_at = self.timer_c_at = None
