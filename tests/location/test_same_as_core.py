"""Whatever phones send, every store holds what ``core.location_update`` says."""

from __future__ import annotations

import secrets
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sipush.core.bindings import Binding, Location, PushRecord, Registration
from sipush.core.location_update import apply, live, without_push_record
from sipush.location.store import LocationStore
from tests.location.rows import NOW, binding, record

DEVICES = (
    "instance:a",
    "instance:a;1",
    "instance:a;2",
    "instance:b",
    "token:t",
    "token:u",
    "contact:k1",
)
CONTACTS = ("sip:k1", "sip:k2", "sip:k3")
TOKENS = ("", "t1", "t2")
FLOWS = ("udp/a/198.51.100.1:1", "tcp/a/198.51.100.2:1/7")

# Redis ages keys in real time, so lifetimes are long beside a test and the steps between them too.
LIFETIMES = (60, 120, 6000)
STEPS = (0.0, 0.25, 60.0, 119.5)

devices = st.sampled_from(DEVICES)
contacts = st.sampled_from(CONTACTS)
tokens = st.sampled_from(TOKENS)
flows = st.sampled_from(FLOWS)
lifetimes = st.sampled_from(LIFETIMES)


@st.composite
def registrations(draw: st.DrawFn) -> Registration:
    """A REGISTER at time 0; its rows expire after their ``expires_epoch``."""
    call_id, cseq = draw(st.sampled_from(("c1", "c2"))), draw(st.integers(1, 4))
    bindings = st.builds(
        lambda device, contact, seconds, flow: binding(
            device, contact, call_id=call_id, cseq=cseq, expires_epoch=seconds, flow=flow
        ),
        devices,
        contacts,
        lifetimes,
        flows,
    )
    records = st.builds(
        lambda device, call, message, app, dialect, seconds: record(
            device,
            call,
            message_token=message,
            app_id=app,
            dialect=dialect,
            expires_epoch=seconds,
        ),
        devices,
        tokens,
        tokens,
        st.sampled_from(("app1", "app2")),
        st.sampled_from(("X-Push", "rfc8599")),
        lifetimes,
    )
    return Registration(
        "",
        call_id,
        cseq,
        0.0,
        draw(st.integers(1, 3)),
        tuple(draw(st.lists(bindings, max_size=3))),
        tuple(draw(st.lists(st.tuples(devices, contacts), max_size=2))),
        draw(st.booleans()) and draw(st.booleans()),
        tuple(draw(st.lists(records, max_size=3))),
        tuple(draw(st.lists(st.tuples(devices, tokens), max_size=2))),
        unpushed=tuple(draw(st.lists(devices, max_size=2))),
        max_push_records=draw(st.integers(1, 4)),
        flow=draw(flows),
        replaceable=tuple(draw(st.lists(st.tuples(devices, flows), max_size=4))),
    )


@st.composite
def refreshes(draw: st.DrawFn) -> Registration:
    """The usual REGISTER: one contact and perhaps how its device is woken."""
    device, call_id, cseq = (
        draw(devices),
        draw(st.sampled_from(("c1", "c2"))),
        draw(st.integers(1, 4)),
    )
    row = binding(device, draw(contacts), call_id=call_id, cseq=cseq, expires_epoch=draw(lifetimes))
    push = record(device, draw(tokens), expires_epoch=draw(lifetimes))
    return Registration(
        "", call_id, cseq, 0.0, 2, (row,), push=draw(st.sampled_from(((), (push,))))
    )


def at(registration: Registration, aor: str, now: float) -> Registration:
    """The same REGISTER for ``aor`` at ``now``."""

    def moved(row: Binding) -> Binding:
        return replace(row, aor=aor, registered_epoch=now, expires_epoch=now + row.expires_epoch)

    def moved_record(row: PushRecord) -> PushRecord:
        return replace(row, aor=aor, updated_epoch=now, expires_epoch=now + row.expires_epoch)

    return replace(
        registration,
        aor=aor,
        now_epoch=now,
        bind=tuple(map(moved, registration.bind)),
        push=tuple(map(moved_record, registration.push)),
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(STEPS), refreshes() | registrations()), min_size=2, max_size=8
    )
)
async def test_any_sequence_of_registers_ends_alike(
    store: LocationStore, steps: list[tuple[float, Registration]]
):
    aor, now, expected = f"{secrets.token_hex(8)}@example.com", NOW, Location()
    for wait, step in steps:
        now += wait
        registration = at(step, aor, now)
        outcome = apply(expected, registration)
        assert await store.bind(registration) == outcome
        if isinstance(outcome, Location):
            expected = outcome
        found = await store.lookup(aor, now)
        assert found == live(expected.bindings, expected.push_records, now)
    for dead in expected.push_records[:1]:
        expected = without_push_record(expected, dead)
        assert await store.remove_push_record(dead)
        assert await store.lookup(aor, now) == live(expected.bindings, expected.push_records, now)
