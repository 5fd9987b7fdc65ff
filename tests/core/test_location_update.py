"""A REGISTER goes the short way to where the long one ends; who makes room for one more."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipush.core.bindings import Location, PushRecord, Registration
from sipush.core.location_update import _apply, _only_device_refreshed, apply, replaceable
from tests.location.rows import NOW, binding, record, registration

devices = st.sampled_from(("instance:a",) * 9 + ("instance:a;1", "token:t"))
contacts = st.sampled_from(("sip:k1", "sip:k1", "sip:k2"))
call_ids = st.sampled_from(("c1", "c2"))
times = st.sampled_from((NOW + 60,) * 6 + (NOW - 60, NOW))
seldom = st.sampled_from((False,) * 15 + (True,))


def bindings(cseqs: st.SearchStrategy[int]) -> st.SearchStrategy:
    return st.builds(
        lambda device, contact, call_id, cseq, expires: binding(
            device, contact, call_id=call_id, cseq=cseq, expires_epoch=expires
        ),
        devices,
        contacts,
        call_ids,
        cseqs,
        times,
    )


records = st.builds(
    lambda device, token, dialect, expires: record(
        device, token, dialect=dialect, expires_epoch=expires
    ),
    devices,
    st.sampled_from(("", "t1", "t2")),
    st.sampled_from(("X-Push", "rfc8599")),
    times,
)


@st.composite
def locations(draw: st.DrawFn) -> Location:
    """A device has one row of each kind at most."""
    rows = draw(st.lists(bindings(st.integers(1, 3)), max_size=2, unique_by=lambda b: b.device))
    pushed = draw(st.lists(records, max_size=2, unique_by=lambda r: r.device))
    return Location(tuple(rows), tuple(pushed))


@st.composite
def registrations(draw: st.DrawFn) -> Registration:
    """Mostly one device with one push record."""
    bind = draw(st.lists(bindings(st.just(3)), min_size=1, max_size=2))[: 1 + draw(seldom)]
    return registration(
        *(replace(row, call_id=bind[0].call_id) for row in bind),
        push=tuple(draw(st.lists(records, max_size=2))[: 1 + draw(seldom)]),
        unbind=((draw(devices), draw(contacts)),) if draw(seldom) else (),
        unbind_all=draw(seldom),
        unpushed=(draw(devices),) if draw(seldom) else (),
        push_off=((draw(devices), "t1"),) if draw(seldom) else (),
        max_contacts=0 if draw(seldom) else 1,
        max_push_records=0 if draw(seldom) else 1,
    )


@settings(max_examples=200)
@given(locations(), registrations(), st.booleans())
def test_the_short_way_ends_where_the_long_one_does(
    location: Location, asked: Registration, messages: bool
) -> None:
    after, plainly = apply(location, asked, messages), _apply(location, asked, messages)
    assert after == plainly
    if isinstance(after, Location):
        assert isinstance(plainly, Location)
        assert after.has_come == plainly.has_come


def test_the_refresh_of_an_only_device_takes_the_short_way() -> None:
    before = Location((binding(cseq=1),), (record(token="old"),))
    asked = registration(binding(cseq=2), push=(record(token="new"),))
    after = Location(asked.bind, asked.push, messages=True)
    assert _only_device_refreshed(Location(), asked, messages=True) == after
    assert _only_device_refreshed(before, asked, messages=True) == after


def bound(*numbers: int) -> Location:
    """Phones that are known by their contacts; the higher, the later."""
    rows = [
        replace(binding(f"contact:{n}", f"sip:101@192.0.2.{n}"), registered_epoch=NOW + n)
        for n in numbers
    ]
    return Location(tuple(rows), (record("contact:2"),))


@pytest.mark.parametrize(
    ("existing", "push", "lost", "room"),
    [
        (False, (), (), []),
        (False, (), (3,), [3]),
        (False, (), (3, 2), [2, 3]),
        (True, (), (), [1, 3, 4]),
        (True, (), (4,), [4, 1, 3]),
        (True, (), (2,), [2, 1, 3, 4]),
        (True, (record("contact:9"),), (), [1, 2, 3, 4]),
    ],
    ids=[
        "refused",
        "one is lost",
        "two are lost",
        "none that can be woken, for one that cannot",
        "whoever is lost first",
        "also when it can be woken",
        "the oldest, for one that can be woken",
    ],
)
def test_who_makes_room_for_one_more(
    existing: bool, push: tuple[PushRecord, ...], lost: tuple[int, ...], room: list[int]
) -> None:
    location = bound(4, 3, 2, 1)
    asked = registration(binding("contact:9"), push=push)
    names = {f"contact:{n}" for n in lost}
    found = replaceable(location, asked, lambda row: row.device in names, existing=existing)
    assert [device for device, _ in found] == [f"contact:{n}" for n in room]
