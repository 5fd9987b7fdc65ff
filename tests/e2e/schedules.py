"""Schedules of races around one call, made from a seed: always the same ones."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from tests.e2e.robots import CallerPlan, Stance

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


@dataclass(frozen=True, slots=True)
class Group:
    """A ring group that is called."""

    members: tuple[int, ...]
    "Whose each device is: the number of a member."
    time: float | None
    "Seconds of each member's turn; None: all at once."
    fallback: str
    "``server``, ``member`` (the first one, directly), or empty."
    caller_is_member: bool
    "The last member calls."
    same_phone: bool
    "The last device is an account on the phone of the first."

    def ringing(self) -> list[int]:
        """The members who are called, in order."""
        everybody = sorted(set(self.members))
        return everybody[:-1] if self.caller_is_member else everybody


@dataclass(frozen=True, slots=True)
class GroupSchedule(Schedule):
    """One call to a ring group."""

    group: Group

    @classmethod
    def of(cls, seed: int) -> GroupSchedule:
        """The schedule of a seed: always the same."""
        chance = random.Random(f"group {seed}")
        count = chance.choice((2, 2, 3))
        extra = [chance.randrange(count)] if chance.random() < 0.3 else []
        same_phone = not extra and chance.random() < 0.3
        fallback = chance.choice(("", "server", "server", "member"))
        group = Group(
            (*range(count), *extra),
            chance.choice((None, chance.uniform(1.5, 2.5))),
            fallback,
            fallback != "member" and not same_phone and chance.random() < 0.15,
            same_phone,
        )
        ends = [(group.time or 1.0) * turn for turn in range(count + 1)]
        devices: list[DevicePlan] = []
        for member in group.members:
            services = ["apns", "fcm", "webhook"]
            if any(group.members[n] == member for n in range(len(devices))):
                services.remove("webhook")
            meets = chance.choice(ends) + chance.uniform(-0.003, 0.008)
            devices.append(
                DevicePlan(
                    service=chance.choice(services),
                    transport=chance.choice(("UDP", "TCP")),
                    deaf=chance.random() < 0.4,
                    awake=chance.random() < 0.2,
                    wakes_at=chance.choice((meets, meets, chance.uniform(0.0, 3.0), None)),
                    moves_at=None,
                    dies_at=None,
                    register_style=chance.choice(("plain", "doubled", "forked", "re-ordered")),
                    stance=Stance(
                        chance.choice((200, 200, 200, 486, 603, 480, 0)),
                        chance.uniform(0, 0.1),
                        chance.uniform(0, 0.6),
                    ),
                )
            )
        if same_phone:
            first = devices[0]
            devices[-1] = replace(first, stance=devices[-1].stance)
        bad = chance.choice((0.0, chance.uniform(0, 0.06)))
        return cls(
            seed,
            "group",
            chance.choice(("UDP", "TCP")),
            CallerPlan(
                chance.choice((None, None, None, chance.choice(ends) + chance.uniform(0, 0.1))),
                chance.choice(("", REASON)),
                chance.uniform(0, 0.3),
            ),
            tuple(devices),
            (),
            (bad, bad, 2 * bad),
            group,
        )


@dataclass(frozen=True, slots=True)
class EmergencySchedule(Schedule):
    """One emergency call, and the callback: a call like any other, but of a peer."""

    calls_at: float
    "Seconds from the beginning."
    uri: str
    "What is called; ``{domain}`` stands for the domain."
    stranger: bool
    "It comes from where strangers send more than anybody hears."
    plan: CallerPlan
    "Of the emergency call."

    @classmethod
    def of(cls, seed: int) -> EmergencySchedule:
        """The schedule of a seed: always the same."""
        chance = random.Random(f"emergency {seed}")
        bad = chance.choice((0.0, chance.uniform(0, 0.06)))
        phone = DevicePlan(
            service=chance.choice(("apns", "fcm", "webhook")),
            transport=chance.choice(("UDP", "TCP")),
            deaf=chance.random() < 0.4,
            awake=chance.random() < 0.2,
            wakes_at=chance.uniform(0.0, 1.5),
            moves_at=None,
            dies_at=None,
            register_style=chance.choice(("plain", "doubled", "forked", "re-ordered")),
            stance=Stance(200, chance.uniform(0, 0.1), chance.uniform(0, 0.4)),
        )
        return cls(
            seed,
            "emergency",
            chance.choice(("UDP", "TCP")),
            CallerPlan(None, "", chance.uniform(0, 0.3)),
            (phone,),
            (),
            (bad, bad, 2 * bad),
            calls_at=chance.uniform(0.0, 2.0),
            uri=chance.choice(("sip:112@{domain}", "sip:9-1-1@{domain}", "urn:service:sos")),
            stranger=chance.random() < 0.5,
            plan=CallerPlan(
                chance.choice((None, None, chance.uniform(0.0, 0.4))),
                REASON,
                chance.uniform(0, 0.3),
            ),
        )
