"""The configuration file: what is read, what is refused, and that its documents tell the truth."""

import os
import re
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sipush.config import Config, ListenConfig, load
from sipush.errors import ConfigError
from tests import schema

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "config" / "sipush.toml"
REFERENCE = ROOT / "docs" / "configuration.md"
ASTERISK = ROOT / "config" / "asterisk"
ASTERISK_EDGE = ROOT / "config" / "asterisk-edge"
KEYS = dict(schema.keys())


def write(folder: Path, text: str) -> Path:
    path = folder / "sipush.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text))
    return caught.value.problems


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")) == Config()


def test_relative_paths_start_at_the_folder_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, '[store.sqlite]\npath = "data/../calls.db"')
    monkeypatch.chdir(tmp_path)
    assert load(Path("sipush.toml")).store.sqlite.path == tmp_path / "calls.db"


def test_secrets_are_named_by_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    config = load(write(tmp_path, 'store.redis.password_file = "password"'))
    assert config.store.redis.password_file == tmp_path / "password"


def test_domains_and_digests_are_kept_in_lower_case(tmp_path: Path) -> None:
    config = load(
        write(
            tmp_path,
            f'sip.domains = ["Example.COM"]\nusers."1@example.com".ha1_md5 = "{"AB" * 16}"',
        )
    )
    assert config.sip.domains == ["example.com"]
    assert config.users["1@example.com"].ha1_md5 == "ab" * 16


