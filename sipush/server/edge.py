"""In front of a PBX that is registrar for our phones: REGISTER to it, calls to it and from it.

docs/edge.md tells the operator's side.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from sipush.core.authentication import has_credentials
from sipush.core.bindings import Aor, Location, Refusal
from sipush.core.edge import (
    Here,
    asked,
    granted,
    is_called,
    register_request,
    register_response,
    says_wrong_password,
    settle,
)
from sipush.core.location_update import apply
from sipush.core.outbound import RouteToken, device_digest
from sipush.core.registration import Fetch, Update, register
from sipush.core.rejection import Rejection, rejection_response
from sipush.core.routing import drop_claims, server_uri, validate
from sipush.core.target_set import Target, TargetSet
from sipush.errors import TransportError
from sipush.metrics import REGISTERS
from sipush.server import target_sets
from sipush.server.answers import (
    DRAINING,
    RETRY_AFTER,
    answer_for_server,
    reject,
    respond,
    wait_to_sign_in,
)
from sipush.server.transactions import ServerTransactionHandle
from sipush.sip.message import Request, Response
from sipush.sip.status import Status
from sipush.transport.flow import Flow

if TYPE_CHECKING:
    from sipush.server.forwarding import Forwarding
    from sipush.server.proxy import Proxy
    from sipush.server.registrar import Registrar

log = structlog.get_logger()

PATIENCE: Final = 10.0
"Seconds in which a registrar has answered. A phone gives up after 32."

NOT_REACHABLE: Final = Rejection(
    Status.SERVICE_UNAVAILABLE, "Registrar Not Reachable", (("Retry-After", RETRY_AFTER),)
)


@dataclass(slots=True, eq=False)
class Edge:
    """Passes REGISTER on to the registrars of domains that are kept elsewhere.

    A 2xx means what it means of our own registrar: the binding is stored.
    """

    registrar: Registrar
    proxy: Proxy
    _short: set[str] = field(default_factory=set)
    "Domains whose registrar was found to grant too little."

    def serves(self, request: Request) -> bool:
        """Whether a REGISTER is for a registrar elsewhere. Raises MessageError."""
        return self.proxy.policy.registrar_of(self._aor(request)) is not None

    def _aor(self, request: Request) -> Aor:
        return self.proxy.realm.aor(request.to.sip_uri) or ""

    async def handle(self, transaction: ServerTransactionHandle, request: Request) -> None:
        """Pass one REGISTER on, and its answer back. Raises MessageError and LocationError."""
        tag, aor = self.proxy.new_id(), self._aor(request)
        rejection = validate(request, self.proxy.realm)
        if rejection is not None:
            reject(transaction, rejection, tag)
            return
        if (slowed := await slow_down(self.proxy, transaction.flow, aor, request, tag)) is not None:
            transaction.respond(slowed)
            return
        flow, now, registrar = transaction.flow.name, time.time(), self.registrar
        before = await registrar.store.lookup(aor, now)
        has_path = "path" in request.headers.first
        decision = register(
            request,
            aor,
            flow,
            registrar.policy,
            now,
            key=registrar.key,
            location=before,
            from_peer=has_path and self.proxy.gate.is_peer(transaction.flow),
        )
        if isinstance(decision, Rejection):
            transaction.respond(rejection_response(request, decision, tag))
            return
        self.proxy.registering.add(aor)
        try:
            await self._pass_on(transaction, aor, tag, decision, before)
        finally:
            self.proxy.registering.discard(aor)

    async def _pass_on(
        self,
        transaction: ServerTransactionHandle,
        aor: Aor,
        tag: str,
        decision: Fetch | Update,
        before: Location,
    ) -> None:
        since, request = self.proxy.clock(), transaction.request
        after: Location | Refusal = before
        told, wanted = decision, dict[str, int]()
        if isinstance(decision, Update):
            after = apply(before, decision.registration)
            if after is Refusal.TOO_MANY_CONTACTS:
                room = self.registrar.replaceable(before, decision.registration)
                decision.registration.replaceable = room
                after = apply(before, decision.registration)
            if isinstance(after, Refusal):
                told = Fetch()  # he is told when the registrar knows him, and registers nothing
            else:
                wanted = asked(decision, before, after)
        try:
            flow = await self.proxy.connect(self.proxy.policy.registrars[aor.rpartition("@")[2]])
            here = self._here(aor, flow)
            answer = await self._ask(register_request(request, aor, told, wanted, here), flow)
        except TransportError as error:
            REGISTERS.counts[("failed",)] += 1
            log.warning("registrar_unreachable", aor=aor, reason=str(error))
            reject(transaction, NOT_REACHABLE, tag)
            return
        if answer.status >= 300:
            if says_wrong_password(request, answer):
                await self.proxy.gate.sign_in_failed(transaction.flow, aor, since, request.call_id)
            transaction.respond(answer)
            return
        self.proxy.gate.signed_in(transaction.flow, aor)
        location = after
        if isinstance(decision, Update) and isinstance(after, Location):
            seconds = granted(answer, aor, wanted, here)
            for device in settle(decision, after, seconds):
                self._tell_short(aor, wanted[device], seconds[device])
            location = await self.registrar.store.bind(decision.registration)
        if isinstance(location, Refusal):
            self.registrar.refused(transaction, aor, location, tag)
            return
        now = time.time()
        transaction.respond(register_response(request, answer, decision, location, now))
        if isinstance(decision, Update):
            self.registrar.registered(aor, decision, location, transaction.flow.name)

    def _tell_short(self, aor: Aor, wanted: int, granted: int) -> None:
        """Once: it is the registrar's setting, and of all its users."""
        domain = aor.rpartition("@")[2]
        if domain not in self._short:
            self._short.add(domain)
            log.warning("registration_too_short", aor=aor, asked=wanted, granted=granted)

    def _here(self, aor: Aor, flow: Flow) -> Here:
        """One of several nodes gives contacts that are the same on all, and a Path to itself."""
        node = self.proxy.policy.node
        own = server_uri("", flow.transport, flow.sent_by, sips=False)
        contact = f"sip:{aor.rpartition('@')[2]}" if node else own
        return Here(contact, node or own, self.proxy.key)

    async def _ask(self, request: Request, flow: Flow) -> Response:
        """The final response of the registrar. Raises TransportError when there is none."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Response] = loop.create_future()

        def came(response: Response) -> None:
            if response.status >= Status.OK and not answer.done():
                answer.set_result(response)

        def failed(why: str) -> None:
            if not answer.done():
                answer.set_exception(TransportError(f"{flow.name}: {why}"))

        handle = self.proxy.layer.send_request(
            request,
            flow,
            self.proxy.new_branch(request),
            came,
            lambda failure: failed(failure.value),
        )
        timer = loop.call_later(PATIENCE, failed, f"no answer within {PATIENCE:g} s")
        try:
            return await answer
        finally:
            timer.cancel()
            if answer.exception() is not None:
                handle.abandon()


async def slow_down(
    proxy: Proxy, flow: Flow, aor: Aor, request: Request, tag: str
) -> Response | None:
    """The answer to who may not try a password now, or None (docs/abuse.md)."""
    if not has_credentials(request):
        return None
    wait = proxy.gate.guard.policy.ban_time if proxy.gate.is_banned(flow) else 0.0
    if not wait and proxy.gate.suspects(aor):
        wait = await proxy.gate.slows(flow, aor, request)
    return wait_to_sign_in(request, wait, tag) if wait else None


async def call_registrar(proxy: Proxy, forwarding: Forwarding, aor: Aor) -> None:
    """Send what a phone wants of the registrar's users and numbers there, who asks who it is."""
    transaction, request, tag = forwarding.transaction, forwarding.request, forwarding.tag
    if proxy.draining:
        reject(transaction, DRAINING, tag)
        return
    uri = proxy.policy.registrars[aor.rpartition("@")[2]]
    caller = proxy.realm.caller_aor(request) or ""
    if (slowed := await slow_down(proxy, transaction.flow, caller, request, tag)) is not None:
        respond(transaction, slowed)
        return
    if not proxy.policy.is_peer(transaction.flow.remote[0]):
        drop_claims(request)
    try:
        flow = await proxy.connect(uri)
    except TransportError as error:
        forwarding.warn("registrar_unreachable", aor=aor, reason=str(error))
        reject(transaction, NOT_REACHABLE, tag)
        return
    if flow.remote[0] == transaction.flow.remote[0]:
        reject(transaction, Rejection(Status.NOT_FOUND), tag)  # what neither of us knows
        return
    if proxy.locations.devices_on(caller, transaction.flow.name):
        forwarding.caller_aor = caller
    forwarding.signs_in_as = caller or aor
    forwarding.sent_to(uri, {})
    forwarding.start(TargetSet.of(Target(uri, request.uri, flow.name, live=True)))


