"""The types of the values in the configuration file: what is allowed, in words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from sipush.config_problems import refuse, toml
from sipush.core.fallback import Cause
from sipush.core.pidf import CIVIC_ELEMENTS
from sipush.errors import MessageError
from sipush.sip.uri import parse_sip_uri
from sipush.transport.address import parse_address

CAUSES = tuple(cause.value for cause in Cause)


def _guard(allowed: str, check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``check`` returns the value to keep or raises; the operator then reads ``allowed``."""

    def validate(value: Any) -> Any:
        try:
            return check(value)
        except PydanticCustomError:
            raise
        except (ValueError, MessageError):
            raise PydanticCustomError("not_allowed", "{allowed}", {"allowed": allowed}) from None

    return validate


def _path(value: object, info: ValidationInfo) -> object:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise PydanticCustomError("not_allowed", "a path")
    folder: Path = (info.context or {}).get("folder", Path())
    return Path(os.path.normpath(folder / value))


def _readable(path: Path) -> Path:
    try:
        is_file = path.is_file()
    except OSError:  # a folder that is closed to us, a name that is too long
        is_file = False
    if not (is_file and os.access(path, os.R_OK)):
        raise ValueError
    return path


def _ip_address(value: str) -> str:
    ip_address(value)
    return value


def _ip_port(value: str) -> str:
    if value:
        parse_address(value)
    return value


def _listen(value: str) -> str:
    if value:
        host, _, port = value.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise ValueError
    return value


def _network(value: object) -> object:
    return ip_network(value) if isinstance(value, str) else value


def _host_port(value: str) -> str:
    uri = parse_sip_uri(f"sip:{value}")
    if uri.user is not None or uri.params or uri.headers is not None:
        raise ValueError
    return value


def _or_empty(check: Callable[[str], str]) -> Callable[[str], str]:
    return lambda value: value and check(value)


def _push_host(value: str) -> str:
    _host_port(value.removeprefix("*."))
    return value.lower().removesuffix(":443")


def _contact(value: str) -> str:
    if not re.fullmatch(r"mailto:[^\s@]+@[^\s@]+|https://\S+", value):
        raise ValueError
    return value


def _domain(value: str) -> str:
    if parse_sip_uri(f"sip:{value}").host != value.lower():
        raise ValueError
    return value.lower()


def _sip_uri(value: str) -> str:
    parse_sip_uri(value)
    return value


def _server(value: str) -> str:
    if parse_sip_uri(value).user is not None:
        raise ValueError
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _fallback(value: object) -> object:
    if not isinstance(value, dict):
        return _or_empty(_sip_uri)(_text(value))
    for cause, uri in value.items():
        if cause not in CAUSES:
            refuse(f"{cause} is no cause (allowed: {', '.join(CAUSES)})")
        try:
            parse_sip_uri(_text(uri))
        except (ValueError, MessageError):
            refuse(f"{cause} is {toml(uri)} (allowed: {_A_SIP_URI})")
    return value


def _number(value: str) -> str:
    if not re.fullmatch(r"[+*#]?[0-9]+", value):
        raise ValueError
    return value


def _address(value: object) -> object:
    if not isinstance(value, dict):
        raise ValueError
    for name, text in value.items():
        if name not in CIVIC_ELEMENTS:
            refuse(f"{name} is no element of an address (allowed: {', '.join(CIVIC_ELEMENTS)})")
        _text(text)
    if not re.fullmatch(r"[A-Z]{2}", value.get("country", "")):
        refuse("has no country (allowed: two capital letters, such as DE)")
    return value


def _hex(length: int) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value and (len(value) != length or set(value.lower()) - set("0123456789abcdef")):
            raise ValueError
        return value.lower()

    return check


def _payload(value: object) -> object:
    strings = isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    if not strings and value not in ("portsip", "dialstack"):
        raise ValueError
    return value


