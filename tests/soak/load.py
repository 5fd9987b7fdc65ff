"""Mixed load: what phones and callers do all day, some of it badly."""

from __future__ import annotations

import asyncio
import random
import re
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from sipush.demo.http_server import Act
from sipush.demo.push_service import Misbehaviour, PushService, ReceivedPush
from tests.e2e.daemon import Daemon, account, in_time
from tests.e2e.pushes import Push
from tests.e2e.test_messages import message, take
from tests.e2e.wire import InCall, OutCall, Phone
from tests.e2e.world import apns_token, x_push

DOMAIN = "soak.example.com"
HOLD = 8.0
"Seconds that calls are held."
THINKING = 0.05
"Seconds between two things that one worker does, on average."


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing that took a while."""

    at: float
    what: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that did not end as it should."""

    at: float
    scenario: str
    what: str
    disturbed: bool
    "A fault was on meanwhile."


@dataclass
class Diary:
    """What happened, by ``time.monotonic()`` since the start."""

    started_at: float = field(default_factory=time.monotonic)
    done: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    faults: list[tuple[float, float, str]] = field(default_factory=list)
    "From, until (0.0: still) and what."

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started_at

    def took(self, what: str, seconds: float) -> None:
        """One more measurement."""
        self.samples.append(Sample(self.now, what, seconds))

    def was_disturbed(self, since: float) -> bool:
        """Whether a fault was on at any time since then, or shortly before."""
        return any(not end or end + RECOVERY > since for _, end, _ in self.faults)


RECOVERY = 3.0
"Seconds after a fault within which all must be well again."


