"""What each part of the server wants of the configuration."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from ipaddress import ip_address

from sipush.config import AppConfig, Config, DomainConfig, GroupConfig, UserConfig
from sipush.core.abuse import AbusePolicy
from sipush.core.bindings import Aor, Platform, Subscriber
from sipush.core.emergency import EmergencyPolicy
from sipush.core.fallback import Cause, Fallbacks, for_every_cause
from sipush.core.groups import Group
from sipush.core.registration import RegistrationPolicy
from sipush.core.routing import AppPolicy
from sipush.log_lines import redact_text
from sipush.server.messages import MessagePolicy
from sipush.server.proxy_policy import ProxyPolicy
from sipush.sip.digest import Algorithm
from sipush.sip.validation import MessageLimits
from sipush.transport.connection import Limits

_RESERVED_FILES = 256
"File descriptors that connections of phones leave for everything else."


def transport_limits(config: Config) -> Limits:
    """What one peer may cost."""
    return Limits(
        message_size=config.sip.max_message_size,
        connections=max_connections(),
        connections_per_address=config.limits.connections_per_address,
        message_timeout=config.limits.message_time,
    )


def max_connections() -> int:
    """So many that descriptors are left for the store, the push services and servers."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(files - _RESERVED_FILES, files // 2)


def message_limits(config: Config) -> MessageLimits:
    """What one message may have."""
    limits = config.limits
    return MessageLimits(
        limits.header_lines, limits.via_hops, limits.record_routes, limits.body_size
    )


def abuse_policy(config: Config) -> AbusePolicy:
    """What one source may do."""
    limits = config.limits
    return AbusePolicy(
        stranger_rate=limits.stranger_rate,
        stranger_burst=limits.stranger_burst,
        failures=limits.failed_sign_ins,
        failure_window=limits.failure_window,
        ban_time=limits.ban_time,
        peers=tuple(peer.address for peer in config.peers),
    )


def subscribers(users: Mapping[Aor, UserConfig]) -> dict[Aor, Subscriber]:
    """The users of the configuration as the server wants them."""
    return {
        aor: Subscriber(aor, **user.model_dump(exclude={"fallback", "forward", "do_not_disturb"}))
        for aor, user in users.items()
    }


def registration_policy(config: Config, vapid_keys: Mapping[str, str]) -> RegistrationPolicy:
    """The ``[registration]`` section and what the apps can be pushed with."""
    values = config.registration.model_dump(exclude={"nonce_lifetime", "algorithms"})
    return RegistrationPolicy(
        **values,
        max_push_records=config.limits.push_records,
        apps={app_id: services(app) for app_id, app in config.apps.items()},
        push_hosts={
            app_id: tuple(app.webpush.hosts) for app_id, app in config.apps.items() if app.webpush
        },
        vapid_keys=vapid_keys,
        node=config.node.uri,
    )


def algorithms(config: Config) -> tuple[Algorithm, ...]:
    """Of the digests that challenges ask for, in their order."""
    return tuple(Algorithm(name) for name in config.registration.algorithms)


def services(app: AppConfig) -> frozenset[Platform]:
    """The services an app is configured for."""
    return frozenset(platform for platform in Platform if getattr(app, platform.value) is not None)


def proxy_policy(config: Config) -> ProxyPolicy:
    """The ``[wake]`` section, the apps' own and the peers."""
    wake = config.wake
    return ProxyPolicy(
        apps={
            app_id: AppPolicy(
                hold=wake.hold if app.hold is None else app.hold,
                push_always=(app.push or wake.push) == "always",
            )
            for app_id, app in config.apps.items()
        },
        hears_others=not all(ip_address(door.address).is_loopback for door in config.listen),
        peers=tuple(peer.address for peer in config.peers if not peer.challenge),
        edges=tuple(peer.address for peer in config.peers if peer.challenge),
        probe=wake.probe,
        no_answer=wake.no_answer,
        ringback=None if wake.ringback == "none" else int(wake.ringback),
        push_while_ringing=wake.push_while_ringing,
        tombstone=wake.tombstone,
        forwards={aor: user.forward for aor, user in config.users.items() if user.forward},
        do_not_disturb=frozenset(a for a, user in config.users.items() if user.do_not_disturb),
        groups={
            aor: Group(tuple(group.members), group.time if group.strategy == "in-turn" else None)
            for aor, group in config.groups.items()
        },
        fallbacks=fallbacks(config),
        node=config.node.uri,
        routes={name: domain.route for name, domain in config.domains.items() if domain.route}
        | {name: [uri] for name, uri in registrars(config).items()},
        registrars=registrars(config),
        emergency=EmergencyPolicy(
            numbers=frozenset(config.emergency.numbers),
            route=tuple(config.emergency.route),
            strangers=config.emergency.strangers,
            addresses=config.emergency.addresses,
        ),
    )


def registrars(config: Config) -> dict[str, str]:
    """By domain: the registrar, where that is another server."""
    return {name: d.registrar for name, d in config.domains.items() if d.registrar}


def fallbacks(config: Config) -> dict[str, Fallbacks]:
    """The fallbacks of users, groups and domains in the file."""
    owners: dict[str, UserConfig | GroupConfig | DomainConfig]
    owners = {**config.users, **config.groups, **config.domains}
    return {name: _by_cause(owner.fallback) for name, owner in owners.items() if owner.fallback}


def _by_cause(fallback: str | dict[str, str]) -> Fallbacks:
    if isinstance(fallback, str):
        return for_every_cause(fallback)
    return {Cause(cause): uri for cause, uri in fallback.items()}


def message_policy(config: Config) -> MessagePolicy:
    """The ``[messages]`` section."""
    return MessagePolicy(config.messages.lifetime, config.messages.max_stored)


def store_name(config: Config) -> str:
    """Where things are stored, without the password of a URL."""
    match config.store.type:
        case "sqlite":
            return f"sqlite {config.store.sqlite.path}"
        case "redis":
            return redact_text(f"redis {config.store.redis.place}")
        case "memory":
            return "memory (everything is forgotten at exit)"
