"""The registrar: REGISTER in, binding stored, waiting calls released (RFC 3261 §10.3)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from sipush.core.bindings import Aor, Location, Refusal, Registration
from sipush.core.location_update import replaceable
from sipush.core.outbound import remote_ip
from sipush.core.refresh import Refreshes, what_is_said
from sipush.core.registration import (
    Decision,
    RegistrationPolicy,
    Update,
    ok_response,
    refuse,
    register,
    wants_location,
)
from sipush.core.rejection import Rejection, rejection_response
from sipush.core.routing import Realm
from sipush.location.store import LocationStore
from sipush.log_lines import shown
from sipush.metrics import REGISTERS, UNUSABLE_PUSH_HEADERS
from sipush.server.gate import Gate
from sipush.server.messages import Messages
from sipush.server.push_bucket import PushBucket
from sipush.server.sign_in import SignIn
from sipush.server.steps import STEP
from sipush.server.transactions import ServerTransactionHandle
from sipush.sip.message import Request, Response
from sipush.sip.status import Status
from sipush.transport.flow import Flow

log = structlog.get_logger()

_NOT_SERVED: Final = Rejection(Status.FORBIDDEN, "Domain Not Served Here")


@dataclass(slots=True, eq=False)
class Registrar:
    """Answers REGISTER. A 200 means that the binding is stored."""

    realm: Realm
    policy: RegistrationPolicy
    sign_in: SignIn
    store: LocationStore
    bucket: PushBucket
    new_id: Callable[[], str]
    key: bytes
    "Makes the PURRs; the same in every process on one store."
    gate: Gate
    messages: Messages = field(init=False)
    "Set once, when the proxy has been built."
    _tag: str = field(init=False)
    _refreshes: Refreshes | None = field(init=False)
    "None with a store that outlives us: nothing is kept of a phone that is idle."

    def __post_init__(self) -> None:
        self._tag = self.new_id()
        self._refreshes = None if self.store.outlives_us else Refreshes()

    def challenge(self, flow: Flow, request: Request) -> Response | None:
        """The answer to a REGISTER without credentials; None for any other. Raises MessageError.

        Nothing is kept of it: it is half of all REGISTERs, and all that strangers send.
        """
        if "authorization" in request.headers.first:
            return None
        tag = f"{self._tag}.{hash(request.call_id)}"  # the same in every repetition (§8.2.7)
        aor = self._aor(request)
        if aor is None:
            return rejection_response(request, _NOT_SERVED, tag)
        return self.sign_in.challenge(flow, request, aor.rpartition("@")[2], tag)

    def _aor(self, request: Request) -> Aor | None:
        """Whose bindings it is about; None when that is not our business (§10.3 steps 1, 5)."""
        aor = self.realm.aor(request.to.sip_uri)
        return aor if self.realm.serves(request.sip_uri) else None

    async def handle(self, transaction: ServerTransactionHandle, request: Request) -> None:
        """Answer one REGISTER. Raises MessageError and LocationError before anything is stored."""
        tag = self.new_id()
        aor = self._aor(request)
        if aor is None:
            transaction.respond(rejection_response(request, _NOT_SERVED, tag))
            return
        found = await self.sign_in.user(transaction.flow, request, aor.rpartition("@")[2], tag)
        if isinstance(found, Response):
            transaction.respond(found)
            return
        await STEP
        if found.aor != aor:  # §10.3 step 4
            log.warning("registration_for_another_user", user=found.aor, aor=aor)
            REGISTERS.counts[("refused",)] += 1
            rejection = Rejection(Status.FORBIDDEN, "Not Your Address-of-Record")
            transaction.respond(rejection_response(request, rejection, tag))
            return
        # One string for all that is kept of a user: each look-up would compare with another one.
        await self._register(transaction, request, found.aor, tag)

    async def _register(
        self, transaction: ServerTransactionHandle, request: Request, aor: Aor, tag: str
    ) -> None:
        now, store, flow = time.time(), self.store, transaction.flow.name
        refreshes, policy = self._refreshes, self.policy
        decision: Decision | None = None
        from_peer = False
        if "path" in request.headers.first:
            from_peer = self.gate.is_peer(transaction.flow)
            if not from_peer:
                refreshes = None  # what is known of one was said by a peer
        if refreshes is not None:
            said = what_is_said(request)
            known = store.last_known(aor)
            if known is not None:
                decision = refreshes.decide(request, flow, policy, now, said=said, location=known)
        if decision is None:
            stored = await store.lookup(aor, now) if wants_location(request) else None
            decision = register(
                request,
                aor,
                flow,
                policy,
                now,
                key=self.key,
                location=stored,
                from_peer=from_peer,
            )
            if refreshes is not None:
                refreshes.learn(said, policy, decision, stored)
        if isinstance(decision, Rejection):
            REGISTERS.counts[("refused",)] += 1
            transaction.respond(rejection_response(request, decision, tag))
            return
        location: Location | Refusal
        if isinstance(decision, Update):
            location = await store.bind(decision.registration)
            if location is Refusal.TOO_MANY_CONTACTS:
                location = await self._make_room(decision.registration)
        else:
            location = await store.lookup(aor, now)
        if isinstance(location, Refusal):
            self.refused(transaction, aor, location, tag)
            return
        await STEP
        transaction.respond(ok_response(request, decision, location, now, tag))
        if isinstance(decision, Update):
            self.registered(aor, decision, location, flow)

    async def _make_room(self, registration: Registration) -> Location | Refusal:
        """Store what was one contact too many, in place of phones that are not there any more."""
        stored = await self.store.lookup(registration.aor, registration.now_epoch)
        registration.replaceable = self.replaceable(stored, registration)
        if not registration.replaceable:
            return Refusal.TOO_MANY_CONTACTS
        location = await self.store.bind(registration)
        if isinstance(location, Location):
            left = {binding.device for binding in location.bindings}
            removed = [b.contact for b in stored.bindings if b.device not in left]
            log.info("contacts_removed", aor=registration.aor, contacts=removed)
        return location

    def replaceable(
        self, location: Location, registration: Registration
    ) -> tuple[tuple[str, str], ...]:
        """The bindings that make room, as far as the operator allows it."""
        is_lost, existing = self.messages.proxy.is_lost, self.policy.remove_existing
        return replaceable(location, registration, is_lost, existing=existing)

    @staticmethod
    def refused(transaction: ServerTransactionHandle, aor: Aor, refusal: Refusal, tag: str) -> None:
        """Tell the phone that nothing was stored, and why."""
        REGISTERS.counts[("refused",)] += 1
        request = transaction.request
        log.info(
            "registration_refused",
            aor=aor,
            reason=refusal.value,
            call_id=request.call_id,
            cseq=request.cseq.number,
        )
        transaction.respond(rejection_response(request, refuse(refusal), tag))

    def registered(self, aor: Aor, decision: Update, location: Location, flow: str) -> None:
        """After the 200: the phone must know that it is registered before it is called."""
        devices = decision.devices
        self.bucket.refreshed(aor, location, devices)
        self.messages.registered(aor, location, devices)
        _tell(decision, location.has_come, flow)


def _tell(update: Update, has_come: bool, flow: str) -> None:
    """Count what was stored, and log it if that is news: a device that came or went.

    Refreshes are nearly all that a registrar hears, often from another port or network: a line for
    each would take a sixth of their time.
    """
    registration = update.registration
    if registration.bind:
        REGISTERS.counts[("registered",)] += 1
    else:
        REGISTERS.counts[("unregistered",)] += 1
    has_gone = registration.unbind or registration.unbind_all or registration.push_off
    is_news = bool(has_come or has_gone)
    if is_news or shown.debug:
        say = log.info if is_news else log.debug
        say(
            "registered" if registration.bind else "unregistered",
            aor=registration.aor,
            flow=flow,
            call_id=registration.call_id,
            contacts=[binding.contact for binding in registration.bind],
            push=[record.app_id for record in registration.push],
        )
    if update.push_fault:
        UNUSABLE_PUSH_HEADERS.counts[()] += 1
        log.warning("push_header_unusable", aor=registration.aor, reason=update.push_fault)
    if update.ignored_path:
        log.warning(
            "path_ignored",
            aor=registration.aor,
            path=update.ignored_path,
            remote=remote_ip(flow),
            reason="not from a trusted peer: if it is an edge proxy of yours, add it to [[peers]]",
        )
