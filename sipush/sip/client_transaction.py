"""The client transactions (RFC 3261 §17.1 as corrected by RFC 6026 §7.2).

Beyond the RFCs: ABANDONED; a stream that breaks fails a transaction in Proceeding too; a 2xx after
a non-2xx final is delivered (a forking proxy downstream may send both, §16.7 step 5).
"""

from __future__ import annotations

from typing import Final

from sipush.sip.grammar import split_outside
from sipush.sip.headers import Headers
from sipush.sip.message import Request, Response
from sipush.sip.timers import Timer
from sipush.sip.transaction import (
    TERMINATE,
    Deliver,
    Event,
    Machine,
    Row,
    Send,
    SetTimer,
    State,
    transitions,
)

_TIMED_OUT = (Deliver.TIMEOUT, TERMINATE)
_BROKEN = (Deliver.TRANSPORT_ERROR, TERMINATE)
_ACCEPT = (Deliver.MESSAGE, SetTimer(Timer.M))
_REJECT = (Send.ACK, Deliver.MESSAGE, SetTimer(Timer.D))
_REJECT_RELIABLE = (Send.ACK, Deliver.MESSAGE, TERMINATE)
#: Most requests are answered within T1: a timer less for each of them.
_REST_OF_B = SetTimer(Timer.B, after_t1=True)

INVITE_ROWS = (
    Row(State.INITIAL, Event.START, "unreliable", State.CALLING, (Send.REQUEST, SetTimer(Timer.A))),
    Row(State.INITIAL, Event.START, "reliable", State.CALLING, (Send.REQUEST, SetTimer(Timer.B))),
    Row(
        State.CALLING,
        Timer.A,
        "unreliable",
        State.CALLING,
        (Send.REQUEST, _REST_OF_B, SetTimer(Timer.A)),
    ),
    Row(State.CALLING, Event.RETRANSMIT, "any", State.CALLING, (Send.REQUEST,)),
    Row(State.CALLING, Event.ABANDON, "any", State.ABANDONED),
    Row(State.CALLING, Event.PROVISIONAL, "any", State.PROCEEDING, (Deliver.MESSAGE,)),
    Row(State.CALLING, Event.SUCCESS, "any", State.ACCEPTED, _ACCEPT),
    Row(State.CALLING, Event.FAILURE, "unreliable", State.COMPLETED, _REJECT),
    Row(State.CALLING, Event.FAILURE, "reliable", State.TERMINATED, _REJECT_RELIABLE),
    Row(State.CALLING, Timer.B, "any", State.TERMINATED, _TIMED_OUT),
    Row(State.CALLING, Event.TRANSPORT_ERROR, "any", State.TERMINATED, _BROKEN),
    Row(State.CALLING, Event.UNREACHABLE, "any", State.TERMINATED, _BROKEN),
    Row(State.ABANDONED, Event.PROVISIONAL, "any", State.PROCEEDING, (Deliver.MESSAGE,)),
    Row(State.ABANDONED, Event.SUCCESS, "any", State.ACCEPTED, _ACCEPT),
    Row(State.ABANDONED, Event.FAILURE, "unreliable", State.COMPLETED, _REJECT),
    Row(State.ABANDONED, Event.FAILURE, "reliable", State.TERMINATED, _REJECT_RELIABLE),
    Row(State.ABANDONED, Timer.A, "unreliable", State.ABANDONED, (_REST_OF_B,)),
    Row(State.ABANDONED, Timer.B, "any", State.TERMINATED, _TIMED_OUT),
    Row(State.ABANDONED, Event.TRANSPORT_ERROR, "any", State.TERMINATED, _BROKEN),
    Row(State.ABANDONED, Event.UNREACHABLE, "any", State.TERMINATED, _BROKEN),
    Row(State.PROCEEDING, Event.PROVISIONAL, "any", State.PROCEEDING, (Deliver.MESSAGE,)),
    Row(State.PROCEEDING, Event.CANCEL, "any", State.PROCEEDING, (SetTimer(Timer.CANCEL),)),
    Row(State.PROCEEDING, Event.SUCCESS, "any", State.ACCEPTED, _ACCEPT),
    Row(State.PROCEEDING, Event.FAILURE, "unreliable", State.COMPLETED, _REJECT),
    Row(State.PROCEEDING, Event.FAILURE, "reliable", State.TERMINATED, _REJECT_RELIABLE),
    Row(State.PROCEEDING, Timer.CANCEL, "any", State.TERMINATED, _TIMED_OUT),
    Row(State.PROCEEDING, Event.TRANSPORT_ERROR, "any", State.TERMINATED, _BROKEN),
    Row(State.COMPLETED, Event.FAILURE, "unreliable", State.COMPLETED, (Send.ACK,)),
    Row(State.COMPLETED, Event.SUCCESS, "unreliable", State.COMPLETED, (Deliver.MESSAGE,)),
    Row(State.COMPLETED, Event.TRANSPORT_ERROR, "unreliable", State.TERMINATED, (TERMINATE,)),
    Row(State.COMPLETED, Timer.D, "unreliable", State.TERMINATED, (TERMINATE,)),
    Row(State.ACCEPTED, Event.SUCCESS, "any", State.ACCEPTED, (Deliver.MESSAGE,)),
    Row(State.ACCEPTED, Timer.M, "any", State.TERMINATED, (TERMINATE,)),
)

