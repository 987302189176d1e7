"""The `amaml` command as a process against the real API: what it prints, and its exit codes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from amaml_client import Client
from launcher.ports import HOST, free_port
from tests.client.commands import AMAML, Amaml, Start
from tests.client.conftest import Server
from tests.client.playing import NOBODY, SPEC, checking, diverge, finish
from tests.support.jobs import tell
from tests.support.waiting import CEILING_SECONDS, wait_until


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
        timeout=CEILING_SECONDS,
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


def test_nobody_there_is_exit_code_3(start: Start) -> None:
    nobody = f"http://{HOST}:{free_port()}"
    told, documented = start("jobs", AMAML_URL=nobody), start("jobs", "--json", AMAML_URL=nobody)
    assert (told.end(), documented.end()) == (3, 3)
    assert "Traceback" not in told.shown
    assert json.loads(documented.shown)["detail"] in told.shown


def test_steering(amaml: Amaml, job: str) -> None:
    assert json.loads(amaml("pause", job, "--json").stdout)["state"] == "paused"
    assert "is queued" in amaml("resume", job).stdout
    assert "is cancelled" in amaml("cancel", job).stdout
    again = amaml("resume", job)
    assert again.returncode == 4
    assert "cancelled" in again.stderr


def test_lists_and_one_job(amaml: Amaml, job: str) -> None:
    tell(job, iteration=3)
    done = amaml("jobs", "-n", "1")
    head, line = done.stdout.splitlines()
    assert head.split("\t")[:4] == ["id", "name", "state", "progress"]
    assert line.split("\t")[:5] == [job, "the [bold]job[/bold]�[31m", "queued", "3/10", "sinusoid"]
    (found,) = json.loads(amaml("jobs", "-n", "1", "--json").stdout)
    assert found == json.loads(amaml("status", job, "--json").stdout)
    assert found["links"]["self"] == f"/v1/jobs/{job}"
    assert f"id\t{job}\n" in amaml("status", job).stdout


def test_follow_says_what_changed(start: Start, job: str) -> None:
    following = start("jobs", "-f", "--json", "-n", "1")
    following.wait_for("\n")
    finish(job)
    wait_until(lambda: following.shown.count("\n") == 2)
    assert [json.loads(line)["state"] for line in following.shown.splitlines()] == ["queued", "succeeded"]
    following.process.send_signal(signal.SIGINT)
    assert following.end() == 0


def test_watch_in_a_pipe_is_plain_lines(start: Start, job: str) -> None:
    watching = start("watch", job)
    watching.wait_for("\nqueued\n")
    tell(job, phase="training", iteration=1, iterations=10, eta_seconds=9.0, metrics={"meta_loss": 0.5})
    finish(job, metrics={"nrmse_flow": [(10, 0.5)]})
    assert watching.end() == 0
    assert "\x1b" not in watching.shown
    assert watching.shown.splitlines()[0] == f"job {job} (the [bold]job[/bold]�[31m)"
    assert re.search(r"^succeeded after .* nrmse_flow 0\.5$", watching.shown, re.MULTILINE)


def test_a_failed_job_is_exit_code_1(amaml: Amaml, job: str) -> None:
    diverge(job)
    done = amaml("watch", job)
    assert done.returncode == 1
    assert "(diverged: lower meta.optimizer.lr)" in done.stdout
    done = amaml("watch", job, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["status_reason"] == "diverged"


def test_submit_and_watch_gives_one_document(start: Start, client: Client, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({**SPEC, "name": f"watched {tmp_path}"}))
    watching = start("submit", str(tmp_path / "spec.json"), "--watch", "--json")
    (submitted,) = wait_until(lambda: [job for job in client.jobs(limit=1) if job.name == f"watched {tmp_path}"])
    finish(submitted.id)
    assert watching.end() == 0
    document = json.loads(watching.shown)
    assert (document["id"], document["initialization"]["parameters"]) == (submitted.id, 2_000)


def test_watch_on_a_terminal(start: Start, job: str) -> None:
    watching = start("watch", job, on_a_terminal=True)
    watching.wait_for("queued")
    for iteration, loss in enumerate((0.9, 0.5, 0.1), start=1):
        tell(job, phase="training", iteration=iteration, iterations=10, eta_seconds=50.0, metrics={"meta_loss": loss})
    watching.wait_for("3/10")
    watching.wait_for("eta 50 s")
    watching.wait_for("meta_loss 0.1")
    watching.wait_for("█▅▁")
    assert "\x1b[" in watching.shown
    finish(job)
    watching.wait_for("succeeded after")
    assert watching.end() == 0


def test_ctrl_c_leaves_the_job_alone(start: Start, job: str, client: Client) -> None:
    watching = start("watch", job, on_a_terminal=True)
    watching.wait_for("queued")
    watching.process.send_signal(signal.SIGINT)
    assert watching.end() == 130
    assert f"job {job} goes on" in watching.shown
    assert "Traceback" not in watching.shown
    assert client.job(job).state == "queued"


def test_download(amaml: Amaml, job: str, tmp_path: Path) -> None:
    refused = amaml("download", job, "-o", "init.safetensors")
    assert refused.returncode == 4
    assert "queued" in refused.stderr
    finish(job, b"theta" * 1000)
    done = amaml("download", job, "-o", "init.safetensors")
    assert done.returncode == 0
    assert "verified" in done.stdout
    assert (tmp_path / "init.safetensors").read_bytes() == b"theta" * 1000
    document = json.loads(amaml("download", job, "-o", "again", "--json").stdout)
    assert document["sha256"] in done.stdout
    nowhere = amaml("download", job, "-o", "none/init")
    assert nowhere.returncode == 2
    assert "Traceback" not in nowhere.stderr


def test_metrics(amaml: Amaml, job: str) -> None:
    finish(job, metrics={"meta_loss": [(step, 1.0 / step) for step in range(1, 11)]})
    assert json.loads(amaml("metrics", job, "--json").stdout)["meta_loss"][1] == [2, 0.5]
    assert amaml("metrics", job, "--points", "--name", "meta_loss").stdout.splitlines()[2] == "meta_loss\t2\t0.5"
    (line,) = amaml("metrics", job).stdout.splitlines()[1:]
    assert line.split("\t")[:4] == ["meta_loss", "10", "0.1", "0.1"]


def test_datasets(amaml: Amaml, server: Server, tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("user,item,rating\n1,1,5\n1,2,3\n2,1,4\n")
    with checking(server.home):
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
