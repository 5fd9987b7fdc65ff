"""JsSIP phones in headless Chromium, driven over the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import json
import os
import re
import signal
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.e2e.process import Program
from tests.e2e.wire import PATIENCE, Account

_HERE = Path(__file__).with_name("browser")
_PAGE = b"<!doctype html><script src=/jssip.js></script><script src=/phone.js></script>"
_GUIDE = Path(__file__).parents[2] / "docs" / "apps.md"
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it needs more than a container gives to root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--allow-loopback-in-peer-connection",
    "--remote-debugging-port=0",
)


def public_key_digest(certificate: Path) -> str:
    """What Chromium knows a certificate by that no authority of its own has issued."""
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(info).digest()).decode()


@dataclass(frozen=True)
class Site:
    """Serves the page with the phone to any number of browsers."""

    server: asyncio.Server
    origin: str

    @classmethod
    async def open(cls, directory: Path) -> Site:
        """Bundle JsSIP as a browser wants it (``npm ci`` has been run) and serve it."""
        bundle = directory / "jssip.js"
        esbuild = await Program.start(
            *(_HERE / "node_modules/.bin/esbuild", _HERE / "node_modules/jssip/lib/JsSIP.js"),
            *("--bundle", "--global-name=JsSIP", f"--outfile={bundle}"),
        )
        assert await esbuild.ended() == 0, esbuild.output.all
        of_page, of_worker = re.findall(r"```js\n(.*?)```", _GUIDE.read_text(), re.DOTALL)
        header, _, _ = of_page.partition("\n// ")
        files = {
            "/": ("text/html", _PAGE),
            "/jssip.js": ("text/javascript", bundle.read_bytes()),
            "/phone.js": ("text/javascript", (_HERE / "phone.js").read_bytes() + header.encode()),
            "/sw.js": ("text/javascript", of_worker.encode()),
        }

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = await reader.readline()  # or nothing: Chromium connects ahead of need
            kind, body = files.get(request.split(b" ")[1].decode() if request else "", ("", b""))
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: {kind}; charset=utf-8\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        # A secure context (W3C: loopback is one), without which there is no microphone.
        return cls(server, f"http://{host}:{port}")


@dataclass
class Browser:
    """One Chromium. Each page has a browser context, and so a renderer process, of its own."""

    program: Program
    site: Site | None
    "Where the phones come from."
    socket: ClientConnection
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _answers: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    _loaded: defaultdict[str, asyncio.Event] = field(
        default_factory=lambda: defaultdict(asyncio.Event)
    )
    "By session: its page and the scripts in it are there."
    _workers: defaultdict[str, asyncio.Queue[list[Any]]] = field(
        default_factory=lambda: defaultdict(asyncio.Queue)
    )
    "By session: the registrations of service workers in its context, each time one changes."
    _reading: asyncio.Task[None] = field(init=False)

    @classmethod
    async def start(cls, directory: Path, site: Site | None, certificate: Path) -> Browser:
        """``certificate``: of the server, to be trusted."""
        program = await Program.start(
            *("chromium", *_FLAGS, f"--user-data-dir={directory}"),
            f"--ignore-certificate-errors-spki-list={public_key_digest(certificate)}",
            "about:blank",
        )
        line = await program.output.find(
            lambda line: line.startswith("DevTools listening on "), "Chromium's readiness", 60
        )
        socket = await connect(line.split()[-1], max_size=None)
        browser = cls(program, site, socket)
        browser._reading = asyncio.create_task(browser._read())
        return browser

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):  # killed
            while True:
                message = json.loads(await self.socket.recv())
                if (answer := self._answers.pop(message.get("id"), None)) and not answer.done():
                    answer.set_result(message)
                elif message.get("method") == "Page.loadEventFired":
                    self._loaded[message["sessionId"]].set()
                elif message.get("method") == "ServiceWorker.workerRegistrationUpdated":
                    registrations = message["params"]["registrations"]
                    self._workers[message["sessionId"]].put_nowait(registrations)

    async def command(self, method: str, session: str = "", **params: Any) -> Any:
        """One DevTools command and its result."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        await self.socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        async with asyncio.timeout(PATIENCE):
            result = await answer
        assert "error" not in result, (method, result)
        return result["result"]

    async def context(self) -> str:
        """A new one: like a browser of its own, with storage and workers of its own."""
        context = await self.command("Target.createBrowserContext")
        return str(context["browserContextId"])

    async def open(self, context: str, url: str = "") -> BrowserPhone:
        """A page whose phone has not been switched on yet; or any other page, by its ``url``."""
        phone = await self._open_blank(context)
        await self.command("Page.enable", phone.session)
        await self.command("Page.navigate", phone.session, url=url or self.site.origin)
        async with asyncio.timeout(PATIENCE):
            await self._loaded[phone.session].wait()
        return phone

    async def _open_blank(self, context: str) -> BrowserPhone:
        target = await self.command(
            "Target.createTarget", url="about:blank", browserContextId=context
        )
        attached = await self.command(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        return BrowserPhone(self, attached["sessionId"], target["targetId"])

    async def phone(self, server: str, account: Account, x_push: str = "") -> BrowserPhone:
        """Open a page whose phone registers at ``server`` (ws or wss URL)."""
        phone = await self.open(await self.context())
        await phone.start(server, account, f"X-Push: {x_push}" if x_push else "")
        return phone

    async def push_service(self, context: str) -> BrowserPushService:
        """Where pushes to the service worker of a context come from, its last page being closed."""
        tab = await self._open_blank(context)
        await self.command("ServiceWorker.enable", tab.session)
        async with asyncio.timeout(PATIENCE):
            while not (workers := await self._workers[tab.session].get()):
                pass
        await self.command(
            "Browser.grantPermissions",
            permissions=["notifications"],
            origin=self.site.origin,
            browserContextId=context,
        )
        await self.command("ServiceWorker.stopAllWorkers", tab.session)
        return BrowserPushService(self, tab.session, workers[0]["registrationId"])

    async def kill(self) -> None:
        """SIGKILL to all its processes: no page says farewell."""
        if self.program.running:
            os.killpg(self.program.process.pid, signal.SIGKILL)
        await self.program.ended()
        await self.socket.close()
        await self._reading


@dataclass(frozen=True)
class BrowserPhone:
    """One page."""

    browser: Browser
    session: str
    target: str

    async def start(self, server: str, account: Account, header: str = "") -> None:
        """Switch its phone on: it registers with ``header``."""
        options = {
            "server": server,
            "uri": f"sip:{account.aor}",
            "password": account.password,
            "headers": [header] if header else [],
        }
        await self.do(f"window.phone = new BrowserPhone({json.dumps(options)})")

    async def close(self) -> None:
        """Close its tab."""
        await self.browser.command("Target.closeTarget", targetId=self.target)

    async def do(self, script: str) -> None:
        """Run ``script``; its value stays in the page."""
        await self.evaluate(f"{{ {script}; }} null")

    async def get(self, what: str) -> Any:
        """The value of ``phone.<what>``, awaited in the page when it is a promise."""
        return await self.evaluate(f"phone.{what}")

    async def evaluate(self, expression: str) -> Any:
        result = await self.browser.command(
            "Runtime.evaluate",
            self.session,
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in result, (expression, result["exceptionDetails"])
        return result["result"].get("value")


@dataclass(frozen=True)
class BrowserPushService:
    """What a browser's maker runs; here the DevTools protocol."""

    browser: Browser
    session: str
    worker: str

    async def deliver(self, message: dict[str, Any]) -> None:
        """Wake the service worker with a message, decrypted."""
        await self.browser.command(
            "ServiceWorker.deliverPushMessage",
            self.session,
            origin=self.browser.site.origin,
            registrationId=self.worker,
            data=json.dumps(message),
        )
