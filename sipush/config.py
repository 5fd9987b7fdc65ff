"""The configuration: TOML in, checked sections out.

Every key, its type and its default stand here once; config/sipush.toml and docs/configuration.md
document them and tests keep the three in step. Times are seconds.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)

from sipush.config_checks import contradictions
from sipush.config_problems import describe, refuse
from sipush.config_values import (
    Address,
    ContactUri,
    DataPath,
    Domain,
    EmergencyNumber,
    Fallback,
    FilePath,
    HostPort,
    HostPortOrEmpty,
    HttpsUrl,
    HttpUrl,
    IpAddress,
    IpPort,
    Listen,
    Md5Hex,
    Name,
    Network,
    Payload,
    Port,
    PushHost,
    RedisUrl,
    Seconds,
    ServerUri,
    ServerUriOrEmpty,
    Sha256Hex,
    SipUriOrEmpty,
    SipUriText,
)
from sipush.errors import ConfigError


class Section(BaseModel):
    """A table of the file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TlsConfig(Section):
    """Certificate of a TLS or WSS listener."""

    certificate: FilePath
    private_key: FilePath


class ListenConfig(Section):
    """One ``[[listen]]``: a door."""

    transport: Literal["udp", "tcp", "tls", "ws", "wss"]
    address: IpAddress = "0.0.0.0"
    port: Port = 5060
    advertise: HostPort | None = None
    "host[:port] written into Via and Record-Route instead of the socket's own (behind NAT)."
    tls: TlsConfig | None = None
    sni: list[TlsConfig] = []
    "Further certificates, for clients that ask for one of their names (RFC 6066 §3)."
    proxies: list[Network] = []
    "Reverse proxies in front of a WebSocket listener, believed in X-Forwarded-For."


class SipConfig(Section):
    """Who we are."""

    domains: Annotated[list[Domain], Field(min_length=1)] = ["localhost"]
    """Domains we are responsible for. The first is the realm and the domain of requests that name
    one of our own addresses instead of a domain."""
    aliases: list[Domain] = []
    "More host names that mean the first domain."
    max_message_size: Annotated[int, Field(ge=2048, le=1_048_576)] = 65_535
    ca_file: FilePath | None = None
    "Trust this CA, instead of the system's, when we connect to a server over TLS."
    drain: Seconds = 40
    "How long a stop waits for calls that are still being set up."


class RegistrationConfig(Section):
    """How registrations are granted (RFC 3261 §10.3)."""

    min_expires: Annotated[int, Field(ge=1)] = 30
    max_expires: Annotated[int, Field(ge=1)] = 3600
    default_expires: Annotated[int, Field(ge=1)] = 3600
    max_contacts: Annotated[int, Field(ge=1)] = 10
    remove_existing: bool = False
    "Whether one contact more takes the place of another that may still be there, or is refused."
    push_record_lifetime: Seconds = 7 * 86400
    "How long a push record outlives the last REGISTER."
    nonce_lifetime: Seconds = 300
    algorithms: Annotated[list[Literal["SHA-256", "MD5"]], Field(min_length=1)] = ["MD5"]
    """Digest algorithms of the challenges, in this order. ``["SHA-256", "MD5"]`` is stronger
    (RFC 8760), but many phones give up on a challenge they do not know."""


class WakeConfig(Section):
    """How calls wait for sleeping devices; apps and users may differ."""

    hold: Annotated[float, Field(ge=0)] = 30
    "Window: how long a call waits for a woken device. 0: not at all."
    ringback: Literal["none", "180", "182", "183"] = "180"
    "What the caller hears while a device is being woken."
    probe: Seconds = 1.5
    "How long a UDP contact may stay silent before its device is pushed."
    push: Literal["when-unreachable", "always"] = "when-unreachable"
    push_while_ringing: bool = True
    "Whether a device is still pushed while another one of the call rings."
    no_answer: Seconds = 180
    "Timer C (RFC 3261 §16.6 step 11): how long a device may ring."
    tombstone: Seconds = 60
    "How long after the end of a call a device that was pushed for it may wake to see that end."


class MessagesConfig(Section):
    """Messages for users whose devices are all asleep."""

    lifetime: Seconds = 7 * 86400
    "How long a message waits at most; its own ``Expires`` may be shorter."
    max_stored: Annotated[int, Field(ge=0)] = 100
    "Messages that wait for one user. 0: none is stored."


