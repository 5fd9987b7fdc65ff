"""Who may do what: nonces, replays, strangers."""

import pytest

from sipush.core import authentication
from sipush.core.authentication import (
    Accepted,
    Authenticator,
    Challenge,
    subscriber_aor,
)
from sipush.core.bindings import Subscriber
from sipush.sip.digest import Algorithm, Credentials, compute_ha1, compute_response
from sipush.sip.headers import Headers
from sipush.sip.message import Request
from sipush.sip.status import Status

REALM = "example.com"
HA1 = {a: compute_ha1(a, "101", REALM, "secret") for a in Algorithm}
ALICE = Subscriber("101@example.com", HA1[Algorithm.MD5], HA1[Algorithm.SHA256])
REGISTER = Request("REGISTER", "sip:example.com", Headers())


@pytest.fixture
def authenticator() -> Authenticator:
    return Authenticator(b"k" * 32, 300)


def answer(
    nonce: str,
    nc: str = "00000001",
    *,
    algorithm: Algorithm = Algorithm.SHA256,
    password: str = "secret",
    qop: str = "auth",
    method: str = "REGISTER",
    uri: str = "sip:example.com",
) -> Credentials:
    """What a phone with this password answers to a challenge."""
    cnonce = "0a4f113b" if qop else ""
    blank = Credentials("101", REALM, nonce, uri, "", algorithm, qop, nc if qop else "", cnonce)
    ha1 = compute_ha1(algorithm, "101", REALM, password)
    response = compute_response(blank, ha1, method)
    return Credentials(
        "101", REALM, nonce, uri, response, algorithm, qop, nc if qop else "", cnonce
    )


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_the_right_password_gets_in(authenticator: Authenticator, algorithm: Algorithm) -> None:
    credentials = answer(authenticator.mint(10), algorithm=algorithm)
    assert authenticator.verify(credentials, REGISTER, ALICE, 10.2) == Accepted()


def test_no_credentials_an_unknown_user_and_a_wrong_password_look_the_same(
    authenticator: Authenticator,
) -> None:
    nonce = authenticator.mint(10)
    wrong = answer(nonce, password="guess")
    assert authenticator.verify(None, REGISTER, ALICE, 11) == Challenge()
    verdicts = [
        authenticator.verify(wrong, REGISTER, ALICE, 11),
        authenticator.verify(wrong, REGISTER, None, 11),
        authenticator.verify(wrong, REGISTER, Subscriber("101@example.com"), 11),
    ]
    assert verdicts == [Challenge(stale=False, wrong=True)] * 3


def test_a_user_without_any_ha1_cannot_get_in_with_the_dummy(
    authenticator: Authenticator,
) -> None:
    blank = answer(authenticator.mint(10))
    forged = Credentials(
        blank.username,
        blank.realm,
        blank.nonce,
        blank.uri,
        compute_response(blank, authenticator._dummy_ha1, "REGISTER"),
        blank.algorithm,
        blank.qop,
        blank.nc,
        blank.cnonce,
    )
    assert authenticator.verify(forged, REGISTER, None, 11) == Challenge(wrong=True)


def test_a_wrong_password_does_not_use_the_nonce_up(authenticator: Authenticator) -> None:
    nonce = authenticator.mint(10)
    authenticator.verify(answer(nonce, password="guess"), REGISTER, ALICE, 10)
    assert authenticator.verify(answer(nonce), REGISTER, ALICE, 10) == Accepted()


def test_with_an_old_or_forged_nonce_nobody_learns_whether_the_password_is_right(
    authenticator: Authenticator,
) -> None:
    for nonce in (authenticator.mint(10), "made-up", Authenticator(b"j", 300).mint(310)):
        for password in ("secret", "guess"):
            credentials = answer(nonce, password=password)
            verdict = authenticator.verify(credentials, REGISTER, ALICE, 310.5)
            assert verdict == Challenge(stale=True)


