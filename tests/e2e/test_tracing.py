"""What a capture server sees of calls, and what it never does (docs/operations.md#tracing)."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.daemon import APP, Daemon, in_time
from tests.e2e.sngrep import Captured, Sngrep
from tests.e2e.test_messages import message, take
from tests.e2e.test_metrics import read
from tests.e2e.wire import OutCall, Phone
from tests.e2e.world import World, apns_token, fcm_token, x_push
from tests.servers.ports import free_port

pytestmark = pytest.mark.parametrize("store_type", ["sqlite"], indirect=True)

KEY = "key-of-the-capture-server"


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("hep") / "key"
    path.write_text(f"{KEY}\n")
    return str(path)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def sngrep(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sngrep]:
    """The capture server of all tests that do not ask for another."""
    sngrep = await Sngrep.start(tmp_path_factory.mktemp("sngrep"), KEY)
    yield sngrep
    await sngrep.kill()


@pytest_asyncio.fixture(loop_scope="session")
async def other_sngrep(tmp_path: Path) -> AsyncIterator[Sngrep]:
    sngrep = await Sngrep.start(tmp_path, KEY)
    yield sngrep
    await sngrep.kill()


def tracing(sngrep: Sngrep, key_file: str, **more: object) -> dict[str, object]:
    """``[hep]``."""
    return {"send_to": sngrep.address, "key_file": key_file, **more}


def of(seen: list[Captured], call_id: str) -> list[Captured]:
    """What has that Call-ID."""
    return [each for each in seen if each.message["call-id"] == call_id]


async def end_of(call: OutCall, sngrep: Sngrep) -> list[Captured]:
    """All of a call, once the answer to the caller's BYE has been captured."""
    await sngrep.find(
        lambda each: (
            (each.message["call-id"], each.message.method, each.message.status)
            == (call.call_id, "BYE", 200)
            and each.destination == call.phone.wire.local
        ),
        "the end of the call",
    )
    return of(sngrep.seen, call.call_id)


async def completes(call: OutCall, callee: Phone) -> None:
    """The call is answered and hung up."""
    incoming = await callee.incoming()
    incoming.reply(180)
    while (await call.expect(180)).tag("to") != incoming.tag:
        pass  # what is read at once is seen before any of it is passed on: no 200 before that
    answer, _ = await in_time(call.final(), incoming.answer())
    assert answer.status == 200
    await in_time(call.hang_up(answer), incoming.hung_up())


async def reload(daemon: Daemon, **hep: object) -> None:
    """Go on with another ``[hep]``."""
    start = len(daemon.log.all)
    daemon.settings["hep"] = hep
    daemon.reload()
    await daemon.log_event("reloaded", start=start)
    if hep:
        await daemon.log_event("tracing", start=start)


async def test_a_call_to_a_killed_phone_is_seen_whole(
    world: World, sngrep: Sngrep, key_file: str, transport: str
) -> None:
    began = time.time()
    daemon = await world.daemon(hep=tracing(sngrep, key_file))
    push = x_push(apns_token())
    bob = await world.registered(daemon, "bob", transport, push)
    await bob.register(push, expires=0)
    bob.kill()
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await world.pushes.next()
    bob = await world.registered(daemon, "bob", transport, push)
    await completes(call, bob)

    whole = await end_of(call, sngrep)
    who = {alice.wire.local: "alice", bob.wire.local: "bob", daemon.at(transport): "sipush"}
    assert [
        f"{who[each.source]} > {who[each.destination]} {each.message.status or each.message.method}"
        for each in whole
        if each.message.status != 100  # as early as the server is slow
    ] == [
        "alice > sipush INVITE",
        "sipush > alice 407",
        "alice > sipush ACK",
        "alice > sipush INVITE",
        "sipush > alice 180",
        "sipush > bob INVITE",
        "bob > sipush 180",
        "sipush > alice 180",
        "bob > sipush 200",
        "sipush > alice 200",
        "alice > sipush ACK",
        "sipush > bob ACK",
        "alice > sipush BYE",
        "sipush > bob BYE",
        "bob > sipush 200",
        "sipush > alice 200",
    ]
    for phone in (alice, bob):
        copies = [each.message.text for each in sngrep.seen if each.destination == phone.wire.local]
        assert copies == [msg.text for msg in phone.wire.seen]
    times = [each.epoch for each in whole]
    assert times == sorted(times)
    assert began <= times[0] <= times[-1] <= time.time()


def with_asterisks(text: str, *secrets: str) -> str:
    """The text with each secret, which is in it, overwritten."""
    for secret in secrets:
        assert secret in text
        text = text.replace(secret, "*" * len(secret))
    return text


def digests(credentials: str) -> list[str]:
    """``"…"`` of response and cnonce."""
    found = re.findall(r'\b(?:response|cnonce)=("[0-9a-f]+")', credentials)
    assert len(found) == 2
    return found