class LimitsConfig(Section):
    """What one message, address or user may cost (docs/bad-input.md, docs/abuse.md)."""

    header_lines: Annotated[int, Field(ge=20, le=1000)] = 200
    via_hops: Annotated[int, Field(ge=1)] = 70
    record_routes: Annotated[int, Field(ge=1)] = 30
    body_size: Annotated[int, Field(ge=1)] = 32_768
    connections_per_address: Annotated[int, Field(ge=1)] = 10_000
    "Incoming ones; an office or a session border controller is one address."
    message_time: Seconds = 30
    "How long a message on a connection may take, and the first one to begin."
    held_calls_per_caller: Annotated[int, Field(ge=1)] = 2000
    held_calls_per_callee: Annotated[int, Field(ge=1)] = 100
    push_records: Annotated[int, Field(ge=1)] = 20
    "Of one user; those not refreshed for the longest time go."
    stranger_rate: Annotated[float, Field(gt=0)] = 20
    "Requests each second from an address where nobody has signed in."
    stranger_burst: Annotated[int, Field(ge=1)] = 5000
    failed_sign_ins: Annotated[int, Field(ge=0)] = 20
    "Within ``failure_window``, that get an address banned; 0: never."
    failed_sign_ins_per_user: Annotated[int, Field(ge=0)] = 50
    """Within ``failure_window``, from where the user has never signed in; then guesses there are
    slowed to as many. 0: any number."""
    failure_window: Seconds = 300
    ban_time: Seconds = 600


class SqliteConfig(Section):
    """``[store.sqlite]``."""

    path: DataPath = Path("/var/lib/sipush/sipush.db")
    synchronous: Literal["normal", "full"] = "normal"
    "``full``: REGISTERs are answered only when a power cut, too, cannot take them back."


class RedisConfig(Section):
    """``[store.redis]``."""

    url: RedisUrl = "redis://127.0.0.1:6379/0"
    password_file: FilePath | None = None
    "The password, first line of the file; never in ``url``."
    sentinels: list[HostPort] = []
    "Ask these where the master is, instead of the host in ``url``."
    master: Name = "mymaster"
    "Its name there."
    prefix: Name = "sipush"
    timeout: Seconds = 2

    @property
    def place(self) -> str:
        """What is connected to, without a password."""
        if self.sentinels:
            return f"master {self.master} by {', '.join(self.sentinels)}"
        return self.url


class StoreConfig(Section):
    """Where bindings, push records and subscribers live."""

    type: Literal["sqlite", "redis", "memory"] = "sqlite"
    sqlite: SqliteConfig = SqliteConfig()
    redis: RedisConfig = RedisConfig()


class ApnsConfig(Section):
    """``[apps."<app-id>".apns]``: token authentication."""

    key_file: FilePath
    "The .p8 key."
    key_id: Name
    team_id: Name
    bundle_id: Name | None = None
    "None: the app-id."
    environment: Literal["production", "sandbox"] = "production"
    server: HostPort | None = None
    "host:port instead of Apple's (a test service)."
    ca_file: FilePath | None = None
    "Trust this CA instead of the system's."


class FcmConfig(Section):
    """``[apps."<app-id>".fcm]``: HTTP v1."""

    service_account_file: FilePath
    server: HttpsUrl | None = None
    "https://host:port instead of Google's (a test service); token_uri is in the account file."
    ca_file: FilePath | None = None


class WebpushConfig(Section):
    """``[apps."<app-id>".webpush]``: browsers (RFC 8030), with VAPID (RFC 8292)."""

    key_file: FilePath
    "The private key, EC P-256 in PEM, that subscriptions are made for."
    subject: ContactUri
    "Whom the push services may write to when something is wrong with our pushes."
    hosts: Annotated[list[PushHost], Field(min_length=1)] = [
        "fcm.googleapis.com",
        "updates.push.services.mozilla.com",
        "*.push.apple.com",
        "*.notify.windows.com",
    ]
    "The push services that may be asked: a browser chooses the URL."
    ca_file: FilePath | None = None


