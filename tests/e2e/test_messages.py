"""MESSAGE to phones awake, asleep and gone (M1)."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from dataclasses import dataclass, field

import pytest

from tests.e2e.daemon import OTHER_APP, PBX, Daemon, in_time
from tests.e2e.test_devices import fcm_token
from tests.e2e.test_flows import outbound
from tests.e2e.wire import FINAL, InCall, Msg, Phone, digest_answer, new_branch
from tests.e2e.world import World, apns_token, x_push

TYPING = "application/im-iscomposing+xml"
REPORT = "message/imdn+xml"


@dataclass
class OutMessage:
    """A MESSAGE we send."""

    phone: Phone
    uri: str
    text: str
    headers: tuple[str, ...] = ()
    content_type: str = "text/plain"
    cseq: int = 1
    call_id: str = field(default_factory=lambda: f"message-{secrets.token_hex(8)}")
    tag: str = field(default_factory=lambda: secrets.token_hex(4))

    def send(self, authorization: str = "") -> None:
        """A new transaction."""
        wire, account = self.phone.wire, self.phone.account
        credentials = [f"Proxy-Authorization: {authorization}"] if authorization else []
        head = [
            f"MESSAGE {self.uri} SIP/2.0",
            f"Via: SIP/2.0/{wire.transport} {wire.host_port};branch={new_branch()};rport",
            "Max-Forwards: 70",
            f'From: "{account.user}" <sip:{account.aor}>;tag={self.tag}',
            f"To: <{self.uri}>",
            f"Call-ID: {self.call_id}",
            f"CSeq: {self.cseq} MESSAGE",
            *credentials,
            *self.headers,
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.text.encode())}",
        ]
        wire.send("\r\n".join([*head, "", self.text]))

    async def response(self) -> Msg:
        """Its final response."""
        return await self.phone.wire.expect(FINAL, method="MESSAGE", call_id=self.call_id)

    async def sent(self) -> Msg:
        """Send it, answering a challenge; its final response."""
        self.send()
        response = await self.response()
        if response.status == 407:
            self.cseq += 1
            account = self.phone.account
            challenge = response["proxy-authenticate"]
            self.send(digest_answer(challenge, account.user, account.password, "MESSAGE", self.uri))
            response = await self.response()
        return response


def message(phone: Phone, user: str, text: str, *headers: str, content_type: str = "text/plain"):
    """A MESSAGE to ``user`` of the same domain."""
    uri = f"sip:{user}@{phone.account.domain}"
    return OutMessage(phone, uri, text, headers, content_type)


async def send(phone: Phone, text: str, *headers: str, content_type: str = "text/plain") -> Msg:
    """The final response to a MESSAGE to bob."""
    return await message(phone, "bob", text, *headers, content_type=content_type).sent()


async def take(phone: Phone, status: int = 200) -> Msg:
    """The next MESSAGE that comes, answered."""
    came = await phone.wire.expect("MESSAGE")
    InCall(phone, came).reply(status)
    return came


async def assert_nothing_waits(phone: Phone, sender: Phone) -> None:
    """The next MESSAGE that comes is one that is sent now."""
    sentinel = secrets.token_hex(8)
    answer, came = await in_time(send(sender, sentinel), take(phone))
    assert came.body == sentinel
    assert answer.status in (200, 202)  # 202: the one before it was just being removed


def pair() -> tuple[str, str, str]:
    """(X-Push of an iOS app, its call token, its message token)."""
    call, alert = apns_token(), apns_token()
    return x_push(f"{call}|{alert}"), call, alert


async def test_a_killed_app_is_pushed_the_text_and_gets_the_message_when_it_registers(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    push, _, alert = pair()
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice", transport)
    answer = await send(alice, "Lunch? Z\xfcrich", "Subject: food")
    assert answer.status == 202
    pushed = await world.pushes.next()
    assert (pushed.service, pushed.token) == ("apns", alert)
    assert pushed.received.payload["aps"]["alert"] == {"title": "alice", "body": "Lunch? Z\xfcrich"}
    assert (pushed.data["msg_type"], pushed.data["mime_type"]) == ("im", "text/plain")
    assert (pushed.data["send_from"], pushed.data["send_to"]) == (
        "alice",
        f"sip:{world.aor('bob')}",
    )
    reborn = await world.registered(daemon, "bob", transport, push)
    came = await take(reborn)
    assert (came.body, came["subject"]) == ("Lunch? Z\xfcrich", "food")
    assert came["x-push-id"] == came["portsip-push-id"] == pushed.push_id
    assert pushed.push_id.isdigit()
    assert came["date"]
    assert len(came.all("via")) == 1
    assert not came["proxy-authorization"]
    await daemon.log_event("message_delivered", push_id=int(pushed.push_id))
    await assert_nothing_waits(reborn, alice)
    assert len(world.pushes.all) == 1


async def test_an_awake_phone_gets_it_at_once_and_its_answer_goes_back(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    bob = await world.registered(daemon, "bob", transport, pair()[0])
    alice = await world.phone(daemon, "alice", transport)
    mine = message(alice, "bob", "hello", "X-Push-Id: 99999999999")
    answer, came = await in_time(mine.sent(), take(bob))
    assert answer.status == 200
    assert answer.tag("to")
    assert came.body == "hello"
    assert "x-push-id" not in dict(came.headers)
    assert world.pushes.all == []


async def test_several_come_in_order_one_at_a_time(world: World, transport: str) -> None:
    daemon = await world.daemon()
    push = pair()[0]
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice", transport)
    texts = [f"number {n}" for n in range(5)]
    assert [(await send(alice, text)).status for text in texts] == [202] * 5
    pushed = [await world.pushes.next() for _ in texts]
    reborn = await world.registered(daemon, "bob", transport, push)
    came = []
    for text in texts:
        one = await reborn.wire.expect("MESSAGE")
        assert one.body == text
        bodies = {msg.body for msg in reborn.wire.seen if msg.method == "MESSAGE"}
        assert bodies == set(texts[: len(came) + 1])
        InCall(reborn, one).reply(200)
        came.append(one)
    ids = [int(one["x-push-id"]) for one in came]
    assert ids == sorted(set(ids))
    assert sorted(push.push_id for push in pushed) == [str(number) for number in ids]


async def test_a_message_accepted_survives_kill_9(world: World, transport: str) -> None:
    daemon = await world.start()
    push = pair()[0]
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice", "UDP")
    assert (await send(alice, "one")).status == 202
    assert (await send(alice, "two")).status == 202
    pushed = [(await world.pushes.next()).push_id for _ in "ab"]
    await daemon.restart_after_kill()
    reborn = await world.registered(daemon, "bob", transport, push)
    came = [await take(reborn), await take(reborn)]
    assert [one.body for one in came] == ["one", "two"]
    assert {one["x-push-id"] for one in came} == set(pushed)
    await assert_nothing_waits(reborn, alice)


async def test_a_crash_before_the_phone_has_answered_repeats_the_same_number(
    world: World,
) -> None:
    daemon = await world.start()
    push = pair()[0]
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    await send(alice, "one")
    reborn = await world.registered(daemon, "bob", "TCP", push)
    first = await reborn.wire.expect("MESSAGE")
    await daemon.restart_after_kill()
    again = await take(await world.registered(daemon, "bob", "TCP", push))
    assert (again["x-push-id"], again.body) == (first["x-push-id"], "one")


async def test_the_same_message_sent_again_after_a_restart_is_stored_once(world: World) -> None:
    daemon = await world.start()
    push = pair()[0]
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice", ip=PBX)
    mine = message(alice, "bob", "once")
    assert (await mine.sent()).status == 202
    await world.pushes.next()
    await daemon.restart_after_kill()
    assert (await mine.sent()).status == 202
    reborn = await world.registered(daemon, "bob", "TCP", push)
    assert (await take(reborn)).body == "once"
    await assert_nothing_waits(reborn, alice)
    assert len(world.pushes.all) == 1


async def test_a_message_repeated_for_want_of_an_answer_is_not_delivered_twice(
    world: World,
) -> None:
    daemon = await world.start()
    push = pair()[0]
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice", ip=PBX)
    mine = message(alice, "bob", "once")
    assert (await mine.sent()).status == 202
    await world.pushes.next()
    await daemon.restart_after_kill()
    reborn = await world.registered(daemon, "bob", "TCP", push)
    assert (await take(reborn)).body == "once"
    await daemon.log_event("message_delivered")
    assert (await mine.sent()).status == 202  # as if the crash had lost the first
    await assert_nothing_waits(reborn, alice)
    assert len(world.pushes.all) == 1


async def test_a_message_repeated_after_a_second_crash_is_not_delivered_twice(
    world: World,
) -> None:
    daemon = await world.start()
    push = pair()[0]
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice", ip=PBX)
    mine = message(alice, "bob", "once")
    assert (await mine.sent()).status == 202
    await world.pushes.next()
    await daemon.restart_after_kill()
    reborn = await world.registered(daemon, "bob", "TCP", push)
    assert (await take(reborn)).body == "once"
    await daemon.log_event("message_delivered")
    await world.registered(daemon, "bob", "TCP", push)  # stored behind the removal
    await daemon.restart_after_kill()
    reborn = await world.registered(daemon, "bob", "TCP", push)
    assert (await mine.sent()).status == 202  # as if the first crash had lost its 202
    await assert_nothing_waits(reborn, alice)
    assert len(world.pushes.all) == 1


async def test_an_expired_message_is_not_delivered(world: World) -> None:
    daemon = await world.daemon(wake={"hold": 1.2})
    push = pair()[0]
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    assert (await send(alice, "short-lived", "Expires: 1")).status == 202
    assert (await send(alice, "lasting", "Expires: 100")).status == 202
    assert (await (await alice.call("bob")).final()).status == 480  # after 1.2 s
    reborn = await world.registered(daemon, "bob", "TCP", push)
    assert (await take(reborn)).body == "lasting"


async def test_a_message_that_expires_at_once_is_not_stored(world: World) -> None:
    daemon = await world.daemon()
    await world.sleeping(daemon, "bob", "TCP", pair()[0])
    alice = await world.phone(daemon, "alice")
    assert (await send(alice, "now or never", "Expires: 0")).status == 480
    assert world.pushes.all == []


async def test_a_full_mailbox_says_so_and_keeps_what_it_has(world: World) -> None:
    daemon = await world.daemon(messages={"max_stored": 2})
    push = pair()[0]
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    assert [(await send(alice, text)).status for text in ("one", "two")] == [202, 202]
    refused = await send(alice, "three")
    assert refused.start == "SIP/2.0 480 Mailbox Full"
    assert len({(await world.pushes.next()).push_id for _ in "12"}) == 2
    reborn = await world.registered(daemon, "bob", "TCP", push)
    assert [(await take(reborn)).body for _ in "12"] == ["one", "two"]
    await assert_nothing_waits(reborn, alice)
    assert len(world.pushes.all) == 2


async def test_delivery_reports_do_not_fill_the_mailbox(world: World) -> None:
    daemon = await world.daemon(messages={"max_stored": 2})
    push = pair()[0]
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    for n in range(4):
        report = await send(alice, f"<imdn>{n}</imdn>", content_type=REPORT)
        assert report.status == 202
    assert [(await send(alice, text)).status for text in ("one", "two", "three")] == [202, 202, 480]
    for _ in ("one", "two"):  # before it registers, and needs no push any more
        await world.pushes.next()
    reborn = await world.registered(daemon, "bob", "TCP", push)
    bodies = [(await take(reborn)).body for _ in range(4)]
    assert bodies == ["<imdn>0</imdn>", "<imdn>1</imdn>", "one", "two"]
    await assert_nothing_waits(reborn, alice)
    assert len(world.pushes.all) == 2


async def test_with_no_mailbox_configured_a_message_is_for_phones_awake(world: World) -> None:
    daemon = await world.daemon(messages={"max_stored": 0})
    await world.sleeping(daemon, "bob", "TCP", pair()[0])
    alice = await world.phone(daemon, "alice")
    assert (await send(alice, "hello")).start == "SIP/2.0 480 Temporarily Unavailable"
    assert world.pushes.all == []


async def test_somebody_typing_is_neither_stored_nor_pushed(world: World) -> None:
    daemon = await world.daemon()
    push = pair()[0]
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    assert (await send(alice, "<isComposing/>", content_type=TYPING)).status == 480
    reborn = await world.registered(daemon, "bob", "TCP", push)
    await assert_nothing_waits(reborn, alice)
    assert world.pushes.all == []


async def test_a_silent_phone_is_given_up_after_the_probe_and_may_still_answer(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    push = pair()[0]
    bob = await world.registered(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice", transport)
    assert (await send(alice, "slow")).status == 202
    pushed = await world.pushes.next()
    await take(bob)
    await daemon.log_event("message_taken_late", push_id=int(pushed.push_id))
    await bob.register(push)
    await assert_nothing_waits(bob, alice)


@pytest.mark.parametrize("status", [408, 430, 480, 500, 503])
async def test_a_phone_that_cannot_take_it_now_gets_it_with_its_next_register(
    world: World, status: int
) -> None:
    daemon = await world.daemon()
    push = pair()[0]
    bob = await world.registered(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    answer, _ = await in_time(send(alice, "later"), take(bob, status))
    assert answer.status == 202
    pushed = await world.pushes.next()
    await bob.register(push)
    assert (await take(bob))["x-push-id"] == pushed.push_id


@pytest.mark.parametrize("status", [405, 415, 603])
async def test_the_refusal_of_the_only_phone_goes_back(world: World, status: int) -> None:
    daemon = await world.daemon()
    bob = await world.registered(daemon, "bob", "TCP", pair()[0])
    alice = await world.phone(daemon, "alice")
    answer, _ = await in_time(send(alice, "no thanks"), take(bob, status))
    assert answer.status == status
    assert world.pushes.all == []


async def test_a_desk_phone_that_knows_no_message_does_not_cost_the_sleeping_app_its_message(
    world: World,
) -> None:
    daemon = await world.daemon()
    push, _, alert = pair()
    app = f"urn:uuid:{uuid.uuid4()}"
    await world.sleeping(daemon, "bob", "TCP", push, app)
    desk = await world.phone(daemon, "bob", "TCP", instance=f"urn:uuid:{uuid.uuid4()}")
    await desk.register()
    alice = await world.phone(daemon, "alice")
    answer, _ = await in_time(send(alice, "hello"), take(desk, 405))
    assert answer.status == 202
    assert (await world.pushes.next()).token == alert
    await desk.register()
    await take(desk, 405)
    await daemon.log_event("message_refused", aor=world.aor("bob"), status=405)
    await desk.register()
    reborn = await world.registered(daemon, "bob", "TCP", push, app)
    assert (await take(reborn)).body == "hello"
    assert desk.wire.count("MESSAGE") == 2


async def test_a_message_that_its_only_phone_refuses_for_good_is_dropped_and_reported(
    world: World,
) -> None:
    daemon = await world.daemon()
    push = pair()[0]
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    await send(alice, "one")
    await send(alice, "two")
    reborn = await world.registered(daemon, "bob", "TCP", push)
    assert (await take(reborn, 415)).body == "one"
    assert (await take(reborn)).body == "two"
    await daemon.log_event("message_refused", aor=world.aor("bob"), status=415)
    await reborn.register(push)
    await assert_nothing_waits(reborn, alice)


async def test_a_new_message_goes_behind_those_that_wait(world: World) -> None:
    daemon = await world.daemon()
    push = pair()[0]
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    await send(alice, "first")
    await world.pushes.next()
    reborn = await world.registered(daemon, "bob", "TCP", push)
    first = await reborn.wire.expect("MESSAGE")
    assert (await send(alice, "second")).status == 202
    InCall(reborn, first).reply(200)
    assert (await take(reborn)).body == "second"
    await assert_nothing_waits(reborn, alice)


async def test_an_app_that_comes_back_on_another_connection_gets_the_message_there(
    world: World,
) -> None:
    daemon = await world.daemon()
    push, urn = pair()[0], f"urn:uuid:{uuid.uuid4()}"
    await world.sleeping(daemon, "bob", "TCP", push, urn)
    alice = await world.phone(daemon, "alice")
    await send(alice, "hello")
    half_dead = await world.registered(daemon, "bob", "TCP", push, urn)
    first = await half_dead.wire.expect("MESSAGE")  # and it never says a word
    reborn = await world.registered(daemon, "bob", "TCP", push, urn)
    again = await take(reborn)
    assert again["x-push-id"] == first["x-push-id"]
    await assert_nothing_waits(reborn, alice)


def branch(msg: Msg) -> str:
    """Of the topmost Via."""
    return msg.all("via")[0].partition("branch=")[2].partition(";")[0]


def waiting(phone: Phone) -> list[Msg]:
    """The first copy of each MESSAGE that waits in the phone's socket, taken from there."""
    first: dict[str, Msg] = {}
    for msg in phone.wire.seen:
        if msg.method == "MESSAGE":
            first.setdefault(branch(msg), msg)
    phone.wire.forget()
    return list(first.values())


