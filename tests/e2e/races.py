"""Races around one call, and what must be true at their end."""

from __future__ import annotations

import asyncio
import math
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sipush.location.store import LocationStore
from tests.e2e.daemon import OTHER_APP, Daemon, account, ha1
from tests.e2e.process import Lines
from tests.e2e.pushes import Push
from tests.e2e.robots import Caller, Device, Network, Ring, Robot, branch_of
from tests.e2e.schedules import REASON, DevicePlan, Schedule
from tests.e2e.world import World, apns_token, fcm_token, x_push

HOLD = 6.0
"Seconds; twice that while servers die: a busy machine starts one slowly."
NO_ANSWER = 7.0
"Seconds for which a phone may ring."
DECLINED = 'SIP;cause=603;text="Declined elsewhere"'
DIED_WITH_IT = ("ACK of its 200", "has said 200", "still rings", "callee's BYE did not come")
"What becomes of a call that the server forgot."


def users(domain: str, numbers: Iterable[int], *sides: str) -> dict[str, dict[str, str]]:
    """Callers and callees, or who else, for so many schedules at a time."""
    names = [f"{side}-{n}" for n in numbers for side in sides or ("caller", "callee")]
    return {f"{name}@{domain}": {"ha1_md5": ha1(name, domain)} for name in names}


@dataclass(frozen=True, slots=True)
class Lives:
    """The processes of one server, each killed but the last."""

    logs: list[Lines]
    is_up: asyncio.Event = field(default_factory=asyncio.Event)
    "One of them runs, or is about to be killed."
    is_safe: asyncio.Event = field(default_factory=asyncio.Event)
    "The last one runs."
    down: list[tuple[float, float]] = field(default_factory=list)
    "From when to when there was none: loop time."