class WebhookConfig(Section):
    """``[apps."<app-id>".webhook]``: ``call.mobile_push_wakeup`` to the app's operator."""

    url: HttpUrl
    secret_file: FilePath
    "The key that signs, first line of the file."
    account_id: str = ""
    ca_file: FilePath | None = None


class AppConfig(Section):
    """One ``[apps."<app-id>"]``. A device goes to the service of its platform, else the webhook."""

    payload: Payload = "portsip"
    "A profile, or a table of own keys whose values may hold ``{from_user}`` and the like."
    hold: Annotated[float, Field(ge=0)] | None = None
    push: Literal["when-unreachable", "always"] | None = None
    apns: ApnsConfig | None = None
    fcm: FcmConfig | None = None
    webpush: WebpushConfig | None = None
    webhook: WebhookConfig | None = None


class UserConfig(Section):
    """One ``[users."101@example.com"]``; users added by ``sipush user add`` live in the store."""

    ha1_md5: Md5Hex = ""
    ha1_sha256: Sha256Hex = ""
    hold: bool = True
    hold_seconds: Annotated[float, Field(ge=0)] | None = None
    fallback: Fallback = ""
    "One SIP URI, or one for each cause."
    forward: SipUriOrEmpty = ""
    "Gets every call at once; no device is rung or pushed."
    do_not_disturb: bool = False
    "Calls are busy: no device is rung or pushed."


class GroupConfig(Section):
    """One ``[groups."600@example.com"]``: rings several users."""

    members: Annotated[list[str], Field(min_length=1, max_length=100)]
    "AORs of users."
    strategy: Literal["simultaneous", "in-turn"] = "simultaneous"
    time: Seconds = 20
    "How long each member rings in turn."
    fallback: Fallback = ""


class DomainConfig(Section):
    """One ``[domains."example.com"]``: what holds for its users and groups."""

    fallback: Fallback = ""
    route: list[ServerUri] = []
    "Servers that have the users we do not have, tried in order."
    registrar: ServerUriOrEmpty = ""
    "The PBX that has the users of the domain and their passwords. Empty: we have them."


class EmergencyConfig(Section):
    """``[emergency]``: where emergency calls go, and what goes along."""

    numbers: list[EmergencyNumber] = []
    "As dialled; urn:service:sos always counts."
    route: list[SipUriText] = []
    "Tried in order. Without any there are no emergency calls."
    strangers: bool = True
    "Whether a caller who is neither a peer nor registered is let through without signing in."
    addresses: dict[str, Address] = {}
    "Civic address (RFC 5139) by AOR, of users here and in the store."


class PeerConfig(Section):
    """One ``[[peers]]``: a PBX, gateway or edge proxy of ours."""

    name: Name
    address: Network
    "An address or a network."
    challenge: bool = False
    "Whether callers there sign in all the same: an edge proxy through which anybody may come."


class NodeConfig(Section):
    """``[node]``: this server among several on one Redis."""

    uri: ServerUriOrEmpty = ""
    "How the others reach it. Empty: it is alone."


class MetricsConfig(Section):
    """``[metrics]``: for Prometheus."""

    listen: Listen = ""
    "host:port to answer ``GET /metrics`` on; empty: nowhere."


class HepConfig(Section):
    """``[hep]``: a copy of every SIP message, for a capture server such as Homer."""

    send_to: HostPortOrEmpty = ""
    "host[:port], by UDP; empty: nothing is copied."
    agent_id: Annotated[int, Field(ge=0, lt=1 << 32)] = 1
    "Which of its capture agents this server is."
    node_name: Annotated[str, Field(max_length=255)] = ""
    "The same in words; empty: the number alone."
    key_file: FilePath | None = None
    "The key of the capture server, first line of the file. It is sent as it is."
    bodies: bool = False
    "Whether bodies that are not SDP are copied too: texts, DTMF digits, where a caller is."


class AdminConfig(Section):
    """``[admin]``: an API and a page for operators."""

    listen: IpPort = ""
    "Where to answer; empty: nowhere."
    token_file: FilePath | None = None
    "The token that opens it, first line of the file. None: to be read by everybody on loopback."
    hosts: list[Domain] = []
    "Names by which browsers reach it, besides localhost and IP addresses."
    calls: Annotated[int, Field(ge=1, le=10_000)] = 200
    "Whose steps are kept."


