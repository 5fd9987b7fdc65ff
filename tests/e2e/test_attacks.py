"""Attacks on the daemon, each over real sockets: nobody gets in, and nobody is hurt."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
import unicodedata
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.e2e.daemon import OTHER_APP, Daemon
from tests.e2e.wire import FINAL, SDP, Msg, Phone, Wire, digest_answer, new_branch
from tests.e2e.world import World, apns_token, x_push

ATTACKER = "127.0.0.71"


@pytest.fixture(params=["sqlite"])
def store_type(request: pytest.FixtureRequest) -> str:
    """What is refused reaches no store."""
    name: str = request.param
    return name


async def attacker_of(world: World, daemon: Daemon, user: str = "carol") -> Phone:
    """Somebody with another address than everybody else."""
    return await world.phone(daemon, user, ip=ATTACKER)


async def contacts(world: World, daemon: Daemon, user: str) -> list[str]:
    """What is registered for a user."""
    asker = await world.phone(daemon, user)
    listed = await asker.register(contact="")
    return [value.partition(">")[0][1:] for value in listed.response.all("contact")]


async def quiet(*wires: Wire) -> None:
    """Everything sent before has been dealt with."""
    for wire in wires:
        await wire.heard()


# -- signing in --


async def test_a_replayed_register_changes_nothing(world: World) -> None:
    daemon = await world.daemon()
    bob, attacker = await world.phone(daemon, "bob"), await attacker_of(world, daemon)
    await bob.register()
    stolen = re.sub(r"Contact: [^\r]*", "Contact: <sip:bob@127.0.0.71>", bob.last_register)
    for wire in (attacker.wire, bob.wire):
        wire.send(re.sub(r"branch=\w+", f"branch={new_branch()}", stolen))
        answer = await wire.expect(FINAL, method="REGISTER")
        assert answer.status == 401
        assert "stale=true" in answer["www-authenticate"]
    assert await contacts(world, daemon, "bob") == [bob.contact_uri]


async def test_a_forged_nonce_gets_nobody_in_and_tells_nothing(world: World) -> None:
    daemon = await world.daemon()
    stranger = await world.phone(daemon, "carol")
    stranger.wire.send(_register(stranger, "carol"))
    challenge = (await stranger.wire.expect(401))["www-authenticate"]
    other = await attacker_of(world, daemon)
    nonces = {
        "made up": "0123456789abcdef",
        "with another time": re.sub(r'nonce="\w', 'nonce="f', challenge).split('"')[3],
        "of another address": challenge,
    }
    for nonce in nonces.values():
        given = (
            nonce if nonce == challenge else re.sub(r'nonce="[^"]*"', f'nonce="{nonce}"', challenge)
        )
        for password in (other.account.password, "wrong"):
            answer = await _sign_in(other, given, "carol", password)
            assert answer.status == 401
            assert "stale=true" in answer["www-authenticate"]
    assert await contacts(world, daemon, "carol") == []


async def test_nobody_registers_for_somebody_else(world: World) -> None:
    daemon = await world.daemon()
    eve = await world.phone(daemon, "carol")
    eve.register_for = world.aor("bob")
    response = (await eve.register()).response
    assert (response.status, response.start) == (403, "SIP/2.0 403 Not Your Address-of-Record")
    assert await contacts(world, daemon, "bob") == []


async def test_a_wrong_password_and_an_unknown_user_get_the_same_answer_no_sooner(
    world: World,
) -> None:
    daemon = await world.start(limits={"failed_sign_ins": 0})
    seen = set()
    for user in ("bob", "nobody"):
        eve = await attacker_of(world, daemon)
        eve.wire.send(_register(eve, user))
        challenge = await eve.wire.expect(401)
        sent = await _sign_in(eve, challenge["www-authenticate"], user, "wrong")
        assert sent.at - eve.wire.seen[0].at >= 0.1
        seen |= {_without_names(challenge, user), _without_names(sent, user)}
    assert len(seen) == 1


def _without_names(answer: Msg, user: str) -> str:
    text = re.sub(
        r'(branch=|tag=|rport=|nonce="|Call-ID: |CSeq: |127\.0\.0\.71:)[^;"\s]*', r"\1", answer.text
    )
    return text.replace(user, "user")


def _register(phone: Phone, user: str, authorization: str = "") -> str:
    wire, domain = phone.wire, phone.account.domain
    phone.cseq += 1
    lines = [f"Authorization: {authorization}"] if authorization else []
    return "\r\n".join(
        [
            f"REGISTER sip:{domain} SIP/2.0",
            f"Via: SIP/2.0/UDP {wire.host_port};branch={new_branch()};rport",
            "Max-Forwards: 70",
            f"From: <sip:{user}@{domain}>;tag=a",
            f"To: <sip:{user}@{domain}>",
            f"Call-ID: {phone.register_id}",
            f"CSeq: {phone.cseq} REGISTER",
            f"Contact: <{phone.contact_uri}>",
            *lines,
            "Content-Length: 0",
            "\r\n",
        ]
    )


async def _sign_in(phone: Phone, challenge: str, user: str, password: str) -> Msg:
    uri = f"sip:{phone.account.domain}"
    answer = digest_answer(challenge, user, password, "REGISTER", uri)
    phone.wire.send(_register(phone, user, answer))
    return await phone.wire.expect(FINAL, method="REGISTER")


# -- requests of others --


async def _call(world: World, daemon: Daemon, ip: str = "127.0.0.1") -> tuple[Any, Any, Msg]:
    """A call from alice to bob, and the 200 she got."""
    bob, alice = await world.phone(daemon, "bob"), await world.phone(daemon, "alice", ip=ip)
    await bob.register()
    outgoing = await alice.call("bob")
    incoming = await bob.incoming()
    incoming.reply(200)
    return outgoing, incoming, await outgoing.final()


async def test_a_cancel_from_another_address_cancels_nothing(world: World) -> None:
    daemon = await world.daemon()
    bob, alice = await world.phone(daemon, "bob"), await world.phone(daemon, "alice")
    eve = await attacker_of(world, daemon)
    await bob.register()
    outgoing = await alice.call("bob")
    incoming = await bob.incoming()
    incoming.reply(180)
    await outgoing.expect(180)
    eve.wire.send(outgoing._request("CANCEL", outgoing.uri, outgoing.branch))
    assert (await eve.wire.expect(FINAL, method="CANCEL")).status == 481
    await quiet(eve.wire, bob.wire)
    assert bob.wire.count("CANCEL") == 0
    assert (await outgoing.cancel()).status == 200
    await incoming.expect("CANCEL")


async def test_a_bye_without_the_route_of_the_call_goes_nowhere(world: World) -> None:
    daemon = await world.daemon()
    outgoing, incoming, answer = await _call(world, daemon)
    bob, eve = incoming.phone, await attacker_of(world, daemon)
    (route,) = answer.all("record-route")[:1]
    forged = [
        route.replace("sip:", "sip:x", 1),
        re.sub(r"sip:[^@]*@", "sip:", route),
        re.sub(r"sip:([^@]*)@", lambda m: f"sip:{m[1][::-1]}@", route),
    ]
    outgoing.cseq += 1
    for uri in (answer.contact, outgoing.uri):
        for routes in ([], *([each] for each in forged)):
            lines = [f"Route: {each}" for each in routes]
            tag, branch = answer.tag("to"), new_branch()
            eve.wire.send(outgoing._request("BYE", uri, branch, tag, *lines))
            assert (await eve.wire.expect(FINAL, method="BYE")).status in (403, 407)
    await quiet(eve.wire, bob.wire)
    assert bob.wire.count("BYE") == 0
    incoming_end = await _hang_up(outgoing, incoming, answer)
    assert incoming_end.status == 200


@pytest.mark.parametrize("method", ["INVITE", "MESSAGE", "REFER"])
async def test_the_route_of_an_old_call_reaches_the_phone_no_more(
    world: World, method: str
) -> None:
    daemon = await world.daemon()
    outgoing, incoming, answer = await _call(world, daemon)
    await _hang_up(outgoing, incoming, answer)
    bob, eve = incoming.phone, await attacker_of(world, daemon)
    routes = [value.strip("<>") for value in reversed(answer.all("record-route"))]
    before = bob.wire.count(method)
    tries = [
        ("", "", "Domain 127.0.0.1 Not Served Here"),
        (";tag=b", "", "Domain 127.0.0.1 Not Served Here"),
        ("", outgoing.call_id, "Route of a Dialog"),
    ]
    for tag, call_id, reason in tries:
        routed = [f"<{route}>" for route in routes]
        call = await _send(eve, method, answer.contact, routed, tag, call_id)
        final = await eve.wire.expect(FINAL, call_id=call)
        assert final.start == f"SIP/2.0 403 {reason}"
    await quiet(eve.wire, bob.wire)
    assert bob.wire.count(method) == before


async def _hang_up(outgoing: Any, incoming: Any, answer: Msg) -> Msg:
    ended, _ = await asyncio.gather(outgoing.hang_up(answer), incoming.hung_up())
    return ended


@pytest.mark.parametrize("signs_in", [False, True])
async def test_nothing_is_relayed_to_where_an_attacker_wants_it(
    world: World, signs_in: bool
) -> None:
    daemon = await world.daemon()
    victim = await Wire.open("UDP", daemon.at("UDP"), "127.0.0.72")
    host, port = victim.local
    eve = await attacker_of(world, daemon)
    if signs_in:
        await eve.register()
    domain, server = world.domain, f"{daemon.at('UDP')[0]}:{daemon.at('UDP')[1]}"
    tries = [
        (f"sip:victim@{host}:{port}", ()),
        (f"sip:bob@{domain}", (f"<sip:{host}:{port};lr>",)),
        (f"sip:bob@{domain}", (f"<sip:{server};lr>", f"<sip:{host}:{port};lr>")),
        (f"sip:victim@{host}:{port}", (f"<sip:{server};lr>",)),
        (f"sip:victim@{host}:{port};maddr={server.partition(':')[0]}", ()),
        (f"sip:bob@{domain};maddr={host}", ()),
        (f"tel:+4912345;phone-context={host}", ()),
    ]
    for method in ("INVITE", "MESSAGE", "OPTIONS", "BYE"):
        for uri, routes in tries:
            call = await _send(eve, method, uri, routes)
            final = await eve.wire.expect(FINAL, call_id=call)
            assert final.status in (400, 403, 404, 407, 416), (method, uri, final.start)
    await quiet(eve.wire, victim)
    assert [msg for msg in victim.seen if not msg.status] == []


async def _send(
    phone: Phone,
    method: str,
    uri: str,
    routes: Sequence[str],
    to_tag: str = "",
    call_id: str = "",
) -> str:
    call = call_id or f"attack-{new_branch()}"
    wire = phone.wire
    phone.wire.send(
        "\r\n".join(
            [
                f"{method} {uri} SIP/2.0",
                f"Via: SIP/2.0/UDP {wire.host_port};branch={new_branch()};rport",
                "Max-Forwards: 70",
                f"From: <sip:{phone.account.aor}>;tag=a",
                f"To: <{uri}>{to_tag}",
                f"Call-ID: {call}",
                f"CSeq: 1 {method}",
                f"Contact: <{phone.contact_uri}>",
                *(f"Route: {route}" for route in routes),
                "Content-Length: 0",
                "\r\n",
            ]
        )
    )
    return call


# -- what is told to others --


@pytest.mark.parametrize("app_id", ["", OTHER_APP])
async def test_a_display_name_puts_nothing_but_itself_into_a_push(
    world: World, app_id: str
) -> None:
    daemon = await world.daemon()
    push = x_push(apns_token(), "ios", app_id) if app_id else x_push(apns_token())
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    evil = 'A\\"},\\"aps\\":{\\"x\\":1},{call_id}%s\x01\x1b[31m\u202e\u2028' + "x" * 900
    outgoing = await alice.call("bob", challenged=False)
    refusal = await outgoing.expect(407)
    account = alice.account
    outgoing._ack_failure(refusal)
    outgoing.authorization = digest_answer(
        refusal["proxy-authenticate"], account.user, account.password, "INVITE", outgoing.uri
    )
    outgoing.cseq, outgoing.branch = 2, new_branch()
    text = outgoing._request(
        "INVITE",
        outgoing.uri,
        outgoing.branch,
        "",
        f"Proxy-Authorization: {outgoing.authorization}",
    )
    alice.wire.send(text.replace(f'From: "{account.user}"', f'From: "{evil}"'))
    payload = (await world.pushes.next()).received.payload
    texts = list(_texts(payload))
    assert any('A"},"aps":{"x":1},{call_id}%s' in each for each in texts)
    for each in texts:
        assert len(each) <= 400
        assert not [c for c in each if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")]


def _texts(value: Any) -> Any:
    match value:
        case dict():
            for key, each in value.items():
                yield key
                yield from _texts(each)
        case list():
            for each in value:
                yield from _texts(each)
        case str():
            yield value


async def test_no_password_token_or_digest_is_logged_and_no_password_stored(
    world: World,
) -> None:
    daemon = await world.start()
    token, message_token = apns_token(), apns_token()
    bob = await world.registered(daemon, "bob", "TCP", x_push(f"{token}|{message_token}"))
    eve = await attacker_of(world, daemon, "bob")
    eve.wire.send(_register(eve, "bob"))
    challenge = (await eve.wire.expect(401))["www-authenticate"]
    assert (await _sign_in(eve, challenge, "bob", "wrong-guess")).status == 401
    eve.wire.send(_register(eve, "bob").replace("CSeq: ", f"X-Push: device-uid={token}\r\nCSeq: x"))
    await eve.wire.expect(400)
    bob.kill()
    alice = await world.phone(daemon, "alice")
    outgoing = await alice.call("bob")
    await world.pushes.next()
    await outgoing.cancel()
    await outgoing.final()
    used = re.findall(r'response="(\w+)"', bob.last_register + outgoing.authorization)
    assert len(used) == 2
    secret = [*used, bob.account.password, alice.account.password, world.ha1("bob"), "wrong-guess"]
    log = "\n".join(daemon.log.all)
    assert "authentication_failed" in log
    assert not [each for each in [*secret, token, message_token] if each in log]
    with sqlite3.connect(f"file:{world.store['sqlite']['path']}?mode=ro", uri=True) as database:
        stored = "\n".join(database.iterdump())
    assert token in stored, "it must be: pushes are sent to it"
    assert not [each for each in secret if each in stored]


async def test_credentials_for_the_callee_reach_it_but_not_the_store(world: World) -> None:
    daemon = await world.start()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    theirs = 'Digest username="alice", realm="door", nonce="n", uri="sip:bob", response="5ec4e7"'
    outgoing = await alice.call("bob", headers=[f"Authorization: {theirs}"])
    await world.pushes.next()
    with sqlite3.connect(f"file:{world.store['sqlite']['path']}?mode=ro", uri=True) as database:
        stored = "\n".join(database.iterdump())
    assert "INVITE sip:bob@" in stored
    assert "5ec4e7" not in stored
    bob = await world.registered(daemon, "bob", "TCP", push)
    incoming = await bob.incoming()
    assert incoming.invite["authorization"] == theirs
    incoming.reply(200)
    assert (await _hang_up(outgoing, incoming, await outgoing.final())).status == 200


# -- floods --


async def test_a_stranger_who_floods_is_hardly_answered_and_others_are_served(
    world: World,
) -> None:
    daemon = await world.start(limits={"stranger_rate": 1, "stranger_burst": 20})
    eve, bob = await attacker_of(world, daemon), await world.phone(daemon, "bob")
    await bob.register()
    for n in range(300):
        method = ("OPTIONS", "UNKNOWN", "REGISTER", "GARBAGE /")[n % 4]
        await _send(eve, method, f"sip:{world.domain}", ())
    for _ in range(50):
        await quiet(bob.wire)
    assert 0 < sum(msg.status >= 200 for msg in eve.wire.seen) < 40
    assert (await bob.register()).response.status == 200


async def test_a_stranger_gets_few_bytes_for_each_that_he_sent(world: World) -> None:
    daemon = await world.daemon()
    eve = await attacker_of(world, daemon)
    usual = _register(eve, "bob")
    least = f"{usual.splitlines()[0]}\r\nv:SIP/2.0/UDP a\r\nf:sip:a\r\nt:sip:a@{world.domain}\r\n"
    for text, most in ((usual, 1.5), (f"{least}i:a\r\nCSeq:1 REGISTER\r\n\r\n", 3)):
        eve.wire.send(text)
        answer = await eve.wire.expect(401)
        assert len(answer.text) < most * len(text)
    refused = await eve.call("alice", challenged=False)
    await refused.expect(407)
    sent = refused._request("INVITE", refused.uri, refused.branch, body=SDP)
    assert sum(len(msg.text) for msg in eve.wire.seen[2:]) < 2 * len(sent)


# -- limits --


async def test_limits_are_taken_up_on_reload(world: World) -> None:
    daemon = await world.start()
    daemon.settings["limits"] = {"body_size": 10, "via_hops": 2, "connections_per_address": 1}
    daemon.reload()
    await daemon.log_event("reloaded")
    first = await world.phone(daemon, "alice", "TCP")
    assert (await first.register()).response.status == 200
    assert (await (await first.call("bob", challenged=False)).expect(413)).status == 413
    hops = [f"Via: SIP/2.0/TCP h{n};branch=z9hG4bK{n}" for n in range(2)]
    assert (await first.register(headers=hops)).response.status == 483
    second = await world.phone(daemon, "alice", "TCP")
    await second.wire.closed.wait()


async def test_one_caller_holds_so_many_calls_and_one_callee_is_held_for_so_many(
    world: World,
) -> None:
    limits = {"held_calls_per_caller": 1, "held_calls_per_callee": 2}
    daemon = await world.start(limits=limits, wake={"hold": 30})
    for user in ("bob", "carol"):
        await world.sleeping(daemon, user, "TCP", x_push(apns_token()))
    callers = [await world.phone(daemon, user) for user in ("alice", "carol", "hardly-held")]
    held = [await caller.call("bob") for caller in callers[:2]]
    for call in held:
        await call.expect(180)
        await world.pushes.next()
    refused = await (await callers[2].call("bob")).final()
    assert (refused.status, refused.start) == (486, "SIP/2.0 486 Too Many Held Calls")
    assert refused["retry-after"]
    refused = await (await callers[0].call("carol")).final()
    assert (refused.status, refused.start) == (
        503,
        "SIP/2.0 503 Too Many Held Calls of This Caller",
    )
    await held[0].cancel()
    assert (await held[0].final()).status == 487
    # His call still counts: the push has gone out, and redialling must not make a storm of them.
    again = await (await callers[0].call("bob")).final()
    assert again.status == 503


# -- guesses from many addresses --


async def _guess(world: World, daemon: Daemon, user: str, ip: str, word: str = "wrong") -> Msg:
    eve = await world.phone(daemon, "carol", ip=ip)
    eve.wire.send(_register(eve, user))
    challenge = (await eve.wire.expect(401))["www-authenticate"]
    return await _sign_in(eve, challenge, user, word)


async def test_guesses_from_many_addresses_are_slowed_and_the_user_is_not_locked_out(
    world: World,
) -> None:
    daemon = await world.start(limits={"failed_sign_ins_per_user": 4, "failure_window": 3600})
    instance, push = f"urn:uuid:{uuid.uuid4()}", x_push(apns_token())
    home = await world.registered(daemon, "bob", "UDP", "", instance)
    await world.sleeping(daemon, "carol", "UDP", push)
    for user in ("bob", "carol", "nobody"):
        answers = [await _guess(world, daemon, user, f"127.0.1.{n}") for n in range(1, 7)]
        assert [answer.status for answer in answers] == [401] * 4 + [503] * 2
        assert answers[-1].start == "SIP/2.0 503 Too Many Failed Sign-Ins"
        assert 0 < int(answers[-1]["retry-after"]) <= 900
    right = world.account("bob").password
    assert (await _guess(world, daemon, "bob", "127.0.1.9", right)).status == 503
    assert (await home.register()).response.status == 200
    roaming = await world.phone(daemon, "bob", ip="127.0.2.1", instance=instance)
    assert (await roaming.register()).response.status == 200
    moved = await world.phone(daemon, "carol", ip="127.0.2.2")
    assert (await moved.register(push)).response.status == 200
    outgoing = await roaming.call("carol")
    incoming = await moved.incoming()
    incoming.reply(200)
    assert (await _hang_up(outgoing, incoming, await outgoing.final())).status == 200
    assert await daemon.log_event("user_slowed", aor=world.aor("nobody"))


async def test_a_call_with_a_guessed_password_is_slowed_too(world: World) -> None:
    daemon = await world.start(limits={"failed_sign_ins_per_user": 1, "failure_window": 3600})
    await _guess(world, daemon, "alice", "127.0.1.1")
    alice = await world.phone(daemon, "alice", ip="127.0.1.2")
    refused = await (await alice.call("bob")).final()
    assert (refused.status, bool(refused["retry-after"])) == (503, True)


# -- crowds --


@pytest.mark.parametrize("transport", ["UDP", "TCP"])
async def test_a_thousand_phones_of_one_address_sign_in_at_once(
    world: World, transport: str
) -> None:
    crowd = [f"u{n}" for n in range(1000)]
    users = {f"{user}@{world.domain}": {"ha1_md5": world.ha1(user)} for user in crowd}
    daemon = await world.start(users=users)
    office = await world.phone(daemon, "carol", transport, ip=ATTACKER)
    uri = f"sip:{world.domain}"
    challenges = []
    for some in in_parts(crowd):
        for user in some:
            office.wire.send(_register(office, user).replace("/UDP", f"/{transport}"))
        challenges += [await office.wire.expect(401) for _ in some]
    for some in in_parts(challenges):
        for challenge in some:
            (user,) = re.findall(r"sip:(u\d+)@", challenge["to"])
            password = world.account(user).password
            answer = digest_answer(challenge["www-authenticate"], user, password, "REGISTER", uri)
            office.wire.send(_register(office, user, answer).replace("/UDP", f"/{transport}"))
        for _ in some:
            assert (await office.wire.expect(FINAL, method="REGISTER")).status == 200


def in_parts(items: list[Any]) -> Iterator[list[Any]]:
    """As many at a time as surely fit into a socket's buffer: nobody here sends twice."""
    return (items[start : start + 100] for start in range(0, len(items), 100))


