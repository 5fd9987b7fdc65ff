"""What the four transaction machines have in common (RFC 3261 §17, RFC 6026).

Each machine is a literal table of Rows; docs/transactions.md holds the same tables. Two rules:

* An event for which a state has no row changes nothing. So no timer is ever cleared: one that
  fires late finds no row.
* A Send always precedes the SetTimer that retransmits it, and Terminate comes last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, NamedTuple

from sipush.sip.fields import Via
from sipush.sip.message import BRANCH_COOKIE, Request, Response
from sipush.sip.timers import Timer


class State(Enum):
    """Where a transaction stands."""

    __hash__ = object.__hash__  # as in Timer

    INITIAL = "initial"
    CALLING = "calling"
    TRYING = "trying"
    ABANDONED = "abandoned"
    "Ours: the request is no longer retransmitted, its responses are still handled."
    PROCEEDING = "proceeding"
    COMPLETED = "completed"
    ACCEPTED = "accepted"
    CONFIRMED = "confirmed"
    TERMINATED = "terminated"


class Event(Enum):
    """What can happen to a transaction, besides a Timer that fires."""

    __hash__ = object.__hash__  # as in Timer

    START = "start"
    REQUEST = "request"
    "The request of a server transaction came again."
    ACK = "ACK"
    PROVISIONAL = "1xx"
    "To a client transaction: arrived. To a server transaction: the TU sends it. Also the next two."
    SUCCESS = "2xx"
    FAILURE = "300-699"
    GIVE_UP = "give up"
    "The TU has no answer to a non-INVITE request, and a 408 may not be sent (RFC 4320 §4.2)."
    RETRANSMIT = "retransmit"
    "The TU learned that the peer may hear us now."
    ABANDON = "abandon"
    CANCEL = "cancel"
    "A CANCEL was sent for the request."
    TRANSPORT_ERROR = "transport error"
    UNREACHABLE = "unreachable"
    "ICMP: nobody listens there."


class Send(Enum):
    """A message to put on the wire."""

    REQUEST = "Send request"
    RESPONSE = "Send response"
    "The last one the TU gave; nothing when it gave none."
    ACK = "Send ACK"
    "For the non-2xx final response that just arrived."


class Deliver(Enum):
    """Something to tell the transaction user."""

    MESSAGE = "Deliver"
    TIMEOUT = "Deliver timeout"
    TRANSPORT_ERROR = "Deliver transport error"


@dataclass(frozen=True, slots=True)
class SetTimer:
    """A timer to start."""

    timer: Timer
    at_t2: bool = False
    "Runs for T2, whatever it ran for before."
    after_t1: bool = False
    "Runs for what is left of it after T1, unless it runs already."

    @property
    def value(self) -> str:
        """As docs/transactions.md writes it."""
        how = "=T2" if self.at_t2 else "-T1" if self.after_t1 else ""
        return f"SetTimer {self.timer.value}{how}"


class Terminate(Enum):
    """The transaction is over: forget it."""

    TERMINATE = "Terminate"


TERMINATE: Final = Terminate.TERMINATE
Action = Send | Deliver | SetTimer | Terminate
Transport = Literal["any", "unreliable", "reliable"]


class Row(NamedTuple):
    """One transition."""

    state: State
    event: Event | Timer
    transport: Transport
    next_state: State
    actions: tuple[Action, ...] = ()


Transitions = dict[State, dict[Event | Timer, tuple[State, tuple[Action, ...]]]]


def transitions(rows: Iterable[Row], reliable: bool) -> Transitions:
    """The rows that hold on a reliable, or an unreliable, transport."""
    excluded = "unreliable" if reliable else "reliable"
    table: Transitions = {state: {} for state in State}
    for row in rows:
        if row.transport != excluded:
            table[row.state][row.event] = (row.next_state, row.actions)
    return table


class Machine:
    """One transaction's state, and the table that moves it."""

    __slots__ = ("_transitions", "state")

    _transitions: Transitions
    state: State

    def advance(self, event: Event | Timer) -> tuple[Action, ...]:
        """Take the transition for ``event``; returns what must be done, in order."""
        transition = self._transitions[self.state].get(event)
        if transition is None:
            return ()
        self.state, actions = transition
        return actions


def response_event(status: int) -> Event:
    """The event that a response with this status is."""
    if status < 200:
        return Event.PROVISIONAL
    return Event.SUCCESS if status < 300 else Event.FAILURE


def is_reliable(transport: str) -> bool:
    """Whether a transport (``UDP``, ``TCP``, …) delivers in order and without loss."""
    return transport != "UDP"


TransactionKey = str
"""Equal for two messages of one transaction (§17.1.3, §17.2.3): lines, the method first.

No part can hold the end of a line. A tuple of them would take three times the memory.
"""


def server_key(request: Request, via: Via, method: str) -> TransactionKey:
    """The server transaction of ``method`` that ``request``, with top Via ``via``, belongs to.

    ``method`` is INVITE for an ACK and for what a CANCEL cancels. Without an RFC 3261 branch the
    RFC 2543 rules hold, less the To tag: an INVITE has none where its ACK has the response's.
    """
    branch = via.branch
    cseq = request.cseq.number
    if branch.startswith(BRANCH_COOKIE):
        # Some phones answer a challenge in the branch of the challenged request. Without the CSeq
        # that would be its retransmission, and they would never get in.
        return f"{method}\n{branch}\n{via.sent_by.lower()}\n{cseq}"
    from_tag = request.from_.tag or ""
    sent_by = via.sent_by.lower()
    return f"{method}\n{request.uri}\n{request.call_id}\n{from_tag}\n{cseq}\n{sent_by}\n{branch}"


def client_key(response: Response, via: Via) -> TransactionKey:
    """The client transaction that ``response``, with top Via ``via``, answers (§17.1.3)."""
    return f"{response.cseq.method}\n{via.branch}"
