"""Races around emergency calls, and the callbacks that may have to wake the phone (D4)."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass, field

from tests.e2e.daemon import PBX, Daemon, account
from tests.e2e.races import Race
from tests.e2e.robots import Caller, CallerPlan, Device, Network, Ring, RobotWire, Stance, branch_of
from tests.e2e.schedules import REASON, EmergencySchedule
from tests.e2e.wire import Account, new_branch

CROWD = "127.0.0.71"
"Where strangers send more than anybody hears, and some of them call for help."
NOISE = 20
"Requests of theirs each 50 ms."


def centre_at(port: int, daemon: Daemon) -> Device:
    """Those who help; ``open`` it."""
    perfect, who = Network(random.Random(0)), Account("psap", "", PBX)
    centre = Device(who, daemon.at("UDP"), "UDP", perfect, "", "", Stance(200, 0.03, 0.2))
    centre.ip, centre.port = PBX, port
    return centre


async def make_noise(daemon: Daemon) -> None:
    """A crowd of strangers, until it is cancelled."""
    wire = await RobotWire.open("UDP", daemon.at("UDP"), CROWD)
    wire.arrived = lambda msg: None  # type: ignore[method-assign]
    uri = f"sip:{wire.server[0]}:{wire.server[1]}"
    for number in range(1_000_000):
        branch = new_branch()
        wire.send(
            f"OPTIONS {uri} SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP {wire.host_port};branch={branch};rport\r\nMax-Forwards: 70\r\n"
            f"From: <sip:nobody@{CROWD}>;tag={number}\r\nTo: <{uri}>\r\nCall-ID: {branch}\r\n"
            f"CSeq: {number} OPTIONS\r\nContent-Length: 0\r\n\r\n"
        )
        if number % NOISE == 0:
            await asyncio.sleep(0.05)


@dataclass
class EmergencyRace(Race):
    """A call for help, and at the same time a callback, which is raced like any other call."""

    centre: Device = field(kw_only=True)

    async def prepare(self) -> None:
        """Register the phone that calls for help and is called back."""
        await super().prepare()
        assert isinstance(self.schedule, EmergencySchedule)
        self.emergency = self.schedule
        self.helps: list[Caller] = []
        "The caller; another one when the server died under the call, and he calls again."
        server, perfect = self.daemon.at("UDP"), Network(random.Random(0))
        self.caller = Caller(self.centre.account, server, "UDP", perfect)
        self.caller.ip = PBX
        self.caller.server_is_up = self.lives.is_up

    async def run(self) -> None:
        """Both calls, from the first INVITE to the end of everything."""
        helped = asyncio.create_task(self._call_for_help())
        await super().run()
        await helped
        self._check_help()

    async def _call(self) -> None:
        """The callback."""
        callee = f"sip:{self.callee}@{self.world.domain}"
        await self.caller.call_uri(callee, self.schedule.caller)
        await self.caller.ended.wait()

    async def _call_for_help(self) -> None:
        await asyncio.sleep(self.emergency.calls_at)
        first = asyncio.create_task(self._ask_for_help(self.emergency.plan))
        await self.lives.is_safe.wait()
        if self._was_cut_off:
            first.cancel()
            await self._ask_for_help(CallerPlan())
        else:
            await asyncio.wait([first], timeout=self.patience)
            if first.cancel():
                self.faults.append("the call for help had no end")

    async def _ask_for_help(self, plan: CallerPlan) -> None:
        transport = self.schedule.caller_transport
        who = account(self.callee, self.world.domain)
        caller = Caller(who, self.daemon.at(transport), transport, self.network)
        caller.ip = CROWD if self.emergency.stranger else "127.0.0.1"
        caller.server_is_up = self.lives.is_up
        self.helps.append(caller)
        await caller.call_uri(self.emergency.uri.format(domain=self.world.domain), plan)
        await caller.ended.wait()

    @property
    def _was_cut_off(self) -> bool:
        """Whether the server died under the first call: those that ring die with it."""
        caller = self.helps[0]
        return (
            bool(caller.heard_at)
            and not caller.ended.is_set()
            and any(end > caller.heard_at for _, end in self.lives.down)
        )

    def end(self) -> None:
        """Close everything."""
        for caller in self.helps:
            caller.end()
        super().end()

    # -- what must be true --

    def _check_help(self) -> None:
        known = "" if self.emergency.stranger else f"<sip:{self.callee}@{self.world.domain}>"
        for caller in self.helps:
            self.faults += caller.faults
            if caller.challenged:
                self.faults.append("a call for help was challenged")
            rings = [r for r in self.centre.rings if r.invite["call-id"] == caller.call_id]
            # Of one that was cut off, the 100 may be all that the server had sent.
            must_ring = caller is self.helps[-1] or max(caller.provisionals, default=0) > 100
            if must_ring and not (rings or caller.cancelled):
                self.faults.append("a call for help did not reach the centre")
            if len({branch_of(ring.invite) for ring in rings}) > 1:
                self.faults.append("a call for help rang twice")
            if any(ring.invite["p-asserted-identity"] != known for ring in rings):
                self.faults.append("the centre was told of another caller")
            if caller is self.helps[-1]:
                self._check_end(caller, rings)
            elif len(caller.finals) > 1:
                self.faults.append(f"finals of a call that was cut off: {caller.finals}")

    def _check_end(self, caller: Caller, rings: list[Ring]) -> None:
        finals = [msg.status for msg in caller.finals]
        if finals != [200] and not (caller.cancelled and finals == [487]):
            self.faults.append(f"the call for help got {caller.finals}")
        for ring in rings:
            # What was in flight when the server died is lost: these calls are not stored.
            acked = ring.acked_at < math.inf or self._died_after(ring)
            if ring.status == 200 and not acked:
                self.faults.append("the centre's answer was not acknowledged")
            if ring.cancel is not None and ring.cancel["reason"] != REASON:
                self.faults.append(f"a Reason that is not true: {ring.cancel['reason']!r}")
