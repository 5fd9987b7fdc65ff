"""Digest against the examples of the RFCs and what phones really send."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from sipush.sip import digest
from sipush.sip.digest import (
    Algorithm,
    Credentials,
    compute_ha1,
    compute_response,
    find_credentials,
    format_challenge,
    parse_credentials,
    response_matches,
    uri_matches,
)

RFC7616 = (
    'Digest username="Mufasa", realm="http-auth@example.org", uri="/dir/index.html", '
    'algorithm={algorithm}, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", nc=00000001, '
    'cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ", qop=auth, response="{response}"'
)
MD5_RESPONSE = "8ca523f5e9506fed4657c9700eebdbec"
SHA256_RESPONSE = "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"


def parsed(value: str) -> Credentials:
    credentials = parse_credentials(value)
    assert credentials is not None
    return credentials


def asyncsip_header(**changes: str) -> str:
    """What asyncsip 0.1.2 writes: every value quoted but the algorithm, nc in decimal."""
    params = {
        "realm": "example.com",
        "nonce": "abc",
        "qop": "auth",
        "uri": "sip:example.com",
        "username": "101",
        "response": "00",
        "nc": "1",
        "cnonce": "b3UtZ2Vu",
    } | changes
    return "Digest algorithm=MD5, " + ", ".join(f'{k}="{v}"' for k, v in params.items())


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [(Algorithm.MD5, MD5_RESPONSE), (Algorithm.SHA256, SHA256_RESPONSE)],
)
def test_rfc7616_3_9_1(algorithm: Algorithm, response: str) -> None:
    credentials = parsed(RFC7616.format(algorithm=algorithm.value, response=response))
    ha1 = compute_ha1(algorithm, "Mufasa", "http-auth@example.org", "Circle of Life")
    assert compute_response(credentials, ha1, "GET") == response
    assert response_matches(credentials, ha1, "GET")
    assert not response_matches(credentials, ha1, "POST")


def test_rfc2617_3_5() -> None:
    credentials = parsed(
        'Digest username="Mufasa", realm="testrealm@host.com", '
        'nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", uri="/dir/index.html", qop=auth, '
        'nc=00000001, cnonce="0a4f113b", response="6629fae49393a05397450978507c4ef1", '
        'opaque="5ccc069c403ebaf9f0171e9517f40e41"'
    )
    ha1 = compute_ha1(Algorithm.MD5, "Mufasa", "testrealm@host.com", "Circle Of Life")
    assert ha1 == "939e7578ed9e3c518a452acee763bce9"
    assert response_matches(credentials, ha1, "GET")


def test_a_client_without_qop_hashes_the_nonce_alone() -> None:
    """RFC 2069 §2.4 as corrected by its erratum, and RFC 2617 §3.2.2.1 for a missing qop."""
    credentials = parsed(
        'Digest username="Mufasa", realm="testrealm@host.com", '
        'nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", uri="/dir/index.html", '
        'response="1949323746fe6a43ef61f9606e7febea"'
    )
    ha1 = compute_ha1(Algorithm.MD5, "Mufasa", "testrealm@host.com", "CircleOfLife")
    assert response_matches(credentials, ha1, "GET")
    assert credentials.nonce_count is None


def test_a_quoted_short_nonce_count_is_hashed_as_it_was_written() -> None:
    credentials = parsed(asyncsip_header())
    ha1 = compute_ha1(Algorithm.MD5, "101", "example.com", "secret")
    ha2 = Algorithm.MD5.hexdigest("REGISTER:sip:example.com")
    response = Algorithm.MD5.hexdigest(f"{ha1}:abc:1:b3UtZ2Vu:auth:{ha2}")
    assert credentials.nonce_count == 1
    assert response_matches(replace(credentials, response=response), ha1, "REGISTER")


def test_a_comma_in_a_quoted_uri_does_not_end_it() -> None:
    credentials = parsed(asyncsip_header(uri="sip:101,102@example.com;a=b"))
    assert credentials.uri == "sip:101,102@example.com;a=b"
    assert credentials.cnonce == "b3UtZ2Vu"


@pytest.mark.parametrize("spelling", ["SHA-256", "sha-256", '"SHA-256"'])
def test_the_algorithm_is_a_token_in_any_case_quoted_or_not(spelling: str) -> None:
    value = RFC7616.format(algorithm=spelling, response=SHA256_RESPONSE)
    assert parsed(value).algorithm is Algorithm.SHA256


def test_scheme_and_parameter_names_are_case_insensitive_and_spaces_are_free() -> None:
    value = 'dIGEST  USERNAME = "101" ,Realm="r",nonce="n",\turi="sip:r",response="AB"'
    assert parsed(value) == Credentials("101", "r", "n", "sip:r", "ab")


def test_an_escaped_quote_in_the_username_is_one_character() -> None:
    assert parsed(asyncsip_header(username='o\\"neil')).username == 'o"neil'


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Digest",
        "Basic MTAxOnNlY3JldA==",
        'Digest username="101"',
        'Digest username="101", realm="r", nonce="n", uri="sip:r", response=""',
        asyncsip_header(response="x").replace("algorithm=MD5", "algorithm=SHA-512-256"),
        asyncsip_header(response="x").replace("algorithm=MD5", "algorithm=MD5-sess"),
        asyncsip_header(response="x", qop="auth-int"),
        asyncsip_header(response="x", cnonce=""),
        asyncsip_header(response="x", nc="zz"),
        asyncsip_header(response="x", nc="-1"),
        asyncsip_header(response="x", nc="123456789"),
        'Digest username="101, realm="r',
    ],
)
def test_what_nobody_could_verify_is_no_credentials(value: str) -> None:
    assert parse_credentials(value) is None


def test_among_several_headers_the_one_for_our_realm_counts() -> None:
    ours = asyncsip_header(response="aa")
    other = asyncsip_header(response="bb", realm="elsewhere.example")
    found = find_credentials([other, "garbage", ours], "example.com")
    assert found is not None
    assert found.response == "aa"
    assert find_credentials([other], "example.com") is None


def test_among_several_for_our_realm_the_strongest_counts() -> None:
    weak = asyncsip_header(response="aa")
    strong = asyncsip_header(response="bb").replace("MD5", "SHA-256")
    for values in ([weak, strong], [strong, weak]):
        found = find_credentials(values, "example.com")
        assert found is not None
        assert found.algorithm is Algorithm.SHA256


def test_a_challenge_offers_qop_auth_and_says_stale_only_when_it_is() -> None:
    fresh = format_challenge("example.com", "n1", Algorithm.SHA256)
    stale = format_challenge("example.com", "n2", Algorithm.MD5, stale=True)
    assert fresh == 'Digest realm="example.com", nonce="n1", algorithm=SHA-256, qop="auth"'
    assert stale == (
        'Digest realm="example.com", nonce="n2", algorithm=MD5, stale=true, qop="auth"'
    )


def test_a_response_that_is_not_ascii_is_just_wrong() -> None:
    credentials = parsed(asyncsip_header(response="ünwahr\udcff"))
    assert not response_matches(credentials, "00" * 16, "REGISTER")


def test_a_password_in_another_alphabet_is_hashed_as_utf_8() -> None:

    expected = hashlib.sha256("101:example.com:пароль".encode()).hexdigest()
    assert compute_ha1(Algorithm.SHA256, "101", "example.com", "пароль") == expected


@pytest.mark.parametrize(
    ("digest_uri", "request_uri", "same"),
    [
        ("sip:example.com", "sip:example.com", True),
        ("sip:127.0.0.1:5060", "sip:example.com", True),  # SIPp
        ("sip:example.com;transport=udp", "sip:example.com", True),
        ("sips:example.com", "sip:example.com:5061;transport=tls", True),
        ("sip:102@example.com", "sip:102@192.0.2.1:5060;user=phone", True),
        ("sip:10%32@example.com", "sip:102@example.com", True),
        ("sip:127.0.0.1:5060", "sip:102@example.com", True),  # SIPp calling
        ("sip:103@example.com", "sip:102@example.com", False),
        ("sip:103@example.com", "sip:example.com", False),
        ("tel:+4930123", "tel:+4930123", True),
        ("tel:+4930123", "sip:102@example.com", False),
        ("/", "sip:example.com", False),
    ],
)
def test_the_digest_uri_must_name_the_same_user(
    digest_uri: str, request_uri: str, same: bool
) -> None:
    assert uri_matches(digest_uri, request_uri) is same


@pytest.mark.parametrize("flood", ["a", "a.", "a ", "a=", 'a="', "a,", '="\\', " ="])
def test_no_header_is_so_long_that_reading_it_takes_ages(flood: str) -> None:
    # In the square of its length it would: minutes, and the test would time out.
    assert parse_credentials("Digest " + flood * (400_000 // len(flood))) is None


_VALUES = (
    "x",
    '"x"',
    '""',
    '"a, b"',
    '"a\\"b"',
    "a b",
    '"a" b',
    "SHA-256",
    "MD5",
    "auth",
    "1f",
    "x-y",
    "",
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ("username", "realm", "nonce", "uri", "response", "qop", "nc", "cnonce")
            ),
            st.sampled_from(("=", "=", "=", " = ", "")),
            st.sampled_from(_VALUES),
            st.sampled_from((",", ", ", " ,", ",, ")),
        ),
        max_size=4,
    )
)
def test_parameters_are_found_alike_whether_or_not_an_unknown_one_follows(
    more: list[tuple[str, ...]],
) -> None:
    # Known ones alone are read by a shorter way.
    needed = ", ".join(f'{name}="1"' for name in ("username", "realm", "nonce", "uri", "response"))
    text = f"Digest {''.join(''.join(param) for param in more)}{needed}"
    assert parse_credentials(text) == parse_credentials(f"{text}, unknown=1")


PARAMETERS = st.tuples(
    st.sampled_from(
        ["username", "realm", "qop", "nc", "cnonce", "algorithm", "opaque", "Uri", "x"]
    ),
    st.sampled_from(["=", "=", "=", " = ", ""]),
    st.sampled_from(['"a"', '"b"', '""', '"a, b"', '"=', "auth", "1", "MD5", "SHA-256", "a:b", ""]),
    st.sampled_from([", ", ", ", ",", ",", " ", "", ",,"]),
)


USUAL_START = 'username="101", realm="a, b", nonce="1", uri="sip:a", response="2"'


@settings(max_examples=1000)
@example("", 'username=1, opaque="cnonce="1x')
@given(
    st.sampled_from(["", USUAL_START, f"{USUAL_START}, ", USUAL_START.replace('", ', '",')]),
    st.lists(PARAMETERS.map("".join), max_size=6).map("".join),
)
def test_the_short_way_through_parameters_finds_what_the_long_one_does(
    start: str, more: str
) -> None:
    text = start + more
    usual = digest._usual_credentials(text)
    event(f"taken: {usual is not None}")
    if usual is not None:
        assert usual == digest._any_credentials(text)
