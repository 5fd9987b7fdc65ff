#!/usr/bin/env python3
"""One phone that refreshes its registration over and over: how long the answers take.

    probe.py HOST:PORT --domain DOMAIN --user u009999

Prints READY once it is registered; then a REGISTER leaves every --every seconds, whether the one
before was answered or not, until a line comes on stdin.  The result is one JSON line: pairs of
[UNIX seconds when it was sent, milliseconds until its answer, or null].  Answers are timed by the
kernel, so that a busy probe does not add to the figures.  Standard library only.
"""
import argparse
import json
import select
import sys
import time
from types import SimpleNamespace

from hold import Callee, Link, Msg, Rig


class Probe(Rig):
    def __init__(self, a):
        super().__init__(a)
        self.phone = Callee(a.user)
        self.phone.link, self.phone.tries = Link(self), 0
        self.waiting, self.sent = {}, []

    def on_message(self, link, msg: Msg):
        number = msg.one("cseq").split()[0]
        if self.phone.auth is None:
            self.phone.auth = self.challenge(msg)
        elif number in self.waiting and msg.code == 200:
            entry = self.waiting.pop(number)
            entry[1] = round((msg.stamp / 1e9 - entry[0]) * 1000, 3)

    def send_one(self):
        text = self.register(self.phone, 3600)
        entry = [time.time(), None]
        self.waiting[str(self.phone.cseq)] = entry
        self.sent.append(entry)
        self.phone.link.send(text)

    def run(self):
        self.phone.link.send(self.register(self.phone, 3600))
        if not self.until(lambda: self.phone.auth, 5):
            return 1
        print("READY", flush=True)
        due = time.monotonic()
        while not select.select([sys.stdin], [], [], 0)[0]:
            self.send_one()
            due += self.a.every
            while (rest := due - time.monotonic()) > 0:
                self.turn(rest)
        self.until(lambda: not self.waiting, 5)
        print(json.dumps(self.sent))
        return 0


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("target", help="HOST:PORT")
    p.add_argument("--domain", required=True)
    p.add_argument("--user", required=True)
    p.add_argument("--every", type=float, default=0.01)
    a = p.parse_args()
    common = {"calls": 0, "base": 0, "transport": "udp", "password": "secret"}
    rest = {"device_os": "ios", "app_id": "com.example.app"}
    sys.exit(Probe(SimpleNamespace(**vars(a), **common, **rest)).run())


if __name__ == "__main__":
    main()
