"""``sipush demo``: a killed phone rings, told as a call ladder.

The real daemon on the embedded store, a local push service that checks what it gets, and two SIP
phones, all on loopback. Bob's phone is a process of its own; it is killed with SIGKILL, and only
the push starts it again.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sipush.demo.credentials import Credentials
from sipush.demo.ladder import Kind, Ladder, Step
from sipush.demo.phone import Account, Event, Phone
from sipush.demo.push_service import DEFAULT_APP, PushService, ReceivedPush
from sipush.errors import SipushError
from sipush.sip.digest import Algorithm, compute_ha1
from sipush.sip.status import Status

DOMAIN = "example.com"
LIMIT = 30.0
"Seconds the whole story may take."
TALK = 0.3
"Seconds alice and bob talk."
ALICE, SIPUSH, SERVICE, BOB = "alice", "sipush", "push service", "bob's phone"


class DemoError(SipushError):
    """The story cannot go on; the text says what was missing."""


def run() -> int:
    """Tell the story on stdout. 0 when the call could carry audio, 1 (and why not) otherwise."""
    try:
        asyncio.run(_tell_in_time())
    except (DemoError, ConnectionError, OSError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    return 0


async def _tell_in_time() -> None:
    try:
        async with asyncio.timeout(LIMIT), AsyncExitStack() as stack:
            await Story(stack).tell()
    except TimeoutError:
        raise DemoError(f"it did not end within {LIMIT:.0f} s") from None


class Story:
    """One telling. What it starts ends with ``stack``."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._ladder = Ladder((ALICE, SIPUSH, SERVICE, BOB), colour=sys.stdout.isatty())
        self._steps: list[Step] = []
        "Not printed yet."
        self._alice_events: list[Event] = []

    async def tell(self) -> None:
        """From the first REGISTER to the BYE. Raises DemoError for whatever goes wrong."""
        print("Starting the daemon and a push service …\n")
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory("-sipush-demo")))
        credentials = Credentials.create(directory)
        service = self._stack.enter_context(PushService(credentials, on_push=self._pushed))
        passwords = {user: secrets.token_hex(8) for user in ("alice", "bob")}
        server = await Server.start(self._stack, directory, service, passwords)
        header = (
            f"device-os=ios;device-uid={secrets.token_hex(32)};allow-call-push=true;"
            f"allow-message-push=true;app-id={DEFAULT_APP}"
        )
        bob = Account("bob", DOMAIN, passwords["bob"], server.port, header)
        alice = Account("alice", DOMAIN, passwords["alice"], server.port)
        print(self._ladder.head())
        try:
            await self._play(alice, bob, service)
        except (DemoError, ConnectionError, TimeoutError):
            self._print()
            print("\nThe end of the daemon's log:", *server.log, sep="\n  ", file=sys.stderr)
            raise

    async def _play(self, alice: Account, bob: Account, service: PushService) -> None:
        await self._register_and_die(bob)
        caller = await Phone.connect(alice, self._alice_did)
        self._stack.push_async_callback(caller.close)
        calling = asyncio.ensure_future(caller.call("bob"))
        self._stack.callback(calling.cancel)

        push = await self._push(service, calling)
        self._remark(BOB, "the push starts the app", Kind.PUSH)
        app = await App.start(self._stack, bob, self._bob_did)
        registering = await app.until(_is("REGISTER", sent=True, authorized=True))
        invite = await app.until(_is("INVITE"))
        acknowledged = asyncio.ensure_future(app.until(_is("ACK")))
        answer = await calling
        if answer.status != Status.OK:
            raise DemoError(f"alice got {answer.status} {answer.reason}")
        ack = await acknowledged
        self._print()
        if invite.push_id != push.payload.get("x-push-id"):
            raise DemoError("the INVITE's X-Push-Id is not the push's")

        self._remark(SIPUSH, f"alice and bob talk for {TALK} s", Kind.PLAIN)
        await asyncio.sleep(TALK)
        await caller.hang_up(answer)
        await app.ended()
        self._print()
        invited = next(e for e in self._alice_events if e.name == "INVITE" and e.authorized)
        self._summarise(invited, push, registering, invite, ack)

    async def _register_and_die(self, account: Account) -> None:
        app = await App.start(self._stack, account, self._bob_did)
        final = await app.until(lambda e: e.method == "REGISTER" and e.name[0] in "23456", 2)
        if not final.name.startswith("200"):
            raise DemoError(f"bob's REGISTER was answered {final.name}")
        await app.kill()
        self._remark(BOB, "✗ kill -9", Kind.BAD)
        self._print()

    async def _push(self, service: PushService, calling: asyncio.Future[Any]) -> ReceivedPush:
        """The push of this call. Raises DemoError when the call ends without one."""
        pushed = asyncio.ensure_future(service.next_push(LIMIT))
        await asyncio.wait((pushed, calling), return_when=asyncio.FIRST_COMPLETED)
        if not pushed.done():
            pushed.cancel()
            raise DemoError(f"no push came: {calling.result().start_line}")
        push = pushed.result()
        if not push.accepted:
            raise DemoError(f"the push service refused the push: {push.violations}")
        return push

    # -- telling --

    def _pushed(self, push: ReceivedPush) -> None:
        at, kind = push.received_epoch, Kind.GOOD if push.accepted else Kind.BAD
        self._steps.append(Step(at, SIPUSH, SERVICE, "push over HTTP/2", Kind.PUSH))
        self._steps.append(Step(at, SERVICE, SIPUSH, str(push.status), kind))
        if push.accepted:
            self._steps.append(Step(at, SERVICE, BOB, "VoIP push", Kind.PUSH))

    def _alice_did(self, event: Event) -> None:
        self._alice_events.append(event)
        self._steps.append(_step(ALICE, event))

    def _bob_did(self, event: Event) -> None:
        self._steps.append(_step(BOB, event))

    def _remark(self, party: str, text: str, kind: Kind) -> None:
        self._steps.append(Step(time.time(), party, party, text, kind))

    def _print(self) -> None:
        """What happened since, in order: each party tells in its own time."""
        steps, self._steps = self._steps, []
        for step in sorted(steps, key=lambda step: step.at_epoch):
            print(self._ladder.step(step), flush=True)

    def _summarise(
        self, invited: Event, push: ReceivedPush, registering: Event, invite: Event, ack: Event
    ) -> None:
        started = registering.at_epoch - push.received_epoch
        print()
        for name, seconds, meaning in (
            ("Push accepted", push.received_epoch - invited.at_epoch, "after alice's INVITE"),
            ("App started", started, "from push to REGISTER: the phone's own time"),
            ("Wake to INVITE", invite.at_epoch - registering.at_epoch, "REGISTER to INVITE"),
            ("Total", ack.at_epoch - invited.at_epoch, "alice's INVITE to ACK at bob"),
        ):
            print(f"{name:>16} {seconds * 1000:8.1f} ms   {meaning}")
        print(
            f"\nX-Push-Id {invite.push_id} in the push and in the INVITE; 200 and ACK end to end."
        )


