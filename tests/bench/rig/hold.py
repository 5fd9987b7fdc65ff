#!/usr/bin/env python3
"""Held-call rig: phones that went to sleep, callers that wait, one push each (peer rig).

    hold.py HOST:PORT --calls 1000

What happens, for N callees at once:
  1. each registers with digest and an X-Push header, then its socket is closed
     (--death close), or it unregisters too (--death unregister);
  2. one INVITE for each goes out; the server is to hold it and to push;
  3. when the pushes have arrived (UDP datagram or HTTP POST on --push-port,
     recognised by the token or the user name) the calls count as held;
  4. each callee opens a new socket, REGISTERs, receives the INVITE, answers;
     the caller ACKs and hangs up.

Wake latency is the time from sending the re-REGISTER to the INVITE's arrival
at the callee, the latter as the kernel stamped it, so that a busy rig does not
add to the figure.  A REGISTER uses the nonce of the first registration; when
the server challenges it again, wake_ms counts from the authenticated one and
wake_with_401_ms from the first.

With --no-wake the calls are held, then cancelled: for counting memory.
With --sync it prints PRIMED (before the INVITEs), HELD, DONE and waits for a
line on stdin after each.  The result is one JSON line.  Standard library only.
"""
import argparse
import hashlib
import json
import os
import re
import resource
import selectors
import socket
import ssl
import struct
import sys
import time

SO_TIMESTAMPNS = 35
TRUST_ANYBODY = ssl._create_unverified_context()
RUN = f"{os.getpid():x}{int(time.time()) & 0xffff:x}"
SDP = ("v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=call\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
       "m=audio 40000 RTP/AVP 0 8 101\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\n"
       "a=rtpmap:101 telephone-event/8000\r\na=sendrecv\r\n")


def md5(text):
    return hashlib.md5(text.encode()).hexdigest()


def token(user):
    """A device token of 64 hex digits, the same for a user in every run."""
    return hashlib.sha256(user.encode()).hexdigest()


class Msg:
    """A received message: its start line, and its headers in order."""
    __slots__ = ("start", "headers", "stamp")

    def __init__(self, data, stamp):
        lines = data.split(b"\r\n\r\n", 1)[0].decode("latin-1").split("\r\n")
        self.start, self.stamp = lines[0], stamp
        self.headers = [(n.strip().lower(), v.strip()) for n, _, v in
                        (line.partition(":") for line in lines[1:])]

    def all(self, *names):
        return [v for n, v in self.headers if n in names]

    def one(self, *names):
        return next((v for n, v in self.headers if n in names), "")

    @property
    def code(self):
        return int(self.start.split(" ", 2)[1]) if self.start.startswith("SIP/2.0 ") else 0

    @property
    def method(self):
        return self.one("cseq").split()[-1]


class Link:
    """A UDP socket, or a TCP or TLS connection to the server."""

    def __init__(self, rig, transport="udp", buf=None):
        self.tcp, self.stream, self.owner = transport != "udp", b"", None
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if self.tcp else socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        if buf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buf)
        self.sock.bind((rig.local, 0))
        self.sock.connect(rig.tls_target if transport == "tls" else rig.target)
        if self.tcp:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if transport == "tls":
            self.sock = TRUST_ANYBODY.wrap_socket(self.sock)
        self.sock.setblocking(False)
        self.port = self.sock.getsockname()[1]
        self.name = transport.upper()
        self.tail = f";transport={transport}" if self.tcp else ""
        rig.sel.register(self.sock, selectors.EVENT_READ, self)

    def send(self, text):
        data = text.encode()
        try:
            self.sock.send(data)
        except (BlockingIOError, ConnectionError):
            pass

    def read(self):
        """Yield what has arrived as (bytes, kernel time in ns)."""
        while True:
            anc = []
            try:
                if self.name == "TLS":
                    data = self.sock.recv(65535)
                else:
                    data, anc, _, _ = self.sock.recvmsg(65535, 64)
            except (BlockingIOError, ConnectionError, ssl.SSLWantReadError):
                return
            if not data:
                return
            stamp = time.time_ns()
            for level, kind, raw in anc:
                if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS and len(raw) >= 16:
                    sec, ns = struct.unpack("qq", raw[:16])
                    stamp = sec * 10**9 + ns
            if not self.tcp:
                yield data, stamp
                continue
            self.stream += data
            while True:
                self.stream = self.stream.lstrip(b"\r\n")
                head, sep, rest = self.stream.partition(b"\r\n\r\n")
                if not sep:
                    break
                m = re.search(rb"\r\n(?:content-length|l)[ \t]*:[ \t]*(\d+)", head, re.I)
                n = int(m.group(1)) if m else 0
                if len(rest) < n:
                    break
                yield head + sep + rest[:n], stamp
                self.stream = rest[n:]

    def close(self, rig):
        rig.sel.unregister(self.sock)
        self.sock.close()


