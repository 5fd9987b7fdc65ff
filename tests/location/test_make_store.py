"""The store that the configuration names."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sipush.config import StoreConfig
from sipush.location import make_store
from sipush.location.memory import MemoryStore
from sipush.location.redis import RedisStore
from sipush.location.sqlite import SqliteStore


@pytest.mark.parametrize(
    ("name", "kind"), [("memory", MemoryStore), ("sqlite", SqliteStore), ("redis", RedisStore)]
)
def test_the_type_names_the_store(name: str, kind: type):
    assert isinstance(make_store(StoreConfig.model_validate({"type": name})), kind)


def test_the_embedded_store_does_not_load_redis():
    code = (
        "import sys; from sipush.config import StoreConfig; from sipush.location import make_store;"
        "make_store(StoreConfig()); sys.exit('redis' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
