"""What the registrar makes of a REGISTER (RFC 3261 §10.3, RFC 3327, RFC 5626, RFC 8599)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from functools import lru_cache
from typing import Final, assert_never

from sipush.core.bindings import (
    SILENT,
    Aor,
    Binding,
    Location,
    Platform,
    PushRecord,
    Refusal,
    Registration,
    by_contact,
)
from sipush.core.nodes import THIS_FLOW, path_here
from sipush.core.outbound import came_from, leads_to, purr, remote_ip
from sipush.core.rejection import Rejection
from sipush.core.web_push import UnusableSubscriptionError, read_subscription
from sipush.errors import MessageError
from sipush.sip.fields import NameAddr, format_params, parse_name_addr
from sipush.sip.grammar import number, quote_string, unquote_string
from sipush.sip.headers import Headers, canonical_name
from sipush.sip.message import Request, Response, make_response
from sipush.sip.push_params import (
    HEADERS,
    LINPHONE,
    RFC8599,
    PushFault,
    PushParams,
    parse_push_headers,
    parse_push_uri_params,
    without_push_params,
)
from sipush.sip.status import Status
from sipush.sip.uri import key_of, parse_sip_uri

HeaderList = tuple[tuple[str, str], ...]
"""(name as written, value), in order."""

SUPPORTED = ("path", "outbound")
"Option tags of the registrar (§19.2)."

GOES_BY: Final = frozenset(
    {"contact", "expires", "feature-caps", "path", "require", "supported", "user-agent", *HEADERS}
)
"Names of all header fields that ``register`` goes by, but for Via, Call-ID and CSeq."

REFRESH_AHEAD: Final = 150
"""Seconds before a binding expires that its device is pushed to refresh it: 120 (RFC 8599 §5.5),
and what it takes to find out that it is time."""

PNSREG: Final = 180
"Seconds before a binding expires that a phone which can must refresh it unasked (RFC 8599 §8.4)."

SHORTEST_REFRESHED: Final = 2 * PNSREG
"""Seconds. A binding shorter than that would be refreshed more often than a battery bears: 423
(RFC 8599 §5.6.1.1), unless the operator grants no longer one."""

FLOW_TIMER = {True: "30", False: "120"}
"""For UDP and for connections: seconds within which the phone sends its keep-alives (RFC 5626
§4.4). NATs forget UDP within half a minute."""


@dataclass(frozen=True, slots=True)
class RegistrationPolicy:
    """What the operator allows. Times are seconds."""

    min_expires: int = 30
    max_expires: int = 3600
    default_expires: int = 3600
    max_contacts: int = 10
    remove_existing: bool = False
    "Whether one contact more takes the place of another that may still be there."
    max_push_records: int = 20
    push_record_lifetime: float = 7 * 86400
    "How long a push record outlives the last REGISTER."
    apps: Mapping[str, frozenset[Platform]] = field(default_factory=dict)
    "The services configured for each app-id."
    push_hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    "Of each app-id that has Web Push: where the subscriptions of its browsers may be."
    vapid_keys: Mapping[str, str] = field(default_factory=dict)
    "Of the same: the key that subscriptions are made with (RFC 8292 §3.2)."
    node: str = ""
    "Our URI for the other nodes on the store; empty: there are none."
    served: tuple[str, ...] = field(init=False)
    "The values of ``pn-provider`` that some app can be pushed by."

    def __post_init__(self) -> None:
        object.__setattr__(self, "served", _served(self.apps))


@dataclass(frozen=True, slots=True)
class Fetch:
    """No Contact: the bindings are asked for (§10.2.3). Look them up and answer 200."""

    headers: HeaderList = ()


@dataclass(slots=True, init=False)
class Update:
    """Store ``registration``, then answer 200."""

    registration: Registration
    headers: HeaderList
    devices: tuple[str, ...]
    "Those that speak in this request."
    push_fault: str
    "Why the phone will not be pushed although it asked, for the log; it is in a Warning too."
    ignored_path: str
    "The Path of who is no peer and not where it leads, for the log likewise."

    def __init__(
        self,
        registration: Registration,
        headers: HeaderList,
        devices: tuple[str, ...],
        push_fault: str,
        ignored_path: str = "",
    ) -> None:
        self.registration = registration
        self.headers = headers
        self.devices = devices
        self.push_fault = push_fault
        self.ignored_path = ignored_path


Decision = Rejection | Fetch | Update


def register(
    request: Request,
    aor: Aor,
    flow: str,
    policy: RegistrationPolicy,
    now_epoch: float,
    *,
    key: bytes,
    location: Location | None = None,
    from_peer: bool = False,
) -> Decision:
    """Steps 2, 6 and 7 of §10.3 for an authenticated REGISTER that came over ``flow``.

    ``location`` is what is stored now, for a request that ``wants_location``: it does not say
    which device speaks. With None such a phone counts as a new device. ``key`` makes the PURRs.
    ``from_peer``: the flow leads to a trusted peer; only then its Path may lead elsewhere.
    """
    if "require" in request.headers.first and (missing := _missing(request)):
        headers = (("Unsupported", ", ".join(missing)),)
        return Rejection(Status.BAD_EXTENSION, Status.BAD_EXTENSION.phrase, headers)
    try:
        state = _Register(request, aor, flow, policy, now_epoch, key=key, location=location)
        if "path" in request.headers.first:
            state.take_path(from_peer)
        return state.decide()
    except MessageError as error:
        return Rejection(Status.BAD_REQUEST, error.reason)
    except _TooBriefError as error:
        too_brief = Status.INTERVAL_TOO_BRIEF
        return Rejection(too_brief, too_brief.phrase, (("Min-Expires", str(error.minimum)),))
    except _NotServedError:  # no Feature-Caps: it has a meaning in a 200 alone (RFC 6809 §4.3.3)
        not_served = Status.PUSH_NOTIFICATION_SERVICE_NOT_SUPPORTED
        return Rejection(not_served, not_served.phrase)


def _missing(request: Request) -> list[str]:
    return [tag for tag in request.headers.values("require") if tag not in SUPPORTED]


_TELLTALE: Final = re.compile(
    r'(?:device-uid|\+sip\.instance|pn-prid|pn-tok)[ \t]*=[ \t"<|]*[^\s"<>|;,?]'
).search
"A parameter that tells which device speaks, and is not empty."


def wants_location(request: Request) -> bool:
    """Whether ``register`` needs the stored location to know which device speaks."""
    headers = request.headers
    first = headers.first
    if "*" in first.get("contact", "") and headers.get("contact") == "*":
        return True
    return not any(name in first and _tells_device(headers, name) for name in _SPEAKING)


def _tells_device(headers: Headers, name: str) -> bool:
    if _TELLTALE(headers.first[name]):  # as nearly all of them write it
        return True
    lines = "\n".join([line for _, line in headers.lines(name)])
    return _TELLTALE(lines.lower()) is not None


_SPEAKING: Final = (*HEADERS, "contact")


class _TooBriefError(Exception):
    def __init__(self, minimum: int) -> None:
        super().__init__()
        self.minimum = minimum
        "Seconds."


class _NotServedError(Exception):
    """Nobody on the path can push by the service that the phone names (RFC 8599 §5.6.1)."""


class _Register:
    """One REGISTER while it is being decided on."""

    __slots__ = (
        "aor",
        "bind",
        "call_id",
        "cseq",
        "fault",
        "flow",
        "header_push",
        "headers",
        "ignored_path",
        "key",
        "location",
        "now",
        "over_flow",
        "path",
        "policy",
        "push",
        "push_off",
        "refreshes",
        "request",
        "unbind",
        "unpushed",
    )

    def __init__(
        self,
        request: Request,
        aor: Aor,
        flow: str,
        policy: RegistrationPolicy,
        now: float,
        *,
        key: bytes,
        location: Location | None,
    ) -> None:
        self.request = request
        self.aor = aor
        self.flow = flow
        self.policy = policy
        self.now = now
        self.key = key
        self.location = location or _NOTHING
        self.call_id = request.call_id
        self.cseq = request.cseq.number
        self.header_push = parse_push_headers(request.headers)
        # Most stay empty: tuples, as Registration wants them.
        self.bind: tuple[Binding, ...] = ()
        self.unbind: tuple[tuple[str, str], ...] = ()
        self.push: tuple[PushRecord, ...] = ()
        self.push_off: tuple[tuple[str, str], ...] = ()
        self.unpushed: tuple[str, ...] = ()
        self.refreshes: tuple[tuple[str, float], ...] = ()
        self.headers: HeaderList = ()
        self.path: tuple[str, ...] = ()
        self.over_flow = True
        self.fault = ""
        self.ignored_path = ""

    def take_path(self, from_peer: bool) -> None:
        """Let requests to the phone go by its Path, if a peer has written it.

        Else any user could have us send requests, with the trust that is put in us, to any server
        (RFC 3327 §6). A Path back to where the REGISTER came from leads over its flow.
        """
        path = tuple(self.request.headers.values("path"))
        text = ", ".join(path)
        if path and not from_peer and not leads_to(path[0], self.flow):
            self.ignored_path = text
            self._answer_warning(f"Path ignored: {remote_ip(self.flow)} is not a trusted peer")
            return
        for value in path:
            _check_hop(value)
        self.path = path
        self.over_flow = not (path and from_peer)
        if path and self._supports("path"):
            self._answer("Path", text)

    def decide(self) -> Decision:
        contacts = self.request.headers.values("contact")
        if not contacts:
            return Fetch(self.headers)
        unbind_all = "*" in contacts
        if unbind_all:
            self._unbind_all(contacts)
        elif len(contacts) == 1:
            contact = parse_name_addr(contacts[0])
            self._apply_one(contact, self._expires(contact), self.header_push)
        else:
            self._apply([parse_name_addr(contact) for contact in contacts])
        registration = self._registration(unbind_all)
        devices = tuple([binding.device for binding in self.bind])
        return Update(registration, self.headers, devices, self.fault, self.ignored_path)

    def _registration(self, unbind_all: bool) -> Registration:
        return Registration(
            self.aor,
            self.call_id,
            self.cseq,
            self.now,
            self.policy.max_contacts,
            self.bind,
            self.unbind,
            unbind_all,
            self.push,
            self.push_off,
            self.unpushed,
            self.refreshes,
            self.policy.max_push_records,
            self.flow,
        )

    def _unbind_all(self, contacts: list[str]) -> None:
        if len(contacts) > 1 or self.request.headers.get("expires") != "0":
            raise MessageError("Contact: * Needs Expires: 0 and No Other Contact")
        push = self.header_push
        if isinstance(push, PushParams):
            self._wake_by(push, self._device_with(push.token) if push.token else "")
        elif push is not None:
            self._warn(push.text)

    def _apply(self, contacts: list[NameAddr]) -> None:
        """Several contacts are applied as one; the push header belongs to the first that stays."""
        expires = [self._expires(contact) for contact in contacts]
        staying = [contact for contact, seconds in zip(contacts, expires, strict=True) if seconds]
        flows = any("reg-id" in contact.params for contact in staying)
        if flows and len(staying) > 1 and self._supports("outbound"):  # RFC 5626 §6
            raise MessageError("One Flow Takes One Contact")
        pushed = next((i for i, seconds in enumerate(expires) if seconds), 0)
        for i, contact in enumerate(contacts):
            self._apply_one(contact, expires[i], self.header_push if i == pushed else None)

    def _apply_one(
        self, contact: NameAddr, expires: int, header_push: PushParams | PushFault | None
    ) -> None:
        uri = contact.sip_uri
        key = key_of(uri)
        push = header_push or parse_push_uri_params(uri.params)
        device = self._device(contact, push, key)
        if isinstance(push, PushParams):
            self._wake_by(push, device, expires, "+sip.pnsreg" in contact.params)
        elif push is not None:
            if push.provider and expires:
                self._reject_unless_pushed_by_another(push.provider)
            self._warn(push.text)
        if expires == 0:
            self.unbind += ((device, key),)
            return
        if push is None or (isinstance(push, PushParams) and not push.token):
            self.unpushed += (device,)
        if all(binding.device != device for binding in self.bind):
            self.bind += (self._binding(contact, device, key, expires),)

    def _binding(self, contact: NameAddr, device: str, key: str, expires: int) -> Binding:
        params = contact.params
        if "expires" in params:
            params = {name: value for name, value in params.items() if name != "expires"}
        return Binding(
            self.aor,
            device,
            contact.uri,
            key,
            self.now + expires,
            self.call_id,
            self.cseq,
            self.flow,
            format_params(params) if params else "",
            self._whole_path(device) if self.over_flow else self.path,
            self.request.headers.get("user-agent") or "",
            self.now,
        )

    def _whole_path(self, device: str) -> tuple[str, ...]:
        """By way of us, who have the flow."""
        if node := self.policy.node:
            return (path_here(node, self.flow, self.aor, device, self.key), *self.path)
        return (THIS_FLOW, *self.path) if self.path else ()

    def _expires(self, contact: NameAddr) -> int:
        """What is granted: the parameter, else the header, else the default (§10.3 step 6)."""
        text = contact.params.get("expires") or self.request.headers.get("expires") or ""
        seconds = number(text)
        if seconds is None:  # §20.19: malformed is as good as absent
            seconds = self.policy.default_expires
        policy = self.policy
        if 0 < seconds < policy.min_expires:
            raise _TooBriefError(policy.min_expires)
        return seconds if seconds < policy.max_expires else policy.max_expires

    def _device(self, contact: NameAddr, push: PushParams | PushFault | None, key: str) -> str:
        """The device key: what stays the same when address, port and tokens change, if told."""
        instance = contact.params.get("+sip.instance")
        if instance:
            instance = unquote_string(instance).strip("<>").lower()
        if instance:
            flow = f";{contact.params['reg-id']}" if self._outbound(contact) else ""
            return f"instance:{instance}{flow}"
        if isinstance(push, PushParams) and push.token:
            return f"token:{push.token}"
        # A phone that sent its token once stays that device when it refreshes without.
        known = [b for b in self.location.bindings if b.contact_key == key]
        return max(known, key=self._nearness).device if known else by_contact(key)

    def _nearness(self, binding: Binding) -> tuple[bool, bool, bool]:
        """What speaks for it that it was made by who speaks now."""
        from_here = came_from(remote_ip(self.flow), binding.flow)
        return binding.flow == self.flow, binding.call_id == self.call_id, from_here

    def _device_with(self, token: str) -> str:
        """The device that has this token; ``Contact: *`` does not say which it is."""
        for record in self.location.push_records:
            if token in (record.call_token, record.message_token):
                return record.device
        return f"token:{token}"

    def _speaker(self, device: str) -> str:
        """Whose push is to end when no token says it: ``device``, if anything is known of it.

        Else whoever has registered over this flow, or with this Call-ID.
        """
        if device.startswith("instance:"):
            return device
        mine = [
            b
            for b in self.location.bindings
            if device == b.device or self.flow == b.flow or self.call_id == b.call_id
        ]
        if any(b.device == device for b in mine):
            return device
        return max(mine, key=self._nearness).device if mine else device

    def _outbound(self, contact: NameAddr) -> bool:
        """Whether this is a flow of several (RFC 5626 §6); else ``reg-id`` is ignored."""
        reg_id = contact.params.get("reg-id") or ""
        if not (reg_id.isascii() and reg_id.isdigit() and self._supports("outbound")):
            return False
        if self.path:
            edge = parse_name_addr(self.path[-1])
            outbound = "ob" in parse_sip_uri(edge.uri).params
        else:
            outbound = len(self.request.headers.values("via")) == 1
        if outbound:
            self._answer("Require", "outbound")
            if not self.path:  # the first hop sets it: here that is us
                self._answer("Flow-Timer", FLOW_TIMER[self.flow.startswith("udp/")])
        return outbound

    def _wake_by(
        self,
        push: PushParams,
        device: str,
        expires: int | None = None,
        refreshes_itself: bool = False,
    ) -> None:
        """Store, refresh or forget how ``device`` is woken, and tell the phone."""
        if push.off:
            self.push_off += ((device if push.token else self._speaker(device), push.token),)
            return
        by_uri = push.dialect in _BY_URI
        if by_uri and expires == 0:
            return
        if by_uri and _pushed_by_another(self.request, push.provider):
            return
        if push.dialect == RFC8599 and push.provider and push.provider not in self.policy.served:
            self._reject_unless_pushed_by_another(push.provider, asks=not push.token)
        if not push.token:
            self._offer(push)
            return
        if not push.app_id:
            push = replace(push, app_id=_only_web_app(self.policy))
        platform = _platform(push, self.policy.apps.get(push.app_id, _NO_SERVICE))
        fault = self._unusable(push, platform) if platform in (None, Platform.WEBPUSH) else ""
        if platform is None or fault:
            self._warn(fault)
            return
        self.push += (self._record(push, platform, device),)
        if push.dialect == RFC8599:
            self._accept_by_feature_caps(push, platform, device, expires or 0, refreshes_itself)
        else:
            self._accept(push)

    def _unusable(self, push: PushParams, platform: Platform | None) -> str:
        """Why nobody can be woken by it, or nothing."""
        if not push.app_id:
            return "app-id is missing"
        if push.app_id not in self.policy.apps:
            return f"unknown app-id {push.app_id[:100]}"
        if platform is None:
            return f"no push service for this platform in app-id {push.app_id[:100]}"
        if platform is Platform.WEBPUSH:
            try:
                read_subscription(push.token, push.extra, self.policy.push_hosts[push.app_id])
            except UnusableSubscriptionError as error:
                return str(error)
        return ""

    def _record(self, push: PushParams, platform: Platform, device: str) -> PushRecord:
        return PushRecord(
            self.aor,
            device,
            platform,
            push.app_id,
            push.call_token,
            push.message_token,
            push.allow_call,
            push.allow_message,
            push.dialect,
            push.extra,
            self.now,
            self.now + self.policy.push_record_lifetime,
        )

    def _accept(self, push: PushParams) -> None:
        """Say that push will work: the push header's name comes back."""
        if push.dialect == LINPHONE:  # older than any such sign
            return
        value = (
            f"allow-call-push={_FLAG[push.allow_call]}"
            f";allow-message-push={_FLAG[push.allow_message]};app-id={push.app_id}"
        )
        for name in push.dialect.split(","):
            self._answer(name, value)

    def _accept_by_feature_caps(
        self,
        push: PushParams,
        platform: Platform,
        device: str,
        expires: int,
        refreshes_itself: bool,
    ) -> None:
        """Say that push will work, and what else there is (RFC 8599 §5.4, §5.5, §6.2.1).

        Who must show each push is pushed for nothing else than calls and messages.
        """
        caps = self._pns(push.extra["pn-provider"], push.app_id)
        quiet = platform in SILENT
        shortest = min(SHORTEST_REFRESHED, self.policy.max_expires)
        if quiet and expires < shortest:
            raise _TooBriefError(shortest)
        if expires >= SHORTEST_REFRESHED:
            if refreshes_itself:
                caps += f';+sip.pnsreg="{PNSREG}"'
            if quiet:
                self.refreshes += ((device, self.now + expires - REFRESH_AHEAD),)
        if quiet:
            caps += f';+sip.pnspurr="{purr(self.aor, device, self.key, self.now)}"'
        self._answer("Feature-Caps", caps)

    def _offer(self, push: PushParams) -> None:
        """``pn-provider`` without ``pn-prid`` asks what is supported (RFC 8599 §4.1.2)."""
        if push.dialect != RFC8599:
            return
        app_id = push.app_id or _only_web_app(self.policy)
        for provider in self.policy.served:
            if push.provider in ("", provider):
                name = push.extra["pn-provider"] or provider
                self._answer("Feature-Caps", self._pns(name, app_id))

    def _pns(self, provider: str, app_id: str) -> str:
        """What we push by (RFC 8599 §8.2), for browsers with the key to subscribe with (§8.3)."""
        key = self.policy.vapid_keys.get(app_id) if provider.lower() == "webpush" else None
        return f'*;+sip.pns="{provider}"' + (f';+sip.vapid="{key}"' if key else "")

    def _reject_unless_pushed_by_another(self, provider: str, *, asks: bool = False) -> None:
        """A registrar without apps leaves push alone, as one that knows nothing of it.

        Who only ``asks`` is told what others on the path can do (RFC 8599 §5.6.1.2).
        """
        if not self.policy.apps or _pushed_by_another(self.request, provider):
            return
        if not (asks and _pushed_by_another(self.request)):
            raise _NotServedError

    def _supports(self, option: str) -> bool:
        return option in self.request.headers.values("supported")

    def _warn(self, text: str) -> None:
        self.fault = text
        self._answer_warning(text)

    def _answer_warning(self, text: str) -> None:
        host = self.aor.rpartition("@")[2]
        self._answer("Warning", f"399 {host} {quote_string(text)}")

    def _answer(self, name: str, value: str) -> None:
        if (name, value) not in self.headers:
            self.headers += ((name, value),)


