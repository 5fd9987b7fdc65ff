"""What a capture server never sees."""

from __future__ import annotations

import time

import pytest

from sipush.transport.blanking import blanked

APNS = "fe1b" * 15 + "c9ed"
FCM = "dQw4w9WgXcQ:APA91b" + "x_-9" * 35
SDP = "v=0\r\no=- 1 1 IN IP4 192.0.2.7\r\ns=-\r\nm=audio 4000 RTP/SAVP 0\r\n"


def message(line: str, body: str = "") -> str:
    """A request with that header line."""
    return (
        "REGISTER sip:example.com SIP/2.0\r\nCall-ID: a84b4c\r\n"
        f"{line}\r\nContent-Length: 17\r\n\r\n{body}"
    )


def shown(text: str, *, bodies: bool = False) -> str:
    """What is left of it."""
    return blanked(text.encode(), bodies=bodies).decode()


def stars(text: str) -> str:
    return "*" * len(text)


NEXT = 'nextnonce="c3b1"'
DIGEST = 'username="101", realm="example.com", nonce="c3b1", uri="sip:example.com", qop=auth'


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        (f'Authorization: Digest {DIGEST}, response="6629fae493"', '"6629fae493"'),
        (f"authorization : digest {DIGEST},response=6629fae49393", "6629fae49393"),
        (f'Proxy-Authorization: Digest cnonce="0a4f", {DIGEST}', '"0a4f"'),
        (f'Proxy-Authorization:Digest response="66", {DIGEST}', '"66"'),
        (f'Authorization: Digest {DIGEST},\r\n response="66"', '"66"'),
        (f"Authorization: Digest {DIGEST}, rspauth=66", "rspauth=66"),
        (f"Authentication-Info: qop=auth, {NEXT}, rspauth=66ab", "rspauth=66ab"),
        (f'Authentication-Info: {NEXT},cnonce="0a4f",nc=00000001', '"0a4f"'),
        (f"Proxy-Authentication-Info: {NEXT},\r\n\trspauth=66", "rspauth=66"),
        ("Authorization: Basic YWxpY2U6c2VjcmV0Cg==", "Basic YWxpY2U6c2VjcmV0Cg=="),
        ("Authorization: Bearer abcdef", "Bearer abcdef"),
        (f"X-Push: device-os=ios;device-uid={APNS}|{APNS};app-id=com.x", f"{APNS}|{APNS}"),
        ("X-Push: device-os=ios;device-uid=short | other;app-id=com.x", "short | other"),
        ('x-p-push: device-uid="short";device-os=ios', '"short"'),
        (f"PortSIP-Push: allow-call-push=true;device-uid={FCM}", FCM),
        ("X-Push: app-id=com.x device-uid=short;device-os=ios", "app-id=com.x device-uid=short"),
        ("X-Push: device-os=ios;fcm-token=short", "fcm-token=short"),
        ('X-Push: device-uid="a;app-id=b;c";app-id=com.x', '"a;app-id=b;c"'),
        (f'Authorization: Digest {DIGEST}, response="6,nonce=6"', '"6,nonce=6"'),
        ("X-Push: device-os=ios;\r\n\tdevice-uid=short", "short"),
        ("Contact: <sip:101@h;pn-provider=apns;pn-prid=t1:voip&t2:remote>", "t1:voip&t2:remote"),
        ("Contact: <sip:101@h;pn-prid=secr@et>", "secr@et"),
        ("Contact: <sip:101@h;pn%2Dprid=short>", "short"),
        ("Contact: <sip:101@h;PN-TOK=short?x=y>;expires=60", "short"),
        ('Contact: sip:101@h;pn-prid="short two";expires=60', '"short two'),
        (f"Contact: <sip:101@h;pn-prid={FCM}>, <sip:101@i>", FCM),
        ("Contact: <sip:101@h;pn-provider=webpush;pn-auth=short;pn-param=x>", "short"),
        ("Contact: <sip:101@h;pn-what-comes-next=short;pn-silent=1>", "short"),
        ("X-Push: device-os=web;auth=short;app-id=com.x", "short"),
        ('X-Push: device-uid="https://p/s?v=2;x";app-id=com.x', '"https://p/s?v=2;x"'),
        ("To: <sip:101:hunter2@example.com>", "hunter2"),
        ("X-App: auth = short", "short"),
        ("X-App: response=short", "short"),
        ("X-App: device-uid=short", "short"),
        ("X-App: Bearer short", "short"),
        ("X-App: Basic short", "short"),
        ("X-App: password: short", "short"),
        ("X-App: access_token=short", "short"),
        ("X-App: ha1_md5=short", "short"),
        ("X-App: redis://default:hunter2@192.0.2.9/", "hunter2"),
        (f"X-Device: {APNS}", APNS),
        (f"X-Device: t={FCM};u=1", FCM),
        ("X-Token: eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl", "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl"),
    ],
)  # fmt: skip
def test_a_secret_is_overwritten_and_nothing_else(line: str, secret: str) -> None:
    assert line.count(secret) == 1
    assert shown(message(line)) == message(line.replace(secret, stars(secret)))


