"""What push services and a webhook's receiver check in a push, as their documents say."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from base64 import urlsafe_b64decode
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sipush.demo.credentials import CLIENT_EMAIL, KEY_ID, PROJECT_ID, TEAM_ID, Credentials
from sipush.demo.http_server import HttpRequest

TOLERANCE = 300
"Seconds a webhook's signature stays valid."
GOOGLE = "https://oauth2.googleapis.com/token"
"The audience of an assertion, whatever its account's token_uri."
SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule of the service that a request breaks, and how the service answers it."""

    status: int
    reason: str
    "The service's own word for it."
    detail: str


class ApnsChecks:
    """The rules of ``POST /3/device/<token>``."""

    def __init__(self, credentials: Credentials, bundle_ids: set[str]) -> None:
        self._key = _apns_public_key(credentials)
        self._bundle_ids = bundle_ids

    def check(self, request: HttpRequest) -> list[Violation]:
        """Everything wrong, the most serious first."""
        return [
            *self._check_connection(request),
            *self._check_authorization(request.headers.get("authorization", "")),
            *self._check_topic(request.headers),
            *_check_apns_headers(request.headers),
            *_check_apns_payload(request),
        ]

    def _check_connection(self, request: HttpRequest) -> list[Violation]:
        found = []
        if not request.http2:
            found.append(Violation(400, "BadRequest", "APNs is HTTP/2 only (ALPN h2)"))
        if request.method != "POST":
            found.append(Violation(405, "MethodNotAllowed", request.method))
        if not re.fullmatch(r"/3/device/[0-9a-fA-F]+", request.path):
            found.append(Violation(400, "BadDeviceToken", "the path is /3/device/<hex>"))
        return found

    def _check_authorization(self, authorization: str) -> list[Violation]:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return [Violation(403, "MissingProviderToken", "no bearer token")]
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            claims = jwt.decode(token, self._key, ["ES256"], options={"verify_iat": False})
        except jwt.PyJWTError as error:
            return [Violation(403, "InvalidProviderToken", str(error))]
        if kid != KEY_ID or claims.get("iss") != TEAM_ID:
            return [Violation(403, "InvalidProviderToken", "kid or iss is not the key's")]
        issued = claims.get("iat")
        if not isinstance(issued, int) or not -60 <= time.time() - issued <= 3600:
            return [Violation(403, "ExpiredProviderToken", "iat is not within the last hour")]
        return []

    def _check_topic(self, headers: dict[str, str]) -> list[Violation]:
        topic = headers.get("apns-topic", "")
        push_type = headers.get("apns-push-type", "")
        if push_type not in ("voip", "alert"):
            return [Violation(400, "InvalidPushType", f"apns-push-type {push_type!r}")]
        wanted = {f"{b}.voip" if push_type == "voip" else b for b in self._bundle_ids}
        if not topic:
            return [Violation(400, "MissingTopic", "no apns-topic")]
        if topic not in wanted:
            return [Violation(400, "BadTopic", f"topic {topic!r} for push type {push_type}")]
        return []


def _check_apns_headers(headers: dict[str, str]) -> list[Violation]:
    found = []
    if headers.get("apns-priority") != "10":
        found.append(Violation(400, "BadPriority", "a call or message has priority 10"))
    expiration = headers.get("apns-expiration", "")
    if not expiration.isdigit() or (expiration != "0" and int(expiration) < time.time() - 1):
        found.append(Violation(400, "BadExpirationDate", f"apns-expiration {expiration!r}"))
    if not _UUID.fullmatch(headers.get("apns-id", "")):
        found.append(Violation(400, "BadMessageId", "apns-id is not a UUID"))
    if len(headers.get("apns-collapse-id", "").encode()) > 64:
        found.append(Violation(400, "BadCollapseId", "over 64 bytes"))
    return found