async def numbered(phone: Phone) -> Msg:
    """The next MESSAGE that comes from the store."""
    while not (came := await phone.wire.expect("MESSAGE"))["x-push-id"]:
        pass
    return came


async def left_the_store(daemon: Daemon, push_id: int) -> None:
    """Whichever copy a device has answered."""
    events = ("message_delivered", "message_taken_late")
    logs = [asyncio.ensure_future(daemon.log_event(name, push_id=push_id)) for name in events]
    done, late = await asyncio.wait(logs, return_when=asyncio.FIRST_COMPLETED)
    for log in late:
        log.cancel()
    await asyncio.gather(*done)


async def suspended(
    world: World, transport: str, *texts: str
) -> tuple[Daemon, Phone, Phone, str, list[str]]:
    """An app whose socket takes what comes while it is suspended, and its pushes' numbers.

    Also the daemon, the sender, and its X-Push.
    """
    daemon = await world.daemon()
    push = pair()[0]
    app = await world.registered(daemon, "bob", transport, push, f"urn:uuid:{uuid.uuid4()}")
    alice = await world.phone(daemon, "alice", ip=PBX)
    mine = [message(alice, "bob", text) for text in texts]
    for each in mine:
        each.send()
        await app.wire.expect("MESSAGE")
    assert [(await each.response()).status for each in mine] == [202] * len(texts)
    ids = sorted([(await world.pushes.next()).push_id for _ in texts], key=int)
    return daemon, app, alice, push, ids


