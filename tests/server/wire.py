"""A transaction layer on a virtual clock, and flows whose far end is the test."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from sipush.errors import TransportError
from sipush.server.transactions import Failure, ServerTransactionHandle, TransactionLayer
from sipush.sip.message import Request, Response, parse_datagram
from sipush.sip.timers import Timers
from sipush.transport.flow import Address, Flow


class VirtualClock:
    """``loop.time`` and ``loop.call_later`` without waiting."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, function: Callable[[], None]) -> None:
        heappush(self._calls, (self.now + delay, next(self._order), function))

    def advance(self, seconds: float) -> None:
        """Let time pass, running what falls due at its own time."""
        end = self.now + seconds
        while self._calls and self._calls[0][0] <= end:
            self.now, _, function = heappop(self._calls)
            function()
        self.now = end

    @property
    def armed(self) -> int:
        """How many loop timers are waiting."""
        return len(self._calls)


class WireFlow:
    """A flow that keeps what is sent on it."""

    def __init__(self, transport: str = "UDP", remote: Address = ("192.0.2.1", 5060)) -> None:
        self.transport = transport
        self.local = ("198.51.100.1", 5060)
        self.sent_by = "198.51.100.1:5060"
        self.remote = remote
        self.name = f"{transport.lower()}/198.51.100.1:5060/{remote[0]}:{remote[1]}"
        self.closed = False
        self.sent: list[tuple[float, bytes]] = []
        self.clock = VirtualClock()

    def send(self, data: bytes) -> None:
        if self.closed:
            raise TransportError("closed")
        self.sent.append((round(self.clock.now, 1), data))

    def close(self) -> None:
        self.closed = True

    def take(self) -> list[Request | Response]:
        """What was sent since the last take."""
        messages = [parse_datagram(data) for _, data in self.sent]
        self.sent.clear()
        return messages

    def take_lines(self) -> list[str]:
        """The start lines of what was sent since the last take."""
        return [message.start_line for message in self.take()]

    def times(self) -> list[float]:
        """When something was sent."""
        return [at for at, _ in self.sent]


class Wire:
    """The layer under test; it is its own transaction user and writes down what it is told."""

    def __init__(self, transport: str = "UDP", timers: Timers | None = None) -> None:
        ids = count()
        self.clock = VirtualClock()
        self.flow = WireFlow(transport)
        self.flow.clock = self.clock
        self.layer = TransactionLayer(
            self,
            timers or Timers(),
            lambda: f"id{next(ids)}",
            self.clock.time,
            self.clock.call_later,
        )
        self.events: list[str] = []
        self.handles: list[ServerTransactionHandle] = []
        self.together: list[int] = []
        "How many of them came at a time."
        self.responses: list[Response] = []
        self.failures: list[Failure] = []
        self.stateless: Response | None = None
        "The answer to whatever comes and may have one without a transaction."
        self.back: WireFlow | None = None
        "Where a response goes whose connection has closed."

    def receive(self, *together: bytes) -> None:
        """The peer sent this."""
        self.layer.messages_received([(self.flow, parse_datagram(data)) for data in together])

    def stateless_answer(self, flow: Flow, request: Request) -> Response | None:
        return self.stateless

    def requests_received(self, transactions: list[ServerTransactionHandle]) -> None:
        self.handles.extend(transactions)
        self.together.append(len(transactions))
        self.events.extend(f"request {each.request.method}" for each in transactions)

    def ack_received(self, ack: Request) -> None:
        self.events.append("ack")

    def cancelled(self, transaction: ServerTransactionHandle, cancel: Request) -> None:
        assert transaction in self.handles
        self.events.append("cancelled")

    def way_back(self, response: Response, flow: Flow) -> WireFlow | None:
        return self.back

    def stray_response_received(self, flow: Flow, response: Response) -> None:
        self.events.append(f"stray {response.status}")

    def flow_active(self, flow: Flow) -> None:
        self.events.append("active")
