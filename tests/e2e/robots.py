"""Phones that live by themselves: they repeat, answer, acknowledge and hang up as RFC 3261 says.

The phones of ``wire.py`` do what a test tells them, step by step. These follow a plan at their own
pace, so that many of them can meet at once and in any order, over a network that loses things.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import cycle, zip_longest
from typing import Any

from tests.e2e.wire import SDP, Account, Msg, Wire, _Stream, digest_answer, new_branch

T1, T2 = 0.5, 4.0
GIVE_UP = 25.0
"Seconds; less than 64*T1, so that a schedule ends."
_PORTS = cycle(range(random.randrange(33_000, 50_000), 60_000))
"The kernel might give a phone the port of one that was killed, and so its calls and messages."


@dataclass(frozen=True, slots=True)
class Network:
    """How bad the network is. A stream is never bad."""

    chance: random.Random
    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0

    def deliveries(self, transport: str) -> list[float]:
        """After how many seconds one message arrives, each time that it does."""
        if transport != "UDP" or (dice := self.chance.random()) >= self.bad:
            return [0.0]
        if dice < self.lost:
            return []
        later = self.chance.uniform(0.001, 0.06)
        return [0.0, later] if dice < self.lost + self.doubled else [later]

    @property
    def bad(self) -> float:
        """The chance that something happens to a message."""
        return self.lost + self.doubled + self.late


class RobotWire(Wire):
    """Hands what comes to its robot, through the network."""

    robot: Robot

    def arrived(self, msg: Msg) -> None:
        """Called by the socket."""
        for delay in self.robot.network.deliveries(self.transport):
            if delay:
                asyncio.get_running_loop().call_later(delay, self.robot.came, self, msg)
            else:
                self.robot.came(self, msg)


def branch_of(msg: Msg) -> str:
    """Of the topmost Via."""
    found = re.search(r"branch=([^;,\s]+)", msg["via"])
    return found[1] if found else ""


class Robot:
    """One phone: a socket that it opens again when the server went away, and its transactions."""

    def __init__(
        self, account: Account, server: tuple[str, int], transport: str, network: Network
    ) -> None:
        self.account = account
        self.server = server
        self.transport = transport
        self.network = network
        self.wire: RobotWire | None = None
        self.faults: list[str] = []
        "What must never happen."
        self._waiting: dict[tuple[str, str], asyncio.Queue[Msg]] = {}
        self._answers: dict[tuple[str, str], str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.local = ("", 0)
        "Where it listens, if it does; else it is its socket."
        self.ip, self.port = "127.0.0.1", 0
        "Of its socket; port 0: any."
        self._opening = asyncio.Lock()
        self.server_is_up = asyncio.Event()
        "Its patience does not end while nobody could answer."
        self.server_is_up.set()

    # -- life --

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it beside everything else."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def open(self, patience: float = 60.0) -> RobotWire:
        """A socket that works: over a stream it waits until the server is there."""
        async with asyncio.timeout(patience), self._opening:  # or two would open one each
            while self.wire is None or self.wire.closed.is_set():
                try:
                    port = next(_PORTS) if self.transport == "UDP" else 0
                    wire = await RobotWire.open(
                        self.transport, self.server, self.ip, self.port or port
                    )
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                wire.robot = self  # type: ignore[attr-defined]
                assert isinstance(wire, RobotWire)
                self.wire = wire
                if self.local[0]:
                    wire.local = self.local
        return self.wire

    def kill(self) -> None:
        """The kernel closes its socket."""
        if self.wire is not None:
            self.wire.close()
            self.wire = None

    def end(self) -> None:
        """Forget everything."""
        self.kill()
        for task in self._tasks:
            task.cancel()

    @property
    def awake(self) -> bool:
        """Whether it has a socket."""
        return self.wire is not None

    def send(self, text: str, wire: RobotWire | None = None) -> bool:
        """Send through the network; whether it is on its way, and not lost or its socket gone."""
        wire = wire or self.wire
        if wire is None:
            return False
        deliveries = self.network.deliveries(self.transport)
        for delay in deliveries:
            if delay:
                asyncio.get_running_loop().call_later(delay, self._send_now, wire, text)
            else:
                self._send_now(wire, text)
        return bool(deliveries)

    @staticmethod
    def _send_now(wire: RobotWire, text: str) -> None:
        if wire._io is not None and not wire.closed.is_set():
            wire.send(text)

    async def waits_for(self, event: asyncio.Event, seconds: float) -> float:
        """Wait so long; how much of its patience that has cost, 0 when it happened."""
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return seconds if self.server_is_up.is_set() else 0.01
        return 0.0

    # -- what it sends --

    def head(self, method: str, uri: str, branch: str, *lines: str, body: str = "") -> str:
        """A request."""
        assert self.wire is not None
        return "\r\n".join(
            [
                f"{method} {uri} SIP/2.0",
                f"Via: SIP/2.0/{self.transport} {self.wire.host_port};branch={branch};rport",
                "Max-Forwards: 70",
                *lines,
                f"Content-Length: {len(body)}",
                "",
                body,
            ]
        )

    @property
    def contact_uri(self) -> str:
        """What it puts in Contact."""
        assert self.wire is not None
        param = "" if self.transport == "UDP" else ";transport=tcp"
        return f"sip:{self.account.user}@{self.wire.host_port}{param}"

    async def request(self, method: str, uri: str, *lines: str, body: str = "") -> Msg | None:
        """The final response to a request that is no INVITE; repeated, and tried again."""
        for _ in range(4):
            wire = await self.open()
            branch = new_branch()
            text = self.head(method, uri, branch, *lines, body=body)
            final = await self._transact(wire, method, branch, text)
            if final is not None:
                return final
        return None

    async def _transact(
        self, wire: RobotWire, method: str, branch: str, text: str, other: str = ""
    ) -> Msg | None:
        """``other``: the branch of the same request that went another way."""
        queue = self._waiting[branch, method] = self._waiting[other, method] = asyncio.Queue()
        interval, waited, refused = T1, 0.0, 0
        self.send(text, wire)
        while waited < 12.0:
            try:
                async with asyncio.timeout(interval):
                    msg = await queue.get()
                if msg.status >= 300 and other and not refused:
                    refused = msg.status  # best response: the other one may be better
                elif msg.status >= 200:
                    return msg
            except TimeoutError:
                if wire.closed.is_set() or self.wire is not wire:
                    return None
                waited += interval if self.server_is_up.is_set() else 0.0
                if self.transport == "UDP":
                    self.send(text, wire)
                    interval = min(2 * interval, T2)
        return None

    # -- what comes --

    def came(self, wire: RobotWire, msg: Msg) -> None:
        """A message."""
        if wire is not self.wire:
            return  # it was killed meanwhile
        key = (branch_of(msg), msg.method)
        if msg.status:
            self.response_came(key, msg)
        elif msg.method != "ACK" and key in self._answers:
            self.send(self._answers[key])
        else:
            self.request_came(msg)

    def response_came(self, key: tuple[str, str], msg: Msg) -> None:
        """To a request of ours."""
        if (queue := self._waiting.get(key)) is not None:
            queue.put_nowait(msg)

    def request_came(self, msg: Msg) -> None:
        """A new one, or an ACK."""
        if msg.method != "ACK":
            self.answer(msg, 481)

    def answer(self, msg: Msg, status: int, *lines: str, tag: str = "", body: str = "") -> str:
        """Answer a request, and again whenever it is repeated."""
        copied = [
            f"{name}: {value}"
            for name, value in msg.headers
            if name in ("via", "from", "call-id", "cseq", "record-route")
        ]
        to = msg["to"] if msg.tag("to") else f"{msg['to']};tag={tag or secrets.token_hex(4)}"
        contact = [f"Contact: <{self.contact_uri}>"] if self.wire is not None else []
        text = "\r\n".join(
            [
                f"SIP/2.0 {status} Whatever",
                *copied,
                f"To: {to}",
                *contact,
                *lines,
                f"Content-Length: {len(body)}",
                "",
                body,
            ]
        )
        self._answers[branch_of(msg), msg.method] = text
        self.send(text)
        return text


# --- who is called ---------------------------------------------------------------------------


@dataclass(eq=False)
class Ring:
    """One INVITE that a device got."""

    invite: Msg
    wire: RobotWire
    tag: str = field(default_factory=lambda: secrets.token_hex(4))
    status: int = 0
    "The final response it gave."
    cancel: Msg | None = None
    acked: asyncio.Event = field(default_factory=asyncio.Event)
    acked_at: float = math.inf
    "Loop time."
    over: asyncio.Event = field(default_factory=asyncio.Event)
    "A BYE ended it."
    lost: bool = False
    "Its phone was killed."
    repeated: asyncio.Event = field(default_factory=asyncio.Event)
    "The INVITE came again as it was."

    def acknowledge(self) -> None:
        """Its final response has arrived, or nobody waits for it."""
        self.acked_at = min(self.acked_at, asyncio.get_running_loop().time())
        self.acked.set()

    @property
    def settled(self) -> bool:
        """Nobody waits for anything any more."""
        if self.lost:
            return True
        if not self.status:
            return False
        return self.over.is_set() if self.status < 300 else self.acked.is_set()


@dataclass(frozen=True, slots=True)
class Stance:
    """What a device does with a call."""

    final: int = 200
    "What it answers; 0: it rings until somebody ends that."
    ring_after: float = 0.02
    answer_after: float = 0.1
    "Seconds from the ringing."
    hangs_up_after: float | None = None
    "Seconds from the ACK; None: the caller hangs up."


class Device(Robot):
    """An app with a push token."""

    def __init__(
        self,
        account: Account,
        server: tuple[str, int],
        transport: str,
        network: Network,
        push: str,
        instance: str,
        stance: Stance,
    ) -> None:
        super().__init__(account, server, transport, network)
        self.push = push
        self.instance = instance
        self.stance = stance
        self.rings: list[Ring] = []
        self.messages: list[Msg] = []
        self.register_style = "plain"
        self._register_id = f"reg-{secrets.token_hex(6)}"
        self._cseq = 0
        self._challenge = ""
        self._nonce_count = 0
        self._stale_register = ""
        self.is_called_again = False
        "Its user may get a call that he has ended: a ring group falls back to him."
        self.has_moved = False
        "To another network, calls and all."
        self.forgiving = False
        "Nobody need acknowledge its refusals: the server dies meanwhile."
        self.registers: list[tuple[str, int]] = []
        "Call-ID and CSeq of every REGISTER that it sent, in order."
        self.accepted = 0
        "The newest of these that got its 200: the so many-th, or 0."
        self.accepted_at = 0.0
        "When the first one of this life was accepted: loop time; 0: not yet."
        self._woke_at: list[float] = []
        self._died_at: list[float] = []
        self._silent_wires: list[RobotWire] = []
        self.asleep = False

    def kill(self) -> None:
        """The OS kills the app: it knows nothing any more."""
        super().kill()
        self._forget()

    def fall_silent(self) -> None:
        """It is killed, and its socket stays open: nothing says that it is dead."""
        assert self.wire is not None
        self._silent_wires.append(self.wire)
        self.wire = None
        self._forget()

    def _forget(self) -> None:
        if len(self._died_at) < len(self._woke_at):
            self._died_at.append(asyncio.get_running_loop().time())
        self.asleep = True
        for ring in self.rings:
            if not ring.settled:
                ring.lost = True
                ring.acknowledge()
                ring.over.set()
        self._answers.clear()
        self._register_id = f"reg-{secrets.token_hex(6)}"
        self._stale_register = ""

    def end(self) -> None:
        """Forget everything."""
        super().end()
        for wire in self._silent_wires:
            wire.close()

    def was_awake(self, at: float) -> bool:
        """Whether it had begun to register, and not been killed since: loop time."""
        lives = zip_longest(self._woke_at, self._died_at, fillvalue=math.inf)
        return any(woke <= at < died for woke, died in lives)

    async def wake(self) -> None:
        """Start, register, and over a stream come back whenever the server was away."""
        self.asleep = False
        self.accepted_at = 0.0
        self._woke_at.append(asyncio.get_running_loop().time())
        await self.register()
        if self.transport != "UDP":
            self.spawn(self._stay())

    async def _stay(self) -> None:
        life = self._register_id
        while self._register_id == life:
            await asyncio.sleep(self.network.chance.uniform(0.05, 0.3))
            if self.wire is not None and self.wire.closed.is_set():
                await self.register()

    async def move(self) -> None:
        """Another network: a new socket, the old one is gone."""
        super().kill()
        self.has_moved = True
        for ring in self.rings:
            if ring.status and not ring.settled:
                ring.lost = True  # what is on its way to the old socket may be lost
                ring.acknowledge()
                ring.over.set()
        await self.register()

    async def register(self) -> None:
        """Until it is accepted."""
        life = self._register_id
        for _ in range(30):  # each connection that breaks meanwhile is one
            wire = await self.open()
            if self._register_id != life:  # killed meanwhile
                if self.asleep:
                    super().kill()
                return
            final = await self._register_once(wire)
            if final is None:
                continue
            if final.status == 401:
                self._challenge, self._nonce_count = final["www-authenticate"], 0
                continue
            if final.status != 200:
                self.faults.append(f"REGISTER got {final.status}")
            self.accepted_at = self.accepted_at or asyncio.get_running_loop().time()
            return
        if self.wire is not None:
            self.faults.append("REGISTER was never accepted")

    async def _register_once(self, wire: RobotWire) -> Msg | None:
        branch = new_branch()
        text = self._register_text(branch)
        if self.register_style == "doubled":
            self.send(text, wire)
        other = new_branch() if self.register_style == "forked" else ""
        if other:
            self.send(text.replace(branch, other), wire)
        number = len(self.registers)
        final = await self._transact(wire, "REGISTER", branch, text, other)
        if final is not None and final.status == 200:
            self.accepted = max(self.accepted, number)
        if self.register_style == "re-ordered" and self._stale_register and final is not None:
            self.send(self._stale_register, wire)
        self._stale_register = text.replace(branch, new_branch())
        return final

    def _register_text(self, branch: str) -> str:
        self._cseq += 1
        self.registers.append((self._register_id, self._cseq))
        who, uri = self.account, f"sip:{self.account.domain}"
        credentials = []
        if self._challenge:
            self._nonce_count += 1
            answer = digest_answer(
                self._challenge, who.user, who.password, "REGISTER", uri, self._nonce_count
            )
            credentials = [f"Authorization: {answer}"]
        return self.head(
            "REGISTER",
            uri,
            branch,
            f"From: <sip:{who.aor}>;tag={secrets.token_hex(4)}",
            f"To: <sip:{who.aor}>",
            f"Call-ID: {self._register_id}",
            f"CSeq: {self._cseq} REGISTER",
            f'Contact: <{self.contact_uri}>;+sip.instance="<{self.instance}>"',
            "Expires: 600",
            f"X-Push: {self.push}",
            *credentials,
        )

    def request_came(self, msg: Msg) -> None:
        """What phones are asked."""
        match msg.method:
            case "INVITE":
                self._invited(msg)
            case "CANCEL":
                self._cancelled(msg)
            case "ACK":
                self._acknowledged(msg)
            case "BYE":
                self._hung_up(msg)
            case "MESSAGE":
                self.messages.append(msg)
                self.answer(msg, 200)
            case _:
                self.answer(msg, 200)

    def _invited(self, msg: Msg) -> None:
        assert self.wire is not None
        for ring in self.rings:
            if ring.invite["call-id"] == msg["call-id"] and not ring.lost:
                if branch_of(ring.invite) == branch_of(msg):
                    if ring.status:  # it has been killed since, and knows of nothing
                        ring.lost = True
                        continue
                    ring.repeated.set()
                    return  # repeated before it was answered
                if self.is_called_again:
                    if ring.settled and ring.status >= 300:
                        continue
                    self.answer(msg, 482)  # §8.2.2.2: it is still ending the first
                    return
                if not ring.settled or ring.status < 300:
                    # §8.2.2.2: the same request by another way
                    state = "ringing" if not ring.status else f"answered with {ring.status}"
                    self.answer(msg, 482)
                    self.spawn(self._refused_as_merged(ring, state))
                    return
                self.faults.append(f"a second INVITE of a call that it ended with {ring.status}")
        ring = Ring(msg, self.wire)
        self.rings.append(ring)
        self.spawn(self._take(ring))

    async def _refused_as_merged(self, ring: Ring, state: str) -> None:
        """Who moves with an INVITE in hand gets it again as it was; nobody else gets a second."""
        ring.repeated.clear()
        in_hand, waited = self.has_moved and not ring.status, 0.0
        while in_hand and waited < T2 and (cost := await self.waits_for(ring.repeated, T1)):
            waited += cost
        if not ring.repeated.is_set() and not (in_hand and ring.settled):
            self.faults.append(f"a second INVITE of a call that is {state}")

    async def _take(self, ring: Ring) -> None:
        stance = self.stance
        await asyncio.sleep(stance.ring_after)
        if ring.status or ring.lost:
            return
        self.answer(ring.invite, 180, tag=ring.tag)
        await asyncio.sleep(stance.answer_after)
        if ring.status or ring.lost or not stance.final:
            return
        await self._finish(ring, stance.final)

    async def _finish(self, ring: Ring, status: int) -> None:
        """The final response, repeated until its ACK comes."""
        ring.status = status
        if self.wire is None and not ring.lost:  # between two networks it has no Contact
            await self.open()
        content = ["Content-Type: application/sdp"] if status < 300 else []
        body = SDP if status < 300 else ""
        text = self.answer(ring.invite, status, *content, tag=ring.tag, body=body)
        if self.transport != "UDP" and status >= 300 and self.wire is ring.wire:
            ring.acknowledge()  # over a stream nobody waits for it
        interval, waited = T1, 0.0
        while waited < GIVE_UP and (cost := await self.waits_for(ring.acked, interval)):
            waited += cost
            interval = min(2 * interval, T2)
            self.send(text)
        if not ring.acked.is_set() and status >= 300 and self.forgiving:
            ring.lost = True  # who was to acknowledge it has died
        elif not ring.acked.is_set():
            self.faults.append(f"no ACK of its {status}")
            ring.lost = True
        elif status < 300 and not ring.lost and stance_ends(self.stance):
            await asyncio.sleep(self.stance.hangs_up_after or 0.0)
            await self._hang_up(ring)

    async def _hang_up(self, ring: Ring) -> None:
        if ring.over.is_set():
            return
        invite = ring.invite
        final = await self.request(
            "BYE",
            invite.contact,
            f"From: {invite['to']};tag={ring.tag}",
            f"To: {invite['from']}",
            f"Call-ID: {invite['call-id']}",
            "CSeq: 1 BYE",
            *(f"Route: {value}" for value in invite.all("record-route")),
        )
        if ring.over.is_set():
            return
        if final is None or final.status != 200:
            self.faults.append(f"its BYE got {final}")
        ring.over.set()

    def _cancelled(self, msg: Msg) -> None:
        for ring in self.rings:
            if branch_of(ring.invite) == branch_of(msg) and not ring.lost:
                self.answer(msg, 200)
                ring.cancel = ring.cancel or msg
                if not ring.status:
                    self.spawn(self._finish(ring, 487))
                return
        self.answer(msg, 481)

    def _acknowledged(self, msg: Msg) -> None:
        for ring in self.rings:
            if ring.invite["call-id"] == msg["call-id"] and ring.tag == msg.tag("to"):
                ring.acknowledge()

    def _hung_up(self, msg: Msg) -> None:
        for ring in self.rings:
            if ring.invite["call-id"] == msg["call-id"] and ring.tag == msg.tag("to"):
                ring.acknowledge()
                ring.over.set()
                self.answer(msg, 200)
                return
        self.answer(msg, 481)


def stance_ends(stance: Stance) -> bool:
    """Whether it hangs up itself."""
    return stance.hangs_up_after is not None


# --- who calls -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CallerPlan:
    """What a caller does."""

    cancel_after: float | None = None
    "Seconds from the INVITE."
    reason: str = ""
    "Of the CANCEL."
    hangs_up_after: float | None = 0.1
    "Seconds from the answer; None: the callee hangs up."


class Caller(Robot):
    """Makes one call, and sends messages."""

    def __init__(
        self, account: Account, server: tuple[str, int], transport: str, network: Network
    ) -> None:
        super().__init__(account, server, transport, network)
        self.call_id = f"race-{secrets.token_hex(8)}"
        self.finals: list[Msg] = []
        "Each different one."
        self.provisionals: list[int] = []
        self.heard_at = 0.0
        "When anything but a challenge came back to an INVITE: loop time."
        self.final_at = 0.0
        self.cancelled = False
        self.cancel_status = 0
        self._tag = secrets.token_hex(4)
        self._cseq = 0
        self._branch = ""
        self._uri = ""
        self._acks: dict[tuple[int, str], str] = {}
        self._heard = asyncio.Event()
        self.ended = asyncio.Event()
        self._byes: dict[str, asyncio.Event] = {}
        self._listener: asyncio.Server | None = None
        self._inbound: list[RobotWire] = []
        self._invite_queue: asyncio.Queue[Msg] = asyncio.Queue()
        self._ack_routes: dict[str, Msg] = {}
        self.message_answers: list[tuple[str, int]] = []
        self.message_times: dict[str, tuple[float, float]] = {}
        "When each was sent and when answered: loop time."
        self.invited_at: list[float] = []
        "When its last INVITE left, each time that it was not lost: loop time."
        self._dialog_cseq = 100

    async def listen(self) -> None:
        """Over a stream: accept connections at the port that Via and Contact name (§18.2.2)."""
        if self.transport == "UDP":
            return

        def accept() -> _Stream:
            wire = RobotWire(self.transport, self.server)
            wire.robot = self
            self._inbound.append(wire)
            return _Inbound(wire)

        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(accept, "127.0.0.1", 0)
        self.local = self._listener.sockets[0].getsockname()[:2]

    def end(self) -> None:
        """Forget everything."""
        super().end()
        for wire in self._inbound:
            wire.close()
        if self._listener is not None:
            self._listener.close()

    def came(self, wire: RobotWire, msg: Msg) -> None:
        """Also what comes over a connection of the server's making."""
        key = (branch_of(msg), msg.method)
        if msg.status:
            self.response_came(key, msg)
            return
        if key in self._answers:
            self.send(self._answers[key], wire)
            return
        if msg.method == "BYE" and msg["call-id"] == self.call_id:
            tag = msg.tag("from")
            self._byes.setdefault(tag, asyncio.Event()).set()
            keep, self.wire = self.wire, wire
            self.answer(msg, 200)
            self.wire = keep
        elif msg.method != "ACK":
            self.faults.append(f"a caller got {msg.start}")

    def response_came(self, key: tuple[str, str], msg: Msg) -> None:
        """INVITE's are special."""
        if msg.method != "INVITE" or msg["call-id"] != self.call_id:
            super().response_came(key, msg)
            return
        if key[0] != self._branch:
            self._ack_again(msg)
            return
        self._heard.set()
        if msg.status != 407:
            self.heard_at = self.heard_at or asyncio.get_running_loop().time()
        if msg.status < 200:
            self.provisionals.append(msg.status)
            return
        self._final(msg)

    def _final(self, msg: Msg) -> None:
        key = (msg.status, msg.tag("to"))
        if msg.status == 407:
            self._ack_failure(msg)
            if key not in self._acks:
                self._acks[key] = "407"
                self._invite_queue.put_nowait(msg)
            return
        repeated = msg.status >= 300 and any(each.status == msg.status for each in self.finals)
        if key in self._acks or repeated:  # a failure is the same whatever its tag
            self._ack_again(msg)
            return
        self.finals.append(msg)
        self.final_at = self.final_at or asyncio.get_running_loop().time()
        if msg.status >= 300:
            self._ack_failure(msg)
            self._acks[key] = "done"
            self.ended.set()
        else:
            self._acks[key] = "2xx"
            first = sum(msg.status < 300 for msg in self.finals) == 1
            self.spawn(self._answered(msg, first))
        self._invite_queue.put_nowait(msg)

    def _ack_again(self, msg: Msg) -> None:
        if msg.status >= 300:
            self._ack_failure(msg)
        elif msg.status >= 200:
            self.spawn(self._ack(msg))

    def _ack_failure(self, msg: Msg) -> None:
        if self.wire is not None:
            lines = [*self._identity(msg.tag("to")), f"CSeq: {msg['cseq'].split()[0]} ACK"]
            self.send(self.head("ACK", self._uri, branch_of(msg), *lines))

    def _identity(self, to_tag: str = "") -> list[str]:
        who = self.account
        return [
            f'From: "{who.user}" <sip:{who.aor}>;tag={self._tag}',
            f"To: <{self._uri}>{f';tag={to_tag}' if to_tag else ''}",
            f"Call-ID: {self.call_id}",
        ]

    async def _ack(self, answer: Msg) -> None:
        await self.open()
        number = answer["cseq"].split()[0]
        routes = [f"Route: {value}" for value in reversed(answer.all("record-route"))]
        lines = [*self._identity(answer.tag("to")), f"CSeq: {number} ACK", *routes]
        self.send(self.head("ACK", answer.contact, new_branch(), *lines))

    async def _answered(self, answer: Msg, first: bool) -> None:
        """ACK, talk, BYE; a second answer is hung up at once (§13.2.2.4)."""
        tag = answer.tag("to")
        over = self._byes.setdefault(tag, asyncio.Event())
        await self._ack(answer)
        if first and self.plan.hangs_up_after is None:
            waited = 0.0
            while waited < GIVE_UP and (cost := await self.waits_for(over, T2)):
                waited += cost
            if not over.is_set():
                self.faults.append("the callee's BYE did not come")
            self.ended.set()
            return
        if first:
            await asyncio.sleep(self.plan.hangs_up_after or 0.0)
        if not over.is_set():
            self._dialog_cseq += 1
            routes = [f"Route: {value}" for value in reversed(answer.all("record-route"))]
            lines = [*self._identity(tag), f"CSeq: {self._dialog_cseq} BYE", *routes]
            final = await self.request("BYE", answer.contact, *lines)
            if final is None or final.status != 200:
                self.faults.append(f"the caller's BYE got {final}")
        if first:
            self.ended.set()

    async def call(self, user: str, plan: CallerPlan) -> None:
        """INVITE a user of its domain, until the call is over."""
        await self.call_uri(f"sip:{user}@{self.account.domain}", plan)

    async def call_uri(self, uri: str, plan: CallerPlan) -> None:
        """The same to a URI."""
        self.plan = plan
        self._uri = uri
        await self.listen()
        await self.open()
        started = asyncio.get_running_loop().time()
        if plan.cancel_after is not None:
            self.spawn(self._give_up(started + plan.cancel_after))
        authorization: list[str] = []
        for _ in range(6):
            msg = await self._invite(authorization)
            if msg is None:
                self.faults.append("nothing came back to the INVITE")
                return
            if msg.status != 407:
                return
            who = self.account
            answer = digest_answer(
                msg["proxy-authenticate"], who.user, who.password, "INVITE", self._uri
            )
            authorization = [f"Proxy-Authorization: {answer}"]
        self.faults.append("challenged for ever")

    async def _invite(self, authorization: list[str]) -> Msg | None:
        """One INVITE transaction: a 407, the first final, or None when nothing came."""
        self._cseq += 1
        branch = self._branch = new_branch()
        self._heard = asyncio.Event()
        self.invited_at = []
        wire = await self.open()
        text = self.head(
            "INVITE",
            self._uri,
            branch,
            *self._identity(),
            f"CSeq: {self._cseq} INVITE",
            f"Contact: <{self.contact_uri}>",
            *authorization,
            "Content-Type: application/sdp",
            body=SDP,
        )
        interval, waited = T1, 0.0
        self._send_invite(text, wire)
        while waited < GIVE_UP and (cost := await self.waits_for(self._heard, interval)):
            waited += cost
            if self.transport == "UDP":
                interval = min(2 * interval, T2)
                self._send_invite(text, wire)
            elif wire.closed.is_set():  # never heard of: again, over a new connection
                wire = await self.open()
                self._send_invite(text, wire)
        if not self._heard.is_set():
            return None
        return await self._invite_queue.get()

    def _send_invite(self, text: str, wire: RobotWire) -> None:
        if self.send(text, wire):
            self.invited_at.append(asyncio.get_running_loop().time())

    async def _give_up(self, at: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, at - loop.time()))
        branch = ""
        while not self.finals:
            await self._heard.wait()
            if branch == self._branch or branch_challenged(self._acks, self._cseq):
                await asyncio.sleep(0.005)  # nothing to cancel until the INVITE is sent again
                continue
            branch = self._branch
            self.cancelled = True
            await self._cancel(branch, self._cseq)

    async def _cancel(self, branch: str, number: int) -> None:
        reason = [f"Reason: {self.plan.reason}"] if self.plan.reason else []
        lines = [*self._identity(), f"CSeq: {number} CANCEL", *reason]
        for _ in range(4):
            wire = await self.open()
            text = self.head("CANCEL", self._uri, branch, *lines)
            final = await self._transact(wire, "CANCEL", branch, text)
            if final is not None:
                self.cancel_status = final.status
                return

    @property
    def challenged(self) -> bool:
        """Whether any INVITE got 407."""
        return any(status == 407 for status, _ in self._acks)

    async def send_message(self, user: str, text: str) -> None:
        """A MESSAGE, answering challenges."""
        who, uri = self.account, f"sip:{user}@{self.account.domain}"
        call_id, tag = f"message-{secrets.token_hex(8)}", secrets.token_hex(4)
        authorization: list[str] = []
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        for number in range(1, 8):
            final = await self.request(
                "MESSAGE",
                uri,
                f"From: <sip:{who.aor}>;tag={tag}",
                f"To: <{uri}>",
                f"Call-ID: {call_id}",
                f"CSeq: {number} MESSAGE",
                *authorization,
                "Content-Type: text/plain",
                body=text,
            )
            if final is None or final.status != 407:
                self.message_answers.append((text, final.status if final else 0))
                self.message_times[text] = (sent_at, loop.time())
                return
            answer = digest_answer(
                final["proxy-authenticate"], who.user, who.password, "MESSAGE", uri
            )
            authorization = [f"Proxy-Authorization: {answer}"]


def branch_challenged(acks: dict[tuple[int, str], str], sent: int) -> bool:
    """Whether every INVITE that was sent so far has been answered with 407."""
    return sum(status == 407 for status, _ in acks) >= sent


class _Inbound(_Stream):
    """A connection that the server made."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.wire._io = transport
        self.wire.local = transport.get_extra_info("sockname")[:2]