def _is(name: str, *, sent: bool = False, authorized: bool = False) -> Callable[[Event], bool]:
    return lambda e: e.name == name and e.sent == sent and e.authorized >= authorized


def _step(party: str, event: Event) -> Step:
    text, kind = event.name, Kind.SIP
    if event.name == "REGISTER":
        text = f"REGISTER {'+ digest ' * event.authorized}+ X-Push (port {event.port})"
    elif event.name[:3] in ("401", "407"):
        text = f"{event.name[:3]} + challenge"
    elif event.authorized:
        text = f"{event.name} + digest"
    elif event.push_id:
        text = f"INVITE X-Push-Id: {event.push_id[:8]}…"
    elif event.name.startswith("200"):
        text, kind = f"200 OK ({event.method})", Kind.GOOD
    source, target = (party, SIPUSH) if event.sent else (SIPUSH, party)
    return Step(event.at_epoch, source, target, text, kind)


class Server:
    """The daemon."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.port = 0
        "Where it listens for TCP."
        self.log: deque[str] = deque(maxlen=20)

    @classmethod
    async def start(
        cls, stack: AsyncExitStack, directory: Path, service: PushService, passwords: dict[str, str]
    ) -> Server:
        """Run it on a configuration of its own. Raises DemoError if it does not get ready."""
        config = directory / "sipush.toml"
        config.write_text(_config(directory, service, passwords))
        command = (sys.executable, "-m", "sipush.cli", "run", "--config", str(config))
        server = cls(await _spawn(stack, *command))
        ready = asyncio.get_running_loop().create_future()
        reading = asyncio.ensure_future(server._read(ready))
        stack.callback(reading.cancel)
        await asyncio.wait((ready, reading), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            raise DemoError("\n  ".join(["the daemon did not start:", *server.log]))
        server.port = int(ready.result()["listen"][0].rpartition(":")[2])
        return server

    async def _read(self, ready: asyncio.Future[dict[str, Any]]) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.log.append(line.decode().rstrip())
            with suppress(ValueError):
                record = json.loads(line)
                if record.get("event") == "ready":
                    ready.set_result(record)


def _config(directory: Path, service: PushService, passwords: dict[str, str]) -> str:
    apns = service.apns_config()
    users = "".join(
        f'[users."{user}@{DOMAIN}"]\n'
        f'ha1_md5 = "{compute_ha1(Algorithm.MD5, user, DOMAIN, password)}"\n'
        f'ha1_sha256 = "{compute_ha1(Algorithm.SHA256, user, DOMAIN, password)}"\n'
        for user, password in passwords.items()
    )
    return f"""\
sip.domains = ["{DOMAIN}"]
store.sqlite.path = "{directory}/sipush.db"
log.format = "json"
wake.hold = 15

[[listen]]
transport = "tcp"
address = "127.0.0.1"
port = 0

{users}
[apps."{DEFAULT_APP}".apns]
key_file = "{apns.key_file}"
key_id = "{apns.key_id}"
team_id = "{apns.team_id}"
server = "{apns.server}"
ca_file = "{apns.ca_file}"
"""


class App:
    """Bob's phone as a process."""

    def __init__(
        self, process: asyncio.subprocess.Process, report: Callable[[Event], None]
    ) -> None:
        self._process = process
        self._report = report

    @classmethod
    async def start(
        cls, stack: AsyncExitStack, account: Account, report: Callable[[Event], None]
    ) -> App:
        """Start it; it registers at once."""
        process = await _spawn(stack, sys.executable, "-m", "sipush.demo.phone")
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(account)).encode() + b"\n")
        return cls(process, report)

    async def until(self, wanted: Callable[[Event], bool], occurrence: int = 1) -> Event:
        """The next event that is ``wanted``. Raises DemoError when the process ends before."""
        while event := await self._next():
            occurrence -= wanted(event)
            if occurrence == 0:
                return event
        raise DemoError("bob's phone ended too early")

    async def ended(self) -> None:
        """Report the rest and wait for its end."""
        while await self._next():
            pass
        await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL; returns when the kernel has closed its connection."""
        self._process.kill()
        await self._process.wait()

    async def _next(self) -> Event | None:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        try:
            event = Event(**json.loads(line))
        except ValueError:
            return None  # its end, or its last words
        self._report(event)
        return event


async def _spawn(stack: AsyncExitStack, *command: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    stack.push_async_callback(_end, process)
    return process


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 5)
    except TimeoutError:
        process.kill()
        await process.wait()