def test_a_nonce_serves_only_the_client_it_was_made_for(authenticator: Authenticator) -> None:
    nonce = authenticator.mint(10, "192.0.2.1")
    for client in ("192.0.2.2", ""):
        for password in ("secret", "guess"):
            credentials = answer(nonce, password=password)
            verdict = authenticator.verify(credentials, REGISTER, ALICE, 11, client)
            assert verdict == Challenge(stale=True)
    assert authenticator.verify(answer(nonce), REGISTER, ALICE, 11, "192.0.2.1") == Accepted()


def test_a_nonce_is_good_until_its_lifetime_ends(authenticator: Authenticator) -> None:
    nonce = authenticator.mint(10)
    assert authenticator.verify(answer(nonce), REGISTER, ALICE, 310) == Accepted()


def test_a_nonce_of_another_process_is_stale_not_wrong(authenticator: Authenticator) -> None:
    foreign = Authenticator(b"j" * 32, 300).mint(10)
    for nonce in (foreign, "made-up", "", "ü-\udcff"):
        verdict = authenticator.verify(answer(nonce), REGISTER, ALICE, 11)
        assert verdict == Challenge(stale=True)


def lives(*born: float) -> list[Authenticator]:
    """One node after each start, on one monotonic clock, which began at UNIX time 5000."""
    return [Authenticator(b"k" * 32, 300, started_at=at, started_epoch=5000 + at) for at in born]


@pytest.mark.parametrize("method", ["INVITE", "MESSAGE"])
def test_a_call_or_message_that_is_repeated_after_a_crash_gets_in_once(method: str) -> None:
    before, after = lives(1010, 1050)
    nonce, request = before.mint(1040, "host"), Request(method, "sip:105@h", Headers())
    credentials = answer(nonce, method=method, uri="sip:105@h")
    assert before.verify(credentials, request, ALICE, 1041, "host") == Accepted()
    assert after.verify(answer(after.mint(1051)), REGISTER, ALICE, 1051) == Accepted()
    assert after.verify(credentials, request, ALICE, 1051, "other") == Challenge(stale=True)
    assert after.verify(credentials, request, ALICE, 1051, "host") == Accepted()
    for now in (1051, 1060):
        assert after.verify(credentials, request, ALICE, now, "host") == Challenge(stale=True)


@pytest.mark.parametrize(
    ("method", "minted", "restarted", "now"),
    [
        ("REGISTER", 1040, 1050, 1051),
        ("INVITE", 1040, 1050, 1050 + authentication.RECALL + 0.1),
        ("INVITE", 1010, 1305, 1310.1),  # too old
        ("INVITE", 1040, 1005, 1041),  # made later than we: the wall clock was set back
    ],
)
def test_all_else_from_before_a_crash_is_stale(
    method: str, minted: float, restarted: float, now: float
) -> None:
    before, after = lives(1010, restarted)
    credentials = answer(before.mint(minted), method=method, uri="sip:105@h")
    verdict = after.verify(credentials, Request(method, "sip:105@h", Headers()), ALICE, now)
    assert verdict == Challenge(stale=True)


