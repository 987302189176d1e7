"""The `amaml` command as a process against the real API: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from amaml_client import Client
from launcher.ports import HOST, free_port
from tests.client.conftest import AMAML, Server
from tests.client.test_client import NOBODY, SPEC

Amaml = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(server: Server) -> dict[str, str]:
    """Of a user whose stack is the server; the key is found by itself."""
    foreign = ("AMAML_", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "TERM")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**ours, "AMAML_URL": server.url, "AMAML_HOME": str(server.home), "TERM": "xterm-256color"}


@pytest.fixture
def amaml(environment: dict[str, str], tmp_path: Path) -> Amaml:
    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [AMAML, *arguments],
            env={**environment, **changes},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def job(client: Client) -> str:
    return client.submit({**SPEC, "name": "the [bold]job[/bold]\x1b[31m"}).id


def later(seconds: float, action: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_submit_yaml(amaml: Amaml, client: Client, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("family: {kind: sinusoid}\nmeta:\n  optimizer: {kind: adam, lr: 1e-3}\n")
    done = amaml("submit", "spec.yaml")
    assert done.returncode == 0, done.stderr
    (job_id,) = re.findall(r"^job (\S+) is queued$", done.stdout, re.MULTILINE)
    assert client.job(job_id).spec["meta"]["optimizer"]["lr"] == 1e-3


def test_submit_standard_input(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [AMAML, "submit", "-", "--json"],
        env=environment,
        input=json.dumps(SPEC),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["state"] == "queued"


def test_what_the_server_finds_invalid_is_shown_with_its_line(amaml: Amaml, tmp_path: Path) -> None:
    text = "family:\n  kind: sinusoid\n  shots: 0\n\ntrajectory:\n  length: -1\nnonsense: 1\n"
    (tmp_path / "spec.yaml").write_text(text)
    done = amaml("submit", "spec.yaml")
    assert done.returncode == 2
    assert "spec.yaml:3: /family/shots: " in done.stderr
    assert "spec.yaml:6: /trajectory/length: " in done.stderr
    assert "spec.yaml:7: /nonsense: " in done.stderr
    assert done.stdout == ""
    done = amaml("submit", "spec.yaml", "--json")
    assert done.returncode == 2
    problem = json.loads(done.stderr)
    assert problem["code"] == "invalid"
    assert {(error["pointer"], error["line"]) for error in problem["errors"]} == {
        ("/family/shots", 3),
        ("/trajectory/length", 6),
        ("/nonsense", 7),
    }


@pytest.mark.parametrize(
    ("arguments", "changes", "code"),
    [
        (["families"], {}, 0),
        (["models", "--json"], {}, 0),
        (["usage"], {}, 0),
        (["usage", "--json"], {}, 0),
        (["nonsense"], {}, 2),
        (["status"], {}, 2),
        (["jobs", "--limit", "0"], {}, 2),
        (["jobs", "--state", "nonsense"], {}, 2),
        (["submit", "none.yaml"], {}, 2),
        (["datasets", "upload", "none.csv"], {}, 2),
        (["jobs"], {"AMAML_URL": "nonsense"}, 2),
        (["jobs"], {"AMAML_URL": f"http://{HOST}:{free_port()}"}, 3),
        (["status", NOBODY], {}, 4),
        (["status", "nonsense"], {}, 4),
        (["watch", NOBODY], {}, 4),
        (["download", NOBODY, "-o", "init"], {}, 4),
        (["datasets", "get", NOBODY], {}, 4),
        (["jobs"], {"AMAML_API_KEY": "nonsense"}, 4),
        (["jobs"], {"AMAML_HOME": "none"}, 4),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, (list, dict)) else None,
)
def test_exit_codes(amaml: Amaml, arguments: list[str], changes: dict[str, str], code: int) -> None:
    done = amaml(*arguments, **changes)
    assert done.returncode == code, done.stderr
    assert bool(done.stderr) == (code != 0)
    assert "Traceback" not in done.stderr
    if code != 0:
        problem = json.loads(amaml(*arguments, "--json", **changes).stderr)
        assert problem["detail"] in done.stderr


def test_steering(amaml: Amaml, job: str) -> None:
    assert json.loads(amaml("pause", job, "--json").stdout)["state"] == "paused"
    assert "is queued" in amaml("resume", job).stdout
    assert "is cancelled" in amaml("cancel", job).stdout
    again = amaml("resume", job)
    assert again.returncode == 4
    assert "cancelled" in again.stderr


def test_lists_and_one_job(amaml: Amaml, job: str, server: Server) -> None:
    server.progress(job, iteration=3)
    done = amaml("jobs", "-n", "1")
    head, line = done.stdout.splitlines()
    assert head.split("\t")[:4] == ["id", "name", "state", "progress"]
    assert line.split("\t")[:5] == [job, "the [bold]job[/bold]�[31m", "queued", "3/10", "sinusoid"]
    (found,) = json.loads(amaml("jobs", "-n", "1", "--json").stdout)
    assert found == json.loads(amaml("status", job, "--json").stdout)
    assert found["links"]["self"] == f"/v1/jobs/{job}"
    assert f"id\t{job}\n" in amaml("status", job).stdout


def test_follow_says_what_changed(environment: dict[str, str], job: str, server: Server) -> None:
    following = subprocess.Popen(
        [AMAML, "jobs", "-f", "--json", "-n", "1"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert following.stdout is not None
    assert json.loads(following.stdout.readline())["state"] == "queued"
    server.finish(job, b"theta")
    assert json.loads(following.stdout.readline())["state"] == "succeeded"
    following.send_signal(signal.SIGINT)
    assert following.wait(10) == 0
    following.stdout.close()


def test_watch_in_a_pipe_is_plain_lines(amaml: Amaml, job: str, server: Server) -> None:
    def run() -> None:
        server.progress(job, phase="training", iteration=1, iterations=10, eta_seconds=9.0, metrics={"meta_loss": 0.5})
        server.finish(job, b"theta")

    timer = later(1, run)
    done = amaml("watch", job)
    timer.join()
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[0] == f"job {job} (the [bold]job[/bold]�[31m)"
    assert re.search(r"^succeeded after .* nrmse_flow 0\.5$", done.stdout, re.MULTILINE)


def test_a_failed_job_is_exit_code_1(amaml: Amaml, job: str, server: Server) -> None:
    server.fail(job)
    done = amaml("watch", job)
    assert done.returncode == 1
    assert "(diverged: lower meta.optimizer.lr)" in done.stdout
    done = amaml("watch", job, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["status_reason"] == "diverged"


def test_submit_and_watch_gives_one_document(
    environment: dict[str, str], client: Client, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({**SPEC, "name": f"watched {tmp_path}"}))
    watching = subprocess.Popen(
        [AMAML, "submit", str(tmp_path / "spec.json"), "--watch", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while not (submitted := [job for job in client.jobs(limit=1) if job.name == f"watched {tmp_path}"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    server.finish(submitted[0].id, b"theta")
    output, _ = watching.communicate(timeout=20)
    assert json.loads(output)["initialization"]["parameters"] == 7
    assert watching.returncode == 0


@pytest.fixture
def terminal(environment: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    opened = []

    def open_(*arguments: str) -> Terminal:
        opened.append(Terminal(arguments, environment))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        self._near, far = pty.openpty()
        self.process = subprocess.Popen(
            [AMAML, *arguments],
            env={**environment, "COLUMNS": "160"},
            stdin=far,
            stdout=far,
            stderr=far,
            start_new_session=True,
        )
        os.close(far)
        self.shown = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # the other end is closed
            while piece := os.read(self._near, 65536):
                self.shown += piece.decode(errors="replace")

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            time.sleep(0.05)

    def end(self) -> int:
        code = self.process.wait(20)
        self._reader.join(5)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)
        os.close(self._near)


def test_watch_on_a_terminal(terminal: Callable[..., Terminal], job: str, server: Server) -> None:
    watching = terminal("watch", job)
    watching.wait_for("queued")
    for iteration, loss in enumerate((0.9, 0.5, 0.1), start=1):
        server.progress(
            job, phase="training", iteration=iteration, iterations=10, eta_seconds=50.0, metrics={"meta_loss": loss}
        )
    watching.wait_for("3/10")
    watching.wait_for("eta 50 s")
    watching.wait_for("meta_loss 0.1")
    watching.wait_for("█▅▁")
    assert "\x1b[" in watching.shown
    server.finish(job, b"theta")
    watching.wait_for("succeeded after")
    assert watching.end() == 0


def test_ctrl_c_leaves_the_job_alone(terminal: Callable[..., Terminal], job: str, client: Client) -> None:
    watching = terminal("watch", job)
    watching.wait_for("queued")
    watching.process.send_signal(signal.SIGINT)
    assert watching.end() == 130
    assert f"job {job} goes on" in watching.shown
    assert "Traceback" not in watching.shown
    assert client.job(job).state == "queued"


def test_download(amaml: Amaml, job: str, server: Server, tmp_path: Path) -> None:
    refused = amaml("download", job, "-o", "init.safetensors")
    assert refused.returncode == 4
    assert "queued" in refused.stderr
    server.finish(job, b"theta" * 1000)
    done = amaml("download", job, "-o", "init.safetensors")
    assert done.returncode == 0
    assert "verified" in done.stdout
    assert (tmp_path / "init.safetensors").read_bytes() == b"theta" * 1000
    document = json.loads(amaml("download", job, "-o", "again", "--json").stdout)
    assert document["sha256"] in done.stdout
    nowhere = amaml("download", job, "-o", "none/init")
    assert nowhere.returncode == 2
    assert "Traceback" not in nowhere.stderr


def test_metrics(amaml: Amaml, job: str, server: Server) -> None:
    server.measure(job, "meta_loss", [(step, 1.0 / step) for step in range(1, 11)])
    assert json.loads(amaml("metrics", job, "--json").stdout)["meta_loss"][1] == [2, 0.5]
    assert amaml("metrics", job, "--points", "--name", "meta_loss").stdout.splitlines()[2] == "meta_loss\t2\t0.5"
    (line,) = amaml("metrics", job).stdout.splitlines()[1:]
    assert line.split("\t")[:4] == ["meta_loss", "10", "0.1", "0.1"]


def test_datasets(amaml: Amaml, server: Server, tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("user,item,rating\n1,1,5\n1,2,3\n2,1,4\n")
    with server.checking():
        dataset: dict[str, Any] = json.loads(amaml("datasets", "upload", "ratings.csv", "--wait", "--json").stdout)
        assert (dataset["rows"], dataset["tasks"], dataset["name"]) == (3, 2, "ratings.csv")
        (tmp_path / "ratings.csv").write_text("user,item,rating\n1,1,five\n")
        bad = amaml("datasets", "upload", "ratings.csv", "--wait")
    assert bad.returncode == 1
    assert "2\tthe rating 'five' is not a finite number" in bad.stdout
    assert "Line 2" in bad.stderr
    assert dataset["id"] in amaml("datasets", "list", "--state", "ready", "--family", "ratings").stdout
    assert dataset["id"] not in amaml("datasets", "list", "--state", "invalid").stdout
    shown = amaml("datasets", "show", dataset["id"]).stdout
    assert f"sha256\t{dataset['sha256']}" in shown
    assert "rating\tinteger\t0" in shown
    assert amaml("datasets", "delete", dataset["id"]).returncode == 0
    assert amaml("datasets", "show", dataset["id"]).returncode == 4
    (tmp_path / "ratings.csv").write_text("\x00")
    assert amaml("datasets", "upload", "ratings.csv").returncode == 2


def test_webhooks(amaml: Amaml) -> None:
    url = "http://127.0.0.1:9009/hook"
    added = json.loads(amaml("webhooks", "add", url, "--event", "job.failed", "--event", "job.paused", "--json").stdout)
    assert (added["events"], added["secret"][:6]) == (["job.failed", "job.paused"], "whsec_")
    assert f"{added['id']}\t{url}\tjob.failed, job.paused\thmac\tTrue\t0" in amaml("webhooks", "list").stdout
    shown = amaml("webhooks", "show", added["id"]).stdout
    assert "secret" not in shown
    assert "secret\twhsec_" in amaml("webhooks", "rotate", added["id"], "--overlap", "60").stdout
    delivery = json.loads(amaml("webhooks", "test", added["id"], "--json").stdout)
    assert f"{delivery['id']}\twebhook.test\tpending\t0" in amaml("webhooks", "deliveries", added["id"]).stdout
    assert '{"type":"webhook.test"' in amaml("webhooks", "delivery", added["id"], delivery["id"]).stdout
    assert amaml("webhooks", "redeliver", added["id"], delivery["id"]).returncode == 4
    assert "disabled_reason\tasked" in amaml("webhooks", "change", added["id"], "--disable").stdout
    assert "enabled\tTrue" in amaml("webhooks", "change", added["id"], "--enable").stdout
    assert "state\tpending" in amaml("webhooks", "redeliver", added["id"], delivery["id"]).stdout
    assert amaml("webhooks", "delete", added["id"]).returncode == 0
    assert amaml("webhooks", "show", added["id"]).returncode == 4
    assert amaml("webhooks", "add", "https://127.0.0.1:22/").returncode == 2


def test_help_names_every_command(amaml: Amaml) -> None:
    shown = amaml("--help").stdout
    for command in (
        "submit",
        "jobs",
        "status",
        "watch",
        "cancel",
        "pause",
        "resume",
        "metrics",
        "download",
        "datasets",
        "webhooks",
    ):
        assert re.search(rf"^  {command} ", shown, re.MULTILINE)
    assert re.search(r"^  up +Run", shown, re.MULTILINE)
    assert amaml("--version").stdout.startswith("amaml-client ")