async def test_tokens_and_digests_are_overwritten(
    world: World, sngrep: Sngrep, key_file: str, transport: str
) -> None:
    daemon = await world.daemon(hep=tracing(sngrep, key_file))
    tokens, prid = f"{apns_token()}|{apns_token()}", fcm_token()
    bob = await world.registered(daemon, "bob", transport, x_push(tokens))
    carol = await world.phone(daemon, "carol", transport)
    carol.contact_params = f";pn-provider=fcm;pn-param={APP};pn-prid={prid}"
    assert (await carol.register()).response.status == 200
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("carol")
    await completes(call, carol)

    whole = await end_of(call, sngrep)
    invites = [
        each.message["proxy-authorization"] for each in whole if each.message.method == "INVITE"
    ]
    assert with_asterisks(call.authorization, *digests(call.authorization)) in invites
    texts = [each.message.text for each in sngrep.seen]
    for register, token in ((bob.last_register, tokens), (carol.last_register, prid)):
        assert with_asterisks(register, token, *digests(register)) in texts
    secrets = [*tokens.split("|"), prid, *digests(call.authorization)]
    assert [secret for secret in secrets if secret in "".join(texts)] == []


async def test_what_people_write_is_left_out_unless_it_is_asked_for(
    world: World, sngrep: Sngrep, key_file: str
) -> None:
    daemon = await world.start(hep=tracing(sngrep, key_file))
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")

    async def copied(text: str) -> set[str]:
        """The bodies of the copies of ``text``."""
        sent = message(alice, "bob", text)
        await in_time(sent.sent(), take(bob))
        await sngrep.find(
            lambda each: each.message["call-id"] == sent.call_id and each.message.status == 200,
            "the answer to the message",
        )
        return {each.message.body for each in of(sngrep.seen, sent.call_id)} - {""}

    assert await copied("See you at eight?") == {"*" * 17}
    await reload(daemon, **tracing(sngrep, key_file, bodies=True))
    assert await copied("See you at nine?") == {"See you at nine?"}


async def test_a_reload_begins_moves_and_ends_it_under_a_call(
    world: World, sngrep: Sngrep, other_sngrep: Sngrep, key_file: str
) -> None:
    daemon = await world.start()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice", "UDP")
    call = await alice.call("bob")
    await world.pushes.next()

    await reload(daemon, **tracing(sngrep, key_file))
    bob = await world.registered(daemon, "bob", "TCP", push)
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    await reload(daemon, **tracing(other_sngrep, key_file))
    bye, _ = await in_time(call.hang_up(answer), incoming.hung_up())
    assert bye.status == 200
    assert {each.message.method for each in await end_of(call, other_sngrep)} == {"BYE"}
    await sngrep.find(
        lambda each: (each.message.method, each.destination) == ("ACK", bob.wire.local),
        "the ACK before",
    )
    first = {each.message.method for each in of(sngrep.seen, call.call_id)}
    assert first == {"INVITE", "ACK"}

    await reload(daemon)
    unseen = (await alice.wire.options())["call-id"]
    await reload(daemon, **tracing(other_sngrep, key_file))
    seen = (await alice.wire.options())["call-id"]
    await other_sngrep.find(lambda each: each.message["call-id"] == seen, "the last request")
    assert of(other_sngrep.seen, unseen) == []


async def test_a_reload_with_a_wrong_key_changes_nothing(
    world: World, sngrep: Sngrep, key_file: str, tmp_path: Path
) -> None:
    daemon = await world.start(hep=tracing(sngrep, key_file))
    (tmp_path / "empty").touch()
    daemon.settings["hep"] = tracing(sngrep, str(tmp_path / "empty"))
    daemon.reload()
    failed = await daemon.log_event("reload_failed")
    assert failed["problems"] == ["hep.key_file: 0 bytes in the first line (allowed: 1 to 255)"]
    alice = await world.phone(daemon, "alice")
    call_id = (await alice.wire.options())["call-id"]
    await sngrep.find(lambda each: each.message["call-id"] == call_id, "the request after")


async def test_calls_go_on_when_nobody_listens_or_reads(world: World) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        deaf.bind(("127.0.0.1", 0))
        gone = {"send_to": f"127.0.0.1:{free_port('127.0.0.1')}"}
        daemon = await world.start(hep=gone, metrics={"listen": "127.0.0.1:0"})
        metrics = (await daemon.log_event("metrics_served"))["address"]
        bob = await world.registered(daemon, "bob", "TCP", x_push(apns_token()))
        alice = await world.phone(daemon, "alice", "UDP")
        await completes(await alice.call("bob"), bob)
        assert (await daemon.log_event("trace_lost"))["send_to"] == gone["send_to"]
        lost = (await read(metrics))["sipush_hep_packets_total outcome=lost"]
        assert lost > 10

        await reload(daemon, send_to=f"127.0.0.1:{deaf.getsockname()[1]}")
        for _ in range(3):
            await completes(await alice.call("bob"), bob)
        assert (await read(metrics))["sipush_hep_packets_total outcome=lost"] == lost
        assert (await read(metrics))["sipush_hep_packets_total outcome=sent"] > lost + 40


async def test_a_capture_server_that_comes_back_is_sent_to_at_once(
    world: World, tmp_path: Path, key_file: str
) -> None:
    before = await Sngrep.start(tmp_path, KEY)
    daemon = await world.start(hep=tracing(before, key_file))
    await before.kill()
    alice = await world.phone(daemon, "alice")
    await alice.wire.options()
    await daemon.log_event("trace_lost")
    after = await Sngrep.start(tmp_path, KEY, before.port)
    try:
        call_id = (await alice.wire.options())["call-id"]
        await after.find(lambda each: each.message["call-id"] == call_id, "the request after")
    finally:
        await after.kill()
