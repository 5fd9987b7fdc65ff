"""What becomes of a MESSAGE to a user of ours: forwarded, or stored and delivered (RFC 3428).

Two machines, pure like the response context: ``Arrival`` decides on one request, ``Delivery`` takes
what is stored for a user to the devices that register, one message at a time. docs/messages.md
holds their tables; the tests read them from there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum

from sipush.core.bindings import without_reg_id
from sipush.core.fallback import UNREACHABLE
from sipush.core.stored_message import StoredMessage
from sipush.core.target_set import Target
from sipush.sip.status import Status

#: A device that says this, or nothing, cannot take a message now; all else is its last word on it.
NOT_NOW = UNREACHABLE | {Status.SERVER_TIMEOUT}

MAILBOX_FULL = "Mailbox Full"


# --- Actions: what the driver must do ------------------------------------------------------------


@dataclass(slots=True, init=False)
class Forward:
    """Send the request to the device at this place of the target set."""

    target: int

    def __init__(self, target: int) -> None:
        self.target = target


@dataclass(slots=True, init=False)
class Respond:
    """Answer the sender: with the device's own response, or with one of ours."""

    status: int
    target: int | None
    reason: str

    def __init__(self, status: int, target: int | None = None, reason: str = "") -> None:
        self.status = status
        self.target = target
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Keep:
    """Store the message, then call ``kept``, ``full`` or ``store_failed``."""


@dataclass(frozen=True, slots=True)
class Notify:
    """Push the devices that have not refused the message."""

    later: bool = False
    "Only if it is still there after the probe time: a device seems to be awake."


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Deliver to devices that are awake and have not been tried: they registered meanwhile."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Remove the message from the store: a device took it after all."""


ArrivalAction = Forward | Respond | Keep | Notify | CatchUp | Discard


@dataclass(frozen=True, slots=True)
class Load:
    """Read what is stored for the user, then call ``loaded`` or ``store_failed``."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a stored message to a device."""

    message: StoredMessage
    target: Target


