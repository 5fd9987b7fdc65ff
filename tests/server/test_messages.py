"""A MESSAGE that is answered when nobody expects it any more."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sipush.core.stored_message import StoredMessage
from sipush.server import messages
from sipush.server.timer_wheel import TimerWheel
from tests.bench.in_process import Server, configuration, response
from tests.bench.servers import DOMAIN
from tests.server.wire import VirtualClock
from tests.sip.messages import request_bytes

BOB = f"u000001@{DOMAIN}"


class Suspended:
    """A phone that is registered, over a flow that stays open, and has stopped."""

    def __init__(self, directory: Path) -> None:
        self.server = Server(configuration(directory))
        self.clock = VirtualClock()
        self.server.proxy.layer.wheel = TimerWheel(self.clock.time, self.clock.call_later)

    async def is_sent(self) -> bytes:
        """What its socket has got of a message whose sender was told 202, when 32 s are over."""
        server, to = self.server, f"<sip:{BOB}>"
        text = request_bytes("MESSAGE", f"sip:{BOB}", to=to, call_id="m1", body=b"hi")
        await server.send(server.caller, text)
        copy = server.phone.sent[-1]
        await self.passes(10)
        assert server.caller.sent[-1].startswith(b"SIP/2.0 202 ")
        await self.passes(32)
        return copy

    async def passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        busy = True
        while busy:
            await asyncio.sleep(0)
            busy = any(tasks.running for tasks in self.server._tasks)

    async def stored(self) -> tuple[StoredMessage, ...]:
        return tuple(await self.server.proxy.store.messages(BOB, time.time()))

    async def shown_at_its_next_register(self) -> list[bytes]:
        sent = len(self.server.phone.sent)
        await self.server.refresh()
        return [data for data in self.server.phone.sent[sent:] if data.startswith(b"MESSAGE ")]


@pytest.fixture
async def phone(tmp_path: Path) -> Suspended:
    phone = Suspended(tmp_path)
    await phone.server.register()
    return phone


async def test_an_app_that_was_suspended_for_longer_than_our_transaction_has_taken_it(
    phone: Suspended,
) -> None:
    copy = await phone.is_sent()
    (kept,) = await phone.stored()
    with capture_logs() as lines:
        await phone.server.send(phone.server.phone, response(copy, "200 OK"))
    told = {"event": "message_taken_late", "call_id": "m1", "push_id": kept.id}
    assert [told.items() <= line.items() for line in lines] == [True]
    assert await phone.stored() == ()
    assert await phone.shown_at_its_next_register() == []


async def test_so_has_one_that_was_suspended_while_it_was_given_it_from_the_store(
    phone: Suspended,
) -> None:
    await phone.is_sent()
    (copy,) = await phone.shown_at_its_next_register()
    await phone.passes(42)
    assert len(await phone.stored()) == 1
    await phone.server.send(phone.server.phone, response(copy, "200 OK"))
    assert await phone.stored() == ()
    assert await phone.shown_at_its_next_register() == []


async def test_what_it_has_not_taken_it_is_given_again(phone: Suspended) -> None:
    copy = await phone.is_sent()
    await phone.server.send(phone.server.phone, response(copy, "480 Temporarily Unavailable"))
    assert len(await phone.shown_at_its_next_register()) == 1


async def test_only_the_newest_are_known_by_what_waits_in_sockets(
    phone: Suspended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "_MAX_UNANSWERED", 1)
    first = await phone.is_sent()
    (again,) = await phone.shown_at_its_next_register()
    await phone.passes(42)
    await phone.server.send(phone.server.phone, response(first, "200 OK"))
    assert len(await phone.stored()) == 1
    await phone.server.send(phone.server.phone, response(again, "200 OK"))
    assert await phone.stored() == ()
