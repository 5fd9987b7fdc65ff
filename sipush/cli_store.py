"""Commands that work on the store: users, bindings and bans."""

from __future__ import annotations

import argparse
import asyncio
import csv
import getpass
import io
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from sipush.config import Config, UserConfig
from sipush.config_problems import describe
from sipush.core.abuse import source_name
from sipush.core.bindings import Aor, Location, PushRecord, Subscriber, full_device
from sipush.errors import ConfigError, SipushError, UnreadableError
from sipush.location import make_store
from sipush.location.store import LocationStore
from sipush.log_lines import device_name, fingerprint, printable, redact_text
from sipush.sip.digest import Algorithm, compute_ha1
from sipush.sip.uri import stands_in_uri

Work = Callable[[LocationStore], Awaitable[None]]

_TOGETHER = 200
"Users that are stored at a time: they share what the disk takes some milliseconds for."


async def on_store(config: Config, work: Work) -> int:
    """Open the configured store, do ``work``, close it; the exit status."""
    if config.store.type == "memory":
        raise SipushError("store.type is memory: it lives inside the server, out of reach")
    store = make_store(config.store)
    try:
        await store.open()
        await work(store)
    finally:
        await store.close()
    return 0


def add_user(options: argparse.Namespace, config: Config) -> Work:
    """``user add``."""
    aor = _new_aor(options.aor, config)
    settings = _checked_settings(options, aor)
    password = secrets.token_urlsafe(12) if options.generate else _read_password(options)
    subscriber = replace(
        _subscriber(aor, password),
        hold=settings.hold,
        hold_seconds=settings.hold_seconds,
        fallback=options.fallback,
    )

    async def work(store: LocationStore) -> None:
        try:
            known = await store.subscriber(aor) is not None
        except UnreadableError:
            known = True
        await store.put_subscriber(subscriber)
        print(f"{aor} {'replaced' if known else 'added'}.")
        if options.generate:
            print(f"password: {password}")

    return work


def remove_user(options: argparse.Namespace, config: Config) -> Work:
    """``user remove``."""
    aor = _writable_aor(options.aor, config)

    async def work(store: LocationStore) -> None:
        if not await store.remove_subscriber(aor):
            raise SipushError(f"{aor} is not in the store")
        print(f"{aor} removed.")

    return work


def import_users(options: argparse.Namespace, config: Config) -> Work:
    """``user import``: nothing is stored unless every line is good."""
    subscribers = _read_csv(options.file, config)

    async def put(store: LocationStore, new: Subscriber) -> None:
        known = await store.subscriber(new.aor) or new
        both = replace(known, ha1_md5=new.ha1_md5, ha1_sha256=new.ha1_sha256)
        await store.put_subscriber(both)

    async def work(store: LocationStore) -> None:
        for start in range(0, len(subscribers), _TOGETHER):
            some = subscribers[start : start + _TOGETHER]
            await asyncio.gather(*(put(store, each) for each in some))
        print(f"{len(subscribers)} users imported.")

    return work


def list_users(_options: argparse.Namespace, config: Config) -> Work:
    """``user list``: those of the configuration win. Raises ConfigError for who is unreadable."""

    async def work(store: LocationStore) -> None:
        for aor, user in sorted(config.users.items()):
            print(_user_line(aor, user, "configuration, read-only"))
        stored, unreadable = [], []
        async for each in store.subscribers():
            if isinstance(each, UnreadableError):
                unreadable.append(each)
            else:
                stored.append(each)
        for subscriber in sorted(stored, key=lambda each: each.aor):
            if subscriber.aor not in config.users:
                print(_user_line(subscriber.aor, subscriber, "store"))
        _tell(unreadable)

    return work


def list_bans(_options: argparse.Namespace, _config: Config) -> Work:
    """``bans list``: the one that ends last comes first."""

    async def work(store: LocationStore) -> None:
        now = time.time()
        bans = await store.bans(now)
        for source, until in sorted(bans.items(), key=lambda ban: -ban[1]):
            print(f"{source}  banned for {until - now:.0f} s more")

    return work


def lift_ban(options: argparse.Namespace, _config: Config) -> Work:
    """``bans lift``: an address, or a network as ``bans list`` prints it."""
    try:
        source = source_name(options.source.partition("/")[0])
    except ValueError:
        raise SipushError(f"{options.source} is no IP address") from None

    async def work(store: LocationStore) -> None:
        if not await store.remove_ban(source):
            raise SipushError(f"{source} is not banned")
        print(f"{source} is heard again, within three seconds.")

    return work