@pytest.mark.parametrize("most", [0, 1, 10])
def test_what_is_forgotten_since_the_crash_does_not_let_a_replay_in(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(authentication, "MAX_KNOWN", 4)
    monkeypatch.setattr(authentication, "MAX_RECALLED", most)
    before, after = lives(1010, 1050)
    request = Request("INVITE", "sip:105@h", Headers())
    replay = answer(before.mint(1040), method="INVITE", uri="sip:105@h")
    assert after.verify(replay, request, ALICE, 1051) == Accepted()
    for _ in range(20):
        assert after.verify(answer(after.mint(1051)), REGISTER, ALICE, 1051) == Accepted()
        assert after.verify(replay, request, ALICE, 1051) == Challenge(stale=True)
    too_late = 1050 + authentication.RECALL + 1
    assert after.verify(replay, request, ALICE, too_late) == Challenge(stale=True)
    assert after._recalled == {}


def test_one_nonce_serves_again_with_a_higher_count(authenticator: Authenticator) -> None:
    nonce = authenticator.mint(10)
    for nc in ("00000001", "00000002", "0000000a", "0000000A0"[-8:]):
        assert authenticator.verify(answer(nonce, nc), REGISTER, ALICE, 11) == Accepted()


@pytest.mark.parametrize("again", ["00000005", "00000004", "5", "00000000"])
def test_a_count_that_is_not_higher_is_a_replay(authenticator: Authenticator, again: str) -> None:
    nonce = authenticator.mint(10)
    assert authenticator.verify(answer(nonce, "00000005"), REGISTER, ALICE, 11) == Accepted()
    replay = authenticator.verify(answer(nonce, again), REGISTER, ALICE, 12)
    assert replay == Challenge(stale=True)


def test_a_nonce_answered_without_qop_serves_once(authenticator: Authenticator) -> None:
    nonce = authenticator.mint(10)
    old = answer(nonce, qop="", algorithm=Algorithm.MD5)
    assert authenticator.verify(old, REGISTER, ALICE, 11) == Accepted()
    assert authenticator.verify(old, REGISTER, ALICE, 11) == Challenge(stale=True)
    counted = answer(nonce, "00000009")
    assert authenticator.verify(counted, REGISTER, ALICE, 11) == Challenge(stale=True)


def test_a_replay_is_caught_as_long_as_its_nonce_lives(authenticator: Authenticator) -> None:
    nonce = authenticator.mint(1000)
    assert authenticator.verify(answer(nonce), REGISTER, ALICE, 1000) == Accepted()
    for now in range(1001, 1300, 7):  # others come and go, and what was used is tidied up
        other = authenticator.mint(now)
        assert authenticator.verify(answer(other), REGISTER, ALICE, now) == Accepted()
        assert authenticator.verify(answer(nonce), REGISTER, ALICE, now) == Challenge(stale=True)


def test_memory_is_bounded_and_forgetting_never_lets_a_replay_in(
    authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "MAX_KNOWN", 4)
    nonces = []
    for _ in range(40):
        nonces.append(authenticator.mint(50))
        assert authenticator.verify(answer(nonces[-1]), REGISTER, ALICE, 50) == Accepted()
        for used in nonces:
            replay = authenticator.verify(answer(used), REGISTER, ALICE, 50)
            assert replay == Challenge(stale=True)
    kept = (authenticator._counts, authenticator._marks, authenticator._minted)
    assert [len(each) for each in kept] == [4] * 3


def test_the_newest_nonces_are_good_however_many_there_are(
    authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "MAX_KNOWN", 4)
    nonces = [authenticator.mint(50) for _ in range(10)]
    verdicts = [authenticator.verify(answer(n), REGISTER, ALICE, 50) for n in nonces]
    assert verdicts == [Challenge(stale=True)] * 6 + [Accepted()] * 4


@pytest.mark.parametrize("last", ["0000fffe", "0000ffff", "ffffffff"])
def test_who_counts_too_far_needs_another_nonce(authenticator: Authenticator, last: str) -> None:
    nonce = authenticator.mint(10)
    for nc in ("0000fffd", last):
        assert authenticator.verify(answer(nonce, nc), REGISTER, ALICE, 11) == Accepted()
    for nc in (last, "0000fffe", "ffffffff", "00000001"):
        verdict = authenticator.verify(answer(nonce, nc), REGISTER, ALICE, 11)
        assert verdict == Challenge(stale=True)


def test_every_nonce_is_new(authenticator: Authenticator) -> None:
    assert len({authenticator.mint(10) for _ in range(100)}) == 100


def test_credentials_for_another_method_or_user_part_are_wrong(
    authenticator: Authenticator,
) -> None:
    nonce = authenticator.mint(10)
    invite = answer(nonce, method="INVITE")
    assert authenticator.verify(invite, REGISTER, ALICE, 11) == Challenge(wrong=True)
    call = Request("INVITE", "sip:105@example.com", Headers())
    aimed_elsewhere = answer(nonce, method="INVITE", uri="sip:900@example.com")
    assert authenticator.verify(aimed_elsewhere, call, ALICE, 11) == Challenge(wrong=True)
    aimed_here = answer(nonce, method="INVITE", uri="sip:105@10.0.0.1:5060")
    assert authenticator.verify(aimed_here, call, ALICE, 11) == Accepted()


def test_an_algorithm_that_is_not_offered_is_not_accepted() -> None:
    strict = Authenticator(b"k", 300, (Algorithm.SHA256,))
    weak = answer(strict.mint(1), algorithm=Algorithm.MD5)
    strong = answer(strict.mint(1))
    assert strict.verify(weak, REGISTER, ALICE, 1) == Challenge()
    assert strict.verify(strong, REGISTER, ALICE, 1) == Accepted()


def test_what_is_changed_meanwhile_counts_at_once(authenticator: Authenticator) -> None:
    credentials = answer(authenticator.mint(1), algorithm=Algorithm.MD5)
    authenticator.algorithms = (Algorithm.SHA256,)
    assert authenticator.verify(credentials, REGISTER, ALICE, 2) == Challenge()
    challenge = authenticator.challenge(REGISTER, REALM, 2, "t")
    assert "algorithm=MD5" not in challenge.to_bytes().decode()
    credentials = answer(authenticator.mint(2))
    authenticator.nonce_lifetime = 5
    assert authenticator.verify(credentials, REGISTER, ALICE, 8) == Challenge(stale=True)
    authenticator.nonce_lifetime = 10
    assert authenticator.verify(credentials, REGISTER, ALICE, 8) == Accepted()


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_a_user_with_one_ha1_gets_in_with_that_algorithm_only(
    authenticator: Authenticator, algorithm: Algorithm
) -> None:
    md5_only = Subscriber("101@example.com", ha1_md5=HA1[Algorithm.MD5])
    sha_only = Subscriber("101@example.com", ha1_sha256=HA1[Algorithm.SHA256])
    has_it, lacks_it = (md5_only, sha_only) if algorithm is Algorithm.MD5 else (sha_only, md5_only)
    credentials = answer(authenticator.mint(1), algorithm=algorithm)
    assert authenticator.verify(credentials, REGISTER, lacks_it, 1) == Challenge(wrong=True)
    assert authenticator.verify(credentials, REGISTER, has_it, 1) == Accepted()


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (Status.UNAUTHORIZED, "www-authenticate"),
        (Status.PROXY_AUTHENTICATION_REQUIRED, "proxy-authenticate"),
    ],
)
def test_the_strongest_algorithm_is_offered_first(
    authenticator: Authenticator, status: Status, name: str
) -> None:
    request = Request("REGISTER", "sip:example.com", Headers([("to", "To: <sip:101@example.com>")]))
    response = authenticator.challenge(request, REALM, 5, "t1", stale=True, status=status)
    assert (response.status, response.reason) == (status, status.phrase)
    values = response.headers.get_all(name)
    assert ["SHA-256" in values[0], "MD5" in values[1]] == [True, True]
    assert all("stale=true" in value for value in values)
    assert response.to.tag == "t1"


@pytest.mark.parametrize(
    ("username", "aor", "may"),
    [
        ("101", "101@example.com", True),
        ("101@example.com", "101@example.com", True),
        ("101@EXAMPLE.com", "101@example.com", True),
        ("102", "101@example.com", False),
        ("101@evil.example", "101@example.com", False),
        ("ann@home", "ann@home@example.com", True),
        ("ann@home@example.com", "ann@home@example.com", True),
        ("ann@home@example.com", "ann@example.com", False),
        ("", "101@example.com", False),
    ],
)
def test_only_the_user_itself_may_register_an_aor(username: str, aor: str, may: bool) -> None:
    assert (subscriber_aor(username, "example.com", ("example.com",)) == aor) is may


def test_a_username_without_a_domain_of_ours_belongs_to_the_given_one() -> None:
    served = ("example.com", "other.example")
    assert subscriber_aor("101", "example.com", served) == "101@example.com"
    assert subscriber_aor("101@other.example", "example.com", served) == "101@other.example"
    assert subscriber_aor("101@gone.example", "example.com", served).endswith("@example.com")
