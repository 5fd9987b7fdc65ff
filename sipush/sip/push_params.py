"""How a phone says that it can be woken, in every dialect seen in the wild.

``X-Push`` and its older names are header fields; RFC 8599 and liblinphone's older form are URI
parameters of the Contact. docs/push-headers.md shows each on the wire and what is made of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sipush.sip.grammar import parse_params, unescape, unquote_string
from sipush.sip.headers import Headers, field_value
from sipush.sip.memo import Memo

HEADERS: Final = ("x-push", "x-p-push", "portsip-push")
"Names of the push header, best first: when several disagree, the first of them counts."

RFC8599: Final = "rfc8599"
LINPHONE: Final = "linphone"

NO_EXTRA: Final[Mapping[str, str]] = {}


@dataclass(slots=True, init=False)
class PushParams:
    """What one device asks for. Without a token it is registered and never pushed."""

    provider: str
    """``apns``, ``fcm``, ``webpush``, or the phone's own word for a platform that has no service of
    its own."""
    app_id: str
    "Empty: there is no token, or RFC 8599 has no place for it (webpush)."
    call_token: str
    "For apns the VoIP token, for webpush the subscription's endpoint."
    message_token: str
    "For apns the token for alerts; for all others the same as ``call_token``."
    allow_call: bool
    allow_message: bool
    dialect: str
    "Header names as the phone wrote them, comma-separated; ``rfc8599``; ``linphone``."
    extra: Mapping[str, str]
    "Parameters we do not know, and those of RFC 8599 as they came but the token."

    def __init__(  # noqa: PLR0917 - the fields in their order
        self,
        provider: str,
        app_id: str = "",
        call_token: str = "",
        message_token: str = "",
        allow_call: bool = True,
        allow_message: bool = True,
        dialect: str = "X-Push",
        extra: Mapping[str, str] = NO_EXTRA,
    ) -> None:
        self.provider = provider
        self.app_id = app_id
        self.call_token = call_token
        self.message_token = message_token
        self.allow_call = allow_call
        self.allow_message = allow_message
        self.dialect = dialect
        self.extra = extra

    def __repr__(self) -> str:
        """No tokens."""
        return f"<PushParams {self.dialect} {self.provider}>"

    @property
    def off(self) -> bool:
        """Both consents withdrawn: forget how to wake this device."""
        return not (self.allow_call or self.allow_message)

    @property
    def token(self) -> str:
        """Either token, or an empty string when there is none (yet)."""
        return self.call_token or self.message_token


@dataclass(frozen=True, slots=True)
class PushFault:
    """Push parameters that cannot be used."""

    text: str
    "For Warning 399: never holds a token."
    dialect: str
    provider: str = ""
    "The ``pn-provider`` when it is one that nobody here knows (555, RFC 8599 §8.1)."


class _FaultError(Exception):
    def __init__(self, text: str, provider: str = "") -> None:
        super().__init__(text)
        self.provider = provider


def parse_push_headers(headers: Headers) -> PushParams | PushFault | None:
    """The push header of a REGISTER, under any of its names; None when there is none.

    Several at once are one device.
    """
    first = headers.first
    named = [name for name in HEADERS if name in first]
    if not named:
        return None
    line = first[named[0]]
    try:
        push = _parse_header(line)
    except _FaultError as fault:
        return PushFault(f"{_written_name(line)}: {fault}", _dialect(headers))
    if len(named) > 1 or len(first) < len(headers.fields):
        push.dialect = _dialect(headers)
    return push


def _dialect(headers: Headers) -> str:
    written = [_written_name(line) for name, line in headers.fields if name in HEADERS]
    return ",".join(dict.fromkeys(written))


def _written_name(line: str) -> str:
    return line.partition(":")[0].strip()


def parse_push_uri_params(params: Mapping[str, str | None]) -> PushParams | PushFault | None:
    """The push parameters of a Contact URI (RFC 8599 §8.7 or liblinphone's older ones), or None."""
    if "pn-provider" in params:
        dialect, parse = RFC8599, _parse_rfc8599
    elif "pn-tok" in params:
        dialect, parse = LINPHONE, _parse_linphone
    else:
        return None
    try:
        return parse({name: unescape(value or "") for name, value in params.items()})
    except _FaultError as fault:
        return PushFault(str(fault), dialect, fault.provider)


def _parse_header(line: str) -> PushParams:
    """One push header. What it says but for the tokens, all phones of an app say alike."""
    before, _, rest = line.partition(_UID)
    uid, _, after = rest.partition(";")
    if uid and '"' not in uid and "<" not in uid and len(before) + len(after) <= _SHORT:
        alike = _alike.get(f"{before}{_UID}*;{after}")
        if alike.call_token == "*":  # else it was no parameter, or not the first of that name
            return _with_tokens(alike, uid.strip())
    push = _read_header(line)
    return _with_tokens(push, push.call_token)


def _read_header(line: str) -> PushParams:
    """All but the tokens: ``call_token`` is the device-uid."""
    params = parse_params(field_value(line))
    values = {n: unquote_string(v) if v and v[0] == '"' else v or "" for n, v in params.items()}
    take = values.pop
    allow_call = _flag(take("allow-call-push", "true"), "allow-call-push")
    allow_message = _flag(take("allow-message-push", "true"), "allow-message-push")
    uid, app_id, system = take("device-uid", ""), take("app-id", ""), take("device-os", "").lower()
    if "," in system or "=" in system:
        raise _FaultError("device-os is no word: parameters are separated by ;")
    provider = _SYSTEMS.get(system, system)
    name, extra = _written_name(line), values or NO_EXTRA
    return PushParams(provider, app_id, uid, "", allow_call, allow_message, name, extra)


def _with_tokens(header: PushParams, uid: str) -> PushParams:
    """What a header asks for that ``_read_header`` has read, with this device-uid."""
    provider, app_id = header.provider, header.app_id
    call, message = _pair(uid) if provider == "apns" else (uid, uid)
    if not header.off:  # switching push off needs no more than the flags
        _require(provider, "device-os is missing")
        _require(app_id or not (call or message), "app-id is missing")
        _check_token(call, "device-uid")
        if message and message is not call:
            _check_token(message, "device-uid")
    return PushParams(
        provider,
        app_id,
        call,
        message,
        header.allow_call,
        header.allow_message,
        header.dialect,
        header.extra,
    )


_UID: Final = "device-uid="
_alike: Final = Memo(_read_header, 256)
"With ``*`` for the tokens."
_SHORT: Final = 300
"Characters: more are no usual header."

_SYSTEMS: Final = {"ios": "apns", "android": "fcm", "web": "webpush"}
_FLAGS: Final = {"true": True, "false": False}


def _flag(text: str, name: str) -> bool:
    flag = _FLAGS.get(text)
    if flag is None:
        flag = _FLAGS.get(text.lower())
    if flag is None:
        raise _FaultError(f"{name} is neither true nor false")
    return flag


def _pair(uid: str) -> tuple[str, str]:
    """``<VoIP token>|<APNs token>``; one token alone is the VoIP token."""
    call, _, message = uid.partition("|")
    return call.strip(), message.strip()


def _parse_rfc8599(params: dict[str, str]) -> PushParams:
    provider = params["pn-provider"].lower()
    extra = {n: v for n, v in params.items() if n.startswith("pn-") and n != "pn-prid"}
    if provider.endswith(".dev"):  # liblinphone's word for a build that uses the sandbox
        provider = provider.removesuffix(".dev")
        extra["environment"] = "sandbox"
    prid, param = params.get("pn-prid", ""), params.get("pn-param", "")
    if not prid:  # asks what is supported (§4.1.1)
        return PushParams(provider, dialect=RFC8599, extra=extra)
    if provider == "apns":
        app_id, service = _split_topic(param)
        call, message = _split_tokens(prid, service)
        _require(call or message, "pn-prid has no token")
    elif provider == "fcm":
        _require(param, "pn-param is missing")
        app_id, call, message = param, prid, prid
        _check_token(prid, "pn-prid")
    elif provider == "webpush":  # "pn-param MUST NOT be used" (§12)
        app_id, call, message = params.get("app-id", ""), prid, prid
        _check_token(prid, "pn-prid")
    else:
        raise _FaultError("pn-provider is not supported", provider)
    return PushParams(provider, app_id, call, message, dialect=RFC8599, extra=extra)


def _split_topic(param: str) -> tuple[str, str]:
    """Bundle and service of ``TEAMID.bundle.service``, split at the first and the last dot."""
    team, _, rest = param.partition(".")
    bundle, _, service = rest.rpartition(".")
    _require(team and bundle and service, "pn-param is not TEAMID.bundle.service")
    return bundle, service


def _split_tokens(prid: str, service: str) -> tuple[str, str]:
    """VoIP and alert token of an apns PRID; liblinphone packs ``T1:remote&T2:voip`` into one."""
    tokens = {"voip": "", "remote": ""}
    for part in prid.split("&"):
        token, colon, kind = part.rpartition(":")
        if not colon:
            token, kind = part, "voip" if "voip" in service.split("&") else "remote"
        _check_token(token, "pn-prid")
        _require(kind.lower() in tokens, "pn-prid is not TOKEN:voip or TOKEN:remote")
        tokens[kind.lower()] = token
    return tokens["voip"], tokens["remote"]


_LINPHONE_TYPES = {"apple": "apns", "google": "fcm", "firebase": "fcm"}


def _parse_linphone(params: dict[str, str]) -> PushParams:
    provider = _LINPHONE_TYPES.get(params.get("pn-type", "").lower(), "")
    _require(provider, "pn-type is not supported")
    app_id, token = params.get("app-id", ""), params["pn-tok"]
    _require(app_id, "app-id is missing")
    extra = {n: v for n, v in params.items() if n.startswith("pn-") and n != "pn-tok"}
    extra["app-id"] = app_id
    if provider == "fcm":
        _check_token(token, "pn-tok")
        return PushParams(provider, app_id, token, token, dialect=LINPHONE, extra=extra)
    if app_id.endswith(".dev"):
        extra["environment"] = "sandbox"
    app_id = app_id.removesuffix(".dev").removesuffix(".prod")
    bundle = app_id.removesuffix(".voip")
    call, message = _split_tokens(token, "voip" if bundle != app_id else "remote")
    return PushParams(provider, bundle, call, message, dialect=LINPHONE, extra=extra)


_PARAMS = re.compile(r";(?:pn-(?!purr[=;?])[^;=?]*|app-id)(?:=[^;?]*)?(?=[;?]|$)", re.IGNORECASE)


def without_push_params(uri: str) -> str:
    """A Contact URI as other parties may see it (RFC 8599 §4.1): without tokens.

    ``pn-purr`` stays, for it must come back in the requests of its dialog (§6.1).
    """
    if ";" not in uri:
        return uri
    user, at, rest = uri.partition("@")  # a user has none; a token that nobody has escaped may
    return user + at + _PARAMS.sub("", rest) if at else _PARAMS.sub("", uri)


def cut_push_params(text: str) -> str:
    """The same of what is no URI: whatever looks like one of the parameters goes."""
    return _PARAMS.sub("", text)


def _check_token(token: str, name: str) -> None:
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise _FaultError(f"{name} is not a token")


def _require(condition: object, fault: str) -> None:
    if not condition:
        raise _FaultError(fault)
