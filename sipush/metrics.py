"""What is counted, for Prometheus (docs/operations.md lists it).

Names follow Prometheus' rules; labels never hold a user, a device or a token.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from sipush.errors import TransportError

REGISTERS = Counter("sipush_registers", "REGISTER requests by outcome.", ["outcome"])
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