PEM = "-----BEGIN PRIVATE KEY-----\nMIGTAgEAMBMGByqGSM49/\n-----END PRIVATE KEY-----\n"
HA1 = 'ha1_md5 = "00000000000000000000000000000000"'
WRONG = [
    ("lgo.level = 1", "lgo: unknown key (did you mean log?)"),
    ("wake.hodl = 1", "wake.hodl: unknown key (did you mean hold?)"),
    ("log.zzz = 1", "log.zzz: unknown key (allowed: format, level)"),
    (
        'registration.remove_existing = "replace"',
        'registration.remove_existing: is "replace" (allowed: a valid boolean)',
    ),
    ("wake.hold = true", "wake.hold: is true (allowed: a valid number)"),
    ('wake.hold = "30"', 'wake.hold: is "30" (allowed: a valid number)'),
    ("wake.hold = -1", "wake.hold: is -1 (allowed: greater than or equal to 0)"),
    ("wake.probe = inf", "wake.probe: is inf (allowed: a finite number)"),
    (
        'wake.ringback = "181"',
        'wake.ringback: is "181" (allowed: "none", "180", "182" or "183")',
    ),
    ("store.sqlite.path = 1", "store.sqlite.path: is 1 (allowed: a path)"),
    (
        "sip.domains = []",
        "sip.domains: is empty (allowed: at least one)",
    ),
    ('sip.domains = ["a b"]', 'sip.domains[0]: is "a b" (allowed: a host name or an IP address)'),
    (
        'store.redis.url = "http://x"',
        "store.redis.url: cannot be used (allowed: a URL such as redis://host:6379/0)",
    ),
    (
        'store.redis.url = "redis://:hunter2@x"',
        "store.redis.url: holds a password (allowed: a URL without it, and password_file)",
    ),
    (
        'store.redis.password_file = "/none"',
        'store.redis.password_file: is "/none" '
        "(allowed: a file that exists and that this user may read)",
    ),
    *(
        (
            f"{key} = {value}",
            f"{key}: cannot be used (allowed: a file that exists and that this user may read)",
        )
        for key in ("store.redis.password_file", "admin.token_file", "hep.key_file")
        for value in ('"hunter2"', '"hunter/2"', f'"""{PEM}"""', f'"{"x" * 5000}"')
    ),
    *(
        (
            f'store.redis.url = "redis://db/0?{query}"',
            "store.redis.url: holds a password (allowed: a URL without it, and password_file)",
        )
        for query in ("password=hunter2", "db=1&Pass%77ord=hunter2", "ssl_password=hunter2")
    ),
    (
        'store.redis.url = "redis://db/0?username=sipush"',
        "store.redis.url: holds a username behind the ? "
        "(allowed: one before the host, redis://user@host)",
    ),
    *(
        (
            f'store.redis.url = "redis://{place}/0"',
            "store.redis.url: cannot be used (allowed: a URL such as redis://host:6379/0)",
        )
        for place in ("127.0.0.1:99999", "db:0", "db:x", "[::1", "db/one", "db/0")
    ),
    *(
        (
            f'metrics.listen = "{listen}"',
            f'metrics.listen: is "{listen}" (allowed: a host and a port, such as 127.0.0.1:9060)',
        )
        for listen in ("9060", "127.0.0.1:99999", ":9060", "127.0.0.1:", "127.0.0.1:x")
    ),
    ("wake = 3", "wake: is 3 (allowed: a table)"),
    ("apps = 3", "apps: is 3 (allowed: a table)"),
    (
        "registration = {min_expires = 60, max_expires = 30}",
        "registration: expiries are 60, 3600, 30 "
        "(allowed: min_expires <= default_expires <= max_expires)",
    ),
    ("listen = []", "listen: is empty (allowed: at least one)"),
    (
        '[[listen]]\ntransport = "sctp"',
        'listen[0].transport: is "sctp" (allowed: "udp", "tcp", "tls", "ws" or "wss")',
    ),
    ("[[listen]]\nport = 1", "listen[0].transport: is missing and has no default"),
    (
        '[[listen]]\ntransport = "tls"',
        "listen[0]: tls needs tls = {certificate = …, private_key = …}",
    ),
    (
        '[[listen]]\ntransport = "udp"\n'
        'tls = {certificate = "/etc/passwd", private_key = "/etc/passwd"}',
        "listen[0]: udp has no use for tls or sni (allowed: with tls and wss)",
    ),
    (
        '[[listen]]\ntransport = "tcp"\nproxies = ["127.0.0.1"]',
        "listen[0]: tcp has no use for proxies (allowed: with ws and wss)",
    ),
    (
        '[[listen]]\ntransport = "tcp"\n[[listen]]\ntransport = "ws"',
        "listen[1]: port 5060 is that of listen[0] (allowed: one listener for each port)",
    ),
    *(
        (
            f'[[listen]]\ntransport = "udp"\naddress = "{wide}"\n'
            f'[[listen]]\ntransport = "udp"\naddress = "{narrow}"',
            "listen[1]: port 5060 is that of listen[0] (allowed: one listener for each port)",
        )
        for wide, narrow in (("0.0.0.0", "127.0.0.1"), ("::1", "::"), ("::1", "0:0::1"))
    ),
    (
        'metrics.listen = "127.0.0.1:5060"',
        "metrics.listen: port 5060 is that of listen[1] (allowed: one listener for each port)",
    ),
    (
        'metrics.listen = "[::]:5060"\n[[listen]]\ntransport = "tcp"\naddress = "127.0.0.1"',
        "metrics.listen: port 5060 is that of listen[0] (allowed: one listener for each port)",
    ),
    (
        'metrics.listen = "[0::0]:9060"\nadmin.listen = "127.0.0.1:9060"',
        "admin.listen: port 9060 is that of metrics.listen (allowed: one listener for each port)",
    ),
    (
        'metrics.listen = "localhost:9060"\nadmin.listen = "[::1]:9061"\n'
        '[[listen]]\ntransport = "ws"\nport = 9061\naddress = "::"',
        "admin.listen: port 9061 is that of listen[0] (allowed: one listener for each port)",
    ),
    (
        '[[listen]]\ntransport = "udp"\naddress = "eth0"',
        'listen[0].address: is "eth0" (allowed: an IPv4 or IPv6 address)',
    ),
    (
        '[[listen]]\ntransport = "udp"\nadvertise = "sip:a@b"',
        'listen[0].advertise: is "sip:a@b" (allowed: host or host:port)',
    ),
    (
        '[apps."com.x"]',
        'apps."com.x": has no push service (allowed: at least one of apns, fcm, webpush, webhook)',
    ),
    (
        '[apps.com.example.phone.apns]\nkey_id = "x"',
        "apps.com.example: unknown key "
        "(allowed: apns, fcm, hold, payload, push, webhook, webpush; "
        "an app-id with dots needs quotes)",
    ),
    (
        "apps.x.foo = 1",
        "apps.x.foo: unknown key (allowed: apns, fcm, hold, payload, push, webhook, webpush)",
    ),
    ('sip.domains = "example.com"', 'sip.domains: is "example.com" (allowed: ["example.com"])'),
    ("sip.domains = 3", "sip.domains: is 3 (allowed: a list)"),
    ('listen = "udp"', 'listen: is "udp" (allowed: a list of tables)'),
    (
        '[apps.x.webpush]\nkey_file = "/etc/passwd"\nsubject = "ops@example.com"',
        'apps.x.webpush.subject: is "ops@example.com" '
        "(allowed: a mailto: or https: URI such as mailto:ops@example.com)",
    ),
    (
        '[apps.x.webpush]\nkey_file = "/etc/passwd"\nsubject = "mailto:o@h"\nhosts = ["https://h"]',
        'apps.x.webpush.hosts[0]: is "https://h" '
        "(allowed: host, host:port, or *.domain for all hosts in it)",
    ),
    *(
        (
            '[apps.x.apns]\nkey_file = "/etc/passwd"\nkey_id = "k"\nteam_id = "t"\n'
            f'server = "{server}"',
            f'apps.x.apns.server: is "{server}" (allowed: host or host:port)',
        )
        for server in ("host:port", "host:99999", "https://host", "")
    ),
    *(
        (
            f'[apps.x.fcm]\nservice_account_file = "/etc/passwd"\nserver = "{server}"',
            f'apps.x.fcm.server: is "{server}" (allowed: an https URL)',
        )
        for server in ("host", "http://127.0.0.1:1", "https://host:99999", "")
    ),
    *(
        (
            f'[apps.x.webhook]\nsecret_file = "/etc/passwd"\nurl = "{url}"',
            "apps.x.webhook.url: cannot be used (allowed: an http or https URL)",
        )
        for url in ("host/x", "https://a b/", "https:///x", "https://h:0/", "https://h:99999/")
    ),
    (
        '[apps.x]\npayload = "dialstak"\n'
        '[apps.x.webhook]\nurl = "https://h"\nsecret_file = "/etc/passwd"',
        'apps.x.payload: is "dialstak" (allowed: "portsip", "dialstack" or a table of strings)',
    ),
    (
        f'users."101@example.org" = {{{HA1}}}',
        'users."101@example.org": is no address-of-record of ours (allowed: user@localhost)',
    ),
    (
        f"users.101 = {{{HA1}}}",
        "users.101: is no address-of-record of ours (allowed: user@localhost)",
    ),
    (
        'users."101@localhost" = {}',
        'users."101@localhost": cannot log in (allowed: at least one of ha1_md5, ha1_sha256)',
    ),
    (
        'users."101@localhost".ha1_md5 = "5ec2e7"',
        'users."101@localhost".ha1_md5: cannot be used (allowed: 32 hex digits)',
    ),
    (
        f'users."101@localhost" = {{{HA1}, fallback = "tel:1"}}',
        'users."101@localhost".fallback: is "tel:1" '
        "(allowed: a SIP URI such as sip:voicemail@pbx.example.com, or a table of them by cause)",
    ),
    (
        'domains.localhost.fallback = {bussy = "sip:a@b"}',
        "domains.localhost.fallback: bussy is no cause "
        "(allowed: unreachable, no_answer, busy, declined)",
    ),
    (
        'domains.localhost.fallback = {declined = "sip:a@b", busy = ""}',
        'domains.localhost.fallback: busy is "" '
        "(allowed: a SIP URI such as sip:voicemail@pbx.example.com)",
    ),
    (
        f'users."101@localhost" = {{{HA1}, fallback = {{no_answer = 102}}}}',
        'users."101@localhost".fallback: no_answer is 102 '
        "(allowed: a SIP URI such as sip:voicemail@pbx.example.com)",
    ),
    (
        'domains."example.org".fallback = "sip:a@b"',
        'domains."example.org": is no domain of ours (allowed: localhost)',
    ),
    (
        'groups."600@example.org".members = ["101@localhost"]',
        'groups."600@example.org": is no address-of-record of ours (allowed: user@localhost)',
    ),
    (
        'groups."600@localhost" = {}',
        'groups."600@localhost".members: is missing and has no default',
    ),
    (
        'groups."600@localhost".members = ["101@example.org"]',
        'groups."600@localhost".members[0]: "101@example.org" '
        "is no address-of-record of ours (allowed: user@localhost)",
    ),
    (
        'groups."600@localhost".members = ["1@localhost", "1@localhost"]',
        'groups."600@localhost".members[1]: "1@localhost" stands there twice (allowed: once)',
    ),
    (
        'groups."600@localhost".members = ["1@localhost", "700@localhost"]\n'
        'groups."700@localhost".members = ["2@localhost"]',
        'groups."600@localhost".members[1]: "700@localhost" is a group (allowed: users)',
    ),
    (
        f'users."600@localhost" = {{{HA1}}}\ngroups."600@localhost".members = ["1@localhost"]',
        'groups."600@localhost": is a user too (allowed: a name of its own)',
    ),
    (
        f'users."112@localhost" = {{{HA1}}}\n'
        'emergency = {numbers = ["112"], route = ["sip:psap@10.0.0.1"]}',
        'users."112@localhost": is an emergency number (allowed: another name)',
    ),
    (
        'node.uri = "sip:192.0.2.31"',
        'node.uri: has no use for store.type = "sqlite" (allowed: with "redis")',
    ),
    (
        'node = {uri = "192.0.2.31"}',
        'node.uri: is "192.0.2.31" '
        "(allowed: a SIP URI without a user, such as sip:pbx.example.com)",
    ),
    (
        'domains.localhost.route = ["sip:700@192.0.2.10"]',
        'domains.localhost.route[0]: is "sip:700@192.0.2.10" '
        "(allowed: a SIP URI without a user, such as sip:pbx.example.com)",
    ),
    (
        'domains.localhost.registrar = "sip:700@pbx.example"',
        'domains.localhost.registrar: is "sip:700@pbx.example" '
        "(allowed: a SIP URI without a user, such as sip:pbx.example.com)",
    ),
    (
        'domains.localhost.registrar = "sip:192.0.2.10"',
        "domains.localhost.registrar: 192.0.2.10 is no peer (allowed: an address of one of peers)",
    ),
    (
        'domains.localhost.registrar = "sip:192.0.2.10"\n'
        '[[peers]]\nname = "all"\naddress = "192.0.2.0/24"\n'
        '[[peers]]\nname = "pbx"\naddress = "192.0.2.10"\nchallenge = true',
        "domains.localhost.registrar: 192.0.2.10 is a peer with challenge (allowed: one without)",
    ),
    (
        '[[peers]]\nname = "pbx"\naddress = "192.0.2.10"\n'
        '[[peers]]\nname = "edge"\naddress = "192.0.2.10/32"\nchallenge = true',
        "peers[1].challenge: is not that of peers[0], which has 192.0.2.10/32 too "
        "(allowed: one of the two)",
    ),
    *(
        (
            f'domains.localhost.registrar = "sip:pbx.example"\n{line}',
            f"{key}: stands beside domains.localhost.registrar (allowed: one of the two)",
        )
        for line, key in (
            ('domains.localhost.route = ["sip:pbx.example"]', "domains.localhost.route"),
            ('domains.localhost.fallback = "sip:a@b"', "domains.localhost.fallback"),
            (f'users."101@localhost" = {{{HA1}}}', 'users."101@localhost"'),
            ('groups."6@localhost".members = ["1@localhost"]', 'groups."6@localhost"'),
        )
    ),
    (
        'emergency.numbers = ["112"]',
        "emergency: has numbers and no route (allowed: a route with or without numbers)",
    ),
    (
        'emergency = {numbers = ["112"], route = [""]}',
        'emergency.route[0]: is "" (allowed: a SIP URI such as sip:voicemail@pbx.example.com)',
    ),
    (
        'emergency.numbers = ["one"]',
        'emergency.numbers[0]: is "one" (allowed: a number as it is dialled, such as 112)',
    ),
    (
        'emergency.addresses."1@localhost" = {country = "DE", HNR = "1"}',
        'emergency.addresses."1@localhost": HNR is no element of an address (allowed: '
        "country, A1, A2, A3, A4, A5, A6, PRM, PRD, RD, STS, POD, POM, RDSEC, RDBR, RDSUBBR, HNO, "
        "HNS, LMK, LOC, FLR, NAM, PC, BLD, UNIT, ROOM, SEAT, PLC, PCN, POBOX, ADDCODE)",
    ),
    (
        'emergency.addresses."1@localhost" = {A3 = "Berlin"}',
        'emergency.addresses."1@localhost": has no country '
        "(allowed: two capital letters, such as DE)",
    ),
    (
        'emergency.addresses."1@example.org" = {country = "DE"}',
        'emergency.addresses."1@example.org": '
        "is no address-of-record of ours (allowed: user@localhost)",
    ),
    (
        'store.redis = {url = "unix:///run/redis.sock", sentinels = ["10.0.0.1"]}',
        "store.redis.url: is a socket beside sentinels (allowed: redis:// or rediss://)",
    ),
    (
        'store.redis.sentinels = ["redis://10.0.0.1"]',
        'store.redis.sentinels[0]: is "redis://10.0.0.1" (allowed: host or host:port)',
    ),
    (
        'hep.send_to = "udp:10.0.0.9:9060"',
        'hep.send_to: is "udp:10.0.0.9:9060" (allowed: host or host:port)',
    ),
    ("hep.agent_id = 4294967296", "hep.agent_id: is 4294967296 (allowed: less than 4294967296)"),
    (
        'hep.key_file = "/none"',
        'hep.key_file: is "/none" (allowed: a file that exists and that this user may read)',
    ),
    (
        'admin.listen = "0.0.0.0:9061"',
        'admin.listen: is "0.0.0.0:9061" without admin.token_file '
        "(allowed: with it, or an address of loopback such as 127.0.0.1:9061)",
    ),
    (
        'admin.listen = "[::]:9061"',
        'admin.listen: is "[::]:9061" without admin.token_file '
        "(allowed: with it, or an address of loopback such as 127.0.0.1:9061)",
    ),
    (
        'admin.listen = "localhost"',
        'admin.listen: is "localhost" (allowed: an IP address and a port, such as 127.0.0.1:9061)',
    ),
    (
        "admin.calls = 0",
        "admin.calls: is 0 (allowed: greater than or equal to 1)",
    ),
    (
        '[[peers]]\nname = "pbx"\naddress = "10.0.0.1/8"',
        'peers[0].address: is "10.0.0.1/8" '
        "(allowed: an IP address, or a network such as 192.0.2.0/24)",
    ),
]


