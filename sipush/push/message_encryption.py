"""Message Encryption for Web Push (RFC 8291): one record of ``aes128gcm`` (RFC 8188)."""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

RECORD_SIZE = 4096
_LAST_RECORD = b"\x02"


def encrypt(
    message: bytes,
    p256dh: bytes,
    auth: bytes,
    *,
    key: ec.EllipticCurvePrivateKey | None = None,
    salt: bytes = b"",
) -> bytes:
    """The body of a push message that only the browser with these keys can read.

    ``key`` and ``salt`` are fresh for each message unless given. Raises ValueError when
    ``p256dh`` is no point of P-256.
    """
    browser = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), p256dh)
    key = key or ec.generate_private_key(ec.SECP256R1())
    salt = salt or os.urandom(16)
    ours = point(key.public_key())
    info = b"WebPush: info\0" + p256dh + ours
    secret = _hkdf(32, auth, info, key.exchange(ec.ECDH(), browser))
    content_key = _hkdf(16, salt, b"Content-Encoding: aes128gcm\0", secret)
    nonce = _hkdf(12, salt, b"Content-Encoding: nonce\0", secret)
    header = salt + RECORD_SIZE.to_bytes(4, "big") + bytes([len(ours)]) + ours
    return header + AESGCM(content_key).encrypt(nonce, message + _LAST_RECORD, None)


def point(key: ec.EllipticCurvePublicKey) -> bytes:
    """The uncompressed form of a public key (X9.62 §4.3.6), as Web Push has it everywhere."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _hkdf(length: int, salt: bytes, info: bytes, secret: bytes) -> bytes:
    return HKDF(SHA256(), length, salt, info).derive(secret)
