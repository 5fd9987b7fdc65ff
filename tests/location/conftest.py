"""The three stores, open and empty."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sipush.config import RedisConfig, SqliteConfig, StoreConfig
from sipush.location import make_store
from sipush.location.store import LocationStore


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store_config(request: pytest.FixtureRequest, tmp_path: Path) -> StoreConfig:
    redis = RedisConfig()
    if request.param == "redis":
        url = request.getfixturevalue("redis_server").url
        redis = RedisConfig(url=url, prefix=f"test-{secrets.token_hex(4)}")
    sqlite = SqliteConfig(path=tmp_path / "sipush.db")
    return StoreConfig(type=request.param, sqlite=sqlite, redis=redis)


@pytest.fixture
async def store(store_config: StoreConfig) -> AsyncIterator[LocationStore]:
    store = make_store(store_config)
    await store.open()
    yield store
    await store.close()
