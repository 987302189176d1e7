"""What docs/webhooks.md shows to receivers works, and what it says of messages is so."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from service.webhooks import signing
from service.webhooks.settings import WebhookSettings
from service.webhooks.trigger import FUNCTION_BODY, TYPES

TEXT = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text()
BODY = b'{"type": "job.failed"}'


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def shown() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for code in blocks("python"):
        exec(code, names)  # noqa: S102 - our own documentation
    return names


def signed(*secrets: str, at: float | None = None) -> dict[str, str]:
    return signing.headers("m1", int(at or time.time()), BODY, secrets)


def test_the_snippet_verifies(shown: dict[str, Any]) -> None:
    secret, other = signing.new_secret("hmac").secret, signing.new_secret("hmac").secret
    for headers in (signed(secret), signed(secret, other), signed(other, secret)):
        shown["verify"](secret, headers, BODY)
    for headers, body in (
        (signed(other), BODY), (signed(secret), BODY + b" "), (signed(secret, at=time.time() - 400), BODY),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"signed|old"):
            shown["verify"](secret, headers, body)


def test_the_snippet_for_public_keys_verifies(shown: dict[str, Any]) -> None:
    mine, other = signing.new_secret("ed25519"), signing.new_secret("ed25519")
    for keys in ((mine,), (mine, other), (other, mine)):
        shown["verify_ed25519"](mine.public_key, signed(*(key.secret for key in keys)), BODY)
    old = signed(mine.secret, at=time.time() - 400)
    for headers, body in ((signed(other.secret), BODY), (signed(mine.secret), BODY + b" "), (old, BODY)):
        with pytest.raises(ValueError, match=r"signed|old"):
            shown["verify_ed25519"](mine.public_key, headers, body)


def test_the_message_shown_has_the_members_that_are_sent() -> None:
    (message,) = [json.loads(block) for block in blocks("json")]
    for member in (*message, *message["data"], *message["data"]["progress"], *message["data"]["initialization"]):
        assert f"'{member}'" in FUNCTION_BODY
    assert message["type"] in TYPES
    for name in TYPES:
        assert f"`{name.removeprefix('job.')}`" in TEXT


def test_every_setting_has_a_line() -> None:
    for name in WebhookSettings.model_fields:
        assert f"`AMAML_WEBHOOK_{name.upper()}`" in TEXT
