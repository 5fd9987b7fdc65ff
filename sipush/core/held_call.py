"""A held call as it is stored, so that it outlives the process that holds it.

A response context that has pushed a device is written down whole whenever it changes. Whoever
reads it goes on where the other stopped: devices still asleep are waited for until the same
deadlines, and what was forwarded is sent again in the same client transaction, which a phone that
already has it takes for a retransmission. No device is pushed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

import orjson

from sipush.core.authentication import CREDENTIALS, has_credentials
from sipush.core.bindings import Platform, PushRecord
from sipush.core.branch import (
    Branch,
    BranchState,
    CancelCause,
)
from sipush.core.response_context import ResponseContext
from sipush.core.target_set import NOWHERE, Search, Target, Turn
from sipush.sip.headers import Headers
from sipush.sip.message import Request

_TIMES = ("probe_at", "bucket_at", "timer_c_at", "tombstone_at")


@dataclass(slots=True)
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
    merged: tuple[tuple[str, tuple[str, ...]], ...] = ()
    "Other ways by which the INVITE has come too: the name of the flow, and the Via lines there."
    left: bool = False
    "The first way was given up: the call goes on by these."
    seen: dict[str, dict[str, float]] = field(default_factory=dict)
    "By AOR and device: when it registered last, as far as the call has heard."

    def to_json(self) -> bytes:
        """JSON; bytes of the INVITE that are not UTF-8 survive."""
        values = _values(self)
        values["request"] = self.request.decode("utf-8", "surrogateescape")
        try:
            return orjson.dumps(values)
        except orjson.JSONEncodeError:  # what is not UTF-8
            return json.dumps(values).encode("ascii")

    @classmethod
    def from_json(cls, text: bytes) -> HeldCall:
        """The inverse of ``to_json``."""
        values = json.loads(text)
        values["request"] = values["request"].encode("utf-8", "surrogateescape")
        for name in ("aors", "destinations"):
            values[name] = tuple(values.get(name, ()))
        values["diversions"] = tuple(map(tuple, values.get("diversions", ())))
        values["merged"] = tuple((name, tuple(vias)) for name, vias in values.get("merged", ()))
        return cls(**_known(cls, values))


def storable(request: Request) -> bytes:
    """The request without credentials, its own for another server included.

    A device that asked for them asks again should it get the call from another process.
    """
    if not has_credentials(request):
        return request.to_bytes()
    stored = request.copy()
    for name in CREDENTIALS:
        stored.headers.remove(name)
    return stored.to_bytes()


def vias(request: Request) -> tuple[str, ...]:
    """The lines that tell by which way it has come."""
    return tuple([line for _, line in request.headers.lines("via")])


def by_way_of(request: Request, vias: tuple[str, ...]) -> Request:
    """The same request, come by another way."""
    lines = [field for field in request.headers if field[0] != "via"]
    return request.like(request.uri, Headers([("via", via) for via in vias] + lines))


def freeze(context: ResponseContext, now: float, now_epoch: float) -> dict[str, Any]:
    """The context in JSON types; its times become UNIX seconds."""
    shift = now_epoch - now
    values = {
        "probe": context.probe,
        "timer_c": context.timer_c,
        "ringback": context.ringback,
        "push_while_ringing": context.push_while_ringing,
        "fallback": context.fallback or context.falling_back,
        "tombstone": context.tombstone,
        "closed": context.closed,
        "answered": context.answered,
        "successful": context.successful,
        "cancelled_by_caller": context.cancelled_by_caller,
        "search": _freeze_search(context.search, shift),
        "branches": [_freeze_branch(branch, shift) for branch in context.branches],
    }
    if context.expires_at is not None:  # else an older version, which may take over, can read it
        values["expires_at"] = context.expires_at + shift
    return values


def _freeze_search(search: Search, shift: float) -> dict[str, Any]:
    values = _values(search)
    if search.pending:
        values["pending"] = [
            (turn.aor, [*map(_freeze_target, turn.targets)]) for turn in search.pending
        ]
    if search.turn_at is not None:
        values["turn_at"] = search.turn_at + shift
    return values


def _freeze_target(target: Target) -> dict[str, Any]:
    values = _values(target)
    if target.push is not None:
        values["push"] = _values(target.push) | {"platform": target.push.platform.value}
    if target.others:
        values["others"] = [*map(_freeze_target, target.others)]
    return values


def _freeze_branch(branch: Branch, shift: float) -> dict[str, Any]:
    values = _values(branch)
    values["state"] = branch.state.value
    values["cause"] = branch.cause.value
    values["target"] = _freeze_target(branch.target)
    if branch.cancelling is not None:
        values["cancelling"] = branch.cancelling.value
    for name in _TIMES:
        if name in values:
            values[name] += shift
    return values


def _values(value: Any) -> dict[str, Any]:
    """The fields that are not what they usually are; not copied: they are written down at once."""
    names, get, usual = _FIELDS[type(value)]
    values: dict[str, Any] = {}
    each: tuple[Any, ...] = get(value)
    for i in range(len(names)):
        if each[i] is not usual[i] and each[i] != usual[i]:
            values[names[i]] = each[i]
    return values


def _fields(usual: Any, required: int) -> tuple[tuple[str, ...], Callable[[Any], Any], list[Any]]:
    """The names of an object's fields, what gets them, and what they usually are.

    Of the first ``required`` nothing is usual.
    """
    names = tuple(field.name for field in fields(usual))
    get = attrgetter(*names)
    return names, get, [_NOTHING] * required + [*get(usual)][required:]


_NOTHING = object()
_FIELDS = {
    type(usual): _fields(usual, required)
    for usual, required in (
        (HeldCall("", b"", "", "", "", {}), 6),
        (Search(NOWHERE, 0, []), 0),
        (Branch(0, Target(""), BranchState.CALLING), 3),
        (Target(""), 1),
        (PushRecord("", "", Platform.FCM, ""), 4),
    )
}


def thaw(frozen: dict[str, Any], now: float, now_epoch: float) -> ResponseContext:
    """The inverse of ``freeze``, on another clock."""
    shift = now - now_epoch
    branches = [_thaw_branch(values, shift) for values in frozen["branches"]]
    search = _thaw_search(frozen["search"], shift)
    context = ResponseContext(frozen["probe"], frozen["timer_c"])
    _set(context, frozen | {"branches": branches, "search": search})
    if context.expires_at is not None:
        context.expires_at += shift
    if not context.answered:
        context.resume_ringback(now)
    return context


def _thaw_search(values: dict[str, Any], shift: float) -> Search:
    search = Search(NOWHERE, 0, [])
    _set(search, values)
    search.pending = [
        Turn(tuple(map(_thaw_target, targets)), aor) for aor, targets in values.get("pending", ())
    ]
    if search.turn_at is not None:
        search.turn_at += shift
    return search


def _thaw_target(values: dict[str, Any]) -> Target:
    push = values.get("push")
    record = None
    if push:
        record = PushRecord(**_known(PushRecord, push) | {"platform": Platform(push["platform"])})
    route = tuple(values.get("route", ()))
    others = tuple(map(_thaw_target, values.get("others", ())))
    aor, _, key = values["device"].partition(" ")
    known = {"aor": aor, "key": key} | _known(Target, values)  # older versions wrote neither
    return Target(**known | {"push": record, "route": route, "others": others})


def _thaw_branch(values: dict[str, Any], shift: float) -> Branch:
    target, state = _thaw_target(values["target"]), BranchState(values["state"])
    branch = Branch(values["id"], target, state)
    cancelling = values.get("cancelling")
    _set(
        branch,
        values
        | {
            "state": state,
            "target": target,
            "cause": CancelCause(values["cause"]),
            "cancelling": CancelCause(cancelling) if cancelling else None,
        }
        | {name: values[name] + shift for name in _TIMES if values.get(name) is not None},
    )
    if branch.push_begun:  # of one that was on its way nobody hears any more
        branch.pushing = False
    return branch


def _set(object_: ResponseContext | Search | Branch, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if hasattr(object_, name):
            setattr(object_, name, value)


def _known(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Without what only a later version knows, whose calls we take over when nodes are upgraded."""
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in values.items() if name in names}
