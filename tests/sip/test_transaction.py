"""The four machines do what docs/transactions.md says, and nothing else."""

from typing import NamedTuple

import pytest

from sipush.sip import client_transaction, server_transaction
from sipush.sip.client_transaction import ClientTransaction
from sipush.sip.server_transaction import ServerTransaction
from sipush.sip.timers import Timer
from sipush.sip.transaction import TERMINATE, Event, Row, Send, SetTimer, State
from tests.sip.transition_table import (
    DocumentedRow,
    assert_row_does_not_hold,
    assert_row_holds,
    coded_rows,
    documented_rows,
)


class Kind(NamedTuple):
    heading: str
    machine: type[ClientTransaction] | type[ServerTransaction]
    method: str
    rows: tuple[Row, ...]


KINDS = [
    Kind("INVITE client", ClientTransaction, "INVITE", client_transaction.INVITE_ROWS),
    Kind("Non-INVITE client", ClientTransaction, "MESSAGE", client_transaction.NON_INVITE_ROWS),
    Kind("INVITE server", ServerTransaction, "INVITE", server_transaction.INVITE_ROWS),
    Kind("Non-INVITE server", ServerTransaction, "MESSAGE", server_transaction.NON_INVITE_ROWS),
]
DOCUMENTED = [(kind, row) for kind in KINDS for row in documented_rows(kind.heading)]
CODED = [(kind, row) for kind in KINDS for row in kind.rows]
TIMERS_THAT_RETRANSMIT = {Timer.A, Timer.E, Timer.G}

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.heading)


def name(value: Kind | DocumentedRow | Row) -> str:
    return value.heading if isinstance(value, Kind) else str(value)


@pytest.mark.parametrize(("kind", "row"), DOCUMENTED, ids=name)
def test_every_documented_transition_is_taken(kind: Kind, row: DocumentedRow) -> None:
    for reliable in (False, True):
        machine = kind.machine(kind.method, reliable)
        if row.transport in ("any", "reliable" if reliable else "unreliable"):
            assert_row_holds(machine, row)
        else:
            assert_row_does_not_hold(machine, row)


@each_kind
def test_code_and_document_hold_the_same_rows(kind: Kind) -> None:
    assert coded_rows(kind.rows) == documented_rows(kind.heading)


@each_kind
def test_no_two_rows_answer_the_same_question(kind: Kind) -> None:
    for transport in ("unreliable", "reliable"):
        asked = [(row.state, row.event) for row in kind.rows if row.transport in ("any", transport)]
        assert len(asked) == len(set(asked))


@pytest.mark.parametrize(("kind", "row"), CODED, ids=name)
def test_a_send_precedes_the_timer_that_repeats_it_and_terminate_comes_last(
    kind: Kind, row: Row
) -> None:
    for i, action in enumerate(row.actions):
        if isinstance(action, SetTimer) and action.timer in TIMERS_THAT_RETRANSMIT:
            assert any(isinstance(earlier, Send) for earlier in row.actions[:i])
    assert (row.next_state is State.TERMINATED) == (TERMINATE in row.actions)
    assert TERMINATE not in row.actions[:-1]


@each_kind
@pytest.mark.parametrize("reliable", [False, True])
def test_nothing_happens_after_the_end(kind: Kind, reliable: bool) -> None:
    machine = kind.machine(kind.method, reliable)
    machine.state = State.TERMINATED
    for event in [*Event, *Timer]:
        assert machine.advance(event) == ()
