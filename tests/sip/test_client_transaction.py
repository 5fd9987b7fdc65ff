import pytest

from sipush.sip.client_transaction import INVITE_ROWS, NON_INVITE_ROWS, ClientTransaction
from sipush.sip.timers import Timer
from sipush.sip.transaction import TERMINATE, Event, Row, Send, SetTimer, State
from tests.sip.transition_table import (
    DocumentedRow,
    assert_row_does_not_hold,
    assert_row_holds,
    coded_rows,
    documented_rows,
)

INVITE = documented_rows("INVITE client")
NON_INVITE = documented_rows("Non-INVITE client")
ALL_ROWS = [("INVITE", row) for row in INVITE] + [("MESSAGE", row) for row in NON_INVITE]
TIMERS_THAT_RETRANSMIT = {Timer.A, Timer.E, Timer.G}


@pytest.mark.parametrize(("method", "row"), ALL_ROWS, ids=str)
def test_every_documented_transition_is_taken(method: str, row: DocumentedRow) -> None:
    for reliable in (False, True):
        machine = ClientTransaction(method, reliable)
        if row.transport in ("any", "reliable" if reliable else "unreliable"):
            assert_row_holds(machine, row)
        else:
            assert_row_does_not_hold(machine, row)


@pytest.mark.parametrize(
    ("documented", "coded"), [(INVITE, INVITE_ROWS), (NON_INVITE, NON_INVITE_ROWS)], ids=str
)
def test_code_and_document_hold_the_same_rows(
    documented: list[DocumentedRow], coded: tuple[Row, ...]
) -> None:
    assert coded_rows(coded) == documented


@pytest.mark.parametrize("rows", [INVITE_ROWS, NON_INVITE_ROWS], ids=["INVITE", "other"])
def test_no_two_rows_answer_the_same_question(rows: tuple[Row, ...]) -> None:
    for transport in ("unreliable", "reliable"):
        asked = [(row.state, row.event) for row in rows if row.transport in ("any", transport)]
        assert len(asked) == len(set(asked))


@pytest.mark.parametrize("row", INVITE_ROWS + NON_INVITE_ROWS, ids=str)
def test_a_send_precedes_the_timer_that_repeats_it_and_terminate_comes_last(row: Row) -> None:
    for i, action in enumerate(row.actions):
        if isinstance(action, SetTimer) and action.timer in TIMERS_THAT_RETRANSMIT:
            assert any(isinstance(earlier, Send) for earlier in row.actions[:i])
    assert (row.next_state is State.TERMINATED) == (TERMINATE in row.actions)
    assert TERMINATE not in row.actions[:-1]


@pytest.mark.parametrize("method", ["INVITE", "MESSAGE"])
@pytest.mark.parametrize("reliable", [False, True])
def test_nothing_happens_after_the_end(method: str, reliable: bool) -> None:
    machine = ClientTransaction(method, reliable)
    machine.state = State.TERMINATED
    for event in [*Event, *Timer]:
        assert machine.advance(event) == ()
