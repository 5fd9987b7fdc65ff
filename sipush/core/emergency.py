"""Emergency calls: what is one, and what it looks like on the way to those who help."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from sipush.core.bindings import Aor
from sipush.core.pidf import CivicAddress, pidf_lo
from sipush.core.target_set import TargetSet
from sipush.errors import MessageError
from sipush.sip.grammar import unescape
from sipush.sip.headers import field_value
from sipush.sip.message import Request
from sipush.sip.uri import parse_sip_uri, uri_of

METHODS = frozenset({"INVITE", "MESSAGE"})
"The requests that may be emergency calls, or emergency texts."


@dataclass(frozen=True, slots=True)
class EmergencyPolicy:
    """The ``[emergency]`` section. Without a route there are no emergency calls."""

    numbers: frozenset[str] = frozenset()
    route: tuple[str, ...] = ()
    "SIP URIs, tried in order."
    strangers: bool = True
    "Whether callers that nobody knows are let through."
    addresses: Mapping[Aor, CivicAddress] = field(default_factory=dict)

    def covers(self, request: Request) -> bool:
        """Whether this, if its Request-URI is one for us, is an emergency call."""
        return bool(self.route) and (
            request.method in METHODS and is_emergency(request.uri, self.numbers)
        )

    def target_set(self) -> TargetSet:
        """The servers of the route."""
        return TargetSet.in_order(self.route)


NO_EMERGENCIES = EmergencyPolicy()


def is_emergency(uri: str, numbers: Collection[str]) -> bool:
    """Whether a URI is an emergency service (RFC 5031), or has one of these numbers."""
    scheme, _, rest = uri.partition(":")
    match scheme.lower():
        case "urn":
            service = rest.lower()
            return service == "service:sos" or service.startswith("service:sos.")
        case "tel":
            return _number(rest) in numbers
        case "sip" | "sips":
            try:
                user = parse_sip_uri(uri).user
            except MessageError:
                return False
            return user is not None and _number(unescape(user)) in numbers
    return False


def _number(text: str) -> str:
    """Without parameters and visual separators (RFC 3966 §3)."""
    return text.partition(";")[0].translate(_SEPARATORS)


_SEPARATORS = str.maketrans("", "", "-.() ")


def emergency_request(
    request: Request,
    caller: Aor,
    address: CivicAddress | None,
    boundary: str,
    now_epoch: float,
    *,
    from_peer: bool = False,
) -> Request:
    """The request as the route gets it, but for the Request-URI and our Via.

    ``caller`` is who we know it is, or empty: asserted, so that a callback finds the phone
    (RFC 3325 §9.1); what a peer has asserted stays. The address goes along by value (RFC 6442
    §4.1), unless the phone has put its own location in. ``boundary`` must not occur in the body.
    """
    enriched = request.copy()
    headers = enriched.headers
    if not from_peer:
        headers.remove("p-asserted-identity")
    if caller and "p-asserted-identity" not in headers:
        headers.append("P-Asserted-Identity", f"<{uri_of(caller)}>")
    if caller and address and "geolocation" not in headers:
        content_id = f"{boundary}@{caller.rpartition('@')[2]}"
        headers.append("Geolocation", f"<cid:{content_id}>")
        headers.set("Geolocation-Routing", "yes")
        _attach(enriched, pidf_lo(f"pres:{caller}", address, now_epoch), content_id, boundary)
    return enriched


def _attach(request: Request, document: bytes, content_id: str, boundary: str) -> None:
    """Put the body and a PIDF document side by side (multipart/mixed, RFC 5621 §3)."""
    described = [each for each in request.headers.fields if each[0] in _DESCRIBE_THE_BODY]
    for name in _DESCRIBE_THE_BODY:
        request.headers.remove(name)
    parts = []
    if request.body:
        lines = "".join(f"{name.title()}: {field_value(line)}\r\n" for name, line in described)
        parts.append(lines.encode("utf-8", "surrogateescape") + b"\r\n" + request.body)
    about = f"Content-Type: application/pidf+xml\r\nContent-ID: <{content_id}>\r\n\r\n"
    parts.append(about.encode() + document)
    mark = b"--" + boundary.encode()
    body = b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts) + mark + b"--\r\n"
    request.set_body(body, f'multipart/mixed;boundary="{boundary}"')


_DESCRIBE_THE_BODY = (
    "content-type",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-id",
)
