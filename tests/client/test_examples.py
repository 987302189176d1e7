"""The examples and the documentation's Python run as they stand; a worker is played by finishing the job they submit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from amaml_client import Client
from tests.client.conftest import Server
from tests.client.playing import finish
from tests.support.jobs import tell
from tests.support.waiting import CEILING_SECONDS, wait_until

ROOT = Path(__file__).parents[2]
SNIPPET = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text(encoding="utf-8"), re.DOTALL)
assert SNIPPET is not None


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "examples/submit.py", "examples/sinusoid.json"],
        pytest.param(
            ["sh", "examples/submit.sh", "examples/sinusoid.json"],
            marks=pytest.mark.skipif(
                not (shutil.which("curl") and shutil.which("sha256sum")), reason="needs curl and sha256sum"
            ),
        ),
        [sys.executable, "-c", SNIPPET[1].replace('"init.safetensors"', "__import__('sys').argv[1]")],
    ],
    ids=["submit.py", "submit.sh", "docs/client.md"],
)
def test_runs(command: list[str], server: Server, client: Client, tmp_path: Path) -> None:
    before = client.jobs(limit=1)
    settings = {"AMAML_URL": server.url, "AMAML_HOME": str(server.home)}
    example = subprocess.Popen(
        [*command, str(tmp_path / "init.safetensors")],
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def submitted() -> bool:
        assert example.poll() is None, example.communicate()[0]
        return client.jobs(limit=1) != before

    wait_until(submitted)
    (job,) = client.jobs(limit=1)
    tell(job.id, phase="training", iteration=1, iterations=200)
    finish(job.id, b"theta" * 999, {"nrmse_flow": [(200, 0.5)]})
    output, _ = example.communicate(timeout=CEILING_SECONDS)
    assert example.returncode == 0, output
    assert job.id in output or "state" in output
    assert (tmp_path / "init.safetensors").read_bytes() == b"theta" * 999


def test_the_readmes_calls_work(server: Server) -> None:
    """The shell of its first example, at this server's address; the id is the one that the submit answers."""
    shell = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert shell is not None
    lines = shell[1].replace("localhost:8000", server.url).replace(".amaml/admin.key", str(server.home / "admin.key"))
    key, submit, then = lines.partition("make up")[2].partition("\n")[2].split("\n\n")
    job = json.loads(_shell(f"{key}\n{submit}"))
    assert job["spec"]["meta"]["iterations"] == 200
    finish(job["id"])
    folder = server.home / "readme"
    folder.mkdir()
    printed = _shell(f"cd {folder}; ID={job['id']}\n{key}\n{then}")
    assert '"state":"succeeded"' in printed
    assert (folder / "init.safetensors").read_bytes() == b"theta"


def _shell(script: str) -> str:
    done = subprocess.run(
        ["sh", "-ec", script], cwd=ROOT, capture_output=True, text=True, timeout=CEILING_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
