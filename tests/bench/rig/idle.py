#!/usr/bin/env python3
"""Phones that register and then do nothing: for counting memory.

    idle.py HOST:PORT --domain DOMAIN --phones 1000 --transport tls

Each has a socket of its own.  Prints READY when all are registered, and ends when stdin does.
Standard library only.
"""
import argparse
import resource
import selectors
import ssl
import sys
import time
from types import SimpleNamespace

from hold import Link, Rig

TRUST_ANYBODY = ssl._create_unverified_context()


class TlsLink(Link):
    def __init__(self, rig):
        super().__init__(rig, tcp=True)
        rig.sel.unregister(self.sock)
        self.sock.setblocking(True)
        self.sock = TRUST_ANYBODY.wrap_socket(self.sock)
        self.sock.setblocking(False)
        rig.sel.register(self.sock, selectors.EVENT_READ, self)

    def read(self):
        """Answers to a REGISTER are small: each is one record."""
        while True:
            try:
                data = self.sock.recv(65535)
            except (ssl.SSLWantReadError, ConnectionError):
                return
            if not data:
                return
            yield data, time.time_ns()


class Idle(Rig):
    def run(self):
        for callee in self.callees:
            callee.link = TlsLink(self) if self.a.transport == "tls" else Link(self, self.tcp)
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
    a = p.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rest = {"calls": a.phones, "password": "secret", "device_os": "ios"}
    sys.exit(Idle(SimpleNamespace(**vars(a), **rest, app_id="com.example.app")).run())


if __name__ == "__main__":
    main()
