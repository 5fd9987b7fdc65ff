from __future__ import annotations

import asyncio
import logging
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509

from sipush.config import ListenConfig, TlsConfig
from sipush.errors import ConfigError, TransportError
from sipush.transport.connection import Limits
from sipush.transport.listeners import Listeners
from sipush.transport.tls import ServerTls, client_context
from tests.transport.authority import Authority
from tests.transport.conftest import Open
from tests.transport.support import Recorder, TcpPhone, TlsPipe, register, send_for_ever, soon


def shown(server: ServerTls, client: ssl.SSLContext, name: str) -> set[str]:
    """The names in the certificate that ``server`` shows to a client that asks for ``name``."""
    ours, theirs = (ssl.MemoryBIO() for _ in range(2))
    client.check_hostname = False
    asking = client.wrap_bio(ours, theirs, server_hostname=name or None)
    answering = server.context.wrap_bio(theirs, ours, server_side=True)
    for _ in range(3):
        for side in (asking, answering):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    certificate = asking.getpeercert(binary_form=True)
    assert certificate is not None
    names = x509.load_der_x509_certificate(certificate).extensions
    alternatives = names.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(alternatives.get_values_for_type(x509.DNSName))


async def test_a_request_comes_over_tls_and_the_answer_goes_back(
    listen: Open, recorder: Recorder, authority: Authority
) -> None:
    listeners = await listen("tls", tls=authority.issue("127.0.0.1"))
    address = listeners.addresses[0].bound
    phone = await TcpPhone.open(address, ssl=authority.client())
    phone.writer.write(register(5))
    flow, request = await recorder.request()
    assert request.cseq.number == 5
    assert (flow.transport, flow.local, flow.remote) == ("TLS", address, phone.address)
    assert flow.name.startswith("tls/127.0.0.1:")
    flow.send(bytes(300_000))
    flow.close()
    assert len(await soon(phone.reader.read(-1))) == 300_000
    assert await soon(recorder.closed.get()) is flow
    assert flow.closed


async def test_a_tls_peer_that_does_not_read_is_dropped(
    listen: Open, recorder: Recorder, authority: Authority
) -> None:
    limits = Limits(write_buffer=100_000)
    listeners = await listen("tls", tls=authority.issue("127.0.0.1"), limits=limits)
    phone = await TcpPhone.open(listeners.addresses[0].bound, ssl=authority.client())
    phone.writer.write(register())
    flow, _ = await recorder.request()
    cast(asyncio.Transport, phone.writer.transport).pause_reading()
    with pytest.raises(TransportError, match="does not read"):
        send_for_ever(flow)
    assert flow.closed
    assert await soon(recorder.closed.get()) is flow
    phone.writer.transport.abort()


async def test_the_answers_of_a_turn_share_a_record(
    listen: Open, recorder: Recorder, authority: Authority
) -> None:
    listeners = await listen("tls", tls=authority.issue("127.0.0.1"))
    recorder.on_message = lambda flow, message: flow.send(f"{message.cseq.number};".encode())
    phone = await TlsPipe.open(listeners.addresses[0].bound, authority.client())
    phone.write(register(1) + register(2), register(3))
    assert await phone.read() == b"1;2;3;"
    phone.close()


async def test_what_came_with_the_end_of_tls_is_answered(
    listen: Open, recorder: Recorder, authority: Authority
) -> None:
    listeners = await listen("tls", tls=authority.issue("127.0.0.1"))
    recorder.on_message = lambda flow, message: flow.send(f"{message.cseq.number};".encode())
    phone = await TlsPipe.open(listeners.addresses[0].bound, authority.client())
    phone.write(register(4))
    assert await phone.read() == b"4;"
    phone.write(register(5), close=True)
    assert await phone.read() == b"5;"
    await soon(recorder.closed.get())
    phone.close()