@pytest.mark.parametrize(
    "line",
    [
        'WWW-Authenticate: Digest realm="example.com", nonce="c3b1", qop="auth", algorithm=MD5',
        "Contact: <sip:101@192.0.2.7:5062;pn-provider=apns;pn-param=T.com.x.voip;pn-purr=a1b2>",
        "Record-Route: <sip:c2lnbmVk@192.0.2.1;lr;transport=tcp>",
        "X-Push-Id: 7c9e6679-7425-40de-944b-e07fc1f90ae7",
        "Via: SIP/2.0/UDP 192.0.2.7:5062;branch=z9hG4bKa84b4c76e66710a84b4c76e66710;rport",
    ],
)
def test_what_is_no_secret_is_shown(line: str) -> None:
    assert shown(message(line)) == message(line)


def test_line_ends_that_break_the_rules_hide_nothing_less() -> None:
    broken = b"REGISTER sip:x SIP/2.0\nX-Push: device-uid=short\rAuthorization: Basic abc\n\nHello"
    assert blanked(broken, bodies=False) == (
        b"REGISTER sip:x SIP/2.0\nX-Push: device-uid=*****\rAuthorization: *********\n\n*****"
    )


@pytest.mark.parametrize(
    ("line", "body", "kept"),
    [
        ("Content-Type: application/sdp", SDP, True),
        ("c:application/SDP;charset=utf-8", SDP, True),
        ("Content-Type: application/sdp\r\nContent-Encoding: gzip", SDP, False),
        ("Content-Type: application/sdpx", SDP, False),
        ("Content-Type: text/plain", "See you at eight?", False),
        ("Content-Type: application/dtmf-relay", "Signal=5", False),
        ("Content-Type: multipart/mixed;boundary=b", f"--b\r\n\r\n{SDP}", False),
        ("X-Type: application/sdp", "See you at eight?", False),
    ],
)
def test_only_sdp_is_shown_unless_all_bodies_are(line: str, body: str, kept: bool) -> None:
    assert shown(message(line, body)) == message(line, body if kept else stars(body))
    assert shown(message(line, body), bodies=True) == message(line, body)


@pytest.mark.parametrize(
    "line",
    [
        "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:{}",
        "a=ice-pwd:{}",
        "a=key-mgmt:{}",
        "k={}",
    ],
)
@pytest.mark.parametrize("bodies", [True, False])
def test_keys_of_media_are_overwritten(line: str, bodies: bool) -> None:
    secret = "WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz|2^20|1:4"
    body = f"{SDP}{line.format(secret)}\r\na=sendrecv\r\n"
    whole = message("Content-Type: application/sdp", body)
    assert shown(whole, bodies=bodies) == whole.replace(secret, stars(secret))


def test_a_message_behind_another_in_one_datagram_is_as_guarded() -> None:
    first, second = message("X-Push: device-uid=one"), message("X-Push: device-uid=two")
    assert shown(first + second, bodies=True) == message("X-Push: device-uid=***") * 2


def test_a_token_in_a_body_is_overwritten() -> None:
    whole = message("Content-Type: text/plain", f"my token is {APNS} and password=hunter2")
    expected = whole.replace(APNS, stars(APNS)).replace("hunter2", stars("hunter2"))
    assert shown(whole, bodies=True) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"sip:a:",
        b"pn-tok  ",
        b"pn-",
        b"authorization:",
        b"authorization: digest ",
        b"\r\nx-push: ",
        b"x-push:a;",
        b"a=crypto:",
        b"digest ",
        b'username="',
        b"aaaaaaaa:",
        b"\r\n ",
        b"c:application/sdp ",
        b" ",
    ],
)
def test_the_cost_grows_with_the_length_of_what_strangers_write(text: bytes) -> None:
    def cost(length: int) -> float:
        hostile = text * (length // len(text))
        whole = b"REGISTER sip:x SIP/2.0\r\nX-Push: " + hostile + b"\r\n\r\n" + hostile
        times = []
        for _ in range(3):
            began = time.process_time()
            blanked(whole, bodies=True)
            times.append(time.process_time() - began)
        return min(times)

    assert cost(64_000) < 32 * cost(4_000) + 0.02
