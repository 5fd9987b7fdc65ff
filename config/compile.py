"""Compile the modules that every message passes through: ``make compile`` (docs/performance.md).

The modules are the same files: without this step Python runs them as they are.
"""

from pathlib import Path

from mypyc.build import mypycify
from setuptools import setup

#: mypyc 2.4 takes the members of an IntEnum for plain numbers.
LEFT_OUT = {"__init__.py", "status.py"}

MODULES = [
    *(path for room in ("sip", "core") for path in Path("sipush", room).glob("*.py")),
    *(
        # Not tasks: the StopIteration that ends a coroutine costs mypyc three times as much.
        Path("sipush/server", f"{name}.py")
        for name in (
            *("acknowledgements", "answers", "completed", "endpoint", "forwarding", "gate"),
            *("held_calls", "in_dialog", "locations", "message_arrival", "messages", "proxy"),
            *("proxy_policy", "push_bucket", "registrar", "sign_in", "steps", "subscribers"),
            *("target_sets", "timer_wheel", "transactions", "waking"),
        )
    ),
    *(
        Path("sipush", f"{name}.py")
        for name in (
            "ids",
            *("log_lines", "log_output"),
            *("location/memory", "location/redis_bind", "location/redis_commands"),
            *("location/redis_connection", "location/redis_rows"),
            *("location/sqlite_rows", "location/sqlite_worker"),
            "push/dispatcher",
            *("transport/connection", "transport/listeners", "transport/stream"),
            *("transport/udp", "transport/websocket"),
            "turns",
        )
    ),
]

#: All of it is one library whose functions nobody else calls: none needs to go by way of a table.
FLAGS = ["-fvisibility=hidden", "-fno-plt"]

extensions = mypycify(
    sorted(str(path) for path in MODULES if path.name not in LEFT_OUT),
    group_name="sipush.compiled",
    opt_level="2",  # 3 takes a third longer
    debug_level="0",
)
for extension in extensions:
    extension.extra_compile_args = [*extension.extra_compile_args, *FLAGS]  # they share a list
setup(ext_modules=extensions)
