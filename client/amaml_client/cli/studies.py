"""`amaml study`: grids of jobs, and reports that compare them."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from amaml_client.cli import output
from amaml_client.cli.jobs import located
from amaml_client.cli.output import AsJson, answer, console, deleted, duration, emit, listing, say, table
from amaml_client.client import Client
from amaml_client.errors import Invalid, SpecFileError
from amaml_client.results import FINAL, Study
from amaml_client.specfile import read_spec

app = typer.Typer(help="Run grids of jobs and compare them.", no_args_is_help=True, rich_markup_mode=None)

StudyId = Annotated[str, typer.Argument(metavar="ID", help="The study's id.")]
Format = Literal["md", "csv", "json", "html"]
PLACEHOLDER = "${dataset}"
COLUMNS = ("id", "name", "state", "ended", "jobs", "age")


@app.command()
def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The study, .json or .yaml; - is standard input.")],
    dataset: Annotated[
        str | None, typer.Option(help="A data set's id, to stand where the file has ${dataset}.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay and show the progress until it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a study."""
    read = read_spec(file)
    filled = _filled(read.spec, dataset)
    if (filled == read.spec) is (dataset is not None):
        remedy = "leave --dataset out" if dataset is not None else "name one with --dataset ID (`amaml datasets list`)"
        raise SpecFileError(
            f"{file} {'names no' if dataset is not None else 'needs a data set for its'} {PLACEHOLDER}: {remedy}"
        )
    with Client() as client:
        try:
            study = client.submit_study(filled)
        except Invalid as problem:
            raise located(problem, read) from problem
        if watch:
            _watch(client, study, as_json)
        else:
            text = f"study {study.id} is {study.state}: {study.cells} jobs, {study.concurrency} at once"
            answer(study, text, as_json)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, the latest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the studies, the latest first."""
    with Client() as client:
        found = client.studies(limit=limit)
    listing(found, COLUMNS, _row, as_json)


@app.command()
def show(study_id: StudyId, as_json: AsJson = False) -> None:
    """Show a study and where each of its jobs is."""
    with Client() as client:
        study = client.study(study_id)
    if as_json:
        emit(study)
        return
    table(("field", "value"), list(zip(COLUMNS, _row(study), strict=True)))
    say("")
    axes = list(study.grid)
    rows = [
        [
            *(_shown(cell.cell.get(axis)) for axis in axes),
            cell.job_id,
            cell.state,
            f"{cell.progress.iteration}/{cell.progress.iterations}",
            cell.status_detail or "",
        ]
        for cell in study.jobs or ()
    ]
    table([*(axis[1:].replace("/", ".") for axis in axes), "job", "state", "progress", "detail"], rows)


@app.command()
def watch(study_id: StudyId, as_json: AsJson = False) -> None:
    """Show a study's progress until it ends. Ctrl-C stops watching; the study goes on."""
    with Client() as client:
        _watch(client, client.study(study_id), as_json)


@app.command()
def cancel(study_id: StudyId, as_json: AsJson = False) -> None:
    """Cancel every job of a study that hasn't ended."""
    with Client() as client:
        study = client.cancel_study(study_id)
    answer(study, f"study {study.id} is {study.state}: {_counts(study)}", as_json)


@app.command()
def delete(study_id: StudyId, as_json: AsJson = False) -> None:
    """Delete an ended study with its jobs and all that they have left."""
    with Client() as client:
        client.delete_study(study_id)
    deleted("study", study_id, as_json)


@app.command()
def report(
    study_id: StudyId,
    format_: Annotated[
        Format | None, typer.Option("--format", help="By default what the file's name ends in, else md.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to; standard output otherwise.", dir_okay=False)
    ] = None,
    score: Annotated[
        str | None, typer.Option(help="What is compared: tuned (the default), flow, tuned_best, …")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a study's cells: means over seeds, a paired test against the best, time, memory, curves."""
    suffix = file.suffix[1:] if file else ""
    kind = "json" if as_json else format_ or (suffix if suffix in ("md", "csv", "json", "html") else "md")
    with Client() as client:
        made = client.study_report(study_id, format=kind, score=score)
    if file is not None:
        text = output.document(made) if kind == "json" else made
        file.write_text(text, encoding="utf-8", newline="")
    elif kind == "json":
        emit(made)
    else:
        sys.stdout.write(made)


def _watch(client: Client, study: Study, as_json: bool) -> None:
    with output.until_ctrl_c("study", study.id, "amaml study"):
        ended = client.wait_for_study(study.id) if as_json else _show_until_it_ends(client, study)
    if as_json:
        emit(ended)
    ended.check()


def _show_until_it_ends(client: Client, study: Study) -> Study:
    """On a terminal a bar, in a pipe a line whenever a job has changed its state."""
    say(f"study {study.id}" + (f" ({study.name})" if study.name else ""))
    if console.is_terminal:
        ended = _bar(client, study)
    else:
        shown: list[str] = []

        def line(now: Study) -> None:
            if shown[-1:] != [_counts(now)]:
                shown.append(_counts(now))
                say(shown[-1])

        ended = client.wait_for_study(study.id, progress=line)
    took = (ended.ended_at - ended.created_at).total_seconds() if ended.ended_at else None
    say(f"{ended.state} after {duration(took)}: {_counts(ended)}; `amaml study report {ended.id}` compares them")
    return ended


def _bar(client: Client, study: Study) -> Study:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("meta-iterations"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(_counts(study), total=study.progress.iterations)

        def show(now: Study) -> None:
            bar.update(task, description=_counts(now), completed=now.progress.iteration)

        return client.wait_for_study(study.id, progress=show)


def _filled(value: Any, dataset: str | None) -> Any:
    """The document with the data set in its placeholder's place; the placeholder is marked where there is none."""
    if isinstance(value, dict):
        return {name: _filled(item, dataset) for name, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, dataset) for item in value]
    return (dataset or "") if value == PLACEHOLDER else value


def _counts(study: Study) -> str:
    return ", ".join(f"{count} {state}" for state, count in study.states.items())


def _row(study: Study) -> list[str]:
    ended = sum(count for state, count in study.states.items() if state in FINAL)
    age = (datetime.now(UTC) - study.created_at).total_seconds()
    return [study.id, study.name, study.state, f"{ended}/{study.cells}", _counts(study), duration(age)]


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "kind" in value:
        rest = ", ".join(f"{name} {_shown(item)}" for name, item in value.items() if name != "kind")
        return f"{value['kind']} ({rest})" if rest else str(value["kind"])
    return str(value)
