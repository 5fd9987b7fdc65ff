"""The three stores, open and empty."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from sipush.config import RedisConfig, SqliteConfig, StoreConfig
from sipush.location import make_store
from sipush.location.store import LocationStore

GUIDE = Path(__file__).parents[2] / "docs" / "storing.md"


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def store_config(request: pytest.FixtureRequest, tmp_path: Path) -> StoreConfig:
    redis = RedisConfig()
    if request.param == "redis":
        redis = await with_few_rights(request.getfixturevalue("redis_server").url, tmp_path)
    sqlite = SqliteConfig(path=tmp_path / "sipush.db")
    return StoreConfig(type=request.param, sqlite=sqlite, redis=redis)


async def with_few_rights(url: str, tmp_path: Path) -> RedisConfig:
    """A prefix of its own, and a user who may do what operators are told to allow."""
    prefix, password_file = f"test-{secrets.token_hex(4)}", tmp_path / "password"
    password_file.write_text("secret\n")
    told = re.search(r"^user sipush (on >PASSWORD .+)$", GUIDE.read_text(), re.MULTILINE)
    assert told is not None
    rights = told[1].replace("PASSWORD", "secret").replace("sipush:", f"{prefix}:").split()
    async with Redis.from_url(url) as operator:
        await operator.execute_command("ACL", "SETUSER", prefix, *rights)  # type: ignore[no-untyped-call]
    mine = url.replace("redis://", f"redis://{prefix}@")
    return RedisConfig(url=mine, password_file=password_file, prefix=prefix)


@pytest.fixture
async def store(store_config: StoreConfig) -> AsyncIterator[LocationStore]:
    store = make_store(store_config)
    await store.open()
    yield store
    await store.close()
