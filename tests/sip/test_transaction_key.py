"""Which requests belong to one server transaction (RFC 3261 §17.2.3)."""

from __future__ import annotations

from sipush.sip.message import Request, parse_datagram
from sipush.sip.transaction import TransactionKey, server_key


def key(method: str, cseq: int, matched: str = "", branch: str = "z9hG4bKsame") -> TransactionKey:
    text = (
        f"{method} sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;branch={branch}\r\n"
        "From: <sip:101@example.com>;tag=a\r\nTo: <sip:101@example.com>\r\nCall-ID: c\r\n"
        f"CSeq: {cseq} {method}\r\nContent-Length: 0\r\n\r\n"
    )
    request = parse_datagram(text.encode())
    assert isinstance(request, Request)
    return server_key(request, request.top_via, matched or method)


def test_a_repeated_request_belongs_to_its_transaction() -> None:
    assert key("REGISTER", 1) == key("REGISTER", 1)


def test_an_answer_to_a_challenge_in_the_same_branch_is_a_new_transaction() -> None:
    assert key("REGISTER", 1) != key("REGISTER", 2)


def test_the_ack_and_the_cancel_of_an_invite_find_it() -> None:
    assert key("ACK", 1, "INVITE") == key("CANCEL", 1, "INVITE") == key("INVITE", 1)


def test_another_branch_is_another_transaction() -> None:
    assert key("INVITE", 1) != key("INVITE", 1, branch="z9hG4bKother")
