"""Schedules of races around one call, made from a seed, and what must be true at their end."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from dataclasses import dataclass, field

from tests.e2e.daemon import OTHER_APP, Daemon, account, ha1
from tests.e2e.pushes import Push
from tests.e2e.robots import Caller, CallerPlan, Device, Network, Stance, branch_of
from tests.e2e.world import World, apns_token, fcm_token, x_push

HOLD = 6.0
"Seconds; twice that while servers die: a busy machine starts one slowly."
NO_ANSWER = 7.0
"Seconds for which a phone may ring."
KINDS = ("cancel-register", "answer-answer", "cancel-answer", "anything", "messages")
REASON = 'Q.850;cause=16;text="Terminated"'


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """What becomes of one device. Times are seconds from the INVITE."""

    service: str
    transport: str
    deaf: bool
    "Its socket stays open while it sleeps: nothing says that it is dead."
    awake: bool
    "It does not sleep at all."
    wakes_at: float | None
    moves_at: float | None
    dies_at: float | None
    register_style: str
    stance: Stance


@dataclass(frozen=True, slots=True)
class Schedule:
    """One call and what happens around it."""

    seed: int
    kind: str
    caller_transport: str
    caller: CallerPlan
    devices: tuple[DevicePlan, ...]
    messages: tuple[float, ...]
    network: tuple[float, float, float]

    @classmethod
    def of(cls, seed: int) -> Schedule:
        """The schedule of a seed: always the same."""
        chance = random.Random(seed)
        kind = KINDS[seed % len(KINDS)]
        moment = chance.choice((0.05, 0.3, 0.8, chance.uniform(0.0, 2.5)))
        number = chance.choice((1, 1, 2, 3)) if kind != "answer-answer" else chance.choice((2, 3))
        ring, answer = chance.uniform(0, 0.1), chance.uniform(0, 0.4)
        cancel_after = None
        if kind == "cancel-register":
            cancel_after = moment + chance.uniform(-0.004, 0.008)
        elif kind == "cancel-answer":
            cancel_after = moment + ring + answer + chance.uniform(-0.01, 0.02)
        elif kind == "anything" and chance.random() < 0.3:
            cancel_after = chance.uniform(0.0, 3.0)
        devices: list[DevicePlan] = []
        steady = chance.random() < 0.6
        callee_hangs_up = steady and chance.random() < 0.5
        for _ in range(number):
            # A webhook names no device: two of one user look alike.
            webhook = any(plan.service == "webhook" for plan in devices)
            services = ("apns", "fcm") if webhook else ("apns", "fcm", "webhook")
            meets = kind != "anything" and kind != "messages"
            final = 200
            if kind in ("anything", "messages"):
                final = chance.choice((200, 200, 200, 486, 603, 480, 0))
            apart = chance.uniform(-0.003, 0.003)
            devices.append(
                DevicePlan(
                    service=chance.choice(services),
                    transport=chance.choice(("UDP", "TCP")),
                    deaf=chance.random() < 0.4,
                    awake=chance.random() < 0.15,
                    wakes_at=moment + apart
                    if meets
                    else (None if chance.random() < 0.15 else chance.uniform(0.0, 3.0)),
                    moves_at=chance.uniform(0.0, 3.0)
                    if not steady and chance.random() < 0.2
                    else None,
                    dies_at=chance.uniform(0.5, 3.0)
                    if not meets and not steady and chance.random() < 0.2
                    else None,
                    register_style=chance.choice(("plain", "doubled", "forked", "re-ordered")),
                    stance=Stance(
                        final,
                        ring if meets else chance.uniform(0, 0.2),
                        answer if meets else chance.uniform(0, 1.0),
                        chance.uniform(0, 0.3) if callee_hangs_up else None,
                    ),
                )
            )
        sometimes = chance.random() < 0.5
        bad = chance.uniform(0, 0.06)
        return cls(
            seed,
            kind,
            chance.choice(("UDP", "TCP")),
            CallerPlan(
                cancel_after,
                chance.choice(("", REASON)),
                None if callee_hangs_up else chance.uniform(0, 0.3),
            ),
            tuple(devices),
            tuple(sorted(chance.uniform(0, 3.0) for _ in range(chance.randrange(4))))
            if kind == "messages" or chance.random() < 0.2
            else (),
            (bad, bad, 2 * bad) if sometimes else (0.0, 0.0, 0.0),
        )


def users(domain: str, count: int) -> dict[str, dict[str, str]]:
    """Callers and callees for so many schedules at a time."""
    names = [f"{side}-{n}" for n in range(count) for side in ("caller", "callee")]
    return {f"{name}@{domain}": {"ha1_md5": ha1(name, domain)} for name in names}


@dataclass
class Race:
    """One schedule being run."""

    world: World
    daemon: Daemon
    number: int
    schedule: Schedule
    restarts: bool = False
    "The server is killed meanwhile."
    devices: list[Device] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    down: list[tuple[float, float]] = field(default_factory=list)
    "When the server was: loop time."
    endless: bool = False
    "The caller got tired of waiting."
    started_at: float = 0.0
    took: float = 0.0

    @property
    def hold(self) -> float:
        """Seconds."""
        return 2 * HOLD if self.restarts else HOLD

    @property
    def callee(self) -> str:
        """Who is called."""
        return f"callee-{self.number}"

    async def prepare(self) -> None:
        """Register every device once; those that sleep are killed."""
        chance = random.Random(self.schedule.seed + 1)
        self.network = Network(chance, *self.schedule.network)
        perfect = Network(chance)
        who = account(self.callee, self.world.domain)
        for plan in self.schedule.devices:
            token = fcm_token() if plan.service == "fcm" else apns_token()
            push = {
                "apns": x_push(token),
                "fcm": x_push(token, "android"),
                "webhook": x_push(token, "android", OTHER_APP),
            }[plan.service]
            device = Device(
                who,
                self.daemon.at(plan.transport),
                plan.transport,
                perfect,
                push,
                f"urn:uuid:{uuid.UUID(int=chance.getrandbits(128))}",
                plan.stance,
            )
            device.forgiving = self.restarts
            self.devices.append(device)
            self.tokens.append(token)
            await device.wake()
            device.register_style = plan.register_style
            device.network = self.network
            if plan.awake:
                continue
            if plan.deaf and plan.transport == "UDP":
                self._keep = getattr(self, "_keep", [])
                self._keep.append(device.wire)
                device.wire = None
                device._register_id += "-2"
            else:
                device.kill()
        who = account(f"caller-{self.number}", self.world.domain)
        transport = self.schedule.caller_transport
        self.caller = Caller(who, self.daemon.at(transport), transport, self.network)
        self.sender = Caller(who, self.daemon.at("UDP"), "UDP", self.network)

    async def run(self) -> None:
        """From the INVITE to the end of everything."""
        loop = asyncio.get_running_loop()
        self.started_at = loop.time()
        patience = 2 * (self.hold + NO_ANSWER)
        try:
            async with asyncio.TaskGroup() as group:
                for plan, device in zip(self.schedule.devices, self.devices, strict=True):
                    group.create_task(self._live(plan, device))
                if self.schedule.messages:
                    group.create_task(self._write())
                try:
                    async with asyncio.timeout(patience):
                        await self.caller.call(self.callee, self.schedule.caller)
                        await self.caller.ended.wait()
                except TimeoutError:
                    self.endless = True
                self.took = loop.time() - self.started_at
            await self._wake_the_rest()
            await self._settle()
        except* Exception as group_error:
            self.faults += [repr(error) for error in group_error.exceptions]
        self._check()

    async def _live(self, plan: DevicePlan, device: Device) -> None:
        if plan.wakes_at is not None and not plan.awake:
            await self._until(plan.wakes_at)
            await device.wake()
        if plan.moves_at is not None and device.awake:
            await self._until(plan.moves_at)
            if device.awake:
                await device.move()
        if plan.dies_at is not None:
            await self._until(plan.dies_at)
            device.kill()

    async def _write(self) -> None:
        await self.sender.open()
        for number, at in enumerate(self.schedule.messages):
            await self._until(at)
            await self.sender.send_message(self.callee, f"{self.schedule.seed}-{number}")

    async def _until(self, at: float) -> None:
        left = self.started_at + at - asyncio.get_running_loop().time()
        if left > 0:
            await asyncio.sleep(left)

    async def _wake_the_rest(self) -> None:
        """Whoever still sleeps learns now that there was a call, and gets its messages."""
        for device in self.devices:
            device.network = Network(random.Random(0))
            if not device.awake:
                await device.wake()

    async def _settle(self) -> None:
        """Wait until nothing rings any more and all messages are there."""
        try:
            async with asyncio.timeout(20.0):
                while True:
                    rings = [ring for device in self.devices for ring in device.rings]
                    if all(ring.settled for ring in rings) and self._all_delivered:
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            for device in self.devices:
                for ring in device.rings:
                    if not ring.settled and not (self.restarts and ring.status >= 300):
                        state = "rings" if not ring.status else f"has said {ring.status}"
                        self.faults.append(f"a device still {state}, cancel={ring.cancel}")

    @property
    def _all_delivered(self) -> bool:
        came = {msg.body for device in self.devices for msg in device.messages}
        return all(text in came for text, _ in self.sender.message_answers)

    # -- what must be true --

    def _check(self) -> None:
        moved = any(
            plan.moves_at is not None or plan.dies_at is not None for plan in self.schedule.devices
        )
        for robot in (self.caller, self.sender, *self.devices):
            self.faults += [f for f in robot.faults if not (moved and "BYE" in f)]
        # Else never held: its phones were awake, and rang while the server died.
        held = bool(self._calls_pushed) or not self.restarts
        if not held or not self._reached:
            excused = ("ACK of its 200", "has said 200", "BYE", "nothing came back", "accepted")
            self.faults = [f for f in self.faults if not any(each in f for each in excused)]
        else:
            self._check_finals()
        self._check_pushes()
        self._check_reasons()
        self._check_messages()

    @property
    def _reached(self) -> bool:
        """Whether the INVITE ever came to a server that lived long enough to answer it."""
        dead = [(start - 0.3, end) for start, end in self.down]
        heard = self.caller.provisionals or self.caller.finals
        return bool(heard) or any(
            not any(start < at < end for start, end in dead) for at in self.caller.invited_at
        )

    def _check_finals(self) -> None:
        if self.endless:
            self.faults.append("the call had no end")
        finals = self.caller.finals
        failures = [msg for msg in finals if msg.status >= 300]
        answers = [msg for msg in finals if msg.status < 300]
        if len(failures) + bool(answers) != 1:
            self.faults.append(f"the caller's finals: {finals}")
            return
        answered = [r for d in self.devices for r in d.rings if 200 <= r.status < 300]
        tags = {ring.tag for ring in answered}
        if not {msg.tag("to") for msg in answers} <= tags:
            self.faults.append("an answer from nobody")
        if failures and failures[0].status not in self._possible:
            self.faults.append(f"the caller got {failures[0].status}")
        if failures and failures[0].status == 487 and not self.caller.cancelled:
            self.faults.append("487 without a CANCEL")
        if self.caller.cancelled and not answers and failures[0].status != 487:
            others = {r.status for d in self.devices for r in d.rings}
            if failures[0].status not in others | {480, 408}:
                self.faults.append(f"cancelled, and got {failures[0].status}")
        if failures and self._must_be_answered:
            self.faults.append(f"got {failures[0].status} although a device would have answered")

    @property
    def _possible(self) -> set[int]:
        finals = {plan.stance.final for plan in self.schedule.devices}
        dies = any(plan.dies_at is not None for plan in self.schedule.devices)
        unanswered = {408} if dies or 0 in finals or self._too_slow else set()
        return finals - {0, 200} | {480, 487} | unanswered

    @property
    def _too_slow(self) -> bool:
        """Whether restarts took so long that too little is left of the hold, or of the ringing."""
        return sum(end - start for start, end in self.down) > NO_ANSWER / 2

    @property
    def _must_be_answered(self) -> bool:
        """A device came in time, and nobody gave up or declined."""
        plans = self.schedule.devices
        if self.caller.cancelled or any(plan.stance.final >= 600 for plan in plans):
            return False
        if self._too_slow:
            return False
        return any(
            plan.stance.final == 200
            and plan.dies_at is None
            and plan.moves_at is None
            and (plan.awake or (plan.wakes_at is not None and plan.wakes_at < self.hold - 2.5))
            for plan in plans
        )

    @property
    def _calls_pushed(self) -> set[str]:
        """Push ids."""
        return {push.push_id for push in self._call_pushes()}

    def _call_pushes(self) -> list[Push]:
        """Those for our call."""
        ours = []
        for push in self.world.pushes.all:
            who = str(push.data.get("user_id", ""))
            mine = push.token in self.tokens or who.startswith(f"{self.callee}@")
            if mine and not push.push_id.isdigit():  # else of a MESSAGE
                ours.append(push)
        return ours

    def _check_pushes(self) -> None:
        calls = self._calls_pushed
        counts: Counter[tuple[str, str, str, bool]] = Counter()
        for push in self._call_pushes():
            counts[push.service, push.token, push.push_id, push.cancels] += 1
        if max(counts.values(), default=1) > 1:
            self.faults.append(f"pushed twice: {counts}")
        if len(calls) > 1:
            self.faults.append(f"several push ids: {calls}")
        for device in self.devices:
            for ring in device.rings:
                if calls and ring.invite["x-push-id"] not in calls:
                    self.faults.append("the INVITE has another X-Push-Id than the push")
        if any(push[0] == "apns" and push[3] for push in counts):
            self.faults.append("a cancelling push over APNs")

    def _check_reasons(self) -> None:
        answered = any(msg.status < 300 for msg in self.caller.finals)
        declined = any(r.status >= 600 for d in self.devices for r in d.rings)
        for device in self.devices:
            for ring in device.rings:
                reason = ring.cancel["reason"] if ring.cancel else ""
                if "elsewhere" in reason and "cause=200" in reason and not answered:
                    self.faults.append("told of an answer that nobody gave")
                if "cause=603" in reason and not declined:
                    self.faults.append("told of a refusal that nobody gave")
                gave_up = any(msg.status == 487 for msg in self.caller.finals)
                if self.schedule.caller.reason and ring.cancel and gave_up and reason != REASON:
                    self.faults.append(f"the caller's Reason did not arrive: {reason!r}")

    def _check_messages(self) -> None:
        taken: dict[str, set[tuple[str, str]]] = {}
        order: list[str] = []
        for _, msg in sorted(
            ((msg.at, msg) for device in self.devices for msg in device.messages),
            key=lambda pair: pair[0],
        ):
            identity = (msg["call-id"], msg["x-push-id"])
            taken.setdefault(msg.body, set()).add(identity)
            if msg.body not in order:
                order.append(msg.body)
        for text, status in self.sender.message_answers:
            if status not in (200, 202):
                self.faults.append(f"MESSAGE {text} got {status}")
            elif text not in taken:
                self.faults.append(f"MESSAGE {text} ({status}) was lost")
        for text, ids in taken.items():
            numbers = {number for _, number in ids if number}
            if len(numbers) > 1 or len({call for call, _ in ids}) > 1:
                self.faults.append(f"MESSAGE {text} came as {ids}")
        if order != sorted(order):
            self.faults.append(f"MESSAGEs out of order: {order} {self.sender.message_answers}")

    def end(self) -> None:
        """Close everything."""
        for wire in getattr(self, "_keep", []):
            wire.close()
        for robot in (self.caller, self.sender, *self.devices):
            robot.end()

    @property
    def story(self) -> str:
        """Everything for whoever has to find out."""
        lines = [f"seed {self.schedule.seed} number {self.number} {self.faults}"]
        lines.append(repr(self.schedule))
        lines.append(f"messages {self.sender.message_answers}")
        lines.append(
            f"caller {self.caller.call_id} finals {self.caller.finals} "
            f"provisionals {self.caller.provisionals} cancelled {self.caller.cancelled} "
            f"{self.caller.cancel_status} took {self.took:.2f}"
        )
        sent = [round(at - self.started_at, 2) for at in self.caller.invited_at]
        down = [tuple(round(at - self.started_at, 2) for at in times) for times in self.down]
        lines.append(f"invited at {sent}, server down {down}")
        for device, token in zip(self.devices, self.tokens, strict=True):
            rings = [
                (branch_of(r.invite), r.status, r.cancel and (r.cancel["reason"] or "-"), r.lost)
                for r in device.rings
            ]
            lines.append(
                f"device {device.transport} {token[:12]} registered {device.registered} {rings}"
            )
        return "\n  ".join(lines)