def _check_hop(path: str) -> None:
    """Raise MessageError for a Path value that leads nowhere."""
    try:
        parse_sip_uri(parse_name_addr(path).uri)
    except MessageError as error:
        raise MessageError(f"{error.reason} in Path") from error


_BY_URI: Final = frozenset({RFC8599, LINPHONE})
_FLAG: Final = {True: "true", False: "false"}
_NOTHING: Final = Location()
_NO_SERVICE: Final[frozenset[Platform]] = frozenset()
_OWN: Final = {"apns": Platform.APNS, "fcm": Platform.FCM, "webpush": Platform.WEBPUSH}


def _platform(push: PushParams, services: frozenset[Platform]) -> Platform | None:
    """The service that wakes this device: its platform's own, else the webhook."""
    own = _OWN.get(push.provider)
    if own in services:
        return own
    return Platform.WEBHOOK if Platform.WEBHOOK in services else None


def _served(apps: Mapping[str, frozenset[Platform]]) -> tuple[str, ...]:
    services = _NO_SERVICE.union(*apps.values())
    if Platform.WEBHOOK in services:
        services |= {Platform.APNS, Platform.FCM}
    return tuple([provider for provider, platform in _OWN.items() if platform in services])


def _only_web_app(policy: RegistrationPolicy) -> str:
    """The one app for browsers, if there is one and no other."""
    return next(iter(policy.push_hosts)) if len(policy.push_hosts) == 1 else ""


