"""Requests inside a dialog: to the side that the route token names (RFC 3261 §12.2, §16.4).

docs/in-dialog.md tells where that is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from sipush.core.bindings import SILENT, Binding, PushRecord
from sipush.core.in_dialog import Surroundings
from sipush.core.outbound import RouteToken, is_purr_of, purr_in
from sipush.core.routing import drop_claims, hide_identity
from sipush.core.target_set import Target, TargetSet
from sipush.errors import LocationError, TransportError
from sipush.server import target_sets
from sipush.sip.message import Request

if TYPE_CHECKING:
    from sipush.server.forwarding import Forwarding
    from sipush.server.proxy import Proxy

log = structlog.get_logger()

NON_INVITE_HOLD: Final = 25.0
"Seconds. After 32 the sender of a request that is no INVITE has given up (RFC 3261 §17.1.2.2)."


async def forward(proxy: Proxy, forwarding: Forwarding, token: RouteToken) -> None:
    """To the other side, which a PURR in the Request-URI allows to be woken (RFC 8599 §6)."""
    request = forwarding.request
    forwarding.dialog_side = ""
    forwarding.context.in_dialog = True
    if not proxy.policy.is_peer(forwarding.transaction.flow.remote[0]):
        drop_claims(request)
        caller = proxy.realm.caller_aor(request) or "" if proxy.policy.registrars else ""
        forwarding.signs_in_as = caller if proxy.policy.registrar_of(caller) else ""
    if token.device:
        hide_identity(request)
    reference = purr_in(request.uri)
    subscriber = await proxy.subscribers.get(token.aor) if reference and token.aor else None
    if subscriber is None:
        if token.aor:
            forwarding.follow(token)
        target = await find(proxy, token, request)
        if target.hold and not target.live:
            call_id, method = request.call_id, request.method
            log.info("in_dialog_waits", call_id=call_id, method=method, aor=token.aor)
        forwarding.start(TargetSet.of(target))
        return
    forwarding.watch(subscriber)
    location = await proxy.locations.lookup(token.aor, time.time())
    forwarding.seen[token.aor] = location
    target = await find(proxy, token, request)
    is_ours = partial(_is_referred_to, reference, proxy.key)
    forwarding.policy = target_sets.policy_for(proxy, request, is_ours)
    for record in filter(is_ours, location.push_records):
        side = forwarding.policy.target(record.device, location, subscriber)
        forwarding.dialog_side = side.device
        hold = side.hold if request.method == "INVITE" else min(side.hold, NON_INVITE_HOLD)
        target = replace(
            target,
            device=side.device,
            aor=side.aor,
            key=side.key,
            push=side.push,
            hold=hold,
        )
        if side.live and side.flow:
            target = replace(target, flow=side.flow, live=True)
    forwarding.start(TargetSet.of(target))


def _is_referred_to(reference: str, key: bytes, record: PushRecord) -> bool:
    """Whether a PURR is that of a device that may be pushed for it."""
    return record.platform in SILENT and is_purr_of(reference, record.aor, record.device, key)


async def find(proxy: Proxy, token: RouteToken, request: Request) -> Target:
    """Where the side is that the token names. Raises MessageError."""
    bindings: Sequence[Binding] = ()
    if token.aor:
        try:
            bindings = (await proxy.locations.lookup(token.aor, time.time())).bindings
        except LocationError:
            bindings = ()  # as if it were where it was
    here = surroundings(proxy)
    target = here.side(token, request, bindings)
    if target.flow or target.route or token.device:
        return target
    for uri in here.ways_back(token, request):
        with suppress(TransportError):
            _, (ip, _), _ = await proxy.resolve(uri)
            if here.leads_back(uri, ip, token):
                return replace(target, hop=uri, live=True)
    return target


def surroundings(proxy: Proxy) -> Surroundings:
    """What the proxy knows of flows and hosts now."""
    policy = proxy.policy
    return Surroundings(
        proxy.is_open, policy.is_peer, policy.may_be_another, proxy.ways_of_peers, policy.node
    )
