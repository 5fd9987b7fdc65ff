"""The two machines of docs/messages.md against their tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sipush.core.messages import (
    Arrival,
    ArrivalAction,
    ArrivalState,
    Delivery,
    DeliveryAction,
    DeliveryState,
    Notify,
    Remove,
    Report,
    Respond,
    Send,
)
from sipush.core.stored_message import StoredMessage
from sipush.core.target_set import Target

DOCUMENT = Path(__file__).parents[2] / "docs" / "messages.md"
ONE = StoredMessage("bob@x", "k1", b"", 0.0, 60.0, 1)
TWO = replace(ONE, key="k2", id=2)
PHONE = Target("phone", "sip:bob@1.2.3.4", "tcp/1", live=True)
OTHER = Target("other", "sip:bob@5.6.7.8", "tcp/9", live=True)


def rows(title: str) -> list[tuple[str, ...]]:
    section = DOCUMENT.read_text().partition(f"## {title}")[2].partition("\n## ")[0]
    lines = [line.strip("| \n") for line in section.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.split("|")) for line in lines[2:]]


ARRIVALS = rows("A MESSAGE arrives")
DELIVERIES = rows("Stored messages are delivered")


def shown(actions: list[ArrivalAction] | list[DeliveryAction]) -> str:
    words = []
    for action in actions:
        name = type(action).__name__
        match action:
            case Respond(status):
                words.append(f"{name} {status}")
            case Notify(later=True):
                words.append(f"{name} later")
            case Send(message) | Remove(message) | Report(message):
                words.append(f"{name} {message.id}")
            case _:
                words.append(name)
    return ", ".join(words) or "-"


def feed_arrival(machine: Arrival, text: str) -> list[ArrivalAction]:
    match text.split():
        case ["kept", *repeated]:
            return machine.kept(repeated=bool(repeated))
        case ["full", *report]:
            return machine.full(is_report=bool(report))
        case ["store", "failed"]:
            return machine.store_failed()
        case ["probe", "timer"]:
            return machine.probe_expired()
        case ["second", status]:
            return machine.answered(1, int(status))
        case [status]:
            return machine.answered(0, int(status))
    raise ValueError(text)


def started(devices: str) -> tuple[Arrival, list[ArrivalAction]]:
    words = devices.split(", ")
    machine = Arrival("fleeting" not in words)
    awake = 2 if "two awake" in words else int("awake" in words)
    return machine, machine.start(awake, asleep="asleep" in words, waiting="waiting" in words)


ON_THE_WAY = {
    "trying": [],
    "keeping": ["probe timer"],
    "taken": ["probe timer", "200"],
    "kept": ["probe timer", "kept"],
    "finished": ["415"],
}


@pytest.mark.parametrize(
    ("devices", "state", "event", "becomes", "actions"),
    ARRIVALS,
    ids=["-".join(row[:3]) for row in ARRIVALS],
)
def test_each_row_of_the_arrival_of_a_message(
    devices: str, state: str, event: str, becomes: str, actions: str
) -> None:
    machine, done = started(devices)
    if state != "new":
        for step in ON_THE_WAY[state]:
            feed_arrival(machine, step)
        assert machine.state.value == state
        whole = {"kept, repeated": ["kept repeated"], "full, report": ["full report"]}
        steps = whole.get(event) or event.split(", ")
        done = [action for step in steps for action in feed_arrival(machine, step)]
    assert (machine.state.value, shown(done)) == (becomes, actions)


def feed_delivery(machine: Delivery, text: str, known: set[str]) -> list[DeliveryAction]:
    match text:
        case "registered":
            return machine.registered(PHONE, known)
        case "new flow":
            return machine.registered(replace(PHONE, flow="tcp/2"), known)
        case "other registered":
            return machine.registered(OTHER, known)
        case "stored":
            return machine.stored(PHONE, known)
        case "loaded nothing":
            return machine.loaded([])
        case "loaded 1 2":
            return machine.loaded([ONE, TWO])
        case "1 delivered":
            return machine.loaded([ONE, TWO], {ONE.key})
        case "store failed":
            return machine.store_failed()
        case "probe timer":
            return machine.probe_expired()
        case "1 taken late":
            return machine.taken(ONE)
        case "2 taken late":
            return machine.taken(TWO)
        case status:
            return machine.answered(int(status))


def brought_to(state: str, known: set[str]) -> Delivery:
    machine = Delivery()
    if state != "idle":
        machine.registered(PHONE, known)
    if state in ("sending", "sending last", "silent"):
        machine.loaded([ONE, TWO])
    if state == "sending last":
        machine.answered(200)
    if state == "silent":
        machine.probe_expired()
    return machine


@pytest.mark.parametrize(
    ("devices", "state", "event", "becomes", "actions"),
    DELIVERIES,
    ids=["-".join(row[:3]) for row in DELIVERIES],
)
def test_each_row_of_the_delivery_of_stored_messages(
    devices: str, state: str, event: str, becomes: str, actions: str
) -> None:
    known = {"phone", "other"} if devices == "shared" else {"phone"}
    machine = brought_to(state, known)
    whole = {"loaded 1, 2, 1 delivered before": "1 delivered", "loaded 1, 2": "loaded 1 2"}
    for words, step in (*whole.items(), ("registered, new", "new")):
        event = event.replace(words, step)
    steps = event.split(", ")
    done = [action for step in steps for action in feed_delivery(machine, step, known)]
    assert (machine.state.value, shown(done)) == (becomes, actions)


def test_every_state_is_in_its_table() -> None:
    arrival = {cell for row in ARRIVALS for cell in (row[1], row[3])} - {"new"}
    assert arrival == {state.value for state in ArrivalState}
    delivery = {row[3] for row in DELIVERIES}
    assert delivery == {state.value for state in DeliveryState}


def test_a_device_that_refused_a_message_is_not_asked_again() -> None:
    known = {"phone", "other"}
    machine = brought_to("sending", known)
    machine.answered(405)
    machine.answered(405)
    assert machine.state is DeliveryState.IDLE
    again = Delivery(machine.remembered)
    again.registered(PHONE, known)
    assert again.loaded([ONE, TWO]) == []
    again.registered(OTHER, known)
    assert again.loaded([ONE, TWO]) == [Send(ONE, OTHER)]


def test_a_refusal_on_one_flow_is_that_of_the_instance() -> None:
    flows = [replace(PHONE, device=f"instance:urn:uuid:1;{n}") for n in (1, 2)]
    known = {flow.device for flow in flows}
    machine = Delivery()
    machine.registered(flows[0], known)
    machine.registered(flows[1], known)
    machine.loaded([ONE, TWO])
    assert shown(machine.answered(415)) == "Report 1, Remove 1, Send 2"
    assert machine.sent == Send(TWO, flows[0])


def test_refusals_of_messages_that_are_gone_are_forgotten() -> None:
    known = {"phone", "other"}
    machine = brought_to("sending", known)
    machine.answered(405)
    again = Delivery(machine.remembered)
    again.registered(PHONE, known)
    again.loaded([TWO])
    assert not again.remembered


def test_a_message_that_cannot_be_removed_is_not_delivered_again() -> None:
    machine = brought_to("sending", {"phone"})
    assert shown(machine.answered(200)) == "Remove 1, Send 2"
    machine.not_removed(ONE)
    assert shown(machine.answered(200)) == "Remove 2, Load"
    machine.not_removed(TWO)
    assert shown(machine.loaded([ONE, TWO])) == "Remove 1, Remove 2"
    assert machine.state is DeliveryState.IDLE
    again = Delivery(machine.remembered)
    again.registered(PHONE, {"phone"})
    assert shown(again.loaded([TWO])) == "Remove 2"
    again.registered(PHONE, {"phone"})
    assert again.loaded([]) == []
    assert not again.remembered


def test_messages_keep_their_order_and_each_is_removed_once() -> None:
    machine = Delivery()
    done = [*machine.registered(PHONE, {"phone"}), *machine.loaded([ONE, TWO])]
    done += [*machine.answered(200), *machine.answered(200), *machine.loaded([])]
    assert shown(done) == "Load, Send 1, Remove 1, Send 2, Remove 2, Load"