def _check_apns_payload(request: HttpRequest) -> list[Violation]:
    push_type = request.headers.get("apns-push-type")
    voip = push_type == "voip"
    limit = 5120 if voip else 4096
    if len(request.body) > limit:
        return [Violation(413, "PayloadTooLarge", f"{len(request.body)} bytes of {limit}")]
    payload = read_json(request.body)
    if not payload:
        return [Violation(400, "PayloadEmpty", "no JSON object")]
    if push_type == "alert" and "alert" not in payload.get("aps", {}):
        return [Violation(400, "BadRequest", "an alert without aps.alert")]
    return []


class FcmChecks:
    """The rules of the token endpoint and of ``messages:send``."""

    def __init__(self, credentials: Credentials, access_token: str) -> None:
        self._credentials = credentials
        self._access_token = access_token

    @cached_property
    def _key(self) -> rsa.RSAPublicKey:
        return _service_account_public_key(self._credentials)

    def check_assertion(self, request: HttpRequest, token_uri: str) -> list[Violation]:
        """RFC 7523: the assertion that buys an access token."""
        form = parse_qs(request.body.decode())
        if form.get("grant_type") != ["urn:ietf:params:oauth:grant-type:jwt-bearer"]:
            return [Violation(400, "unsupported_grant_type", "grant_type")]
        try:
            claims = jwt.decode(
                form.get("assertion", [""])[0], self._key, ["RS256"], audience=[GOOGLE, token_uri]
            )
        except jwt.PyJWTError as error:
            return [Violation(400, "invalid_grant", str(error))]
        if claims.get("iss") != CLIENT_EMAIL:
            return [Violation(400, "invalid_grant", "iss is not the account")]
        if SCOPE not in claims.get("scope", "").split():
            return [Violation(400, "invalid_scope", "no firebase.messaging scope")]
        return []

    def check(self, request: HttpRequest) -> list[Violation]:
        """Everything wrong with one send, the most serious first."""
        found = []
        if request.method != "POST" or request.path != f"/v1/projects/{PROJECT_ID}/messages:send":
            found.append(Violation(404, "NOT_FOUND", f"{request.method} {request.path}"))
        if request.headers.get("authorization") != f"Bearer {self._access_token}":
            found.append(Violation(401, "UNAUTHENTICATED", "not the access token we issued"))
        return found + _check_fcm_message(read_json(request.body).get("message"))


def _priorities(data: Any) -> tuple[str, ...]:
    """Calls and messages are urgent; a refresh is, when a request waits for it."""
    silent = isinstance(data, dict) and data.get("msg_type") == "refresh"
    return ("high", "normal") if silent else ("high",)


def _check_fcm_message(message: Any) -> list[Violation]:
    if not isinstance(message, dict) or not message.get("token"):
        return [Violation(400, "INVALID_ARGUMENT", "no message, or no token in it")]
    found = []
    data = message.get("data")
    if not isinstance(data, dict) or not all(isinstance(v, str) for v in data.values()):
        found.append(Violation(400, "INVALID_ARGUMENT", "data values must be strings"))
    elif len(json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()) > 4096:
        found.append(Violation(400, "INVALID_ARGUMENT", "data over 4096 bytes"))
    if "notification" in message:
        found.append(Violation(400, "INVALID_ARGUMENT", "a notification key makes it a banner"))
    android = message.get("android", {})
    if android.get("priority") not in _priorities(data):
        found.append(Violation(400, "INVALID_ARGUMENT", "android.priority is not right"))
    if not re.fullmatch(r"\d+(\.\d{1,9})?s", str(android.get("ttl"))):
        found.append(Violation(400, "INVALID_ARGUMENT", f"android.ttl {android.get('ttl')!r}"))
    return found


