"""Random names."""

from __future__ import annotations

import secrets
from typing import Final


def new_id() -> str:
    """A tag or branch part that nobody can guess (RFC 3261 §19.3)."""
    if not _ids:
        # Many at a time: each draw is a system call.
        text = secrets.token_hex(8 * 256)
        _ids.extend(text[start : start + 16] for start in range(0, len(text), 16))
    return _ids.pop()


_ids: Final[list[str]] = []
