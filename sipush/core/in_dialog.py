"""Where a request inside a dialog goes, when its route token has come back (RFC 3261 §16.6 6, 7).

docs/in-dialog.md has the decisions as tables, which are the parameter lists of the tests too.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Final

from sipush.core.bindings import Binding, is_by_contact
from sipush.core.nodes import is_away
from sipush.core.outbound import (
    RouteToken,
    came_from,
    device_digest,
    is_usual_port,
    leads_to_port,
    remote_ip,
)
from sipush.core.target_set import Target
from sipush.sip.fields import parse_name_addr
from sipush.sip.grammar import is_ip
from sipush.sip.message import Request
from sipush.sip.uri import SipUri, contact_key, parse_sip_uri

BETWEEN_FLOWS: Final = 10.0
"Seconds in which a registered phone that has lost its connection is back, or we were restarted."


def sides(token: RouteToken, bindings: Sequence[Binding], remote_target: str) -> Sequence[Binding]:
    """Which of a user's bindings are the side of a dialog that the token names.

    A caller's token may know no device; its remote target is the contact it registered. So is that
    of a device without instance and token, which is another one when it has moved.
    """
    named = [b for b in bindings if device_digest(b.device) == token.device]
    if len(named) == len(bindings) or (named and not is_by_contact(named[0].device)):
        return named
    key = contact_key(remote_target)
    there = [b for b in bindings if b.contact_key == key]
    at = [b for b in there if is_by_contact(b.device) or not token.device]
    return at or named


class Surroundings:
    """What is known, where the request has come, of flows and of who is at which host."""

    __slots__ = ("is_open", "is_peer", "may_be_another", "node", "ways_of_peers")

    def __init__(
        self,
        is_open: Callable[[str], bool | None],
        is_peer: Callable[[str], bool],
        may_be_another: Callable[[str], bool],
        ways_of_peers: Container[tuple[str, int | None]],
        node: str = "",
    ) -> None:
        self.is_open = is_open
        "Whether the flow of that name is open; None: there is none."
        self.is_peer = is_peer
        "Whether that host is a peer; a name is not."
        self.may_be_another = may_be_another
        "Whether who comes from that address may be on another host than it."
        self.ways_of_peers = ways_of_peers
        "Hosts and ports that peers have named, to be called back at."
        self.node = node
        "Our URI for the other nodes, or empty."

    def side(self, token: RouteToken, request: Request, bindings: Sequence[Binding]) -> Target:
        """The side that the token names, whose user has these bindings.

        Its flow, unless its device has left that one: a phone that has changed networks leaves a
        connection behind that nobody has closed. Without any: the Request-URI, if it leads there.
        """
        mine = sides(token, bindings, request.uri)
        names = [b.flow for b in mine if not is_away(b, self.node)]
        if mine and not names:  # what is behind the other node the dialog's own Routes name
            return Target("dialog", request.uri, route=mine[0].path[:1], live=True)
        hold = BETWEEN_FLOWS if names else 0.0
        flow = token.flow
        if token.aor and not (flow in names and self.is_open(flow)):
            flow = next((name for name in names if self.is_open(name)), flow)
        is_open = self.is_open(flow) if flow else None
        if is_open is not None:
            return Target("dialog", request.uri, flow, live=is_open, hold=hold)
        uri = request.sip_uri
        is_peer = not token.aor and self.is_peer(uri.address)
        is_there = is_peer or (not names and came_from(uri.address, token.flow))
        live = is_there and self._is_sip_at(uri, uri.address, token)
        return Target("dialog", request.uri, live=live, hold=hold)

    def ways_back(self, token: RouteToken, request: Request) -> list[str]:
        """URIs at which a side may be that never registered and has lost its connection, in order.

        The topmost Route that is left, then the Request-URI. Only a peer may have a name for them.
        """
        routes = [parse_name_addr(value).uri for value in request.headers.values("route")[:1]]
        uris = [*routes, request.uri]
        if self.is_peer(remote_ip(token.flow)):
            return uris
        return [uri for uri in uris if is_ip(parse_sip_uri(uri).address)]

    def leads_back(self, uri: str, ip: str, token: RouteToken) -> bool:
        """Whether one of ``ways_back``, found at address ``ip``, may be asked for that side.

        Who speaks in the dialog has written it. So it leads only to a peer, or back to where that
        side was, and to where SIP is spoken.
        """
        is_there = self.is_peer(ip) or came_from(ip, token.flow)
        return is_there and self._is_sip_at(parse_sip_uri(uri), ip, token)

    def _is_sip_at(self, uri: SipUri, ip: str, token: RouteToken) -> bool:
        """Whether its port of the host ``ip`` is one for SIP, as far as its side or a peer says.

        The port must not bring the other side to other servers of the host by us. Who is no peer
        says nothing about a peer's host, nor about ours: he comes from it if TLS ends at a
        terminator beside us.
        """
        if is_usual_port(uri.port) or (uri.address, uri.port) in self.ways_of_peers:
            return True
        if self.is_peer(remote_ip(token.flow)):
            names_ports = True
        elif came_from(ip, token.flow):
            names_ports = not self.may_be_another(ip)
        else:
            return False
        return leads_to_port(token.flow, uri.port) or (names_ports and uri.port == token.port)
