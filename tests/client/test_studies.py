"""Studies by the clients and the command, on a real API; a worker is played by ending the jobs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from amaml_client import AsyncClient, Client, Invalid, NotFound, Study, StudyIncomplete, TimedOut, read_spec
from service.core.database import transaction
from service.studies import store as studies
from service.studies.grid import expand
from service.studies.schemas import NewStudy
from tests.client.commands import Amaml, Start
from tests.client.conftest import Server
from tests.client.playing import diverge, finish, meanwhile
from tests.support.waiting import CEILING_SECONDS, wait_until

EXAMPLES = Path(__file__).parents[2] / "examples" / "studies"
STUDY: dict[str, Any] = {
    "name": "seeds",
    "base": {"family": {"kind": "sinusoid"}, "meta": {"iterations": 3}},
    "grid": {"/runtime/seed": [0, 1]},
}


def end(study: Study, *, well: bool = True) -> None:
    for cell in study.jobs or ():
        (finish if well or cell.cell["/runtime/seed"] == 0 else diverge)(cell.job_id)
    with transaction() as session:
        studies.advance(session, UUID(study.id))


@pytest.fixture
def study(client: Client) -> Iterator[Study]:
    made = client.study(client.submit_study(STUDY).id)
    yield made
    if not client.study(made.id).ended:
        client.cancel_study(made.id)


def test_a_study_from_submit_to_delete(client: Client) -> None:
    made = client.submit_study(STUDY)
    assert (made.state, made.cells, made.states, made.jobs) == ("running", 2, {"queued": 2}, None)
    with pytest.raises(TimedOut, match=r"study .* is still running"):
        client.wait_for_study(made.id, timeout=0.2)
    study = client.study(made.id)
    seen: list[Study] = []

    def play() -> None:
        wait_until(lambda: seen)
        end(study)

    with meanwhile(play):
        ended = client.wait_for_study(made.id, timeout=CEILING_SECONDS, progress=seen.append)
    assert ended.check().states == {"succeeded": 2}
    assert seen[0].states == {"queued": 2}
    assert seen[-1] == ended
    assert client.studies(limit=1)[0].id == made.id
    assert client.study_report(made.id)["states"] == {"succeeded": 2}
    assert client.study_report(made.id, format="csv").startswith("jobs,")
    client.delete_study(made.id)
    with pytest.raises(NotFound):
        client.study(made.id)


def test_one_key_makes_one_study(client: Client) -> None:
    key = str(uuid4())
    assert client.submit_study(STUDY, idempotency_key=key).id == client.submit_study(STUDY, idempotency_key=key).id


def test_a_study_with_a_failed_job_is_incomplete(client: Client, study: Study) -> None:
    end(study, well=False)
    ended = client.wait_for_study(study.id)
    with pytest.raises(StudyIncomplete, match="1 succeeded, 1 failed"):
        ended.check()


def test_the_asynchronous_client_does_the_same(server: Server) -> None:
    async def converse() -> None:
        async with AsyncClient(server.url, server.key) as client:
            made = await client.submit_study(STUDY)
            assert (await client.study(made.id)).jobs is not None
            assert made.id in [one.id for one in await client.studies()]
            assert (await client.cancel_study(made.id)).state == "cancelled"
            assert (await client.wait_for_study(made.id)).state == "cancelled"
            assert "cancelled" in await client.study_report(made.id, format="md")
            await client.delete_study(made.id)

    asyncio.run(converse())


def write(folder: Path, study: dict[str, Any] = STUDY) -> str:
    (folder / "study.json").write_text(json.dumps(study))
    return "study.json"


def test_run_list_show_cancel_delete(amaml: Amaml, tmp_path: Path) -> None:
    done = amaml("study", "run", write(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "2 jobs, 2 at once" in done.stdout
    study_id = done.stdout.split()[1]
    assert f"{study_id}\tseeds\trunning\t0/2\t2 queued" in amaml("study", "list").stdout
    shown = amaml("study", "show", study_id).stdout
    assert "runtime.seed\tjob\tstate\tprogress\tdetail" in shown
    assert shown.count("\tqueued\t0/3\t") == 2
    assert "is cancelled: 2 cancelled" in amaml("study", "cancel", study_id).stdout
    assert json.loads(amaml("study", "show", study_id, "--json").stdout)["state"] == "cancelled"
    watched = amaml("study", "watch", study_id)
    assert (watched.returncode, "2 cancelled" in watched.stderr) == (1, True)
    assert amaml("study", "delete", study_id).returncode == 0
    assert amaml("study", "show", study_id).returncode == 4


def test_watching_ends_with_the_study(start: Start, client: Client, tmp_path: Path) -> None:
    watching = start("study", "run", str(tmp_path / write(tmp_path)), "--watch")
    watching.wait_for("2 queued")
    (study,) = client.studies(limit=1)
    end(client.study(study.id))
    assert watching.end() == 0, watching.shown
    assert f"2 succeeded; `amaml study report {study.id}" in watching.shown


def test_reports_go_to_files_and_standard_output(amaml: Amaml, study: Study, tmp_path: Path) -> None:
    assert amaml("study", "report", study.id).stdout.startswith("# seeds")
    assert amaml("study", "report", study.id, "--format", "csv").stdout.startswith("jobs,scored")
    assert json.loads(amaml("study", "report", study.id, "--json").stdout)["id"] == study.id
    for name, beginning in (("r.html", "<!doctype html>"), ("r.md", "# seeds"), ("r.json", "{"), ("r.txt", "# seeds")):
        assert amaml("study", "report", study.id, "-o", name).returncode == 0
        assert (tmp_path / name).read_text().startswith(beginning)
    assert amaml("study", "report", study.id, "--format", "pdf").returncode == 2


def test_what_is_invalid_is_shown_with_its_line(amaml: Amaml, tmp_path: Path) -> None:
    text = "base:\n  family: {kind: sinusoid}\ngrid:\n  /method/kind:\n    - amaml\n    - nonesuch\n"
    (tmp_path / "study.yaml").write_text(text)
    done = amaml("study", "run", "study.yaml")
    assert done.returncode == 2
    assert "study.yaml:6: /grid/~1method~1kind/1: 'nonesuch' is none" in done.stderr


def test_a_data_set_takes_its_placeholders_place(amaml: Amaml, tmp_path: Path) -> None:
    family = {"kind": "ratings", "dataset": "${dataset}"}
    name = write(tmp_path, {**STUDY, "grid": {"/family": [family]}})
    missing = amaml("study", "run", name)
    assert (missing.returncode, "--dataset ID" in missing.stderr) == (2, True)
    unknown = str(uuid4())
    assert unknown in amaml("study", "run", name, "--dataset", unknown).stderr
    superfluous = amaml("study", "run", write(tmp_path), "--dataset", unknown)
    assert (superfluous.returncode, "leave --dataset out" in superfluous.stderr) == (2, True)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_valid(path: Path) -> None:
    text = json.dumps(read_spec(path).spec).replace("${dataset}", str(uuid4()))
    wanted = NewStudy.model_validate_json(text)
    assert len(expand(wanted.name, wanted.base, wanted.grid)) > 4


def test_there_is_a_small_example_of_each() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.yaml")}
    assert names == {f"{size}-{what}" for size in ("paper", "small") for what in ("synthetic", "ratings", "efficiency")}


def test_an_invalid_study_is_refused_whole(client: Client) -> None:
    with pytest.raises(Invalid, match="~1nonesuch"):
        client.submit_study({**STUDY, "grid": {"/nonesuch": [1]}})