def list_bindings(options: argparse.Namespace, config: Config) -> Work:
    """``bindings``: a device is awake while registered, asleep when only a push reaches it."""

    async def work(store: LocationStore) -> None:
        now = time.time()
        if options.aor:
            aors = [_aor(options.aor, config)]
        else:
            aors = sorted([aor async for aor in store.aors()])
        unreadable = []
        for aor in aors:
            try:
                location = await store.lookup(aor, now)
            except UnreadableError as error:
                unreadable.append(error)
                continue
            if not (location.bindings or location.push_records) and options.aor:
                await _check_known(aor, config, store)
            for line in _location_lines(aor, location, now):
                print(printable(line))
        _tell(unreadable)

    return work


def _tell(unreadable: list[UnreadableError]) -> None:
    """Raises ConfigError if there is any: the others have been listed."""
    if unreadable:
        raise ConfigError([printable(redact_text(str(error))) for error in unreadable])


async def _check_known(aor: Aor, config: Config, store: LocationStore) -> None:
    domain = config.domains.get(aor.rpartition("@")[2])
    if domain is not None and domain.registrar:
        return  # only the registrar knows
    if aor not in config.users and await store.subscriber(aor) is None:
        raise SipushError(f"{aor}: there is no such user")


def _aor(text: str, config: Config) -> Aor:
    text = text.removeprefix("sip:")
    user, at, domain = text.rpartition("@")
    if not at:
        user, domain = text, config.sip.domains[0]
    domain = domain.lower()
    if not user or domain not in config.sip.domains:
        ours = " or ".join(config.sip.domains)
        raise SipushError(f"{text} is no address-of-record of ours (allowed: user@{ours})")
    return f"{user}@{domain}"


def _new_aor(text: str, config: Config) -> Aor:
    aor = _writable_aor(text, config)
    domain = config.domains.get(aor.rpartition("@")[2])
    if domain is not None and domain.registrar:
        raise SipushError(f"{aor} is a user of the registrar {domain.registrar}: add it there")
    user = aor.rpartition("@")[0]
    if user in config.emergency.numbers:
        raise SipushError(f"{user} is an emergency number (allowed: another name)")
    if not stands_in_uri(aor):
        raise SipushError(f"{printable(user)} cannot stand in a SIP URI (allowed: such as 101)")
    return aor


def _writable_aor(text: str, config: Config) -> Aor:
    aor = _aor(text, config)
    if aor in config.users:
        raise SipushError(f"{aor} is a user of the configuration file: change it there")
    if aor in config.groups:
        raise SipushError(f"{aor} is a group of the configuration file: nobody would be called")
    return aor


def _checked_settings(options: argparse.Namespace, aor: Aor) -> UserConfig:
    """The options, held to the rules that the configuration file has for a user."""
    try:
        return UserConfig(
            hold=not options.no_hold, hold_seconds=options.hold_seconds, fallback=options.fallback
        )
    except ValidationError as error:
        problems = describe(error.errors(include_url=False), UserConfig)
        raise ConfigError([f"{aor}: {problem}" for problem in problems]) from None


def _read_password(options: argparse.Namespace) -> str:
    try:
        password = _given_password(options)
    except EOFError:
        raise SipushError("no password was given") from None  # Ctrl-D
    except UnicodeDecodeError:
        raise SipushError("the password is not UTF-8") from None
    if not password:
        raise SipushError("the password is empty")
    return password


def _given_password(options: argparse.Namespace) -> str:
    if options.password_file:
        text: str = options.password_file.read_text(encoding="utf-8")
        return next(iter(text.splitlines()), "")
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass()
    if getpass.getpass("Again: ") != password:
        raise SipushError("the passwords differ")
    return password


def _subscriber(aor: Aor, password: str) -> Subscriber:
    user, _, realm = aor.rpartition("@")
    return Subscriber(
        aor,
        ha1_md5=compute_ha1(Algorithm.MD5, user, realm, password),
        ha1_sha256=compute_ha1(Algorithm.SHA256, user, realm, password),
    )


_COLUMNS = "must be aor,password or aor,ha1_md5,ha1_sha256"
_HEADS = (["password"], ["ha1_md5", "ha1_sha256"])
"The columns after the first, where the first line names them."


