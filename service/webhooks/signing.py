"""Signatures and keys of Standard Webhooks 1.0 (https://www.standardwebhooks.com).

A signature is that of `id.timestamp.body`: by HMAC-SHA256 (`v1`; the receiver has the same secret, `whsec_…`), or by Ed25519
(`v1a`; the service keeps the private key, `whsk_…`, and the receiver has the public one, `whpk_…`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Signature = Literal["hmac", "ed25519"]

_SYMMETRIC, _PRIVATE, _PUBLIC = "whsec_", "whsk_", "whpk_"
_BYTES: Final = 32


class Secret(NamedTuple):
    """A signing secret, and for Ed25519 the public key with which receivers verify."""

    secret: str
    public_key: str | None


def new_secret(kind: Signature) -> Secret:
    """32 random bytes."""
    if kind == "hmac":
        return Secret(_SYMMETRIC + _base64(secrets.token_bytes(_BYTES)), None)
    key = Ed25519PrivateKey.generate()
    return Secret(_PRIVATE + _base64(key.private_bytes_raw()), _PUBLIC + _base64(key.public_key().public_bytes_raw()))


def headers(message_id: str, timestamp: int, body: bytes, keys: Sequence[str]) -> dict[str, str]:
    """The three headers of a message sent at `timestamp` (Unix seconds), with a signature by each of the keys."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_sign(key, signed) for key in keys),
    }


def _sign(key: str, content: bytes) -> str:
    prefix, _, rest = key.partition("_")
    raw = base64.b64decode(rest)
    if prefix == "whsk":
        return "v1a," + _base64(Ed25519PrivateKey.from_private_bytes(raw).sign(content))
    return "v1," + _base64(hmac.digest(raw, content, hashlib.sha256))


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
