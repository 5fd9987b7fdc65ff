"""What the sections of a configuration say about each other: contradictions and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from sipush.config_problems import dotted
from sipush.sip.grammar import is_ip
from sipush.sip.uri import parse_sip_uri
from sipush.transport.address import parse_address

if TYPE_CHECKING:
    from sipush.config import Config


_ANY_IPV6 = ip_address("::")


def contradictions(config: Config) -> list[str]:
    """Faults that one section alone does not show: dotted key, what is wrong, what is allowed."""
    return [
        *_ports(config),
        *_peers(config),
        *_groups(config),
        *_addresses(config),
        *_numbers(config),
        *_sentinels(config),
        *_node(config),
        *_registrars(config),
        *_admin(config),
    ]


def _peers(config: Config) -> Iterator[str]:
    for number, peer in enumerate(config.peers):
        for before, other in enumerate(config.peers[:number]):
            if peer.address == other.address and peer.challenge != other.challenge:
                yield (
                    f"peers[{number}].challenge: is not that of peers[{before}], "
                    f"which has {other.address} too (allowed: one of the two)"
                )


class _Listener(NamedTuple):
    key: str
    is_udp: bool
    host: str
    port: int

    def excludes(self, other: _Listener) -> bool:
        """Whether the system gives the two of them their port only once."""
        same = (self.is_udp, self.port) == (other.is_udp, other.port)
        return bool(same and self.port and _meet(self.host, other.host))


def _ports(config: Config) -> Iterator[str]:
    """A port has one listener: the second would keep the server from starting."""
    before: list[_Listener] = []
    for listener in _listeners(config):
        for other in before:
            if other.excludes(listener):
                where = f"port {listener.port} is that of {other.key}"
                yield f"{listener.key}: {where} (allowed: one listener for each port)"
                break
        before.append(listener)


def _listeners(config: Config) -> Iterator[_Listener]:
    for number, door in enumerate(config.listen):
        yield _Listener(f"listen[{number}]", door.transport == "udp", door.address, door.port)
    for key, listen in (("metrics", config.metrics.listen), ("admin", config.admin.listen)):
        if listen:
            host, _, port = listen.rpartition(":")
            host = host.strip("[]")
            yield _Listener(f"{key}.listen", False, host, int(port))
            if key == "metrics" and is_ip(host) and ip_address(host) == _ANY_IPV6:
                # It alone of all takes IPv4 too (``MetricsServer``).
                yield _Listener(f"{key}.listen", False, "0.0.0.0", int(port))


def _meet(one: str, other: str) -> bool:
    """Whether two that listen on these hear the same address; names are not looked up."""
    if not (is_ip(one) and is_ip(other)):
        return one == other
    ip, other_ip = ip_address(one), ip_address(other)
    both = ip.version == other_ip.version and (ip.is_unspecified or other_ip.is_unspecified)
    return ip == other_ip or both


def _groups(config: Config) -> Iterator[str]:
    for aor, group in config.groups.items():
        if aor in config.users:
            yield f"{dotted(('groups', aor))}: is a user too (allowed: a name of its own)"
        for number, member in enumerate(group.members):
            place = dotted(("groups", aor, "members", number))
            if member in config.groups:
                yield f'{place}: "{member}" is a group (allowed: users)'
            elif member in group.members[:number]:
                yield f'{place}: "{member}" stands there twice (allowed: once)'
            elif not _is_ours(member, config):
                yield f'{place}: "{member}" {_not_ours(config)}'


def _addresses(config: Config) -> Iterator[str]:
    for aor in config.emergency.addresses:
        if not _is_ours(aor, config):
            yield f"{dotted(('emergency', 'addresses', aor))}: {_not_ours(config)}"


def _numbers(config: Config) -> Iterator[str]:
    for section, names in (("users", config.users), ("groups", config.groups)):
        for aor in names:
            if aor.rpartition("@")[0] in config.emergency.numbers:
                yield f"{dotted((section, aor))}: is an emergency number (allowed: another name)"


def _sentinels(config: Config) -> Iterator[str]:
    redis = config.store.redis
    if redis.sentinels and redis.url.startswith("unix:"):
        yield "store.redis.url: is a socket beside sentinels (allowed: redis:// or rediss://)"


def _node(config: Config) -> Iterator[str]:
    if config.node.uri and config.store.type != "redis":
        yield f'node.uri: has no use for store.type = "{config.store.type}" (allowed: with "redis")'


def _registrars(config: Config) -> Iterator[str]:
    """Users of such a domain, and what becomes of their calls, are the registrar's business."""
    for name, domain in config.domains.items():
        if not domain.registrar:
            continue
        here = dotted(("domains", name, "registrar"))
        others: list[tuple[str, ...]] = [
            ("domains", name, key) for key in ("route", "fallback") if getattr(domain, key)
        ]
        others += [("users", aor) for aor in config.users if aor.rpartition("@")[2] == name]
        others += [("groups", aor) for aor in config.groups if aor.rpartition("@")[2] == name]
        for other in others:
            yield f"{dotted(other)}: stands beside {here} (allowed: one of the two)"
        host = parse_sip_uri(domain.registrar).address
        if not is_ip(host):
            continue
        peers = [peer for peer in config.peers if ip_address(host) in peer.address]
        if not peers:
            yield f"{here}: {host} is no peer (allowed: an address of one of peers)"
        elif max(peers, key=lambda peer: peer.address.prefixlen).challenge:
            yield f"{here}: {host} is a peer with challenge (allowed: one without)"


def _admin(config: Config) -> Iterator[str]:
    listen = config.admin.listen
    if listen and config.admin.token_file is None:
        host, _ = parse_address(listen)
        if not ip_address(host).is_loopback:
            yield (
                f'admin.listen: is "{listen}" without admin.token_file '
                "(allowed: with it, or an address of loopback such as 127.0.0.1:9061)"
            )


def _is_ours(aor: str, config: Config) -> bool:
    user, _, domain = aor.rpartition("@")
    return bool(user) and domain in config.sip.domains


def _not_ours(config: Config) -> str:
    ours = " or ".join(config.sip.domains)
    return f"is no address-of-record of ours (allowed: user@{ours})"


def warnings(config: Config) -> list[str]:
    """What may be right, but deserves a look. Users of the store are not known here."""
    return [*_unknown_members(config), *_homeless(config), *_names(config), *_lonely(config)]


def _unknown_members(config: Config) -> Iterator[str]:
    for aor, group in config.groups.items():
        for member in group.members:
            if member not in config.users:
                yield f"{member}, a member of {aor}, is left out unless the store has that user"


def _homeless(config: Config) -> Iterator[str]:
    """Without a route nobody's address is needed."""
    if config.emergency.route:
        for aor in config.users:
            if aor not in config.emergency.addresses:
                yield f"{aor} has no address for emergency calls"


def _names(config: Config) -> Iterator[str]:
    for name, domain in config.domains.items():
        if domain.registrar and not is_ip(parse_sip_uri(domain.registrar).address):
            yield f"the registrar of {name} is a name: its addresses must be peers"


def _lonely(config: Config) -> Iterator[str]:
    """A call goes from node to node along a Path, which counts between peers alone."""
    if config.node.uri and not config.peers:
        yield "node.uri is set and there are no peers: no call gets from one to another"
