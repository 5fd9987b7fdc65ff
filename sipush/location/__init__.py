"""Where bindings, push records and subscribers live."""

from __future__ import annotations

from sipush.config import StoreConfig
from sipush.location.store import LocationStore


def make_store(config: StoreConfig) -> LocationStore:
    """The store that ``config`` names, not yet open; only its own libraries are imported."""
    match config.type:
        case "memory":
            from sipush.location.memory import MemoryStore  # noqa: PLC0415

            return MemoryStore()
        case "sqlite":
            from sipush.location.sqlite import SqliteStore  # noqa: PLC0415

            return SqliteStore(config.sqlite)
        case "redis":
            from sipush.location.redis import RedisStore  # noqa: PLC0415

            return RedisStore(config.redis)
