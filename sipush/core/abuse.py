"""Who is heard: strangers at a limited rate, those who guess passwords not at all (docs/abuse.md).

``now`` is monotonic, in seconds. An IPv6 source is its /64, of which one host has every address.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from sipush.core.emergency import METHODS, EmergencyPolicy, is_emergency
from sipush.core.outbound import decode_route_token
from sipush.core.recent import Recent
from sipush.core.routing import Realm, is_for_us
from sipush.errors import MessageError
from sipush.sip.fields import parse_name_addr
from sipush.sip.message import Request
from sipush.sip.uri import parse_sip_uri

KNOWN_FOR = 7200.0
"Seconds after its last sign-in that an address is not rate limited: two registrations."

KNOWN_FACTOR = 5
"Failed sign-ins that an address gets for each of a stranger's: behind it may be a whole office."

MAX_SOURCES = 100_000
"Strangers and peers remembered: about 30 MB. Beyond it those are forgotten that matter least."

_KNOWN: Final = 1 << 17
"""Places of addresses where somebody has signed in: a megabyte. One that is forgotten is one of a
stranger, until the next sign-in; one that seems known by chance may send as much as a phone."""

_TOLD_AGAIN: Final = 60.0
"Seconds after which a further sign-in is worth writing down."

MAX_NAMES = 10_000
"Addresses whose source is kept at hand."

FREE_FAILURES = 2
"Failed sign-ins in a row that cost no time: people mistype."

FIRST_DELAY, LONGEST_DELAY = 0.25, 4.0
"Seconds that the answer to the next failure waits, doubled with each further one."


@dataclass(frozen=True, slots=True)
class AbusePolicy:
    """What the operator allows one source. Times are seconds."""

    stranger_rate: float = 20
    "Requests each second, from an address where nobody has signed in."
    stranger_burst: int = 5000
    failures: int = 20
    "Failed sign-ins within ``failure_window`` that get a stranger banned; 0: nobody is banned."
    failure_window: float = 300
    ban_time: float = 600
    peers: Sequence[IPv4Network | IPv6Network] = ()
    "Sources that are always heard."


def is_vital(request: Request, key: bytes, emergency: EmergencyPolicy, realm: Realm) -> bool:
    """Whether a request is heard wherever it comes from.

    An emergency call (its ACK and CANCEL too) that is for us, or what belongs to a call that goes
    through us: that shows by its To tag and the Route we recorded. ``key``: that of the route
    tokens.
    """
    is_call = bool(emergency.route) and request.method in _EMERGENCY
    if is_call and is_emergency(request.uri, emergency.numbers) and is_for_us(request.uri, realm):
        return True
    try:
        if request.to.tag is None or not (routes := request.headers.values("route")):
            return False
        user = parse_sip_uri(parse_name_addr(routes[0]).uri).user
    except MessageError:
        return False
    call_id = request.headers.get("call-id") or ""
    return user is not None and decode_route_token(user, call_id, key) is not None


_EMERGENCY = METHODS | {"ACK", "CANCEL"}


class Verdict(Enum):
    """What becomes of a request that came from a source."""

    ADMIT = "admit"
    TOO_MANY = "too-many"
    "A stranger sent more than the rate allows."
    BANNED = "banned"


@dataclass(frozen=True, slots=True)
class Failure:
    """What a failed sign-in leads to."""

    delay: float
    "Seconds that its answer waits."
    banned: str = ""
    "The source that is banned from now on, or empty."


class _Source:
    """A peer, or an address or network of a stranger; or of a user of ours, where sign-ins fail."""

    __slots__ = ("failures", "filled_at", "is_peer", "name", "tokens", "window_ends")

    def __init__(self, name: str, now: float, burst: float, is_peer: bool) -> None:
        self.name = name
        self.is_peer = is_peer
        self.tokens = burst
        self.filled_at = now
        self.failures = 0
        self.window_ends = -math.inf


class Guard:
    """Remembers sources. Of a known source one look-up is all it costs to hear it."""

    def __init__(self, policy: AbusePolicy) -> None:
        self._policy = policy
        self._sources: dict[str, _Source] = {}
        "By name. Of one that is known there is nothing to remember, unless sign-ins fail there."
        self._known = Recent(_KNOWN)
        "Until when, by the hash of the name. A peer is not known, but heard for ever."
        self._names: dict[str, str] = {}
        "Names of sources by IPv6 address: working one out takes long."
        self._bans: dict[str, float] = {}
        "Until when, by name of the source. A banned source is not known."

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def policy(self) -> AbusePolicy:
        """May be replaced: then who is a peer is found out anew, and bans stay."""
        return self._policy

    @policy.setter
    def policy(self, policy: AbusePolicy) -> None:
        if policy != self._policy:
            self._policy = policy
            self._sources.clear()
            self._known = Recent(_KNOWN)
            self._names.clear()

    def judge(self, address: str, now: float) -> Verdict:
        """Whether a request from there is heard."""
        name = self._name(address)
        if self._is_known(name, now):
            return Verdict.ADMIT
        return self._weigh(self._source(name, address, now), now)

    def _weigh(self, source: _Source, now: float) -> Verdict:
        if source.is_peer:
            return Verdict.ADMIT
        if self._bans.get(source.name, -math.inf) > now:
            return Verdict.BANNED
        policy = self._policy
        refill = max(now - source.filled_at, 0.0) * policy.stranger_rate
        source.tokens = min(source.tokens + refill, policy.stranger_burst)
        source.filled_at = now
        if source.tokens < 1:
            return Verdict.TOO_MANY
        source.tokens -= 1
        return Verdict.ADMIT

    def is_banned(self, address: str, now: float) -> bool:
        """Whether a source has been banned since its request was heard."""
        if not self._bans:
            return False
        name = self._name(address)
        if self._bans.get(name, -math.inf) <= now or self._is_known(name, now):
            return False
        return not self._source(name, address, now).is_peer

    def client(self, address: str) -> str:
        """Whom a nonce is for: the source; empty for a peer, who may have several addresses."""
        name = self._name(address)
        source = self._sources.get(name)
        return "" if source is not None and source.is_peer else name

    def is_peer(self, address: str) -> bool:
        """Whether the operator trusts that IP address."""
        if not self._policy.peers:
            return False
        # Of a million phones each comes from an address that has been forgotten: for ip_address to
        # read its text would be a tenth of what the REGISTER takes.
        if ":" in address:
            ip = ip_address(address)
        else:
            ip = ip_address(bytes([int(part) for part in address.split(".")]))
        return any(ip in network for network in self._policy.peers)

    def is_known(self, address: str, now: float) -> bool:
        """Whether somebody there has signed in lately, or it is a peer that has been heard."""
        name = self._name(address)
        source = self._sources.get(name)
        return (source is not None and source.is_peer) or self._is_known(name, now)

    def signed_in(self, address: str, now: float) -> str:
        """Somebody there proved to be a user of ours. Whom a nonce for him is for: ``client``.

        Failures are not forgotten: whoever guesses may have an account of his own.
        """
        name = self._name(address)
        source, until = self._sources.get(name), self._known.until(hash(name))
        if source is None and until <= now:
            source = self._new(name, address, now)
        if source is not None and source.is_peer:
            return ""
        if name not in self._bans:
            if until < now + KNOWN_FOR - _TOLD_AGAIN:
                self._known.put(hash(name), now + KNOWN_FOR)
            if source is not None and source.window_ends <= now:
                del self._sources[name]
        return name

    def failed(self, address: str, now: float) -> Failure:
        """Somebody there gave a wrong password, or one for a user who does not exist."""
        name = self._name(address)
        source, policy = self._source(name, address, now), self._policy
        if source.is_peer or not policy.failures:
            return Failure(0.0)
        if source.window_ends <= now:
            source.failures, source.window_ends = 0, now + policy.failure_window
        source.failures += 1
        allowed = policy.failures * (KNOWN_FACTOR if self._is_known(name, now) else 1)
        delay = _delay(source.failures)
        if source.failures < allowed:
            return Failure(delay)
        source.failures = 0
        self.ban(name, now + policy.ban_time)
        return Failure(delay, banned=name)

    def ban(self, name: str, until: float) -> None:
        """Hear nothing more from a source before ``until``. Peers are heard nevertheless."""
        self._bans[name] = until
        self._known.forget(hash(name))

    def lift(self, name: str) -> None:
        """Hear it again, as a stranger."""
        self._bans.pop(name, None)

    def bans(self, now: float) -> Mapping[str, float]:
        """Until when sources are banned; what is over is forgotten."""
        self._bans = {name: until for name, until in self._bans.items() if until > now}
        return self._bans

    def _is_known(self, name: str, now: float) -> bool:
        return self._known.until(hash(name)) > now

    def _source(self, name: str, address: str, now: float) -> _Source:
        """The source of an address, which may be new."""
        return self._sources.get(name) or self._new(name, address, now)

    def _new(self, name: str, address: str, now: float) -> _Source:
        if len(self._sources) >= MAX_SOURCES:
            self._forget(now)
        source = _Source(name, now, self._policy.stranger_burst, self.is_peer(address))
        self._sources[name] = source
        return source

    def _name(self, address: str) -> str:
        """The name of its source; a peer is one by itself, not with its whole network."""
        if ":" not in address:
            return address
        name = self._names.get(address)
        if name is None:
            if len(self._names) >= MAX_NAMES:
                self._names.clear()
            name = address if self.is_peer(address) else source_name(address)
            self._names[address] = name
        return name

    def _forget(self, now: float) -> None:
        """Nobody gains by it: bans are kept, and only with a password is one worth remembering."""
        self._sources = {
            name: source
            for name, source in self._sources.items()
            if source.is_peer or source.window_ends > now
        }
        if len(self._sources) > MAX_SOURCES // 2:
            self._sources.clear()


def _delay(failures: int) -> float:
    if failures <= FREE_FAILURES:
        return 0.0
    doubled = min(failures - FREE_FAILURES - 1, 10)
    return float(min(FIRST_DELAY * 2**doubled, LONGEST_DELAY))


def source_name(address: str) -> str:
    """What is banned: an IPv4 address, or the /64 of an IPv6 one. Raises ValueError."""
    ip = ip_address(address)
    if not isinstance(ip, IPv6Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ip_network((int(ip) >> 64 << 64, 64)))