@pytest.mark.parametrize(("text", "problem"), WRONG)
def test_a_fault_is_named_with_its_key_and_what_is_allowed(
    tmp_path: Path, text: str, problem: str
) -> None:
    assert problems(tmp_path, text) == [problem]


def test_a_file_behind_too_long_a_name_is_a_fault_of_its_key(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, f'hep.key_file = "/{"x" * 5000}"')
    assert problem.startswith("hep.key_file: is ")


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    text = 'lgo = 1\n[wake]\nhold = -1\n[apps.x]\n[users."1@b"]\n[registration]\nmin_expires = 7200'
    assert [problem.partition(":")[0] for problem in problems(tmp_path, text)] == [
        "registration",
        "wake.hold",
        "apps.x",
        'users."1@b"',
        'users."1@b"',
        "lgo",
    ]


def test_contradictions_between_sections_are_told_once_each_of_them_is_right(
    tmp_path: Path,
) -> None:
    text = 'node.uri = "sip:192.0.2.1"\n[groups."g@localhost"]\nmembers = ["g@localhost"]\n'
    assert [problem.partition(":")[0] for problem in problems(tmp_path, text)] == [
        'groups."g@localhost".members[0]',
        "node.uri",
    ]
    assert problems(tmp_path, text + "hodl = 1")[0].startswith('groups."g@localhost".hodl: ')


