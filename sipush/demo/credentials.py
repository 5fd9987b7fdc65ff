"""Throwaway credentials for the local push service: a CA, keys, a service account."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

KEY_ID = "ABC123DEFG"
TEAM_ID = "DEF123GHIJ"
PROJECT_ID = "sipush-demo"
CLIENT_EMAIL = f"push@{PROJECT_ID}.iam.gserviceaccount.com"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What Apple and Google would have issued, as files in one directory."""

    directory: Path

    @property
    def ca_file(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def certificate_file(self) -> Path:
        "The service's own, for localhost, 127.0.0.1 and ::1."
        return self.directory / "server.pem"

    @property
    def private_key_file(self) -> Path:
        return self.directory / "server.key"

    @property
    def apns_key_file(self) -> Path:
        return self.directory / "AuthKey.p8"

    @property
    def vapid_key_file(self) -> Path:
        return self.directory / "vapid.pem"

    @property
    def application_server_key(self) -> str:
        "The public half of that key, as browsers take it."
        key = serialization.load_pem_private_key(self.vapid_key_file.read_bytes(), None)
        point = key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        return urlsafe_b64encode(point).decode().rstrip("=")

    @property
    def service_account_file(self) -> Path:
        "Written once the service knows its port (``write_service_account``)."
        return self.directory / "service-account.json"

    @property
    def webhook_secret_file(self) -> Path:
        return self.directory / "webhook.secret"

    @classmethod
    def create(cls, directory: Path) -> Credentials:
        """Make a fresh set in an existing directory."""
        credentials = cls(directory)
        _write_server_certificate(credentials)
        for key_file in (credentials.apns_key_file, credentials.vapid_key_file):
            key_file.write_bytes(_pem(ec.generate_private_key(ec.SECP256R1())))
        credentials.webhook_secret_file.write_text("whsec_only-for-tests\n")
        credentials.write_service_account("https://localhost/token")
        return credentials

    def write_service_account(self, token_uri: str) -> None:
        """The service account with this token endpoint; its key stays the same."""
        try:
            key = json.loads(self.service_account_file.read_text())["private_key"]
        except FileNotFoundError:
            key = _pem(rsa.generate_private_key(65537, 2048)).decode()
        account = {
            "type": "service_account",
            "project_id": PROJECT_ID,
            "private_key_id": "demo",
            "private_key": key,
            "client_email": CLIENT_EMAIL,
            "client_id": "1",
            "token_uri": token_uri,
        }
        self.service_account_file.write_text(json.dumps(account, indent=2))


def _write_server_certificate(credentials: Credentials) -> None:
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sipush throwaway CA")])
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False
        )
        .add_extension(_key_usage(), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName("localhost")]
    addresses = [x509.IPAddress(ip_address(a)) for a in ("127.0.0.1", "::1")]
    certificate = (
        _builder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]),
            ca_name,
            key.public_key(),
        )
        .add_extension(x509.SubjectAlternativeName([*names, *addresses]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )
    credentials.ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    credentials.certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    credentials.private_key_file.write_bytes(_pem(key))


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=2))
    )


def _key_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