async def test_an_app_that_was_suspended_shows_what_waits_in_its_socket_once(
    world: World, transport: str
) -> None:
    daemon, app, alice, push, (push_id,) = await suspended(world, transport, "hello")
    waits = waiting(app)
    await app.register(push)
    if transport == "UDP":
        await numbered(app)
    InCall(app, waits[0]).reply(200)
    await left_the_store(daemon, int(push_id))
    assert {branch(msg) for msg in app.wire.seen if msg.method == "MESSAGE"} == {branch(waits[0])}
    app.wire.forget()
    await app.register(push)
    await assert_nothing_waits(app, alice)


async def test_an_app_that_was_suspended_shows_several_in_order_and_each_once(
    world: World, transport: str
) -> None:
    texts = [f"number {n}" for n in range(3)]
    daemon, app, alice, push, ids = await suspended(world, transport, *texts)
    waits = waiting(app)
    assert [msg.body for msg in waits] == texts
    await app.register(push)
    for msg in waits:
        InCall(app, msg).reply(200)
    for push_id in ids:
        await left_the_store(daemon, int(push_id))
    branches = {branch(msg) for msg in app.wire.seen if msg.method == "MESSAGE"}
    assert branches == set(map(branch, waits))
    app.wire.forget()
    await app.register(push)
    await assert_nothing_waits(app, alice)


