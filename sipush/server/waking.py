"""The devices that a forwarded request wakes: their pushes, and what became of them."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from sipush.core.bindings import PushRecord, full_device
from sipush.core.branch import Branch
from sipush.core.held_call import HeldCall
from sipush.core.push_request import PushKind, PushRequest, PushResult
from sipush.core.routing import caller, has_video
from sipush.core.target_set import Target
from sipush.core.wake_up import WakeUp, WakeUpOutcome, freeze, outcome, seconds, thaw
from sipush.log_lines import fingerprint
from sipush.metrics import WAKE_SECONDS, WAKE_UPS
from sipush.push.provider import Leave
from sipush.server.dead_tokens import remove_dead_token

if TYPE_CHECKING:
    from sipush.server.forwarding import Forwarding

STORE_PAUSE = 1.0
"Seconds before what could not be stored, though it must be, is tried again."


def kind(forwarding: Forwarding) -> PushKind:
    """What the devices are pushed for."""
    return PushKind.CALL if forwarding.dialog_side is None else PushKind.DIALOG


async def push(forwarding: Forwarding, branch: int, deadline: float) -> PushResult:
    """Wake the device of a branch, unless that is no longer wanted."""
    context = forwarding.context
    if not context.push_wanted(branch):
        return PushResult.WITHDRAWN
    target = context.branches[branch].target
    assert target.push is not None
    wake_up = forwarding.wake_ups[target.device] = WakeUp(target.push, _now())
    request = _request(forwarding, kind(forwarding), target.push, deadline)
    begin = partial(_begin, forwarding, branch)
    while True:
        wake_up.push = await forwarding.proxy.dispatcher.send(request, begin)
        if wake_up.push.result is not PushResult.WITHDRAWN or not context.push_wanted(branch):
            break
        await asyncio.sleep(STORE_PAUSE)
    wake_up.push_ended_at = _now()
    if forwarding.ladder is not None:
        result, reason, status = wake_up.push.result, wake_up.push.reason, wake_up.push.status
        _show(
            forwarding, "push_finished", target, result=result.value, reason=reason, status=status
        )
    await forwarding.proxy.turns.wait()
    return wake_up.push.result


async def _begin(forwarding: Forwarding, branch: int, leave: Leave) -> bool:
    """Whether the push was still wanted when it could leave.

    A crash in between costs the push: nobody could tell whether it was sent.
    """
    context = forwarding.context
    which = context.branches[branch]
    left = False

    def leave_if_wanted() -> None:
        nonlocal left
        left = context.push_wanted(branch)
        if left:
            leave()
            if forwarding.ladder is not None:
                _show(forwarding, "push_sent", which.target)

    if which.push_begun:
        leave_if_wanted()
    elif context.push_wanted(branch):
        which.push_begun = True
        # One that has not begun would be sent again after a crash.
        which.push_begun = await forwarding.proxy.held_calls.begin(forwarding, leave_if_wanted)
    return left


def _show(forwarding: Forwarding, event: str, target: Target, **facts: object) -> None:
    """One step of a push; the dispatcher has logged it."""
    assert target.push is not None
    service = target.push.platform.value
    forwarding.step(event, device=fingerprint(target.device), service=service, **facts)


async def cancel(forwarding: Forwarding, branch: int) -> None:
    """Tell a device that the call is over, if it can be told."""
    if kind(forwarding) is not PushKind.CALL:
        return
    which = forwarding.context.branches[branch]
    record, deadline = which.target.push, which.tombstone_at
    if record is not None and record.hears_of_the_end and deadline is not None:
        request = _request(forwarding, PushKind.CANCEL, record, deadline)
        begin = partial(_begin_in_vain, forwarding, branch)
        await forwarding.proxy.dispatcher.send(request, begin)


async def _begin_in_vain(forwarding: Forwarding, branch: int, leave: Leave) -> bool:
    """Whether the device may still wake for the call that is over."""
    awaited = forwarding.context.branches[branch].tombstone_at is not None
    if awaited:
        leave()
    return awaited


def _request(
    forwarding: Forwarding, kind: PushKind, record: PushRecord, deadline: float
) -> PushRequest:
    user, name = caller(forwarding.request)
    return PushRequest(
        kind=kind,
        push_id=forwarding.push_id,
        record=record,
        deadline_epoch=time.time() + deadline - _now(),
        created_epoch=forwarding.created_epoch,
        call_id=forwarding.call_id,
        from_user=user,
        from_name=name,
        video=has_video(forwarding.request),
    )


async def remove_push_record(forwarding: Forwarding, branch: int) -> None:
    """Forget a token that its service has disowned."""
    record = forwarding.context.branches[branch].target.push
    assert record is not None
    await remove_dead_token(forwarding.proxy.store, record, forwarding.tell, forwarding.warn)


def registered(forwarding: Forwarding, device: str) -> None:
    """A device has registered: if it was pushed, it is awake."""
    wake_up = forwarding.wake_ups.get(device)
    if wake_up is not None and wake_up.registered_at is None:
        wake_up.registered_at = _now()


def ended(forwarding: Forwarding) -> None:
    """Nobody is waited for any more: one line for each device that was to be woken."""
    for device, wake_up in forwarding.wake_ups.items():
        _tell(forwarding, device, wake_up)
    forwarding.wake_ups.clear()
    for record in forwarding.without_app:
        _tell_if_asleep(forwarding, record)
    forwarding.without_app = ()


def _tell(forwarding: Forwarding, device: str, wake_up: WakeUp) -> None:
    """What a bill or a metric is made of."""
    branches = _branches(forwarding, device)
    woke_after = seconds(wake_up.pushed_at, wake_up.registered_at)
    if woke_after is not None:
        WAKE_SECONDS.observe(woke_after)
    _tell_of(
        forwarding,
        wake_up.record,
        outcome(wake_up, branches),
        push_reason=wake_up.push.reason if wake_up.push else "",
        push_took=seconds(wake_up.pushed_at, wake_up.push_ended_at),
        woke_after=woke_after,
    )


def _tell_if_asleep(forwarding: Forwarding, record: PushRecord) -> None:
    if any(branch.heard for branch in _branches(forwarding, _device(record))):
        return
    reason = f"no app {record.app_id} in the configuration"
    _tell_of(
        forwarding,
        record,
        WakeUpOutcome.NO_APP,
        push_reason=reason,
        push_took=None,
        woke_after=None,
    )


def _device(record: PushRecord) -> str:
    """Its name in the context."""
    return full_device(record.aor, record.device)


def _branches(forwarding: Forwarding, device: str) -> list[Branch]:
    return [branch for branch in forwarding.context.branches if branch.target.device == device]


def _tell_of(
    forwarding: Forwarding, record: PushRecord, came: WakeUpOutcome, **facts: object
) -> None:
    WAKE_UPS.counts[(came.value,)] += 1
    forwarding.tell(
        "wake_up",
        outcome=came.value,
        aor=record.aor,
        device=fingerprint(_device(record)),
        app_id=record.app_id,
        platform=record.platform.value,
        push_id=forwarding.push_id,
        **facts,
    )


def describe(forwarding: Forwarding) -> dict[str, dict[str, object]]:
    """For ``HeldCall.wake_ups``."""
    shift = time.time() - _now()
    return {device: freeze(each, shift) for device, each in forwarding.wake_ups.items()}


def resume(forwarding: Forwarding, held: HeldCall) -> None:
    """Go on watching the devices that another process has pushed."""
    targets = (branch.target for branch in forwarding.context.branches)
    records = {target.device: target.push for target in targets if target.push}
    shift = _now() - time.time()
    forwarding.wake_ups = {
        device: thaw(values, records[device], shift)
        for device, values in held.wake_ups.items()
        if device in records
    }


def _now() -> float:
    return asyncio.get_running_loop().time()
