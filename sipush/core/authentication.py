"""Who sent a request: digest verification without per-client state (RFC 3261 §22, RFC 7616)."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from hmac import compare_digest

from sipush.core.bindings import Aor, Subscriber
from sipush.sip.digest import (
    Algorithm,
    Credentials,
    format_challenge,
    response_matches,
    uri_matches,
)
from sipush.sip.message import Request, Response, make_response
from sipush.sip.status import Status

#: Nonces remembered as used before the oldest are declared stale: about 10 MB in all.
MAX_USED = 50_000

#: The nonce count of a client without qop, which cannot count: its nonce serves once.
_ALL = 1 << 32


@dataclass(frozen=True, slots=True)
class Accepted:
    """The credentials are the subscriber's."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """The client must answer a (new) challenge."""

    stale: bool = False
    "The nonce is too old, used, or not this client's: the client retries without asking."
    wrong: bool = False
    "The password was wrong, or there is no such user: somebody may be guessing."


_STALE = Challenge(stale=True)


class Authenticator:
    """Mints nonces and verifies credentials. ``now`` is monotonic, in seconds.

    ``key`` belongs to this process alone: a nonce of another process, or of an earlier life, is
    stale. A nonce is stateless until it is used; then its highest nonce count is remembered until
    it expires, and a count that is not higher is a replay (RFC 7616 §3.4.5). That too is answered
    as stale, so a phone that forgets to count, or whose requests overtook each other, only needs
    one more round trip.

    A nonce serves the ``client`` it was made for, and a password is looked at only with a good
    nonce. So nobody guesses without having received an answer, and nobody guesses in another's
    name by forging his address.

    ``algorithms`` are offered in this order (RFC 8760 §2.4) and no others are accepted.
    """

    def __init__(
        self,
        key: bytes,
        nonce_lifetime: float,
        algorithms: tuple[Algorithm, ...] = tuple(Algorithm),
    ) -> None:
        self._key = key
        self._lifetime = nonce_lifetime
        self._algorithms = algorithms
        self._dummy_ha1 = self._mac("nobody")
        self._serial = 0
        self._floor = 0
        "Nonces with a lower serial are stale: what was used of them is forgotten."
        self._used: dict[int, int] = {}
        self._used_before: dict[int, int] = {}
        self._rotated_at = 0.0
        self._rotated_serial = 0

    def challenge(
        self,
        request: Request,
        realm: str,
        now: float,
        to_tag: str,
        *,
        client: str = "",
        stale: bool = False,
        status: Status = Status.UNAUTHORIZED,
    ) -> Response:
        """401 of a registrar, or 407 of a proxy, with one challenge per algorithm (RFC 8760)."""
        response = make_response(request, status, to_tag=to_tag)
        name = "WWW-Authenticate" if status is Status.UNAUTHORIZED else "Proxy-Authenticate"
        nonce = self.mint(now, client)
        for algorithm in self._algorithms:
            response.headers.append(name, format_challenge(realm, nonce, algorithm, stale))
        return response

    def mint(self, now: float, client: str = "") -> str:
        """A new nonce: time, serial number and a keyed hash of them and the client."""
        self._serial += 1
        stamp = f"{int(now * 1000):x}-{self._serial:x}"
        return f"{stamp}-{self._mac(f'{stamp} {client}')}"

    def verify(
        self,
        credentials: Credentials | None,
        request: Request,
        subscriber: Subscriber | None,
        now: float,
        client: str = "",
    ) -> Accepted | Challenge:
        """Judge the credentials of ``request``; ``subscriber`` is whom their username names.

        No credentials, an unknown user (None) and a wrong password get the same answer for the
        same work, and do not use up the nonce.
        """
        if credentials is None or credentials.algorithm not in self._algorithms:
            return Challenge()
        serial = self._serial_of(credentials.nonce, client, now)
        if serial is None or serial < self._floor:
            return _STALE
        ha1 = _ha1(subscriber, credentials.algorithm)
        matches = response_matches(credentials, ha1 or self._dummy_ha1, request.method)
        if not (matches and ha1 and uri_matches(credentials.uri, request.uri)):
            return Challenge(wrong=True)
        return Accepted() if self._use(serial, credentials.nonce_count, now) else _STALE

    def _use(self, serial: int, count: int | None, now: float) -> bool:
        """Count one use of the nonce; False when it is replayed."""
        count = _ALL if count is None else count
        if count <= self._used.get(serial, self._used_before.get(serial, -1)):
            return False
        if now - self._rotated_at >= self._lifetime or len(self._used) >= MAX_USED:
            self._rotate(now)
        self._used[serial] = count
        return True

    def _serial_of(self, nonce: str, client: str, now: float) -> int | None:
        """None when it is not ours, not for this client, or too old."""
        stamp, _, mac = nonce.rpartition("-")
        expected = self._mac(f"{stamp} {client}")
        if not compare_digest(mac.encode("utf-8", "replace"), expected.encode()):
            return None
        minted, _, serial = stamp.partition("-")
        return int(serial, 16) if now - int(minted, 16) / 1000 <= self._lifetime else None

    def _rotate(self, now: float) -> None:
        """Forget the older half. Every nonce in it was minted before the last rotation."""
        self._floor = self._rotated_serial + 1
        self._used_before, self._used = self._used, {}
        self._rotated_at, self._rotated_serial = now, self._serial

    def _mac(self, text: str) -> str:
        data = text.encode("utf-8", "surrogateescape")
        return blake2b(data, key=self._key, digest_size=16).hexdigest()


def _ha1(subscriber: Subscriber | None, algorithm: Algorithm) -> str:
    if subscriber is None:
        return ""
    return subscriber.ha1_md5 if algorithm is Algorithm.MD5 else subscriber.ha1_sha256


def subscriber_aor(username: str, domain: str) -> Aor:
    """The AOR a username stands for: ``101`` is a user of ``domain``, ``101@other`` says so."""
    user, at, own = username.rpartition("@")
    return f"{user}@{own.lower()}" if at else f"{username}@{domain}"


def authorised(username: str, aor: Aor) -> bool:
    """Whether this authenticated user may change the bindings of ``aor`` (§10.3 step 4)."""
    return subscriber_aor(username, aor.rpartition("@")[2]) == aor