class LogConfig(Section):
    """``[log]``."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


def _check_door(door: ListenConfig) -> ListenConfig:
    secure = door.transport in ("tls", "wss")
    if secure and door.tls is None:
        refuse(f"{door.transport} needs tls = {{certificate = …, private_key = …}}")
    if (door.tls or door.sni) and not secure:
        refuse(f"{door.transport} has no use for tls or sni (allowed: with tls and wss)")
    if door.proxies and door.transport not in ("ws", "wss"):
        refuse(f"{door.transport} has no use for proxies (allowed: with ws and wss)")
    return door


def _check_expires(registration: RegistrationConfig) -> RegistrationConfig:
    low, default, high = (
        registration.min_expires,
        registration.default_expires,
        registration.max_expires,
    )
    if not low <= default <= high:
        refuse(
            f"expiries are {low}, {default}, {high} "
            "(allowed: min_expires <= default_expires <= max_expires)"
        )
    return registration


def _check_app(app: AppConfig) -> AppConfig:
    if not (app.apns or app.fcm or app.webpush or app.webhook):
        refuse("has no push service (allowed: at least one of apns, fcm, webpush, webhook)")
    return app


def _check_emergency(emergency: EmergencyConfig) -> EmergencyConfig:
    if bool(emergency.numbers) > bool(emergency.route):
        refuse("has numbers and no route (allowed: a route with or without numbers)")
    return emergency


def _check_aor(aor: str, info: ValidationInfo) -> str:
    sip: SipConfig | None = info.data.get("sip")
    user, _, domain = aor.rpartition("@")
    if not user or (sip and domain not in sip.domains):
        ours = " or ".join(sip.domains) if sip else "one of sip.domains"
        refuse(f"is no address-of-record of ours (allowed: user@{ours})")
    return aor


def _check_domain(domain: str, info: ValidationInfo) -> str:
    sip: SipConfig | None = info.data.get("sip")
    if sip and domain not in sip.domains:
        refuse(f"is no domain of ours (allowed: {' or '.join(sip.domains)})")
    return domain


def _check_user(user: UserConfig) -> UserConfig:
    if not (user.ha1_md5 or user.ha1_sha256):
        refuse("cannot log in (allowed: at least one of ha1_md5, ha1_sha256)")
    return user


class Config(Section):
    """The whole file."""

    sip: SipConfig = SipConfig()
    listen: Annotated[
        list[Annotated[ListenConfig, AfterValidator(_check_door)]],
        Field(min_length=1),
    ] = [ListenConfig(transport="udp"), ListenConfig(transport="tcp")]
    registration: Annotated[RegistrationConfig, AfterValidator(_check_expires)] = (
        RegistrationConfig()
    )
    wake: WakeConfig = WakeConfig()
    messages: MessagesConfig = MessagesConfig()
    limits: LimitsConfig = LimitsConfig()
    store: StoreConfig = StoreConfig()
    apps: dict[str, Annotated[AppConfig, AfterValidator(_check_app)]] = {}
    users: dict[
        Annotated[str, AfterValidator(_check_aor)],
        Annotated[UserConfig, AfterValidator(_check_user)],
    ] = {}
    groups: dict[Annotated[str, AfterValidator(_check_aor)], GroupConfig] = {}
    domains: dict[Annotated[str, AfterValidator(_check_domain)], DomainConfig] = {}
    emergency: Annotated[EmergencyConfig, AfterValidator(_check_emergency)] = EmergencyConfig()
    peers: list[PeerConfig] = []
    node: NodeConfig = NodeConfig()
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()
    hep: HepConfig = HepConfig()
    admin: AdminConfig = AdminConfig()


def load(path: Path) -> Config:
    """Read and check a configuration file.

    Relative paths in it start at its folder. Raises ConfigError with every key and value that is
    wrong; if there is none, with every contradiction between sections.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ConfigError([f"{path}: cannot be read: no regular file"])
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: cannot be read: not UTF-8 at byte {error.start}"]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{path}: not valid TOML: brackets nested too deeply"]) from error
    try:
        config = Config.model_validate(data, context={"folder": path.absolute().parent})
    except ValidationError as error:
        raise ConfigError(describe(error.errors(include_url=False), Config)) from None
    if problems := contradictions(config):
        raise ConfigError(problems)
    return config
