"""What the location service knows of a user's devices (RFC 3261 §10, RFC 5626, RFC 8599)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from sipush.core.web_push import has_keys
from sipush.sip.push_params import LINPHONE, NO_EXTRA, RFC8599

Aor = str
"""Address-of-record as ``user@domain``: user unescaped, domain lower-case, no scheme (§10.3)."""


@dataclass(slots=True, init=False)
class Binding:
    """One contact of an AOR. Times are UNIX seconds."""

    aor: Aor
    device: str
    "Device key: ``instance:<urn>[;<reg-id>]``, else ``token:<token>``, else ``contact:<key>``."
    contact: str
    "Contact URI as registered, without angle brackets."
    contact_key: str
    "``sip.uri.contact_key(contact)``."
    expires_epoch: float
    call_id: str
    cseq: int
    flow: str
    "Name of the flow the REGISTER came over (``Flow.name``)."
    params: str
    "Contact header parameters as registered, without ``expires``: ``;q=0.5;+sip.instance=…``."
    path: tuple[str, ...]
    """Path header values, topmost first (RFC 3327). Before them what leads to us, if we have the
    flow and are one of several nodes, or if the flow is the only way there (``core.nodes``)."""
    user_agent: str
    registered_epoch: float
    "When it was last refreshed."
    known: Any = field(init=False, compare=False, repr=False)
    "What ``core.refresh`` knows of the REGISTER that made it; stored nowhere."

    def __init__(  # noqa: PLR0917 - the fields in their order
        self,
        aor: Aor,
        device: str,
        contact: str,
        contact_key: str,
        expires_epoch: float,
        call_id: str,
        cseq: int,
        flow: str,
        params: str = "",
        path: tuple[str, ...] = (),
        user_agent: str = "",
        registered_epoch: float = 0.0,
    ) -> None:
        self.aor = aor
        self.device = device
        self.contact = contact
        self.contact_key = contact_key
        self.expires_epoch = expires_epoch
        self.call_id = call_id
        self.cseq = cseq
        self.flow = flow
        self.params = params
        self.path = path
        self.user_agent = user_agent
        self.registered_epoch = registered_epoch
        self.known = None


def full_device(aor: Aor, device: str) -> str:
    """A device as a Target, and by its fingerprint the log, names it: no other user has it."""
    return f"{aor} {without_reg_id(device)}"


def without_reg_id(device: str) -> str:
    """What the flows of one instance have in common (RFC 5626 §4.2): its key without reg-id."""
    if ";" not in device:
        return device
    name, _, reg_id = device.rpartition(";")
    return name if name.startswith("instance:") and reg_id.isdigit() else device


def by_contact(key: str) -> str:
    """The key of a device that has told neither instance nor token."""
    return f"{_BY_CONTACT}{key}"


def is_by_contact(device: str) -> bool:
    """Whether that is the key of such a device: another one when it has moved."""
    return device.startswith(_BY_CONTACT)


_BY_CONTACT: Final = "contact:"


class Platform(Enum):
    """The service family a token belongs to."""

    __hash__ = object.__hash__  # as in Timer

    APNS = "apns"
    FCM = "fcm"
    WEBPUSH = "webpush"
    WEBHOOK = "webhook"
    "No service of its own: the app's operator is told by webhook."


PLATFORM_NAMES: Final = {platform: platform.value for platform in Platform}
"For busy paths: a look-up is faster than ``value``."

SILENT: Final = (Platform.FCM, Platform.WEBHOOK)
"""Whose pushes need not be seen. Apple wants each VoIP push reported as a call, and a browser each
of its pushes shown to the user."""


@dataclass(slots=True, init=False)
class PushRecord:
    """How one device is woken. Outlives its contact. Times are UNIX seconds."""

    aor: Aor
    device: str
    "Device key, as in Binding."
    platform: Platform
    app_id: str
    call_token: str
    """Token for calls: VoIP for APNs, the endpoint for Web Push. Empty: calls go to
    ``message_token`` as an alert."""
    message_token: str
    "Token for messages; but for APNs the same as ``call_token``."
    allow_call: bool
    allow_message: bool
    dialect: str
    "Header name(s) it came in, comma-separated; ``rfc8599``; ``linphone``."
    extra: Mapping[str, str]
    "Other parameters, kept (``pn-param`` among them, and the keys of a Web Push subscription)."
    updated_epoch: float
    expires_epoch: float

    def __init__(  # noqa: PLR0917 - the fields in their order
        self,
        aor: Aor,
        device: str,
        platform: Platform,
        app_id: str,
        call_token: str = "",
        message_token: str = "",
        allow_call: bool = True,
        allow_message: bool = True,
        dialect: str = "X-Push",
        extra: Mapping[str, str] = NO_EXTRA,
        updated_epoch: float = 0.0,
        expires_epoch: float = 0.0,
    ) -> None:
        self.aor = aor
        self.device = device
        self.platform = platform
        self.app_id = app_id
        self.call_token = call_token
        self.message_token = message_token
        self.allow_call = allow_call
        self.allow_message = allow_message
        self.dialect = dialect
        self.extra = extra or NO_EXTRA  # an empty one may have room for what was in it
        self.updated_epoch = updated_epoch
        self.expires_epoch = expires_epoch

    @property
    def outlives_unbind(self) -> bool:
        """Whether the device is still pushed when it has taken its last binding back.

        X-Push has flags to end push. With parameters of the Contact URI it ends when they are left
        out, or with the binding (RFC 8599 §4.1.2, §5.5).
        """
        return self.dialect not in (RFC8599, LINPHONE)

    @property
    def hears_of_the_end(self) -> bool:
        """Whether a push can say that the call of an earlier one is over.

        To APNs it would be a second call, and a Web Push without keys says nothing.
        """
        if self.platform is Platform.WEBPUSH:
            return has_keys(self.extra)
        return self.platform is not Platform.APNS

    def same_tokens(self, other: PushRecord) -> bool:
        """Whether both wake by the same tokens of the same app (compare-and-delete)."""
        return (self.app_id, self.platform, self.call_token, self.message_token) == (
            other.app_id,
            other.platform,
            other.call_token,
            other.message_token,
        )

    def shares_token(self, other: PushRecord) -> bool:
        """Whether a token of one app wakes both: they are of one device."""
        if self.app_id != other.app_id:
            return False
        tokens = (other.call_token, other.message_token)
        return any(token and token in tokens for token in (self.call_token, self.message_token))


@dataclass(slots=True, init=False)
class Location:
    """Everything the store holds for one AOR at one moment, expired rows left out."""

    bindings: tuple[Binding, ...]
    "Newest registration first."
    push_records: tuple[PushRecord, ...]
    messages: bool
    "Whether messages are stored for it; those that have just expired may count."
    has_come: bool = field(compare=False)
    """Of what became of a REGISTER: whether a device came with it that had no binding. One that has
    expired may count."""

    def __init__(
        self,
        bindings: tuple[Binding, ...] = (),
        push_records: tuple[PushRecord, ...] = (),
        messages: bool = False,
        has_come: bool = False,
    ) -> None:
        self.bindings = bindings
        self.push_records = push_records
        self.messages = messages
        self.has_come = has_come

    def push_record(self, device: str) -> PushRecord | None:
        """The push record of one device, whichever of its flows brought it, or None."""
        name = without_reg_id(device)
        for record in self.push_records:
            if without_reg_id(record.device) == name:
                return record
        return None


@dataclass(slots=True, init=False)
class Registration:
    """What one accepted REGISTER asks of the store, applied atomically (RFC 3261 §10.3 step 7).

    In this order: check ``call_id``/``cseq`` of every binding that ``bind`` or ``unbind`` touches,
    apply ``unbind``, ``bind``, ``unpushed``, forget the push records that do not outlive the last
    binding of their device, apply ``push_off``, ``push``, check ``max_contacts`` (``replaceable``),
    keep the newest ``max_push_records``.
    """

    aor: Aor
    call_id: str
    cseq: int
    now_epoch: float
    max_contacts: int
    bind: tuple[Binding, ...]
    """Added or refreshed. A binding replaces those of the same device, and those with the same
    ``contact_key`` unless both devices are instances (``instance:…``), or have tokens (``token:…``)
    and flows to different hosts: two phones may have the same private address. The push record of a
    device so replaced goes too."""
    unbind: tuple[tuple[str, str], ...]
    """(device, contact_key) removed, where either matches; the second not if both devices have
    tokens and this REGISTER came from another host."""
    unbind_all: bool
    "``Contact: *``."
    push: tuple[PushRecord, ...]
    "Replace the record of the same device, and any other of the AOR and app that shares a token."
    push_off: tuple[tuple[str, str], ...]
    "(device, token): push records removed where the device or, if not empty, either token matches."
    unpushed: tuple[str, ...]
    "Devices whose Contact asks for no push: records that do not outlive an unbind are removed."
    refreshes: tuple[tuple[str, float], ...]
    """(device, UNIX seconds): due to be pushed by then so that it refreshes its binding; replaces
    what the device had due before."""
    max_push_records: int
    "Of those above, the ones that were refreshed longest ago are removed."
    flow: str
    "Name of the flow that it came over."
    replaceable: tuple[tuple[str, str], ...]
    """(device, name of its flow): bindings that make room for new ones, the first of them first,
    where there would be more than ``max_contacts``. Their push records stay."""

    def __init__(  # noqa: PLR0917 - the fields in their order
        self,
        aor: Aor,
        call_id: str,
        cseq: int,
        now_epoch: float,
        max_contacts: int,
        bind: tuple[Binding, ...] = (),
        unbind: tuple[tuple[str, str], ...] = (),
        unbind_all: bool = False,
        push: tuple[PushRecord, ...] = (),
        push_off: tuple[tuple[str, str], ...] = (),
        unpushed: tuple[str, ...] = (),
        refreshes: tuple[tuple[str, float], ...] = (),
        max_push_records: int = 1000,
        flow: str = "",
        replaceable: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.aor = aor
        self.call_id = call_id
        self.cseq = cseq
        self.now_epoch = now_epoch
        self.max_contacts = max_contacts
        self.bind = bind
        self.unbind = unbind
        self.unbind_all = unbind_all
        self.push = push
        self.push_off = push_off
        self.unpushed = unpushed
        self.refreshes = refreshes
        self.max_push_records = max_push_records
        self.flow = flow
        self.replaceable = replaceable


class Refusal(Enum):
    """Why the store did not apply a Registration. Nothing was changed."""

    OUT_OF_ORDER = "out-of-order"
    """A binding it touches has the same Call-ID and a higher CSeq, or the same CSeq and is not what
    this request binds: a retransmission that the transaction did not absorb is the same again."""
    TOO_MANY_CONTACTS = "too-many-contacts"


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A user who may register and call."""

    aor: Aor
    ha1_md5: str = ""
    "H(user:realm:password) in lower-case hex, or empty."
    ha1_sha256: str = ""
    hold: bool = True
    "W2: whether calls wait for this user's sleeping devices."
    hold_seconds: float | None = None
    "Window of its own, or None: the app's, else the default."
    fallback: str = ""
    "SIP URI that gets the call when no device answers in time, or empty."
