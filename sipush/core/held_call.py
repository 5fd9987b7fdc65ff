"""A held call as it is stored, so that it outlives the process that holds it.

A response context that has pushed a device is written down whole whenever it changes. Whoever
reads it goes on where the other stopped: devices still asleep are waited for until the same
deadlines, and what was forwarded is sent again in the same client transaction, which a phone that
already has it takes for a retransmission. No device is pushed again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from sipush.core.bindings import Platform, PushRecord
from sipush.core.response_context import (
    Branch,
    BranchState,
    CancelCause,
    ResponseContext,
)

_TIMES = ("probe_at", "bucket_at", "timer_c_at", "tombstone_at")


@dataclass(frozen=True, slots=True)
class HeldCall:
    """Everything a process needs to finish a call that another one began."""

    id: str
    "Unique among all held calls."
    request: bytes
    "The INVITE as it came, its top Via stamped."
    flow: str
    "Name of the flow it came over."
    push_id: str
    tag: str
    "To tag of the responses we made."
    context: dict[str, Any]
    "``freeze``."
    caller_aor: str = ""
    aors: tuple[str, ...] = ()
    "Whose registrations it waits for."
    fallbacks: tuple[str, ...] = ()
    fallbacks_tried: int = 0
    diversion: tuple[str, int] | None = None
    "(URI, cause) of ``routing.Diversion``."
    created_epoch: float = 0.0
    saved_epoch: float = 0.0
    "When this was written: what registered since has not been seen."

    def to_json(self) -> bytes:
        """ASCII JSON; bytes of the INVITE that are not UTF-8 survive."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["request"] = self.request.decode("utf-8", "surrogateescape")
        return json.dumps(values).encode("ascii")

    @classmethod
    def from_json(cls, text: bytes) -> HeldCall:
        """The inverse of ``to_json``."""
        values = json.loads(text)
        diversion = values["diversion"]
        return cls(
            **values
            | {
                "request": values["request"].encode("utf-8", "surrogateescape"),
                "aors": tuple(values["aors"]),
                "fallbacks": tuple(values["fallbacks"]),
                "diversion": tuple(diversion) if diversion else None,
            }
        )


def freeze(context: ResponseContext, now: float, now_epoch: float) -> dict[str, Any]:
    """The context in JSON types; its times become UNIX seconds."""
    shift = now_epoch - now
    return {
        "probe": context.probe,
        "timer_c": context.timer_c,
        "ringback": context.ringback,
        "fallback": context.fallback or context.falling_back,
        "closed": context.closed,
        "answered": context.answered,
        "successful": context.successful,
        "cancelled_by_caller": context.cancelled_by_caller,
        "branches": [_freeze_branch(branch, shift) for branch in context.branches],
    }


def _freeze_branch(branch: Branch, shift: float) -> dict[str, Any]:
    target = branch.target
    push = None
    if target.push is not None:
        push = asdict(target.push) | {"platform": target.push.platform.value}
    values = {f.name: getattr(branch, f.name) for f in fields(branch)}
    values |= {
        "state": branch.state.value,
        "cause": branch.cause.value,
        "target": asdict(target) | {"push": push},
    }
    for name in _TIMES:
        values[name] = None if values[name] is None else values[name] + shift
    return values


def thaw(frozen: dict[str, Any], now: float, now_epoch: float) -> ResponseContext:
    """The inverse of ``freeze``, on another clock."""
    shift = now - now_epoch
    branches = [_thaw_branch(values, shift) for values in frozen["branches"]]
    context = ResponseContext(**frozen | {"branches": branches})
    if not context.answered:
        context.resume_ringback(now)
    return context


def _thaw_branch(values: dict[str, Any], shift: float) -> Branch:
    target = values["target"]
    push = target["push"]
    record = PushRecord(**push | {"platform": Platform(push["platform"])}) if push else None
    return Branch(
        **values
        | {
            "state": BranchState(values["state"]),
            "cause": CancelCause(values["cause"]),
            "target": Target(**target | {"push": record, "route": tuple(target["route"])}),
        }
        | {name: None if values[name] is None else values[name] + shift for name in _TIMES}
    )
