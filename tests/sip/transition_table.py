"""Reads the state tables of docs/transactions.md."""

from pathlib import Path
from typing import NamedTuple

from sipush.sip.timers import Timer
from sipush.sip.transaction import Event, Machine, Row, State

_DOCUMENT = Path(__file__).parents[2] / "docs" / "transactions.md"


class DocumentedRow(NamedTuple):
    state: str
    event: str
    transport: str
    next_state: str
    actions: tuple[str, ...]


def documented_rows(heading: str) -> list[DocumentedRow]:
    """The rows of the table under ``## heading``."""
    section = _DOCUMENT.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [
        DocumentedRow(
            state, event, transport, after, () if actions == "-" else tuple(actions.split(", "))
        )
        for state, event, transport, after, actions in cells
    ]


def coded_rows(rows: tuple[Row, ...]) -> list[DocumentedRow]:
    """The rows of a table in code, written as the document writes them."""
    return [
        DocumentedRow(
            row.state.value,
            f"timer {row.event.value}" if isinstance(row.event, Timer) else row.event.value,
            row.transport,
            row.next_state.value,
            tuple(action.value for action in row.actions),
        )
        for row in rows
    ]


def event_named(name: str) -> Event | Timer:
    return Timer(name.removeprefix("timer ")) if name.startswith("timer ") else Event(name)


def assert_row_holds(machine: Machine, row: DocumentedRow) -> None:
    """``machine``, put into the row's state, does what the row says."""
    machine.state = State(row.state)
    actions = machine.advance(event_named(row.event))
    assert machine.state.value == row.next_state
    assert tuple(action.value for action in actions) == row.actions


def assert_row_does_not_hold(machine: Machine, row: DocumentedRow) -> None:
    """On the other transport this row's event leads elsewhere, or nowhere."""
    machine.state = State(row.state)
    actions = machine.advance(event_named(row.event))
    assert (machine.state.value, tuple(action.value for action in actions)) != (
        row.next_state,
        row.actions,
    )
