"""Packets as the HEP3 specification lays them out."""

from __future__ import annotations

import struct

from sipush.transport.hep import CUT, MAX_PACKET, agent_chunks, end_chunks, sip_packet

RINGING = (
    b"SIP/2.0 180 Ringing\r\n"
    b"Via: SIP/2.0/UDP 192.0.2.7:5062;branch=z9hG4bK1\r\n"
    b"Call-ID: a84b4c76e66710@pc33\r\n\r\n"
)
CALL_ID = b"a84b4c76e66710@pc33"
EPOCH_NS = 1_700_000_000_123_456_789

#: What hep-js 1.0.22, of the authors of the protocol, makes of the same values.
BY_HEP_JS = bytes.fromhex(
    "4845503300f9000000010007020000000200071100000003000ac000020100000004000ac6336407"
    "00000007000813c400000008000813c600000009000a6553f1000000000a000a0001e2400000000b"
    "0007010000000c000a000007d100000013000c656467652d310000000e000b6d7948657000000011"
    "0019613834623463373665363637313040706333330000000f006c5349502f322e30203138302052"
    "696e67696e670d0a5669613a205349502f322e302f554450203139322e302e322e373a353036323b"
    "6272616e63683d7a39684734624b310d0a43616c6c2d49443a206138346234633736653636373130"
    "40706333330d0a0d0a"
)


def chunks(packet: bytes) -> dict[int, bytes]:
    """The values by chunk type; the packet is whole and every chunk of vendor 0."""
    magic, length = struct.unpack_from("!4sH", packet)
    assert (magic, length) == (b"HEP3", len(packet))
    found: dict[int, bytes] = {}
    start = 6
    while start < length:
        vendor, kind, size = struct.unpack_from("!HHH", packet, start)
        assert vendor == 0
        assert kind not in found
        found[kind] = packet[start + 6 : start + size]
        start += size
    assert start == length
    return found


def test_a_packet_is_what_another_implementation_makes() -> None:
    ends = end_chunks("UDP", ("192.0.2.1", 5060), ("198.51.100.7", 5062))
    agent = agent_chunks(2001, b"myHep", "edge-1")
    assert sip_packet(ends, EPOCH_NS, agent, CALL_ID, RINGING) == BY_HEP_JS


def test_ipv6_over_a_stream() -> None:
    ends = end_chunks("WSS", ("fe80::1%eth0", 5061), ("2001:db8::7", 40000))
    found = chunks(sip_packet(ends, EPOCH_NS, agent_chunks(1, b"", ""), CALL_ID, RINGING))
    assert found == {
        0x01: b"\x0a",
        0x02: b"\x06",
        0x05: bytes.fromhex("fe800000000000000000000000000001"),
        0x06: bytes.fromhex("20010db8000000000000000000000007"),
        0x07: b"\x13\xc5",
        0x08: b"\x9c\x40",
        0x09: b"\x65\x53\xf1\x00",
        0x0A: b"\x00\x01\xe2\x40",
        0x0B: b"\x01",
        0x0C: b"\x00\x00\x00\x01",
        0x0F: RINGING,
        0x11: CALL_ID,
    }


def test_a_phone_on_ipv6_behind_a_proxy_on_ipv4() -> None:
    found = chunks(
        sip_packet(end_chunks("WS", ("2001:db8::7", 1), ("127.0.0.1", 80)), 0, b"", b"", b"")
    )
    assert found[0x01] == b"\x0a"
    assert found[0x06] == bytes.fromhex("00000000000000000000ffff7f000001")


def test_what_is_too_long_for_a_datagram_is_cut_and_says_so() -> None:
    ends = end_chunks("TCP", ("192.0.2.1", 5060), ("198.51.100.7", 5062))
    agent = agent_chunks(1, b"k" * 255, "n" * 255)
    packet = sip_packet(ends, EPOCH_NS, agent, b"i" * 255, b"x" * 1_048_576)
    assert len(packet) == MAX_PACKET
    message = chunks(packet)[0x0F]
    assert message == b"x" * (len(message) - len(CUT)) + CUT


def test_the_longest_message_that_fits_is_whole() -> None:
    empty = len(sip_packet(b"", EPOCH_NS, b"", b"", b""))
    whole = b"x" * (MAX_PACKET - empty)
    assert chunks(sip_packet(b"", EPOCH_NS, b"", b"", whole))[0x0F] == whole


def test_a_call_id_of_any_length_leaves_room_for_the_message() -> None:
    found = chunks(sip_packet(b"", EPOCH_NS, b"", b"i" * 60_000, RINGING))
    assert 0x11 not in found
    assert found[0x0F] == RINGING