def _read_csv(path: Path, config: Config) -> list[Subscriber]:
    """Raises ConfigError with everything that is wrong."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")  # as Excel writes it
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError([f"{path} line {line}: is not UTF-8"]) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    subscribers: dict[Aor, Subscriber] = {}
    lines: dict[Aor, int] = {}
    problems: list[str] = []
    rows = (row for row in reader if row)
    try:
        for number, row in enumerate(rows):
            try:
                if number == 0 and _is_head(row):
                    continue
                subscriber = _subscriber_of_row(row, config)
                aor = subscriber.aor
                if aor in subscribers:
                    raise SipushError(f"{aor} stands in line {lines[aor]} already")
                subscribers[aor], lines[aor] = subscriber, reader.line_num
            except SipushError as error:
                problems.append(f"{path} line {reader.line_num}: {error}")
    except csv.Error as error:
        problems.append(f"{path} line {reader.line_num}: {error}: is a quote not closed?")
    if problems:
        raise ConfigError(problems)
    return list(subscribers.values())


def _is_head(row: list[str]) -> bool:
    """Raises SipushError if it names other columns."""
    first, *others = [field.strip().lower() for field in row]
    if first not in ("aor", "user", "username"):
        return False
    if others in (["ha1_md5"], ["ha1_sha256"]):
        raise SipushError(_COLUMNS)
    return others in _HEADS


def _subscriber_of_row(row: list[str], config: Config) -> Subscriber:
    match [field.strip() for field in row]:
        case [text, password] if password:
            return _subscriber(_new_aor(text, config), password)
        case [text, md5, sha256] if md5 or sha256:
            aor = _new_aor(text, config)
            try:
                user = UserConfig(ha1_md5=md5, ha1_sha256=sha256)
            except ValidationError as error:
                problems = describe(error.errors(include_url=False), UserConfig)
                raise SipushError("; ".join(problems)) from None
            return Subscriber(aor, user.ha1_md5, user.ha1_sha256)
    raise SipushError(_COLUMNS)


def _user_line(aor: Aor, user: UserConfig | Subscriber, source: str) -> str:
    digests = "+".join(
        name for name, ha1 in (("MD5", user.ha1_md5), ("SHA-256", user.ha1_sha256)) if ha1
    )
    if not user.hold:
        hold = "no hold"
    elif user.hold_seconds is None:
        hold = "hold"
    else:
        hold = f"hold {user.hold_seconds:g} s"
    fallback = f", then {_fallback(user.fallback)}" if user.fallback else ""
    return f"{aor}  {digests}  {hold}{fallback}  [{source}]"


def _fallback(fallback: str | dict[str, str]) -> str:
    if isinstance(fallback, str):
        return fallback
    return ", ".join(f"{uri} when {cause}" for cause, uri in fallback.items())


def _location_lines(aor: Aor, location: Location, now_epoch: float) -> list[str]:
    lines = [aor]
    for binding in location.bindings:
        left = binding.expires_epoch - now_epoch
        lines.append(f"  awake   {redact_text(binding.contact)}")
        name = _device(aor, binding.device)
        lines.append(f"          over {binding.flow}, {left:.0f} s left, {name}")
        if record := location.push_record(binding.device):
            lines.append(f"          {_push(record)}")
    awake = {binding.device for binding in location.bindings}
    for record in location.push_records:
        if record.device not in awake:
            days = (record.expires_epoch - now_epoch) / 86400
            lines.append(f"  asleep  {_device(aor, record.device)}, {days:.1f} days left")
            lines.append(f"          {_push(record)}")
    return lines if len(lines) > 1 else [f"{aor}: nothing registered"]


def _device(aor: Aor, device: str) -> str:
    """By the name that the log has for it, and by its own."""
    return f"device {fingerprint(full_device(aor, device))}, {device_name(device)}"


def _push(record: PushRecord) -> str:
    tokens = [
        f"{use} token {fingerprint(token)}"
        for use, token in (("call", record.call_token), ("message", record.message_token))
        if token
    ]
    consents = (("calls", record.allow_call), ("messages", record.allow_message))
    off = [f"not for {use}" for use, consent in consents if not consent]
    return (
        f"push: {', '.join([record.platform.value, record.app_id or 'no app-id', *tokens, *off])}"
    )