async def test_a_peer_that_does_not_speak_tls_is_turned_away_without_a_word_in_the_log(
    listen: Open, recorder: Recorder, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    listeners = await listen("tls", tls=authority.issue("127.0.0.1"))
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    phone.writer.write(register())
    await soon(phone.reader.read(-1))
    assert recorder.messages.empty()
    assert recorder.closed.empty()
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_a_new_certificate_is_shown_without_a_restart_and_open_connections_go_on(
    listen: Open, recorder: Recorder, authority: Authority
) -> None:
    config = authority.issue("127.0.0.1", days=10, file="server")
    listeners = await listen("tls", tls=config)
    address = listeners.addresses[0].bound
    before = await TcpPhone.open(address, ssl=authority.client())

    authority.issue("127.0.0.1", "new.example.com", days=20, file="server")
    listeners.reload_certificates()

    after = await TcpPhone.open(address, ssl=authority.client())
    certificate = after.writer.get_extra_info("peercert")
    assert ("DNS", "new.example.com") in certificate["subjectAltName"]
    (shown_now,) = listeners.certificates
    assert shown_now.expires - datetime.now(UTC) > timedelta(days=19)
    for phone in (before, after):
        phone.writer.write(register())
        await recorder.request()


async def test_a_certificate_that_cannot_be_read_leaves_the_old_one_in_use(
    listen: Open, recorder: Recorder, authority: Authority
) -> None:
    config = authority.issue("127.0.0.1")
    listeners = await listen("tls", tls=config)
    config.certificate.write_text("half written")
    with pytest.raises(ConfigError, match=str(config.certificate)):
        listeners.reload_certificates()
    phone = await TcpPhone.open(listeners.addresses[0].bound, ssl=authority.client())
    phone.writer.write(register())
    await recorder.request()


def test_the_certificate_is_the_one_for_the_name_that_is_asked_for(authority: Authority) -> None:
    names = ["first.example.com", "second.example.com", "*.example.net"]
    server = ServerTls([authority.issue(name) for name in names])
    for asked, expected in [
        ("", "first.example.com"),
        ("first.example.com", "first.example.com"),
        ("SECOND.example.com", "second.example.com"),
        ("sip.example.net", "*.example.net"),
        ("nobody.example.org", "first.example.com"),
    ]:
        assert shown(server, authority.client(), asked) == {expected}, asked


@pytest.mark.parametrize(("lifetime", "notice"), [(365, 14), (90, 14), (45, 11.25), (6, 1.5)])
def test_a_certificate_is_due_two_weeks_or_a_quarter_of_its_life_before_its_end(
    authority: Authority, lifetime: int, notice: float
) -> None:
    (certificate,) = ServerTls([authority.issue("a.example.com", days=lifetime)]).certificates
    assert certificate.is_due(certificate.expires - timedelta(days=notice - 0.1))
    assert not certificate.is_due(certificate.expires - timedelta(days=notice + 0.1))


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("missing", "private_key {key}: No such file or directory"),
        ("no key", "private_key {key}: has no private key in PEM"),
        (
            "not the key",
            "certificate {certificate}, private_key {key}: they do not belong together",
        ),
        (
            "encrypted key",
            "private_key {key}: is encrypted (allowed: a key without a passphrase)",
        ),
        ("no certificate", "certificate {certificate}: has no certificate in PEM"),
        ("swapped", "certificate {certificate}: has no certificate in PEM"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_a_configuration_error(
    authority: Authority, fault: str, problem: str
) -> None:
    password = b"secret" if fault == "encrypted key" else None
    config = authority.issue("a.example.com", password=password)
    match fault:
        case "missing":
            config.private_key.unlink()
        case "no key":
            config.private_key.write_text("half written")
        case "not the key":
            other = authority.issue("b.example.com")
            config.private_key.write_bytes(other.private_key.read_bytes())
        case "no certificate":
            config.certificate.write_text("half written")
        case "swapped":
            config = TlsConfig(certificate=config.private_key, private_key=config.certificate)
    with pytest.raises(ConfigError) as caught:
        Listeners([ListenConfig(transport="tls", tls=config)])
    told = problem.format(certificate=config.certificate, key=config.private_key)
    assert caught.value.problems == [f"tls: {told}"]


async def test_we_connect_to_a_server_whose_certificate_is_right(
    recorder: Recorder, listen: Open, authority: Authority
) -> None:
    server = await listen("tls", tls=authority.issue("127.0.0.1", "pbx.example.com"))
    address = server.addresses[0].bound
    ours = Listeners([], client_tls=client_context(authority.file))
    await ours.open(recorder)
    by_ip = await ours.connect("tls", address)
    by_name = await ours.connect("tls", address, "pbx.example.com")
    assert by_name is not by_ip
    by_name.send(register(9))
    assert (await recorder.request())[1].cseq.number == 9
    with pytest.raises(TransportError, match="Hostname mismatch"):
        await ours.connect("tls", address, "evil.example.com")
    await ours.close()


async def test_we_do_not_trust_a_server_whose_authority_we_do_not_know(
    recorder: Recorder, listen: Open, authority: Authority
) -> None:
    server = await listen("tls", "tcp", tls=authority.issue("127.0.0.1"))
    ours = Listeners([])
    await ours.open(recorder)
    with pytest.raises(TransportError, match="certificate verify failed"):
        await ours.connect("tls", server.addresses[0].bound)
    await ours.close()


def test_authorities_that_cannot_be_read_are_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.pem"):
        client_context(tmp_path / "none.pem")


async def test_a_handshake_that_never_ends_does_not_keep_the_server_from_closing(
    listen: Open, recorder: Recorder, authority: Authority
) -> None:
    listeners = await listen("tls", tls=authority.issue("127.0.0.1"))
    reader, _ = await asyncio.open_connection(*listeners.addresses[0].bound)
    await soon(listeners.close())
    assert recorder.closed.empty()
    assert not reader.at_eof()
