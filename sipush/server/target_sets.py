"""Who a request is for, and where that leads: the target set (RFC 3261 §16.5)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from sipush.core.bindings import Aor, Binding, Location, PushRecord, Subscriber, full_device
from sipush.core.groups import Group
from sipush.core.nodes import is_in_clear
from sipush.core.routing import TargetPolicy, is_secure, wants_tls
from sipush.core.target_set import NOWHERE, Target, TargetSet, Turn
from sipush.errors import TransportError
from sipush.log_lines import fingerprint
from sipush.sip.message import Request
from sipush.sip.status import Status
from sipush.sip.uri import parse_sip_uri, with_user

if TYPE_CHECKING:
    from sipush.server.forwarding import Forwarding
    from sipush.server.proxy import Proxy

log = structlog.get_logger()


def consents_to_calls(record: PushRecord) -> bool:
    """Whether the device wants to be pushed for calls."""
    return record.allow_call


def never(record: PushRecord) -> bool:
    """Only calls wait."""
    return False


async def of_user_or_group(proxy: Proxy, forwarding: Forwarding, aor: Aor) -> TargetSet | None:
    """The target set of a user or a ring group, or None when nobody has that name."""
    if (group := proxy.policy.groups.get(aor)) is not None:
        targets = await _of_group(proxy, forwarding, group)
        forwarding.sent_to(aor, proxy.policy.fallbacks_of(aor))
        return targets
    away = proxy.policy.registrar_of(aor) is not None
    subscriber = None if away else await proxy.subscribers.get(aor)
    if subscriber is None:
        return await _elsewhere(proxy, forwarding, aor)
    forwarding.sent_to(aor, proxy.policy.fallbacks_of(aor, subscriber.fallback))
    if (uri := _sent_on(proxy, forwarding, aor)) is not None:
        return await forwarding.go_on(uri, Status.MOVED_TEMPORARILY, None)
    if is_busy(proxy, forwarding, aor):
        return NOWHERE
    return TargetSet.of(*await _of_user(proxy, forwarding, subscriber))


async def _elsewhere(proxy: Proxy, forwarding: Forwarding, aor: Aor) -> TargetSet | None:
    """The servers that may have a user we do not have, unless one of them asks us for him.

    What goes on to another of them would come back from there as another call, for ever.
    """
    user, _, domain = aor.rpartition("@")
    servers = proxy.policy.routes.get(domain, ())
    asks = forwarding.transaction.flow.remote[0]
    if not forwarding.destinations and await _is_one_of(proxy, servers, asks):
        return None
    only = "sips:" if wants_tls(forwarding.request) else ""
    uris = [with_user(each, user) for each in servers if each.lower().startswith(only)]
    if not uris:
        return None
    forwarding.sent_to(aor, {})
    return TargetSet.in_order(uris)


async def _is_one_of(proxy: Proxy, servers: Sequence[str], ip: str) -> bool:
    for server in servers:
        found = ""
        with suppress(TransportError):
            _, (found, _), _ = await proxy.resolve(server)
        if found == ip:
            return True
    return False


def _sent_on(proxy: Proxy, forwarding: Forwarding, aor: Aor) -> str | None:
    return proxy.policy.forwards.get(aor) if forwarding.context.invite else None


def is_busy(proxy: Proxy, forwarding: Forwarding, aor: Aor) -> bool:
    """Whether that user takes no calls now."""
    return forwarding.context.invite and aor in proxy.policy.do_not_disturb


async def of_devices(proxy: Proxy, forwarding: Forwarding, subscriber: Subscriber) -> list[Target]:
    """The devices of a user whose registrar is elsewhere; those it has not named are let be."""
    is_asked = forwarding.request.method in ("INVITE", "OPTIONS")
    consents = consents_to_calls if is_asked else never
    forwarding.policy = policy_for(proxy, forwarding.request, consents)
    return await _of_user(proxy, forwarding, subscriber)


async def _of_user(proxy: Proxy, forwarding: Forwarding, subscriber: Subscriber) -> list[Target]:
    """Watch first, look up second: no registration is lost in between."""
    forwarding.watch(subscriber)
    location = await proxy.locations.lookup(subscriber.aor, time.time())
    while forwarding.heard_meanwhile(subscriber.aor):
        location = await proxy.locations.lookup(subscriber.aor, time.time())
    forwarding.seen[subscriber.aor] = location
    assert forwarding.policy is not None
    targets = forwarding.policy.target_set(location, subscriber)
    if subscriber.hold:
        forwarding.without_app += forwarding.policy.without_app(location)
    for target in targets:
        if target.push is None and not target.live and forwarding.context.invite:
            _tell_not_pushed(forwarding, target.device, location, subscriber)
    if not any(target.wakeable for target in targets):
        return targets
    refusal = proxy.held_call_limits.refusal(forwarding.caller_aor, subscriber.aor)
    if refusal is None:
        return targets
    forwarding.not_held = refusal
    return [replace(target, push=None, hold=0.0) for target in targets if target.live]


def _tell_not_pushed(
    forwarding: Forwarding, device: str, location: Location, subscriber: Subscriber
) -> None:
    """Somebody may ask why it did not ring. ``device``: as in Target."""
    assert forwarding.policy is not None
    for record in location.push_records:
        if full_device(record.aor, record.device) == device:
            reason = forwarding.policy.why_not_pushed(record, subscriber)
            forwarding.tell("not_pushed", aor=record.aor, device=fingerprint(device), reason=reason)


async def _of_group(proxy: Proxy, forwarding: Forwarding, group: Group) -> TargetSet:
    """The devices of all members but the caller."""
    others = [aor for aor in group.members if aor != forwarding.caller_aor]
    turns = await asyncio.gather(*(_member_turn(proxy, forwarding, aor) for aor in others))
    members = [turn for turn in turns if turn is not None]
    return group.target_set(members, in_turn=forwarding.context.invite)


async def _member_turn(proxy: Proxy, forwarding: Forwarding, aor: Aor) -> Turn | None:
    subscriber = await proxy.subscribers.get(aor)
    if subscriber is None:
        log.warning("group_member_unknown", aor=aor)
        return None
    if is_busy(proxy, forwarding, aor) or _sent_on(proxy, forwarding, aor):
        return None  # a group rings people, not where their own calls go
    return Turn(tuple(await _of_user(proxy, forwarding, subscriber)), aor)


async def of_fallback(proxy: Proxy, forwarding: Forwarding, uri: str) -> TargetSet:
    """What a fallback URI leads to, unless the call has been there.

    A call to a sips: URI goes to no other one of another server (RFC 3261 §26.2.2). Raises
    MessageError and LocationError.
    """
    aor = proxy.realm.aor(parse_sip_uri(uri))
    if (aor or uri) in forwarding.destinations:
        return NOWHERE
    if aor is not None:
        return await of_user_or_group(proxy, forwarding, aor) or NOWHERE
    if wants_tls(forwarding.request) and not uri.lower().startswith("sips:"):
        why = "the call is to a sips: URI, so a fallback elsewhere has to be one too"
        forwarding.warn("fallback_failed", to=uri, reason=why)
        return NOWHERE
    forwarding.sent_to(uri, {})
    return TargetSet.of(Target(device=uri, uri=uri, live=True))


def policy_for(
    proxy: Proxy, request: Request, consents: Callable[[PushRecord], bool]
) -> TargetPolicy:
    """Which devices are reached by this request; ``consents``: which may be pushed for it."""
    policy = proxy.policy
    return TargetPolicy(policy.apps, _is_live_for(proxy, request), consents, policy.node)


def _is_live_for(proxy: Proxy, request: Request) -> Callable[[Binding], bool]:
    """What counts as reachable: for a sips: URI only what is reached over TLS."""
    if wants_tls(request):
        return lambda binding: _is_secure(proxy, binding) and proxy.is_live(binding)
    return proxy.is_live


def _is_secure(proxy: Proxy, binding: Binding) -> bool:
    return is_secure(binding.flow) and not is_in_clear(binding, proxy.policy.node)
