"""A held call as it is stored, so that it outlives the process that holds it.

A response context that has pushed a device is written down whole whenever it changes. Whoever
reads it goes on where the other stopped: devices still asleep are waited for until the same
deadlines, and what was forwarded is sent again in the same client transaction, which a phone that
already has it takes for a retransmission. No device is pushed again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

from sipush.core.bindings import Platform, PushRecord
from sipush.core.branch import (
    Branch,
    BranchState,
    CancelCause,
)
from sipush.core.response_context import ResponseContext
from sipush.core.target_set import NOWHERE, Search, Target, Turn
from sipush.sip.message import Request

CREDENTIALS = ("authorization", "proxy-authorization")
"Headers that no store holds."

_TIMES = ("probe_at", "bucket_at", "timer_c_at", "tombstone_at")


@dataclass(frozen=True, slots=True)
class HeldCall:
    """Everything a process needs to finish a call that another one began."""

    id: str
    "Unique among all held calls."
    request: bytes
    "``storable``: the INVITE as it came, its top Via stamped."
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
    destinations: tuple[str, ...] = ()
    "Where it has been sent, in order: AORs, and URIs of others."
    fallbacks: dict[str, str] = field(default_factory=dict)
    "URI by cause."
    diversions: tuple[tuple[str, int, str], ...] = ()
    "(URI, status, cause) of each ``routing.Diversion``, in order."
    created_epoch: float = 0.0
    cancel_reason: str = ""
    "Reason of the caller's CANCEL."
    final: int = 0
    "Status of the final response that the caller has got, or was about to get."
    ended_epoch: float = 0.0
    "When that was."
    wake_ups: dict[str, dict[str, Any]] = field(default_factory=dict)
    "By device: ``wake_up.freeze`` of those that are still being watched."
    seen: dict[str, dict[str, float]] = field(default_factory=dict)
    "By AOR and device: when it registered last, as far as the call has heard."

    def to_json(self) -> bytes:
        """ASCII JSON; bytes of the INVITE that are not UTF-8 survive."""
        values = _values(self)
        values["request"] = self.request.decode("utf-8", "surrogateescape")
        return json.dumps(values).encode("ascii")

    @classmethod
    def from_json(cls, text: bytes) -> HeldCall:
        """The inverse of ``to_json``."""
        values = json.loads(text)
        return cls(
            **values
            | {
                "request": values["request"].encode("utf-8", "surrogateescape"),
                "aors": tuple(values["aors"]),
                "destinations": tuple(values["destinations"]),
                "diversions": tuple(map(tuple, values["diversions"])),
            }
        )


def storable(request: Request) -> bytes:
    """The request without credentials, its own for another server included.

    A device that asked for them asks again should it get the call from another process.
    """
    if not any(name in request.headers for name in CREDENTIALS):
        return request.to_bytes()
    stored = request.copy()
    for name in CREDENTIALS:
        stored.headers.remove(name)
    return stored.to_bytes()


def freeze(context: ResponseContext, now: float, now_epoch: float) -> dict[str, Any]:
    """The context in JSON types; its times become UNIX seconds."""
    shift = now_epoch - now
    return {
        "probe": context.probe,
        "timer_c": context.timer_c,
        "ringback": context.ringback,
        "push_while_ringing": context.push_while_ringing,
        "fallback": context.fallback or context.falling_back,
        "closed": context.closed,
        "answered": context.answered,
        "successful": context.successful,
        "cancelled_by_caller": context.cancelled_by_caller,
        "search": _freeze_search(context.search, shift),
        "branches": [_freeze_branch(branch, shift) for branch in context.branches],
    }


def _freeze_search(search: Search, shift: float) -> dict[str, Any]:
    return _values(search) | {
        "pending": [(turn.aor, [*map(_freeze_target, turn.targets)]) for turn in search.pending],
        "turn_at": None if search.turn_at is None else search.turn_at + shift,
    }


def _freeze_target(target: Target) -> dict[str, Any]:
    push = None
    if target.push is not None:
        push = _values(target.push) | {"platform": target.push.platform.value}
    return target._asdict() | {"push": push, "others": [*map(_freeze_target, target.others)]}


def _values(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, not copied: they are written down at once."""
    names, get = _FIELDS[type(value)]
    return dict(zip(names, get(value), strict=True))


def _fields(kind: type[Any]) -> tuple[tuple[str, ...], attrgetter[tuple[Any, ...]]]:
    names = tuple(field.name for field in fields(kind))
    return names, attrgetter(*names)


_FIELDS = {kind: _fields(kind) for kind in (HeldCall, Search, Branch, PushRecord)}


def _freeze_branch(branch: Branch, shift: float) -> dict[str, Any]:
    values = _values(branch)
    values |= {
        "state": branch.state.value,
        "cause": branch.cause.value,
        "cancelling": branch.cancelling.value if branch.cancelling else None,
        "target": _freeze_target(branch.target),
    }
    for name in _TIMES:
        values[name] = None if values[name] is None else values[name] + shift
    return values


def thaw(frozen: dict[str, Any], now: float, now_epoch: float) -> ResponseContext:
    """The inverse of ``freeze``, on another clock."""
    shift = now - now_epoch
    branches = [_thaw_branch(values, shift) for values in frozen["branches"]]
    search = _thaw_search(frozen["search"], shift)
    context = ResponseContext(frozen["probe"], frozen["timer_c"])
    _set(context, frozen | {"branches": branches, "search": search})
    if not context.answered:
        context.resume_ringback(now)
    return context


def _thaw_search(values: dict[str, Any], shift: float) -> Search:
    pending = [Turn(tuple(map(_thaw_target, targets)), aor) for aor, targets in values["pending"]]
    turn_at = None if values["turn_at"] is None else values["turn_at"] + shift
    search = Search(NOWHERE, 0, [])
    _set(search, values | {"pending": pending, "turn_at": turn_at})
    return search


def _thaw_target(values: dict[str, Any]) -> Target:
    push = values["push"]
    record = PushRecord(**push | {"platform": Platform(push["platform"])}) if push else None
    others = tuple(map(_thaw_target, values["others"]))
    return Target(**values | {"push": record, "route": tuple(values["route"]), "others": others})


def _thaw_branch(values: dict[str, Any], shift: float) -> Branch:
    target, state = _thaw_target(values["target"]), BranchState(values["state"])
    branch = Branch(values["id"], target, state)
    _set(
        branch,
        values
        | {
            "state": state,
            "cause": CancelCause(values["cause"]),
            "cancelling": CancelCause(values["cancelling"]) if values["cancelling"] else None,
            "target": target,
            # Of one that was on its way nobody hears any more.
            "pushing": values["pushing"] and not values["push_begun"],
        }
        | {name: None if values[name] is None else values[name] + shift for name in _TIMES},
    )
    return branch


def _set(object_: ResponseContext | Search | Branch, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(object_, name, value)