def test_a_listener_on_any_free_port_may_stand_there_twice(tmp_path: Path) -> None:
    config = load(write(tmp_path, '[[listen]]\ntransport = "tcp"\nport = 0\n' * 2))
    assert config.listen == [ListenConfig(transport="tcp", port=0)] * 2


@pytest.mark.parametrize("others", [("udp", "0.0.0.0"), ("tcp", "::"), ("tcp", "127.0.0.2")])
def test_listeners_that_the_system_tells_apart_may_have_one_port(
    tmp_path: Path, others: tuple[str, str]
) -> None:
    doors = [("tcp", "127.0.0.1"), others]
    text = "".join(
        f'[[listen]]\ntransport = "{transport}"\naddress = "{address}"\n'
        for transport, address in doors
    )
    config = load(write(tmp_path, text))
    assert [(door.transport, door.address) for door in config.listen] == doors


@pytest.mark.parametrize("name", ["john doe", "1:2", "<6>", "a%20b", "#1", "jürgen", "o'neil"])
def test_users_whom_phones_have_to_escape_may_stand_anywhere(tmp_path: Path, name: str) -> None:
    aor = f"{name}@localhost"
    text = f'users."{aor}" = {{{HA1}}}\ngroups."600@localhost".members = ["{aor}"]\n'
    text += f'emergency.addresses."{aor}".country = "DE"\n'
    config = load(write(tmp_path, text))
    assert [*config.users] == config.groups["600@localhost"].members == [aor]
    assert [*config.emergency.addresses] == [aor]


