"""What is counted, for Prometheus (docs/operations.md lists it).

Names follow Prometheus' rules; labels never hold a user, a device or a token.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from sipush.errors import TransportError


class Registers(Collector):
    """REGISTER requests by outcome, in plain numbers: a Counter takes a lock for every one."""

    def __init__(self) -> None:
        self.registered = self.unregistered = self.refused = 0
        self._created_epoch = time.time()

    def collect(self) -> Iterator[CounterMetricFamily]:
        """What Prometheus reads."""
        family = CounterMetricFamily(
            "sipush_registers", "REGISTER requests by outcome.", labels=["outcome"]
        )
        for outcome in ("registered", "unregistered", "refused"):
            family.add_metric([outcome], getattr(self, outcome), self._created_epoch)
        yield family


REGISTERS = Registers()
REGISTRY.register(REGISTERS)
UNUSABLE_PUSH_HEADERS = Counter(
    "sipush_unusable_push_headers", "Registrations whose push header could not be used."
)
CALLS = Counter("sipush_calls", "INVITE requests by the class of their final response.", ["class"])
PUSHES = Counter("sipush_pushes", "Pushes by service and result.", ["service", "result"])
WAKE_UPS = Counter("sipush_wake_ups", "Devices pushed for a call, by what came of it.", ["outcome"])
WAKE_SECONDS = Histogram(
    "sipush_wake_seconds",
    "From the push to the REGISTER of the woken device.",
    buckets=(0.5, 1, 2, 3, 5, 8, 12, 20, 30, 60),
)
CERTIFICATE_EXPIRES = Gauge(
    "sipush_certificate_expires_timestamp_seconds", "When a certificate runs out.", ["file"]
)
TRANSACTIONS = Gauge("sipush_transactions", "Live SIP transactions.", ["side"])
FORWARDED = Gauge("sipush_forwarded_requests", "Requests being forwarded, held calls among them.")
TURNED_AWAY = Gauge("sipush_turned_away", "Messages of strangers and banned sources not heard.")


class MetricsServer:
    """Answers Prometheus from a thread of its own, off the event loop."""

    def __init__(self, listen: str) -> None:
        """``listen``: host:port. Raises TransportError."""
        host, _, port = listen.rpartition(":")
        try:
            self._server, self._thread = start_http_server(int(port), host.strip("[]"))
        except OSError as error:
            raise TransportError(f"metrics {listen}: {error.strerror or error}") from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
