"""A push service in a process of its own, whose CPU is not the server's.

``python -m tests.bench.push_checker DIRECTORY APP_ID`` prints its ``[apps]`` section as TOML and an
empty line; then, for every line on stdin, what it has received, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sipush.demo.credentials import Credentials
from sipush.demo.push_service import PushService


def _section(name: str, config: object, *keys: str) -> str:
    lines = [f'{key} = "{getattr(config, key)}"' for key in keys]
    return "\n".join([f'[apps."{sys.argv[2]}".{name}]', *lines])


def _received(service: PushService) -> str:
    pushes = service.pushes
    return json.dumps(
        {
            "pushes": len(pushes),
            "devices": len({push.token for push in pushes}),
            "violations": service.violations[:5],
            "last_epoch": max((push.received_epoch for push in pushes), default=0),
        }
    )


if __name__ == "__main__":
    directory, app_id = sys.argv[1:]
    with PushService(Credentials.create(Path(directory)), app_ids=(app_id,)) as service:
        tls = ("server", "ca_file")
        print(
            _section("apns", service.apns_config(), "key_file", "key_id", "team_id", *tls),
            _section("fcm", service.fcm_config(), "service_account_file", *tls),
            sep="\n",
            end="\n\n",
            flush=True,
        )
        for _ in sys.stdin:
            print(_received(service), flush=True)