class Callee:
    def __init__(self, user):
        self.user, self.link, self.cseq, self.auth, self.nc = user, None, 0, None, 0
        self.t_first = self.t_authed = self.t_invite = 0
        self.registered = self.answered = False
        self.ok200 = None


class Call:
    def __init__(self, callee, link, cid):
        self.callee, self.link, self.cid, self.state = callee, link, cid, "new"
        self.t_sent = self.t_trying = self.t_push = self.t_answer = 0
        self.invite = self.ack = self.bye = ""
        self.final = 0
        self.auth = None
        self.seq = 1


class Rig:
    def __init__(self, a):
        self.a = a
        host, _, port = a.target.rpartition(":")
        self.target, self.local, self.domain = (host, int(port)), "127.0.0.1", a.domain or host
        self.tls_target = host, getattr(a, "tls_port", 0)
        self.sel = selectors.DefaultSelector()
        self.callees = [Callee(f"u{a.base + i:06d}") for i in range(a.calls)]
        self.by_user = {c.user: c for c in self.callees}
        self.by_token = {token(c.user): c for c in self.callees}
        self.calls, self.call_of = {}, {}
        self.again = {}       # key -> [when, gap, link, text]: UDP retransmissions
        self.resends = self.pushes = self.branch = self.extra_invites = 0
        self.push_seen = set()

    # ---- building messages

    def via(self, link):
        self.branch += 1
        return f"Via: SIP/2.0/{link.name} {self.local}:{link.port};branch=z9hG4bKh{RUN}-{self.branch:x};rport\r\nMax-Forwards: 70\r\n"

    def credentials(self, auth, user, method, uri, nc):
        ha1 = md5(f"{user}:{auth['realm']}:{self.a.password}")
        ha2 = md5(f"{method}:{uri}")
        head = (f"{auth['header']}: Digest username=\"{user}\", realm=\"{auth['realm']}\", nonce=\"{auth['nonce']}\", "
                f"uri=\"{uri}\", algorithm=MD5, ")
        if auth["qop"]:
            resp = md5(f"{ha1}:{auth['nonce']}:{nc:08x}:0a1b2c3d:auth:{ha2}")
            head += f"qop=auth, nc={nc:08x}, cnonce=\"0a1b2c3d\", "
        else:
            resp = md5(f"{ha1}:{auth['nonce']}:{ha2}")
        if auth["opaque"]:
            head += f"opaque=\"{auth['opaque']}\", "
        return head + f"response=\"{resp}\"\r\n"

    @staticmethod
    def challenge(msg):
        for name, value in msg.headers:
            if name not in ("www-authenticate", "proxy-authenticate"):
                continue
            p = {k.lower(): q or v for k, q, v in re.findall(r'(\w+)=(?:"([^"]*)"|([^",\s]+))', value)}
            if p.get("algorithm", "MD5").upper() != "MD5":
                continue
            return {"realm": p.get("realm", ""), "nonce": p.get("nonce", ""), "opaque": p.get("opaque", ""),
                    "qop": "auth" in p.get("qop", ""),
                    "header": "Authorization" if name == "www-authenticate" else "Proxy-Authorization"}
        return None

    def register(self, c, expires):
        c.cseq += 1
        uri = f"sip:{self.domain}"
        text = (f"REGISTER {uri} SIP/2.0\r\n{self.via(c.link)}"
                f"From: <sip:{c.user}@{self.domain}>;tag=r{RUN}{c.cseq}\r\nTo: <sip:{c.user}@{self.domain}>\r\n"
                f"Call-ID: hr-{c.user}-{RUN}\r\nCSeq: {c.cseq} REGISTER\r\n"
                f"Contact: <sip:{c.user}@{self.local}:{c.link.port}{c.link.tail}>\r\nExpires: {expires}\r\n"
                "User-Agent: hold rig 1.0\r\nAllow: INVITE, ACK, CANCEL, BYE, MESSAGE, OPTIONS\r\n"
                f"X-Push: device-os={self.a.device_os};device-uid={token(c.user)};allow-call-push=true;"
                f"allow-message-push=true;app-id={self.a.app_id}\r\n")
        if c.auth:
            c.nc += 1
            text += self.credentials(c.auth, c.user, "REGISTER", uri, c.nc)
        return text + "Content-Length: 0\r\n\r\n"

    def invite(self, call):
        uri = f"sip:{call.callee.user}@{self.domain}"
        caller = f"u{self.a.base + self.a.calls:06d}"
        text = (f"INVITE {uri} SIP/2.0\r\n{self.via(call.link)}"
                f"From: <sip:{caller}@{self.domain}>;tag=c{RUN}\r\nTo: <{uri}>\r\nCall-ID: {call.cid}\r\nCSeq: {call.seq} INVITE\r\n"
                f"Contact: <sip:{caller}@{self.local}:{call.link.port}>\r\nUser-Agent: hold rig 1.0\r\n"
                "Allow: INVITE, ACK, CANCEL, BYE, MESSAGE, OPTIONS\r\n")
        if call.auth:
            text += self.credentials(call.auth, caller, "INVITE", uri, 1)
        return text + f"Content-Type: application/sdp\r\nContent-Length: {len(SDP)}\r\n\r\n{SDP}"

    def in_dialog(self, call, msg, method):
        contact = re.search(r"<([^>]*)>", msg.one("contact", "m"))
        uri = contact.group(1) if contact else msg.one("contact", "m").split(";")[0]
        routes = [r for v in msg.all("record-route") for r in re.findall(r"<[^>]*>", v)]
        text = f"{method} {uri} SIP/2.0\r\n{self.via(call.link)}"
        text += "".join(f"Route: {r}\r\n" for r in reversed(routes))
        seq = call.seq + (method == "BYE")
        return (text + f"From: {msg.one('from', 'f')}\r\nTo: {msg.one('to', 't')}\r\nCall-ID: {call.cid}\r\n"
                f"CSeq: {seq} {method}\r\nContent-Length: 0\r\n\r\n")

    def same_branch(self, call, method, to):
        """CANCEL or the ACK of a failure: Via and Request-URI of the INVITE."""
        first, via = call.invite.split("\r\n")[0], re.search(r"Via: [^\r]*", call.invite).group(0)
        sender = re.search(r"From: [^\r]*", call.invite).group(0)
        return (first.replace("INVITE", method, 1) + f"\r\n{via}\r\nMax-Forwards: 70\r\n{sender}\r\nTo: {to}\r\n"
                f"Call-ID: {call.cid}\r\nCSeq: {call.seq} {method}\r\nContent-Length: 0\r\n\r\n")

    def reply(self, link, msg, status, body="", contact=False):
        text = f"SIP/2.0 {status}\r\n" + "".join(f"Via: {v}\r\n" for v in msg.all("via", "v"))
        if contact:
            text += "".join(f"Record-Route: {v}\r\n" for v in msg.all("record-route"))
            text += f"Contact: <sip:callee@{self.local}:{link.port}{link.tail}>\r\n"
        to = msg.one("to", "t")
        if ";tag=" not in to:
            to += f";tag=a{RUN}{link.port}"
        text += f"From: {msg.one('from', 'f')}\r\nTo: {to}\r\nCall-ID: {msg.one('call-id', 'i')}\r\nCSeq: {msg.one('cseq')}\r\n"
        if body:
            text += "Content-Type: application/sdp\r\n"
        text += f"Content-Length: {len(body)}\r\n\r\n{body}"
        link.send(text)
        return text

    # ---- sending, with retransmission over UDP

    def send(self, key, link, text):
        link.send(text)
        if not link.tcp:
            self.again[key] = [time.monotonic() + 0.5, 0.5, link, text]

    def stop(self, key):
        self.again.pop(key, None)

    def turn(self, timeout):
        for key, _ in self.sel.select(timeout):
            obj = key.data
            if isinstance(obj, Link):
                for data, stamp in obj.read():
                    self.on_message(obj, Msg(data, stamp))
            else:
                obj()
        t = time.monotonic()
        if t - getattr(self, "swept", 0) > 0.05:
            self.swept = t
            for key, item in list(self.again.items()):
                if t >= item[0]:
                    item[2].send(item[3])
                    self.resends += 1
                    item[1] = min(item[1] * 2, 4)
                    item[0] = t + item[1]

    def until(self, done, limit):
        end = time.monotonic() + limit
        while not done() and time.monotonic() < end:
            self.turn(0.02)
        return done()

    # ---- receiving

    def on_message(self, link, msg):
        if link.owner is self:
            return self.on_caller(link, msg)
        user = re.search(r"sip:(u\d{6})@", msg.one("to", "t"))
        c = link.owner or (user and self.by_user.get(user.group(1)))
        if not c:
            return None
        if msg.code:
            return self.on_register_reply(c, msg)
        method = msg.start.split(" ")[0]
        if method == "INVITE":
            if c.t_invite:
                self.extra_invites += 1
            else:
                c.t_invite = msg.stamp
            self.reply(link, msg, "180 Ringing", contact=True)
            c.ok200 = self.reply(link, msg, "200 OK", SDP, contact=True)
            if not link.tcp:
                self.again["ok", c.user] = [time.monotonic() + 0.5, 0.5, link, c.ok200]
        elif method == "ACK":
            self.stop(("ok", c.user))
            c.answered = True
        else:
            self.reply(link, msg, "200 OK")
        return None

    def on_register_reply(self, c, msg):
        if msg.method != "REGISTER" or msg.code < 200:
            return
        if not msg.one("cseq").startswith(f"{c.cseq} "):
            return
        self.stop(("reg", c.user))
        if msg.code in (401, 407) and c.tries < 2:
            c.tries += 1
            c.auth, c.nc = self.challenge(msg), 0
            text = self.register(c, c.expires)
            c.t_authed = time.time_ns()
            self.send(("reg", c.user), c.link, text)
        else:
            c.registered = msg.code == 200
            c.done = True
            if not c.registered:
                print(f"{c.user}: REGISTER answered {msg.start}", file=sys.stderr)

    def on_caller(self, link, msg):
        call = self.calls.get(msg.one("call-id", "i"))
        if not call:
            return
        code = msg.code
        if not code:
            self.reply(link, msg, "200 OK")
            return
        method = msg.method
        if method == "INVITE":
            if not msg.one("cseq").startswith(f"{call.seq} "):
                return
            self.stop(("inv", call.cid))
            if code < 200:
                call.t_trying = call.t_trying or msg.stamp
                if call.state == "sent":
                    call.state = "trying"
            elif code < 300:
                if not call.t_answer:
                    call.t_answer, call.state = msg.stamp, "answered"
                    call.ack, call.bye = self.in_dialog(call, msg, "ACK"), self.in_dialog(call, msg, "BYE")
                    link.send(call.ack)
                    self.send(("bye", call.cid), link, call.bye)
                else:
                    link.send(call.ack)
            else:
                link.send(self.same_branch(call, "ACK", msg.one("to", "t")))
                if code in (401, 407) and not call.auth:
                    call.auth = self.challenge(msg)
                    call.seq += 1
                    call.invite = self.invite(call)
                    self.send(("inv", call.cid), link, call.invite)
                else:
                    call.final, call.state = code, "failed"
                    self.stop(("cancel", call.cid))
        elif method == "BYE" and code >= 200:
            self.stop(("bye", call.cid))
            call.state = "done" if code < 300 else "failed"
        elif method == "CANCEL" and code >= 200:
            self.stop(("cancel", call.cid))

    # ---- the push service's side

    def open_push(self):
        self.push_udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.push_udp.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.push_udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.push_udp.bind((self.local, self.a.push_port))
        self.push_udp.setblocking(False)
        self.sel.register(self.push_udp, selectors.EVENT_READ, self.push_datagram)
        self.push_tcp = socket.create_server((self.local, self.a.push_port), backlog=1024)
        self.push_tcp.setblocking(False)
        self.sel.register(self.push_tcp, selectors.EVENT_READ, self.push_accept)

    def pushed(self, data, stamp):
        self.pushes += 1
        text = data.decode("latin-1")
        c = next((self.by_token[t] for t in re.findall(r"[0-9a-f]{64}", text) if t in self.by_token), None)
        if not c:
            user = re.search(r"u\d{6}", text)
            c = user and self.by_user.get(user.group(0))
        if c and c.user not in self.push_seen:
            self.push_seen.add(c.user)
            self.call_of[c.user].t_push = stamp

    def push_datagram(self):
        while True:
            try:
                data, anc, _, _ = self.push_udp.recvmsg(65535, 64)
            except BlockingIOError:
                return
            stamp = time.time_ns()
            for _, kind, raw in anc:
                if kind == SO_TIMESTAMPNS and len(raw) >= 16:
                    sec, ns = struct.unpack("qq", raw[:16])
                    stamp = sec * 10**9 + ns
            self.pushed(data, stamp)

    def push_accept(self):
        try:
            conn, _ = self.push_tcp.accept()
        except BlockingIOError:
            return
        conn.setblocking(False)
        state = {"in": b""}

        def readable():
            try:
                data = conn.recv(65535)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                self.sel.unregister(conn)
                conn.close()
                return
            state["in"] += data
            while True:
                head, sep, rest = state["in"].partition(b"\r\n\r\n")
                if not sep:
                    return
                m = re.search(rb"\r\ncontent-length[ \t]*:[ \t]*(\d+)", head, re.I)
                n = int(m.group(1)) if m else 0
                if len(rest) < n:
                    return
                self.pushed(head + b" " + rest[:n], time.time_ns())
                state["in"] = rest[n:]
                conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        self.sel.register(conn, selectors.EVENT_READ, readable)

    # ---- the phases

    def meet(self, word):
        if self.a.sync:
            print(word, flush=True)
            if not sys.stdin.readline():
                sys.exit(1)

    def registrations(self, group, expires, rate=0, ready=None):
        """REGISTER each of the group, at most 200 outstanding (or paced)."""
        for c in group:
            c.tries, c.done, c.registered, c.expires = 0, False, False, expires
        todo, flying, start, sent = list(reversed(group)), [], time.monotonic(), 0
        end = start + 30
        while (todo or flying) and time.monotonic() < end:
            due = len(group) if not rate else int((time.monotonic() - start) * rate) + 1
            while todo and sent < due and len(flying) < (10**9 if ready else 200):
                c = todo.pop()
                text = ready[c.user] if ready else self.register(c, expires)
                c.t_first = c.t_authed = time.time_ns()
                self.send(("reg", c.user), c.link, text)
                flying.append(c)
                sent += 1
            self.turn(0.001)
            flying = [c for c in flying if not c.done]
        return sum(c.registered for c in group)

    def prepare(self):
        shared = []
        for i, c in enumerate(self.callees):
            if self.a.transport != "udp":
                c.link = Link(self, self.a.transport)
                c.link.owner = c
            else:
                if i % 500 == 0:
                    shared.append(Link(self, buf=4 << 20))
                c.link = shared[-1]
        n = self.registrations(self.callees, 3600)
        if self.a.death == "unregister":
            self.registrations(self.callees, 0)
        for link in shared or [c.link for c in self.callees]:
            link.close(self)
        self.again.clear()
        for c in self.callees:
            c.link = None
        return n

    def place_calls(self, links):
        todo = [Call(c, links[i % len(links)], f"hc-{c.user}-{RUN}") for i, c in enumerate(self.callees)]
        for call in todo:
            call.invite = self.invite(call)
            self.calls[call.cid] = self.call_of[call.callee.user] = call
        start, i = time.monotonic(), 0
        while i < len(todo):
            due = int((time.monotonic() - start) * self.a.call_rate) + 1
            while i < min(due, len(todo)):
                call = todo[i]
                call.state, call.t_sent = "sent", time.time_ns()
                self.send(("inv", call.cid), call.link, call.invite)
                i += 1
            self.turn(0.001)

    def run(self):
        a = self.a
        out = {"mode": "hold", "calls": a.calls, "transport": a.transport, "death": a.death,
               "wake_rate": a.wake_rate or "burst"}
        self.open_push()
        # Before the callees die, one of whose ports would now and then be a caller's.
        links = [Link(self, buf=8 << 20) for _ in range(4)]
        if not a.skip_register:
            out["registered"] = self.prepare()
        time.sleep(a.settle)
        for link in links:
            link.owner = self
        self.meet("PRIMED")
        self.place_calls(links)
        self.until(lambda: len(self.push_seen) + sum(c.state == "failed" for c in self.calls.values()) >= a.calls,
                   a.push_wait)
        if a.no_push:
            time.sleep(0.1)
        held = [c for c in self.calls.values() if c.state == "trying" and (a.no_push or c.t_push)]
        out.update(held=len(held), pushes=self.pushes, rejected=sum(c.state == "failed" for c in self.calls.values()),
                   reject_codes=sorted({c.final for c in self.calls.values() if c.final}))
        out["push_ms"] = spread([(c.t_push - c.t_sent) / 1e6 for c in held if c.t_push])
        self.hold_for(a.hold)
        self.meet("HELD")
        if a.no_wake:
            if not a.abandon:
                self.cancel_all(held)
        else:
            self.wake(held, out)
        self.meet("DONE")
        u = resource.getrusage(resource.RUSAGE_SELF)
        out.update(resends=self.resends, extra_invites=self.extra_invites, rig_cpu_s=round(u.ru_utime + u.ru_stime, 2))
        if a.no_wake and not a.abandon:
            out["cancelled"] = sum(c.final == 487 for c in held)
        print(json.dumps(out))
        return 0 if out["held"] == a.calls and (a.no_wake or out.get("completed") == a.calls) else 3

    def hold_for(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.turn(0.02)

    def cancel_all(self, held):
        start, i = time.monotonic(), 0
        while i < len(held):
            due = int((time.monotonic() - start) * self.a.call_rate) + 1
            while i < min(due, len(held)):
                call = held[i]
                to = re.search(r"\r\nTo: ([^\r]*)", call.invite).group(1)
                self.send(("cancel", call.cid), call.link, self.same_branch(call, "CANCEL", to))
                i += 1
            self.turn(0.001)
        self.until(lambda: all(c.final for c in held), 8)

    def wake(self, held, out):
        group = [c.callee for c in held]
        for c in group:
            c.link = Link(self, self.a.transport)
            c.link.owner = c
            c.tries, c.expires = 0, 3600
        # wake-up REGISTERs are ready before the clock starts
        ready = {c.user: self.register(c, 3600) for c in group}
        out["woken"] = self.registrations(group, 3600, self.a.wake_rate, ready)
        self.until(lambda: all(c.state in ("done", "failed") for c in held), 10)
        got = [c for c in group if c.t_invite]
        out.update(completed=sum(c.state == "done" for c in held), invites=len(got),
                   rechallenged=sum(c.t_authed != c.t_first for c in group),
                   wake_ms=spread([(c.t_invite - c.t_authed) / 1e6 for c in got]),
                   wake_with_401_ms=spread([(c.t_invite - c.t_first) / 1e6 for c in got]),
                   answer_ms=spread([(c.t_answer - c.callee.t_first) / 1e6 for c in held if c.t_answer]))


def spread(values):
    if not values:
        return None
    v = sorted(values)
    pick = lambda p: round(v[min(len(v) - 1, int(p * len(v)))], 3)
    return {"p50": pick(.5), "p99": pick(.99), "max": round(v[-1], 3)}


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("target", help="HOST:PORT")
    p.add_argument("--calls", type=int, default=1000)
    p.add_argument("--base", type=int, default=0, help="number of the first callee, u%%06d")
    p.add_argument("--transport", choices=("udp", "tcp", "tls"), default="udp", help="of the callees; the caller uses UDP")
    p.add_argument("--tls-port", type=int, default=5061)
    p.add_argument("--death", choices=("close", "unregister"), default="close")
    p.add_argument("--wake-rate", type=float, default=0, help="re-REGISTERs a second; 0 is all at once")
    p.add_argument("--call-rate", type=float, default=500, help="INVITEs a second")
    p.add_argument("--device-os", default="ios", help="of the callees: ios or android")
    p.add_argument("--push-port", type=int, default=5099)
    p.add_argument("--push-wait", type=float, default=15, help="seconds to wait for the pushes")
    p.add_argument("--no-push", action="store_true", help="a 1xx is enough to count a call as held")
    p.add_argument("--settle", type=float, default=0.5, help="seconds between death and the INVITEs")
    p.add_argument("--hold", type=float, default=1, help="seconds to stay on hold")
    p.add_argument("--skip-register", action="store_true", help="the callees are registered, and dead, already")
    p.add_argument("--no-wake", action="store_true", help="hold, then cancel")
    p.add_argument("--abandon", action="store_true", help="with --no-wake: leave without cancelling")
    p.add_argument("--password", default="secret")
    p.add_argument("--domain")
    p.add_argument("--app-id", default="com.example.app")
    p.add_argument("--sync", action="store_true")
    a = p.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.exit(Rig(a).run())


if __name__ == "__main__":
    main()
