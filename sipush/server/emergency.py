"""Calls for help: to those who give it (RFC 5031, RFC 6881)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import structlog

from sipush.core.abuse import Verdict
from sipush.core.bindings import Aor
from sipush.core.emergency import emergency_request
from sipush.core.outbound import came_from
from sipush.core.routing import drop_claims
from sipush.errors import LocationError
from sipush.server.transactions import ServerTransactionHandle
from sipush.sip.message import Request, Response
from sipush.transport.flow import Flow

if TYPE_CHECKING:
    from sipush.server.forwarding import Forwarding
    from sipush.server.proxy import Proxy

log = structlog.get_logger()

TIMER_C: Final = 86400.0
"Seconds that a call for help may wait in a queue: as long as its caller does."

STORE_PATIENCE: Final = 0.5
"Seconds that a call for help waits to learn who calls."


async def forward(proxy: Proxy, forwarding: Forwarding) -> None:
    """At once, without challenge, limits or hold, also while we are going down."""
    policy = proxy.policy.emergency
    transaction, request = forwarding.transaction, forwarding.request
    flow = transaction.flow
    is_peer = proxy.policy.is_peer(flow.remote[0])
    if not is_peer:
        drop_claims(request)
    known = await _known_caller(proxy, flow, request)
    caller = known or ""
    if known == "" and not policy.strangers:
        found = await proxy.signed_in(flow, request, forwarding.tag)
        if isinstance(found, Response):
            _refuse_stranger(proxy, transaction, found)
            return
        caller = found
    forwarding.caller_aor = caller
    address = policy.addresses.get(caller)
    forwarding.request = emergency_request(
        request,
        caller,
        address,
        proxy.new_id(),
        time.time(),
        from_peer=is_peer,
    )
    forwarding.warn(
        "emergency_call",
        uri=request.uri,
        caller=caller or "unknown",
        address=address is not None,
        remote=flow.remote[0],
    )
    forwarding.start(policy.target_set())


def _refuse_stranger(
    proxy: Proxy, transaction: ServerTransactionHandle, response: Response
) -> None:
    """Refuse an emergency call of a stranger, which was heard wherever it came from.

    Its source may be forged: answers are limited as they are to any other of its requests.
    """
    flow = transaction.flow
    verdict = proxy.gate.judge(flow)
    if verdict is not Verdict.ADMIT:
        proxy.gate.turn_away(flow, verdict)
        transaction.ignore()
    elif not transaction.completed:
        transaction.refuse(response, repeats=0)


async def _known_caller(proxy: Proxy, flow: Flow, request: Request) -> Aor | None:
    """Whom From names, if a peer says so or that user is registered from there; else empty.

    None: nobody can tell, the store is not there.
    """
    claimed = proxy.realm.caller_aor(request)
    if claimed is None:
        return ""
    if proxy.policy.is_peer(flow.remote[0]):
        return claimed
    if proxy.policy.is_edge(flow.remote[0]):
        return ""  # everybody comes from there
    try:
        location = await proxy.locations.lookup_soon(claimed, time.time(), STORE_PATIENCE)
    except LocationError as error:
        log.error("store_unavailable", reason=str(error))
        return None
    known = any(came_from(flow.remote[0], binding.flow) for binding in location.bindings)
    return claimed if known else ""
