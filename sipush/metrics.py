"""What is counted, for Prometheus (docs/operations.md lists it).

Names follow Prometheus' rules; labels never hold a user, a device or a token.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import REGISTRY, Gauge, Histogram, make_wsgi_app
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from sipush.core.bindings import Platform
from sipush.core.push_request import PushResult
from sipush.core.wake_up import WakeUpOutcome
from sipush.errors import TransportError


class Tally(Collector):
    """A counter in plain numbers: one of prometheus_client's takes a lock for every step."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self.counts: defaultdict[tuple[str, ...], int] = defaultdict(int)
        "By the values of the labels. To add to a Counter takes twice as long, compiled more."
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._count: Callable[[], int] | None = None
        self._created_epoch = time.time()
        REGISTRY.register(self)

    def begin(self, values: Iterable[tuple[str, ...]]) -> None:
        """Tell 0 of them: an increase from nothing is none for Prometheus."""
        self.counts.update(dict.fromkeys(values, 0))

    def set_function(self, count: Callable[[], int]) -> None:
        """Ask for the count of one that has no labels."""
        self._count = count

    def collect(self) -> Iterator[CounterMetricFamily]:
        """What Prometheus reads."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        if self._count is not None:
            self.counts[()] = self._count()
        for values, count in list(self.counts.items()):
            family.add_metric(values, count, self._created_epoch)
        yield family


REGISTERS = Tally("sipush_registers", "REGISTER requests by outcome.", ["outcome"])
REGISTERS.begin([("registered",), ("unregistered",), ("refused",), ("failed",)])
UNUSABLE_PUSH_HEADERS = Tally(
    "sipush_unusable_push_headers", "Registrations whose push header could not be used.", []
)
UNUSABLE_PUSH_HEADERS.begin([()])
CALLS = Tally("sipush_calls", "INVITE requests by the class of their final response.", ["class"])
CALLS.begin((f"{digit}xx",) for digit in range(2, 7))
PUSHES = Tally("sipush_pushes", "Pushes by service and result.", ["service", "result"])
PUSHES.begin((service.value, result.value) for service in Platform for result in PushResult)
WAKE_UPS = Tally("sipush_wake_ups", "Devices pushed for a call, by what came of it.", ["outcome"])
WAKE_UPS.begin((outcome.value,) for outcome in WakeUpOutcome)
WAKE_SECONDS = Histogram(
    "sipush_wake_seconds",
    "From the push to the REGISTER of the woken device.",
    buckets=(0.5, 1, 2, 3, 5, 8, 12, 20, 30, 60),
)
HEP_PACKETS = Tally(
    "sipush_hep_packets", "Copies of SIP messages for a capture server.", ["outcome"]
)
HEP_PACKETS.begin([("sent",), ("lost",)])
TURNED_AWAY = Tally("sipush_turned_away", "Messages of strangers and banned sources not heard.", [])
TURNED_AWAY.begin([()])
CERTIFICATE_EXPIRES = Gauge(
    "sipush_certificate_expires_timestamp_seconds", "When a certificate runs out.", ["file"]
)
TRANSACTIONS = Gauge("sipush_transactions", "Live SIP transactions.", ["side"])
FORWARDED = Gauge("sipush_forwarded_requests", "Requests being forwarded, held calls among them.")


REQUEST_TIME = 5.0
"Seconds that who asks may be silent in a request: each costs a thread and a descriptor."


class _Server(ThreadingWSGIServer):
    """A thread for each request."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever asked has gone, or said nothing: no reason for a traceback in the log."""


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIME

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class MetricsServer:
    """Answers Prometheus from a thread of its own, off the event loop."""

    def __init__(self, listen: str) -> None:
        """``listen``: host:port. Raises TransportError."""
        host, _, port = listen.rpartition(":")
        try:
            found = socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, _, _, _, address = found[0]

            class Server(_Server):
                address_family = family

            self._server = make_server(
                str(address[0]), int(port), make_wsgi_app(), Server, _Handler
            )
        except OSError as error:
            raise TransportError(f"metrics {listen}: {error.strerror or error}") from error
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