@dataclass(frozen=True, slots=True)
class Retransmit:
    """Send what is out once more, in its transaction."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Nothing more is heard of what is out."""


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove a message from the store."""

    message: StoredMessage


@dataclass(frozen=True, slots=True)
class Report:
    """A device refused a message for good."""

    message: StoredMessage
    device: str
    status: int


DeliveryAction = Load | Send | Retransmit | Abandon | Remove | Report


# --- A MESSAGE arrives ---------------------------------------------------------------------------


class ArrivalState(Enum):
    """How far one request has come."""

    TRYING = "trying"
    "Forwarded to the devices that seem to be awake."
    KEEPING = "keeping"
    "Being stored."
    TAKEN = "taken"
    "Being stored although a device has taken it meanwhile."
    KEPT = "kept"
    "Stored and accepted with 202."
    FINISHED = "finished"


@dataclass(slots=True, init=False)
class Arrival:
    """One MESSAGE from its arrival to its final response."""

    storable: bool
    state: ArrivalState
    statuses: list[int]
    "What each device answered; 0: nothing yet."
    asleep: bool
    "The user has a device that was not tried, or none at all: one may register."
    behind: bool
    "Earlier messages wait for a device that seems to be awake."

    def __init__(self, storable: bool) -> None:
        self.storable = storable
        self.state = ArrivalState.TRYING
        self.statuses = []
        self.asleep = self.behind = False

    def start(self, awake: int, *, asleep: bool, waiting: bool) -> list[ArrivalAction]:
        """Try ``awake`` devices; ``waiting``: unless earlier messages must come first."""
        self.statuses = [0] * awake
        self.asleep = asleep or not awake
        self.behind = waiting and awake > 0
        if awake and not (waiting and self.storable):
            return [Forward(target) for target in range(awake)]
        return self._settle()

    def answered(self, target: int, status: int) -> list[ArrivalAction]:
        """A device's final response; 408 when it had none, 430 when its flow failed."""
        if status < 300:
            return self._taken(target, status)
        self.statuses[target] = status
        if self.state is not ArrivalState.TRYING:
            return []
        if status >= 600:
            return self._finish(Respond(status, target))
        return [] if 0 in self.statuses else self._settle()

    def probe_expired(self) -> list[ArrivalAction]:
        """The devices that are silent up to now count as asleep, if the message can wait."""
        if self.state is not ArrivalState.TRYING or not self.storable:
            return []
        self.asleep = True
        return self._settle()

    def refused(self, target: int) -> bool:
        """Whether this device has refused the message for good."""
        return self.statuses[target] != 0 and self.statuses[target] not in NOT_NOW

    def kept(self, *, repeated: bool = False) -> list[ArrivalAction]:
        """It is stored; ``repeated``: since an earlier request, whose push is not repeated."""
        if self.state is ArrivalState.TAKEN:
            return self._finish(Discard())
        self.state = ArrivalState.KEPT
        pushes = [] if repeated else [Notify(later=self.behind)]
        return [Respond(Status.ACCEPTED), *pushes, CatchUp()]

    def full(self, *, is_report: bool = False) -> list[ArrivalAction]:
        """The user has as many messages waiting as is allowed.

        ``is_report``: it is a delivery report, which nobody shall send again.
        """
        if is_report:
            return self._not_kept(Respond(Status.ACCEPTED))
        return self._not_kept(Respond(Status.TEMPORARILY_UNAVAILABLE, reason=MAILBOX_FULL))

    def store_failed(self) -> list[ArrivalAction]:
        """The store did not answer: the sender shall try again."""
        return self._not_kept(Respond(Status.SERVICE_UNAVAILABLE))

    def _taken(self, target: int, status: int) -> list[ArrivalAction]:
        match self.state:
            case ArrivalState.TRYING:
                return self._finish(Respond(status, target))
            case ArrivalState.KEEPING:
                self.state = ArrivalState.TAKEN
                return [Respond(status, target)]
            case ArrivalState.KEPT:
                return self._finish(Discard())
            case _:
                return []

    def _settle(self) -> list[ArrivalAction]:
        """Nobody has taken it: store it if anybody still may, else say what the devices said."""
        unreached = self.asleep or any(status in NOT_NOW for status in self.statuses)
        if self.storable and (unreached or self.behind):
            self.state = ArrivalState.KEEPING
            return [Keep()]
        refusals = [
            (status // 100, place, status)
            for place, status in enumerate(self.statuses)
            if self.refused(place)
        ]
        if not refusals:
            return self._finish(Respond(Status.TEMPORARILY_UNAVAILABLE))
        _, target, status = min(refusals)  # §16.7 step 6: the lowest class
        return self._finish(Respond(status, target))

    def _not_kept(self, answer: Respond) -> list[ArrivalAction]:
        if self.state is ArrivalState.TAKEN:
            return self._finish()
        return self._finish(answer)

    def _finish(self, *actions: ArrivalAction) -> list[ArrivalAction]:
        self.state = ArrivalState.FINISHED
        return list(actions)


# --- Stored messages are delivered ---------------------------------------------------------------


class DeliveryState(Enum):
    """What the messages of one user wait for."""

    IDLE = "idle"
    LOADING = "loading"
    SENDING = "sending"
    "One message is out on one device."


@dataclass(slots=True)
class Remembered:
    """What is known of the stored messages of one user, and not in the store."""

    refusals: dict[int, set[str]] = field(default_factory=dict)
    "Message id -> devices that refused it, without reg-id: the instance has spoken (RFC 5626 §7)."
    taken: set[int] = field(default_factory=set)
    "Ids of messages that a device has taken, and that the store could not remove."

    def __bool__(self) -> bool:
        return bool(self.refusals or self.taken)

    def forget_all_but(self, ids: Collection[int]) -> None:
        """Only these are still stored."""
        self.refusals = {each: who for each, who in self.refusals.items() if each in ids}
        self.taken.intersection_update(ids)


@dataclass(slots=True)
class Delivery:
    """Takes the stored messages of one user to its devices, in order, one at a time."""

    remembered: Remembered = field(default_factory=Remembered)
    state: DeliveryState = DeliveryState.IDLE
    devices: Collection[str] = ()
    "All devices of the user."
    queue: dict[str, Target] = field(default_factory=dict)
    "Those that are awake, in the order in which they came."
    messages: list[StoredMessage] = field(default_factory=list)
    sent: Send | None = None
    "What is out."
    silent: bool = False
    "And has been for the probe time."
    again: bool = False
    "More may have been stored since the last look."

    def registered(self, target: Target, devices: Collection[str]) -> list[DeliveryAction]:
        """A device registered, one of the user's ``devices``."""
        known = self.queue.get(target.device)
        self.queue[target.device] = target
        self.devices = devices
        if self.state is not DeliveryState.SENDING:
            return self._look()
        assert self.sent is not None
        if target.device != self.sent.target.device:
            return self._leave_silent()
        if known is not None and same_way(known, target):
            self.silent = False
            return [Retransmit()]
        return [Abandon(), self._send(self.sent.message, target)]

    def stored(self, target: Target, devices: Collection[str]) -> list[DeliveryAction]:
        """A message was stored although this device seems to be awake."""
        self.queue.setdefault(target.device, target)
        self.devices = devices
        return self._look()

    def loaded(
        self, messages: Sequence[StoredMessage], done: Collection[str] = ()
    ) -> list[DeliveryAction]:
        """What the store holds, in order.

        ``done``: keys of messages that have been delivered, or refused, and are here again: a
        repeated request came while they left the store.
        """
        self.remembered.forget_all_but({message.id for message in messages})
        taken = self.remembered.taken
        over = [each for each in messages if each.id in taken or each.key in done]
        self.messages = [message for message in messages if message not in over]
        return [*(Remove(message) for message in over), *self._next()]

    def not_removed(self, message: StoredMessage) -> None:
        """The store could not remove it: nobody must get it again."""
        self.remembered.taken.add(message.id)

    def answered(self, status: int) -> list[DeliveryAction]:
        """The final response to what is out; 408 when there was none, 430 when the flow failed."""
        assert self.sent is not None
        message, device = self.sent.message, self.sent.target.device
        if status < 300:
            self.again = True
            return [self._remove(message), *self._next()]
        if status in NOT_NOW:
            del self.queue[device]
            return self._next()
        refused = self.remembered.refusals.setdefault(message.id, set())
        refused.add(without_reg_id(device))
        actions: list[DeliveryAction] = [Report(message, device, status)]
        if status >= 600 or refused.issuperset(map(without_reg_id, self.devices)):
            actions.append(self._remove(message))
        return actions + self._next()

    def probe_expired(self) -> list[DeliveryAction]:
        """Nothing was heard of what is out: another device goes first."""
        self.silent = True
        return self._leave_silent()

    def taken(self, message: StoredMessage) -> list[DeliveryAction]:
        """A device has taken it after all, from the request that came before it was stored."""
        self.messages = [each for each in self.messages if each.id != message.id]
        if self.sent is None or self.sent.message.id != message.id:
            return []
        self.again = True
        return [Abandon(), *self._next()]

    def store_failed(self) -> list[DeliveryAction]:
        """The store did not answer: the next REGISTER tries again."""
        self.queue.clear()
        self.again = False
        return self._next()

    def _look(self) -> list[DeliveryAction]:
        if self.state is not DeliveryState.IDLE:
            self.again = True
            return []
        self.state = DeliveryState.LOADING
        return [Load()]

    def _leave_silent(self) -> list[DeliveryAction]:
        assert self.sent is not None
        if not self.silent or len(self.queue) == 1:
            return []
        del self.queue[self.sent.target.device]
        return [Abandon(), *self._next()]

    def _next(self) -> list[DeliveryAction]:
        """The first message that the first device may still take."""
        for target in self.queue.values():
            device = without_reg_id(target.device)
            for message in self.messages:
                if device not in self.remembered.refusals.get(message.id, ()):
                    return [self._send(message, target)]
        self.sent, self.state = None, DeliveryState.IDLE
        look, self.again = self.again and bool(self.queue), False
        return self._look() if look else []

    def _send(self, message: StoredMessage, target: Target) -> Send:
        self.state, self.silent = DeliveryState.SENDING, False
        self.sent = Send(message, target)
        return self.sent

    def _remove(self, message: StoredMessage) -> Remove:
        self.messages.remove(message)
        self.remembered.refusals.pop(message.id, None)
        return Remove(message)


def same_way(one: Target, other: Target) -> bool:
    """Whether what is sent to either comes to the same socket of the same device."""
    return (one.uri, one.flow, one.route) == (other.uri, other.flow, other.route)
