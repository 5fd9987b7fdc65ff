"""The daemon: builds the server from its configuration, runs it, reloads it, drains it."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from sipush import logs, metrics, policies, systemd
from sipush.admin.access import Access
from sipush.banner import banner
from sipush.config import Config, load
from sipush.core.abuse import Guard, is_vital
from sipush.core.authentication import Authenticator
from sipush.core.bindings import Aor
from sipush.core.guesses import Guesses
from sipush.core.held_call_limits import HeldCallLimits
from sipush.core.routing import Realm
from sipush.errors import ConfigError, LocationError, TransportError, UnreadableError
from sipush.ids import new_id
from sipush.location import make_store
from sipush.location.store import LocationStore
from sipush.push.apps import build_apps, vapid_keys
from sipush.push.dispatcher import Dispatcher
from sipush.server.call_history import CallHistory
from sipush.server.endpoint import Endpoint
from sipush.server.gate import Gate, GateKeeper
from sipush.server.held_calls import HeldCalls
from sipush.server.locations import Locations
from sipush.server.messages import Messages
from sipush.server.proxy import Proxy
from sipush.server.push_bucket import PushBucket
from sipush.server.refreshes import push_refreshes
from sipush.server.registrar import Registrar
from sipush.server.sign_in import SignIn
from sipush.server.subscribers import Subscribers
from sipush.server.tasks import Tasks
from sipush.server.transactions import TransactionLayer
from sipush.server.watchdog import Watchdog
from sipush.sip.message import Request
from sipush.sip.timers import Timers
from sipush.transport.address import format_address, source_ip
from sipush.transport.listeners import Listeners
from sipush.transport.mirror import Mirror
from sipush.transport.resolver import Resolver
from sipush.transport.tls import Certificate, client_context
from sipush.turns import Turns

if TYPE_CHECKING:
    from sipush.admin.http import AdminServer

log = structlog.get_logger()


def run(path: Path, *, show_banner: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. Raises ConfigError before it starts."""
    config = load(path)
    sink = logs.configure(config.log)
    _raise_file_limit()
    _tune_garbage_collector()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        asyncio.run(Daemon(path, config, show_banner).serve())
    except (TransportError, LocationError) as error:
        log.error("cannot_start", reason=str(error))
        return 1
    finally:
        sink.finish()
    return 0


def check(config: Config) -> list[Certificate]:
    """Build everything that can be built without serving; what listeners will show.

    Raises ConfigError with what is wrong anywhere.
    """
    certificates: list[Certificate] = []
    _build_all(
        lambda: make_store(config.store),
        *_replaceable(config),
        lambda: certificates.extend(_listeners(config).certificates),
    )
    return certificates


def _replaceable(config: Config) -> list[Callable[[], object]]:
    """What builds what a reload puts in the place of the old."""
    return [
        lambda: build_apps(config.apps),
        lambda: _mirror(config),
        lambda: Access.of(config.admin),
    ]


def _build_all(*parts: Callable[[], object]) -> list[Any]:
    """Raises ConfigError with what is wrong with any of them, and not with the first alone."""
    built, problems = [], []
    for build in parts:
        try:
            built.append(build())
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return built