class WebpushChecks:
    """The rules of ``POST`` to a push resource: RFC 8030 §5, RFC 8291 §4, RFC 8292 §4."""

    def __init__(self, application_server_key: str, origin: str) -> None:
        """The key that all subscriptions were made with, and where they are."""
        self._key = application_server_key
        self._origin = origin

    def check(self, request: HttpRequest) -> list[Violation]:
        """Everything wrong that can be seen without the browser's keys, the most serious first."""
        return [
            *self._check_authorization(request.headers.get("authorization", "")),
            *_check_webpush_headers(request),
            *_check_webpush_body(request),
        ]

    def _check_authorization(self, authorization: str) -> list[Violation]:
        match = re.fullmatch(r"vapid t=([\w.-]+), *k=([\w-]+)", authorization)
        if match is None:
            return [Violation(401, "Unauthorized", "no vapid token and key")]
        token, key = match.groups()
        if key != self._key:
            return [Violation(403, "VapidPkHashMismatch", "not the key of the subscription")]
        try:
            claims = jwt.decode(token, _public_key(key), ["ES256"], audience=self._origin)
        except jwt.PyJWTError as error:
            return [Violation(403, "BadJwtToken", str(error))]
        if not isinstance(claims.get("exp"), int) or claims["exp"] > time.time() + 86400:
            return [Violation(403, "BadJwtToken", "exp is not within the next 24 hours")]
        if not re.fullmatch(r"mailto:\S+@\S+|https://\S+", claims.get("sub", "")):
            return [Violation(403, "BadJwtToken", "sub is neither mailto: nor https:")]
        return []


def _check_webpush_headers(request: HttpRequest) -> list[Violation]:
    headers, found = request.headers, []
    if request.method != "POST":
        found.append(Violation(405, "MethodNotAllowed", request.method))
    if not re.fullmatch(r"[0-9]+", headers.get("ttl", "")):
        found.append(Violation(400, "BadTtl", f"TTL {headers.get('ttl')!r}"))
    if headers.get("urgency") != "high":
        found.append(Violation(400, "BadUrgency", "a call or message is urgent"))
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", headers.get("topic", "")):
        found.append(Violation(400, "BadWebPushTopic", f"Topic {headers.get('topic')!r}"))
    return found


def _check_webpush_body(request: HttpRequest) -> list[Violation]:
    body = request.body
    if not body:  # carries nothing: RFC 8030 §5
        return []
    if request.headers.get("content-encoding") != "aes128gcm":
        return [Violation(415, "UnsupportedMediaType", "not aes128gcm")]
    if len(body) > 4096:
        return [Violation(413, "PayloadTooLarge", f"{len(body)} bytes")]
    if len(body) < 103 or int.from_bytes(body[16:20], "big") < len(body) - 86 or body[20] != 65:
        return [Violation(400, "BadEncoding", "not one record, with a P-256 key as its keyid")]
    return []


def check_webhook(request: HttpRequest, secret: bytes, header: str) -> list[Violation]:
    """The receiver's side of the signature: ``t=<unix>,v1=<hex>`` over ``<t>.<raw body>``."""
    parts = dict(p.partition("=")[::2] for p in request.headers.get(header, "").split(","))
    stamp, signature = parts.get("t", ""), parts.get("v1", "")
    if not stamp.isdigit() or abs(time.time() - int(stamp)) > TOLERANCE:
        return [Violation(401, "stale", f"{header} has no timestamp of the last 300 s")]
    expected = hmac.new(secret, f"{stamp}.".encode() + request.body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, signature):
        return [Violation(401, "signature", "v1 does not sign <t>.<raw body>")]
    wanted = {"id", "type", "created_at", "account_id", "data"}
    if missing := wanted - read_json(request.body).keys():
        return [Violation(400, "body", f"lacks {', '.join(sorted(missing))}")]
    return []


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a body, or an empty one."""
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _public_key(point: str) -> ec.EllipticCurvePublicKey:
    return ec.EllipticCurvePublicKey.from_encoded_point(
        ec.SECP256R1(), urlsafe_b64decode(f"{point}=")
    )


def _apns_public_key(credentials: Credentials) -> ec.EllipticCurvePublicKey:
    key = serialization.load_pem_private_key(credentials.apns_key_file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.public_key()


def _service_account_public_key(credentials: Credentials) -> rsa.RSAPublicKey:
    account = json.loads(credentials.service_account_file.read_text())
    key = serialization.load_pem_private_key(account["private_key"].encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key.public_key()