async def call_device(proxy: Proxy, forwarding: Forwarding, token: RouteToken) -> None:
    """Send a request of the registrar to the one device it is for, and wake that for a call.

    A device that can be woken is there for who asks (OPTIONS), awake or not: it is reached so. Some
    registrars ask at once about a contact of which the phone has not heard yet.
    """
    transaction, request, tag = forwarding.transaction, forwarding.request, forwarding.tag
    if proxy.draining:
        reject(transaction, DRAINING, tag)
        return
    if await proxy.merge(forwarding, f"{token.aor} {token.device}"):
        return
    subscriber = await proxy.subscribers.get(token.aor)
    if subscriber is None:
        reject(transaction, Rejection(Status.NOT_FOUND), tag)
        return
    devices = await target_sets.of_devices(proxy, forwarding, subscriber)
    targets = [target for target in devices if is_called(target, token)]
    arriving = not targets and token.aor in proxy.registering
    forwarding.without_app = tuple(
        [r for r in forwarding.without_app if device_digest(r.device) == token.device]
    )
    if request.method == "OPTIONS" and (arriving or any(target.wakeable for target in targets)):
        answer_for_server(transaction, tag)
    elif forwarding.not_held and not targets:
        reject(transaction, forwarding.not_held, tag)
    else:
        forwarding.start(TargetSet.of(*targets))


def pass_back(proxy: Proxy, flow: Flow, response: Response) -> bool:
    """Whether a registrar has answered a call that a process sent it that died: the caller hears.

    As a stateless proxy does (RFC 3261 §16.11): there is no more to such a call than its answer.
    """
    policy = proxy.policy
    if not policy.registrars or not policy.is_peer(flow.remote[0]):
        return False
    ours = response.top_via
    host = ours.host.strip("[]").lower()
    if response.cseq.method != "INVITE" or not proxy.realm.is_listener(host, ours.port):
        return False
    if response.status <= Status.TRYING or len(response.headers.values("via")) < 2:
        return False
    response.headers.remove_first_value("via", "Via")
    back = proxy.way_back(response.top_via)
    if back.transport != "UDP":
        response.add_length()
    back.send(response.to_bytes())
    log.info("answer_passed_back", call_id=response.call_id, status=response.status)
    return True