class Daemon:
    """One running server."""

    def __init__(self, path: Path, config: Config, show_banner: bool = False) -> None:
        self._path = path
        self._show_banner = show_banner
        self._config = config
        self._started_with = _lasting(config)
        self._store: LocationStore = make_store(config.store)
        self._listeners = _listeners(config)
        self._mirror = _mirror(config)
        self._turns = Turns()
        apps = build_apps(config.apps)
        self._vapid_keys = vapid_keys(apps)
        self._dispatcher = Dispatcher(apps, self._turns)
        self._bucket = PushBucket()
        self._held_calls = HeldCalls(self._store)
        self._tasks = Tasks()
        self._stopping = asyncio.Event()
        self._metrics: metrics.MetricsServer | None = None
        self._admin_access = Access.of(config.admin)
        self._admin: AdminServer | None = None
        self._ready = False
        self._drained = asyncio.Event()

    async def serve(self) -> None:
        """Open, tell, serve, drain, close. Raises LocationError and TransportError."""
        watchdog = Watchdog()
        asyncio.get_running_loop().set_exception_handler(_LoopErrors())
        self._store.listen(self._registered_elsewhere, self._missed_registrations)
        try:
            await self._store.open()
            self._build(await self._store.secret())
        except BaseException:
            watchdog.stop()
            await self._store.close()
            raise
        try:
            keeper = GateKeeper(self._gate, self._layer, self._is_vital, self._turns)
            # A CANCEL that came before its call goes on would be answered with 481.
            keeper.hold_back()
            self._mirror_to(self._mirror)
            await self._listeners.open(keeper, self._gate.may_stay)
            self._held_calls.owner = self._name(self._doors())
            self._install_signals()
            self._open_metrics()
            self._open_admin()
            self._tasks.spawn(self._held_calls.take_over(self._proxy.resume))
            self._tasks.spawn(self._gate.share_bans())
            self._tasks.spawn(self._watch_certificates())
            self._tasks.spawn(push_refreshes(self._store, self._dispatcher, self._registrar_of))
            await self._proxy.messages.recall()
            await self._held_calls.recovered.wait()
            keeper.let_in()
            self._ready = True
            await self._tell()
            await self._stopping.wait()
            await self._drain()
        finally:
            await self._close()
            watchdog.stop()

    def _build(self, key: bytes) -> None:
        clock = time.monotonic  # what the loop goes by
        config = self._config
        realm = self._realm()
        self._authenticator = authenticator = Authenticator(
            self._nonce_key(key),
            config.registration.nonce_lifetime,
            policies.algorithms(config),
            started_at=clock(),
            started_epoch=time.time(),
        )
        self._subscribers = Subscribers(
            policies.subscribers(config.users), self._store, clock, policies.registrars(config)
        )
        locations = Locations(self._store)
        limits = config.limits
        self._gate = Gate(
            Guard(policies.abuse_policy(config)),
            Guesses(limits.failed_sign_ins_per_user, limits.failure_window),
            self._store,
            locations,
            clock,
        )
        self._held_call_limits = HeldCallLimits(
            limits.held_calls_per_caller, limits.held_calls_per_callee
        )
        sign_in = SignIn(realm, authenticator, self._subscribers, self._gate, clock)
        self._registrar = Registrar(
            realm,
            policies.registration_policy(config, self._vapid_keys),
            sign_in,
            self._store,
            self._bucket,
            new_id,
            key,
            self._gate,
        )
        self._proxy = Proxy(
            realm=realm,
            policy=policies.proxy_policy(config),
            key=key,
            sign_in=sign_in,
            store=self._store,
            locations=locations,
            subscribers=self._subscribers,
            bucket=self._bucket,
            dispatcher=self._dispatcher,
            transports=self._listeners,
            resolver=Resolver(self._listeners.families),
            held_calls=self._held_calls,
            held_call_limits=self._held_call_limits,
            gate=self._gate,
            turns=self._turns,
            new_id=new_id,
            clock=clock,
        )
        self._messages = Messages(self._proxy, policies.message_policy(config))
        self._proxy.messages = self._registrar.messages = self._messages
        self._endpoint = Endpoint(self._registrar, self._proxy)
        loop = asyncio.get_running_loop()
        self._layer = TransactionLayer(
            self._endpoint, Timers(), new_id, clock, loop.call_later, user_tries=True
        )
        self._layer.limits = policies.message_limits(config)
        self._proxy.layer = self._layer

    def _nonce_key(self, key: bytes) -> bytes:
        """Ours after a restart too, and no other node's."""
        doors = [f"{door.transport}/{door.address}:{door.port}" for door in self._config.listen]
        return blake2b(b"nonce" + self._name(doors).encode(), key=key, digest_size=32).digest()

    def _name(self, doors: list[str]) -> str:
        """What this process is called after a restart too, and no other on the store.

        Machines made of one image have one host name, and the same listeners.
        """
        node = self._config.node.uri
        return " ".join((socket.gethostname(), *doors, *([node] if node else [])))

    def _registrar_of(self, aor: Aor) -> str | None:
        return self._proxy.policy.registrar_of(aor)

    def _is_vital(self, request: Request) -> bool:
        proxy = self._proxy
        return is_vital(request, proxy.route_key, proxy.policy.emergency, proxy.realm)

    def _realm(self) -> Realm:
        listeners, sip = self._listeners, self._config.sip
        return Realm(
            tuple(domain.lower() for domain in sip.domains),
            frozenset(alias.lower() for alias in sip.aliases),
            listeners.is_ours,
            lambda host: any(address.is_host(host) for address in listeners.addresses),
        )

    # -- several processes on one store --

    def _registered_elsewhere(self, aor: Aor) -> None:
        if self._bucket.is_watched(aor):
            self._tasks.spawn(self._look_again(aor, time.time()))

    def _missed_registrations(self, since_epoch: float) -> None:
        for aor in self._bucket.watched:
            self._tasks.spawn(self._look_again(aor, since_epoch))

    async def _look_again(self, aor: Aor, since_epoch: float) -> None:
        """Release what waits for devices of ``aor`` that have registered since then."""
        try:
            location = await self._store.lookup(aor, time.time())
        except LocationError as error:
            log.warning("wake_event_lost", aor=aor, reason=str(error))
            return
        oldest = since_epoch - _CLOCK_SKEW
        new = {b.device for b in location.bindings if b.registered_epoch >= oldest}
        self._bucket.refreshed(aor, location, new)

    # -- signals --

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_signal_handler(signal.SIGUSR1, self._tell_state)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        # Those that came during the start (``cli``) come now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP, signal.SIGUSR1))

    def _stop(self) -> None:
        """The first signal drains, the second ends at once."""
        if self._stopping.is_set():
            self._drained.set()
        self._stopping.set()

    def _reload(self) -> None:
        """Take over users, apps, peers and timings; a broken file changes nothing."""
        try:
            config = load(self._path)
            if not config.model_fields_set and self._config.model_fields_set:
                # Is being written, or the disk is full: it would take all users and apps away.
                raise ConfigError([f"{self._path}: nothing is in it"])
            apps, mirror, access = _build_all(*_replaceable(config))
            self._listeners.reload_certificates()
        except ConfigError as error:
            log.error("reload_failed", problems=error.problems, kept="the running configuration")
            return
        for section, values in _lasting(config).items():
            if values != self._started_with[section]:
                log.warning("restart_needed", section=section)
        # The calls that are up have routes signed for the URI of now.
        if config.node != self._config.node:
            config = config.model_copy(update={"node": self._config.node})
        self._config = config
        # What the file says of an address that is not open yet must not open the one that is.
        if self._admin is not None and (
            access.has_token or config.admin.listen == self._admin.listen
        ):
            self._admin.replace(access)
        self._dispatcher.replace(apps)
        users, elsewhere = policies.subscribers(config.users), policies.registrars(config)
        self._subscribers.replace(users, elsewhere)
        self._authenticator.nonce_lifetime = config.registration.nonce_lifetime
        self._authenticator.algorithms = policies.algorithms(config)
        self._registrar.policy = policies.registration_policy(config, vapid_keys(apps))
        self._proxy.policy = policies.proxy_policy(config)
        self._messages.policy = policies.message_policy(config)
        self._take_over_limits(config)
        self._replace_mirror(mirror)
        self._warn_of_certificates()
        log.info("reloaded", users=len(config.users), apps=sorted(config.apps))
        self._tasks.spawn(self._tell_who_has_no_address())

    def _take_over_limits(self, config: Config) -> None:
        self._listeners.limit(policies.transport_limits(config))
        self._layer.limits = policies.message_limits(config)
        self._gate.guard.policy = policies.abuse_policy(config)
        self._gate.guesses.allowed = config.limits.failed_sign_ins_per_user
        self._gate.guesses.window = config.limits.failure_window
        self._held_call_limits.per_caller = config.limits.held_calls_per_caller
        self._held_call_limits.per_callee = config.limits.held_calls_per_callee

    def _replace_mirror(self, mirror: Mirror | None) -> None:
        old = self._mirror
        if old is None or mirror is None or not mirror.is_like(old):
            if old is not None:
                old.close()
            self._mirror_to(mirror)

    def _mirror_to(self, mirror: Mirror | None) -> None:
        self._mirror = mirror
        self._listeners.mirror_to(mirror)
        if mirror is not None:
            mirror.open()

    async def _drain(self) -> None:
        """Accept no new calls, finish those that are being set up, for a while."""
        log.info("draining", requests=self._proxy.active)
        systemd.notify("STOPPING=1")
        self._proxy.draining = True
        self._listeners.stop_accepting()
        idle = asyncio.ensure_future(self._idle())
        hurried = asyncio.ensure_future(self._drained.wait())
        await asyncio.wait(
            (idle, hurried),
            timeout=self._config.sip.drain,
            return_when=asyncio.FIRST_COMPLETED,
        )
        idle.cancel()
        hurried.cancel()

    async def _idle(self) -> None:
        await self._layer.drain()
        await self._proxy.acknowledgements.drain()

    async def _close(self) -> None:
        if self._admin is not None:
            await self._admin.close()
        self._messages.pushes.close()
        for part in (self._tasks, self._endpoint, self._proxy.tasks, self._dispatcher):
            await part.close()
        await self._held_calls.close()
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
        await self._listeners.close()
        if self._mirror is not None:
            self._mirror.close()
        await self._store.close()
        log.info("stopped")

    # -- telling --

    def _open_metrics(self) -> None:
        layer, gate, proxy = self._layer, self._gate, self._proxy
        transactions = metrics.TRANSACTIONS
        transactions.labels("server").set_function(lambda: layer.server_transactions)
        transactions.labels("client").set_function(lambda: layer.client_transactions)
        metrics.FORWARDED.set_function(lambda: proxy.active)
        metrics.TURNED_AWAY.set_function(lambda: gate.turned_away)
        if listen := self._config.metrics.listen:
            self._metrics = metrics.MetricsServer(listen)
            log.info("metrics_served", address=self._metrics.address)

    def _open_admin(self) -> None:
        admin = self._config.admin
        if not admin.listen:
            return
        from sipush.admin.http import AdminServer  # noqa: PLC0415 - its libraries take memory

        self._proxy.history = CallHistory(admin.calls)
        self._admin = AdminServer(
            self._admin_access, self._proxy, self._dispatcher, lambda: self._ready
        )
        self._admin.open(admin.listen)
        log.info("admin_served", address=self._admin.address)

    async def _watch_certificates(self) -> None:
        while True:
            self._warn_of_certificates()
            await asyncio.sleep(86_400)

    def _warn_of_certificates(self) -> None:
        """A certificate that runs out is noticed by users first, unless somebody says so."""
        now = datetime.now(UTC)
        for certificate in self._listeners.certificates:
            gauge = metrics.CERTIFICATE_EXPIRES.labels(str(certificate.file))
            gauge.set(certificate.expires.timestamp())
            if certificate.is_due(now):
                expires = certificate.expires.isoformat()
                log.warning("certificate_expires", file=str(certificate.file), expires=expires)

    async def _tell(self) -> None:
        """What an operator wants to see first."""
        config, users = self._config, await self._some_users()
        log.info(
            "ready",
            listen=self._doors(),
            domains=config.sip.domains,
            store=policies.store_name(config),
            users=users,
            apps=sorted(config.apps),
        )
        if self._show_banner:
            self._print_banner(users)
        systemd.notify("READY=1")
        self._tasks.spawn(self._tell_who_has_no_address())

    async def _tell_who_has_no_address(self) -> None:
        """An emergency call of theirs would not say where they are."""
        emergency = self._config.emergency
        if not emergency.route:
            return
        users = set(self._config.users)
        try:
            async for subscriber in self._store.subscribers():
                if isinstance(subscriber, UnreadableError):
                    log.warning("store_unavailable", reason=str(subscriber))
                else:
                    users.add(subscriber.aor)
        except LocationError as error:
            log.warning("store_unavailable", reason=str(error))
        if missing := sorted(users - emergency.addresses.keys()):
            shown = missing[:_SHOWN_USERS]
            log.warning("emergency_address_missing", count=len(missing), users=shown)

    def _print_banner(self, users: list[str]) -> None:
        config = self._config
        apps = {
            app_id: [service.value for service in policies.services(app)]
            for app_id, app in config.apps.items()
        }
        text = banner(
            self._path,
            program=os.path.relpath(sys.argv[0]),
            domains=config.sip.domains,
            doors=self._doors(),
            store=policies.store_name(config),
            users=users,
            apps=apps,
            address=source_ip(ANY_REMOTE) or "127.0.0.1",
        )
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def _tell_state(self) -> None:
        """What there is of everything that comes and has to go."""
        log.info(
            "state",
            connections=self._listeners.connections,
            requests=self._proxy.active,
            server_transactions=self._layer.server_transactions,
            server_states=self._layer.server_states,
            client_transactions=self._layer.client_transactions,
            timers=self._layer.timers,
            users_waited_for=len(self._bucket.watched),
            tasks=len(asyncio.all_tasks()),
        )

    def _doors(self) -> list[str]:
        return [
            f"{address.transport.lower()}/{format_address(address.bound)}"
            for address in self._listeners.addresses
        ]

    async def _some_users(self) -> list[str]:
        """The first few users: a store may hold a million, or a few among a million bindings."""
        users, all_seen = list(self._config.users), False
        with suppress(TimeoutError, LocationError):
            async with asyncio.timeout(_LISTING_TIME):
                async for subscriber in self._store.subscribers():
                    if len(users) > _SHOWN_USERS:
                        break
                    if not isinstance(subscriber, UnreadableError):
                        users.append(subscriber.aor)
                all_seen = len(users) <= _SHOWN_USERS
        return users if all_seen else [*users[:_SHOWN_USERS], "…"]


