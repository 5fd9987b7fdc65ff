#!/usr/bin/env python3
"""Phones that register and then do nothing: for counting memory.

    idle.py HOST:PORT --domain DOMAIN --phones 1000 --transport tls --tls-port PORT

Each has a socket of its own.  Prints READY when all are registered, and ends when stdin does.
Standard library only.
"""
import argparse
import resource
import selectors
import sys
from types import SimpleNamespace

from hold import Link, Rig

class Idle(Rig):
    def run(self):
        for callee in self.callees:
            callee.link = Link(self, self.a.transport)
            callee.link.owner = callee
        if self.registrations(self.callees, 3600) != len(self.callees):
            return 1
        print("READY", flush=True)
        sys.stdin.read()
        return 0


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("target", help="HOST:PORT")
    p.add_argument("--domain", required=True)
    p.add_argument("--phones", type=int, default=1000)
    p.add_argument("--base", type=int, default=0)
    p.add_argument("--transport", choices=("udp", "tcp", "tls"), default="tcp")
    p.add_argument("--tls-port", type=int, default=5061)
    a = p.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rest = {"calls": a.phones, "password": "secret", "device_os": "ios"}
    sys.exit(Idle(SimpleNamespace(**vars(a), **rest, app_id="com.example.app")).run())


if __name__ == "__main__":
    main()
