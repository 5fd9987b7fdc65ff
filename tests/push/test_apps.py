"""Building the apps: every credential is checked, every problem told at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sipush.config import ApnsConfig, AppConfig, FcmConfig, WebhookConfig, WebpushConfig
from sipush.core.bindings import Platform
from sipush.demo.credentials import KEY_ID, TEAM_ID, Credentials
from sipush.errors import ConfigError
from sipush.push.apps import build_apps


def problems_of(**sections: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_apps({"com.x": AppConfig(**sections)})
    return caught.value.problems


def apns(key_file: Path, **changes: object) -> ApnsConfig:
    return ApnsConfig(**{"key_file": key_file, "key_id": KEY_ID, "team_id": TEAM_ID, **changes})


def webpush(key_file: Path) -> WebpushConfig:
    return WebpushConfig(key_file=key_file, subject="mailto:ops@example.com")


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_good_credentials_make_services(credentials: Credentials) -> None:
    app = AppConfig(
        apns=apns(credentials.apns_key_file),
        fcm=FcmConfig(service_account_file=credentials.service_account_file),
        webpush=webpush(credentials.vapid_key_file),
        webhook=WebhookConfig(
            url="https://app.example.com/hook", secret_file=credentials.webhook_secret_file
        ),
    )
    apps = build_apps({"com.x": app, "com.y": AppConfig()})
    assert {platform: service.name for platform, service in apps["com.x"].items()} == {
        Platform.APNS: "apns",
        Platform.FCM: "fcm",
        Platform.WEBPUSH: "webpush",
        Platform.WEBHOOK: "webhook",
    }
    assert apps["com.y"] == {}


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    problems = problems_of(
        payload={"a": "{token}"},
        apns=apns(empty),
        fcm=FcmConfig(service_account_file=empty),
        webpush=webpush(empty),
        webhook=WebhookConfig(url="https://x/", secret_file=empty),
    )
    assert problems[0].startswith('apps."com.x".payload.a: unknown place {token}; allowed are')
    assert problems[1:] == [
        f'apps."com.x".apns.key_file: {empty} is not an EC P-256 key as Apple issues it',
        f'apps."com.x".fcm.service_account_file: {empty} is not a service account\'s JSON key',
        f'apps."com.x".webpush.key_file: {empty} is not a private EC P-256 key in PEM',
        f'apps."com.x".webhook.secret_file: {empty}: the first line needs 16 characters',
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe not text",
        pem(rsa.generate_private_key(65537, 2048)),
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(ec.generate_private_key(ec.SECP256K1())),
    ],
    ids=["empty", "binary", "RSA", "P-384", "secp256k1"],
)
def test_a_key_must_be_ec_p256(content: bytes, tmp_path: Path) -> None:
    key_file = tmp_path / "key.p8"
    key_file.write_bytes(content)
    assert problems_of(webpush=webpush(key_file)) == [
        f'apps."com.x".webpush.key_file: {key_file} is not a private EC P-256 key in PEM'
    ]
    assert problems_of(apns=apns(key_file)) == [
        f'apps."com.x".apns.key_file: {key_file} is not an EC P-256 key as Apple issues it'
    ]


def test_a_key_that_went_away_is_told(tmp_path: Path) -> None:
    key_file = tmp_path / "key.p8"
    key_file.touch()
    config = apns(key_file)
    key_file.unlink()
    assert problems_of(apns=config) == [
        f'apps."com.x".apns.key_file: cannot read {key_file}: No such file or directory'
    ]


def test_a_ca_file_must_hold_certificates(tmp_path: Path, credentials: Credentials) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    (problem,) = problems_of(apns=apns(credentials.apns_key_file, ca_file=tmp_path / "ca.pem"))
    assert problem.startswith('apps."com.x".apns.ca_file: cannot use ')


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"type": "authorized_user"}, "is not a service account's JSON key"),
        ({"token_uri": None}, "lacks token_uri"),
        ({"private_key": "-----BEGIN PRIVATE KEY-----"}, "holds no usable private key"),
    ],
)
def test_a_service_account_is_checked(
    change: dict[str, object], problem: str, tmp_path: Path, credentials: Credentials
) -> None:
    account = json.loads(credentials.service_account_file.read_text()) | change
    file = tmp_path / "account.json"
    file.write_text(json.dumps(account))
    assert problems_of(fcm=FcmConfig(service_account_file=file)) == [
        f'apps."com.x".fcm.service_account_file: {file} {problem}'
    ]


@pytest.mark.parametrize("url", ["http://app.example.com/hook", "http://10.0.0.1/hook"])
def test_a_webhook_is_not_sent_in_the_clear(url: str, credentials: Credentials) -> None:
    config = WebhookConfig(url=url, secret_file=credentials.webhook_secret_file)
    assert problems_of(webhook=config) == [
        'apps."com.x".webhook.url: must be https:// (http:// only to this machine)'
    ]


def test_a_short_webhook_secret_is_refused(tmp_path: Path) -> None:
    secret_file = tmp_path / "secret"
    secret_file.write_text("short\n")
    (problem,) = problems_of(webhook=WebhookConfig(url="https://x/", secret_file=secret_file))
    assert problem.endswith("the first line needs 16 characters")


def test_an_empty_template_is_refused() -> None:
    assert problems_of(payload={}) == ['apps."com.x".payload: is empty; name at least one key']


def test_no_problem_tells_a_key(tmp_path: Path) -> None:
    secret = pem(ec.generate_private_key(ec.SECP384R1())).decode()
    (tmp_path / "key.p8").write_text(secret)
    text = "\n".join(problems_of(apns=apns(tmp_path / "key.p8")))
    assert secret.splitlines()[1] not in text
