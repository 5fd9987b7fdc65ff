"""What every LocationStore does."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from sipush.core.bindings import Location, Platform, Refusal, Registration, Subscriber
from sipush.location.store import LocationStore
from tests.location.rows import (
    AOR,
    NOW,
    PHONE,
    TABLET,
    binding,
    message,
    record,
    registration,
)


async def test_an_unknown_aor_has_nothing(store: LocationStore):
    assert await store.lookup(AOR, NOW) == Location()


async def test_what_is_bound_is_answered_and_found(store: LocationStore):
    bound = await store.bind(registration(binding(), push=(record(),)))
    assert bound == Location((binding(),), (record(),))
    assert await store.lookup(AOR, NOW) == bound


async def test_every_field_comes_back_as_it_went_in(store: LocationStore):
    odd = 'Ünï "quoted" \\ {brace} \N{SNOWMAN}\N{PILE OF POO} \x01 latin-1:\udce9'
    row = binding(
        odd,
        contact="sip:" + odd,
        contact_key="key:" + odd,
        aor=odd,
        call_id=odd,
        cseq=2**31 - 1,
        flow=odd,
        params=f';+sip.instance="{odd}"',
        path=("<sip:a;lr>", odd),
        user_agent=odd,
        registered_epoch=NOW + 0.123456,
        expires_epoch=NOW + 0.654321,
    )
    push = record(
        odd,
        odd,
        aor=odd,
        platform=Platform.WEBHOOK,
        app_id=odd,
        message_token="",
        allow_call=False,
        allow_message=False,
        dialect=odd,
        extra={"pn-param": odd, odd: ""},
    )
    await store.bind(registration(row, push=(push,)))
    assert await store.lookup(odd, NOW) == Location((row,), (push,))
    assert [aor async for aor in store.aors()] == [odd]


async def test_of_a_register_is_told_whether_a_device_came_with_it(store: LocationStore):
    async def has_come(cseq: int, device: str = PHONE, **changes: object) -> bool:
        row = binding(device, f"sip:{device}", cseq=cseq)
        bound = await store.bind(registration(row, **changes))
        assert isinstance(bound, Location)
        return bound.has_come

    assert await has_come(1) is True
    assert await has_come(2, push=(record(),)) is False
    assert await has_come(3, TABLET) is True
    assert await has_come(4) is False
    assert await has_come(5, TABLET, unbind=((PHONE, ""),)) is False
    assert await has_come(6) is True


async def test_what_was_told_last_is_known_without_asking(store: LocationStore):
    assert store.last_known(AOR) in (None, Location())
    for cseq in (1, 2):
        bound = await store.bind(registration(binding(cseq=cseq), push=(record(),)))
        assert store.last_known(AOR) == bound
    after = await store.bind(registration(unbind=((PHONE, ""),), cseq=3))
    assert store.last_known(AOR) == after == Location((), (record(),))
    assert await store.lookup(AOR, NOW) == after


async def test_a_refresh_from_a_new_port_replaces_the_dead_contact(store: LocationStore):
    await store.bind(registration(binding()))
    fresh = binding(contact="sip:101@192.0.2.1:49152", cseq=2)
    assert await store.bind(registration(fresh)) == Location((fresh,))


async def test_a_refresh_without_push_keeps_the_push_record(store: LocationStore):
    await store.bind(registration(binding(), push=(record(),)))
    bound = await store.bind(registration(binding(cseq=2)))
    assert bound == Location((binding(cseq=2),), (record(),))


async def test_a_device_known_by_contact_is_replaced_with_its_push_record(store: LocationStore):
    old = binding("contact:sip:101@192.0.2.1:5060")
    await store.bind(registration(old, push=(record(old.device, "old-token"),)))
    bound = await store.bind(registration(binding(cseq=2), push=(record(),)))
    assert bound == Location((binding(cseq=2),), (record(),))


async def test_two_instances_behind_one_address_are_two_devices(store: LocationStore):
    await store.bind(registration(binding()))
    both = await store.bind(registration(binding(TABLET, call_id="call-2")))
    assert isinstance(both, Location)
    assert {b.device for b in both.bindings} == {PHONE, TABLET}


FIRST_NAT, SECOND_NAT = "udp/a/198.51.100.1:4000", "udp/a/198.51.100.2:4000"


async def test_two_tokens_with_one_private_address_behind_two_nats_are_two_phones(
    store: LocationStore,
):
    phones = [
        binding(f"token:{n}", "sip:101@192.0.0.4", call_id=f"call-{n}", flow=flow)
        for n, flow in ((1, FIRST_NAT), (2, SECOND_NAT))
    ]
    for phone in phones:
        bound = await store.bind(registration(phone, push=(record(phone.device, phone.device),)))
    assert isinstance(bound, Location)
    assert [b.device for b in bound.bindings] == ["token:1", "token:2"]
    assert [r.device for r in bound.push_records] == ["token:1", "token:2"]
    gone = registration(unbind=(("token:2", "sip:101@192.0.0.4"),), cseq=2, flow=SECOND_NAT)
    bound = await store.bind(gone)
    assert isinstance(bound, Location)
    assert [b.device for b in bound.bindings] == ["token:1"]


@pytest.mark.parametrize("old", ["token:old", "contact:sip:101@192.0.0.4"])
async def test_a_phone_with_a_new_token_from_the_same_host_is_the_same(
    store: LocationStore, old: str
):
    before = binding(old, "sip:101@192.0.0.4", flow=FIRST_NAT)
    await store.bind(registration(before, push=(record(old, "old"),)))
    fresh = binding(
        "token:new", "sip:101@192.0.0.4", flow=FIRST_NAT.replace("4000", "5000"), cseq=2
    )
    new = record("token:new", "new")
    assert await store.bind(registration(fresh, push=(new,))) == Location((fresh,), (new,))
    await store.bind(registration(before, push=(record(old, "old"),), call_id="call-2"))
    gone = registration(unbind=((fresh.device, fresh.contact_key),), call_id="call-2", cseq=2)
    bound = await store.bind(replace(gone, flow=FIRST_NAT))
    assert isinstance(bound, Location)
    assert bound.bindings == ()


async def test_the_newest_registration_comes_first(store: LocationStore):
    await store.bind(registration(binding(), push=(record(),)))
    newer = binding(TABLET, "sip:101@192.0.2.2", registered_epoch=NOW + 5)
    tablet = record(TABLET, "other", updated_epoch=NOW + 5)
    bound = await store.bind(registration(newer, push=(tablet,)))
    assert bound == Location((newer, binding()), (tablet, record()))


async def test_an_older_cseq_of_the_same_call_id_is_refused(store: LocationStore):
    before = await store.bind(registration(binding(cseq=5), push=(record(),)))
    late = registration(binding(cseq=4), push=(record(token="late"),), push_off=((PHONE, ""),))
    assert await store.bind(late) is Refusal.OUT_OF_ORDER
    assert await store.lookup(AOR, NOW) == before


@pytest.mark.parametrize(
    "late",
    [
        registration(unbind=((PHONE, ""),)),
        registration(unbind=(("contact:other", "sip:101@192.0.2.1:5060"),)),
        registration(unbind_all=True),
        registration(binding(TABLET), binding()),
        registration(binding("token:t")),
    ],
    ids=["by device", "by contact", "all", "one of two", "other device, same contact"],
)
async def test_an_older_cseq_is_refused_wherever_it_touches(store: LocationStore, late):
    before = await store.bind(registration(binding(cseq=5)))
    assert await store.bind(late) is Refusal.OUT_OF_ORDER
    assert await store.lookup(AOR, NOW) == before


@pytest.mark.parametrize(
    "call_id", ['"', "\\", '\\", "cseq": 9, "', '", "cseq": 1, "', "\udce9\x01", "(.-)%"]
)
async def test_an_older_cseq_is_refused_whatever_the_call_id_looks_like(
    store: LocationStore, call_id: str
):
    before = await store.bind(registration(binding(cseq=5, call_id=call_id), push=(record(),)))
    late = registration(binding(cseq=4, call_id=call_id), push=(record(),))
    assert await store.bind(late) is Refusal.OUT_OF_ORDER
    assert await store.lookup(AOR, NOW) == before
    newer = binding(cseq=10, call_id=call_id)
    assert await store.bind(registration(newer, push=(record(),))) == Location(
        (newer,), (record(),)
    )


async def test_an_older_cseq_that_touches_another_device_is_accepted(store: LocationStore):
    await store.bind(registration(binding(cseq=5)))
    bound = await store.bind(registration(binding(TABLET, "sip:101@192.0.2.2", cseq=1)))
    assert isinstance(bound, Location)
    assert len(bound.bindings) == 2


@pytest.mark.parametrize(
    "other",
    [
        registration(binding(contact="sip:101@192.0.2.1:49152")),
        registration(binding("token:t")),
        registration(unbind=((PHONE, ""),)),
        registration(unbind_all=True),
    ],
    ids=["another contact", "another device", "removed", "all removed"],
)
async def test_an_equal_cseq_is_refused_for_anything_but_the_same_again(
    store: LocationStore, other
):
    before = await store.bind(registration(binding(), push=(record(),)))
    assert await store.bind(other) is Refusal.OUT_OF_ORDER
    assert await store.lookup(AOR, NOW) == before


async def test_a_retransmission_may_take_back_the_old_contact_again(store: LocationStore):
    moved = binding(contact="sip:101@192.0.2.1:2222", cseq=2)
    change = registration(moved, unbind=((PHONE, "sip:101@192.0.2.1:5060"),))
    await store.bind(registration(binding()))
    once = await store.bind(change)
    assert once == Location((moved,))
    assert await store.bind(change) == once


async def test_a_retransmission_gets_the_same_answer_again(store: LocationStore):
    once = await store.bind(registration(binding(), push=(record(),)))
    assert await store.bind(registration(binding(), push=(record(),))) == once


async def test_a_phone_that_restarted_has_a_new_call_id_and_may_count_anew(store: LocationStore):
    await store.bind(registration(binding(cseq=500)))
    fresh = binding(call_id="call-2", cseq=1)
    assert await store.bind(registration(fresh)) == Location((fresh,))


@pytest.mark.parametrize(
    "changes",
    [
        {"unbind": ((PHONE, ""),)},
        {"unbind": (("contact:?", "sip:101@192.0.2.1:5060"),)},
        {"unbind_all": True},
    ],
    ids=["by device", "by contact", "all"],
)
async def test_a_push_record_outlives_the_unregister(store: LocationStore, changes):
    await store.bind(registration(binding(), push=(record(),)))
    gone = await store.bind(registration(cseq=2, **changes))
    assert gone == Location((), (record(),))
    assert await store.lookup(AOR, NOW) == gone


@pytest.mark.parametrize("dialect", ["rfc8599", "linphone"])
@pytest.mark.parametrize(
    "changes",
    [
        {"unbind": ((PHONE, ""),)},
        {"unbind": (("contact:?", "sip:101@192.0.2.1:5060"),)},
        {"unbind_all": True},
    ],
    ids=["by device", "by contact", "all"],
)
async def test_a_push_record_of_the_contact_uri_goes_with_its_binding(
    store: LocationStore, dialect, changes
):
    tablet, its_record = binding(TABLET, "sip:101@192.0.2.2"), record(TABLET, "other")
    phones_record = record(dialect=dialect)
    await store.bind(registration(binding(), tablet, push=(phones_record, its_record)))
    gone = await store.bind(registration(cseq=2, **changes))
    assert isinstance(gone, Location)
    assert gone.push_records == (its_record,)
    assert await store.lookup(AOR, NOW) == gone


async def test_it_goes_as_well_when_the_binding_has_expired(store: LocationStore):
    of_uri = record(dialect="rfc8599")
    for goodbye in ({"unbind": ((PHONE, ""),)}, {"unbind_all": True}):
        await store.bind(registration(push=(of_uri,)))
        assert await store.bind(registration(**goodbye)) == Location()


async def test_it_stays_until_the_last_flow_of_the_instance_goes(store: LocationStore):
    second = PHONE[:-1] + "2"
    flows = binding(), binding(second, "sip:101@192.0.2.1:5062", call_id="call-2")
    await store.bind(registration(flows[0], push=(record(dialect="rfc8599"),)))
    await store.bind(registration(flows[1]))
    first_gone = await store.bind(registration(cseq=2, unbind=((PHONE, ""),)))
    assert first_gone == Location((flows[1],), (record(dialect="rfc8599"),))
    second_gone = registration(call_id="call-2", cseq=2, unbind=((second, ""),))
    assert await store.bind(second_gone) == Location()


async def test_it_stays_when_the_device_moves_in_one_register(store: LocationStore):
    await store.bind(registration(binding(), push=(record(dialect="rfc8599"),)))
    moved = binding(contact="sip:101@192.0.2.1:2222", cseq=2)
    change = registration(moved, unbind=((PHONE, "sip:101@192.0.2.1:5060"),))
    assert await store.bind(change) == Location((moved,), (record(dialect="rfc8599"),))


async def test_it_goes_when_the_device_asks_for_push_no_more(store: LocationStore):
    await store.bind(registration(binding(), push=(record(dialect="rfc8599"),)))
    without = registration(binding(cseq=2), unpushed=(PHONE,))
    assert await store.bind(without) == Location((binding(cseq=2),))


async def test_a_push_record_of_a_header_stays_when_a_refresh_comes_without(store: LocationStore):
    await store.bind(registration(binding(), push=(record(),)))
    without = registration(binding(cseq=2), unpushed=(PHONE,))
    assert await store.bind(without) == Location((binding(cseq=2),), (record(),))


async def test_old_and_new_contact_in_one_register_are_applied_together(store: LocationStore):
    old = binding("contact:old", "sip:101@192.0.2.1:1111")
    new = binding("contact:new", "sip:101@192.0.2.1:2222", cseq=2)
    await store.bind(registration(old))
    change = registration(new, unbind=((old.device, old.contact_key),), max_contacts=1)
    assert await store.bind(change) == Location((new,))


@pytest.mark.parametrize("off", [(PHONE, ""), ("token:?", "voip-token"), ("?", "alert-voip-token")])
async def test_push_off_forgets_the_push_record(store: LocationStore, off):
    tablet = record(TABLET, "other")
    await store.bind(registration(binding(), push=(record(), tablet)))
    bound = await store.bind(registration(binding(cseq=2), push_off=(off,)))
    assert bound == Location((binding(cseq=2),), (tablet,))


async def test_push_off_with_an_empty_token_does_not_match_empty_tokens(store: LocationStore):
    silent = record(token="", message_token="")
    await store.bind(registration(binding(), push=(silent,)))
    bound = await store.bind(registration(binding(cseq=2), push_off=((TABLET, ""),)))
    assert bound == Location((binding(cseq=2),), (silent,))


async def test_a_new_token_replaces_the_old_one(store: LocationStore):
    await store.bind(registration(binding(), push=(record(),)))
    bound = await store.bind(registration(binding(cseq=2), push=(record(token="new"),)))
    assert bound == Location((binding(cseq=2),), (record(token="new"),))


async def test_a_token_belongs_to_the_last_device_that_brought_it(store: LocationStore):
    await store.bind(registration(binding(), push=(record(),)))
    bound = await store.bind(registration(push=(record(TABLET),)))
    assert bound == Location((binding(),), (record(TABLET),))


async def test_of_two_new_records_with_the_same_tokens_the_last_stays(store: LocationStore):
    bound = await store.bind(registration(binding(), push=(record(), record(TABLET))))
    assert bound == Location((binding(),), (record(TABLET),))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("old1", "old2"), ("new1", "old2")),
        (("old1", "old2"), ("old1", "new2")),
        (("", "bb22"), ("aa11", "bb22")),
        (("aa11", "bb22"), ("", "bb22")),
        (("aa11", "bb22"), ("bb22", "")),
    ],
)
async def test_a_phone_of_which_one_token_is_new_is_not_woken_by_the_old_record_too(
    store: LocationStore, old: tuple[str, str], new: tuple[str, str]
):
    """Without an instance it is another device: its key is a token, and its port has changed."""
    before = record("token:old", old[0], message_token=old[1])
    await store.bind(registration(binding("token:old"), push=(before,)))
    moved = binding("token:new", "sip:101@192.0.2.1:49152", cseq=2)
    fresh = record("token:new", new[0], message_token=new[1])
    bound = await store.bind(registration(moved, push=(fresh,)))
    assert isinstance(bound, Location)
    assert bound.push_records == (fresh,)
    assert (await store.lookup(AOR, NOW)).push_records == (fresh,)


async def test_two_phones_without_a_token_for_calls_are_two(store: LocationStore):
    one, other = (record(n, "", message_token=n) for n in ("token:1", "token:2"))
    bound = await store.bind(registration(push=(one, other)))
    assert bound == Location((), (one, other))


async def test_the_same_token_of_another_app_is_another_token(store: LocationStore):
    other = record(TABLET, app_id="com.example.other")
    bound = await store.bind(registration(binding(), push=(record(), other)))
    assert isinstance(bound, Location)
    assert len(bound.push_records) == 2


async def test_one_contact_too_many_is_refused_and_nothing_changes(store: LocationStore):
    before = await store.bind(registration(binding(), push=(record(),), max_contacts=1))
    more = registration(binding(TABLET), push=(record(token="new"),), max_contacts=1)
    assert await store.bind(more) is Refusal.TOO_MANY_CONTACTS
    assert await store.lookup(AOR, NOW) == before


def over_tcp(n: int, **changes: object):
    """A phone that is known by its contact only."""
    contact = f"sip:101@192.0.2.1:{n}"
    row = binding(f"contact:{contact}", contact, call_id=f"call-{n}", flow=f"tcp/a/b/{n}")
    return replace(row, registered_epoch=NOW + n, **changes)


async def test_those_that_may_be_replaced_make_room_in_their_order(store: LocationStore):
    phones = [over_tcp(n) for n in range(3)]
    await store.bind(registration(*phones, push=(record(phones[0].device, dialect="rfc8599"),)))
    room = ((phones[0].device, phones[0].flow), (phones[1].device, phones[1].flow))
    more = registration(over_tcp(3), max_contacts=3, now_epoch=NOW + 3)
    assert await store.bind(more) is Refusal.TOO_MANY_CONTACTS
    bound = await store.bind(replace(more, replaceable=room))
    assert isinstance(bound, Location)
    assert bound.bindings == (over_tcp(3), phones[2], phones[1])
    assert [r.device for r in bound.push_records] == [phones[0].device]  # it can be woken
    assert (await store.lookup(AOR, NOW + 3)).bindings == bound.bindings
    more = registration(over_tcp(4), max_contacts=3, now_epoch=NOW + 4)
    room = ((phones[2].device, phones[2].flow), (phones[1].device, phones[1].flow))
    bound = await store.bind(replace(more, replaceable=room))
    assert isinstance(bound, Location)
    assert bound.bindings == (over_tcp(4), over_tcp(3), phones[1])


@pytest.mark.parametrize(
    ("bind", "lost"),
    [
        ((1,), ()),
        ((1,), (("contact:sip:101@192.0.2.1:0", "tcp/a/b/another"),)),
        ((1, 2), (("contact:sip:101@192.0.2.1:0", "tcp/a/b/0"),)),
    ],
    ids=["nobody is lost", "it is back over another connection", "too few are lost"],
)
async def test_those_that_can_be_reached_make_no_room(
    store: LocationStore, bind: tuple[int, ...], lost: tuple[tuple[str, str], ...]
):
    before = await store.bind(registration(over_tcp(0)))
    more = registration(*map(over_tcp, bind), max_contacts=1, now_epoch=NOW + 3, replaceable=lost)
    assert await store.bind(more) is Refusal.TOO_MANY_CONTACTS
    assert await store.lookup(AOR, NOW) == before


async def test_a_full_aor_may_still_refresh_and_remove(store: LocationStore):
    three = [binding(f"contact:{n}", f"sip:101@192.0.2.{n}") for n in (1, 2, 3)]
    await store.bind(registration(*three))
    refresh = replace(three[0], cseq=2, registered_epoch=NOW + 1)
    bound = await store.bind(registration(refresh, max_contacts=1))
    assert bound == Location((refresh, three[1], three[2]))
    left = await store.bind(registration(unbind=((three[1].device, ""),), cseq=3, max_contacts=1))
    assert left == Location((refresh, three[2]))


async def test_the_dead_do_not_count_as_contacts(store: LocationStore):
    await store.bind(registration(binding(TABLET, "sip:101@192.0.2.2", expires_epoch=NOW + 60)))
    later = binding(registered_epoch=NOW + 60, expires_epoch=NOW + 660)
    bound = await store.bind(registration(later, now_epoch=NOW + 60, max_contacts=1))
    assert bound == Location((later,))


async def test_an_expired_binding_is_absent_and_its_cseq_forgotten(store: LocationStore):
    await store.bind(registration(binding(cseq=9), push=(record(),)))
    assert await store.lookup(AOR, NOW + 600) == Location((), (record(),))
    again = binding(cseq=1, expires_epoch=NOW + 1200)
    bound = await store.bind(registration(again, now_epoch=NOW + 600))
    assert bound == Location((again,), (record(),))


async def test_expired_rows_are_removed_by_the_next_register(store: LocationStore):
    await store.bind(
        registration(binding(TABLET, "sip:101@192.0.2.2"), push=(record(TABLET, "t2"),))
    )
    much_later = NOW + 8 * 86400
    row = binding(expires_epoch=much_later + 600)
    await store.bind(registration(row, now_epoch=much_later))
    assert await store.lookup(AOR, NOW) == Location((row,))


async def test_aors_do_not_see_each_other(store: LocationStore):
    other = binding(aor="102@example.com")
    await store.bind(registration(binding()))
    await store.bind(registration(other))
    assert await store.lookup(AOR, NOW) == Location((binding(),))
    assert await store.lookup("102@example.com", NOW) == Location((other,))


async def test_a_dead_token_is_removed(store: LocationStore):
    await store.bind(registration(binding(), push=(record(),)))
    assert await store.remove_push_record(record()) is True
    assert await store.lookup(AOR, NOW) == Location((binding(),))
    assert await store.remove_push_record(record()) is False


@pytest.mark.parametrize(
    "stored",
    [
        record(token="new"),
        record(message_token="new"),
        record(app_id="other"),
        record(platform=Platform.FCM),
        record(TABLET),
    ],
)
async def test_a_record_that_changed_meanwhile_is_not_removed(store: LocationStore, stored):
    before = await store.bind(registration(binding(), push=(stored,)))
    assert await store.remove_push_record(record()) is False
    assert await store.lookup(AOR, NOW) == before


async def test_a_record_refreshed_meanwhile_is_still_removed(store: LocationStore):
    refreshed = record(updated_epoch=NOW + 5, allow_message=False)
    await store.bind(registration(binding(), push=(refreshed,)))
    assert await store.remove_push_record(record()) is True


async def test_every_aor_is_listed_once(store: LocationStore):
    names = {f"{n}@example.com" for n in range(600)}
    await asyncio.gather(*(store.bind(registration(binding(aor=name))) for name in names))
    await store.bind(registration(aor="601@example.com", push=(record(aor="601@example.com"),)))
    listed = [aor async for aor in store.aors()]
    assert len(listed) == len(set(listed))
    assert set(listed) == names | {"601@example.com"}


async def test_a_listing_of_aors_goes_on_after_any_of_them(store: LocationStore):
    odd = b"\xe4@example.com".decode("utf-8", "surrogateescape")
    for name in ("a@example.com", "b@example.com", "c@example.com", odd):
        await store.bind(registration(binding(aor=name)))
    listed = [aor async for aor in store.aors()]
    for n, name in enumerate(listed):
        assert [aor async for aor in store.aors(name)] == listed[n + 1 :]


async def test_registers_of_many_devices_at_once_are_all_kept(store: LocationStore):
    rows = [binding(f"contact:{n}", f"sip:101@192.0.2.{n}", call_id=f"c{n}") for n in range(50)]
    bound = await asyncio.gather(*(store.bind(registration(row, max_contacts=50)) for row in rows))
    assert sorted(len(location.bindings) for location in bound) == list(range(1, 51))
    stored = {row.device: row for row in (await store.lookup(AOR, NOW)).bindings}
    assert stored == {row.device: row for row in rows}


async def test_a_caller_who_gives_up_does_not_disturb_the_others(store: LocationStore):
    first = asyncio.create_task(store.bind(registration(binding(call_id="c1"))))
    second = asyncio.create_task(store.bind(registration(binding(TABLET, "sip:2", call_id="c2"))))
    await asyncio.sleep(0)
    first.cancel()
    bound = await second
    assert isinstance(bound, Location)
    assert TABLET in {b.device for b in bound.bindings}


async def test_subscribers_are_added_replaced_listed_and_removed(store: LocationStore):
    plain = Subscriber("101@example.com")
    full = Subscriber("102@example.com", "a" * 32, "b" * 64, False, 12.5, "sip:vm@example.com")
    await store.put_subscriber(replace(full, aor=plain.aor))
    await store.put_subscriber(plain)
    await store.put_subscriber(full)
    assert await store.subscriber(plain.aor) == plain
    assert await store.subscriber(full.aor) == full
    assert {s.aor: s async for s in store.subscribers()} == {plain.aor: plain, full.aor: full}
    assert await store.remove_subscriber(plain.aor) is True
    assert await store.remove_subscriber(plain.aor) is False
    assert await store.subscriber(plain.aor) is None


async def test_many_subscribers_are_each_listed_once(store: LocationStore):
    people = {Subscriber(f"{n}@example.com") for n in range(1200)}
    await asyncio.gather(*map(store.put_subscriber, people))
    listed = [s async for s in store.subscribers()]
    assert len(listed) == len(people)
    assert set(listed) == people


async def test_messages_come_back_as_they_went_in_by_rising_id(store: LocationStore):
    odd = '\xdcn\xef "q" {b} latin-1:\udce9@example.com'
    rows = [message(f"k{n}", aor=odd, content=bytes(range(256)) * n) for n in range(12)]
    receipts = [await store.put_message(row, 100) for row in rows]
    ids = [receipt.id for receipt in receipts if receipt and not receipt.repeated]
    assert ids == sorted(set(ids))
    assert len(ids) == 12
    expected = tuple(replace(row, id=n) for row, n in zip(rows, ids, strict=True))
    assert await store.messages(odd, NOW) == expected
    assert await store.messages(AOR, NOW) == ()


async def test_a_message_repeated_is_stored_once(store: LocationStore):
    first = await store.put_message(message(), 1)
    again = await store.put_message(message(stored_epoch=NOW + 1), 1)
    assert first is not None
    assert again == replace(first, repeated=True)
    assert len(await store.messages(AOR, NOW)) == 1


async def test_a_message_repeated_can_be_removed(store: LocationStore):
    await store.put_message(message(), 1)
    later = message(stored_epoch=NOW + 1)
    again = await store.put_message(later, 1)
    assert again is not None
    assert await store.remove_message(replace(later, id=again.id), NOW) is True
    assert await store.messages(AOR, NOW) == ()


async def test_the_same_key_of_another_user_is_another_message(store: LocationStore):
    first = await store.put_message(message(), 1)
    other = await store.put_message(message(aor="102@example.com"), 1)
    assert first is not None
    assert other is not None
    assert other.id > first.id
    assert not other.repeated


async def test_a_full_mailbox_takes_no_more_until_one_is_removed(store: LocationStore):
    await store.put_message(message("k1"), 2)
    await store.put_message(message("k2"), 2)
    assert await store.put_message(message("k3"), 2) is None
    first, second = await store.messages(AOR, NOW)
    assert await store.remove_message(first, NOW) is True
    assert await store.remove_message(first, NOW) is False
    third = await store.put_message(message("k3"), 2)
    assert third is not None
    assert third.id > second.id


async def test_delivery_reports_and_other_messages_take_no_room_from_each_other(
    store: LocationStore,
):
    for n in range(2):
        assert await store.put_message(message(f"silent-{n}"), 2) is not None
    assert await store.put_message(message("silent-2"), 2) is None
    for n in range(2):
        assert await store.put_message(message(f"k{n}"), 2) is not None
    assert await store.put_message(message("k2"), 2) is None
    again = await store.put_message(message("silent-1"), 2)
    assert again is not None
    assert again.repeated
    stored = await store.messages(AOR, NOW)
    assert [(each.key, each.is_report) for each in stored] == [
        ("silent-0", True),
        ("silent-1", True),
        ("k0", False),
        ("k1", False),
    ]


async def test_ids_rise_even_when_nothing_is_left(store: LocationStore):
    first = await store.put_message(message("k1"), 2)
    for stored in await store.messages(AOR, NOW):
        await store.remove_message(stored, NOW)
    second = await store.put_message(message("k2", stored_epoch=NOW - 1000), 2)
    assert first is not None
    assert second is not None
    assert second.id > first.id >= int(NOW)


async def test_a_message_that_was_removed_is_told_for_as_long_as_it_may_be_repeated(
    store: LocationStore,
):
    odd = '\xdcn\xef "q" {b} latin-1:\udce9@example.com'
    for key, aor in (("k1", odd), ("k2", AOR)):
        await store.put_message(message(key, aor=aor), 1)
    (first,), (second,) = await store.messages(odd, NOW), await store.messages(AOR, NOW)
    assert await store.gone_messages(NOW) == []
    await store.remove_message(first, NOW)
    assert await store.gone_messages(NOW + 31.5) == [(odd, "k1", NOW + 32)]
    assert await store.gone_messages(NOW + 32) == []
    await store.remove_message(second, NOW + 40)
    assert await store.gone_messages(NOW) == [(AOR, "k2", NOW + 72)]


async def test_an_expired_message_is_absent_and_makes_room(store: LocationStore):
    await store.put_message(message("k1", expires_epoch=NOW + 10), 1)
    assert await store.messages(AOR, NOW + 10) == ()
    assert await store.put_message(message("k2", stored_epoch=NOW + 10), 1) is not None
    assert [m.key for m in await store.messages(AOR, NOW)] == ["k2"]


async def test_an_expired_message_may_be_sent_again(store: LocationStore):
    first = await store.put_message(message(expires_epoch=NOW + 10), 1)
    again = await store.put_message(message(stored_epoch=NOW + 10), 1)
    assert first is not None
    assert again is not None
    assert again.id > first.id


async def test_a_registration_tells_whether_messages_wait(store: LocationStore):
    assert await store.bind(registration(binding())) == Location((binding(),))
    await store.put_message(message(), 1)
    waiting = Location((binding(),), messages=True)
    assert await store.bind(registration(binding())) == waiting
    assert await store.lookup(AOR, NOW) == waiting
    for stored in await store.messages(AOR, NOW):
        await store.remove_message(stored, NOW)
    assert await store.bind(registration(binding())) == Location((binding(),))
    assert await store.lookup(AOR, NOW) == Location((binding(),))


async def test_messages_stored_at_once_are_all_kept(store: LocationStore):
    receipts = await asyncio.gather(
        *(store.put_message(message(f"k{n}"), 100) for n in range(50)),
        *(store.put_message(message("same"), 100) for _ in range(10)),
    )
    ids = {receipt.id for receipt in receipts if receipt}
    stored = await store.messages(AOR, NOW)
    assert {m.id for m in stored} == ids
    assert len(stored) == 51


async def test_a_refresh_is_handed_out_once_when_it_is_due(store: LocationStore):
    tablet = binding(TABLET, "sip:101@192.0.2.2", call_id="call-2")
    await store.bind(registration(binding(), refreshes=((PHONE, NOW + 450),)))
    await store.bind(registration(tablet, refreshes=((TABLET, NOW + 600),)))
    assert await store.take_refreshes(NOW + 449) == []
    assert await store.take_refreshes(NOW + 450) == [(AOR, PHONE)]
    assert await store.take_refreshes(NOW + 599) == []
    assert await store.take_refreshes(NOW + 9999) == [(AOR, TABLET)]


async def test_a_device_that_refreshes_in_time_is_due_later(store: LocationStore):
    await store.bind(registration(binding(), refreshes=((PHONE, NOW + 450),)))
    await store.bind(registration(binding(cseq=2), refreshes=((PHONE, NOW + 700),)))
    assert await store.take_refreshes(NOW + 699) == []
    assert await store.take_refreshes(NOW + 700) == [(AOR, PHONE)]


@pytest.mark.parametrize(
    "refused",
    [
        registration(binding(), call_id="call-1@192.0.2.1", cseq=0),
        registration(binding("contact:other", "sip:o", call_id="call-2"), max_contacts=1),
    ],
    ids=["out of order", "too many contacts"],
)
async def test_who_is_refused_puts_no_refresh_off(store: LocationStore, refused: Registration):
    await store.bind(registration(binding(), refreshes=((PHONE, NOW + 450),)))
    late = replace(refused, refreshes=((PHONE, NOW + 9000), ("contact:other", NOW + 460)))
    assert isinstance(await store.bind(late), Refusal)
    assert await store.take_refreshes(NOW + 500) == [(AOR, PHONE)]


async def test_many_refreshes_are_handed_out_in_parts_each_to_one(store: LocationStore):
    devices = [f"instance:\udce9{n}" for n in range(450)]
    due = tuple((device, NOW + n) for n, device in enumerate(devices))
    await store.bind(registration(binding(), refreshes=due))
    taken = []
    while True:
        parts = await asyncio.gather(*(store.take_refreshes(NOW + 1000) for _ in range(2)))
        if not any(parts):
            break
        taken += [device for part in parts for _, device in part]
    assert sorted(taken) == sorted(devices)


async def test_a_held_call_is_claimed_by_the_next_life_of_its_owner(store: LocationStore):
    await store.put_held_call("a", "1", b'{"n": 1}')
    await store.put_held_call("a", "1", b'{"n": 2}')
    await store.put_held_call("a", "2", '{"odd": "\\udce9 ü\u2028"}'.encode())
    assert sorted(await store.claim_held_calls("a", 10, own=True)) == [
        b'{"n": 2}',
        '{"odd": "\\udce9 ü\u2028"}'.encode(),
    ]


async def test_who_stores_a_held_call_hears_once_that_it_is_out_of_our_hands(store: LocationStore):
    heard: list[bytes] = []
    for held in (b'{"n": 1}', b'{"n": 2}'):
        await store.put_held_call("a", "1", held, partial(heard.append, held))
    assert heard == [b'{"n": 1}', b'{"n": 2}']


async def test_a_call_that_is_over_is_not_claimed(store: LocationStore):
    await store.put_held_call("a", "1", b"{}")
    await store.remove_held_call("a", "1")
    await store.remove_held_call("a", "unknown")
    assert await store.claim_held_calls("a", 10, own=True) == []


async def test_the_calls_of_a_living_process_are_left_to_it(store: LocationStore):
    await store.claim_held_calls("a", 10, own=True)
    await store.put_held_call("a", "1", b"{}")
    assert await store.claim_held_calls("b", 10, own=False) == []
    assert await store.claim_held_calls("a", 10, own=False) == []


async def test_the_secret_stays_the_same(store: LocationStore):
    secret = await store.secret()
    assert len(secret) == 32
    assert await store.secret() == secret


async def test_a_try_to_write_changes_nothing_that_is_asked_for(store: LocationStore):
    secret, bound = await store.secret(), await store.bind(registration(binding()))
    for _ in range(2):
        await store.try_to_write()
    assert await store.secret() == secret
    assert await store.lookup(AOR, NOW) == bound
    assert [aor async for aor in store.aors()] == [AOR]
    assert [each async for each in store.subscribers()] == []
    assert await store.bans(NOW) == {}


async def test_closing_twice_is_harmless(store: LocationStore):
    await store.close()
    await store.close()


async def test_of_too_many_push_records_the_ones_refreshed_longest_ago_go(store: LocationStore):
    for age in range(4):
        device, at = f"token:{age}", NOW - age
        row = record(device, device, updated_epoch=at)
        await store.bind(registration(push=(row,), now_epoch=at, max_push_records=3))
    kept = (await store.lookup(AOR, NOW)).push_records
    assert [row.device for row in kept] == ["token:0", "token:1", "token:2"]
    newer = record("token:new", "token:new", updated_epoch=NOW + 1)
    bound = await store.bind(registration(push=(newer,), max_push_records=2))
    assert isinstance(bound, Location)
    assert [row.device for row in bound.push_records] == ["token:new", "token:0"]
    assert await store.lookup(AOR, NOW) == bound


async def test_a_ban_holds_until_its_time_is_over(store: LocationStore):
    assert await store.bans(NOW) == {}
    await store.put_ban("192.0.2.1", NOW + 10)
    await store.put_ban("2001:db8:1:2::/64", NOW + 600)
    assert await store.bans(NOW) == {"192.0.2.1": NOW + 10, "2001:db8:1:2::/64": NOW + 600}
    assert await store.bans(NOW + 10) == {"2001:db8:1:2::/64": NOW + 600}


async def test_a_ban_can_be_prolonged_and_lifted(store: LocationStore):
    await store.put_ban("192.0.2.1", NOW + 10)
    await store.put_ban("192.0.2.1", NOW + 20)
    assert await store.bans(NOW + 15) == {"192.0.2.1": NOW + 20}
    assert await store.remove_ban("192.0.2.1")
    assert not await store.remove_ban("192.0.2.1")
    assert await store.bans(NOW) == {}
