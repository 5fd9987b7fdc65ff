"""From ``[apps]`` to push services: every credential is read and checked here.

A service's library is loaded only when an app is configured for it: they take time and memory.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never, cast
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sipush.config import ApnsConfig, AppConfig, FcmConfig, WebhookConfig, WebpushConfig
from sipush.core.bindings import Platform
from sipush.core.push_payload import Profile, template_problems
from sipush.errors import ConfigError
from sipush.push.http_client import client_context
from sipush.push.provider import PushProvider

if TYPE_CHECKING:
    from sipush.push.apns import ApnsProvider
    from sipush.push.fcm import FcmProvider
    from sipush.push.webhook import WebhookProvider
    from sipush.push.webpush import WebpushProvider

App = Mapping[Platform, PushProvider]
"""The services of one app; a platform without one goes to the webhook, if there is one."""


class _Invalid(Exception):
    """One key of a section cannot be used."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")


def build_apps(configs: Mapping[str, AppConfig]) -> dict[str, App]:
    """The services of every app-id, without connecting. Raises ConfigError with all problems."""
    problems: list[str] = []
    apps: dict[str, dict[Platform, PushProvider]] = {}
    for app_id, config in configs.items():
        where = f'apps."{app_id}"'
        problems += [f"{where}.payload{problem}" for problem in _payload_problems(config.payload)]
        apps[app_id] = {}
        for platform in Platform:
            try:
                provider = _provider(platform, app_id, config)
            except _Invalid as error:
                problems.append(f"{where}.{platform.value}.{error}")
                continue
            if provider is not None:
                apps[app_id][platform] = provider
    if problems:
        raise ConfigError(problems)
    return dict(apps)


def vapid_keys(apps: Mapping[str, App]) -> dict[str, str]:
    """The public key (RFC 8292 §3.2) of each app-id that has Web Push."""
    return {
        app_id: cast("WebpushProvider", app[Platform.WEBPUSH]).application_server_key
        for app_id, app in apps.items()
        if Platform.WEBPUSH in app
    }


def _payload_problems(profile: Profile) -> list[str]:
    if isinstance(profile, str):
        return []
    if not profile:
        return [": is empty; name at least one key"]
    return [f".{problem}" for problem in template_problems(profile)]


def _provider(platform: Platform, app_id: str, config: AppConfig) -> PushProvider | None:
    match platform:
        case Platform.APNS:
            return _apns(config.apns, app_id, config.payload) if config.apns else None
        case Platform.FCM:
            return _fcm(config.fcm, config.payload) if config.fcm else None
        case Platform.WEBPUSH:
            return _webpush(config.webpush, config.payload) if config.webpush else None
        case Platform.WEBHOOK:
            return _webhook(config.webhook) if config.webhook else None
        case _:
            assert_never(platform)


def _apns(config: ApnsConfig, app_id: str, profile: Profile) -> ApnsProvider:
    from sipush.push.apns import ApnsProvider  # noqa: PLC0415

    key = _read(config.key_file, "key_file").decode(errors="replace")
    if _p256_key(key.encode()) is None:
        raise _Invalid("key_file", f"{config.key_file} is not an EC P-256 key as Apple issues it")
    return ApnsProvider(
        config,
        bundle_id=config.bundle_id or app_id,
        key=key,
        profile=profile,
        tls=_context(config.ca_file, "h2"),
    )


def _fcm(config: FcmConfig, profile: Profile) -> FcmProvider:
    from sipush.push.fcm import FcmProvider  # noqa: PLC0415

    where = config.service_account_file
    try:
        account: Any = json.loads(_read(where, "service_account_file"))
    except ValueError:
        account = None
    if not isinstance(account, dict) or account.get("type") != "service_account":
        raise _Invalid("service_account_file", f"{where} is not a service account's JSON key")
    missing = [k for k in _ACCOUNT_KEYS if not isinstance(account.get(k), str)]
    if missing:
        raise _Invalid("service_account_file", f"{where} lacks {', '.join(missing)}")
    tls = _context(config.ca_file, "h2", "http/1.1")
    try:
        return FcmProvider(config, account=account, profile=profile, tls=tls)
    except ValueError:
        raise _Invalid("service_account_file", f"{where} holds no usable private key") from None


_ACCOUNT_KEYS = ("project_id", "client_email", "private_key", "token_uri")


def _webpush(config: WebpushConfig, profile: Profile) -> WebpushProvider:
    from sipush.push.webpush import WebpushProvider  # noqa: PLC0415

    key = _p256_key(_read(config.key_file, "key_file"))
    if key is None:
        raise _Invalid("key_file", f"{config.key_file} is not a private EC P-256 key in PEM")
    tls = _context(config.ca_file, "h2", "http/1.1")
    return WebpushProvider(config, key=key, profile=profile, tls=tls)


def _webhook(config: WebhookConfig) -> WebhookProvider:
    from sipush.push.webhook import WebhookProvider  # noqa: PLC0415

    if not _is_https(config.url) and not _is_local(config.url):
        raise _Invalid("url", "must be https:// (http:// only to this machine)")
    secret = _read(config.secret_file, "secret_file").splitlines()
    if not secret or len(secret[0].strip()) < 16:
        raise _Invalid("secret_file", f"{config.secret_file}: the first line needs 16 characters")
    return WebhookProvider(config, secret=secret[0].strip(), tls=_context(config.ca_file))


def _p256_key(pem: bytes) -> ec.EllipticCurvePrivateKey | None:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        return None
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    return None


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _Invalid(key, f"cannot read {path}: {error.strerror}") from None


def _context(ca_file: Path | None, *alpn: str) -> ssl.SSLContext:
    try:
        return client_context(ca_file, *alpn)
    except OSError as error:  # SSLError is one
        raise _Invalid("ca_file", f"cannot use {ca_file}: {error.strerror or error}") from None


def _is_https(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" and bool(parts.hostname)


def _is_local(url: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        return parts.scheme == "http" and (host == "localhost" or ip_address(host).is_loopback)
    except ValueError:
        return False