class PushBook:
    """Every push that came, and who waits for one."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, asyncio.Future[Push]] = {}
        self.counts: Counter[tuple[str, str, bool]] = Counter()

    def received(self, received: ReceivedPush) -> None:
        """Called by the service, in its own thread."""
        self._loop.call_soon_threadsafe(self._add, Push(received))

    def _add(self, push: Push) -> None:
        self.counts[push.push_id, push.token, push.cancels] += 1
        waiting = self._waiting.pop(push.token, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(push)

    def next(self, token: str) -> asyncio.Future[Push]:
        """The next push to this token."""
        self._waiting[token] = self._loop.create_future()
        return self._waiting[token]

    @property
    def second_pushes(self) -> int:
        """Pushes that a device got although it had been pushed for that call."""
        return sum(count - 1 for count in self.counts.values())


@dataclass
class Worker:
    """A caller and a callee that nobody else plays with."""

    number: int
    daemon: Daemon
    service: PushService
    pushes: PushBook
    diary: Diary
    random: random.Random
    token: str = field(default_factory=apns_token)
    phones: list[Phone] = field(default_factory=list)

    @property
    def callee(self) -> str:
        """Its user."""
        return f"callee-{self.number}"

    async def run(self, until: float) -> None:
        """One scenario after the other."""
        scenarios: tuple[tuple[int, Callable[[], Awaitable[None]]], ...] = (
            (4, self.registers_and_refreshes),
            (4, self.calls_an_awake_phone),
            (6, self.wakes_a_phone),
            (2, self.gives_up),
            (2, self.sends_a_message),
            (1, self.sends_a_message_to_a_sleeper),
            (2, self.flaps),
            (1, self.has_a_dead_token),
            (1, self.has_a_silent_push_service),
        )
        weights, choices = zip(*scenarios, strict=True)
        while self.diary.now < until:
            (scenario,) = self.random.choices(choices, weights)
            await self._play(scenario)
            await asyncio.sleep(self.random.expovariate(1 / THINKING))

    async def _play(self, scenario: Callable[[], Awaitable[None]]) -> None:
        since, name = self.diary.now, scenario.__name__
        self.diary.done[name] += 1
        try:
            await scenario()
        except (AssertionError, OSError, TimeoutError) as error:
            self.failed(name, error, self.diary.was_disturbed(since))
        finally:
            self.kill_phones()

    def failed(self, scenario: str, error: Exception, disturbed: bool) -> None:
        """Write it down."""
        what = re.sub(r"[0-9a-f]{8,}", "…", str(error).partition("\n")[0])[:200]
        what = what or type(error).__name__
        self.diary.troubles.append(Trouble(self.diary.now, scenario, what, disturbed))

    def kill_phones(self) -> None:
        """Some say goodbye to the kernel, some do not."""
        for phone in self.phones:
            ended = phone.wire.closed.is_set() or phone.wire.transport == "UDP"
            phone.kill(reset=not ended and self.random.random() < 0.5)
        self.phones.clear()

    async def phone(self, user: str, transport: str = "") -> Phone:
        """A phone that is killed when the scenario is over."""
        transport = transport or self.random.choice(("UDP", "TCP"))
        phone = await Phone.open(account(user, DOMAIN), self.daemon.at(transport), transport)
        self.phones.append(phone)
        return phone

    async def registered(self, transport: str = "") -> tuple[Phone, float]:
        """The callee's app has started; and when its REGISTER left."""
        phone = await self.phone(self.callee, transport)
        result = await phone.register(x_push(self.token))
        self.diary.took("REGISTER answered", time.perf_counter() - result.sent_at)
        assert result.response.status == 200, result.response.start
        return phone, result.sent_at

    async def asleep(self) -> None:
        """The callee's app has registered and was killed."""
        phone, _ = await self.registered("TCP")
        phone.kill()

    async def called(self, transport: str = "") -> OutCall:
        """A call to the callee is under way."""
        caller = await self.phone(f"caller-{self.number}", transport)
        return await caller.call(self.callee)

    async def pushed_call(self, transport: str = "") -> OutCall:
        """A call to the callee, whose push has come."""
        pushed = self.pushes.next(self.token)
        call = await self.called(transport)
        await in_time(pushed)
        self.diary.took("INVITE to push", time.perf_counter() - call.sent_at)
        return call

    async def completed(self, call: OutCall, phone: Phone, since: float, what: str) -> None:
        """The call comes, is answered and ends."""
        answer, incoming = await in_time(call.final(), self._answers(call, phone, since, what))
        assert answer.status == 200, answer.start
        await in_time(call.hang_up(answer), incoming.hung_up())

    async def _answers(self, call: OutCall, phone: Phone, since: float, what: str) -> InCall:
        incoming = await self.comes(call, phone)
        self.diary.took(what, time.perf_counter() - since)
        incoming.reply(180)
        await incoming.answer()
        return incoming

    async def comes(self, call: OutCall, phone: Phone) -> InCall:
        """This call, whatever else the phone sees begin and end that it missed while asleep."""
        return InCall(phone, await phone.wire.expect("INVITE", call_id=call.call_id))

    async def sees_it_end(self, call: OutCall) -> None:
        """The app starts too late for the call."""
        phone, _ = await self.registered()
        incoming = await self.comes(call, phone)
        incoming.reply(180)
        await incoming.cancelled()

    # -- scenarios --

    async def registers_and_refreshes(self) -> None:
        """An app in the foreground."""
        phone, _ = await self.registered()
        for expires in (600, 600, 0):
            result = await phone.register(x_push(self.token), expires=expires)
            self.diary.took("REGISTER answered", time.perf_counter() - result.sent_at)
            assert result.response.status == 200, result.response.start

    async def calls_an_awake_phone(self) -> None:
        """No push."""
        phone, _ = await self.registered()
        call = await self.called()
        await self.completed(call, phone, call.sent_at, "INVITE to INVITE")

    async def wakes_a_phone(self) -> None:
        """The point of it all."""
        await self.asleep()
        call = await self.pushed_call()
        phone, sent_at = await self.registered()
        await self.completed(call, phone, sent_at, "REGISTER to INVITE")

    async def gives_up(self) -> None:
        """Before the app has started, which then sees the call begin and end."""
        await self.asleep()
        call = await self.pushed_call()
        cancelled, final = await in_time(call.cancel(), call.final())
        assert (cancelled.status, final.status) == (200, 487), final.start
        await self.sees_it_end(call)

    async def sends_a_message(self) -> None:
        """To an awake phone."""
        phone, _ = await self.registered()
        await self._message(phone, secrets.token_hex(8))

    async def _message(self, phone: Phone, text: str) -> None:
        sender = await self.phone(f"caller-{self.number}")
        sent = message(sender, self.callee, text).sent()
        answer, _ = await in_time(sent, self._takes(phone, text))
        assert answer.status in (200, 202), answer.start  # 202: behind one that had waited

    async def _takes(self, phone: Phone, text: str) -> None:
        """This message, and before it those that had waited."""
        while (await take(phone)).body != text:
            pass

    async def sends_a_message_to_a_sleeper(self) -> None:
        """It waits for the app."""
        await self.asleep()
        sender, text = await self.phone(f"caller-{self.number}"), secrets.token_hex(8)
        answer = await message(sender, self.callee, text).sent()
        assert answer.status == 202, answer.start
        phone, _ = await self.registered()
        await in_time(self._takes(phone, text))

    async def flaps(self) -> None:
        """A phone whose connection comes and goes; the last one is called."""
        for _ in range(5):
            phone = await self.phone(self.callee, "TCP")
            if self.random.random() < 0.5:
                phone.kill(reset=True)
            else:
                await phone.register(x_push(self.token))
                phone.kill()
        phone, _ = await self.registered("TCP")
        call = await self.called()
        await self.completed(call, phone, call.sent_at, "INVITE to INVITE")

    async def has_a_dead_token(self) -> None:
        """The app was deleted: 480 at once, not when the hold is over."""
        await self.asleep()
        dead = Misbehaviour(410, "Unregistered", timestamp=time.time() + 1)
        await self._fails(dead)

    async def has_a_silent_push_service(self) -> None:
        """480 when the hold is over."""
        await self.asleep()
        await self.sees_it_end(await self._fails(Misbehaviour(act=Act.SILENCE)))

    async def _fails(self, how: Misbehaviour) -> OutCall:
        self.service.misbehave(self.token, how)
        try:
            call = await self.called()
            final = await call.final(patience=HOLD + 10)
        finally:
            self.service.misbehave(self.token, Misbehaviour())
        assert final.status == 480, final.start
        return call
