"""The server transactions (RFC 3261 §17.2 as corrected by RFC 6026 §7.1 and RFC 4320).

A server transaction begins with its request already delivered, so neither table has a row for it.
"""

from __future__ import annotations

from typing import Final

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

INVITE_ROWS = (
    Row(State.PROCEEDING, Event.REQUEST, "any", State.PROCEEDING, (Send.RESPONSE,)),
    Row(State.PROCEEDING, Event.PROVISIONAL, "any", State.PROCEEDING, (Send.RESPONSE,)),
    Row(
        State.PROCEEDING,
        Event.SUCCESS,
        "any",
        State.ACCEPTED,
        (Send.RESPONSE, SetTimer(Timer.L)),
    ),
    Row(
        State.PROCEEDING,
        Event.FAILURE,
        "unreliable",
        State.COMPLETED,
        (Send.RESPONSE, SetTimer(Timer.G), SetTimer(Timer.H)),
    ),
    Row(
        State.PROCEEDING,
        Event.FAILURE,
        "reliable",
        State.COMPLETED,
        (Send.RESPONSE, SetTimer(Timer.H)),
    ),
    Row(State.COMPLETED, Event.REQUEST, "any", State.COMPLETED, (Send.RESPONSE,)),
    Row(
        State.COMPLETED,
        Timer.G,
        "unreliable",
        State.COMPLETED,
        (Send.RESPONSE, SetTimer(Timer.G)),
    ),
    Row(State.COMPLETED, Event.ACK, "unreliable", State.CONFIRMED, (SetTimer(Timer.I),)),
    Row(State.COMPLETED, Event.ACK, "reliable", State.TERMINATED, (TERMINATE,)),
    Row(State.COMPLETED, Timer.H, "any", State.TERMINATED, (TERMINATE,)),
    Row(State.CONFIRMED, Timer.I, "unreliable", State.TERMINATED, (TERMINATE,)),
    Row(State.ACCEPTED, Event.SUCCESS, "any", State.ACCEPTED, (Send.RESPONSE,)),
    Row(State.ACCEPTED, Event.ACK, "any", State.ACCEPTED, (Deliver.MESSAGE,)),
    Row(State.ACCEPTED, Timer.L, "any", State.TERMINATED, (TERMINATE,)),
)

NON_INVITE_ROWS = (
    Row(State.TRYING, Event.PROVISIONAL, "any", State.PROCEEDING, (Send.RESPONSE,)),
    Row(
        State.TRYING,
        Event.SUCCESS,
        "unreliable",
        State.COMPLETED,
        (Send.RESPONSE, SetTimer(Timer.J)),
    ),
    Row(
        State.TRYING,
        Event.FAILURE,
        "unreliable",
        State.COMPLETED,
        (Send.RESPONSE, SetTimer(Timer.J)),
    ),
    Row(State.TRYING, Event.SUCCESS, "reliable", State.TERMINATED, (Send.RESPONSE, TERMINATE)),
    Row(State.TRYING, Event.FAILURE, "reliable", State.TERMINATED, (Send.RESPONSE, TERMINATE)),
    Row(State.TRYING, Event.GIVE_UP, "any", State.TERMINATED, (TERMINATE,)),
    Row(State.PROCEEDING, Event.REQUEST, "any", State.PROCEEDING, (Send.RESPONSE,)),
    Row(State.PROCEEDING, Event.PROVISIONAL, "any", State.PROCEEDING, (Send.RESPONSE,)),
    Row(
        State.PROCEEDING,
        Event.SUCCESS,
        "unreliable",
        State.COMPLETED,
        (Send.RESPONSE, SetTimer(Timer.J)),
    ),
    Row(
        State.PROCEEDING,
        Event.FAILURE,
        "unreliable",
        State.COMPLETED,
        (Send.RESPONSE, SetTimer(Timer.J)),
    ),
    Row(State.PROCEEDING, Event.SUCCESS, "reliable", State.TERMINATED, (Send.RESPONSE, TERMINATE)),
    Row(State.PROCEEDING, Event.FAILURE, "reliable", State.TERMINATED, (Send.RESPONSE, TERMINATE)),
    Row(State.PROCEEDING, Event.GIVE_UP, "any", State.TERMINATED, (TERMINATE,)),
    Row(State.PROCEEDING, Event.TRANSPORT_ERROR, "any", State.TERMINATED, (TERMINATE,)),
    Row(State.COMPLETED, Event.REQUEST, "unreliable", State.COMPLETED, (Send.RESPONSE,)),
    Row(State.COMPLETED, Event.TRANSPORT_ERROR, "unreliable", State.TERMINATED, (TERMINATE,)),
    Row(State.COMPLETED, Timer.J, "unreliable", State.TERMINATED, (TERMINATE,)),
)

_INVITE: Final = {reliable: transitions(INVITE_ROWS, reliable) for reliable in (False, True)}
_NON_INVITE: Final = {
    reliable: transitions(NON_INVITE_ROWS, reliable) for reliable in (False, True)
}


class ServerTransaction(Machine):
    """The state of one server transaction."""

    __slots__ = ()

    def __init__(self, method: str, reliable: bool) -> None:
        if method == "INVITE":
            self._transitions, self.state = _INVITE[reliable], State.PROCEEDING
        else:
            self._transitions, self.state = _NON_INVITE[reliable], State.TRYING