_FINISH = (Deliver.MESSAGE, SetTimer(Timer.K))
_FINISH_RELIABLE = (Deliver.MESSAGE, TERMINATE)
_REST_OF_F = SetTimer(Timer.F, after_t1=True)
_RETRY_AT_T2 = (Send.REQUEST, _REST_OF_F, SetTimer(Timer.E, at_t2=True))

NON_INVITE_ROWS = (
    Row(State.INITIAL, Event.START, "unreliable", State.TRYING, (Send.REQUEST, SetTimer(Timer.E))),
    Row(State.INITIAL, Event.START, "reliable", State.TRYING, (Send.REQUEST, SetTimer(Timer.F))),
    Row(
        State.TRYING,
        Timer.E,
        "unreliable",
        State.TRYING,
        (Send.REQUEST, _REST_OF_F, SetTimer(Timer.E)),
    ),
    Row(State.TRYING, Event.RETRANSMIT, "any", State.TRYING, (Send.REQUEST,)),
    Row(State.TRYING, Event.ABANDON, "any", State.ABANDONED),
    Row(State.TRYING, Event.PROVISIONAL, "any", State.PROCEEDING, (Deliver.MESSAGE,)),
    Row(State.TRYING, Event.SUCCESS, "unreliable", State.COMPLETED, _FINISH),
    Row(State.TRYING, Event.FAILURE, "unreliable", State.COMPLETED, _FINISH),
    Row(State.TRYING, Event.SUCCESS, "reliable", State.TERMINATED, _FINISH_RELIABLE),
    Row(State.TRYING, Event.FAILURE, "reliable", State.TERMINATED, _FINISH_RELIABLE),
    Row(State.TRYING, Timer.F, "any", State.TERMINATED, _TIMED_OUT),
    Row(State.TRYING, Event.TRANSPORT_ERROR, "any", State.TERMINATED, _BROKEN),
    Row(State.TRYING, Event.UNREACHABLE, "any", State.TERMINATED, _BROKEN),
    Row(State.PROCEEDING, Timer.E, "unreliable", State.PROCEEDING, _RETRY_AT_T2),
    Row(State.PROCEEDING, Event.ABANDON, "any", State.ABANDONED),
    Row(State.PROCEEDING, Event.PROVISIONAL, "any", State.PROCEEDING, (Deliver.MESSAGE,)),
    Row(State.PROCEEDING, Event.SUCCESS, "unreliable", State.COMPLETED, _FINISH),
    Row(State.PROCEEDING, Event.FAILURE, "unreliable", State.COMPLETED, _FINISH),
    Row(State.PROCEEDING, Event.SUCCESS, "reliable", State.TERMINATED, _FINISH_RELIABLE),
    Row(State.PROCEEDING, Event.FAILURE, "reliable", State.TERMINATED, _FINISH_RELIABLE),
    Row(State.PROCEEDING, Timer.F, "any", State.TERMINATED, _TIMED_OUT),
    Row(State.PROCEEDING, Event.TRANSPORT_ERROR, "any", State.TERMINATED, _BROKEN),
    Row(State.ABANDONED, Event.TRANSPORT_ERROR, "any", State.TERMINATED, (TERMINATE,)),
    Row(State.ABANDONED, Timer.E, "unreliable", State.ABANDONED, (_REST_OF_F,)),
    Row(State.ABANDONED, Timer.F, "any", State.TERMINATED, (TERMINATE,)),
    Row(State.COMPLETED, Timer.K, "unreliable", State.TERMINATED, (TERMINATE,)),
)

_INVITE: Final = {reliable: transitions(INVITE_ROWS, reliable) for reliable in (False, True)}
_NON_INVITE: Final = {
    reliable: transitions(NON_INVITE_ROWS, reliable) for reliable in (False, True)
}


class ClientTransaction(Machine):
    """The state of one client transaction."""

    __slots__ = ()

    def __init__(self, method: str, reliable: bool) -> None:
        self._transitions = (_INVITE if method == "INVITE" else _NON_INVITE)[reliable]
        self.state = State.INITIAL


def make_ack(request: Request, response: Response) -> Request:
    """The ACK for a non-2xx final ``response`` to the INVITE ``request`` (§17.1.1.3)."""
    ack = _same_hop(request, "ACK")
    ack.headers.remove("to")
    ack.headers.extend(response.headers.lines("to")[:1])
    return ack


def make_cancel(request: Request, reason: str | None = None) -> Request:
    """The CANCEL for the INVITE ``request`` (§9.1), with a Reason header (RFC 3326) if given.

    Of several reasons each is in a line of its own, as phones expect that look at no more of one.
    """
    cancel = _same_hop(request, "CANCEL")
    for value in split_outside(reason or "", ","):
        if value:
            cancel.headers.append("Reason", value)
    return cancel


def _same_hop(request: Request, method: str) -> Request:
    """A request that goes where the INVITE went, in its transaction."""
    fields = [field for field in request.headers.fields if field[0] in _COPIED]
    headers = Headers([*request.headers.lines("via")[:1], *fields])
    headers.append("CSeq", f"{request.cseq.number} {method}")
    headers.append("Max-Forwards", "70")
    headers.append("Content-Length", "0")
    return Request(method, request.uri, headers)


_COPIED: Final = frozenset({"from", "to", "call-id", "route"})