# -- bans --


async def test_a_ban_spares_calls_survives_a_restart_and_is_lifted_by_hand(world: World) -> None:
    daemon = await world.start(limits={"failed_sign_ins": 1})
    outgoing, incoming, answer = await _call(world, daemon, ATTACKER)
    eve = await attacker_of(world, daemon)
    for _ in range(5):  # somebody there has signed in
        eve.wire.send(_register(eve, "bob"))
        challenge = (await eve.wire.expect(401))["www-authenticate"]
        assert (await _sign_in(eve, challenge, "bob", "wrong")).status == 401
    assert (await daemon.log_event("banned"))["source"] == ATTACKER
    assert (await _hang_up(outgoing, incoming, answer)).status == 200
    await daemon.kill()
    await daemon.start()
    listed = _sipush(daemon, "bans", "list")
    assert re.fullmatch(r"127\.0\.0\.71  banned for 5\d\d s more\n", listed)
    honest = await world.phone(daemon, "carol", "TCP", ip=ATTACKER)
    honest.wire.send("OPTIONS sip:a SIP/2.0\r\n\r\n")
    await honest.wire.closed.wait()
    _sipush(daemon, "bans", "lift", ATTACKER)
    await daemon.log_event("ban_lifted", source=ATTACKER)
    eve = await attacker_of(world, daemon)
    assert (await eve.register()).response.status == 200


async def test_a_swarm_of_guesses_gets_no_further_than_one_after_the_other(world: World) -> None:
    daemon = await world.start(limits={"failed_sign_ins": 3})
    eve = await attacker_of(world, daemon)
    for _ in range(12):
        eve.wire.send(_register(eve, "carol"))
    challenges = [(await eve.wire.expect(401))["www-authenticate"] for _ in range(12)]
    uri = f"sip:{world.domain}"
    words = [*(["wrong"] * 11), eve.account.password]
    for challenge, word in zip(challenges, words, strict=True):
        answer = digest_answer(challenge, "carol", word, "REGISTER", uri)
        eve.wire.send(_register(eve, "carol", answer))
    await daemon.log_event("banned")
    assert await contacts(world, daemon, "carol") == []
    assert eve.wire.count(200) == 0


def _sipush(daemon: Daemon, *command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "sipush.cli", *command, "--config", str(daemon.config)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
