"""What all push services have in common as HTTP servers: TLS, always verified, and Retry-After."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

CONNECT_TIMEOUT = 4.0
"Seconds until a connection must be open; a stalled handshake must not cost the call."


def client_context(ca_file: Path | None, *alpn: str) -> ssl.SSLContext:
    """A context that trusts ``ca_file`` instead of the system's CAs. Raises OSError."""
    context = ssl.create_default_context(cafile=ca_file)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def distrusted(error: BaseException | None) -> bool:
    """Whether the peer's certificate was the reason, anywhere down the chain of errors."""
    seen: set[int] = set()
    queue: list[object] = [error]
    while queue:
        cause = queue.pop()
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        seen.add(id(cause))
        queue += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]
    return False


def retry_after(value: str) -> float:
    """Seconds a ``Retry-After`` asks for; 0 when it has none or is a date."""
    return float(value) if re.fullmatch(r"\d{1,6}", value) else 0.0


def word(value: object) -> str:
    """A service's reason, fit for a log: a single word, or nothing."""
    return value[:64] if isinstance(value, str) and re.fullmatch(r"\w{1,200}", value) else ""
