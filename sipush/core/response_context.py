"""The response context of one forwarded request (RFC 3261 §16.7), able to wait.

A device that must be woken is not a special case: it is a branch that does not have a flow yet. It
sits in the *SIP Request Push Bucket* (RFC 8599 §5.6.2) until its binding-refresh REGISTER is
accepted, its push fails, or its Bucket Timer runs out; then it is an ordinary branch.

Pure: every input takes ``now`` (seconds, monotonic) and returns the actions it causes, in the order
in which they must be performed. docs/response-context.md holds the table of this machine; the tests
read it from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from sipush.core.branch import (
    SUPERSEDED,
    Abandon,
    Action,
    Branch,
    BranchState,
    Cancel,
    CancelCause,
    CancelPush,
    FallBack,
    Follow,
    Forward,
    HangUp,
    RemovePushRecord,
    RequestPush,
    Respond,
    Retransmit,
)
from sipush.core.fallback import UNREACHABLE, cause_of
from sipush.core.push_request import PushResult
from sipush.core.target_set import NOWHERE, Search, Target, TargetSet
from sipush.sip.message import TRYING
from sipush.sip.status import Status

#: §13.3.1.1: a provisional is repeated every minute, or proxies on the way give up.
RINGBACK_INTERVAL: Final = 60.0

#: What says that a flow is gone, not that its device is (RFC 5626 §5.3.1).
FLOW_GONE: Final = frozenset({Status.REQUEST_TIMEOUT, Status.FLOW_FAILED})

T1: Final = 0.5
"Seconds in which a request and its response are there and back (§17.1.1.1)."

SERVER_TIMER_C: Final = 200.0
"Seconds that a server has at least, which may queue the call: more than 3 minutes (§16.6 step 11)."

#: Seconds until a device that is still ending the call is called again, and how often: it knows the
#: call for T4 (5 s) after its ACK.
STILL_ENDING, TIMES_ENDING = 1.0, 8


class ResponseContext:
    """Collects the branches of one request and picks the response to forward."""

    __slots__ = (
        "_ringback_at",
        "answered",
        "branches",
        "cancelled_by_caller",
        "closed",
        "expires_at",
        "fallback",
        "falling_back",
        "in_dialog",
        "invite",
        "probe",
        "push_while_ringing",
        "ringback",
        "search",
        "successful",
        "timer_c",
        "timer_c_of_server",
        "tombstone",
    )

    def __init__(
        self,
        probe: float,
        timer_c: float,
        ringback: int | None = None,
        *,
        invite: bool = True,
        push_while_ringing: bool = True,
        fallback: bool = False,
        tombstone: float = 60.0,
        expires_at: float | None = None,
    ) -> None:
        self.probe = probe
        "Seconds a forwarded INVITE may stay without any response before its device is pushed."
        self.timer_c = timer_c
        "Seconds without a 101-199 after which a device is given up (§16.6 step 11)."
        self.timer_c_of_server = max(timer_c, SERVER_TIMER_C)
        "The same for what is no device of ours."
        self.ringback = ringback
        "Provisional the caller gets while devices are woken, or None."
        self.invite = invite
        self.push_while_ringing = push_while_ringing
        "Whether a device is still pushed while another one rings."
        self.fallback = fallback
        "Whether there is somewhere else to go when no branch succeeds."
        self.tombstone = tombstone
        "Seconds after its end in which a device pushed for the call may register to see that end."
        self.expires_at = expires_at
        "When the invitation expires (§13.3.1): nobody is waited for any longer."
        self.in_dialog = False
        "A 500 is what the device itself says then (§12.2.2, §14.2)."
        self.search = Search(NOWHERE, 0, [])
        self.branches: list[Branch] = []
        self.closed = False
        "No branch may be added: answered, cancelled or declined everywhere."
        self.answered = False
        "A final response went upstream."
        self.successful = False
        "It was a 2xx."
        self.falling_back = False
        "FallBack was asked for and ``fall_back`` has not been called yet."
        self.cancelled_by_caller = False
        self._ringback_at: float | None = None

    # -- inputs --

    def start(self, targets: Sequence[Target] | TargetSet, now: float) -> list[Action]:
        """Open one branch per target: forward where a flow is up, push elsewhere.

        A plain sequence is called all at once.
        """
        if self.closed:
            return []
        if not isinstance(targets, TargetSet):
            targets = TargetSet.of(*targets)
        self.search = Search(targets, len(self.branches), self.search.over)
        return self._next_turn(now) if self.search.pending else self._settle(now)

    def binding_refreshed(self, target: Target, now: float) -> list[Action]:
        """The registrar accepted a REGISTER of the target's device (RFC 8599 §5.6.2).

        A device already ringing is left alone: a routine refresh must not ring it twice. One new to
        the AOR joins while the context is open, and one that was given up comes back.
        """
        branch = self._latest(target.device)
        if branch is not None and branch.tombstone_at is not None and target.live:
            return self._ring_late(branch, target)
        if self.closed or not target.live or target.aor in self.search.over:
            return []
        if self.search.put_off(target):
            return []
        if branch is None:
            return self._open(target, now)
        if branch.state is BranchState.COMPLETED and not branch.heard:
            branch.awaited, branch.cancelling = False, None
            return self._open(target, now, pushed=branch.pushed)
        match branch.state:
            case BranchState.WAKING:
                return self._forward(branch, target, now)
            case BranchState.CALLING | BranchState.PROBING if _same_flow(branch.target, target):
                branch.awaited = False
                self._call_again(branch, now)
                return [Retransmit(branch.id)]
            case BranchState.CALLING | BranchState.PROBING:
                # Of an INVITE that it had already, the phone would send its answer the old way.
                moved = self._move(branch, target, now, same=not self.invite)
                return [Abandon(branch.id, moved=True), *moved]
            case BranchState.PROCEEDING if target.flow and target.flow != branch.target.flow:
                # By way of a proxy it knows neither the request nor a CANCEL that comes without.
                if target.route != branch.target.route:
                    return []
                return [Follow(branch.id, target.flow)]
            case _:
                return []

    def flow_active(self, flow: str) -> list[Action]:
        """Something arrived on a flow: a device we wait for there is awake (RFC 5626 §4.4)."""
        waiting = (b for b in self._in(BranchState.PROBING) if b.target.flow == flow)
        return [Retransmit(branch.id) for branch in waiting]

    def pushes_to_begin(self) -> list[RequestPush]:
        """The pushes that were asked for and never begun by a process that has died since."""
        return [
            RequestPush(branch.id, branch.bucket_at)
            for branch in self._in(BranchState.WAKING, BranchState.PROBING)
            if branch.pushing and not branch.push_begun and branch.bucket_at is not None
        ]

    def push_wanted(self, branch_id: int) -> bool:
        """Whether the push still makes sense: the call goes on, the device has not been heard."""
        branch = self.branches[branch_id]
        return any(other.awaited and _same_app(other, branch) for other in self.branches)

    def push_finished(self, branch_id: int, result: PushResult, now: float) -> list[Action]:
        """The PNS answered. A failure empties the bucket with 480 (RFC 8599 §5.6.2).

        Silence is no failure: the push may have arrived all the same.
        """
        branch = self.branches[branch_id]
        branch.pushing = False
        if result is PushResult.WITHDRAWN:
            self._push_withdrawn(branch)
            return []
        if result in (PushResult.ACCEPTED, PushResult.TIMED_OUT):
            buried = (b for b in self.branches if b.tombstone_at is not None and not b.late)
            return self._tell_once(each for each in buried if _same_app(each, branch))
        actions: list[Action] = []
        for waiting in self.branches:
            if waiting is branch or (waiting.awaited and _same_app(waiting, branch)):
                actions += self._push_failed(waiting, result, now)
        return actions

    def _push_withdrawn(self, pushed: Branch) -> None:
        """The device knows nothing of the call: it need not see its end, and may yet be pushed."""
        for branch in self.branches:
            if branch is pushed or _same_app(branch, pushed):
                branch.pushed = branch.push_begun = False
                if not (branch.broken or branch.late):
                    branch.tombstone_at = None

    def _push_failed(self, branch: Branch, result: PushResult, now: float) -> list[Action]:
        branch.awaited = False
        disowned = result is PushResult.TOKEN_DEAD
        actions: list[Action] = [RemovePushRecord(branch.id)] if disowned else []
        if branch.state is BranchState.PROBING:
            self._call_again(branch, now)
        elif branch.state is BranchState.WAKING:
            actions += self._complete(branch, Status.TEMPORARILY_UNAVAILABLE, now)
        return actions

    def flow_failed(self, branch_id: int, now: float) -> list[Action]:
        """The flow died under the request (RFC 5626 §5.3.1): wake the device, or count 430."""
        branch = self.branches[branch_id]
        if branch.state in (BranchState.WAKING, BranchState.COMPLETED):
            return []
        if branch.target.others and not self.closed:
            return self._next_flow(branch, now, broken=True)
        if self._may_return(branch) or self._may_wake(branch, now):
            branch.broken = branch.number > 0
            actions = self._wake(branch, now)
            branch.awaited = True  # it may ring on: it must hear of the end
            return actions
        return self._complete(branch, Status.FLOW_FAILED, now)

    def not_sent(self, branch_id: int, status: int, now: float) -> list[Action]:
        """Nothing has left on a branch, nor will: ``status`` says what is in the way."""
        branch = self.branches[branch_id]
        branch.cancelling, branch.awaited = None, False
        if branch.state is BranchState.COMPLETED:
            return []
        return self._complete(branch, status, now)

    def response_received(self, branch_id: int, status: int, now: float) -> list[Action]:
        """A response arrived on a branch; a client transaction that timed out gives 408 (§16.7)."""
        branch = self.branches[branch_id]
        if branch.superseded and status < 200:
            return self._rings_as_it_moves(branch, status, now)
        branch.heard = branch.heard or branch.superseded
        if status < 200:
            return self._provisional(branch, status, now)
        branch.cancelling = None
        # It has seen the call, and this is its end; who comes late has registered just now.
        if status not in (FLOW_GONE if branch.late else UNREACHABLE):
            branch.tombstone_at = None
        if status < 300:  # forwarded at once, however many there are (step 5)
            if branch.late:  # in a ring group the search goes on, and must not end with it
                return [HangUp(branch_id)]
            branch.finish(status)
            branch.heard, branch.awaited = True, False
            if self.answered and not self.successful:
                return [HangUp(branch_id)]
            self.answered = self.successful = True
            return [Respond(status, branch_id), *self._close(CancelCause.ANSWERED_ELSEWHERE, now)]
        if branch.state in (BranchState.WAKING, BranchState.COMPLETED):
            return []
        ringing = branch.state is BranchState.PROCEEDING
        if status == Status.LOOP_DETECTED and self._may_be_merged(branch):
            return self._merged(branch, now)
        if status in FLOW_GONE and branch.target.others and not (ringing or self.closed):
            return self._next_flow(branch, now)
        refused = self.in_dialog and status == Status.SERVER_INTERNAL_ERROR
        if status in UNREACHABLE and not (ringing or refused):
            if self._may_wake(branch, now):
                return self._wake(branch, now)
            return self._complete(branch, status, now)
        branch.heard, branch.awaited = True, False
        closing: list[Action] = []
        if status >= 600:  # not forwarded before the others settle, but ends the search (step 5)
            branch.finish(status)
            closing = self._decline(branch, now)
        return closing + self._complete(branch, status, now)

    def fall_back(self, targets: Sequence[Target] | TargetSet, now: float) -> list[Action]:
        """The targets FallBack asked for; none: the caller gets the best response so far."""
        if not self.falling_back:
            return []
        self.falling_back = False
        return self.start(targets, now)

    def refuse(self, target: Target, status: int, now: float) -> list[Action]:
        """The user takes no calls now: ``status`` stands for what no device is asked.

        Also instead of ``fall_back``: of one whom the call falls back to.
        """
        self.falling_back = False
        self.search = Search(NOWHERE, len(self.branches), self.search.over)
        branch = Branch(len(self.branches), target, BranchState.COMPLETED)
        branch.status, branch.heard = status, True
        self.branches.append(branch)
        return self._settle(now)

    def cancelled(self, now: float) -> list[Action]:
        """The caller gave up (§16.10): ringing devices are cancelled, nobody else is woken."""
        actions = self._close(CancelCause.CALLER, now)
        self.fallback = self.falling_back = False
        self.cancelled_by_caller = True
        for branch in self._in(BranchState.CALLING):
            branch.finish(Status.REQUEST_TERMINATED)
        return actions + self._settle(now)

    def resume_ringback(self, now: float) -> None:
        """Go on repeating the ringback after the process that began it has died."""
        if self.ringback is not None and any(self._in(BranchState.WAKING, BranchState.PROBING)):
            self._ringback_at = now

    def perhaps_forwarded(self, device: str, at: float, now: float) -> None:
        """A device has registered, and a process that has died since may have forwarded to it.

        As where a flow breaks under the request: the phone may ring, and must hear of the end.
        ``at``: when; if that was in time, its call is over with Timer C, and not before it could
        be sent the request again.
        """
        branch = self._latest(device)
        if branch is None or branch.bucket_at is None or at > branch.bucket_at:
            return
        branch.bucket_at = max(branch.bucket_at, min(at + self.timer_c, now + T1))
        if branch.state is BranchState.WAKING:
            if not branch.broken:
                branch.number, branch.broken = self._next_number(device), True
            branch.awaited = True

    def catch_up(self, now: float, patience: float) -> list[Action]:
        """Do what became due while no process had the call, each at its time.

        Returns what caller and PNS are to be told; what is to be sent and pushed, the branches
        show. What ended more than ``patience`` seconds ago goes nowhere else, and no device that
        has the INVITE is sent it again.
        """
        actions: list[Action] = []
        while (due := self.next_timer()) is not None and due <= now:
            is_past = now - due > patience
            if is_past:
                self.fallback = False
            actions += self._time_passed(due)
            if is_past:
                for branch in self._in(BranchState.COMPLETED):
                    branch.cancelling = None
        actions += self._settle(now)
        told: list[Action] = []
        for action in actions:
            if isinstance(action, Respond):
                if action.status >= 200 or not self.answered:
                    told.append(action)
            elif isinstance(action, (FallBack, CancelPush)):
                told.append(action)
        return told

    def _time_passed(self, due: float) -> list[Action]:
        """Of devices whose time is over, one that rang must hear of it; no other is to ring now."""
        out = self._in(BranchState.CALLING, BranchState.PROBING, BranchState.PROCEEDING)
        before = [(branch, branch.state) for branch in out]
        was_closed = self.closed
        cause = self.close_cause if was_closed else CancelCause.NO_ANSWER
        actions = self.timer_fired(due)
        for branch, state in before:
            if branch.state is not BranchState.COMPLETED:
                continue
            if state is BranchState.PROCEEDING:  # perhaps over a connection that is gone
                branch.cancelling = branch.cause = cause
                branch.tombstone_at = due + self.tombstone
            elif not was_closed:  # should it come late, to the phone it is the INVITE it had
                branch.broken, branch.cancelling = True, None
        return actions

    def timer_fired(self, now: float) -> list[Action]:
        """Do what has become due: probe, Bucket Timer, Timer C, the caller's ringback."""
        actions: list[Action] = []
        if self._ringback_at is not None and now >= self._ringback_at:
            actions += self._ring_back(now)
        if _due(self.search.turn_at, now):
            actions += self._turn_over(now)
        for branch in list(self.branches):
            if _due(branch.probe_at, now):
                branch.probe_at = None
                actions += self._silent(branch, now)
            if _due(branch.bucket_at, now):
                actions += self._bucket_expired(branch, now)
            if _due(branch.tombstone_at, now):
                branch.tombstone_at = None
            if _due(branch.timer_c_at, now):
                actions += self._timer_c_expired(branch)
        return actions + self._settle(now)

    def next_timer(self) -> float | None:
        """When to call ``timer_fired`` next, or None."""
        soonest = _sooner(self._ringback_at, self.search.turn_at)
        for b in self.branches:
            soonest = _sooner(soonest, _sooner(b.probe_at, b.bucket_at))
            soonest = _sooner(soonest, _sooner(b.timer_c_at, b.tombstone_at))
        return soonest

    @property
    def done(self) -> bool:
        """Whether nothing but late 2xx can still come."""
        if not self.answered:
            return False
        for branch in self.branches:
            if branch.state is not BranchState.COMPLETED or branch.tombstone_at is not None:
                return False
        return True

    @property
    def probing(self) -> bool:
        """Whether a device that could be pushed has been sent the request and is silent so far."""
        silent = any(branch.probe_at is not None for branch in self.branches)
        return silent and not self.closed

    @property
    def is_out(self) -> bool:
        """Whether a device may ring for it."""
        return any(self._in(BranchState.CALLING, BranchState.PROBING, BranchState.PROCEEDING))

    @property
    def close_cause(self) -> CancelCause:
        """Why no branch may be added any more."""
        if self.cancelled_by_caller:
            return CancelCause.CALLER
        if self.successful:
            return CancelCause.ANSWERED_ELSEWHERE
        return CancelCause.DECLINED_ELSEWHERE

    # -- turns --

    def _next_turn(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for target in self.search.next_turn(len(self.branches), now):
            actions += self._call(target, now)
        return actions + self._settle(now)

    def _call(self, target: Target, now: float) -> list[Action]:
        """Open a branch; a device that was called in an earlier turn is not pushed again."""
        earlier = self._latest(target.device)
        if earlier is None:
            return self._open(target, now)
        owed = earlier.awaited or earlier.tombstone_at is not None
        earlier.awaited, earlier.tombstone_at, earlier.cancelling = False, None, None
        actions = self._open(target, now, pushed=earlier.pushed)
        branch = self.branches[-1]
        branch.awaited = branch.awaited or (owed and branch.state is BranchState.WAKING)
        return actions

    def _turn_over(self, now: float) -> list[Action]:
        """The time is up: the next turn, unless the server we tried has shown signs of life."""
        turn = self.branches[self.search.turn_branch :]
        self.search.turn_at = None
        if self.search.only_until_heard and any(branch.heard for branch in turn):
            return []
        return self._drop(turn, CancelCause.NO_ANSWER, Status.TEMPORARILY_UNAVAILABLE, now)

    def _decline(self, branch: Branch, now: float) -> list[Action]:
        """A 6xx ends the search, or in a ring group what its sender has to do with it."""
        if not self.search.members:
            return self._close(CancelCause.DECLINED_ELSEWHERE, now)
        aor = branch.target.aor
        self.search.over.append(aor)
        own = [each for each in self.branches if each.target.aor == aor]
        return self._drop(own, CancelCause.DECLINED_ELSEWHERE, branch.status, now)

    def _drop(
        self, branches: list[Branch], cause: CancelCause, status: int, now: float
    ) -> list[Action]:
        """Take these branches out of the search; a 2xx that crosses this still counts."""
        actions: list[Action] = []
        for branch in branches:
            if branch.state is BranchState.COMPLETED:
                continue
            if branch.state is not BranchState.WAKING:
                if branch.heard or cause is CancelCause.DECLINED_ELSEWHERE:
                    actions.append(Cancel(branch.id, cause))
                if not branch.heard:
                    actions.append(Abandon(branch.id))
                branch.cancelling = cause if branch.awaited else None
            branch.finish(status)
        return actions + self._bury_awaited(branches, cause, now)

    # -- transitions --

    def _open(self, target: Target, now: float, *, pushed: bool = False) -> list[Action]:
        return self._begin(self._add(target, pushed=pushed), now)

    def _add(self, target: Target, *, pushed: bool) -> Branch:
        branch = Branch(len(self.branches), target, BranchState.CALLING)
        branch.pushed = pushed
        self.branches.append(branch)
        return branch

    def _begin(self, branch: Branch, now: float) -> list[Action]:
        if branch.target.live:
            return self._forward(branch, branch.target, now)
        if self._may_return(branch) or self._may_wake(branch, now):
            return self._wake(branch, now)
        branch.state, branch.status = BranchState.COMPLETED, self._not_reached(now)
        return []

    def _forward(self, branch: Branch, target: Target, now: float) -> list[Action]:
        branch.target, branch.state, branch.bucket_at = target, BranchState.CALLING, None
        if not branch.broken:  # else a phone that rings on takes it for a retransmission
            branch.number = self._next_number(target.device)
        branch.broken = branch.awaited = False
        actions: list[Action] = [Forward(branch.id)]
        if self.invite:
            branch.timer_c_at = now + self._timer_c(target)
        if target.wakeable and not branch.pushed:
            if target.push_always:
                actions += self._push(branch, now)
            else:
                branch.probe_at = now + self.probe
        return actions

    def _next_flow(self, old: Branch, now: float, *, broken: bool = False) -> list[Action]:
        """Try another flow of the same device (RFC 5626 §7).

        ``broken``: the first broke under the request, and the device may ring for it already.
        """
        target, *others = old.target.others
        return self._move(old, replace(target, others=tuple(others)), now, same=broken)

    def _move(self, old: Branch, target: Target, now: float, *, same: bool) -> list[Action]:
        """Go on with the device in another branch; ``same``: in the same client transaction."""
        old.finish(SUPERSEDED)
        old.awaited = False
        branch = self._add(target, pushed=old.pushed)
        branch.number, branch.broken = old.number, same
        branch.rang = old.rang
        return self._begin(branch, now)

    def _rings_as_it_moves(self, branch: Branch, status: int, now: float) -> list[Action]:
        """A device rings where it has moved away from; a 482 to its next INVITE may be on its way.

        It has T1 for that, then what rings there ends; a device that rings anew, at once.
        """
        if status == TRYING or branch.heard or branch.probe_at is not None:
            return []
        latest = self._latest(branch.target.device)
        if latest is not None and latest.state is BranchState.CALLING:
            branch.probe_at = now + T1
            return []
        branch.heard = True
        return [Cancel(branch.id, CancelCause.NO_ANSWER)]

    def _may_be_merged(self, branch: Branch) -> bool:
        """Whether a 482 can mean that we have sent the device this call before (§8.2.2.2)."""
        is_device = bool(branch.target.flow or branch.target.route)
        unheard = branch.state is not BranchState.PROCEEDING
        return self.invite and is_device and unheard and not self.closed

    def _merged(self, branch: Branch, now: float) -> list[Action]:
        """Go on in the client transaction in which the device has the call, or when it is over."""
        branch.merged += 1
        earlier = [each for each in self.branches[: branch.id] if self._comes_before(each, branch)]
        for other in earlier:
            is_alive = other.superseded and not other.heard  # else it was cancelled
            if is_alive and other.target.device == branch.target.device:
                other.heard, other.probe_at = True, None
                return self._forward_in(other.number, branch, now)
        if earlier and branch.merged <= TIMES_ENDING:
            branch.state, branch.awaited = BranchState.WAKING, False
            branch.probe_at = branch.timer_c_at = None
            branch.bucket_at = now + STILL_ENDING
            return []
        if not earlier and branch.merged == 1:  # a process that died since has seen it move
            return self._forward_in(branch.number + 1, branch, now)
        branch.heard, branch.awaited = True, False
        status = Status.TEMPORARILY_UNAVAILABLE if earlier else Status.LOOP_DETECTED
        return self._complete(branch, status, now)

    def _comes_before(self, other: Branch, branch: Branch) -> bool:
        """Whether the device of ``branch`` had the call by way of ``other``."""
        if other.target.device == branch.target.device:
            return other.number not in (0, branch.number)
        earlier_turn = other.id < self.search.turn_branch
        return other.number > 0 and earlier_turn and _same_app(other, branch)

    def _forward_in(self, number: int, branch: Branch, now: float) -> list[Action]:
        """To the device it is a retransmission."""
        branch.number, branch.broken = number, True
        return self._forward(branch, branch.target, now)

    def _may_wake(self, branch: Branch, now: float) -> bool:
        if self.closed or not branch.target.wakeable or _due(self.expires_at, now):
            return False
        return branch.pushed or self.push_while_ringing or not any(self._in(BranchState.PROCEEDING))

    def _may_return(self, branch: Branch) -> bool:
        """Whether it is waited for though nothing can wake it: it is between two connections."""
        return branch.target.hold > 0 and branch.target.push is None and not self.closed

    def _call_again(self, branch: Branch, now: float) -> None:
        """It is no longer expected to wake."""
        branch.state, branch.bucket_at = BranchState.CALLING, None
        branch.timer_c_at = now + self._timer_c(branch.target) if self.invite else None

    def _timer_c(self, target: Target) -> float:
        return self.timer_c if target.key else self.timer_c_of_server

    def _silent(self, branch: Branch, now: float) -> list[Action]:
        if branch.superseded:
            branch.heard = True
            return [Cancel(branch.id, CancelCause.NO_ANSWER)]
        if self.closed:
            branch.finish(Status.REQUEST_TERMINATED)
            return []
        return self._push(branch, now) if self._may_wake(branch, now) else []

    def _push(self, branch: Branch, now: float) -> list[Action]:
        """Push a device that has been forwarded to: whichever comes first counts."""
        branch.state, branch.timer_c_at = BranchState.PROBING, None
        return self._request_push(branch, now)

    def _wake(self, branch: Branch, now: float) -> list[Action]:
        branch.state, branch.probe_at, branch.timer_c_at = BranchState.WAKING, None, None
        branch.merged = 0
        if branch.pushed or branch.target.push is None:
            if branch.bucket_at is None:
                branch.bucket_at = self._hold_ends(branch, now)
            return []
        return self._request_push(branch, now)

    def _hold_ends(self, branch: Branch, now: float) -> float:
        at = now + branch.target.hold
        return at if self.expires_at is None else min(at, self.expires_at)

    def _not_reached(self, now: float) -> int:
        """The status of a device that is not waited for any longer.

        Is that as the invitation has expired, no further turn and no fallback is for it either.
        """
        if not _due(self.expires_at, now):
            return Status.TEMPORARILY_UNAVAILABLE
        self.search.stop()
        self.fallback = False
        return Status.REQUEST_TERMINATED

    def _request_push(self, branch: Branch, now: float) -> list[Action]:
        """Once for a call and an app on a device, though it be registered for several users."""
        same = any(other.pushed and _same_app(other, branch) for other in self.branches)
        branch.pushed = branch.awaited = True
        branch.push_begun = branch.push_begun or same
        branch.pushing = not same
        branch.bucket_at = self._hold_ends(branch, now)
        push: list[Action] = [] if same else [RequestPush(branch.id, branch.bucket_at)]
        return push + self._ring_back_once(now)

    def _provisional(self, branch: Branch, status: int, now: float) -> list[Action]:
        if branch.state in (BranchState.WAKING, BranchState.COMPLETED):
            return []
        branch.cancelling = None
        if status == TRYING and branch.target.route:
            return []  # of the proxy at our edge: its device may sleep all the same
        branch.heard, branch.awaited, branch.probe_at = True, False, None
        if branch.state is BranchState.PROBING:
            self._call_again(branch, now)
        if status == TRYING:
            return []
        branch.state, branch.rang = BranchState.PROCEEDING, True
        if self.invite:
            branch.timer_c_at = now + self._timer_c(branch.target)
        return [] if self.answered else [Respond(status, branch.id)]

    def _bucket_expired(self, branch: Branch, now: float) -> list[Action]:
        if branch.merged and branch.state is BranchState.WAKING:
            return self._forward(branch, branch.target, now)
        actions: list[Action] = []
        if branch.state is BranchState.PROBING:
            actions = [Abandon(branch.id)]
            branch.cancelling = CancelCause.NO_ANSWER
        branch.finish(self._not_reached(now))
        return actions

    def _timer_c_expired(self, branch: Branch) -> list[Action]:
        branch.finish(Status.REQUEST_TIMEOUT)
        branch.heard = branch.rang = True
        return [Cancel(branch.id, CancelCause.NO_ANSWER)]

    def _ring_back_once(self, now: float) -> list[Action]:
        return self._ring_back(now) if self._ringback_at is None else []

    def _ring_back(self, now: float) -> list[Action]:
        if self.ringback is None or not self.invite or self.answered:
            self._ringback_at = None
            return []
        self._ringback_at = now + RINGBACK_INTERVAL
        return [Respond(self.ringback)]

    def _complete(self, branch: Branch, status: int, now: float) -> list[Action]:
        branch.finish(status)
        return self._settle(now)

    def _bury_awaited(
        self, branches: Iterable[Branch], cause: CancelCause, now: float
    ) -> list[Action]:
        """Devices may still wake for a call that is over: let them see it begin and end.

        They are told over their PNS too, but not before the push itself is out.
        """
        buried = [branch for branch in branches if branch.awaited]
        for branch in buried:
            branch.awaited, branch.cause = False, cause
            branch.tombstone_at = now + self.tombstone
        return self._tell_once(buried)

    def _tell_once(self, buried: Iterable[Branch]) -> list[Action]:
        """Tell each app over its PNS that the call is over, though a fallback lead to it again."""
        actions: list[Action] = []
        for branch in buried:
            if not any((o.pushing or o.told) and _same_app(branch, o) for o in self.branches):
                branch.told = True
                actions.append(CancelPush(branch.id))
        return actions

    def _ring_late(self, dead: Branch, target: Target) -> list[Action]:
        """Have the device see the call begin and end; again on another flow if this one breaks."""
        if dead.late and _same_flow(dead.target, target):
            return []
        perhaps_there = dead.broken or dead.cancelling is not None
        late = Branch(len(self.branches), target, BranchState.COMPLETED)
        late.number = dead.number if perhaps_there else self._next_number(target.device)
        late.heard, late.late, late.tombstone_at = True, True, dead.tombstone_at
        late.cancelling = late.cause = dead.cause
        self.branches.append(late)
        silenced = [Abandon(dead.id)] if dead.cancelling else []
        dead.cancelling = dead.tombstone_at = None
        return [*silenced, Forward(late.id), Cancel(late.id, late.cause)]

    def _close(self, cause: CancelCause, now: float) -> list[Action]:
        """Admit no more branches: CANCEL what is out, forget what sleeps."""
        if self.closed:
            return []
        self.closed = True
        self._ringback_at = None
        self.search.stop()
        actions: list[Action] = []
        for branch in self.branches:
            if branch.state is BranchState.WAKING:
                branch.finish(Status.REQUEST_TERMINATED)
            if branch.state is BranchState.COMPLETED:
                continue
            actions.append(Cancel(branch.id, cause))
            branch.cancelling = None if branch.heard else cause
            if branch.state is BranchState.PROBING:
                branch.finish(Status.REQUEST_TERMINATED)
            # The CANCEL of a silent device waits for a sign of life; the caller does not. Nor for
            # one that has died ringing: in T1 any other has said 487, or answered.
            branch.probe_at = now + (T1 if branch.heard else self.probe)
            branch.bucket_at = None
        return actions + self._bury_awaited(self.branches, cause, now)

    def _settle(self, now: float) -> list[Action]:
        """Forward the best response once no branch can still answer (§16.7 step 6)."""
        if self.answered or self.falling_back:
            return []
        for branch in self.branches:
            if branch.state is not BranchState.COMPLETED:
                return []
        buried = self._end_turn(now)
        if self.search.pending:
            return [*buried, *self._next_turn(now)]
        if self.fallback and (fall_back := self._fall_back()):
            self.fallback, self.falling_back, self.closed = False, True, False
            return [*buried, fall_back]
        best = self._best(self.branches)
        status: int = best.status if best else Status.TEMPORARILY_UNAVAILABLE
        if self.cancelled_by_caller:
            status = Status.REQUEST_TERMINATED
        self.answered = self.closed = True
        self._ringback_at = None
        # Buried by now are those of a caller who gave up; the rest were not reached in time.
        buried += self._bury_awaited(self.branches, CancelCause.NO_ANSWER, now)
        return [Respond(_REWRITTEN.get(status, status), best.id if best else None), *buried]

    def _end_turn(self, now: float) -> list[Action]:
        """A member whose turn is over does not join when it wakes; any other device may."""
        if not self.search.aor:
            self.search.turn_at = None
            return []
        self.search.end_turn()
        turn = self.branches[self.search.turn_branch :]
        return self._bury_awaited(turn, CancelCause.NO_ANSWER, now)

    def _fall_back(self) -> FallBack | None:
        """Why this target set, and not an earlier one, did not take the call."""
        tried = self.branches[self.search.first_branch :]
        best = self._best(tried)
        status: int = best.status if best else Status.TEMPORARILY_UNAVAILABLE
        unanswered = [branch for branch in tried if branch.rang and branch.status in UNREACHABLE]
        if self.search.members and unanswered:
            status = unanswered[0].status
        cause = cause_of(status, rang=bool(unanswered))
        return FallBack(status, cause) if cause is not None else None

    def _best(self, branches: Iterable[Branch]) -> Branch | None:
        """The best response by §16.7 step 6."""
        return min((b for b in branches if b.status), key=self._preference, default=None)

    def _preference(self, branch: Branch) -> tuple[int, int, int]:
        """6xx, unless it is one member's of several; the lowest class; actionable 4xx; busy.

        A 482 last: it says nothing of the user.
        """
        status = branch.status
        first = 0 if status >= 600 and not self.search.members else status // 100
        return (
            first,
            0 if status in _ACTIONABLE else 1,
            0 if status == Status.BUSY_HERE else 2 if status == Status.LOOP_DETECTED else 1,
        )

    def _in(self, *states: BranchState) -> Iterator[Branch]:
        return (b for b in self.branches if b.state in states)

    def _next_number(self, device: str) -> int:
        highest = 0
        for branch in self.branches:
            if branch.number > highest and branch.target.device == device:
                highest = branch.number
        return highest + 1

    def _latest(self, device: str) -> Branch | None:
        latest = None
        for branch in self.branches:
            if branch.target.device == device:
                latest = branch
        return latest


#: A 503 would tell the caller to avoid this proxy, not that device (step 6); 430 is meant for the
#: proxy that holds the flow (RFC 5626 §5.3.1).
_REWRITTEN: dict[int, int] = {
    Status.SERVICE_UNAVAILABLE: Status.SERVER_INTERNAL_ERROR,
    Status.FLOW_FAILED: Status.TEMPORARILY_UNAVAILABLE,
}
_ACTIONABLE: Final = frozenset({401, 407, 415, 420, 484})


def _due(at: float | None, now: float) -> bool:
    return at is not None and now >= at


def _sooner(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _same_app(one: Branch, other: Branch) -> bool:
    first, second = one.target.push, other.target.push
    return first is not None and second is not None and first.same_tokens(second)


def _same_flow(old: Target, new: Target) -> bool:
    if new.route:  # whatever flow the proxy at our edge has to it
        return (old.flow, old.route, old.uri) == (new.flow, new.route, new.uri)
    return old.flow == new.flow != ""
