"""What is special about Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from sipush.config import RedisConfig, StoreConfig
from sipush.core.bindings import Binding, Location, Refusal, Subscriber
from sipush.errors import ConfigError, LocationError, UnreadableError
from sipush.location import make_store, redis_commands, redis_connection
from sipush.location.redis import RedisStore
from sipush.location.redis_bind import SPARE
from tests.location.rows import AOR, NOW, PHONE, TABLET, binding, message, record, registration
from tests.servers.redis_relay import RedisRelay
from tests.servers.redis_sentinel import MASTER, RedisWithSentinel
from tests.servers.redis_server import RedisServer

TIMEOUT = 0.5


@pytest.fixture
async def store(own_redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(RedisConfig(url=own_redis_server.url, timeout=TIMEOUT))
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def other_node(own_redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(RedisConfig(url=own_redis_server.url))
    yield store
    await store.close()


async def test_the_keys_can_be_read_by_a_person(store: RedisStore, redis_cli: Redis):
    await store.bind(registration(binding(user_agent="Phöne"), push=(record(),)))
    await store.put_subscriber(Subscriber(AOR, "a" * 32, hold=False))
    keys = set(await redis_cli.keys())
    assert keys == {f"sipush:{{{AOR}}}:{kind}" for kind in ("devices", "subscriber")}
    row, push = (await redis_cli.hget(f"sipush:{{{AOR}}}:devices", PHONE)).split("\n\n")
    assert json.loads(row)["contact"] == "sip:101@192.0.2.1:5060"
    assert "Phöne" in row
    assert json.loads(push)["platform"] == "apns"
    assert (await redis_cli.hgetall(f"sipush:{{{AOR}}}:subscriber"))["hold"] == "0"


async def test_rows_that_a_person_wrote_are_read(store: RedisStore, redis_cli: Redis):
    row = {
        "device": PHONE,
        "contact": "sip:101@192.0.2.1:5060",
        "contact_key": "sip:101@192.0.2.1:5060",
        "params": "",
        "path": [],
        "flow": "udp/192.0.2.9:5060/192.0.2.1:5060",
        "user_agent": "",
        "call_id": "call-1@192.0.2.1",
        "cseq": 5,
        "registered_epoch": NOW,
        "expires_epoch": NOW + 600,
    }
    compact = json.dumps(row, separators=(",", ":"), sort_keys=True)
    for written in (json.dumps(row), compact, json.dumps(row, indent=2), f" {compact}\n"):
        await redis_cli.hset(f"sipush:{{{AOR}}}:devices", PHONE, written)
        assert await store.lookup(AOR, NOW) == Location((binding(cseq=5),))
        assert await store.bind(registration(binding(cseq=4))) is Refusal.OUT_OF_ORDER
        tablet = binding(TABLET, "sip:101@192.0.2.3", call_id="another")
        await store.bind(registration(tablet))
        both = (await store.lookup(AOR, NOW)).bindings
        assert sorted(both, key=lambda each: each.device) == [binding(cseq=5), tablet]
        await store.bind(registration(unbind=((TABLET, ""),)))
        fresh = binding(cseq=6)
        assert await store.bind(registration(fresh)) == Location((fresh,))


async def test_all_keys_of_an_aor_share_a_cluster_slot(store: RedisStore, redis_cli: Redis):
    await store.bind(registration(binding(), push=(record(),)))
    await store.put_subscriber(Subscriber(AOR))
    assert len({key_slot(key.encode()) for key in await redis_cli.keys()}) == 1


async def test_keys_live_a_day_longer_than_their_last_row(store: RedisStore, redis_cli: Redis):
    longer = binding("contact:other", "sip:101@192.0.2.2", expires_epoch=NOW + 900)
    await store.bind(registration(binding(), longer))
    key = f"sipush:{{{AOR}}}:devices"
    assert 890_000 < await redis_cli.pttl(key) - SPARE <= 900_000
    await store.bind(registration(binding(cseq=2), push=(record(),)))
    assert 604_790_000 < await redis_cli.pttl(key) - SPARE <= 604_800_000
    await store.bind(registration(unbind=((PHONE, ""), ("contact:other", "")), cseq=3))
    await store.bind(registration(push_off=((PHONE, ""),), cseq=4))
    assert not await redis_cli.exists(key)


async def test_the_time_of_a_key_is_set_only_when_it_ends_too_early(
    store: RedisStore, redis_cli: Redis
):
    await store.bind(registration(binding()))
    await redis_cli.config_resetstat()
    await store.bind(registration(binding(cseq=2)))
    later = NOW + SPARE / 1000
    await store.bind(registration(binding(cseq=3, expires_epoch=later)))
    assert "cmdstat_pexpire" not in await redis_cli.info("commandstats")
    key = f"sipush:{{{AOR}}}:devices"
    for left in (599_000, None):  # as nodes of an earlier version set it, or a person did not
        await (redis_cli.pexpire(key, left) if left else redis_cli.persist(key))
        cseq = 4 if left else 5
        await store.bind(registration(binding(cseq=cseq)))
        assert 590_000 < await redis_cli.pttl(key) - SPARE <= 600_000


async def test_flushed_scripts_are_sent_again(store: RedisStore, redis_cli: Redis):
    await store.bind(registration(binding()))
    await redis_cli.script_flush()
    many = [binding(aor=f"{n}@example.com") for n in range(20)]
    outcomes = await asyncio.gather(*(store.bind(registration(row)) for row in many))
    assert outcomes == [Location((row,)) for row in many]


async def test_what_is_asked_at_once_travels_together(store: RedisStore, redis_cli: Redis):
    await redis_cli.config_resetstat()
    rows = [binding(aor=f"{n}@example.com") for n in range(64)]
    await asyncio.gather(*(store.bind(registration(row)) for row in rows))
    assert (await redis_cli.info("commandstats"))["cmdstat_hset"]["calls"] == 64
    assert (await redis_cli.info("stats"))["total_reads_processed"] < 20


async def test_look_ups_and_registers_with_pushes_due_share_calls_though_they_alternate(
    store: RedisStore, redis_cli: Redis
):
    async def register(row: Binding) -> Location | Refusal:
        return await store.bind(registration(row, refreshes=((PHONE, NOW + 450),)))

    rows = [binding(aor=f"{n}@example.com") for n in range(20)]
    await asyncio.gather(register(binding()), store.lookup(AOR, NOW))  # the scripts are there
    await redis_cli.config_resetstat()
    outcomes = await asyncio.gather(
        *(ask for row in rows for ask in (store.lookup(AOR, NOW), register(row)))
    )
    assert outcomes == [o for row in rows for o in (Location((binding(),)), Location((row,)))]
    stats = await redis_cli.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 2
    assert stats["cmdstat_exec"]["calls"] == 1
    assert len(await store.take_refreshes(NOW + 450)) == 21


async def test_refreshes_that_cannot_be_noted_fail_the_register_alone_that_has_one(
    store: RedisStore, redis_cli: Redis
):
    await redis_cli.set("sipush:refreshes", "mine")
    with_one = registration(binding(), refreshes=((PHONE, NOW + 450),))
    other = binding(aor="102@example.com")
    failed, stored = await asyncio.gather(
        store.bind(with_one), store.bind(registration(other)), return_exceptions=True
    )
    assert isinstance(failed, LocationError)
    assert "WRONGTYPE" in str(failed)
    assert stored == Location((other,))


async def test_one_of_many_that_fails_spares_the_others(
    store: RedisStore, other_node: RedisStore, redis_cli: Redis
):
    heard: asyncio.Queue[str] = asyncio.Queue()
    other_node.listen(heard.put_nowait)
    await other_node.open()
    rows = [binding(aor=f"{n}@example.com") for n in range(60)]
    await redis_cli.set("sipush:{20@example.com}:devices", "mine")
    await store.bind(registration(replace(rows[30], cseq=7)))
    await store.lookup(AOR, NOW)  # its script is there, too
    await redis_cli.config_resetstat()
    outcomes = await asyncio.gather(
        *(store.bind(registration(row)) for row in rows), return_exceptions=True
    )
    assert (await redis_cli.info("commandstats"))["cmdstat_exec"]["calls"] == 3
    failed, refused = outcomes.pop(20), outcomes.pop(29)
    assert isinstance(failed, LocationError)
    assert "WRONGTYPE" in str(failed)
    assert refused is Refusal.OUT_OF_ORDER
    stored = rows[:20] + rows[21:30] + rows[31:]
    assert outcomes == [Location((row,)) for row in stored]
    async with asyncio.timeout(5):
        told = [await heard.get() for _ in range(59)]
    assert told == [rows[30].aor, *(row.aor for row in stored)]
    await redis_cli.set("sipush:{10@example.com}:messages", "mine")
    found = await asyncio.gather(
        *(store.lookup(row.aor, NOW) for row in rows), return_exceptions=True
    )
    assert (await redis_cli.info("commandstats"))["cmdstat_evalsha"]["calls"] == 3
    for n in (20, 10):
        assert "WRONGTYPE" in str(found.pop(n))
    assert found == [
        Location((row,)) if row is not rows[30] else Location((replace(row, cseq=7),))
        for row in rows[:10] + rows[11:20] + rows[21:]
    ]


async def test_a_row_that_cannot_be_read_fails_the_register_alone_that_reads_it(
    store: RedisStore, redis_cli: Redis
):
    await redis_cli.hset(f"sipush:{{{AOR}}}:devices", "contact:other", "what?")
    other = binding(aor="102@example.com")
    failed, stored = await asyncio.gather(
        store.bind(registration(binding())),
        store.bind(registration(other)),
        return_exceptions=True,
    )
    assert isinstance(failed, LocationError)
    assert stored == Location((other,))


async def test_a_row_that_cannot_be_read_is_an_error_and_what_was_seen_last_stays(
    store: RedisStore, redis_cli: Redis
):
    bound = registration(binding(), push=(record(),))
    await store.bind(bound)
    await redis_cli.hset(f"sipush:{{{AOR}}}:devices", PHONE, "spoilt")
    with pytest.raises(LocationError, match="a row that cannot be read"):
        await store.lookup(AOR, NOW)
    known = store.last_known(AOR)
    assert known is not None
    assert known.bindings == bound.bind


@pytest.mark.parametrize("number", ["expires_epoch", "cseq", "registered_epoch", "updated_epoch"])
async def test_a_number_that_is_none_makes_a_row_that_cannot_be_read(
    store: RedisStore, redis_cli: Redis, number: str
):
    await store.bind(registration(binding(), push=(record(),)))
    key = f"sipush:{{{AOR}}}:devices"
    row = await redis_cli.hget(key, PHONE)
    await redis_cli.hset(key, PHONE, re.sub(rf'"{number}":[^,}}]+', f'"{number}":"soon"', row))
    with pytest.raises(LocationError, match=f"{AOR} has a row that cannot be read"):
        await store.lookup(AOR, NOW)
    with pytest.raises(LocationError, match=f"{AOR} has a row that cannot be read"):
        await store.bind(registration(binding(TABLET)))


async def test_notes_that_cannot_be_read_cost_no_other_note(store: RedisStore, redis_cli: Redis):
    await store.bind(replace(registration(binding()), refreshes=((PHONE, NOW),)))
    await redis_cli.zadd("sipush:refreshes", {"spoilt": NOW, '["too short"]': NOW})
    assert await store.take_refreshes(NOW) == [(AOR, PHONE)]
    gone = message("gone")
    await store.remove_message(gone, NOW)
    await redis_cli.zadd("sipush:gone-messages", {b"\xffspoilt": NOW + 9})
    assert [found[:2] for found in await store.gone_messages(NOW)] == [(AOR, gone.key)]


async def test_a_user_who_cannot_be_read_is_named(store: RedisStore, redis_cli: Redis):
    await redis_cli.hset(f"sipush:{{{AOR}}}:subscriber", "hold_seconds", "long")
    with pytest.raises(LocationError, match=f"user {AOR} cannot be read"):
        await store.subscriber(AOR)
    other = Subscriber("102@example.com", "a" * 32)
    await store.put_subscriber(other)
    found = [each async for each in store.subscribers()]
    assert other in found
    (unreadable,) = [str(each) for each in found if isinstance(each, UnreadableError)]
    assert f"user {AOR} cannot be read" in unreadable


@pytest.mark.parametrize("spoilt", [b"what?", b"", b"\xff" * 64])
async def test_a_secret_that_is_none_is_told(store: RedisStore, redis_cli: Redis, spoilt: bytes):
    await redis_cli.set("sipush:secret", spoilt)
    with pytest.raises(LocationError, match="secret in the store cannot be read"):
        await store.secret()


async def test_bans_and_messages_that_cannot_be_read_cost_no_others(
    store: RedisStore, redis_cli: Redis
):
    await store.put_ban("192.0.2.1", NOW + 60)
    await redis_cli.zadd("sipush:bans", {b"\xff": NOW + 60})
    assert await store.bans(NOW) == {"192.0.2.1": NOW + 60}
    await store.put_message(message("k1"), 10)
    await redis_cli.hset(f"sipush:{{{AOR}}}:messages", "spoilt", "x")
    assert [found.key for found in await store.messages(AOR, NOW)] == ["k1"]


async def test_devices_of_one_user_that_register_together_are_all_stored(store: RedisStore):
    rows = [binding(f"instance:{n}", f"sip:{n}@192.0.2.1", call_id=f"{n}") for n in range(4)]
    outcomes = await asyncio.gather(*(store.bind(registration(row)) for row in rows))
    for n, outcome in enumerate(outcomes):
        assert isinstance(outcome, Location)
        assert sorted(outcome.bindings, key=lambda row: row.device) == rows[: n + 1]
    found = (await store.lookup(AOR, NOW)).bindings
    assert sorted(found, key=lambda row: row.device) == rows


async def test_whose_messages_wait_is_told_to_each_of_those_who_register_together(
    store: RedisStore,
):
    await store.put_message(message(), 10)
    mine, other = binding(), binding(aor="102@example.com")
    outcomes = await asyncio.gather(*(store.bind(registration(row)) for row in (mine, other)))
    assert outcomes == [Location((mine,), messages=True), Location((other,))]


@asynccontextmanager
async def before_exec(
    server: RedisServer, *rows: Binding
) -> AsyncIterator[tuple[RedisStore, RedisRelay, asyncio.Future[list[Location | Refusal]]]]:
    """A node whose REGISTERs have been read and decided on, and are not written yet."""
    async with RedisRelay(server.port) as relay:
        store = RedisStore(RedisConfig(url=relay.url))
        await store.open()
        relay.stall_at(b"EXEC")
        under_way = asyncio.gather(*(store.bind(registration(row)) for row in rows))
        await relay.stalled.wait()
        yield store, relay, under_way
        await store.close()


async def test_what_another_node_stores_between_reading_and_writing_is_not_lost(
    own_redis_server: RedisServer, other_node: RedisStore
):
    """Both are seen when the user is; a later REGISTER makes the one under way out of order."""
    rows = [binding(), binding(aor="102@example.com"), binding(aor="103@example.com")]
    async with before_exec(own_redis_server, *rows) as (_, relay, under_way):
        tablet = binding(TABLET, "sip:101@192.0.2.3", call_id="another")
        await other_node.bind(registration(tablet))
        await other_node.bind(registration(replace(rows[1], cseq=2)))
        relay.go_on()
        both, refused, stored = await under_way
        assert isinstance(both, Location)
        assert sorted(both.bindings, key=lambda row: row.device) == [rows[0], tablet]
        assert refused is Refusal.OUT_OF_ORDER
        assert stored == Location((rows[2],))


async def test_a_register_that_others_keep_from_being_written_is_an_error(
    own_redis_server: RedisServer, redis_cli: Redis, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(redis_commands, "MAX_TRIES", 1)
    async with before_exec(own_redis_server, binding()) as (store, relay, under_way):
        await redis_cli.hset(f"sipush:{{{AOR}}}:devices", "contact:other", "")
        relay.go_on()
        with pytest.raises(LocationError, match="others keep changing"):
            await under_way
        assert await store.bind(registration(binding())) == Location((binding(),))


async def test_what_was_read_over_a_lost_connection_is_read_again(
    own_redis_server: RedisServer, other_node: RedisStore, redis_cli: Redis
):
    async with before_exec(own_redis_server, binding()) as (_, relay, under_way):
        await other_node.bind(registration(binding(cseq=2)))
        await redis_cli.client_kill_filter(_type="normal", skipme=True)
        relay.go_on()
        assert await under_way == [Refusal.OUT_OF_ORDER]


async def test_a_user_who_may_not_watch_is_told_so(store: RedisStore, redis_cli: Redis):
    await redis_cli.execute_command("ACL", "SETUSER", "default", "-watch")
    with pytest.raises(LocationError, match="NOPERM"):
        await store.bind(registration(binding()))
    await redis_cli.execute_command("ACL", "SETUSER", "default", "+watch")
    assert await store.bind(registration(binding())) == Location((binding(),))


async def test_a_killed_redis_is_an_error_and_a_restarted_one_is_used(
    store: RedisStore, own_redis_server: RedisServer
):
    await store.bind(registration(binding()))
    own_redis_server.kill()
    with pytest.raises(LocationError, match=r"Redis at 127\.0\.0\.1:"):
        await store.bind(registration(binding(cseq=2)))
    own_redis_server.start()
    assert await store.lookup(AOR, NOW) == Location()
    assert await store.bind(registration(binding(cseq=3))) == Location((binding(cseq=3),))


async def test_a_restart_between_two_requests_is_not_noticed(
    store: RedisStore, own_redis_server: RedisServer
):
    await store.bind(registration(binding()))
    own_redis_server.kill()
    own_redis_server.start()
    assert await store.bind(registration(binding())) == Location((binding(),))


async def test_a_connection_that_redis_closed_is_not_noticed(store: RedisStore, redis_cli: Redis):
    before = await store.bind(registration(binding()))
    await redis_cli.client_kill_filter(_type="normal", skipme=True)
    assert await store.lookup(AOR, NOW) == before


async def test_a_stalled_redis_fails_everybody_in_time_and_is_used_again(
    store: RedisStore, own_redis_server: RedisServer
):
    own_redis_server.pause()
    first = asyncio.create_task(store.bind(registration(binding())))
    await asyncio.sleep(0)
    later = [store.lookup(AOR, NOW) for _ in range(500)]
    async with asyncio.timeout(10 * TIMEOUT):
        outcomes = await asyncio.gather(first, *later, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {LocationError}
    own_redis_server.resume()
    fresh = binding(cseq=2)
    assert await store.bind(registration(fresh)) == Location((fresh,))


async def test_a_stalled_redis_never_piles_up_work(
    store: RedisStore, own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(redis_connection, "MAX_QUEUED", 100)
    own_redis_server.pause()
    lookups = [asyncio.create_task(store.lookup(AOR, NOW)) for _ in range(500)]
    done, _ = await asyncio.wait(lookups, return_when=asyncio.FIRST_COMPLETED)
    refused = [task for task in done if "too slow" in str(task.exception())]
    assert len(refused) == 400
    outcomes = await asyncio.gather(*lookups, return_exceptions=True)
    own_redis_server.resume()
    assert {type(outcome) for outcome in outcomes} == {LocationError}


async def test_a_held_call_is_stored_although_the_clock_of_redis_was_set(store: RedisStore):
    store._clock_ahead -= 3600.0
    await store.put_held_call("node", "call", b"{}")
    assert await store.claim_held_calls("node", 1.0, own=True) == [b"{}"]


async def test_a_held_call_is_out_of_our_hands_when_redis_will_read_it_at_once(
    own_redis_server: RedisServer,
):
    """What is behind that may be dropped if we are killed, so its reply is waited for."""
    async with RedisRelay(own_redis_server.port) as relay:
        store = RedisStore(RedisConfig(url=relay.url))
        await store.open()
        await store.put_held_call("node", "first", b"{}")  # its script is there, too
        relay.stall_at(b"{held}:calls:")
        is_written, heard = asyncio.Event(), []

        def written(name: str) -> None:
            heard.append(name)
            is_written.set()

        large = b'"%b"' % (b"x" * redis_connection.READ_AT_ONCE)
        puts = [
            asyncio.create_task(store.put_held_call("node", name, held, partial(written, name)))
            for name, held in (("small", b"{}"), ("large", large), ("behind", b"{}"))
        ]
        await is_written.wait()
        await relay.stalled.wait()
        assert heard == ["small"]
        relay.go_on()
        await asyncio.gather(*puts)
        assert heard == ["small", "large", "behind"]
        await store.close()


async def test_a_redis_that_is_not_there_is_named(own_redis_server: RedisServer):
    own_redis_server.kill()
    store = RedisStore(RedisConfig(url=own_redis_server.url))
    with pytest.raises(LocationError, match=f"127.0.0.1:{own_redis_server.port}"):
        await store.open()
    await store.close()


async def test_the_password_is_the_first_line_of_its_file(
    own_redis_server: RedisServer, redis_cli: Redis, tmp_path: Path
):
    file = tmp_path / "password"
    file.write_text("open sesame\n# of the test\n")
    await redis_cli.config_set("requirepass", "open sesame")
    store = RedisStore(RedisConfig(url=own_redis_server.url, password_file=file))
    await store.open()
    assert await store.lookup(AOR, NOW) == Location()
    await store.close()


async def test_a_wrong_password_is_an_error_that_does_not_show_it(
    own_redis_server: RedisServer, redis_cli: Redis, tmp_path: Path
):
    file = tmp_path / "password"
    file.write_text("open sesame")
    await redis_cli.config_set("requirepass", "another")
    store = RedisStore(RedisConfig(url=own_redis_server.url, password_file=file))
    with pytest.raises(LocationError, match="password") as caught:
        await store.open()
    assert "sesame" not in str(caught.value)
    await store.close()


@pytest.mark.parametrize("option", ["health_check_interval=often", "nonsense=1"])
@pytest.mark.parametrize("sentinels", [[], ["192.0.2.1"]])
def test_an_option_of_the_url_that_is_wrong_is_a_config_error(option: str, sentinels: list[str]):
    config = RedisConfig(url=f"redis://localhost/0?{option}", sentinels=sentinels)
    with pytest.raises(ConfigError, match=r"store\.redis\.url"):
        make_store(StoreConfig(type="redis", redis=config))


def test_a_password_that_is_no_text_is_a_config_error(tmp_path: Path):
    file = tmp_path / "password"
    file.write_bytes(b"p\xfc\n")
    config = RedisConfig(password_file=file)
    with pytest.raises(ConfigError, match=r"store\.redis\.password_file: is not UTF-8"):
        make_store(StoreConfig(type="redis", redis=config))


async def test_a_key_of_another_kind_is_an_error_and_stays(store: RedisStore, redis_cli: Redis):
    await redis_cli.set(f"sipush:{{{AOR}}}:devices", "mine")
    with pytest.raises(LocationError, match="WRONGTYPE"):
        await store.bind(registration(binding()))
    assert await redis_cli.get(f"sipush:{{{AOR}}}:devices") == "mine"


async def test_when_memory_is_out_nothing_is_half_done(store: RedisStore, redis_cli: Redis):
    before = await store.bind(registration(binding(), push=(record(),)))
    await redis_cli.config_set("maxmemory", "1")
    replace = registration(binding("token:t", cseq=2), push=(record("token:t", "new"),))
    with pytest.raises(LocationError, match="maxmemory"):
        await store.bind(replace)
    await redis_cli.config_set("maxmemory", "0")
    assert await store.lookup(AOR, NOW) == before


async def test_another_node_hears_of_a_registration(store: RedisStore, other_node: RedisStore):
    heard: asyncio.Queue[str] = asyncio.Queue()
    other_node.listen(heard.put_nowait)
    await other_node.open()
    odd = ("mit leer}zeichen\udce9@example.com", "mit\numbruch@example.com", "\n @example.com")
    await asyncio.gather(*(store.bind(registration(binding(aor=aor))) for aor in odd))
    async with asyncio.timeout(5):
        assert tuple([await heard.get() for _ in odd]) == odd


async def test_a_node_does_not_hear_itself(store: RedisStore, other_node: RedisStore):
    heard: asyncio.Queue[str] = asyncio.Queue()
    other_node.listen(heard.put_nowait)
    await other_node.open()
    await other_node.bind(registration(binding(aor="own@example.com")))
    await store.bind(registration(binding()))
    async with asyncio.timeout(5):
        assert await heard.get() == AOR
    assert heard.empty()


async def test_a_node_that_hears_its_own_registrations_takes_them_for_no_replies(
    other_node: RedisStore,
):
    broken: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))
    other_node.listen(lambda aor: None)
    await other_node.open()
    row = binding(aor="102@example.com")
    for cseq in (1, 2):
        mine, other = binding(cseq=cseq), replace(row, cseq=cseq)
        assert await asyncio.gather(
            other_node.bind(registration(mine)),
            other_node.lookup("103@example.com", NOW),
            other_node.bind(registration(other)),
        ) == [Location((mine,)), Location(), Location((other,))]
        assert await other_node.lookup(AOR, NOW) == Location((mine,))
    assert not broken


async def test_a_refused_register_wakes_nobody(store: RedisStore, other_node: RedisStore):
    heard: asyncio.Queue[str] = asyncio.Queue()
    other_node.listen(heard.put_nowait)
    await other_node.open()
    await store.bind(registration(binding(aor="full@example.com"), max_contacts=0))
    await store.bind(registration(binding()))
    async with asyncio.timeout(5):
        assert await heard.get() == AOR


async def test_a_node_hears_again_after_redis_restarted(
    store: RedisStore, other_node: RedisStore, own_redis_server: RedisServer
):
    heard: asyncio.Queue[str] = asyncio.Queue()
    other_node.listen(heard.put_nowait)
    await other_node.open()
    own_redis_server.kill()
    own_redis_server.start()
    async with asyncio.timeout(10):
        while heard.empty():
            await store.bind(registration(binding()))
            await asyncio.sleep(0.01)
    assert await heard.get() == AOR


async def test_a_node_is_told_since_when_it_may_have_missed_registrations(
    store: RedisStore, other_node: RedisStore, own_redis_server: RedisServer
):
    missed: asyncio.Queue[float] = asyncio.Queue()
    other_node.listen(lambda aor: None, missed.put_nowait)
    await other_node.open()
    assert missed.empty()
    lost_epoch = time.time()
    own_redis_server.kill()
    own_redis_server.start()
    async with asyncio.timeout(10):
        since = await missed.get()
    assert lost_epoch - 10 < since <= lost_epoch


async def test_a_user_who_may_not_hear_of_registrations_is_told_so(
    other_node: RedisStore, redis_cli: Redis
):
    await redis_cli.execute_command("ACL", "SETUSER", "default", "resetchannels")
    other_node.listen(lambda aor: None)
    with pytest.raises(LocationError, match="may this user use channels"):
        await other_node.open()


async def test_all_nodes_share_the_secret(store: RedisStore, other_node: RedisStore):
    await other_node.open()
    assert await store.secret() == await other_node.secret()


async def test_a_prefix_may_hold_any_character(own_redis_server: RedisServer):
    config = RedisConfig(url=own_redis_server.url, prefix="s[i]p*?\\{x}:y")
    store = RedisStore(config)
    await store.open()
    await store.bind(registration(binding()))
    await store.put_subscriber(Subscriber(AOR))
    assert [aor async for aor in store.aors()] == [AOR]
    assert [s.aor async for s in store.subscribers()] == [AOR]
    await store.close()


async def test_a_closed_store_says_so(store: RedisStore):
    await store.close()
    with pytest.raises(LocationError, match="closed"):
        await store.lookup(AOR, NOW)


async def test_the_calls_of_a_dead_node_are_taken_over_by_one_other(
    store: RedisStore, other_node: RedisStore
):
    await store.claim_held_calls("dead", 0.01, own=True)
    await store.put_held_call("dead", "1", b"{}")
    async with asyncio.timeout(5):
        while not (taken := await other_node.claim_held_calls("alive", 10, own=True)):
            pass  # until the lease of 10 ms has run out
    assert taken == [b"{}"]
    assert await store.claim_held_calls("third", 10, own=True) == []
    await other_node.remove_held_call("alive", "1")
    assert await other_node.claim_held_calls("alive", 10, own=True) == []


async def test_messages_are_a_hash_a_person_can_read(store: RedisStore, redis_cli: Redis):
    await store.put_message(message(), 10)
    key = f"sipush:{{{AOR}}}:messages"
    assert await redis_cli.hget(key, f"{int(NOW)} {NOW!r} {NOW + 3600!r} k1") == (
        "MESSAGE sip:101@example.com SIP/2.0\r\n\r\n"
    )
    assert 3_590_000 < await redis_cli.pttl(key) <= 3_600_000
    assert [name async for name in store.aors()] == []


async def test_a_message_never_gets_a_number_below_one_that_another_node_put(
    store: RedisStore, redis_cli: Redis
):
    await store.put_message(message("k1"), 10)
    await redis_cli.set("sipush:message-id", 1)  # as if this node had drawn its number long ago
    second = await store.put_message(message("k2", stored_epoch=5.0), 10)
    assert second is not None
    assert second.id == int(NOW) + 1


def watched(servers: RedisWithSentinel, *more_sentinels: str) -> RedisStore:
    """A store that is told nothing but where the Sentinels are."""
    sentinels = [*more_sentinels, servers.address]
    return RedisStore(RedisConfig(url=NOWHERE, sentinels=sentinels, master=MASTER, timeout=TIMEOUT))


NOWHERE = "redis://192.0.2.1:1/0"


async def bound_at_last(store: RedisStore, cseq: int) -> Location | Refusal:
    """As a phone does it: again and again."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(LocationError):
                return await store.bind(registration(binding(cseq=cseq)))
            await asyncio.sleep(0.1)