async def test_an_app_that_reads_its_socket_before_it_registers_gets_nothing_again(
    world: World, transport: str
) -> None:
    _, app, alice, push, _ = await suspended(world, transport, "one", "two")
    waits = waiting(app)
    for msg in waits:
        InCall(app, msg).reply(200)
    await app.register(push)
    branches = {branch(msg) for msg in app.wire.seen if msg.method == "MESSAGE"}
    assert branches == set(map(branch, waits))
    app.wire.forget()
    await assert_nothing_waits(app, alice)


async def test_a_message_behind_one_that_waits_in_a_socket_sends_that_one_not_anew(
    world: World, transport: str
) -> None:
    daemon, app, alice, push, (push_id,) = await suspended(world, transport, "one")
    assert (await send(alice, "two")).status == 202
    waits = waiting(app)
    assert [msg.body for msg in waits] == ["one"]
    await app.register(push)
    InCall(app, waits[0]).reply(200)
    await left_the_store(daemon, int(push_id))
    second = await app.wire.expect("MESSAGE")
    while second.body == "one":
        second = await app.wire.expect("MESSAGE")
    InCall(app, second).reply(200)
    branches = {branch(msg) for msg in app.wire.seen if msg.method == "MESSAGE"}
    assert branches == {branch(waits[0]), branch(second)}
    app.wire.forget()
    await assert_nothing_waits(app, alice)


