"""Makes the synchronous client, `client.py`, from the asynchronous one, `async_client.py`.

A list of substitutions suffices, as for httpcore's own two halves; ruff sorts the imports and wraps the lines anew.
`--check` writes nothing, and fails where `client.py` isn't what would be written.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "amaml_client"
SOURCE, TARGET = PACKAGE / "async_client.py", PACKAGE / "client.py"

HEADER = '"""The synchronous client, made from `async_client.py` by `make client`: change that file, not this one."""'
SUBSTITUTIONS = (
    (r'^"""The asynchronous client.*', HEADER),
    (r", for asyncio;", ";"),
    (r"\ban `async with`", "a `with`"),
    (r"\b(async|await) ", ""),
    (r"\bAsync(Client|Iterator)\b", r"\1"),
    (r"\bAbstractAsyncContextManager\b", "AbstractContextManager"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\ba(close|read|iter_bytes)\(", r"\1("),
    (r"\basyncio\.to_thread\((\S+), ", r"\1("),
    (r"\bimport asyncio\b", "import time"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"for (\w+) in (.+):\n +yield \1\n", r"yield from \2\n"),
)


def synchronous(text: str) -> str:
    for pattern, replacement in SUBSTITUTIONS:
        text = re.sub(pattern, replacement, text)
    for step in (["check", "--quiet", "--select", "I", "--fix"], ["format", "--quiet"]):
        command = [sys.executable, "-m", "ruff", *step, "--stdin-filename", str(TARGET), "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return text


def main() -> None:
    made = synchronous(SOURCE.read_text(encoding="utf-8"))
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(made, encoding="utf-8")
    elif made != TARGET.read_text(encoding="utf-8"):
        raise SystemExit(f"{TARGET.name} isn't what {SOURCE.name} makes: run `make client`")


if __name__ == "__main__":
    main()
