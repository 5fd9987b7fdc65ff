from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from sipush.config import ListenConfig
from sipush.transport.connection import Limits
from sipush.transport.flow import Flow
from sipush.transport.listeners import Listeners
from tests.transport.authority import Authority
from tests.transport.support import Recorder

Open = Callable[..., Awaitable[Listeners]]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def listen(recorder: Recorder) -> AsyncIterator[Open]:
    """``await listen("udp", "tcp", address=…)``: open listeners that tell ``recorder``."""
    async with AsyncExitStack() as stack:

        async def open_listeners(
            *transports: str,
            address: str = "127.0.0.1",
            port: int = 0,
            limits: Limits | None = None,
            may_stay: Callable[[Flow], bool] | None = None,
            **config: object,
        ) -> Listeners:
            configs = [
                ListenConfig.model_validate(
                    {"transport": transport, "address": address, "port": port, **config}
                )
                for transport in transports
            ]
            listeners = Listeners(configs, limits)
            await listeners.open(recorder, may_stay)
            stack.push_async_callback(listeners.close)
            return listeners

        yield open_listeners
