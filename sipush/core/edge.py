"""The edge of a registrar elsewhere, such as a PBX: its phones reach it through us (RFC 3327).

The registrar keeps users and passwords; we, where the phones are and how they are woken. It has one
contact for each device, which stays the same whatever port the device comes back from, and leads
here. docs/edge.md has the tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sipush.core.authentication import CHALLENGES, has_credentials
from sipush.core.bindings import SILENT, Aor, Location, without_reg_id
from sipush.core.outbound import RouteToken, decode_route_token, device_digest, encode_route_token
from sipush.core.registration import REFRESH_AHEAD, SHORTEST_REFRESHED, Fetch, Update, ok_response
from sipush.core.rejection import Rejection
from sipush.core.routing import hops_left
from sipush.core.target_set import Target
from sipush.errors import MessageError
from sipush.sip.fields import format_params, parse_name_addr
from sipush.sip.grammar import number, parse_params
from sipush.sip.message import Request, Response
from sipush.sip.push_params import HEADERS
from sipush.sip.status import Status
from sipush.sip.uri import parse_sip_uri, with_user

ANY_REQUEST: Final = "\n\n"
"""In place of a Call-ID: the tokens of devices are good for any, and none of a node or dialog."""

PARAM: Final = "device"
"Parameter of the Contact URIs that the registrar gets."

_ROUNDED: Final = 60
"Seconds that a registrar may have left out of what it was asked for: Asterisk, what has passed."


@dataclass(frozen=True, slots=True)
class Here:
    """How the registrar reaches us: two URIs without a user."""

    contact: str
    "The same on every node, so that a device has one contact."
    path: str
    key: bytes
    "Signs the tokens; the same in every process on one store."

    def contact_of(self, aor: Aor, device: str) -> str:
        """The contact URI of a device. It tells nobody where or who it is."""
        user = aor.rpartition("@")[0]
        return f"{with_user(self.contact, user)};{PARAM}={self._token(aor, device)}"

    def path_of(self, aor: Aor, device: str) -> str:
        """The Path to a device, or empty for several: then only their contacts tell them apart."""
        return f"<{with_user(self.path, self._token(aor, device))};lr>"

    def _token(self, aor: Aor, device: str) -> str:
        return encode_route_token(RouteToken("", aor, device_digest(device)), ANY_REQUEST, self.key)


# --- The REGISTER on its way to the registrar ----------------------------------------------------


def asked(update: Update, before: Location, after: Location) -> dict[str, int]:
    """By device, without reg-id: the seconds to ask the registrar for; 0: it is to forget it.

    A device that can be woken is reachable as long as its push record lives, whatever it asks for
    itself, and also when it takes its contact back.
    """
    registration = update.registration
    devices = [binding.device for binding in registration.bind]
    devices += [device for device, _ in registration.unbind]
    if registration.unbind_all:
        devices += [row.device for row in before.bindings + before.push_records]
    return {
        device: _reachable_for(device, after, registration.now_epoch)
        for device in map(without_reg_id, devices)
    }


def _reachable_for(device: str, location: Location, now_epoch: float) -> int:
    until = [b.expires_epoch for b in location.bindings if without_reg_id(b.device) == device]
    if (record := location.push_record(device)) is not None:
        until.append(record.expires_epoch)
    return math.ceil(max(until, default=now_epoch) - now_epoch)


def register_request(
    request: Request, aor: Aor, decision: Fetch | Update, wanted: Mapping[str, int], here: Here
) -> Request:
    """The REGISTER as the registrar gets it, but for our Via; ``wanted``: what ``asked`` gave.

    What a device can be pushed by stays here, and so do the flows of one device (``reg-id``).
    """
    forwarded = request.copy()
    headers = forwarded.headers
    for name in ("route", "path", "contact", "expires", *HEADERS):
        headers.remove(name)
    headers.set("Max-Forwards", str(hops_left(request)))
    if isinstance(decision, Fetch):
        return forwarded
    if not any(wanted.values()) and decision.registration.unbind_all:
        headers.append("Contact", "*")
        headers.append("Expires", "0")
        return forwarded
    params = {without_reg_id(b.device): b.params for b in decision.registration.bind}
    for device, seconds in wanted.items():
        own = _without_flow(params.get(device, ""))
        headers.append("Contact", f"<{here.contact_of(aor, device)}>{own};expires={seconds}")
    headers.append("Expires", str(max(wanted.values())))
    headers.append("Path", here.path_of(aor, next(iter(wanted)) if len(wanted) == 1 else ""))
    if "path" not in headers.values("supported"):
        headers.append("Supported", "path")
    return forwarded


def _without_flow(params: str) -> str:
    kept = parse_params(params)
    return format_params({name: kept[name] for name in kept if name not in _OURS})


_OURS: Final = frozenset({"reg-id", "+sip.pnsreg"})
"Parameters of a Contact that are between a phone and us."


# --- Its answer ----------------------------------------------------------------------------------


def granted(response: Response, aor: Aor, wanted: Mapping[str, int], here: Here) -> dict[str, int]:
    """By device: the seconds that the registrar has granted of what it was asked for."""
    by_uri: dict[str, int | None] = {}
    for value in response.headers.values("contact"):
        contact = parse_name_addr(value)
        by_uri[_param(contact.uri)] = number(contact.params.get("expires") or "")
    for_all = number(response.headers.get("expires") or "")
    result = {}
    for device, seconds in wanted.items():
        told = by_uri.get(_param(here.contact_of(aor, device)))
        told = for_all if told is None else told
        result[device] = seconds if told is None else min(told, seconds)
    return result


def settle(update: Update, after: Location, seconds: Mapping[str, int]) -> tuple[str, ...]:
    """Let no binding last longer than the registrar has ``granted``, and have devices pushed in
    time that can be woken for longer: they register anew (RFC 8599 §5.5), if nobody need see it.

    The devices that cannot: the registrar forgets them before their push records end.
    """
    registration = update.registration
    now, lost = registration.now_epoch, []
    due = dict(registration.refreshes)
    for binding in registration.bind:
        until = now + seconds[without_reg_id(binding.device)]
        binding.expires_epoch = min(binding.expires_epoch, until)
    for device, lasts in seconds.items():
        record = after.push_record(device)
        if record is None or now + lasts + _ROUNDED >= record.expires_epoch:
            continue
        if record.platform in SILENT and lasts >= SHORTEST_REFRESHED:
            due.setdefault(record.device, now + lasts - REFRESH_AHEAD)
        else:
            due.pop(record.device, None)
            lost.append(device)
    registration.refreshes = tuple(due.items())
    return tuple(lost)


def register_response(
    request: Request, theirs: Response, decision: Fetch | Update, location: Location, now: float
) -> Response:
    """What the registrar has said, with the contacts as the phones gave them and our signs.

    Contacts that have not come by us are its own, and stay.
    """
    ours = ok_response(request, decision, location, now, theirs.to.tag or "")
    response = Response(theirs.status, theirs.reason, ours.headers)
    if "date" in theirs.headers:
        response.headers.remove("date")
    for contact in theirs.headers.values("contact"):
        if not _param(parse_name_addr(contact).uri):
            response.headers.append("Contact", contact)
    response.headers.extend(field for field in theirs.headers if field[0] not in _REPLACED)
    return response


_REPLACED: Final = frozenset(
    {
        *("via", "from", "to", "call-id", "cseq", "timestamp", "content-length"),
        *("contact", "expires", "path"),
        "service-route",  # all requests go to it by us as it is
    }
)


def says_wrong_password(request: Request, response: Response) -> bool:
    """Whether credentials were refused: somebody may be guessing.

    A registrar may refuse with 403 or 404 where another challenges anew; of a call these say
    something else.
    """
    if not has_credentials(request):
        return False
    if response.status in CHALLENGES:
        challenges = response.headers.get_all("www-authenticate")
        challenges += response.headers.get_all("proxy-authenticate")
        return not any(_is_stale(challenge) for challenge in challenges)
    return request.method == "REGISTER" and response.status in _REFUSALS


_REFUSALS: Final = frozenset({Status.FORBIDDEN, Status.NOT_FOUND})


def _is_stale(challenge: str) -> bool:
    text = challenge.lower().replace(" ", "")
    return "stale=true" in text or 'stale="true"' in text


# --- Requests from the registrar -----------------------------------------------------------------


def device_called(request: Request, key: bytes) -> RouteToken | Rejection | None:
    """The device that a request outside of dialogs is for; None when it names none.

    By the Request-URI, or by the Path where a registrar has made another URI of the contact.
    """
    named = _param(request.uri)
    token = decode_route_token(named, ANY_REQUEST, key) if named else None
    if token is None and "route" in request.headers:
        token = _device_in(request.headers.values("route")[0], key)
    if token is None and named:
        return Rejection(Status.NOT_FOUND, "Unknown Device")
    return token


def leave_path(request: Request, key: bytes) -> None:
    """Take the Path off a request inside a dialog: Asterisk adds it to the route set of each."""
    routes = request.headers.values("route")
    kept = [route for route in routes if _device_in(route, key) is None]
    if len(kept) < len(routes):
        request.headers.remove("route")
        for route in kept:
            request.headers.append("Route", route)


def _param(uri: str) -> str:
    if f";{PARAM}=" not in uri:
        return ""
    try:
        return parse_sip_uri(uri).params.get(PARAM) or ""
    except MessageError:
        return ""


def _device_in(route: str, key: bytes) -> RouteToken | None:
    user = parse_sip_uri(parse_name_addr(route).uri).user
    token = decode_route_token(user, ANY_REQUEST, key) if user else None
    return token if token is not None and token.device else None


def is_called(target: Target, token: RouteToken) -> bool:
    """Whether a device of the user is the one that the token names."""
    return device_digest(target.key) == token.device


def location_of(location: Location, digest: str) -> Location:
    """What of a user's ``location`` is that of one device, by its ``device_digest``."""
    return Location(
        tuple(b for b in location.bindings if device_digest(b.device) == digest),
        tuple(r for r in location.push_records if device_digest(r.device) == digest),
        location.messages,
    )