async def test_after_a_failover_nothing_is_lost_and_the_new_master_is_used(
    redis_with_sentinel: RedisWithSentinel,
):
    store, other = watched(redis_with_sentinel), watched(redis_with_sentinel)
    woken: asyncio.Queue[str] = asyncio.Queue()
    missed = asyncio.Event()
    other.listen(woken.put_nowait, lambda since: missed.set())
    await store.open()
    await other.open()
    await store.bind(registration(binding()))
    assert await asyncio.wait_for(woken.get(), 5) == AOR
    await asyncio.to_thread(redis_with_sentinel.replicated)
    redis_with_sentinel.primary.pause()
    await asyncio.to_thread(redis_with_sentinel.failed_over)
    assert await bound_at_last(store, 2) == Location((binding(cseq=2),))
    assert await store.lookup(AOR, NOW) == Location((binding(cseq=2),))
    await asyncio.wait_for(missed.wait(), 30)
    redis_with_sentinel.primary.resume()  # the dead comes back, and must not be believed
    assert await bound_at_last(store, 3) == Location((binding(cseq=3),))
    assert await asyncio.wait_for(woken.get(), 5) == AOR
    for each in (store, other):
        await each.close()


async def test_a_master_that_was_demoted_is_left(redis_with_sentinel: RedisWithSentinel):
    store = watched(redis_with_sentinel)
    await store.open()
    await store.bind(registration(binding()))
    async with Redis.from_url(redis_with_sentinel.primary.url) as operator:
        await operator.replicaof("127.0.0.1", str(redis_with_sentinel.replica.port))
        async with Redis.from_url(redis_with_sentinel.replica.url) as promoted:
            await promoted.replicaof("NO", "ONE")
    with pytest.raises(LocationError, match=f"Redis master {MASTER}: "):
        await store.bind(registration(binding(cseq=2)))
    await store.close()


async def test_silent_sentinels_are_passed_over(redis_with_sentinel: RedisWithSentinel):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = watched(redis_with_sentinel, f"127.0.0.1:{silent.getsockname()[1]}")
        await store.open()
        assert await store.bind(registration(binding())) == Location((binding(),))
        await store.close()


async def test_without_a_sentinel_or_an_unknown_master_the_reason_is_told(
    redis_with_sentinel: RedisWithSentinel,
):
    nobody = f"No master found for '{MASTER}' : 127.0.0.1:1 ConnectionError, 127.0.0.1:2 Conn.*"
    for sentinels, master, reason in (
        (["127.0.0.1:1", "127.0.0.1:2"], MASTER, nobody),
        ([redis_with_sentinel.address], "other", "No master found for 'other'"),
    ):
        config = RedisConfig(sentinels=sentinels, master=master, timeout=TIMEOUT)
        store = RedisStore(config)
        with pytest.raises(LocationError) as refused:
            await store.open()
        assert re.fullmatch(f"Redis master {master}: {reason}", str(refused.value))
        assert len(str(refused.value)) < 200
        await store.close()