def _redis_url(value: str) -> str:
    url = urlsplit(value)
    names = {name.lower() for name, _ in parse_qsl(url.query, keep_blank_values=True)}
    if url.password is not None or any(name.endswith("password") for name in names):
        refuse("holds a password (allowed: a URL without it, and password_file)")
    if "username" in names:
        refuse("holds a username behind the ? (allowed: one before the host, redis://user@host)")
    if url.port == 0:  # raises ValueError beyond 65535
        raise ValueError
    if url.scheme != "unix" and not re.fullmatch(r"/?[0-9]*", url.path):
        raise ValueError  # redis-py would take database 0
    if not value.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError
    return value


def _url(*schemes: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        url = urlsplit(value)
        if url.scheme not in schemes or not url.hostname or re.search(r"\s", value):
            raise ValueError
        if url.port == 0:  # raises ValueError beyond 65535
            raise ValueError
        return value

    return check


Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]
"0 lets the system choose (for tests; the log names the port)."
Name = Annotated[str, Field(min_length=1)]
DataPath = Annotated[Path, BeforeValidator(_path)]
"A relative path starts at the folder of the configuration file."
FilePath = Annotated[
    Path,
    BeforeValidator(_path),
    AfterValidator(_guard("a file that exists and that this user may read", _readable)),
]
IpAddress = Annotated[str, AfterValidator(_guard("an IPv4 or IPv6 address", _ip_address))]
IpPort = Annotated[
    str, AfterValidator(_guard("an IP address and a port, such as 127.0.0.1:9061", _ip_port))
]
Listen = Annotated[
    str, AfterValidator(_guard("a host and a port, such as 127.0.0.1:9060", _listen))
]
Network = Annotated[
    IPv4Network | IPv6Network,
    BeforeValidator(_guard("an IP address, or a network such as 192.0.2.0/24", _network)),
]
HostPort = Annotated[str, AfterValidator(_guard("host or host:port", _host_port))]
HostPortOrEmpty = Annotated[str, AfterValidator(_guard("host or host:port", _or_empty(_host_port)))]
PushHost = Annotated[
    str,
    AfterValidator(_guard("host, host:port, or *.domain for all hosts in it", _push_host)),
]
ContactUri = Annotated[
    str,
    AfterValidator(_guard("a mailto: or https: URI such as mailto:ops@example.com", _contact)),
]
Domain = Annotated[str, AfterValidator(_guard("a host name or an IP address", _domain))]
_A_SIP_URI = "a SIP URI such as sip:voicemail@pbx.example.com"
SipUriText = Annotated[str, AfterValidator(_guard(_A_SIP_URI, _sip_uri))]
SipUriOrEmpty = Annotated[str, AfterValidator(_guard(_A_SIP_URI, _or_empty(_sip_uri)))]
_A_SERVER_URI = "a SIP URI without a user, such as sip:pbx.example.com"
ServerUri = Annotated[str, AfterValidator(_guard(_A_SERVER_URI, _server))]
ServerUriOrEmpty = Annotated[str, AfterValidator(_guard(_A_SERVER_URI, _or_empty(_server)))]
Fallback = Annotated[
    str | dict[str, str],
    BeforeValidator(_guard(f"{_A_SIP_URI}, or a table of them by cause", _fallback)),
]
EmergencyNumber = Annotated[
    str,
    AfterValidator(_guard("a number as it is dialled, such as 112", _number)),
]
Address = Annotated[
    dict[str, str],
    BeforeValidator(_guard('a civic address such as { country = "DE", A3 = "Berlin" }', _address)),
]
Md5Hex = Annotated[str, AfterValidator(_guard("32 hex digits", _hex(32)))]
Sha256Hex = Annotated[str, AfterValidator(_guard("64 hex digits", _hex(64)))]
RedisUrl = Annotated[
    str,
    AfterValidator(
        _guard("a URL such as redis://host:6379/0", _redis_url),
    ),
]
HttpUrl = Annotated[str, AfterValidator(_guard("an http or https URL", _url("https", "http")))]
HttpsUrl = Annotated[str, AfterValidator(_guard("an https URL", _url("https")))]
Payload = Annotated[
    Literal["portsip", "dialstack"] | dict[str, str],
    BeforeValidator(_guard('"portsip", "dialstack" or a table of strings', _payload)),
]
