"""Who may look and who may act."""

from __future__ import annotations

import hmac
from collections.abc import Collection

from sipush.config import AdminConfig
from sipush.errors import ConfigError
from sipush.sip.grammar import is_ip
from sipush.transport.address import split_host_port

SHORTEST_TOKEN = 16
"Characters: with fewer it could be guessed."


class Access:
    """The token, and the names under which a browser may speak to us."""

    def __init__(self, token: bytes | None, hosts: Collection[str] = ()) -> None:
        """``token``: None on loopback, where everybody may look and nobody may act."""
        self._token = token
        self._hosts = frozenset(hosts) | {"localhost"}

    @classmethod
    def of(cls, config: AdminConfig) -> Access:
        """Reads the token file. Raises ConfigError."""
        path = config.token_file
        if path is None:
            return cls(None, config.hosts)
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            problem = f"admin.token_file: cannot read {path}: {error.strerror}"
            raise ConfigError([problem]) from None
        token = lines[0].strip() if lines else b""
        if len(token) < SHORTEST_TOKEN or not token.isascii():
            needed = f"the first line needs {SHORTEST_TOKEN} ASCII characters"
            raise ConfigError([f"admin.token_file: {path}: {needed}"])
        return cls(token, config.hosts)

    def knows_host(self, host: str) -> bool:
        """Whether a Host header is one of ours.

        A page elsewhere can have its own name lead to us (DNS rebinding), but no IP address. Every
        browser sends the header; a load balancer that checks our health need not.
        """
        if not host:
            return True
        try:
            name, _ = split_host_port(host)
        except ValueError:
            return False
        return is_ip(name) or name.lower() in self._hosts

    def may_look(self, authorization: str) -> bool:
        """``authorization``: that header."""
        return self._token is None or self.may_act(authorization)

    def may_act(self, authorization: str) -> bool:
        """Whether it brings the token; told in constant time."""
        scheme, _, given = authorization.partition(" ")
        if self._token is None or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token)

    @property
    def has_token(self) -> bool:
        """Whether anybody may act."""
        return self._token is not None
