"""A push service in a process of its own, whose CPU is not the server's.

``python -m tests.bench.push_checker DIRECTORY APP_ID`` prints its ``[apps]`` section as TOML.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sipush.demo.credentials import Credentials
from sipush.demo.push_service import PushService

if __name__ == "__main__":
    directory, app_id = sys.argv[1:]
    with PushService(Credentials.create(Path(directory)), app_ids=(app_id,)) as service:
        apns = service.apns_config()
        print(f'[apps."{app_id}".apns]')
        for name in ("key_file", "key_id", "team_id", "server", "ca_file"):
            print(f'{name} = "{getattr(apns, name)}"')
        print(flush=True)
        sys.stdin.read()
