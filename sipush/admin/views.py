"""What the admin API shows, as JSON types. Pure; no token, password or digest is in any of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sipush.core.bindings import (
    Aor,
    Binding,
    Location,
    Platform,
    PushRecord,
    full_device,
    without_reg_id,
)
from sipush.core.branch import Branch, BranchState
from sipush.core.push_request import PushResult
from sipush.core.wake_up import WakeUp, WakeUpOutcome
from sipush.log_lines import device_name, fingerprint, printable, redacted
from sipush.server.call_history import HALF, Ladder, Step
from sipush.sip.status import PHRASES

Json = dict[str, Any]

RESULTS = {
    PushResult.ACCEPTED: "the push service has accepted it",
    PushResult.TOKEN_DEAD: "the push service does not know the token any more: start the app once",
    PushResult.TOKEN_REFUSED: "the push service takes the token for none: see the settings",
    PushResult.RETRYABLE: "the push service failed for the moment",
    PushResult.THROTTLED: "the push service wants fewer pushes",
    PushResult.CONFIG: "credentials or settings of the app are wrong: see reason and status",
    PushResult.BAD_REQUEST: "the push service refused it",
    PushResult.TIMED_OUT: "the push service did not answer in time: it may have arrived",
    PushResult.WITHDRAWN: "it was withdrawn before it left: not needed any more",
}
WAKE_UPS = {
    WakeUpOutcome.ANSWERED: "woke and answered",
    WakeUpOutcome.REFUSED: "woke and refused",
    WakeUpOutcome.NO_ANSWER: "woke and rang, nobody answered there",
    WakeUpOutcome.TOO_LATE: "woke when the call was over",
    WakeUpOutcome.NOT_NEEDED: "did not wake before the call was over",
    WakeUpOutcome.TOKEN_DEAD: "its token is dead",
    WakeUpOutcome.PUSH_FAILED: "its push failed",
    WakeUpOutcome.NEVER_CAME: "was pushed and never registered",
    WakeUpOutcome.NO_APP: "its app is not in the configuration",
}
BRANCHES = {
    BranchState.CALLING: "sent the INVITE",
    BranchState.PROBING: "sent the INVITE and pushed",
    BranchState.PROCEEDING: "ringing",
    BranchState.WAKING: "being woken",
    BranchState.COMPLETED: "over",
}


def text(value: str) -> str:
    """What a stranger may have written, fit to be shown."""
    return printable(str(redacted("", value)))


# -- who is registered, and who is asleep --


def device_id(aor: Aor, device: str) -> str:
    """As in the log."""
    return fingerprint(full_device(aor, device))


def location(
    aor: Aor,
    found: Location,
    now_epoch: float,
    is_live: Callable[[Binding], bool],
    waking: Collection[str] = (),
) -> Json:
    """A user with all devices. ``waking``: ids of devices that calls wait for."""
    devices: dict[str, Json] = {}

    def device(key: str) -> Json:
        id_ = device_id(aor, key)
        empty = {"id": id_, "name": text(device_name(without_reg_id(key))), "state": "unreachable"}
        return devices.setdefault(id_, empty | {"contacts": [], "push": None})

    for binding in found.bindings:
        live = is_live(binding)
        shown = device(binding.device)
        shown["contacts"].append(_contact(binding, live, now_epoch))
        if live:
            shown["state"] = "registered"
    for record in found.push_records:
        shown = device(record.device)
        shown["push"] = _push(record, now_epoch)
        if shown["id"] in waking:
            shown["state"] = "waking"
        elif shown["state"] != "registered":
            shown["state"] = "asleep"
    return {"aor": text(aor), "devices": list(devices.values()), "problem": ""}


def unreadable(aor: Aor, problem: str) -> Json:
    """A user of whom something is stored that cannot be read."""
    return {"aor": text(aor), "devices": [], "problem": text(problem)}


def _contact(binding: Binding, live: bool, now_epoch: float) -> Json:
    return {
        "uri": text(binding.contact),
        "flow": text(binding.flow),
        "live": live,
        "registered_ago": _seconds(now_epoch - binding.registered_epoch),
        "expires_in": _seconds(binding.expires_epoch - now_epoch),
        "user_agent": text(binding.user_agent),
    }


def _push(record: PushRecord, now_epoch: float) -> Json:
    return {
        "platform": record.platform.value,
        "app_id": text(record.app_id),
        "age": _seconds(now_epoch - record.updated_epoch),
        "expires_in": _seconds(record.expires_epoch - now_epoch),
        "calls": record.allow_call,
        "messages": record.allow_message,
        "rings_only": record.platform is Platform.APNS and not record.message_token,
        "dialect": text(record.dialect),
    }


# -- who is being woken now --


def held_call(
    *,
    id_: str,
    call_id: str,
    caller: Aor,
    callee: str,
    waited: float,
    branches: Sequence[Branch],
    wake_ups: Mapping[str, WakeUp],
    now: float,
) -> Json:
    """A call that waits. ``id_``: its own, where a peer forks one Call-ID.

    ``now``, and the times of branches and wake-ups: seconds, monotonic.
    """
    return {
        "id": id_,
        "call_id": text(call_id),
        "caller": text(caller) or "a peer",
        "callee": text(callee),
        "waited": _seconds(waited),
        "devices": [
            _branch(branch, wake_ups.get(branch.target.device), now) for branch in branches
        ],
    }


def _branch(branch: Branch, wake_up: WakeUp | None, now: float) -> Json:
    target, push = branch.target, wake_up.push if wake_up else None
    return {
        "id": fingerprint(target.device),
        "aor": text(target.aor),
        "state": BRANCHES[branch.state],
        "status": branch.status or None,
        "waits_for": None if branch.bucket_at is None else _seconds(branch.bucket_at - now),
        "pushed_ago": wake_up and _seconds(now - wake_up.pushed_at),
        "push": wake_up and (RESULTS[push.result] if push else "is being sent"),
        "woke": wake_up and wake_up.registered_at is not None,
    }


# -- calls as ladders --


def call(ladder: Ladder, *, is_open: bool = False) -> Json:
    """One line of the list. ``is_open``: whether an INVITE of it has no final response yet."""
    began = ladder.steps[0].at_epoch
    state, status = _state(ladder)
    if is_open and state in ("failed", "refused"):  # that was another leg
        state, status = "under way", None
    return {
        "id": ladder.number,
        "call_id": text(ladder.call_id),
        "from": text(ladder.from_uri),
        "from_name": text(ladder.from_name),
        "to": text(ladder.callee),
        "began_epoch": round(began, 3),
        "lasted": _seconds(ladder.steps[-1].at_epoch - began),
        "state": state,
        "status": status,
    }


def _state(ladder: Ladder) -> tuple[str, int | None]:
    state, status = "under way", None
    for step in ladder.steps:
        match step.method, _event(step):
            case "INVITE", "arrived" if state in ("refused", "failed"):  # he tries again
                state, status = "under way", None
            case "INVITE", ("failed" | "refused") as event if state == "under way":
                state, status = event, _number(step.facts.get("status"))
            case "INVITE", "answered" if state in ("under way", "failed", "refused"):
                # A peer may fork one Call-ID to several users: whose leg failed ends no call.
                state, status = "answered", _number(step.facts.get("status"))
            case "BYE", "arrived" if state == "answered":
                state = "ended"
    return state, status


def _event(step: Step) -> str:
    """Of a call that was over when its process died, what had become of it."""
    if step.event == "call_resumed" and (status := _number(step.facts.get("status"))):
        return "answered" if status < 300 else "failed"
    return step.event


def ladder(kept: Ladder, *, is_open: bool = False) -> Json:
    """A call and its steps; ``source`` and ``target`` are columns, equal for a remark."""
    began = kept.steps[0].at_epoch
    steps = list(kept.steps)
    if kept.left_out:
        gap: dict[str, object] = {"steps": kept.left_out}
        steps.insert(HALF, Step(steps[HALF].at_epoch, "left_out", "", True, gap))
    return call(kept, is_open=is_open) | {
        "steps": [_step(step, began) for step in steps if _is_shown(step)]
    }


def _is_shown(step: Step) -> bool:
    """Inside a dialog it is clear where requests go."""
    return step.event != "routed" or step.method == "INVITE"


def _step(step: Step, began_epoch: float) -> Json:
    source, target, words = _arrow(step)
    return {
        "at_epoch": round(step.at_epoch, 6),
        "after": round(step.at_epoch - began_epoch, 6),
        "event": step.event,
        "source": source,
        "target": target,
        "text": text(words),
        "facts": {name: _fact(name, value) for name, value in step.facts.items()},
    }


def _arrow(step: Step) -> tuple[str, str, str]:
    facts = step.facts
    near, far = ("caller", "phone") if step.from_caller else ("phone", "caller")
    device = f"device {facts.get('device')}"
    match step.event:
        case "arrived":
            return near, "sipush", _request(step)
        case "told" | "answered" | "failed" | "refused":
            return "sipush", near, _response(step)
        case "forwarded":
            return "sipush", far, _request(step)
        case "response":
            return far, "sipush", _response(step)
        case "cancel_received":
            return near, "sipush", "CANCEL"
        case "cancelled":
            return "sipush", far, f"CANCEL ({facts['cause']})"
        case "hung_up":
            return "sipush", far, "ACK and BYE: answered too late"
        case "device_registered":
            return far, "sipush", f"REGISTER, {device}"
        case "push_sent":
            return "sipush", "push", f"push to {device} by {facts['service']}"
        case "push_finished":
            words = RESULTS[PushResult(facts["result"])]
            reason = f" ({facts['reason']})" if facts["reason"] else ""
            return "push", "sipush", f"{words}{reason}"
        case "contact_failed":
            return far, far, f"no answer at all: {facts['failure']}"
        case "next_hop_unreachable":
            return far, far, f"cannot be reached: {facts['reason']}"
        case "merged":
            return near, "sipush", f"the same request once more, from {facts['remote']}"
        case "routed":
            return "sipush", "sipush", f"contacts and sleeping devices: {facts['targets']}"
        case "falling_back":
            return "sipush", "sipush", f"goes on to {facts['to']}"
        case "push_record_removed":
            return "sipush", "sipush", f"the push record of {facts['aor']} is removed"
        case "not_pushed":
            return "sipush", "sipush", f"{device} is not pushed: {facts['reason']}"
        case "wake_up":
            words = WAKE_UPS[WakeUpOutcome(facts["outcome"])]
            return "sipush", "sipush", f"{device} {words}"
        case "left_out":
            return "sipush", "sipush", f"{facts['steps']} steps are left out here"
        case "call_resumed":
            final = _number(facts["status"])
            answered = f", which had answered {final}" if final else ""
            return "sipush", "sipush", f"taken over from a process that has died{answered}"
        case other:
            return "sipush", "sipush", other.replace("_", " ")


def _request(step: Step) -> str:
    return f"INVITE {step.facts['uri']}" if step.method == "INVITE" else step.method


def _response(step: Step) -> str:
    status = _number(step.facts.get("status"))
    words = f"{status} {PHRASES.get(status, '')}".strip() if status else "refused"
    return words if step.method == "INVITE" else f"{words} ({step.method})"


def _fact(name: str, value: object) -> object:
    shown = redacted(name, value)
    return printable(shown) if isinstance(shown, str) else shown


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _seconds(value: float) -> float:
    return round(value, 1)
