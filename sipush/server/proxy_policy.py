"""What the configuration says about forwarding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

from sipush.core.bindings import Aor
from sipush.core.emergency import EmergencyPolicy
from sipush.core.fallback import Fallbacks, for_every_cause
from sipush.core.groups import Group
from sipush.core.routing import AppPolicy
from sipush.sip.grammar import is_ip
from sipush.transport.address import is_own

_MAX_KNOWN: Final = 10_000
"Addresses of which is remembered whether they are peers."


@dataclass(frozen=True, slots=True)
class ProxyPolicy:
    """What the configuration says about forwarding; replaced as a whole on reload."""

    apps: Mapping[str, AppPolicy]
    peers: tuple[IPv4Network | IPv6Network, ...]
    edges: tuple[IPv4Network | IPv6Network, ...]
    "Proxies that anybody may come by: only their Paths are believed."
    probe: float
    no_answer: float
    ringback: int | None
    push_while_ringing: bool
    tombstone: float
    forwards: Mapping[Aor, str]
    "Users whose calls are always sent on, and where to."
    do_not_disturb: frozenset[Aor]
    groups: Mapping[Aor, Group]
    fallbacks: Mapping[str, Fallbacks]
    "By AOR and, for all users and groups of it, by domain."
    node: str
    "Our URI for the other nodes on the store; empty: there are none."
    routes: Mapping[str, Sequence[str]]
    "By domain: URIs of the servers that have the users we do not have."
    registrars: Mapping[str, str]
    "By domain: URI of the registrar, where that is another server."
    emergency: EmergencyPolicy
    hears_others: bool
    "Whether we listen at an address that other hosts reach."
    _are_peers: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)
    "By IP address: working it out takes long."

    def may_be_another(self, ip: str) -> bool:
        """Whether who comes from that address may be on another host than it, and trusted nowhere.

        TLS may end at a terminator beside us. Where all of our listeners are at loopback addresses,
        callers are taken to be on this host, where they reach by themselves what they name.
        """
        return self.hears_others and is_ip(ip) and is_own(ip) and not self.is_peer(ip)

    def is_peer(self, ip: str) -> bool:
        """Whether that host may send requests without credentials; a name is never one."""
        known = self._are_peers.get(ip)
        if known is None:
            if not is_ip(ip):  # as long as its sender likes, and not to be remembered
                return False
            known = self._narrowest(ip) in self.peers
            if len(self._are_peers) >= _MAX_KNOWN:
                self._are_peers.clear()
            self._are_peers[ip] = known
        return known

    def may_be_on_path(self, ip: str) -> bool:
        """Whether requests may be sent to that host along a Path."""
        return self.is_peer(ip) or self.is_edge(ip)

    def is_edge(self, ip: str) -> bool:
        """Whether that host is an edge proxy whose callers sign in."""
        return self._narrowest(ip) in self.edges

    def _narrowest(self, ip: str) -> IPv4Network | IPv6Network | None:
        """Of the peers and edges that hold the host: what is said of it, not of those around it."""
        host, found = ip_address(ip), None
        for network in self.peers + self.edges:
            if host in network and (found is None or network.prefixlen > found.prefixlen):
                found = network
        return found

    def registrar_of(self, aor: Aor) -> str | None:
        """The registrar of a user, unless we are that."""
        return self.registrars.get(aor.rpartition("@")[2]) if self.registrars else None

    def fallbacks_of(self, aor: Aor, stored: str = "") -> Fallbacks:
        """Where calls to a user or group go; ``stored``: what the store has for a user."""
        if not self.fallbacks and not stored:
            return {}
        own = self.fallbacks.get(aor) or for_every_cause(stored)
        return {**self.fallbacks.get(aor.rpartition("@")[2], {}), **own}
