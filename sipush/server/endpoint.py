"""Hands every request to the part of the server that answers it."""

from __future__ import annotations

import structlog

from sipush.core.rejection import Rejection
from sipush.errors import LocationError, MessageError, TransportError
from sipush.metrics import REGISTERS
from sipush.server.answers import INTERNAL_ERROR, STORE_DOWN, reject
from sipush.server.edge import Edge, pass_back
from sipush.server.proxy import Proxy
from sipush.server.registrar import Registrar
from sipush.server.tasks import Tasks
from sipush.server.transactions import ServerTransactionHandle
from sipush.sip.message import Request, Response
from sipush.sip.status import Status
from sipush.transport.flow import Flow

log = structlog.get_logger()


class Endpoint:
    """The transaction user (RFC 3261 §5, §17): a registrar and a proxy behind one door."""

    def __init__(self, registrar: Registrar, proxy: Proxy) -> None:
        self._registrar = registrar
        self._proxy = proxy
        self._edge = Edge(registrar, proxy)
        self._tasks = Tasks()

    def stateless_answer(self, flow: Flow, request: Request) -> Response | None:
        """A challenge, which the registrar makes anew when the REGISTER is repeated."""
        if request.method != "REGISTER":
            return None
        try:
            if self._is_for_edge(request):
                return None
            response = self._registrar.challenge(flow, request)
        except MessageError:
            return None  # to be answered as all others are
        if response is not None:
            self._proxy.bucket.flow_active(flow.name)
        return response

    def requests_received(self, transactions: list[ServerTransactionHandle]) -> None:
        """Answer or forward new requests."""
        self._tasks.start_together([self._handle(each, each.request) for each in transactions])

    async def _handle(self, transaction: ServerTransactionHandle, request: Request) -> None:
        """Nothing goes unanswered: every error becomes a final response."""
        try:
            self._proxy.bucket.flow_active(transaction.flow.name)
            if request.method == "REGISTER" and self._is_for_edge(request):
                await self._edge.handle(transaction, request)
            elif request.method == "REGISTER":
                await self._registrar.handle(transaction, request)
            else:
                await self._proxy.handle(transaction, request)
        except MessageError as error:
            rejection = Rejection(Status(error.status), error.reason)
            reject(transaction, rejection, self._proxy.new_id())
        except LocationError as error:
            if request.method == "REGISTER":
                REGISTERS.counts[("failed",)] += 1
            log.error("store_unavailable", reason=str(error))
            reject(transaction, STORE_DOWN, self._proxy.new_id())
        except Exception:
            reject(transaction, INTERNAL_ERROR, self._proxy.new_id())
            raise

    def _is_for_edge(self, request: Request) -> bool:
        """Whether a REGISTER is for a registrar elsewhere. Raises MessageError."""
        return bool(self._proxy.policy.registrars) and self._edge.serves(request)

    def ack_received(self, ack: Request) -> None:
        """The ACK of a 2xx."""
        self._tasks.start(self._forward_ack(ack))

    async def _forward_ack(self, ack: Request) -> None:
        try:
            await self._proxy.forward_ack(ack)
        except (MessageError, LocationError, TransportError) as error:
            log.info("ack_lost", reason=str(error))

    def cancelled(self, transaction: ServerTransactionHandle, cancel: Request) -> None:
        """The layer has answered the CANCEL; the request it cancels is the proxy's."""
        self._proxy.cancelled(transaction, cancel)

    def stray_response_received(self, flow: Flow, response: Response) -> None:
        """RFC 6026 §8.9: a response that matches no client transaction is not forwarded.

        But the answer to a call that outlived a crash has lost its transaction there, and that of
        an app that was suspended with a MESSAGE in its socket comes when ours is over.
        """
        proxy = self._proxy
        if proxy.answer_came(flow, response) or proxy.messages.answered_late(response):
            return
        if pass_back(proxy, flow, response):
            return
        log.debug("stray_response", status=response.status, flow=flow.name)

    def way_back(self, response: Response, flow: Flow) -> Flow:
        """To where the Via says that the caller listens."""
        return self._proxy.way_back(response.top_via, flow.name)

    def flow_active(self, flow: Flow) -> None:
        """A device we wait for there is awake."""
        self._proxy.bucket.flow_active(flow.name)

    async def close(self) -> None:
        """Cancel what is still being answered."""
        await self._tasks.close()
