"""TLS towards the push services: always verified."""

from __future__ import annotations

import ssl
from pathlib import Path


def client_context(ca_file: Path | None, *alpn: str) -> ssl.SSLContext:
    """A context that trusts ``ca_file`` instead of the system's CAs. Raises OSError."""
    context = ssl.create_default_context(cafile=ca_file)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def distrusted(error: BaseException | None) -> bool:
    """Whether the peer's certificate was the reason, anywhere down the chain of errors."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        cause = queue.pop()
        if cause is None or id(cause) in seen:
            continue
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        seen.add(id(cause))
        queue += [cause.__cause__, cause.__context__]
        queue += [a for a in (*cause.args, getattr(cause, "reason", None)) if _is_error(a)]
    return False


def _is_error(value: object) -> bool:
    return isinstance(value, BaseException)