def test_broken_toml_is_named_with_its_line(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "[wake]\nhold 30\n")
    assert problem.startswith(f"{tmp_path}/sipush.toml: not valid TOML: ")
    assert "line 2" in problem


def test_toml_nested_without_end_is_no_reason_to_fail_otherwise(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, f"x = {'[' * 5000}")
    assert problem == f"{tmp_path}/sipush.toml: not valid TOML: brackets nested too deeply"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load(tmp_path / "none.toml")


@pytest.mark.timeout(10)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, partial(os.symlink, "/dev/zero")])
def test_what_is_no_file_is_named_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "sipush.toml")
    with pytest.raises(ConfigError, match=r"sipush\.toml: cannot be read: no regular file"):
        load(tmp_path / "sipush.toml")


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "sipush.toml").write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 2"):
        load(tmp_path / "sipush.toml")


def sample_keys() -> list[tuple[str, Any, bool]]:
    """(key, value, whether it is an example) of every line, commented out or not."""
    found: list[tuple[str, Any, bool]] = []
    table = ""
    for line in SAMPLE.read_text(encoding="utf-8").splitlines():
        text = re.sub(r"^#(?=\S)", "", line)
        if not text or text.startswith("#"):
            continue
        if text.startswith("["):
            table = re.sub(r'"[^"]+"', "*", text.strip("[]")) + "[]" * text.startswith("[[") + "."
            table = table.replace("listen.", "listen[].").replace("domains.localhost", "domains.*")
            continue
        ((key, value),) = tomllib.loads(text).items()
        if "." in text.partition("=")[0]:  # tls.certificate = …
            ((inner, value),) = value.items()
            key = f"{key}.{inner}"
        found.append((table + key, value, text.endswith("# example")))
    return found


