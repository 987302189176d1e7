"""How a webhook's secret is stored in the database: encrypted if the operator has set a key for that, else in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

_SEALED: Final = "fernet:"
_PLAIN: Final = "plain:"


class Unreadable(Exception):
    """None of the keys decrypts it; the message names the remedy."""


def seal(secret: str, keys: Sequence[str]) -> str:
    """The text to store for the secret."""
    return _SEALED + Fernet(keys[0]).encrypt(secret.encode()).decode() if keys else _PLAIN + secret


def unseal(stored: str, keys: Sequence[str]) -> str:
    """The secret; raises Unreadable."""
    if stored.startswith(_PLAIN):
        return stored.removeprefix(_PLAIN)
    try:
        if keys:
            return MultiFernet([Fernet(key) for key in keys]).decrypt(stored.removeprefix(_SEALED)).decode()
    except InvalidToken:
        pass
    raise Unreadable(
        "This worker can't read the webhook's secret: set AMAML_WEBHOOK_KEYS to the keys that the API has, or rotate the secret."
    )
