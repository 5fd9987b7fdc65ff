"""What a REGISTER does to the location service (RFC 3261 §10.3 step 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from sipush.core.bindings import (
    Binding,
    Location,
    PushRecord,
    Refusal,
    Registration,
    without_reg_id,
)
from sipush.core.outbound import remote_ip

_INSTANCE: Final = "instance:"
_TOKEN: Final = "token:"


def live(
    bindings: Iterable[Binding],
    push_records: Iterable[PushRecord],
    now_epoch: float,
    messages: bool = False,
) -> Location:
    """The rows that have not expired, each kind newest first, then by device."""
    bound = [b for b in bindings if b.expires_epoch > now_epoch]
    wakeable = [r for r in push_records if r.expires_epoch > now_epoch]
    if len(bound) > 1:  # most users have one phone
        bound.sort(key=lambda b: (-b.registered_epoch, b.device))
    if len(wakeable) > 1:
        wakeable.sort(key=lambda r: (-r.updated_epoch, r.device))
    return Location(tuple(bound), tuple(wakeable), messages)


def apply(
    location: Location, registration: Registration, messages: bool = False
) -> Location | Refusal:
    """The Location after ``registration``; expired rows of ``location`` count as absent.

    The order of steps is Registration's. Whoever is above ``max_contacts`` may still refresh and
    remove, but not add.
    """
    if len(registration.bind) == 1:
        refreshed = _only_device_refreshed(location, registration, messages)
        if refreshed is not None:
            return refreshed
    return _apply(location, registration, messages)


def _only_device_refreshed(
    location: Location, registration: Registration, messages: bool
) -> Location | None:
    """What ``_apply`` comes to for nearly every REGISTER; None when it has to be asked.

    The user's only device registers, alone and pushed as before or never, by a later request: one
    row of each kind replaces the one that there may be.
    """
    bindings, records, push = location.bindings, location.push_records, registration.push
    if (
        len(bindings) > 1
        or len(records) > 1
        or len(push) > 1
        or registration.unbind
        or registration.unbind_all
        or registration.push_off
        or (registration.unpushed and records)
        or registration.max_contacts < 1
        or registration.max_push_records < 1
    ):
        return None
    now, bind = registration.now_epoch, registration.bind
    device = bind[0].device
    if bindings:
        old = bindings[0]
        if old.device != device:
            return None
        if old.call_id == registration.call_id and old.cseq >= registration.cseq:
            return None
    if records and records[0].device != device:
        return None
    records = push or records
    if records and (records[0].device != device or records[0].expires_epoch <= now):
        return None
    if bind[0].expires_epoch <= now:
        return None
    return Location(bind, records, messages, not bindings)


def _apply(location: Location, registration: Registration, messages: bool) -> Location | Refusal:
    """The general way."""
    old = live(location.bindings, location.push_records, registration.now_epoch)
    if any(_is_not_newer(registration, b) for b in old.bindings if _touches(registration, b)):
        return Refusal.OUT_OF_ORDER
    bindings = {b.device: b for b in old.bindings if not _unbinds(registration, b)}
    records = {r.device: r for r in old.push_records}
    for new in registration.bind:
        for device in [b.device for b in bindings.values() if _replaces(new, b)]:
            del bindings[device]
            if device != new.device:
                records.pop(device, None)
        bindings[new.device] = new
    ended = _unbound(registration, old) - {without_reg_id(device) for device in bindings}
    records = {
        d: r
        for d, r in records.items()
        if r.outlives_unbind or (d not in registration.unpushed and without_reg_id(d) not in ended)
    }
    for device, token in registration.push_off:
        records = {d: r for d, r in records.items() if not _turned_off(r, device, token)}
    for record in registration.push:
        records = {d: r for d, r in records.items() if not r.shares_token(record)}
        records[record.device] = record
    if (excess := len(bindings) - max(registration.max_contacts, len(old.bindings))) > 0:
        there = {(b.device, b.flow) for b in old.bindings if bindings.get(b.device) is b}
        replaced = [each for each in dict.fromkeys(registration.replaceable) if each in there]
        if len(replaced) < excess:
            return Refusal.TOO_MANY_CONTACTS
        for device, _ in replaced[:excess]:
            del bindings[device]
    after = live(bindings.values(), records.values(), registration.now_epoch, messages)
    after.push_records = after.push_records[: registration.max_push_records]
    known = {b.device for b in location.bindings}
    after.has_come = any(new.device not in known for new in registration.bind)
    return after


def replaceable(
    location: Location,
    registration: Registration,
    is_lost: Callable[[Binding], bool],
    *,
    existing: bool,
) -> tuple[tuple[str, str], ...]:
    """``Registration.replaceable``: who has lost the connection first, then the oldest first.

    ``existing``: also who may be there; none with a push record for a device without.
    """
    found = [
        binding
        for binding in reversed(location.bindings)
        if is_lost(binding)
        or (existing and (registration.push or location.push_record(binding.device) is None))
    ]
    found.sort(key=is_lost, reverse=True)
    return tuple([(binding.device, binding.flow) for binding in found])


def without_push_record(location: Location, record: PushRecord) -> Location:
    """``location`` without the device's record, if that still holds the tokens of ``record``."""
    kept = tuple(
        r for r in location.push_records if r.device != record.device or not r.same_tokens(record)
    )
    return Location(location.bindings, kept, location.messages)


def _touches(registration: Registration, binding: Binding) -> bool:
    return _unbinds(registration, binding) or any(
        _replaces(new, binding) for new in registration.bind
    )


def _is_not_newer(registration: Registration, binding: Binding) -> bool:
    """Whether the binding was made by a later request, or by another one of equal CSeq."""
    if binding.call_id != registration.call_id or binding.cseq != registration.cseq:
        return binding.call_id == registration.call_id and binding.cseq > registration.cseq
    made = (binding.device, binding.contact_key)
    return all((new.device, new.contact_key) != made for new in registration.bind)


def _unbound(registration: Registration, old: Location) -> set[str]:
    """The devices that a REGISTER removes a binding of, without reg-id."""
    names = {device for device, _ in registration.unbind}
    names.update(b.device for b in old.bindings if _unbinds(registration, b))
    if registration.unbind_all:
        names.update(record.device for record in old.push_records)
    return {without_reg_id(name) for name in names}


def _unbinds(registration: Registration, binding: Binding) -> bool:
    return registration.unbind_all or any(
        device == binding.device
        or (key == binding.contact_key and not _has_other_host(device, registration.flow, binding))
        for device, key in registration.unbind
    )


def _replaces(new: Binding, old: Binding) -> bool:
    if new.device == old.device:
        return True
    instances = new.device.startswith(_INSTANCE) and old.device.startswith(_INSTANCE)
    if instances or new.contact_key != old.contact_key:
        return False
    return not _has_other_host(new.device, new.flow, old)


def _has_other_host(device: str, flow: str, old: Binding) -> bool:
    """Whether two tokens are those of two phones, as they are spoken for from different hosts.

    Behind another NAT, or with 464XLAT, the same private address in a Contact is another phone.
    """
    if not (device.startswith(_TOKEN) and old.device.startswith(_TOKEN)):
        return False
    return remote_ip(flow) != remote_ip(old.flow)


def _turned_off(record: PushRecord, device: str, token: str) -> bool:
    return record.device == device or (
        token != "" and token in (record.call_token, record.message_token)
    )
