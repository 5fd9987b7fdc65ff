"""The stored messages of one user, on their way to its devices (RFC 3428).

Performs what ``core.messages`` decides with real time, flows and the store.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, assert_never

import structlog

from sipush.core.bindings import Aor, full_device
from sipush.core.messages import (
    Abandon,
    Delivery,
    DeliveryAction,
    DeliveryState,
    Load,
    Remove,
    Report,
    Retransmit,
    Send,
)
from sipush.core.stored_message import StoredMessage, to_deliver
from sipush.core.target_set import Target
from sipush.errors import LocationError
from sipush.log_lines import fingerprint
from sipush.sip.message import Response
from sipush.sip.status import Status
from sipush.sip.transaction import is_reliable

if TYPE_CHECKING:
    from sipush.server.messages import Answered, Leg, Messages

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Delivering:
    """The stored messages of one user on their way to its devices."""

    messages: Messages
    aor: Aor
    machine: Delivery
    leg: Leg | None = None
    _actions: deque[DeliveryAction] = field(default_factory=deque)
    _storing: bool = False
    "The store is at work: everything else waits."
    _probe: asyncio.TimerHandle | None = None

    def perform(self, actions: list[DeliveryAction]) -> None:
        """Perform in order: the store has removed a message before the next is sent."""
        self._actions.extend(actions)
        while self._actions and not self._storing:
            self._perform_one(self._actions.popleft())
        if self.machine.state is DeliveryState.IDLE and not self._storing:
            self._finish()

    def _finish(self) -> None:
        del self.messages.deliveries[self.aor]
        if not self.machine.remembered:
            self.messages.remembered.pop(self.aor, None)

    def _perform_one(self, action: DeliveryAction) -> None:
        match action:
            case Load():
                self._store(self._load())
            case Send(message, target):
                if action is self.machine.sent:  # else a device has taken it meanwhile
                    self._send(message, target)
            case Retransmit():
                self._retransmit()
            case Abandon():
                self._drop_leg()
            case Remove(message):
                self._store(self._remove(message))
            case Report(message, device, status):
                self.messages.refused += 1
                log.warning(
                    "message_refused",
                    aor=self.aor,
                    push_id=message.id,
                    device=fingerprint(full_device(self.aor, device)),
                    status=status,
                )
            case _:
                assert_never(action)

    def _store(self, work: Coroutine[Any, Any, list[DeliveryAction]]) -> None:
        self._storing = True
        self.messages.proxy.tasks.spawn(self._then_go_on(work))

    async def _then_go_on(self, work: Coroutine[Any, Any, list[DeliveryAction]]) -> None:
        actions = await work
        self._storing = False
        self.perform(actions)

    async def _load(self) -> list[DeliveryAction]:
        try:
            found = await self.messages.proxy.store.messages(self.aor, time.time())
        except LocationError as error:
            log.warning("messages_not_delivered", aor=self.aor, reason=str(error))
            return self.machine.store_failed()
        is_done = self.messages.is_done
        return self.machine.loaded(found, {m.key for m in found if is_done(m.aor, m.key)})

    def _send(self, message: StoredMessage, target: Target) -> None:
        leg: Leg

        def answered(status: int, response: Response | None) -> None:
            if self.leg is leg:
                if response is None and status == Status.REQUEST_TIMEOUT:
                    self.messages.timed_out(leg, message)
                self._answered(message, status)

        leg = self.leg = self._go_on(message, target, answered)
        self._arm_probe()

    def _go_on(self, message: StoredMessage, target: Target, answered: Answered) -> Leg:
        """Send it; what is out the same way already must not look like another message there."""
        before, branch = self.messages.leg_of(message, target), ""
        if before is not None:
            if before.handle is None or is_reliable(before.handle.flow.transport):
                before.answered = answered  # it is there, or will be
                return before
            before.abandon()
            branch = before.branch
        request = to_deliver(message, target)
        branch = branch or self.messages.proxy.new_branch(request)
        return self.messages.send(request, target, answered, branch)

    def _answered(self, message: StoredMessage, status: int) -> None:
        self._disarm_probe()
        self.leg = None
        if status < 300:
            log.info("message_delivered", aor=self.aor, push_id=message.id)
        else:
            log.info("message_not_delivered", aor=self.aor, push_id=message.id, status=status)
        self.perform(self.machine.answered(status))

    def _retransmit(self) -> None:
        if self.leg is not None and self.leg.handle is not None:
            self.leg.handle.retransmit()
            self._arm_probe()

    def _drop_leg(self) -> None:
        self._disarm_probe()
        if self.leg is not None:
            self.leg.abandon()
            self.leg = None

    async def _remove(self, message: StoredMessage) -> list[DeliveryAction]:
        try:
            await self.messages.remove(message)
        except LocationError as error:
            log.warning("message_not_removed", aor=self.aor, reason=str(error))
            self.machine.not_removed(message)
        return []

    def _arm_probe(self) -> None:
        self._disarm_probe()
        probe = self.messages.proxy.policy.probe
        self._probe = asyncio.get_running_loop().call_later(probe, self._probe_expired)

    def _disarm_probe(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    def _probe_expired(self) -> None:
        self._probe = None
        self.perform(self.machine.probe_expired())
