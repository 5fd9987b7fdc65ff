"""The configuration: TOML in, checked sections out.

Every key, its type and its default stand here once; config/sipush.toml documents them and a test
keeps the two in step. Times are seconds.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]
"0 lets the system choose (for tests; the log names the port)."


class Section(BaseModel):
    """A table of the file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TlsConfig(Section):
    """Certificate of a TLS or WSS listener."""

    certificate: Path
    private_key: Path


class ListenConfig(Section):
    """One ``[[listen]]``: a door."""

    transport: Literal["udp", "tcp", "tls", "ws", "wss"]
    address: str = "0.0.0.0"
    port: Port = 5060
    advertise: str | None = None
    "host[:port] written into Via and Record-Route instead of the socket's own (behind NAT)."
    tls: TlsConfig | None = None


class SipConfig(Section):
    """Who we are."""

    domains: Annotated[list[str], Field(min_length=1)] = ["localhost"]
    """Domains we are responsible for. The first is the realm and the domain of requests that name
    one of our own addresses instead of a domain."""
    aliases: list[str] = []
    "More host names that mean the first domain."
    max_message_size: Annotated[int, Field(ge=2048, le=1_048_576)] = 65_535


class RegistrationConfig(Section):
    """How registrations are granted (RFC 3261 §10.3)."""

    min_expires: Annotated[int, Field(ge=1)] = 30
    max_expires: Annotated[int, Field(ge=1)] = 3600
    default_expires: Annotated[int, Field(ge=1)] = 3600
    max_contacts: Annotated[int, Field(ge=1)] = 10
    push_record_lifetime: Seconds = 7 * 86400
    "How long a push record outlives the last REGISTER."
    nonce_lifetime: Seconds = 300


class WakeConfig(Section):
    """How calls wait for sleeping devices; apps and users may differ."""

    hold: Annotated[float, Field(ge=0)] = 30
    "Window: how long a call waits for a woken device. 0: not at all."
    ringback: Literal["none", "180", "182", "183"] = "180"
    "What the caller hears while a device is being woken."
    probe: Seconds = 1.5
    "How long a UDP contact may stay silent before its device is pushed."
    push: Literal["when-unreachable", "always"] = "when-unreachable"
    no_answer: Seconds = 180
    "Timer C (RFC 3261 §16.6 step 11): how long a device may ring."


class SqliteConfig(Section):
    """``[store.sqlite]``."""

    path: Path = Path("/var/lib/sipush/sipush.db")
    synchronous: Literal["normal", "full"] = "full"
    "``normal`` survives kill -9, ``full`` a power cut too."


class RedisConfig(Section):
    """``[store.redis]``."""

    url: str = "redis://127.0.0.1:6379/0"
    prefix: str = "sipush"
    timeout: Seconds = 2


class StoreConfig(Section):
    """Where bindings, push records and subscribers live."""

    type: Literal["sqlite", "redis", "memory"] = "sqlite"
    sqlite: SqliteConfig = SqliteConfig()
    redis: RedisConfig = RedisConfig()


class ApnsConfig(Section):
    """``[apps."<app-id>".apns]``: token authentication."""

    key_file: Path
    "The .p8 key."
    key_id: str
    team_id: str
    bundle_id: str | None = None
    "None: the app-id."
    environment: Literal["production", "sandbox"] = "production"
    server: str | None = None
    "host:port instead of Apple's (a test service)."
    ca_file: Path | None = None
    "Trust this CA instead of the system's."


class FcmConfig(Section):
    """``[apps."<app-id>".fcm]``: HTTP v1."""

    service_account_file: Path
    server: str | None = None
    "https://host:port instead of Google's (a test service); token_uri is in the account file."
    ca_file: Path | None = None


class WebhookConfig(Section):
    """``[apps."<app-id>".webhook]``: ``call.mobile_push_wakeup`` to the app's operator."""

    url: str
    secret_file: Path
    "The key that signs, first line of the file."
    account_id: str = ""
    ca_file: Path | None = None


class AppConfig(Section):
    """One ``[apps."<app-id>"]``. A device goes to the service of its platform, else the webhook."""

    payload: Literal["portsip", "dialstack"] | dict[str, str] = "portsip"
    "A profile, or a table of own keys whose values may hold ``{from_user}`` and the like."
    hold: Annotated[float, Field(ge=0)] | None = None
    push: Literal["when-unreachable", "always"] | None = None
    apns: ApnsConfig | None = None
    fcm: FcmConfig | None = None
    webhook: WebhookConfig | None = None


class UserConfig(Section):
    """One ``[users."101@example.com"]``; users added by ``sipush user add`` live in the store."""

    ha1_md5: str = ""
    ha1_sha256: str = ""
    hold: bool = True
    hold_seconds: Annotated[float, Field(ge=0)] | None = None
    fallback: str = ""


class PeerConfig(Section):
    """One ``[[peers]]``: a PBX or gateway whose requests are not challenged."""

    name: str
    address: IPv4Network | IPv6Network
    "An address or a network."


class LogConfig(Section):
    """``[log]``."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Config(Section):
    """The whole file."""

    sip: SipConfig = SipConfig()
    listen: list[ListenConfig] = [ListenConfig(transport="udp"), ListenConfig(transport="tcp")]
    registration: RegistrationConfig = RegistrationConfig()
    wake: WakeConfig = WakeConfig()
    store: StoreConfig = StoreConfig()
    apps: dict[str, AppConfig] = {}
    users: dict[str, UserConfig] = {}
    peers: list[PeerConfig] = []
    log: LogConfig = LogConfig()
