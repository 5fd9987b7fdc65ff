"""Bindings, push records and registrations with as few words as a test needs."""

from __future__ import annotations

from dataclasses import replace

from sipush.core.bindings import Binding, Platform, PushRecord, Registration
from sipush.core.stored_message import StoredMessage

AOR = "101@example.com"
NOW = 1_800_000_000.25
PHONE = "instance:<urn:uuid:00000000-0000-1000-8000-000000000001>;1"
TABLET = "instance:<urn:uuid:00000000-0000-1000-8000-000000000002>;1"


def binding(device: str = PHONE, contact: str = "sip:101@192.0.2.1:5060", **changes: object):
    made = Binding(
        AOR,
        device,
        contact,
        contact,
        NOW + 600,
        "call-1@192.0.2.1",
        1,
        "udp/192.0.2.9:5060/192.0.2.1:5060",
        registered_epoch=NOW,
    )
    return replace(made, **changes)


def record(device: str = PHONE, token: str = "voip-token", **changes: object):
    made = PushRecord(
        AOR,
        device,
        Platform.APNS,
        "com.example.phone",
        token,
        "alert-" + token,
        updated_epoch=NOW,
        expires_epoch=NOW + 7 * 86400,
    )
    return replace(made, **changes)


def registration(*bind: Binding, **changes: object) -> Registration:
    """A REGISTER; its Call-ID, CSeq and AOR are those of the first binding, if any."""
    first = bind[0] if bind else binding()
    made = Registration(first.aor, first.call_id, first.cseq, NOW, 10, bind)
    return replace(made, **changes)


def message(key: str = "k1", **changes: object) -> StoredMessage:
    """A message that waits for an hour."""
    made = StoredMessage(AOR, key, b"MESSAGE sip:101@example.com SIP/2.0\r\n\r\n", NOW, NOW + 3600)
    return replace(made, **changes)