@dataclass
class Race:
    """One schedule being run."""

    world: World
    daemon: Daemon
    number: int
    schedule: Schedule
    lives: Lives
    restarts: bool = False
    "The server is killed meanwhile."
    devices: list[Device] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    endless: bool = False
    "The caller got tired of waiting."
    started_at: float = 0.0
    took: float = 0.0
    pushed_before: int = 0
    "Pushes, perhaps for users of the same names on a daemon that is gone."

    @property
    def hold(self) -> float:
        """Seconds."""
        return 2 * HOLD if self.restarts else HOLD

    @property
    def callee(self) -> str:
        """Who is called."""
        return f"callee-{self.number}"

    @property
    def patience(self) -> float:
        """Seconds in which every call must have ended."""
        return 2 * (self.hold + NO_ANSWER)

    @property
    def calls(self) -> str:
        """Who calls."""
        return f"caller-{self.number}"

    def user_of(self, device: int) -> str:
        """Whose device this one is."""
        return self.callee

    def token_for(self, plan: DevicePlan) -> str:
        """The push token of the next device."""
        return fcm_token() if plan.service == "fcm" else apns_token()

    async def prepare(self) -> None:
        """Register every device once; those that sleep are killed."""
        self.pushed_before = len(self.world.pushes.all)
        chance = random.Random(self.schedule.seed + 1)
        self.network = Network(chance, *self.schedule.network)
        perfect = Network(chance)
        for plan in self.schedule.devices:
            who = account(self.user_of(len(self.devices)), self.world.domain)
            token = self.token_for(plan)
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
                device.fall_silent()
            else:
                device.kill()
        who = account(self.calls, self.world.domain)
        transport = self.schedule.caller_transport
        self.caller = Caller(who, self.daemon.at(transport), transport, self.network)
        self.sender = Caller(who, self.daemon.at("UDP"), "UDP", self.network)
        for robot in self._robots:
            robot.server_is_up = self.lives.is_up

    async def run(self) -> None:
        """From the INVITE to the end of everything."""
        loop = asyncio.get_running_loop()
        self.started_at = loop.time()
        try:
            async with asyncio.TaskGroup() as group:
                for plan, device in zip(self.schedule.devices, self.devices, strict=True):
                    group.create_task(self._live(plan, device))
                if self.schedule.messages:
                    group.create_task(self._write())
                calling = group.create_task(self._call())
                await self.lives.is_safe.wait()
                # One that died with the server may never end, and need not.
                patience = self.patience if self._survives else self.hold + NO_ANSWER
                await asyncio.wait([calling], timeout=patience)
                self.endless = calling.cancel()
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

    async def _call(self) -> None:
        await self.caller.call(self.callee, self.schedule.caller)
        await self.caller.ended.wait()

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
        """Whoever still sleeps learns now that there was a call, and gets its messages.

        What was being delivered when the server died waits for the next REGISTER.
        """
        for device in self.devices:
            device.network = Network(random.Random(0))
            if not device.awake:
                await device.wake()
            elif self.restarts:
                await device.register()

    async def _settle(self) -> None:
        """Wait until nothing rings any more and all messages are there."""
        try:
            async with asyncio.timeout(20.0):
                while True:
                    if all(ring.settled for ring in self._rings) and self._all_delivered:
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            for ring in self._rings:
                if not ring.settled and not (self.restarts and ring.status >= 300):
                    state = "rings" if not ring.status else f"has said {ring.status}"
                    self.faults.append(f"a device still {state}, cancel={ring.cancel}")

    @property
    def _all_delivered(self) -> bool:
        came = {msg.body for device in self.devices for msg in device.messages}
        return all(text in came for text, _ in self.sender.message_answers)

    # -- what must be true --

    async def find_what_was_lost(self, store: LocationStore) -> None:
        """Compare what the server has stored with what it acknowledged before it died."""
        for device in self.devices:
            if not device.accepted:
                continue
            location = await store.lookup(device.account.aor, time.time())
            name = f"instance:{device.instance}"
            stored = [(b.call_id, b.cseq) for b in location.bindings if b.device == name]
            acceptable = device.registers[device.accepted - 1 :]
            if len(stored) != 1 or stored[0] not in acceptable:
                self.faults.append(f"a REGISTER that got its 200 was lost: {stored} {acceptable}")
            if location.push_record(name) is None:
                self.faults.append("a push record was lost")

    def _check(self) -> None:
        moved = any(
            plan.moves_at is not None or plan.dies_at is not None for plan in self.schedule.devices
        )
        for robot in self._robots:
            self.faults += [f for f in robot.faults if not (moved and "BYE" in f)]
        if any(ring.status == 480 and self._died_after(ring) for ring in self._rings):
            # Its 180 may be lost, and without one a 480 is what a dead contact looks like.
            self.faults = [f for f in self.faults if not f.endswith("ended with 480")]
        if not self._survives:
            self.faults = [f for f in self.faults if not any(each in f for each in DIED_WITH_IT)]
        self._check_finals()
        self._check_pushes()
        self._check_reasons()
        self._check_messages()

    def _died_after(self, ring: Ring) -> bool:
        """Whether the server did so after a device had got the INVITE."""
        return any(end > ring.invite.at for _, end in self.lives.down)

    @property
    def _survives(self) -> bool:
        """Whether the server must end the call, though it dies.

        A call that rings at phones which were awake dies with it (docs/faults.md). One that waits
        for a phone is stored before the caller hears anything.
        """
        heard_at = self.caller.heard_at
        over_at = max((r.acked_at for r in self._rings), default=0.0)
        over_at = max(over_at, self.caller.final_at or math.inf)
        died_at = [s for s, end in self.lives.down if s < over_at and end > heard_at]
        if not heard_at or not died_at or self._calls_pushed:
            return True
        return any(not device.was_awake(heard_at) for device in self._called_first)

    @property
    def _called_first(self) -> list[Device]:
        """Those that the call goes to at once."""
        return self.devices

    @property
    def _robots(self) -> list[Robot]:
        return [self.caller, self.sender, *self.devices]

    @property
    def _rings(self) -> list[Ring]:
        return [ring for device in self.devices for ring in device.rings]

    def _check_finals(self) -> None:
        if self.endless and self._survives:
            self.faults.append("the call had no end")
        finals = self.caller.finals
        failures = [msg for msg in finals if msg.status >= 300]
        answers = [msg for msg in finals if msg.status < 300]
        if not finals and not self._survives:
            return
        if len(failures) + bool(answers) != 1:
            self.faults.append(f"the caller's finals: {finals}")
            return
        answered = [r for r in self._rings if 200 <= r.status < 300]
        tags = {ring.tag for ring in answered}
        if not {msg.tag("to") for msg in answers} <= tags:
            self.faults.append("an answer from nobody")
        if failures and failures[0].status not in self._possible:
            self.faults.append(f"the caller got {failures[0].status}")
        if failures and failures[0].status == 487 and not self.caller.cancelled:
            self.faults.append("487 without a CANCEL")
        if self.caller.cancelled and not answers and failures[0].status != 487:
            others = {r.status for r in self._rings}
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
        return sum(end - start for start, end in self.lives.down) > NO_ANSWER / 2

    @property
    def _must_be_answered(self) -> bool:
        """A device came in time, and nobody gave up or declined."""
        plans = self.schedule.devices
        if self.caller.cancelled or any(plan.stance.final >= 600 for plan in plans):
            return False
        return any(
            plan.stance.final == 200
            and plan.dies_at is None
            and plan.moves_at is None
            and self._is_in_time(device)
            for plan, device in zip(plans, self.devices, strict=True)
        )

    def _is_in_time(self, device: Device) -> bool:
        """Whether a device registered within the hold, and could ring long enough then."""
        in_time = 0.0 < device.accepted_at < self.started_at + self.hold - 1.0
        since = max(device.accepted_at, self.started_at)
        return in_time and self._away_between(since, math.inf) < NO_ANSWER / 2

    def _away_between(self, since: float, until: float) -> float:
        """Seconds for which there was no server."""
        times = ((max(start, since), min(end, until)) for start, end in self.lives.down)
        return sum(end - start for start, end in times if end > start)

    @property
    def _calls_pushed(self) -> set[str]:
        """Push ids."""
        return {push.push_id for push in self._call_pushes()}

    def _call_pushes(self) -> list[Push]:
        """Those for our call."""
        ours = []
        for push in self.world.pushes.all[self.pushed_before :]:
            who = str(push.data.get("user_id", ""))
            mine = push.token in self.tokens or who in {d.account.aor for d in self.devices}
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
        declined = any(r.status >= 600 for r in self._rings)
        for device in self.devices:
            for ring in device.rings:
                reason = ring.cancel["reason"] if ring.cancel else ""
                if "elsewhere" in reason and "cause=200" in reason and not answered:
                    self.faults.append("told of an answer that nobody gave")
                if "cause=603" in reason and not declined:
                    self.faults.append("told of a refusal that nobody gave")
                gave_up = any(msg.status == 487 for msg in self.caller.finals)
                true = (REASON, DECLINED) if declined else (REASON,)  # whichever came first
                if self.schedule.caller.reason and ring.cancel and gave_up and reason not in true:
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
            again = len(numbers) > 1 and not self._died_twice_under(text)
            if again or len({call for call, _ in ids}) > 1:
                self.faults.append(f"MESSAGE {text} came as {ids}")
        if order != sorted(order):
            self.faults.append(f"MESSAGEs out of order: {order} {self.sender.message_answers}")

    def _died_twice_under(self, text: str) -> bool:
        """Then it may have been delivered, and be stored once more (docs/messages.md)."""
        sent_at, answered_at = self.sender.message_times.get(text, (0.0, math.inf))
        return sum(end > sent_at and start < answered_at for start, end in self.lives.down) > 1

    def end(self) -> None:
        """Close everything."""
        for robot in self._robots:
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
        down = [tuple(round(at - self.started_at, 2) for at in times) for times in self.lives.down]
        lines.append(f"invited at {sent}, server down {down}, faults {self.caller.faults}")
        for device, token in zip(self.devices, self.tokens, strict=True):
            rings = [
                (branch_of(r.invite), r.status, r.cancel and (r.cancel["reason"] or "-"), r.lost)
                for r in device.rings
            ]
            lines.append(
                f"device {device.transport} {token[:12]} registers {device.registers} "
                f"accepted {device.accepted} {rings} faults {device.faults}"
            )
        ours = (self.caller.call_id, *(device.account.aor for device in self.devices))
        for log in self.lives.logs:
            lines += ["server", *(line for line in log.all if any(name in line for name in ours))]
        return "\n  ".join(lines)