def _pushed_by_another(request: Request, provider: str = "") -> bool:
    """Whether a proxy before us has said that it pushes, by whatever service if none is named
    (RFC 8599 §5.6.1.1)."""
    signs = (
        (f'+sip.pns="{provider}"', f'+sip.pns="{provider}.dev"') if provider else ('+sip.pns="',)
    )
    values = [value.lower() for value in request.headers.get_all("feature-caps")]
    return any(sign in value for value in values for sign in signs)


def ok_response(
    request: Request,
    decision: Fetch | Update,
    location: Location,
    now_epoch: float,
    to_tag: str,
) -> Response:
    """200 (§10.3 step 8): every binding of the AOR with the time it has left.

    Contacts come back as registered, those of the user's other devices without their push tokens.
    """
    fields = []
    devices = decision.devices if isinstance(decision, Update) else ()
    for binding in location.bindings:
        uri = binding.contact
        if binding.device not in devices:
            uri = without_push_params(uri)
        left = max(math.ceil(binding.expires_epoch - now_epoch), 0)
        fields.append(("contact", f"Contact: <{uri}>{binding.params};expires={left}"))
    for name, value in decision.headers:
        fields.append((canonical_name(name), f"{name}: {value}"))
    fields += (_SUPPORTED, _date(int(now_epoch)))
    return make_response(request, _OK, None, to_tag, fields)


_OK: Final = Status.OK
_SUPPORTED: Final = ("supported", f"Supported: {', '.join(SUPPORTED)}")


@lru_cache(maxsize=1)
def _date(now_epoch: int) -> tuple[str, str]:
    """A SIP-date (§20.17): a phone may set its clock by it."""
    return "date", f"Date: {formatdate(now_epoch, usegmt=True)}"


def refuse(refusal: Refusal) -> Rejection:
    """What the phone is told when the store did not apply its Registration."""
    match refusal:
        case Refusal.OUT_OF_ORDER:
            return Rejection(
                Status.SERVER_INTERNAL_ERROR, "CSeq Not Above the Last of This Call-ID"
            )
        case Refusal.TOO_MANY_CONTACTS:
            return Rejection(Status.FORBIDDEN, "Too Many Contacts")
        case _:
            assert_never(refusal)
