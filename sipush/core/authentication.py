"""Who sent a request: digest verification without per-client state (RFC 3261 §22, RFC 7616)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2s
from hmac import compare_digest
from typing import Final

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

#: Nonces remembered as used before the oldest are declared stale: about 15 MB, and as much again
#: of those before them.
MAX_USED = 50_000

CREDENTIALS: Final = ("authorization", "proxy-authorization")
"Headers that no store holds."

#: 64*T1: seconds in which what an earlier life left unanswered is repeated.
RECALL: Final = 32.0

#: What must not be challenged anew when it is repeated: a phone may ring for it, a user have it.
_RECALLED: Final = frozenset({"INVITE", "MESSAGE"})

#: The nonce count of a client without qop, which cannot count: its nonce serves once.
_ALL: Final = 1 << 32


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


_ACCEPTED: Final = Accepted()
_NO_CREDENTIALS: Final = Challenge()
_STALE: Final = Challenge(stale=True)
_WRONG: Final = Challenge(wrong=True)

_UNAUTHORIZED: Final = Status.UNAUTHORIZED


class _Use:
    """What is remembered of a nonce that somebody has signed in with."""

    __slots__ = ("client", "count", "until")

    def __init__(self, client: str, until: float) -> None:
        self.client = client
        self.until = until
        "When it is too old; before that its hash need not be looked at again."
        self.count = -1
        "The highest nonce count."


class Authenticator:
    """Mints nonces and verifies credentials. ``now`` is monotonic, in seconds.

    ``key`` belongs to this node alone: a nonce of another one is stale. A nonce is stateless until
    it is used; then its highest nonce count is remembered until it expires, and a count that is not
    higher is a replay (RFC 7616 §3.4.5). That too is answered as stale, so a phone that forgets to
    count, or whose requests overtook each other, only needs one more round trip.

    What an earlier life of this node remembered is lost, so its nonces are stale too, but for one
    case: for 32 s after the start an INVITE or MESSAGE gets in once with one that has not expired.
    It is repeated because nobody answered it before the crash, and a new challenge would make
    another call of it, or another message. Who listened in on its sender, and sends from his
    address, can use that time to repeat a call or message of just before.

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
        *,
        started_at: float = 0.0,
        started_epoch: float = 0.0,
    ) -> None:
        """``started_at`` and ``started_epoch`` are the same moment, monotonic and as UNIX time."""
        self._keyed = blake2s(key=key, digest_size=16)
        "Copied for each nonce: making it takes longer than what it then hashes."
        self._started_at = started_at
        self._life = int(started_epoch * 1000)
        self._born = str(self._life)
        self._lifetime = nonce_lifetime
        self._algorithms = algorithms
        self._dummy_ha1 = self._mac("nobody")
        self._serial = 0
        self._floor = 0
        "Nonces with a lower serial are stale: what was used of them is forgotten."
        self._used: dict[str, _Use] = {}
        "By nonce."
        self._used_before: dict[str, _Use] = {}
        self._rotated_at = started_at
        self._rotated_serial = 0
        self._recall_until = started_at + RECALL

    def challenge(
        self,
        request: Request,
        realm: str,
        now: float,
        to_tag: str,
        *,
        client: str = "",
        stale: bool = False,
        status: Status = _UNAUTHORIZED,
    ) -> Response:
        """401 of a registrar, or 407 of a proxy, with one challenge per algorithm (RFC 8760)."""
        if status is _UNAUTHORIZED:
            canonical, name = "www-authenticate", "WWW-Authenticate"
        else:
            canonical, name = "proxy-authenticate", "Proxy-Authenticate"
        nonce = self.mint(now, client)
        challenges = [
            (canonical, f"{name}: {format_challenge(realm, nonce, algorithm, stale)}")
            for algorithm in self._algorithms
        ]
        return make_response(request, status, None, to_tag, challenges)

    def mint(self, now: float, client: str = "") -> str:
        """A new nonce: life, time in it, serial number and a keyed hash of them and the client."""
        self._serial += 1
        age = int((now - self._started_at) * 1000)
        stamp = f"{self._born}.{age}.{self._serial}"
        return f"{stamp}.{self._mac(f'{stamp} {client}')}"

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
            return _NO_CREDENTIALS
        use = self._use_of(credentials.nonce, client, request.method, now)
        if use is None:
            return _STALE
        ha1 = _ha1(subscriber, credentials.algorithm)
        matches = response_matches(credentials, ha1 or self._dummy_ha1, request.method)
        if not (matches and ha1 and uri_matches(credentials.uri, request.uri)):
            return _WRONG
        return _ACCEPTED if self._count(use, credentials, now) else _STALE

    def _count(self, use: _Use, credentials: Credentials, now: float) -> bool:
        """Count one use of the nonce; False when it is replayed."""
        count = credentials.nonce_count
        if count is None:
            count = _ALL
        if count <= use.count:
            return False
        if now - self._rotated_at >= self._lifetime or len(self._used) >= MAX_USED:
            self._rotate(now)
        use.count = count
        self._used[credentials.nonce] = use
        return True

    def _use_of(self, nonce: str, client: str, method: str, now: float) -> _Use | None:
        """The use of a nonce so far; None when it is not ours, not his, too old or used up."""
        use = self._used.get(nonce) or self._used_before.get(nonce)
        if use is not None and use.client == client and now <= use.until:
            return use
        stamp, _, mac = nonce.rpartition(".")
        if not mac.isascii() or not compare_digest(mac, self._mac(f"{stamp} {client}")):
            return None
        born, minted, serial = stamp.split(".")
        until = self._started_at + int(minted) / 1000 + self._lifetime
        if born == self._born:
            if now > until or int(serial) < self._floor:
                return None
            return use or _Use(client, until)
        earlier = (self._life - int(born)) / 1000
        recalled = earlier > 0 and method in _RECALLED and now <= self._recall_until
        if not recalled or now + earlier > until:
            return None
        return use or _Use(client, -math.inf)  # to be asked again: another method may not use it

    def _rotate(self, now: float) -> None:
        """Forget the older half. Every nonce in it was minted before the last rotation."""
        self._recall_until = 0.0
        self._floor = self._rotated_serial + 1
        self._used_before, self._used = self._used, {}
        self._rotated_at, self._rotated_serial = now, self._serial

    def _mac(self, text: str) -> str:
        keyed = self._keyed.copy()
        keyed.update(text.encode("utf-8", "surrogateescape"))
        return keyed.hexdigest()


def _ha1(subscriber: Subscriber | None, algorithm: Algorithm) -> str:
    if subscriber is None:
        return ""
    return subscriber.ha1_md5 if algorithm is Algorithm.MD5 else subscriber.ha1_sha256


def has_credentials(request: Request) -> bool:
    """Whether somebody signs in with it, here or elsewhere."""
    return not request.headers.first.keys().isdisjoint(CREDENTIALS)


def subscriber_aor(username: str, domain: str) -> Aor:
    """The AOR a username stands for: ``101`` is a user of ``domain``, ``101@other`` says so."""
    user, at, own = username.rpartition("@")
    return f"{user}@{own.lower()}" if at else f"{username}@{domain}"
