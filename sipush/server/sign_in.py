"""Who sends a request: Digest, and what slows those who guess (RFC 3261 §22)."""

from __future__ import annotations

from collections.abc import Callable

from sipush.core.authentication import Authenticator, Challenge, subscriber_aor
from sipush.core.bindings import Subscriber
from sipush.core.routing import Realm
from sipush.server.answers import wait_to_sign_in
from sipush.server.gate import Gate
from sipush.server.subscribers import Subscribers
from sipush.sip.digest import find_credentials
from sipush.sip.message import Request, Response
from sipush.sip.status import Status
from sipush.transport.flow import Flow


class SignIn:
    """Finds out whose request it is, for the registrar (401) and the proxy (407)."""

    def __init__(
        self,
        realm: Realm,
        authenticator: Authenticator,
        subscribers: Subscribers,
        gate: Gate,
        clock: Callable[[], float],
    ) -> None:
        self._realm = realm
        self._authenticator = authenticator
        self._subscribers = subscribers
        self._gate = gate
        self._clock = clock

    def challenge(
        self,
        flow: Flow,
        request: Request,
        domain: str,
        tag: str,
        status: Status = Status.UNAUTHORIZED,
        *,
        stale: bool = False,
    ) -> Response:
        """Ask for credentials of a user of ``domain``. ``tag``: To tag of the response."""
        return self._authenticator.challenge(
            request,
            domain,
            self._clock(),
            tag,
            client=self._gate.client(flow),
            stale=stale,
            status=status,
        )

    async def user(
        self,
        flow: Flow,
        request: Request,
        domain: str,
        tag: str,
        status: Status = Status.UNAUTHORIZED,
    ) -> Subscriber | Response:
        """Who has signed the request, or the response that refuses it. Raises LocationError."""
        since, gate = self._clock(), self._gate
        name = "authorization" if status is Status.UNAUTHORIZED else "proxy-authorization"
        credentials = find_credentials(request.headers.get_all(name), domain)
        user, subscriber = "", None
        if credentials:
            user = subscriber_aor(credentials.username, domain, self._realm.domains)
            subscriber = await self._subscribers.get(user)
            if gate.suspects(user) and (wait := await gate.slows(flow, user, request)):
                return wait_to_sign_in(request, wait, tag)
        if gate.is_banned(flow):  # no password is looked at
            credentials = None
        client = gate.client(flow)
        verdict = self._authenticator.verify(credentials, request, subscriber, since, client)
        if isinstance(verdict, Challenge):
            if verdict.wrong:
                await gate.sign_in_failed(flow, user, since, request.call_id)
            return self.challenge(flow, request, domain, tag, status, stale=verdict.stale)
        gate.signed_in(flow, user)
        assert subscriber is not None
        return subscriber
