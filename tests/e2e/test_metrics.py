"""What Prometheus reads (docs/operations.md)."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families

from sipush.config import TlsConfig
from tests.e2e.daemon import in_time
from tests.e2e.test_doors import tls_listener
from tests.e2e.world import World, apns_token, x_push
from tests.transport.authority import Authority

pytestmark = pytest.mark.parametrize("store_type", ["sqlite"], indirect=True)


async def read(address: str) -> dict[str, float]:
    """Every sample as Prometheus would store it, by name and labels."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://{address}/metrics")).text
    return {
        sample.name + "".join(f" {k}={v}" for k, v in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.name.startswith("sipush_")
    }


async def test_a_wake_up_is_counted(world: World) -> None:
    daemon = await world.start(metrics={"listen": "127.0.0.1:0"})
    address = (await daemon.log_event("metrics_served"))["address"]
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    assert (await read(address))["sipush_forwarded_requests"] == 1
    reborn = await world.registered(daemon, "bob", "TCP", push)
    answer, _ = await in_time(call.final(), reborn.rings_and_answers())
    assert answer.status == 200
    await daemon.log_event("wake_up", outcome="answered")
    samples = await read(address)
    assert samples["sipush_registers_total outcome=registered"] == 2
    assert samples["sipush_calls_total class=2xx"] == 1
    assert samples["sipush_pushes_total result=accepted service=apns"] == 1
    assert samples["sipush_wake_ups_total outcome=answered"] == 1
    assert samples["sipush_wake_seconds_count"] == 1


async def test_what_has_not_happened_yet_is_told_as_0(world: World) -> None:
    daemon = await world.start(metrics={"listen": "127.0.0.1:0"})
    samples = await read((await daemon.log_event("metrics_served"))["address"])
    counted = {name: value for name, value in samples.items() if "_total" in name}
    assert set(counted.values()) == {0}
    for name in (
        *(f"sipush_calls_total class={digit}xx" for digit in range(2, 7)),
        "sipush_pushes_total result=config service=webpush",
        "sipush_registers_total outcome=failed",
        "sipush_wake_ups_total outcome=never-came",
        "sipush_turned_away_total",
    ):
        assert name in counted


async def test_strangers_who_are_not_heard_are_counted(world: World) -> None:
    limits = {"stranger_rate": 1, "stranger_burst": 1}
    daemon = await world.start(metrics={"listen": "127.0.0.1:0"}, limits=limits)
    address = (await daemon.log_event("metrics_served"))["address"]
    phone = await world.phone(daemon, "alice")
    options = (
        f"OPTIONS sip:{world.domain} SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1;branch=z9hG4bK%d\r\n"
    )
    for number in range(5):
        phone.wire.send((options % number).encode())
    await daemon.log_event("strangers_not_heard")
    assert (await read(address))["sipush_turned_away_total"] >= 1


def end_of(certificate: TlsConfig) -> float:
    """UNIX seconds."""
    leaf = x509.load_pem_x509_certificate(certificate.certificate.read_bytes())
    return leaf.not_valid_after_utc.timestamp()


async def test_the_end_of_each_certificate_is_told_and_that_of_a_renewed_one_after_reload(
    world: World, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    usual, other = authority.issue("a.example.com"), authority.issue("b.example.com", days=90)
    daemon = await world.start(
        listen=[tls_listener(usual, other)], metrics={"listen": "127.0.0.1:0"}
    )
    address = (await daemon.log_event("metrics_served"))["address"]
    name = "sipush_certificate_expires_timestamp_seconds file="
    samples = await read(address)
    assert samples[f"{name}{usual.certificate}"] == end_of(usual)
    assert samples[f"{name}{other.certificate}"] == end_of(other)
    authority.issue("a.example.com", days=30)
    daemon.reload()
    await daemon.log_event("reloaded")
    renewed = (await read(address))[f"{name}{usual.certificate}"]
    assert renewed == end_of(usual) > samples[f"{name}{usual.certificate}"]


async def test_who_asks_for_nothing_or_hears_no_answer_costs_nothing(world: World) -> None:
    """A thread each, for good, and a traceback in the log when Prometheus was tired of waiting."""
    daemon = await world.start(metrics={"listen": "127.0.0.1:0"})
    address = (await daemon.log_event("metrics_served"))["address"]
    host, _, port = address.rpartition(":")
    silent, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /met")
    for _ in range(20):
        impatient = socket.create_connection((host, int(port)))
        impatient.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        impatient.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        impatient.close()
    (nothing,) = await in_time(silent.read())
    assert nothing == b""
    writer.close()
    await read(address)
    assert [line for line in daemon.log.all if not line.startswith("{")] == []


async def test_every_metric_is_documented(world: World) -> None:
    daemon = await world.start(metrics={"listen": "127.0.0.1:0"})
    address = (await daemon.log_event("metrics_served"))["address"]
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://{address}/metrics")).text
    names = set(re.findall(r"^# TYPE (sipush_\w+)", text, re.MULTILINE))
    names = {name for name in names if not name.endswith("_created")}
    documented = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert names == set(re.findall(r"^\| `(sipush_\w+)`", documented, re.MULTILINE))
