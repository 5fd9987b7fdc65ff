"""A process that registers for ever and prints every CSeq once it is stored."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sipush.config import SqliteConfig
from sipush.location.sqlite import SqliteStore
from tests.location.rows import binding, record, registration


async def main(path: Path) -> None:
    store = SqliteStore(SqliteConfig(path=path))
    await store.open()
    cseq = 0
    while True:
        cseq += 1
        await store.bind(registration(binding(cseq=cseq), push=(record(token=f"token-{cseq}"),)))
        sys.stdout.write(f"{cseq}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
