"""Who sent a request: digest verification without per-client state (RFC 3261 §22, RFC 7616)."""

from __future__ import annotations

from array import array
from collections.abc import Collection
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
from sipush.sip.grammar import number
from sipush.sip.message import Request, Response, make_response
from sipush.sip.status import Status

#: Nonces that are known, 18 bytes each: the newest. With a thousand challenges a second one is
#: forgotten after four minutes, and stale from then on.
MAX_KNOWN = 1 << 18

#: Nonces of an earlier life that may be used before no others are.
MAX_RECALLED = 10_000

CREDENTIALS: Final = ("authorization", "proxy-authorization")
"Headers that no store holds."

CHALLENGES: Final = frozenset({Status.UNAUTHORIZED, Status.PROXY_AUTHENTICATION_REQUIRED})

#: 64*T1: seconds in which what an earlier life left unanswered is repeated.
RECALL: Final = 32.0

#: What must not be challenged anew when it is repeated: a phone may ring for it, a user have it.
_RECALLED: Final = frozenset({"INVITE", "MESSAGE"})

#: The nonce count with which a nonce is used up: of a client that counts so far, or that has no qop
#: and cannot count. Its nonce serves once.
_ALL: Final = 0xFFFF

#: Instead of the serial number of a nonce of an earlier life.
_EARLIER: Final = -1


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


class Authenticator:
    """Mints nonces and verifies credentials. ``now`` is monotonic, in seconds.

    ``key`` belongs to this node alone: a nonce of another one is stale, and so is one that
    MAX_KNOWN newer ones have driven out. Of the others the highest nonce count is known, and a
    count that is not higher is a replay (RFC 7616 §3.4.5). That too is answered as stale, so a
    phone that forgets to count, or whose requests overtook each other, only needs one more round
    trip.

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
        self.nonce_lifetime = nonce_lifetime
        "Seconds; it counts for nonces that are out already, too."
        self.algorithms = algorithms
        self._dummy_ha1 = self._mac("nobody")
        self._serial = 0
        self._counts = array("H")
        """The lowest nonce count that each nonce is good for, by its serial number; _ALL: none is.
        Of more than MAX_KNOWN the newest take the places of the oldest, here and below."""
        self._marks = array("q")
        "A hash of each and its client, that nobody else can compute: in a tenth of a MAC's time."
        self._minted = array("d")
        "When."
        self._recalled: dict[str, int] = {}
        "The same by nonce, of those of an earlier life."
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
            for algorithm in self.algorithms
        ]
        return make_response(request, status, None, to_tag, challenges)

    def mint(self, now: float, client: str = "") -> str:
        """A new nonce: serial number, life, time in it and a keyed hash of them and the client."""
        serial = self._serial
        self._serial += 1
        age = int((now - self._started_at) * 1000)
        stamp = f"{serial}.{self._born}.{age}"
        nonce = f"{stamp}.{self._mac(f'{stamp} {client}')}"
        mark = hash((nonce, client))
        if serial < MAX_KNOWN:
            self._counts.append(0)
            self._marks.append(mark)
            self._minted.append(now)
        else:
            place = serial % MAX_KNOWN
            self._counts[place], self._marks[place], self._minted[place] = 0, mark, now
        return nonce

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
        if credentials is None or credentials.algorithm not in self.algorithms:
            return _NO_CREDENTIALS
        serial = self._serial_of(credentials.nonce, client, request.method, now)
        if serial is None:
            return _STALE
        ha1 = _ha1(subscriber, credentials.algorithm)
        matches = response_matches(credentials, ha1 or self._dummy_ha1, request.method)
        if not (matches and ha1 and uri_matches(credentials.uri, request.uri)):
            return _WRONG
        return _ACCEPTED if self._count(serial, credentials) else _STALE

    def _count(self, serial: int, credentials: Credentials) -> bool:
        """Count one use of the nonce; False when it is replayed."""
        count = credentials.nonce_count
        if count is None or count >= _ALL:
            count = _ALL - 1
        if serial == _EARLIER:
            return self._recall(credentials.nonce, count)
        place = serial % MAX_KNOWN
        if count < self._counts[place]:
            return False
        self._counts[place] = count + 1
        return True

    def _recall(self, nonce: str, count: int) -> bool:
        """The same of a nonce of an earlier life."""
        if count < self._recalled.get(nonce, 0):
            return False
        if len(self._recalled) >= MAX_RECALLED:
            self._recall_until = 0.0
        self._recalled[nonce] = count + 1
        return True

    def _serial_of(self, nonce: str, client: str, method: str, now: float) -> int | None:
        """The serial number of a nonce, or _EARLIER; None: not ours, not his, or too old."""
        serial = number(nonce.partition(".")[0])
        if serial is not None and self._serial - MAX_KNOWN <= serial < self._serial:
            place = serial % MAX_KNOWN
            if self._marks[place] == hash((nonce, client)):
                return serial if now <= self._minted[place] + self.nonce_lifetime else None
        if now > self._recall_until:
            self._recalled.clear()
        elif method in _RECALLED and self._is_of_earlier_life(nonce, client, now):
            return _EARLIER
        return None

    def _is_of_earlier_life(self, nonce: str, client: str, now: float) -> bool:
        """Whether it is his, and not too old."""
        stamp, _, mac = nonce.rpartition(".")
        if not mac.isascii() or not compare_digest(mac, self._mac(f"{stamp} {client}")):
            return False
        _, born, minted = stamp.split(".")
        earlier = (self._life - int(born)) / 1000
        until = self._started_at + int(minted) / 1000 + self.nonce_lifetime
        return earlier > 0 and now + earlier <= until

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


def subscriber_aor(username: str, domain: str, served: Collection[str]) -> Aor:
    """The AOR a username stands for: ``101`` is a user of ``domain``, ``101@other`` says so.

    Only if that is one of the domains ``served`` here: the name of a user may hold an at sign.
    """
    if "@" in username:
        user, _, own = username.rpartition("@")
        own = own.lower()
        if own in served:
            return f"{user}@{own}"
    return f"{username}@{domain}"
