"""What an emergency call is, and how it leaves."""

from __future__ import annotations

import pytest

from sipush.core.branch import (
    Abandon,
    Cancel,
    CancelCause,
    Forward,
    Respond,
)
from sipush.core.emergency import (
    EmergencyPolicy,
    emergency_request,
    is_emergency,
)
from sipush.core.rejection import Rejection
from sipush.core.routing import ToAor, ToDialog, ToEmergency, destination
from sipush.core.target_set import PATIENCE
from sipush.errors import MessageError
from sipush.sip.message import Request, parse_datagram
from tests.core.test_response_context import NOW, make
from tests.core.test_routing import KEY, REALM, invite

POLICY = EmergencyPolicy(frozenset({"112", "911"}), ("sip:psap@192.0.2.20", "sip:psap@192.0.2.21"))
ADDRESS = {"country": "DE", "A3": "Berlin"}


@pytest.mark.parametrize(
    "uri",
    [
        "sip:112@example.com",
        "sips:911@example.com;user=phone",
        "sip:9-1-1@example.com",
        "sip:%31%31%32@example.com",
        "sip:112;phone-context=+49@example.com;user=phone",
        "tel:112;phone-context=+49",
        "tel:9.1.1",
        "urn:service:sos",
        "URN:service:sos.fire",
    ],
)
def test_emergency_numbers_and_services_are_recognised(uri: str) -> None:
    assert is_emergency(uri, POLICY.numbers)
    assert destination(invite(uri), REALM, KEY, POLICY) == ToEmergency()


@pytest.mark.parametrize(
    "uri",
    [
        "sip:1120@example.com",
        "sip:example.com",
        "sip:bob@112",
        "tel:+49112",
        "urn:service:sosx",
        "urn:service:counseling",
        "mailto:112",
        "sip:112@bad host",
    ],
)
def test_nothing_else_is(uri: str) -> None:
    assert not is_emergency(uri, POLICY.numbers)


def test_a_number_in_somebody_elses_domain_is_theirs() -> None:
    refusal = destination(invite("sip:112@example.org"), REALM, KEY, POLICY)
    assert isinstance(refusal, Rejection)


def test_a_route_through_others_does_not_stop_an_emergency_call() -> None:
    request = invite("sip:112@example.com", "Route: <sip:elsewhere.example.net;lr>")
    assert destination(request, REALM, KEY, POLICY) == ToEmergency()
    assert "route" not in request.headers


def test_without_a_route_a_number_is_a_user_like_any_other() -> None:
    policy = EmergencyPolicy(frozenset({"112"}))
    assert destination(invite("sip:112@example.com"), REALM, KEY, policy) == ToAor(
        "112@example.com"
    )
    with pytest.raises(MessageError):
        destination(invite("urn:service:sos"), REALM, KEY, policy)


def test_only_calls_and_texts_are_let_through() -> None:
    request = invite("sip:112@example.com")
    request.method = "OPTIONS"
    assert not isinstance(destination(request, REALM, KEY, POLICY), (ToEmergency, ToDialog))


def test_a_known_caller_is_asserted_and_its_address_goes_along() -> None:
    request = invite("sip:112@example.com", "c: application/sdp", body=b"v=0\r\n")
    leaving = emergency_request(request, "alice smith@example.com", ADDRESS, "b0", 0)
    assert leaving.headers.get_all("p-asserted-identity") == ["<sip:alice%20smith@example.com>"]
    assert leaving.headers.get("geolocation") == "<cid:b0@example.com>"
    assert leaving.headers.get("geolocation-routing") == "yes"
    assert leaving.headers.get_all("content-type") == ['multipart/mixed;boundary="b0"']
    assert leaving.body.startswith(
        b"--b0\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n\r\n--b0\r\n"
    )
    assert leaving.body.endswith(b"</presence>\r\n\r\n--b0--\r\n")
    assert b"Content-ID: <b0@example.com>" in leaving.body
    again = parse_datagram(leaving.to_bytes())
    assert again.body == leaving.body
    assert request.body == b"v=0\r\n"


def test_an_offerless_call_carries_the_address_alone() -> None:
    leaving = emergency_request(invite("sip:112@example.com"), "a@example.com", ADDRESS, "b0", 0)
    assert leaving.body.startswith(b"--b0\r\nContent-Type: application/pidf+xml\r\n")


def test_a_location_of_the_phone_s_own_is_left_alone() -> None:
    headers = ("Geolocation: <cid:x@phone>", "Content-Type: multipart/mixed;boundary=y")
    request = invite("sip:112@example.com", *headers, body=b"--y--")
    leaving = emergency_request(request, "a@example.com", ADDRESS, "b0", 0)
    assert leaving.headers.get_all("geolocation") == ["<cid:x@phone>"]
    assert leaving.body == b"--y--"


def test_of_an_unknown_caller_nothing_is_asserted() -> None:
    request = invite("sip:112@example.com", "P-Asserted-Identity: <sip:king@example.com>")
    leaving = emergency_request(request, "", None, "b0", 0)
    assert "p-asserted-identity" not in leaving.headers
    assert "geolocation" not in leaving.headers
    assert isinstance(leaving, Request)


def test_what_a_peer_asserts_stays() -> None:
    request = invite("sip:112@example.com", "P-Asserted-Identity: <tel:+4930123>")
    for caller in ("", "a@example.com"):
        leaving = emergency_request(request, caller, None, "b0", 0, from_peer=True)
        assert leaving.headers.get_all("p-asserted-identity") == ["<tel:+4930123>"]


def test_a_silent_server_is_left_for_the_next_one() -> None:
    context = make()
    assert context.start(POLICY.target_set(), NOW) == [Forward(0)]
    assert context.timer_fired(NOW + PATIENCE) == [Abandon(0), Forward(1)]
    assert context.timer_fired(NOW + 2 * PATIENCE) == []


def test_a_server_that_shows_signs_of_life_is_waited_for() -> None:
    context = make()
    context.start(POLICY.target_set(), NOW)
    context.response_received(0, 100, NOW + 1)
    assert context.timer_fired(NOW + PATIENCE) == []
    assert context.response_received(0, 180, NOW + 9) == [Respond(180, 0)]
    assert context.response_received(0, 200, NOW + 60) == [Respond(200, 0)]


@pytest.mark.parametrize("final", [404, 408, 486, 503, 600, 603])
def test_a_server_that_refuses_is_left_for_the_next_one(final: int) -> None:
    context = make()
    context.start(POLICY.target_set(), NOW)
    assert context.response_received(0, final, NOW) == [Forward(1)]


def test_a_caller_who_gives_up_is_not_sent_to_the_next_server() -> None:
    context = make()
    context.start(POLICY.target_set(), NOW)
    assert context.cancelled(NOW) == [Cancel(0, CancelCause.CALLER), Respond(487, 0)]
    assert context.timer_fired(NOW + PATIENCE) == []
