"""TLS: the certificates we show, and how we check those of others (RFC 3261 §26.3, RFC 5922)."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sipush.config import TlsConfig
from sipush.errors import ConfigError

MAX_NOTICE = timedelta(days=14)
"How long before its end a certificate is due to be renewed, or a quarter of its life if shorter."


class ServerTls:
    """The certificates of one TLS or WSS listener; ``reload`` swaps them under open listeners."""

    def __init__(self, configs: Sequence[TlsConfig]) -> None:
        """The first certificate is for clients that ask for no name, or for one nobody has.

        Raises ConfigError when a certificate or key cannot be used.
        """
        self._configs = configs
        self.certificates = [Certificate(config) for config in configs]
        self.context = _server_context(configs[0])
        "For the listener, all its life: every handshake picks its certificate anew."
        self.context.sni_callback = self._choose

    def reload(self) -> None:
        """Read the files again, for connections to come. Raises ConfigError; then all stays."""
        self.certificates = [Certificate(config) for config in self._configs]

    def is_for(self, server_name: str) -> bool:
        """Whether one of the certificates carries this lower-case name."""
        return any(certificate.is_for(server_name) for certificate in self.certificates)

    def _choose(self, handshake: ssl.SSLObject, server_name: str | None, _: ssl.SSLContext) -> None:
        matching = (c for c in self.certificates if server_name and c.is_for(server_name.lower()))
        handshake.context = next(matching, self.certificates[0]).context


class Certificate:
    """One certificate, ready to be shown."""

    def __init__(self, config: TlsConfig) -> None:
        leaf = _leaf(config.certificate)
        _check_key(config.private_key)
        try:
            self.context = _server_context(config)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
                reason = "they do not belong together"
            files = f"certificate {config.certificate}, private_key {config.private_key}"
            raise ConfigError([f"tls: {files}: {reason}"]) from error
        self.file = config.certificate
        self.expires = leaf.not_valid_after_utc
        "Aware, UTC."
        self._lifetime = leaf.not_valid_after_utc - leaf.not_valid_before_utc
        try:
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            self._names: set[str] = set()
        else:
            self._names = {name.lower() for name in names.get_values_for_type(x509.DNSName)}

    def is_due(self, now: datetime) -> bool:
        """Whether it should have been renewed by now (aware)."""
        return self.expires - now < min(MAX_NOTICE, self._lifetime / 4)

    def is_for(self, server_name: str) -> bool:
        """Whether it carries this lower-case name, or the wildcard of its parent domain."""
        return server_name in self._names or f"*.{server_name.partition('.')[2]}" in self._names


def _leaf(file: Path) -> x509.Certificate:
    """OpenSSL would not say what is wrong with which of two files."""
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as error:
        raise ConfigError([f"tls: certificate {file}: {error.strerror}"]) from error
    except ValueError as error:
        raise ConfigError([f"tls: certificate {file}: has no certificate in PEM"]) from error


def _check_key(file: Path) -> None:
    try:
        load_pem_private_key(file.read_bytes(), None)
    except OSError as error:
        raise ConfigError([f"tls: private_key {file}: {error.strerror}"]) from error
    except TypeError as error:
        problem = "is encrypted (allowed: a key without a passphrase)"
        raise ConfigError([f"tls: private_key {file}: {problem}"]) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError([f"tls: private_key {file}: has no private key in PEM"]) from error


def _server_context(config: TlsConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The empty password keeps OpenSSL from asking for one on the terminal.
    context.load_cert_chain(config.certificate, config.private_key, password=lambda: "")
    return context


def client_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """How we verify servers: by the system's authorities, or by those in ``ca_file`` alone.

    Raises ConfigError.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError([f"tls: {ca_file}: {error.strerror or error}"]) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