def test_the_sample_tells_every_key_and_its_default() -> None:
    told = sample_keys()
    assert {key for key, _, _ in told} == set(KEYS)
    wrong = [
        (key, value)
        for key, value, example in told
        if not example and key != "listen[].transport" and value != schema.default(KEYS[key])
    ]
    assert wrong == []


def test_an_example_stands_only_where_the_default_is_told_too_or_there_is_none() -> None:
    told = {key for key, _, example in sample_keys() if not example}
    only_examples = {key for key, _, example in sample_keys() if example} - told
    assert [key for key in only_examples if schema.default(KEYS[key])] == ["store.sqlite.path"]
    assert str(schema.default(KEYS["store.sqlite.path"])) in SAMPLE.read_text(encoding="utf-8")


def test_the_sample_as_it_stands_is_the_defaults_but_for_a_path_in_the_checkout() -> None:
    config = load(SAMPLE)
    assert config.store.sqlite.path == ROOT / "run" / "sipush.db"
    sqlite = config.store.sqlite.model_copy(update={"path": Config().store.sqlite.path})
    store = config.store.model_copy(update={"sqlite": sqlite})
    assert config.model_copy(update={"store": store}) == Config()


def reference_rows() -> dict[str, str]:
    """The default that docs/configuration.md tells for each key."""
    text = REFERENCE.read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]+?) \|", text, re.MULTILINE))


def test_the_reference_tells_every_key_and_no_other() -> None:
    assert list(reference_rows()) == list(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_the_reference_tells_the_default(key: str) -> None:
    told = reference_rows()[key]
    if KEYS[key].is_required():
        assert told == "required"
    elif KEYS[key].get_default() is None:
        assert told == "none"
    else:
        assert tomllib.loads(f"value = {told.strip('`')}")["value"] == schema.default(KEYS[key])


@pytest.mark.parametrize("folder", [ASTERISK, ASTERISK_EDGE], ids=lambda folder: folder.name)
def test_the_configuration_for_asterisk_is_valid(folder: Path) -> None:
    config = load(folder / "sipush.toml")
    assert [peer.name for peer in config.peers] == ["asterisk"]


@pytest.mark.parametrize(
    "file", sorted([*ASTERISK.iterdir(), *ASTERISK_EDGE.iterdir()]), ids=lambda file: file.name
)
def test_the_guide_to_asterisk_shows_the_files_that_are_tested(file: Path) -> None:
    guide = (ROOT / "docs" / "asterisk.md").read_text(encoding="utf-8")
    assert f"\n{file.read_text(encoding='utf-8')}```\n" in guide
