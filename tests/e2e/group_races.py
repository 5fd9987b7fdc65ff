"""Races around one call to a ring group: its members, its fallback, and what must be true then."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tests.e2e.daemon import PBX, account
from tests.e2e.races import DECLINED, NO_ANSWER, Race, users
from tests.e2e.robots import Device, Network, Ring, Robot, Stance
from tests.e2e.schedules import DevicePlan, Group, GroupSchedule
from tests.e2e.wire import Msg

BOX = "box"
"The user part of the group's fallback at another server."
OWN_BOX = "own-box"
"That of a member, where a call of the group may end only if it falls back to him."


@dataclass
class GroupRace(Race):
    """One schedule being run. The callee is the group; ``box_port`` is its voicemail's."""

    box_port: int = 0

    @property
    def group(self) -> Group:
        """What is called."""
        assert isinstance(self.schedule, GroupSchedule)
        return self.schedule.group

    @property
    def patience(self) -> float:
        """Seconds in which every call must have ended."""
        turns = len(self.group.ringing()) * (self.group.time or self.hold + NO_ANSWER)
        return turns + 2 * (self.hold + NO_ANSWER)

    @property
    def calls(self) -> str:
        """Who calls."""
        if self.group.caller_is_member:
            return member(self.number, max(self.group.members))
        return super().calls

    def user_of(self, device: int) -> str:
        """Whose device this one is."""
        return member(self.number, self.group.members[device])

    def token_for(self, plan: DevicePlan) -> str:
        """The push token of the next device."""
        if self.group.same_phone and len(self.devices) == len(self.schedule.devices) - 1:
            return self.tokens[0]
        return super().token_for(plan)

    async def prepare(self) -> None:
        """And there is a voicemail."""
        who, perfect = account(BOX, self.world.domain), Network(random.Random(0))
        self.box = Device(who, self.daemon.at("UDP"), "UDP", perfect, "", "", Stance())
        self.box.ip, self.box.port = PBX, self.box_port
        await self.box.open()
        await super().prepare()
        for device, whose in zip(self.devices, self.group.members, strict=True):
            device.is_called_again = self.group.fallback == "member" and whose == 0

    @property
    def _called_first(self) -> list[Device]:
        ringing = self.group.ringing()
        first = ringing[:1] if self.group.time else ringing
        return [d for d, m in zip(self.devices, self.group.members, strict=True) if m in first]

    @property
    def _robots(self) -> list[Robot]:
        return [*super()._robots, self.box]

    @property
    def _rings(self) -> list[Ring]:
        return [*super()._rings, *self.box.rings]

    # -- what must be true --

    def _check(self) -> None:
        super()._check()
        self._check_fallback()
        for device, whose in zip(self.devices, self.group.members, strict=True):
            if whose not in self.group.ringing() and device.rings:
                self.faults.append("the member who calls was called back")

    def _check_fallback(self) -> None:
        rings = self.box.rings
        if len({ring.invite["via"] for ring in rings}) > 1:
            self.faults.append("the voicemail got the call twice")
        for ring in rings:
            came = ring.invite
            box = OWN_BOX if self.group.fallback == "member" else BOX
            diverted = came.all("diversion")[-1:]
            if f"sip:{box}@" not in came.uri or f"<sip:{self.callee}@" not in "".join(diverted):
                self.faults.append(f"the group did not fall through as one: {came.text}")
            self.faults += [
                f"a member rings beside the voicemail: {other.invite}"
                for device in self.devices
                for other in device.rings
                if other.invite.at > came.at
                and not (other.cancel or other.lost or self._was_too_late(other))
            ]
        finals = self.caller.finals
        failed = finals and finals[0].status >= 300 and not self.caller.cancelled
        if rings and failed and not self._box_was_cut_off:
            self.faults.append("the voicemail was called and the caller not answered")

    def _was_too_late(self, ring: Ring) -> bool:
        """Whether a phone refused before it could hear the end of a call, as the server died."""
        return ring.status >= 300 and self._died_after(ring)

    @property
    def _box_was_cut_off(self) -> bool:
        """Whether there was no server for most of the time for which a voicemail may ring."""
        away = (self._away_between(r.invite.at, self.caller.final_at) for r in self.box.rings)
        return any(each >= NO_ANSWER / 2 for each in away)

    @property
    def _must_be_answered(self) -> bool:
        """There is a voicemail, or a device came in time for whose member no other spoke."""
        if self.caller.cancelled:
            return False
        if self.group.fallback:
            return not self._box_was_cut_off
        return any(
            plan.stance.final == 200
            and whose in self.group.ringing()
            and not self._declines(whose)
            and self._is_in_time(device)
            for plan, device, whose in self._everybody
        )

    @property
    def _everybody(self) -> list[tuple[DevicePlan, Device, int]]:
        members = self.group.members
        return list(zip(self.schedule.devices, self.devices, members, strict=True))

    def _declines(self, whose: int) -> bool:
        """Whether one of this member's devices speaks for all of them."""
        return any(p.stance.final >= 600 and each == whose for p, _, each in self._everybody)

    def _is_in_time(self, device: Device) -> bool:
        if self.group.time is None:
            return super()._is_in_time(device)
        # No turn ends before the first one could, and a server that is away may be so all the time.
        needs = device.stance.ring_after + device.stance.answer_after + 0.5
        turn_ends = self.started_at + self.group.time
        died = any(end > self.started_at for _, end in self.lives.down)
        return 0.0 < device.accepted_at < turn_ends - needs and not died

    def _check_reasons(self) -> None:
        """Whoever loses to another hears so; whose time is over hears no reason."""
        answered = any(msg.status < 300 for msg in self.caller.finals)
        for _, device, whose in self._everybody:
            for ring in device.rings:
                if ring.cancel is not None:
                    self._check_reason(ring.invite, ring.cancel, answered, self._declines(whose))

    def _check_reason(self, invite: Msg, cancel: Msg, answered: bool, declined: bool) -> None:
        reason = cancel["reason"]
        rang_for_long = cancel.at - invite.at > NO_ANSWER - 0.5
        allowed = {""} if self.group.time or rang_for_long or not answered else set()
        if answered:
            allowed.add('SIP;cause=200;text="Call completed elsewhere"')
        if declined:
            allowed.add(DECLINED)
        if self.caller.cancelled:
            allowed.add(self.schedule.caller.reason)
        if reason not in allowed:
            self.faults.append(f"a Reason that is not true: {reason!r}, allowed {allowed}")


def member(number: int, which: int) -> str:
    """The user who is this member of the group of a race."""
    return f"member-{number}-{which}"


def members(number: int, group: Group, domain: str, port: int) -> dict[str, dict[str, str]]:
    """The users who are members; each has a voicemail of his own."""
    own = {"fallback": f"sip:{OWN_BOX}@{PBX}:{port}"}
    people = users(domain, sorted(set(group.members)), f"member-{number}")
    return {aor: user | own for aor, user in people.items()}


def group_settings(number: int, group: Group, domain: str, port: int) -> dict[str, Any]:
    """The group in the configuration."""
    fallback = {
        "": {},
        "server": {"fallback": f"sip:{BOX}@{PBX}:{port}"},
        "member": {"fallback": f"sip:{member(number, 0)}@{domain}"},
    }[group.fallback]
    turns = {"strategy": "in-turn", "time": group.time} if group.time else {}
    return {"members": list(members(number, group, domain, port)), **turns, **fallback}
