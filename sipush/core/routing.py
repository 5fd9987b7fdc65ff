"""How a proxy decides where a request goes, and what it looks like there (RFC 3261 §16.3-§16.6)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote
from zlib import crc32

from sipush.core.bindings import (
    Aor,
    Binding,
    Location,
    PushRecord,
    Subscriber,
    without_reg_id,
)
from sipush.core.emergency import NO_EMERGENCIES, EmergencyPolicy
from sipush.core.fallback import Cause
from sipush.core.nodes import ANY_CALL, way_to
from sipush.core.outbound import (
    RouteToken,
    decode_route_token,
    encode_route_token,
)
from sipush.core.rejection import Rejection
from sipush.core.target_set import Target
from sipush.errors import MessageError
from sipush.sip.digest import for_other_realms
from sipush.sip.fields import CSeq, parse_name_addr, parse_via
from sipush.sip.grammar import number
from sipush.sip.headers import Headers
from sipush.sip.message import DEFAULT_MAX_FORWARDS, Message, Request, Response
from sipush.sip.push_params import cut_push_params, without_push_params
from sipush.sip.status import Status
from sipush.sip.uri import SipUri, TelUri, parse_sip_uri, parse_tel_uri, uri_of

DIALOG_FORMING: Final = frozenset({"INVITE", "SUBSCRIBE", "REFER"})
_DEFAULT_MAX_BREADTH: Final = 60


@dataclass(frozen=True, slots=True)
class ToServer:
    """For sipush itself: the Request-URI has no user and is ours."""


@dataclass(slots=True, init=False)
class ToAor:
    """For a user of ours, to be looked up (§16.5)."""

    aor: Aor

    def __init__(self, aor: Aor) -> None:
        self.aor = aor


@dataclass(frozen=True, slots=True)
class ToEmergency:
    """For those who help in an emergency (RFC 5031, or one of the numbers of the policy)."""


@dataclass(slots=True, init=False)
class ToDialog:
    """Inside a dialog that we recorded a route for."""

    token: RouteToken
    "Of the side the request goes to."

    def __init__(self, token: RouteToken) -> None:
        self.token = token


@dataclass(slots=True, init=False)
class ToFlow:
    """For a device whose flow we hold, from another node that looked it up (RFC 5626 §5.3)."""

    token: RouteToken

    def __init__(self, token: RouteToken) -> None:
        self.token = token


Destination = ToServer | ToAor | ToEmergency | ToDialog | ToFlow | Rejection


@dataclass(frozen=True, slots=True)
class Realm:
    """What this server is responsible for."""

    domains: tuple[str, ...]
    "Lower-case. The first is meant by a request that names an alias or an address of ours."
    aliases: frozenset[str]
    is_listener: Callable[[str, int | None], bool]
    "Whether a host (lower-case, IPv6 without brackets) and port lead to one of our listeners."
    is_own_host: Callable[[str], bool]
    "Whether a host names one of our listeners' addresses, whatever the port."

    def aor(self, uri: SipUri) -> Aor | None:
        """The AOR a URI means here, or None when its domain is not ours."""
        if uri.host in self.domains:
            return uri.aor
        if self.serves(uri):
            return f"{uri.aor.rpartition('@')[0]}@{self.domains[0]}"
        return None

    def serves(self, uri: SipUri) -> bool:
        """Whether a URI means a domain of ours, by its name, an alias or our address."""
        host = uri.host
        return host in self.domains or host in self.aliases or self._is_our_address(uri)

    def tel_aor(self, uri: TelUri, near: Aor | None = None) -> Aor:
        """The user of ours with that number: in the domain it names, else in that of ``near``."""
        domain = near.rpartition("@")[2] if near else self.domains[0]
        return f"{uri.number}@{uri.context if uri.context in self.domains else domain}"

    def caller_aor(self, request: Request) -> Aor | None:
        """The user of ours that From names, or None."""
        address = request.from_
        if (tel := parse_tel_uri(address.uri)) is not None:
            return self.tel_aor(tel)
        try:
            return self.aor(address.sip_uri)
        except MessageError:
            return None

    def _is_our_address(self, uri: SipUri) -> bool:
        if uri.port is None:  # phones leave the port out of To and From
            return self.is_own_host(uri.address)
        return self.is_listener(uri.address, uri.port)

    def is_us(self, uri: SipUri) -> bool:
        """Whether a Record-Route URI leads to one of our listeners."""
        return self.is_listener(uri.address, uri.port)

    def is_our_proxy(self, uri: SipUri) -> bool:
        """Whether a Route URI means us: a phone names its outbound proxy as its user typed it."""
        return self.is_us(uri) or uri.host in self.domains or uri.host in self.aliases


_SECURE: Final = {"TLS": "tcp", "WSS": "ws"}
"Transports with TLS, and the transport parameter of a sips: URI for each."


def wants_tls(request: Request) -> bool:
    """Whether every hop must be secure: the Request-URI is a sips: URI (§26.2.2)."""
    return request.uri[:5].lower() == "sips:"


def is_secure(flow: str) -> bool:
    """Whether the flow of this name (``Flow.name``) is over TLS."""
    return flow.partition("/")[0].upper() in _SECURE


def server_uri(user: str, transport: str, sent_by: str, *, sips: bool) -> str:
    """A URI that leads to a listener of ours, with the transport parameter it needs.

    ``user`` may be empty. ``sips`` for a request that ``wants_tls``.
    """
    where = f"{user}@{sent_by}" if user else sent_by
    if sips and transport in _SECURE:
        return f"sips:{where};transport={_SECURE[transport]}"
    parameter = "ws" if transport == "WSS" else transport.lower()  # RFC 7118 §5.2
    return f"sip:{where};transport={parameter}"


def loop_digest(request: Request) -> str:
    """The part of our branches that is equal for a request that came back unchanged (§16.6, 8).

    Inside a dialog that goes through us twice, its Routes have changed.
    """
    cseq = request.cseq
    text = f"{request.uri}\n{request.call_id}\n{cseq.number} {cseq.method}\n{request.from_.tag}"
    if "route" in request.headers.first:
        text += f"\n{request.headers.get('route')}"
    return str(crc32(text.encode("utf-8", "surrogateescape")))


def _has_looped(request: Request, realm: Realm) -> bool:
    """Whether a Via says that this very request has been here before (RFC 5393 §4.2)."""
    headers = request.headers
    if "via" not in headers.repeated and "," not in headers.first["via"]:
        return False
    mark = "-" + loop_digest(request)
    return any(branch.endswith(mark) for branch in _branches_of_ours(request, realm))


def has_been_here(request: Request, realm: Realm) -> bool:
    """Whether a request comes from us, by way of another server."""
    return any(_branches_of_ours(request, realm))


def _branches_of_ours(request: Request, realm: Realm) -> list[str]:
    earlier = map(parse_via, request.headers.values("via")[1:])
    return [v.branch for v in earlier if realm.is_listener(v.host.strip("[]").lower(), v.port)]


def validate(request: Request, realm: Realm) -> Rejection | None:
    """§16.3: what makes a request unfit to be forwarded.

    A malformed Contact does only where push parameters are to be taken out of it.
    """
    try:
        hops = request.max_forwards
    except MessageError as error:
        return Rejection(Status(error.status), error.reason)
    if hops == 0 and request.method != "OPTIONS":
        return Rejection(Status.TOO_MANY_HOPS)
    if _has_looped(request, realm):
        return Rejection(Status.LOOP_DETECTED)
    first = request.headers.first
    if "contact" in first and ";pn-" in first["contact"]:
        try:
            for value in request.headers.values("contact"):
                parse_name_addr(value)
        except MessageError as error:
            return Rejection(Status(error.status), f"{error.reason} in Contact")
    if "proxy-require" not in first:
        return None
    unsupported = request.headers.values("proxy-require")
    if unsupported:
        return Rejection(Status.BAD_EXTENSION, headers=(("Unsupported", ", ".join(unsupported)),))
    return None


def destination(
    request: Request, realm: Realm, key: bytes, emergency: EmergencyPolicy = NO_EMERGENCIES
) -> Destination:
    """§16.4: take our own Routes off, then decide. Changes the Route headers of ``request``, and
    the Request-URI that a strict router sent.

    Raises MessageError for a URI that cannot be read.
    """
    routes = request.headers.values("route") if "route" in request.headers.first else []
    own = 0
    if routes:
        if request.uri[-3:] == ";lr" and request.uri[:3] == "sip":  # as our Record-Routes
            routes = _undo_strict_route(request, routes, key)
        token, way, own = _own_routes(routes, request.call_id, realm, key)
        _take_off(request.headers, own, len(routes))
        if token is not None:
            # A token is good for its Call-ID only; nor may it begin another dialog with that.
            if request.to.tag is None:
                return Rejection(Status.FORBIDDEN, "Route of a Dialog")
            return ToDialog(token)
        if way is not None:
            return ToFlow(way)
    if emergency.covers(request) and is_for_us(request.uri, realm):
        request.headers.remove("route")
        return ToEmergency()
    if len(routes) > own:
        return Rejection(Status.FORBIDDEN, "Route Not Ours")
    if (tel := parse_tel_uri(request.uri)) is not None:
        return ToAor(realm.tel_aor(tel, realm.caller_aor(request)))
    uri = request.sip_uri
    aor = realm.aor(uri)
    if aor is None:
        return Rejection(Status.FORBIDDEN, f"Domain {uri.host} Not Served Here")
    return ToAor(aor) if uri.user else ToServer()


def _undo_strict_route(request: Request, routes: list[str], key: bytes) -> list[str]:
    """The Routes as a loose router would have sent them; the request is then as it would be, too.

    A strict one puts the next Route, one that we recorded, into the Request-URI, and what was there
    behind the last Route.
    """
    ours = request.uri
    if read_route_token(request.sip_uri.user or "", request.call_id, key) is None:
        return routes
    request.retarget(parse_name_addr(routes[-1]).uri)
    undone = [f"<{ours}>", *routes[:-1]]
    request.headers.set("Route", ", ".join(undone))
    return undone


def is_for_us(uri: str, realm: Realm) -> bool:
    """Whether nobody else is responsible: a domain of ours, or a URI without a domain."""
    sip = uri.partition(":")[0].lower() in ("sip", "sips")
    return not sip or realm.aor(parse_sip_uri(uri)) is not None


def _own_routes(
    routes: list[str], call_id: str, realm: Realm, key: bytes
) -> tuple[RouteToken | None, RouteToken | None, int]:
    """How many Routes lead to us. Of the one or two we recorded, the last names the side.

    Before their number: the token of a dialog, and that of a flow by which a node came here.
    """
    token, way, own = None, None, 0
    for count, route in enumerate(routes, 1):
        user, at, place = route.partition("@")
        if at and count < len(routes) and routes[count].endswith(at + place):
            continue  # the next one leads to the same listener, and counts for both
        if user.startswith("<sip"):  # as we write it
            user = user[user.find(":") + 1 :]
        elif at:
            user = parse_sip_uri(parse_name_addr(route).uri).user or ""
        ours = read_route_token(user, call_id, key) if at else None
        through = read_route_token(user, ANY_CALL, key) if at and ours is None else None
        # A connection that we opened may have a port of its own; nobody else makes our tokens.
        if not (ours or through or realm.is_our_proxy(parse_sip_uri(parse_name_addr(route).uri))):
            break
        token, way, own = ours or token, through or way, count
    return token, way, own


_MOST_TOKENS: Final = 4096
_tokens: Final[dict[tuple[str, str, bytes], RouteToken]] = {}
"""Of late, by user part, Call-ID and key: the ACK of a call asks for one that its INVITE has made,
and so does most often its BYE."""


def make_route_token(token: RouteToken, call_id: str, key: bytes) -> str:
    """As ``encode_route_token``, to be read soon."""
    user = encode_route_token(token, call_id, key)
    _keep_token((user, call_id, key), token)
    return user


def read_route_token(user: str, call_id: str, key: bytes) -> RouteToken | None:
    """As ``decode_route_token``, in a tenth of the time for a token that was seen of late."""
    known = _tokens.get((user, call_id, key))
    if known is not None:
        return known
    token = decode_route_token(user, call_id, key)
    if token is not None:
        _keep_token((user, call_id, key), token)
    return token


def _keep_token(name: tuple[str, str, bytes], token: RouteToken) -> None:
    if len(_tokens) >= _MOST_TOKENS:
        _tokens.clear()
    _tokens[name] = token


def _take_off(headers: Headers, own: int, total: int) -> None:
    """Remove the first ``own`` of the ``total`` Routes."""
    if own == total:
        headers.remove("route")
        return
    while own:
        if headers.pop_first_value("route", "Route"):  # empty elements do not count
            own -= 1


def is_anonymous(request: Request) -> bool:
    """Whether the caller hides its identity (RFC 3323 §4.1.1.3)."""
    return request.from_.uri.lower().partition(":")[2] == "anonymous@anonymous.invalid"


_IDENTITY: Final = ("p-asserted-identity", "remote-party-id")
_CLAIMS: Final = (*_IDENTITY, "diversion", "history-info", "x-push-id", "portsip-push-id")


def drop_claims(message: Message) -> None:
    """Take out what nobody may say whom we do not trust, as whoever comes next believes us.

    Who calls (RFC 3325 §5); where the call has been (RFC 5806, RFC 7044): by that a PBX finds a
    mailbox; and which push it belongs to.
    """
    first = message.headers.first
    for name in _CLAIMS:
        if name in first:
            message.headers.remove(name)


def hide_identity(message: Message) -> None:
    """Take out who speaks, if he wants nobody to know it: for a device (RFC 3325 §7)."""
    if "privacy" not in message.headers.first:
        return
    wishes = ";".join(message.headers.values("privacy")).lower().split(";")
    if "id" in [wish.strip() for wish in wishes]:
        for name in _IDENTITY:
            message.headers.remove(name)


# --- The target set (§16.5) ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AppPolicy:
    """How devices of one app are woken."""

    hold: float
    push_always: bool


@dataclass(slots=True, init=False)
class TargetPolicy:
    """What decides, for one request, whether a device is called, woken or left alone."""

    apps: Mapping[str, AppPolicy]
    "A push record whose app is not here wakes nobody."
    is_live: Callable[[Binding], bool]
    consents: Callable[[PushRecord], bool]
    "Whether the device wants pushes for this kind of request."
    node: str
    "Our URI for the other nodes, or empty."

    def __init__(
        self,
        apps: Mapping[str, AppPolicy],
        is_live: Callable[[Binding], bool],
        consents: Callable[[PushRecord], bool],
        node: str = "",
    ) -> None:
        self.apps = apps
        self.node = node
        self.is_live = is_live
        self.consents = consents

    def target_set(self, location: Location, subscriber: Subscriber) -> list[Target]:
        """The devices of a user: those with a contact, and those that can only be woken."""
        devices: dict[str, None] = {}
        for binding in location.bindings:
            devices[without_reg_id(binding.device)] = None
        for record in location.push_records:
            devices[without_reg_id(record.device)] = None
        return [self.target(device, location, subscriber) for device in devices]

    def without_app(self, location: Location) -> tuple[PushRecord, ...]:
        """Those of the devices that would be pushed if only their app were configured."""
        lacking = [each for each in location.push_records if each.app_id not in self.apps]
        return tuple([each for each in lacking if self.consents(each)])

    def why_not_pushed(self, record: PushRecord, subscriber: Subscriber) -> str:
        """What to tell whoever asks; empty: it is, when it is asleep."""
        if not subscriber.hold:
            return "hold is switched off for this user"
        if not self.consents(record):
            return "the app has switched pushes for calls off"
        app = self.apps.get(record.app_id)
        if app is None:
            return f"no app {record.app_id} in the configuration"
        if self._hold(app, subscriber) <= 0:
            return "the time to hold is 0"
        return ""

    @staticmethod
    def _hold(app: AppPolicy, subscriber: Subscriber) -> float:
        return app.hold if subscriber.hold_seconds is None else subscriber.hold_seconds

    def target(self, device: str, location: Location, subscriber: Subscriber) -> Target:
        """The target that one device makes; of its flows the newest counts (RFC 5626 §7)."""
        device = without_reg_id(device)
        record = location.push_record(device)
        bound = [b for b in location.bindings if without_reg_id(b.device) == device]
        live = [b for b in bound if self.is_live(b)]
        if not live:
            flow = bound[0] if bound else None
            return self._target(device, flow, record, subscriber, live=False)
        targets = [self._target(device, b, record, subscriber, live=True) for b in live]
        if len(targets) > 1:
            targets[0].others = tuple(targets[1:])
        return targets[0]

    def _target(
        self,
        device: str,
        binding: Binding | None,
        record: PushRecord | None,
        subscriber: Subscriber,
        *,
        live: bool,
    ) -> Target:
        app = self.apps.get(record.app_id) if record and self.consents(record) else None
        hold = 0.0
        if app is not None and subscriber.hold:
            hold = self._hold(app, subscriber)
        flow, route = way_to(binding, self.node) if binding else ("", ())
        return Target(
            device=f"{subscriber.aor} {device}",
            aor=subscriber.aor,
            key=device,
            uri=binding.contact if binding else "",
            flow=flow,
            route=route,
            live=live,
            push=record if hold > 0 else None,
            hold=hold,
            push_always=app is not None and app.push_always,
        )


# --- The request as it leaves (§16.6) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Diversion:
    """A call that goes somewhere else than where it was sent (RFC 5806, RFC 7044)."""

    uri: str
    "Where it was sent."
    status: int
    "What came of it; 302 for a call that is always sent on."
    cause: Cause | None
    "None: it is always sent on."

    @property
    def reason(self) -> str:
        """The diversion-reason of RFC 5806."""
        return _DIVERSION_REASONS[self.cause]


_DIVERSION_REASONS: Final = {
    None: "unconditional",
    Cause.UNREACHABLE: "unavailable",
    Cause.NO_ANSWER: "no-answer",
    Cause.BUSY: "user-busy",
    Cause.DECLINED: "deflection",
}


def invitation_expires(request: Request) -> int | None:
    """Seconds after which an INVITE counts for nothing any more, if it says so (RFC 3261 §13.3.1).

    What cannot be read is ignored; Expires in other requests means something else.
    """
    return number(request.headers.get("expires") or "") if request.method == "INVITE" else None


def max_breadth(request: Request) -> int | None:
    """To how many a request may be forwarded at a time, if it says so (RFC 5393 §5.3)."""
    text = request.headers.get("max-breadth")
    return None if text is None else number(text)


def forward_request(
    request: Request,
    target: Target,
    record_routes: Iterable[str],
    push_id: str = "",
    diversions: Sequence[Diversion] = (),
    *,
    breadth: int | None = None,
    to_registrar: bool = False,
    to_peer: bool = False,
    realms: Collection[str] | None = None,
) -> Request:
    """The request as ``target`` gets it, but for our Via (§16.6 steps 1-6).

    ``record_routes`` are URIs, the one nearest to the caller first. ``breadth`` is what of the
    Max-Breadth is left for a server, which may fork; a device does not (RFC 5393 §5.6).
    ``to_registrar``: it goes to a server that knows the caller's password, as we do not. Another
    server gets the credentials that are for none of our ``realms`` (§22.3), a device none;
    ``to_peer``: the flow of the target leads to no device but to a server. Raises
    MessageError for what has no hops left: an ACK, which cannot be refused.
    """
    to_device = not to_registrar and (target.flow != "" or target.route != ())
    if to_device:
        breadth = 1
    elif breadth is None:
        breadth = _DEFAULT_MAX_BREADTH
    headers = request.headers.copy()
    if not to_registrar:
        if realms is not None and (to_peer or not to_device):
            take_credentials(headers, realms)
        else:
            headers.remove("proxy-authorization")
    hops = hops_left(request)
    if hops < 0:
        raise MessageError("Too Many Hops", Status.TOO_MANY_HOPS)
    headers.set("Max-Forwards", str(hops))
    headers.set("Max-Breadth", str(breadth))
    if push_id:
        headers.set("X-Push-Id", push_id)
    for uri in record_routes:
        headers.prepend("Record-Route", f"<{uri}>")
    for value in reversed(target.route):
        headers.prepend("Route", value)
    forwarded = request.like(without_push_params(target.uri), headers)
    strip_push_params(forwarded)
    if target.key:
        hide_identity(forwarded)
    if diversions:
        _add_diversions(forwarded, diversions, target)
    return forwarded


def take_credentials(headers: Headers, realms: Collection[str]) -> None:
    """Leave nothing in Proxy-Authorization but what is for none of these ``realms``, ours."""
    if "proxy-authorization" not in headers.first:
        return
    others = for_other_realms(headers.get_all("proxy-authorization"), realms)
    headers.remove("proxy-authorization")
    for value in others:
        headers.append("Proxy-Authorization", value)


def hops_left(request: Request) -> int:
    """The Max-Forwards of a valid request when it goes on (§16.6 step 3)."""
    if "max-forwards" not in request.headers.first:
        return DEFAULT_MAX_FORWARDS
    return request.max_forwards - 1


def _add_diversions(request: Request, diversions: Sequence[Diversion], target: Target) -> None:
    """Say where the call has been, so that a voicemail finds the box.

    The topmost Diversion is the newest (RFC 5806 §4.1.1). In History-Info each entry that failed
    carries its Reason; what it was mapped to (mp) is the next one below, a user of ours by its
    address-of-record with the contact that was changed to (rc) below that (RFC 7044 §9.3).
    """
    headers = request.headers
    for diversion in diversions:
        headers.prepend("Diversion", f"<{diversion.uri}>;reason={diversion.reason};counter=1")
    earlier = headers.values("history-info")
    index = f"{_history_index(earlier[-1])}.1" if earlier else "1"
    mapped = ""
    for diversion in diversions:
        reason = quote(f"SIP;cause={diversion.status}", safe="")
        headers.append("History-Info", f"<{diversion.uri}?Reason={reason}>;index={index}{mapped}")
        mapped = f";mp={index}"
        index += ".1"
    if target.key:
        headers.append("History-Info", f"<{uri_of(target.aor)}>;index={index}{mapped}")
        mapped = f";rc={index}"
        index += ".1"
    headers.append("History-Info", f"<{request.uri}>;index={index}{mapped}")


def _history_index(entry: str) -> str:
    """Its place among the others; 1 where it tells none, or cannot be read."""
    try:
        return parse_name_addr(entry).params.get("index") or "1"
    except MessageError:
        return "1"


def strip_push_params(message: Message) -> None:
    """RFC 8599 §4.1: nobody but the registrar needs what a device can be pushed by.

    Never raises, for it is asked of what comes back while a call is under way: of a Contact that
    cannot be read, whatever looks like such a parameter goes.
    """
    for name, line in message.headers.lines("contact"):
        if ";pn-" in line.lower():
            values = [_without_push_params(value) for value in message.headers.values(name)]
            message.headers.set("Contact", ", ".join(values))
            return


def _without_push_params(contact: str) -> str:
    try:
        uri = parse_name_addr(contact).uri
    except MessageError:
        return cut_push_params(contact)
    return contact.replace(uri, without_push_params(uri), 1)


def hang_up_requests(sent: Request, answer: Response, realm: Realm) -> tuple[Request, Request]:
    """ACK and BYE for an answer to ``sent`` that nobody waits for (§13.2.2.4, §15.1.1).

    Without Via; both go over the flow that ``sent`` went over. Raises MessageError.
    """
    contacts = answer.headers.values("contact")
    if not contacts:
        raise MessageError("Missing Contact")
    contact = parse_name_addr(contacts[0]).uri
    route: list[str] = []
    for value in answer.headers.values("record-route"):
        if realm.is_us(parse_sip_uri(parse_name_addr(value).uri)):
            break
        route.insert(0, value)
    number = sent.cseq.number
    return (
        _in_dialog(CSeq(number, "ACK"), contact, route, sent, answer),
        _in_dialog(CSeq(number + 1, "BYE"), contact, route, sent, answer),
    )


def _in_dialog(cseq: CSeq, uri: str, route: list[str], sent: Request, answer: Response) -> Request:
    headers = Headers(
        sent.headers.lines("from") + answer.headers.lines("to") + sent.headers.lines("call-id")
    )
    for value in route:
        headers.append("Route", value)
    headers.append("CSeq", f"{cseq.number} {cseq.method}")
    headers.append("Max-Forwards", str(DEFAULT_MAX_FORWARDS))
    headers.append("Content-Length", "0")
    return Request(cseq.method, uri, headers)


# --- What a push says about a request ------------------------------------------------------------


def has_video(request: Request) -> bool:
    """Whether the SDP offer has a video stream that is not refused (RFC 4566 §5.14)."""
    return any(
        line.startswith(b"m=video ") and not line.startswith(b"m=video 0")
        for line in request.body.splitlines()
    )


def caller(request: Request) -> tuple[str, str]:
    """(user part or number, display name) of the caller as the callee should see it."""
    address = request.from_
    try:
        user = address.sip_uri.aor.rpartition("@")[0]
    except MessageError:  # a tel: URI
        user = address.uri.partition(":")[2].partition(";")[0]
    return user, address.display_name