_SWITCH_INTERVAL = 0.0005
"""Seconds a thread (of the store) may keep Python's lock once the event loop wants it back.
Python's own 5 ms are waited for again after every system call of the loop."""
_SHOWN_USERS = 10
_LISTING_TIME = 0.2
"Seconds a start may look for them: Redis finds users only by looking at all keys."
_CLOCK_SKEW = 5.0
"Seconds by which the clocks of nodes on one store may differ."
ANY_REMOTE = ("192.0.2.1", 9)
"Towards this we would send from the address that phones can reach us at (RFC 5737: nobody's)."


class _LoopErrors:
    """Tells what went wrong in the event loop itself.

    Without file descriptors it fails to accept very often: that is told once a second.
    """

    def __init__(self) -> None:
        self._silent_until = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
            loop.default_exception_handler(context)
        elif loop.time() >= self._silent_until:
            self._silent_until = loop.time() + 1.0
            log.error("out_of_file_descriptors", reason=str(error), waiting="new connections")


def _lasting(config: Config) -> dict[str, object]:
    """By section what counts until a restart."""
    sections: dict[str, object] = {
        name: getattr(config, name) for name in ("sip", "listen", "store", "node", "log", "metrics")
    }
    return sections | {"admin": (config.admin.listen, config.admin.calls)}


def _listeners(config: Config) -> Listeners:
    """Unopened ones. Raises ConfigError."""
    ca_file = config.sip.ca_file
    return Listeners(
        config.listen,
        policies.transport_limits(config),
        client_context(ca_file) if ca_file else None,
    )


def _mirror(config: Config) -> Mirror | None:
    """Not open yet. Raises ConfigError."""
    return Mirror(config.hep) if config.hep.send_to else None


def _tune_garbage_collector() -> None:
    """Collect the young a few at a time, while the caches know them, and others seldom.

    The few are more than a batch of messages is made of: with less, each batch would be gone
    through while it is worked on. What lives on for the half minute of a transaction is in no
    cycle, and gone before there is so much of it that it is looked at again. But it is then: a
    closed connection is in a cycle of seven objects.
    """
    gc.freeze()
    gc.set_threshold(5_000, 400, 1)


def _raise_file_limit() -> None:
    """One descriptor for each phone on TCP, TLS or WebSocket: take all we are allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