async def test_an_app_that_was_killed_and_has_its_port_again_gets_the_message_with_its_number(
    world: World,
) -> None:
    _, app, alice, push, ids = await suspended(world, "UDP", "one", "two")
    app.wire.forget()  # with the socket of the old process
    await app.register(push)
    came = []
    for _ in ids:
        came.append(await numbered(app))
        InCall(app, came[-1]).reply(200)
    assert [(msg.body, msg["x-push-id"]) for msg in came] == [("one", ids[0]), ("two", ids[1])]
    app.wire.forget()
    await assert_nothing_waits(app, alice)


async def test_another_phone_gets_what_waits_in_the_socket_of_one_that_stays_suspended(
    world: World, transport: str
) -> None:
    daemon, app, _, push, (push_id,) = await suspended(world, transport, "hello")
    other = await world.registered(daemon, "bob", "TCP", pair()[0], f"urn:uuid:{uuid.uuid4()}")
    assert (await take(other))["x-push-id"] == push_id
    await daemon.log_event("message_delivered", push_id=int(push_id))
    app.wire.forget()
    await app.register(push)
    await app.wire.options()
    assert not [msg for msg in app.wire.seen if msg["x-push-id"]]


async def test_a_message_and_a_register_at_the_same_moment_lose_nothing(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    push, urn = pair()[0], f"urn:uuid:{uuid.uuid4()}"
    alice = await world.phone(daemon, "alice")
    for n in range(20):
        await world.sleeping(daemon, "bob", transport, push, urn)
        bob = await world.phone(daemon, "bob", transport, instance=urn)
        text = f"number {n}"
        answer, registered, came = await in_time(send(alice, text), bob.register(push), take(bob))
        assert answer.status in (200, 202)
        assert registered.response.status == 200
        assert came.body == text
        bob.kill()


async def test_a_phone_behind_an_edge_proxy_gets_its_messages_there(world: World) -> None:
    daemon = await world.daemon()
    edge = await world.phone(daemon, "bob", ip=PBX)
    path = f"Path: <sip:{edge.wire.host_port};lr>"
    alice = await world.phone(daemon, "alice")
    await edge.register(headers=("Supported: path", path))
    answer, came = await in_time(send(alice, "hello"), take(edge, 480))
    assert answer.status == 202
    assert came["route"] == f"<sip:{edge.wire.host_port};lr>"
    await edge.register(headers=("Supported: path", path))
    again = await take(edge)
    assert (again["route"], again.body) == (came["route"], "hello")


async def test_of_two_phones_only_one_gets_it(world: World) -> None:
    daemon = await world.daemon()
    devices = [(pair()[0], f"urn:uuid:{uuid.uuid4()}") for _ in range(2)]
    for push, urn in devices:
        await world.sleeping(daemon, "bob", "TCP", push, urn)
    alice = await world.phone(daemon, "alice")
    await send(alice, "hello")
    assert len({(await world.pushes.next()).token for _ in devices}) == 2
    first, second = [
        await world.registered(daemon, "bob", "TCP", push, urn) for push, urn in devices
    ]
    assert (await take(first)).body == "hello"
    await daemon.log_event("message_delivered", aor=world.aor("bob"))
    await second.register(devices[1][0])
    await second.wire.options()
    assert second.wire.count("MESSAGE") == 0


async def test_of_two_flows_of_a_phone_the_newest_gets_it_and_the_other_when_it_fails(
    world: World,
) -> None:
    daemon = await world.daemon()
    urn = f"urn:uuid:{uuid.uuid4()}"
    first, second = [await world.phone(daemon, "bob", "TCP", instance=urn) for _ in range(2)]
    await first.register(**outbound(first, 1))
    await second.register(**outbound(second, 2))
    alice = await world.phone(daemon, "alice")
    answer, came = await in_time(send(alice, "one"), take(second))
    assert (answer.status, came.body) == (200, "one")

    async def dies() -> Msg:
        await second.wire.expect("MESSAGE")
        assert first.wire.count("MESSAGE") == 0
        second.kill()
        return await take(first)

    answer, came = await in_time(send(alice, "two"), dies())
    assert (answer.status, came.body) == (200, "two")


async def test_what_a_phone_refuses_on_one_flow_it_is_not_asked_on_the_other(
    world: World,
) -> None:
    daemon = await world.daemon()
    urn = f"urn:uuid:{uuid.uuid4()}"
    first, second = [await world.phone(daemon, "bob", "TCP", instance=urn) for _ in range(2)]
    await first.register(**outbound(first, 1))
    await second.register(**outbound(second, 2))
    alice = await world.phone(daemon, "alice")
    answer, _ = await in_time(send(alice, "no thanks"), take(second, 415))
    assert answer.status == 415
    answer, _ = await in_time(send(alice, "later"), take(second, 480))
    assert answer.status == 202
    await first.wire.options()
    assert first.wire.count("MESSAGE") == 0


async def test_a_phone_that_is_not_to_be_pushed_still_gets_its_messages(world: World) -> None:
    daemon = await world.daemon()
    push = x_push(f"{apns_token()}|{apns_token()}").replace(
        "message-push=true", "message-push=false"
    )
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    assert (await send(alice, "quietly")).status == 202
    reborn = await world.registered(daemon, "bob", "TCP", push)
    assert (await take(reborn)).body == "quietly"
    assert world.pushes.all == []


async def test_a_user_who_never_registered_has_a_mailbox_and_a_stranger_has_none(
    world: World,
) -> None:
    daemon = await world.daemon()
    alice = await world.phone(daemon, "alice")
    assert (await send(alice, "welcome")).status == 202
    assert (await message(alice, "nobody", "hello").sent()).status == 404
    bob = await world.phone(daemon, "bob", "TCP")
    await bob.register()
    assert (await take(bob)).body == "welcome"


async def test_android_and_webhook_apps_are_pushed_too(world: World) -> None:
    daemon = await world.daemon()
    token = fcm_token()
    android = x_push(token, "android")
    other = x_push(secrets.token_hex(16), "harmony", OTHER_APP)
    for push in (android, other):
        await world.sleeping(daemon, "bob", "TCP", push, f"urn:uuid:{uuid.uuid4()}")
    alice = await world.phone(daemon, "alice")
    await send(alice, "Lunch?")
    pushed = {push.service: push for push in [await world.pushes.next() for _ in "ab"]}
    data = pushed["fcm"].data
    assert pushed["fcm"].token == token
    assert (data["msg_type"], data["msg_content"]) == ("im", "Lunch?")
    assert data["x-push-id"] == data["message_id"] == pushed["webhook"].push_id
    event = pushed["webhook"].received.payload
    assert (event["type"], event["data"]["text"]) == ("message.mobile_push_wakeup", "Lunch?")
