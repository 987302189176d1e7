"""Signatures, checked by others' code; secrets at rest; settings."""

from __future__ import annotations

import base64
import time

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from service.webhooks import sealing, signing
from service.webhooks.sealing import Unreadable
from service.webhooks.settings import WebhookSettings

BODY = '{"type": "job.succeeded", "data": {"name": "Größe"}}'.encode()


def test_the_example_of_the_specification() -> None:
    sent = signing.headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
    )
    assert sent["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_hmac_is_verified_by_the_standards_own_package() -> None:
    secret, public_key = signing.new_secret("hmac")
    assert secret.startswith("whsec_")
    assert public_key is None
    sent = signing.headers("m1", int(time.time()), BODY, [secret])
    assert Verifier(secret).verify(BODY, sent)["type"] == "job.succeeded"
    with pytest.raises(WebhookVerificationError):
        Verifier(secret).verify(BODY + b" ", sent)
    with pytest.raises(WebhookVerificationError):
        Verifier(signing.new_secret("hmac").secret).verify(BODY, sent)


def test_both_secrets_of_a_rotation_verify() -> None:
    old, new = signing.new_secret("hmac").secret, signing.new_secret("hmac").secret
    sent = signing.headers("m1", int(time.time()), BODY, [new, old])
    for secret in (old, new):
        Verifier(secret).verify(BODY, sent)


def test_ed25519_is_verified_by_the_public_key_alone() -> None:
    secret, public_key = signing.new_secret("ed25519")
    assert secret.startswith("whsk_")
    assert public_key is not None
    sent = signing.headers("m1", 1700000000, BODY, [secret])
    version, signature = sent["webhook-signature"].split(",")
    assert version == "v1a"
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key.removeprefix("whpk_")))
    key.verify(base64.b64decode(signature), b"m1.1700000000." + BODY)
    with pytest.raises(InvalidSignature):
        key.verify(base64.b64decode(signature), b"m1.1700000001." + BODY)


def test_secrets_are_sealed_with_the_first_key_and_opened_with_any() -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    stored = sealing.seal("whsec_x", [old])
    assert "whsec" not in stored
    assert sealing.unseal(stored, [new, old]) == "whsec_x"
    for keys in ([new], []):
        with pytest.raises(Unreadable, match="AMAML_WEBHOOK_KEYS"):
            sealing.unseal(stored, keys)
    assert sealing.unseal(sealing.seal("whsec_x", []), [new]) == "whsec_x"


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Fernet.generate_key().decode()
    monkeypatch.setenv("AMAML_WEBHOOK_NETWORKS", "10.0.0.0/8, fd00::/8")
    monkeypatch.setenv("AMAML_WEBHOOK_RETRY_SECONDS", "0,0.5")
    monkeypatch.setenv("AMAML_WEBHOOK_KEYS", key)
    read = WebhookSettings()
    assert [str(one) for one in read.networks] == ["10.0.0.0/8", "fd00::/8"]
    assert (read.retry_seconds, read.keys) == ((0.0, 0.5), (key,))
    assert key not in repr(read)
    monkeypatch.setenv("AMAML_WEBHOOK_NETWORKS", "")
    assert WebhookSettings().networks == ()
    for name, value in (("NETWORKS", "10.0.0.1/8"), ("KEYS", "short"), ("RETRY_SECONDS", ""), ("RETRY_SECONDS", "-1")):
        with monkeypatch.context() as patch:
            patch.setenv(f"AMAML_WEBHOOK_{name}", value)
            with pytest.raises(ValidationError) as refused:
                WebhookSettings()
            assert value == "" or value not in str(refused.value)
