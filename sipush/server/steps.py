"""Steps that all who came together take together."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final


class Step:
    """Awaited between two steps: the others who came with it take the first before it goes on.

    What many do in a row finds its code in the processor's caches, too small for that of all steps:
    a tenth of a REGISTER's time. ``Tasks`` knows it, and no asyncio.Task.
    """

    def __await__(self) -> Generator[Step, None, None]:
        yield self


STEP: Final = Step()
