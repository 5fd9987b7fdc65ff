"""One forwarded request: performs what its response context decides (RFC 3261 §16.6-§16.10)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, assert_never

import structlog

from sipush.core.authentication import CHALLENGES
from sipush.core.bindings import (
    Aor,
    Location,
    PushRecord,
    Subscriber,
    full_device,
    without_reg_id,
)
from sipush.core.branch import (
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
from sipush.core.edge import says_wrong_password
from sipush.core.fallback import Cause, Fallbacks
from sipush.core.held_call import HeldCall
from sipush.core.in_dialog import sides
from sipush.core.outbound import RouteToken, device_digest
from sipush.core.push_request import PushKind, PushResult
from sipush.core.rejection import Rejection
from sipush.core.response_context import ResponseContext
from sipush.core.routing import (
    DIALOG_FORMING,
    Diversion,
    TargetPolicy,
    drop_claims,
    forward_request,
    hang_up_requests,
    hide_identity,
    make_route_token,
    max_breadth,
    server_uri,
    strip_push_params,
    wants_tls,
)
from sipush.core.target_set import NOWHERE, Target, TargetSet
from sipush.core.wake_up import WakeUp
from sipush.errors import LocationError, MessageError, TransportError
from sipush.log_lines import fingerprint, shown
from sipush.metrics import CALLS
from sipush.server import in_dialog, target_sets, waking
from sipush.server.acknowledgements import Acknowledgements
from sipush.server.call_history import Ladder
from sipush.server.held_calls import KEPT, registrations
from sipush.server.timer_wheel import Alarm
from sipush.server.transactions import (
    ClientTransactionHandle,
    Failure,
    ServerTransactionHandle,
)
from sipush.sip.fields import parse_name_addr
from sipush.sip.message import TRYING, Request, Response, make_response
from sipush.sip.status import Status
from sipush.sip.uri import uri_of
from sipush.transport.flow import Flow

if TYPE_CHECKING:
    from sipush.server.proxy import Proxy

log = structlog.get_logger()

_REASONS: Final = {
    CancelCause.ANSWERED_ELSEWHERE: 'SIP;cause=200;text="Call completed elsewhere"',
    CancelCause.DECLINED_ELSEWHERE: 'SIP;cause=603;text="Declined elsewhere"',
}

#: Of final responses, as metrics count them.
_CLASSES: Final = {digit: (f"{digit}xx",) for digit in range(2, 7)}

#: Seconds in which a device that is awake has answered. The caller's 100 is due after 0.2.
_UNHEARD: Final = 0.1

#: Seconds between looks at a timer that is far off: the wheel keeps it when the call has ended.
_LOOK_AGAIN: Final = 30.0

#: A call that has been sent on this often goes nowhere else.
MAX_FALLBACKS: Final = 5


class _Attempt:
    """What is out on one branch, and what came back."""

    __slots__ = ("cancelled", "flow", "handle", "response")

    def __init__(self) -> None:
        self.handle: ClientTransactionHandle | None = None
        self.cancelled: CancelCause | None = None
        "Why it is to be cancelled as soon as it is out."
        self.flow: Flow | None = None
        "Over which it went out, or an answer came."
        self.response: Response | None = None


class _Answered:
    """What is left of a call that was answered (RFC 6026 §7.2)."""

    __slots__ = ("_acknowledgements", "_call_id", "_respond")

    def __init__(
        self, transaction: ServerTransactionHandle, call_id: str, acknowledgements: Acknowledgements
    ) -> None:
        self._respond = transaction.responder
        self._call_id = call_id
        self._acknowledgements = acknowledgements

    def hear(self, response: Response) -> None:
        """The callee has not had its ACK yet, if it says 2xx: the caller gets that again."""
        if not Status.OK <= response.status < 300:
            return  # where the phone has left from
        strip_push_params(response)
        self._acknowledgements.expect(self._call_id)
        self._respond(response)


class Way(NamedTuple):
    """Where a call has been, and where it goes from there."""

    destinations: tuple[str, ...]
    aors: tuple[Aor, ...]
    "Whose registrations it waits for."
    fallbacks: Fallbacks
    diversions: tuple[Diversion, ...]


class Forwarding:
    """Drives one ResponseContext with real time, flows, the store and the push services."""

    __slots__ = (
        "_before",
        "_early",
        "_expected",
        "_finals",
        "_held",
        "_is_news",
        "_performing",
        "_push_id",
        "_queue",
        "_timer",
        "_timer_at",
        "_unheard_at",
        "_unstored",
        "_upstream",
        "attempts",
        "call_id",
        "caller_aor",
        "cancel_reason",
        "context",
        "created_epoch",
        "destinations",
        "dialog_side",
        "diversions",
        "ended_epoch",
        "fallbacks",
        "final",
        "ladder",
        "merge_key",
        "not_held",
        "policy",
        "proxy",
        "request",
        "seen",
        "side",
        "side_called",
        "signs_in_as",
        "started",
        "tag",
        "transaction",
        "wake_ups",
        "watched",
        "watched_flows",
        "without_app",
    )

    # Not a dataclass: mypyc would look its types up in the proxy's module, which comes later.
    def __init__(  # noqa: PLR0915
        self,
        proxy: Proxy,
        transaction: ServerTransactionHandle,
        request: Request,
        context: ResponseContext,
        *,
        tag: str,
        push_id: str = "",
    ) -> None:
        """``tag``: To tag of the responses that we make ourselves."""
        self.proxy = proxy
        self.transaction = transaction
        self.request = request
        self.context = context
        self._push_id = push_id
        self.tag = tag
        self.caller_aor = ""
        "The authenticated caller, or empty for a peer."
        # Empty tuples take no memory; a call that is held, or was answered, is kept for a while.
        self.destinations: tuple[str, ...] = ()
        "Where it has been sent, in order: AORs, and URIs of others."
        self.fallbacks: Fallbacks = {}
        "Where it goes when the last destination does not take it."
        self.diversions: tuple[Diversion, ...] = ()
        self._before: Way | None = None
        "While it falls back: what ``way`` was."
        self.watched: dict[Aor, Subscriber] = {}
        self.seen: dict[Aor, Location] = {}
        "What was last heard of the watched users: another process needs it to see what is new."
        self.watched_flows: tuple[str, ...] = ()
        "Names of the flows whose devices may have to be woken."
        self.policy: TargetPolicy | None = None
        self.dialog_side: str | None = None
        "Inside a dialog: the device at its other end, as in Target, or empty; None: outside."
        self.side_called: RouteToken | None = None
        "The device of ours that another node calls, by which requests of the dialog find it."
        self.signs_in_as = ""
        "The user whose registrar elsewhere is to know him: it gets his credentials, too."
        self.side: RouteToken | None = None
        "The device at the other end of the dialog, when it is not waited for with a push."
        self.wake_ups: dict[str, WakeUp] = {}
        "By device: those that were pushed."
        self.without_app: tuple[PushRecord, ...] = ()
        "Of the devices that nothing can push."
        self.attempts: dict[int, _Attempt] = {}
        self.created_epoch = time.time()
        self._queue: list[Action] = []
        "A deque would take half a kilobyte of every held call."
        self._performing = False
        self._is_news = False
        self._timer: Alarm | None = None
        self._timer_at = 0.0
        self._unheard_at: float | None = None
        "When a device that has been sent the INVITE counts as silent."
        self.cancel_reason: str | None = None
        "Reason of the caller's CANCEL: all that it gives (RFC 3326 §2)."
        self.final = 0
        "Status of the final response that went upstream, or is about to."
        self.ended_epoch = 0.0
        "When that was."
        self._unstored: list[Response] | None = None
        "Provisional responses that wait until a call that is held, or may have to be, is stored."
        self._finals: tuple[Callable[[], None], ...] = ()
        "Final responses that wait until what they mean for a held call is stored."
        self.merge_key = ""
        "By which the same INVITE, come by another way, finds this one."
        self.started = False
        "The target set was opened."
        self.not_held: Rejection | None = None
        "Why devices that sleep are left alone."
        self._expected: tuple[str, ...] = ()
        "Via branches under which ``proxy.expected_answers`` has us."
        self._held: set[str] = set()
        "The names under which it counts as held."
        self.call_id = request.call_id
        "On every line of the log."
        self._early: tuple[tuple[Aor, Location, Collection[str]], ...] = ()
        self._upstream: tuple[Flow, str] | None = None
        "What ``_upstream_route`` made, and for which flow."
        self.ladder: Ladder | None = None
        "Where its steps are kept."
        if proxy.history is not None:
            self.ladder = proxy.history.arrived(request, transaction.flow.name)

    @property
    def push_id(self) -> str:
        """Names the request where it is pushed for or stored; made when somebody asks."""
        if not self._push_id:
            self._push_id = self.proxy.push_id(self.transaction)
        return self._push_id

    @property
    def is_named(self) -> bool:
        """Whether anybody has asked for ``push_id``."""
        return bool(self._push_id)

    # -- inputs --

    def watch(self, subscriber: Subscriber) -> None:
        """Hear of registrations of this user. Watch before looking the user up."""
        if subscriber.aor not in self.watched:  # else he is called again, as one of a group
            self.proxy.bucket.watch(subscriber.aor, self.registered)
        self.watched[subscriber.aor] = subscriber

    def follow(self, side: RouteToken) -> None:
        """Hear when the other side of the dialog registers: it may have moved."""
        self.side = side
        self.proxy.bucket.watch(side.aor, self._side_registered)

    def _side_registered(
        self,
        aor: Aor,
        location: Location,
        devices: Collection[str],
        known: Collection[tuple[str, str, str]] = (),
    ) -> None:
        """As ``registered``."""
        assert self.side is not None
        if not self.started:
            self._early += ((aor, location, devices),)
            return
        bound = sides(self.side, location.bindings, self.request.uri)
        if any(b.device in devices for b in bound):
            here = in_dialog.surroundings(self.proxy)
            target = here.side(self.side, self.request, location.bindings)
            if (target.device, target.uri, target.flow) not in known:
                self._perform(self.context.binding_refreshed(target, self._now))

    def start(self, targets: TargetSet) -> None:
        """Open the target set; registrations that came during the look-up count now."""
        self.started = True
        if self.ladder is not None and self.proxy.history is not None:
            self.proxy.history.routed(self.ladder)
        self.tell("routed", uri=self.request.uri, targets=len(targets.all))
        actions = self.context.start(targets, self._now)
        if self.context.invite and self.context.probing:
            self._expect_to_hear()
        self._perform(actions)
        if self._early:
            self._hear_early(targets)
        if self.context.invite and self._unstored is None:
            if not self.context.probing:
                self.transaction.trying()
            else:
                self._expect_to_hear()
                self._arm_timer()

    def heard_meanwhile(self, aor: Aor) -> bool:
        """Whether this user has registered while being looked up: what was found may be older."""
        heard = len(self._early)
        self._early = tuple([each for each in self._early if each[0] != aor])
        return len(self._early) < heard

    def _hear_early(self, targets: TargetSet) -> None:
        """Registrations that came while the other users of ``targets`` were being looked up."""
        early, self._early = self._early, ()
        known = {(target.device, target.uri, target.flow) for target in targets.all}
        hear = self.registered if self.side is None else self._side_registered
        for aor, location, devices in early:
            hear(aor, location, devices, known)

    def _expect_to_hear(self) -> None:
        """Of a device that may sleep. Until it has spoken, or the call is held, the caller does not
        hear that another one rings: he would rely on a call that a crash could cost.
        """
        self._unheard_at = self._now + _UNHEARD
        if self._unstored is None:
            self._unstored = []

    def _hold_unheard(self) -> None:
        """A device that may sleep is silent: its call must survive us from the caller's 100 on."""
        self._unheard_at = None
        if self.context.probing and not self.proxy.held_calls.holds(self):
            self.proxy.tasks.spawn(self._hold())
        else:
            self._tell_caller()

    async def _hold(self) -> None:
        if not self.context.done:
            await self.proxy.held_calls.store(self)
        await self.proxy.turns.wait()
        self._tell_caller()

    def registered(
        self,
        aor: Aor,
        location: Location,
        devices: Collection[str],
        known: Collection[tuple[str, str, str]] = (),
    ) -> None:
        """Devices of a watched user have registered; ``known`` ones were looked up just now."""
        if not self.started or self.context.falling_back:
            self._early += ((aor, location, devices),)
            return
        assert self.policy is not None
        self.seen[aor] = location
        spoke = (without_reg_id(b.device) for b in location.bindings if b.device in devices)
        for device in dict.fromkeys(spoke):
            target = self.policy.target(device, location, self.watched[aor])
            if self.dialog_side is not None:
                if target.device != self.dialog_side:
                    continue
                target = replace(target, uri=self.request.uri)
            elif self.proxy.policy.registrar_of(aor) and not self._calls(target.device):
                continue  # a registrar elsewhere calls each device by itself
            if (target.device, target.uri, target.flow) not in known:
                waking.registered(self, target.device)
                if self.ladder is not None:
                    self.step("device_registered", device=fingerprint(target.device))
                branches = len(self.context.branches)
                actions = self.context.binding_refreshed(target, self._now)
                # The next process would see in the store that it has registered, and do the same.
                is_derived = len(actions) == 1 and isinstance(actions[0], Forward)
                is_new = len(self.context.branches) > branches
                self._perform(actions, is_news=is_new or not is_derived)
                # Told last: the INVITE has left by now.
                self._log("device_registered", {"device": fingerprint(target.device)})

    def _calls(self, device: str) -> bool:
        return any(branch.target.device == device for branch in self.context.branches)

    def resume(self, held: HeldCall, locations: Mapping[Aor, Location]) -> None:
        """Go on where another process stopped; ``locations`` are those of the watched users."""
        self.started = True
        waking.resume(self, held)
        came = {
            aor: dict(registrations(location).items() - held.seen.get(aor, {}).items())
            for aor, location in locations.items()
        }
        now = self._now
        shift = now - time.time()
        for aor, devices in came.items():
            for device, at_epoch in devices.items():
                name = full_device(aor, device)
                self.context.perhaps_forwarded(name, at_epoch + shift, now)
        overdue = self.context.catch_up(now, KEPT)
        pushes = self.context.pushes_to_begin()  # before anything asks for more of them
        if held.final >= 300 and time.time() < held.ended_epoch + KEPT:
            # It may have been lost with the process that sent it.
            self.transaction.respond(make_response(self.request, held.final, to_tag=self.tag))
        elif not self.context.answered:
            self.transaction.trying()
        for branch in self.context.branches:
            if branch.state not in (BranchState.WAKING, BranchState.COMPLETED):
                self._forward(branch.id)
                if self.context.closed:
                    self._cancel(branch.id, self.context.close_cause)
            elif branch.cancelling is not None:
                self._forward(branch.id)
                self._cancel(branch.id, branch.cancelling)
            self._expect_answer(branch)
        for aor, location in locations.items():
            self.registered(aor, location, came[aor])
        self._perform([*pushes, *overdue])

    def was_answered_elsewhere(self) -> None:
        """The caller has gone another way, and was answered there: all that is left here ends."""
        self.cancel_reason = _REASONS[CancelCause.ANSWERED_ELSEWHERE]
        self._perform(self.context.cancelled(self._now))

    def supersede(self, held: HeldCall) -> None:
        """What another process held goes on in another one here."""
        waking.resume(self, held)
        self.tell("merged", remote=self.transaction.flow.remote[0])
        self.finish()

    def _expect_answer(self, branch: Branch) -> None:
        """What rang before the crash may answer, or repeat its answer, with nothing out there."""
        attempt = self.attempts.get(branch.id)
        if branch.number and (attempt is None or attempt.handle is None):
            via = self._via_branch(branch.id)
            self._expected += (via,)
            self.proxy.expected_answers[via] = partial(self._late_answer, branch.id)

    def _late_answer(self, branch: int, flow: Flow, response: Response) -> None:
        self.attempts.setdefault(branch, _Attempt()).flow = flow
        self._response_received(branch, response)

    def forgotten(self) -> None:
        """Nobody repeats anything any more."""
        self.proxy.forgotten(self)
        for via in self._expected:
            self.proxy.expected_answers.pop(via, None)

    def flow_active(self, name: str) -> None:
        """Something came over a flow that we sent the request on, and perhaps many others."""
        if actions := self.context.flow_active(name):
            self._perform(actions)

    def merge(self, transaction: ServerTransactionHandle) -> asyncio.Task[None] | None:
        """The INVITE has come by another way too, and is answered there as well.

        The task ends when that is stored.
        """
        self.tell("merged", remote=transaction.flow.remote[0])
        self.transaction.merge(transaction)
        return self.proxy.held_calls.changed(self)

    def cancel(self, transaction: ServerTransactionHandle, cancel: Request) -> None:
        """The caller's CANCEL came (§16.10), in the transaction of one of its ways.

        Who has given up one that did not answer goes on by the next one: the newest decides.
        """
        if transaction is not self.transaction.newest:
            self._leave(transaction)
            return
        self.cancel_reason = ", ".join(cancel.headers.values("reason")) or None
        self.step("cancel_received")
        self._perform(self.context.cancelled(self._now))

    def _leave(self, transaction: ServerTransactionHandle) -> None:
        """One way is given up, and the call goes on by a newer one."""
        self.transaction.leave(transaction)
        self.proxy.left(transaction)
        terminated = make_response(transaction.request, Status.REQUEST_TERMINATED, None, self.tag)
        say = (partial(transaction.end_alone, terminated),)
        if (stored := self.proxy.held_calls.changed(self)) is None:
            self._answer(say)
        else:
            stored.add_done_callback(partial(self._answer, say))

    # -- performing --

    @property
    def _now(self) -> float:
        return self.proxy.clock()

    def _perform(self, actions: Iterable[Action], *, is_news: bool = True) -> None:
        """Perform in order, also when performing one causes more.

        ``is_news``: a held call has changed in a way that the next process must know.
        """
        self._is_news = self._is_news or is_news
        self._queue.extend(actions)
        if self._performing:
            return
        self._performing = True
        try:
            while self._queue:
                action = self._queue.pop(0)
                try:
                    self._perform_one(action)
                except Exception as error:
                    self._not_performed(action, error)
        finally:
            self._performing = False
        if self._unheard_at is not None and self._unstored and not self.context.probing:
            self._unheard_at = None
            self._tell_unstored()
        self._arm_timer()
        stored = self.proxy.held_calls.changed(self) if self._is_news else None
        self._is_news = False
        if self._finals:
            finals, self._finals = self._finals, ()
            # Not before it is stored: or a crash would bring the call back to life.
            if stored is None:
                self._answer(finals)
            else:
                stored.add_done_callback(partial(self._answer, finals))
        if self.context.done:
            self.finish()

    def _not_performed(self, action: Action, error: Exception) -> None:
        """A bug of ours costs one branch, or one answer, not the call: what waits must go on."""
        log.error("internal_error", call_id=self.call_id, exc_info=error)
        status = Status.SERVER_INTERNAL_ERROR
        if isinstance(action, Forward):
            self._queue += self.context.not_sent(action.branch, status, self._now)
        elif isinstance(action, Respond) and action.status >= 200:
            self.transaction.respond(make_response(self.request, status, to_tag=self.tag))

    def _perform_one(self, action: Action) -> None:
        # mypyc compiles isinstance to a comparison, a case of match to a call.
        if isinstance(action, Forward):
            self._forward(action.branch)
        elif isinstance(action, Respond):
            self._respond(action.status, action.branch)
        elif isinstance(action, Retransmit):
            if (handle := self.attempts[action.branch].handle) is not None:
                handle.retransmit()
        elif isinstance(action, Follow):
            if (handle := self.attempts[action.branch].handle) is not None:
                handle.newer_flow = self.proxy.transports.flow(action.flow)
        elif isinstance(action, RequestPush):
            self._unheard_at = None
            if self._unstored is None and not self.proxy.held_calls.holds(self):
                self._unstored = []
            aor = self.context.branches[action.branch].target.aor
            self.proxy.held_call_limits.hold(self.caller_aor, aor, self._held)
            self.proxy.tasks.spawn(self._push(action.branch, action.deadline))
        elif isinstance(action, Cancel):
            if self._finals:  # as true as the answer, which a crash may still undo
                self._finals += (partial(self._cancel, action.branch, action.cause),)
            else:
                self._cancel(action.branch, action.cause)
        elif isinstance(action, Abandon):
            attempt = self.attempts.get(action.branch)  # None: it was made by a process that died
            if attempt is not None and attempt.handle is not None:
                attempt.handle.abandon(cancel=not action.moved)
        elif isinstance(action, RemovePushRecord):
            self.proxy.tasks.spawn(waking.remove_push_record(self, action.branch))
        elif isinstance(action, CancelPush):
            self.proxy.tasks.spawn(waking.cancel(self, action.branch))
        elif isinstance(action, HangUp):
            self._hang_up(action.branch)
        elif isinstance(action, FallBack):
            self.proxy.tasks.spawn(self._fall_back(action.status, action.cause))
        else:
            assert_never(action)

    def _arm_timer(self) -> None:
        """Be woken in time. Too early costs nothing but another look."""
        at = self._next_timer()
        if self._timer is not None:
            if at is not None and self._timer_at <= at:
                return
            self._timer.cancel()
            self._timer = None
        if at is not None:
            now = self._now
            self._timer_at = min(at, now + _LOOK_AGAIN)
            wheel = self.proxy.layer.wheel
            self._timer = wheel.call_later(self._timer_at - now, self._timer_fired)

    def _next_timer(self) -> float | None:
        at, unheard_at = self.context.next_timer(), self._unheard_at
        if at is None or unheard_at is None:
            return at
        return min(at, unheard_at)

    def _timer_fired(self) -> None:
        # It may be early by the clock's resolution; a timer must never be missed for that.
        now = max(self._now, self._timer_at)
        self._timer = None
        if self._unheard_at is not None and self._unheard_at <= now:
            self._hold_unheard()
        due = self.context.next_timer()
        if due is not None and due <= now:
            self._perform(self.context.timer_fired(now))
        else:
            self._arm_timer()

    def finish(self) -> None:
        """Nothing but a late 2xx can come any more."""
        if not self.started:
            self.step("refused", status=self.transaction.status)
        for attempt in self.attempts.values():
            attempt.response = None
        for aor in self.watched:
            self.proxy.bucket.unwatch(aor, self.registered)
        if self.side is not None:
            self.proxy.bucket.unwatch(self.side.aor, self._side_registered)
        self.proxy.held_call_limits.release(self._held)
        for name in self.watched_flows:
            self.proxy.bucket.unwatch_flow(name, self.flow_active)
        if not self.proxy.held_calls.holds(self):  # else they are still to be written down
            self.watched, self.seen, self._early = {}, {}, ()
        waking.ended(self)
        self.proxy.finished(self)
        if self.context.invite and self.context.successful:
            self._leave_repeats()

    def _leave_repeats(self) -> None:
        """Who hears repeated 2xx, for half a minute, keeps nothing else of the call in memory."""
        if self._is_followed or self.proxy.held_calls.holds(self):
            return
        if any(branch.late for branch in self.context.branches):
            return  # what it answers is hung up
        repeat = _Answered(self.transaction, self.call_id, self.proxy.acknowledgements).hear
        for attempt in self.attempts.values():
            if attempt.handle is not None:
                attempt.handle.on_response = repeat

    # -- downstream --

    def _forward(self, branch: int) -> None:
        target = self.context.branches[branch].target
        self.attempts[branch] = _Attempt()
        if not target.flow:
            self.proxy.tasks.spawn(self._connect(branch, target, was_over=self._is_over(branch)))
        elif (flow := self.proxy.transports.flow(target.flow)) is not None and not flow.closed:
            self._send(branch, flow)
        else:
            self._perform(self.context.flow_failed(branch, self._now))

    def _is_over(self, branch: int) -> bool:
        """Whether nobody waits for what its device might answer."""
        state = self.context.branches[branch].state
        return self.context.closed or state is BranchState.COMPLETED

    async def _connect(self, branch: int, target: Target, *, was_over: bool) -> None:
        """Reach a server by URI: a fallback, or the first hop of a Path.

        ``was_over``: the device woke late, or perhaps has the call from a process that died. It is
        to see the end. No device sees the beginning when the call ends while we connect.
        """
        try:
            flow = await self.proxy.next_hop(target)
            if was_over or not self._is_over(branch):
                self._send(branch, flow)
                if (cause := self.attempts[branch].cancelled) is not None:
                    self._cancel(branch, cause)
                return
            actions = self.context.not_sent(branch, Status.REQUEST_TERMINATED, self._now)
        except (TransportError, MessageError) as error:
            self.warn("next_hop_unreachable", target=target.device, reason=str(error))
            actions = self.context.flow_failed(branch, self._now)
        except Exception as error:
            log.error("internal_error", call_id=self.call_id, exc_info=error)
            actions = self.context.flow_failed(branch, self._now)
        self._perform(actions)

    def _send(self, branch: int, flow: Flow) -> None:
        target, left = self.context.branches[branch].target, self._breadth_left()
        if left is not None and left < 1:
            exceeded = Status.MAX_BREADTH_EXCEEDED
            self._perform(self.context.response_received(branch, exceeded, self._now))
            return
        forwarded = forward_request(
            self.request,
            target,
            self._record_routes(target, flow),
            self.push_id if target.push is not None and self.dialog_side is None else "",
            self.diversions,
            breadth=left,
            to_registrar=bool(self.signs_in_as),
            realms=self.proxy.realm.domains,
            to_peer=self.dialog_side is not None and self.proxy.policy.is_peer(flow.remote[0]),
        )
        attempt = self.attempts[branch]
        attempt.flow = flow
        is_its_own = target.flow and not target.route  # else a proxy's, which many may speak over
        if target.wakeable and is_its_own and target.flow not in self.watched_flows:
            self.watched_flows += (target.flow,)
            self.proxy.bucket.watch_flow(target.flow, self.flow_active)
        attempt.handle = self.proxy.layer.send_request(
            forwarded,
            flow,
            self._via_branch(branch),
            partial(self._response_received, branch),
            partial(self._failed, branch),
        )
        if self._is_followed:
            self._note("forwarded", branch=branch, flow=flow.name, uri=target.uri)

    def _breadth_left(self) -> int | None:
        """What of the Max-Breadth no branch uses now; None when there is no limit."""
        allowed = max_breadth(self.request)
        if allowed is None:
            return None
        over = {b.id for b in self.context.branches if b.state is BranchState.COMPLETED}
        out = (i for i, attempt in self.attempts.items() if attempt.handle and i not in over)
        return allowed - sum(1 for _ in out)

    def _via_branch(self, branch: int) -> str:
        """Equal in every process that sends this call to this device for the Nth time."""
        which = self.context.branches[branch]
        unique = f"{self.transaction.branch} {which.target.device} {which.number}"
        return self.proxy.new_branch(self.request, unique)

    def _record_routes(self, target: Target, flow: Flow) -> list[str]:
        """Two Record-Routes, one for each side (RFC 5626 §5.2): transports may differ."""
        if self.request.method not in DIALOG_FORMING or self.request.to.tag:
            return []
        key = target.key if target.flow else ""
        downstream = RouteToken(flow.name, target.aor if key else "", device_digest(key))
        if (called := self.side_called) is not None:
            downstream = RouteToken(flow.name, called.aor, called.device)
        return [self._upstream_route(), self._route_uri(downstream, flow)]

    def _upstream_route(self) -> str:
        """The Record-Route for the side of the caller, by his newest way: of all devices called."""
        came_over = self.transaction.newest.flow
        if self._upstream is None or self._upstream[0] is not came_over:
            devices = self.proxy.locations.devices_on(self.caller_aor, came_over.name)
            device = devices[0] if len(devices) == 1 else ""  # else his Contact tells which
            port = 0 if device or came_over.transport == "UDP" else self._own_port()
            token = RouteToken(came_over.name, self.caller_aor, device_digest(device), port)
            self._upstream = (came_over, self._route_uri(token, came_over))
        return self._upstream[1]

    def _own_port(self) -> int:
        """Where the caller, or the proxy that he uses, says that it takes connections, or 0."""
        headers = self.request.headers
        ways = headers.values("record-route") or headers.values("contact")
        try:
            return (parse_name_addr(ways[0]).sip_uri.port if ways else None) or 0
        except MessageError:
            return 0

    def _route_uri(self, token: RouteToken, flow: Flow) -> str:
        user = make_route_token(token, self.request.call_id, self.proxy.route_key)
        sips = wants_tls(self.request)
        return f"{server_uri(user, flow.transport, flow.sent_by, sips=sips)};lr"

    def _response_received(self, branch: int, response: Response) -> None:
        attempt = self.attempts[branch]
        attempt.response = response
        if attempt.flow is not None:
            self._heed(response, attempt.flow)
        if response.status > TRYING and self._is_followed:
            self._note("response", branch=branch, status=response.status)
        self._perform(self.context.response_received(branch, response.status, self._now))

    def _heed(self, response: Response, flow: Flow) -> None:
        """Only a peer may say who it is, or where it wants to be called."""
        policy = self.proxy.policy
        if not policy.is_peer(flow.remote[0]):
            drop_claims(response)
        elif flow.transport != "UDP" and self.context.invite and 200 <= response.status < 300:
            self.proxy.note_ways(response)
        if not policy.is_peer(self.transaction.flow.remote[0]):
            hide_identity(response)

    def _failed(self, branch: int, failure: Failure) -> None:
        self.tell("contact_failed", branch=branch, failure=failure.value)
        if failure is Failure.TIMEOUT:
            actions = self.context.response_received(branch, Status.REQUEST_TIMEOUT, self._now)
        else:
            actions = self.context.flow_failed(branch, self._now)
        self._perform(actions)

    def _cancel(self, branch: int, cause: CancelCause) -> None:
        attempt = self.attempts.get(branch)
        if attempt is None:  # it was made by a process that died
            return
        if attempt.handle is None:
            attempt.cancelled = cause
            return
        reason = self.cancel_reason if cause is CancelCause.CALLER else _REASONS.get(cause)
        attempt.handle.cancel(reason)
        self.step("cancelled", branch=branch, cause=cause.value)

    def _hang_up(self, branch: int) -> None:
        attempt = self.attempts[branch]
        assert attempt.response is not None
        assert attempt.flow is not None
        flow = attempt.flow
        try:
            # What was sent has the same From, Call-ID and CSeq.
            ack, bye = hang_up_requests(self.request, attempt.response, self.proxy.realm)
        except MessageError as error:
            self.warn("not_hung_up", branch=branch, reason=error.reason)
            return
        self.tell("hung_up", branch=branch)
        self.proxy.send_ack(ack, flow)
        self.proxy.layer.send_request(
            bye, flow, self.proxy.new_branch(bye), lambda _: None, lambda _: None
        )

    # -- push --

    async def _push(self, branch: int, deadline: float) -> None:
        if waking.kind(self) is PushKind.CALL and self.context.branches[branch].awaited:
            # Stored first: who goes on after a crash sends it, unless it was on its way already.
            await self._hold()
        else:
            self._tell_caller()
        result = await waking.push(self, branch, deadline)
        self._upstream_route()  # made while nobody waits for the INVITE, not when it is to leave
        actions = self.context.push_finished(branch, result, self._now)
        if actions or result is not PushResult.ACCEPTED:
            self._perform(actions)

    def _tell_caller(self) -> None:
        """The call is stored: now the caller may rely on us (a 100 ends retransmission)."""
        if self._unstored is not None:
            if self.context.invite:
                self.transaction.trying()
            self._tell_unstored()

    def _tell_unstored(self) -> None:
        unstored, self._unstored = self._unstored, None
        for response in unstored or ():
            self.transaction.respond(response)

    # -- fallback --

    def sent_to(self, destination: str, fallbacks: Fallbacks) -> None:
        """The targets are those of this user, group or server; ``fallbacks`` are its own."""
        self.destinations += (destination,)
        self.fallbacks = fallbacks
        may_go_on = self.context.invite and len(self.destinations) <= MAX_FALLBACKS
        self.context.fallback = bool(fallbacks) and may_go_on

    @property
    def way(self) -> Way:
        """Where it has been, as far as the response context knows."""
        return self._before or Way(
            self.destinations, tuple(self.watched), self.fallbacks, self.diversions
        )

    @property
    def _origin(self) -> str:
        """Where the call was sent last, as a URI."""
        return self.request.uri if len(self.destinations) == 1 else uri_of(self.destinations[-1])

    async def go_on(self, uri: str, status: int, cause: Cause | None) -> TargetSet:
        """The targets of ``uri``, where the call goes from where it was sent last.

        What it says of that comes before what it says of the way from there; nothing when ``uri``
        leads nowhere. ``cause``: None for a call that is always sent on. Raises MessageError and
        LocationError.
        """
        before, been = self.diversions, len(self.destinations)
        self.diversions += (Diversion(self._origin, status, cause),)
        targets = NOWHERE
        try:
            targets = await target_sets.of_fallback(self.proxy, self, uri)
        finally:
            if len(self.destinations) == been:
                self.diversions = before
        return targets

    def refuse(self, aor: Aor, status: int) -> None:
        """The user takes no calls now."""
        self.started = True
        self._perform(self.context.refuse(Target(aor), status, self._now))

    async def _fall_back(self, status: int, cause: Cause) -> None:
        """Find where the call goes now: a URI of another server, or another user of ours."""
        targets, been = NOWHERE, len(self.destinations)
        self._before = self.way  # whoever went on from here would fall back himself
        if uri := self.fallbacks.get(cause):
            self.tell("falling_back", to=uri, status=int(status), cause=cause.value)
            try:
                targets = await self.go_on(uri, status, cause)
            except (LocationError, MessageError) as error:
                self.warn("fallback_failed", to=uri, reason=str(error))
            except Exception as error:
                log.error("internal_error", call_id=self.call_id, exc_info=error)
        self._before = None
        goes_on = len(self.destinations) > been
        if goes_on and target_sets.is_busy(self.proxy, self, self.destinations[-1]):
            self.refuse(self.destinations[-1], Status.BUSY_HERE)
        else:
            self._perform(self.context.fall_back(targets, self._now))
        self._hear_early(targets)
        if self._unstored is None or self._unheard_at is not None:
            self.transaction.trying()

    # -- upstream --

    def _respond(self, status: int, branch: int | None) -> None:
        response = self._response(status, branch)
        if status in CHALLENGES:
            self._add_challenges(response, branch)
        strip_push_params(response)
        is_final = status >= 200
        if is_final and not self.final:  # a 2xx may be repeated
            self.final, self.ended_epoch = status, time.time()
            after = round(1000 * (self.ended_epoch - self.created_epoch)) / 1000
            self.tell("answered" if status < 300 else "failed", status=int(status), after=after)
            if self.context.invite:
                CALLS.counts[_CLASSES[status // 100]] += 1
        if is_final and status < 300 and self.context.invite:
            self.proxy.acknowledgements.expect(self.request.call_id)
        if self.signs_in_as and says_wrong_password(self.request, response):
            self.proxy.tasks.spawn(self._refuse(response))
        elif is_final and self.proxy.held_calls.holds(self):
            self._finals += (partial(self._say, response),)
        elif not is_final and self._unstored is not None:
            self._unstored.append(response)
        else:
            self._say(response)
        if not is_final and self.ladder is not None:
            self.step("told", status=status)

    async def _refuse(self, response: Response) -> None:
        """Tell somebody who may be guessing a password, no sooner than he has to hear it."""
        flow, gate = self.transaction.flow, self.proxy.gate
        await gate.sign_in_failed(flow, self.signs_in_as, self.proxy.clock(), self.call_id)
        self._say(response)

    def _say(self, response: Response) -> None:
        if response.status >= 300 and self._may_be_forged(response.status):
            self.transaction.refuse(response)
        else:
            self.transaction.respond(response)

    def _may_be_forged(self, status: int) -> bool:
        """Whether nobody knows that the caller is where the request seems to come from."""
        if self.signs_in_as and status in CHALLENGES:
            return True
        if self.caller_aor or self.dialog_side is not None:
            return False
        return not self.proxy.gate.is_known(self.transaction.flow)

    @staticmethod
    def _answer(finals: tuple[Callable[[], None], ...], stored: object = None) -> None:
        for say in finals:
            say()

    def _response(self, status: int, branch: int | None) -> Response:
        attempt = self.attempts.get(branch) if branch is not None else None
        response = attempt.response if attempt is not None else None
        if response is not None and response.status == status:
            return response
        if self.dialog_side and status == Status.TEMPORARILY_UNAVAILABLE:
            # That would end the dialog: of those who sleep, only this request (RFC 8599 §6.2.3).
            status = Status.SERVER_TIMEOUT
        response = make_response(self.request, status, to_tag=self.tag)
        if TRYING < status < 200:
            self._make_early_dialog(response)
        return response

    def _make_early_dialog(self, response: Response) -> None:
        """A To tag makes a dialog, which has a route set and a remote target (§12.1.1)."""
        headers, flow = response.headers, self.transaction.flow
        headers.extend(self.request.headers.lines("record-route"))
        uri = server_uri("", flow.transport, flow.sent_by, sips=wants_tls(self.request))
        headers.append("Contact", f"<{uri}>")

    def _add_challenges(self, best: Response, branch: int | None) -> None:
        """§16.7 step 7: the caller sees every challenge that any branch got."""
        for number, attempt in self.attempts.items():
            other = attempt.response
            if number != branch and other is not None and other.status in CHALLENGES:
                best.headers.extend(other.headers.lines("www-authenticate"))
                best.headers.extend(other.headers.lines("proxy-authenticate"))

    def tell(self, event: str, **facts: object) -> None:
        """What happens to a call is worth a line; the rest is for debugging."""
        self._log(event, facts)
        if self.ladder is not None:
            self.ladder.add(event, self.request, facts)

    def _log(self, event: str, facts: dict[str, object]) -> None:
        """The same for the log alone."""
        if self.context.invite:
            self.proxy.log.info(event, call_id=self.call_id, method=self.request.method, **facts)
        elif shown.debug:
            log.debug(event, call_id=self.call_id, method=self.request.method, **facts)

    @property
    def _is_followed(self) -> bool:
        """Whether anybody wants to know what goes over the wire."""
        return self.ladder is not None or shown.debug

    def _note(self, event: str, **facts: object) -> None:
        """What goes over the wire is for debugging."""
        if shown.debug:
            log.debug(event, call_id=self.call_id, method=self.request.method, **facts)
        if self.ladder is not None:
            self.ladder.add(event, self.request, facts)

    def warn(self, event: str, **facts: object) -> None:
        """What an operator should look at."""
        log.warning(event, call_id=self.call_id, method=self.request.method, **facts)
        if self.ladder is not None:
            self.ladder.add(event, self.request, facts)

    def step(self, event: str, **facts: object) -> None:
        """What the log does not tell, or tells elsewhere."""
        if self.ladder is not None:
            self.ladder.add(event, self.request, facts)
