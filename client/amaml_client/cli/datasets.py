"""`amaml datasets`: files that task families read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from amaml_client.cli.output import AsJson, deleted, emit, listing, say, stderr, table
from amaml_client.client import Client
from amaml_client.results import Dataset

app = typer.Typer(help="Upload, list, show and delete data sets.", no_args_is_help=True, rich_markup_mode=None)

DatasetId = Annotated[str, typer.Argument(metavar="ID", help="The data set's id.")]
COLUMNS = ("id", "name", "version", "format", "rows", "tasks", "bytes", "state")


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="The file, as published.")],
    name: Annotated[
        str | None, typer.Option(help="A name for it; the file's own by default. Again, it makes the next version.")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="The file's format, where `auto` can't tell.")] = "auto",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its check; exit status 1 if it is invalid.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a file as a data set: CSV, Parquet, safetensors, or ratings as MovieLens and Jester publish them."""
    with Client() as client:
        with _bar(file) as progress:
            dataset = client.upload_dataset(file, name=name, format=format_, progress=progress)
        if wait:
            dataset = client.wait_for_dataset(dataset.id)
    _show(dataset, as_json)
    if wait:
        dataset.check()


@app.command("list")
def list_(
    state: Annotated[str | None, typer.Option(help="Only pending, ready or invalid ones.")] = None,
    name: Annotated[str | None, typer.Option(help="Only the versions of this name.")] = None,
    family: Annotated[str | None, typer.Option(help="Only those that this family can read.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the data sets, the latest first."""
    with Client() as client:
        found = client.datasets(state=state, name=name, family=family)
    listing(found, COLUMNS, _row, as_json)


@app.command("get", hidden=True)
@app.command()
def show(dataset_id: DatasetId, as_json: AsJson = False) -> None:
    """Show one data set, and what its check found."""
    with Client() as client:
        _show(client.dataset(dataset_id), as_json)


@app.command()
def delete(dataset_id: DatasetId, as_json: AsJson = False) -> None:
    """Delete a data set."""
    with Client() as client:
        client.delete_dataset(dataset_id)
    deleted("data set", dataset_id, as_json)


@contextmanager
def _bar(file: Path) -> Iterator[Callable[[int], None] | None]:
    """A bar for the upload of the file, on a terminal; else nothing to tell."""
    if not stderr.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=stderr, transient=True) as shown:
        task = shown.add_task(file.name, total=file.stat().st_size)
        yield lambda sent: shown.update(task, completed=sent)


def _show(dataset: Dataset, as_json: bool) -> None:
    if as_json:
        emit(dataset)
        return
    rows = [
        *zip(COLUMNS, _row(dataset), strict=True),
        ("read by", ", ".join(dataset.families)),
        ("sha256", dataset.sha256),
    ]
    if dataset.status_detail:
        rows.append(("status_detail", dataset.status_detail))
    report = dataset.report
    if report is not None and report.images is not None:
        rows += [(name, str(value)) for name, value in report.images.items()]
    table(("field", "value"), rows)
    if report is not None and report.columns:
        say("")
        table(("column", "type", "missing"), [(one.name, one.type, str(one.missing)) for one in report.columns])
    if report is not None and report.errors:
        say("")
        table(("line", "error"), [(str(error.line or "-"), error.detail) for error in report.errors])


def _row(dataset: Dataset) -> list[str]:
    values = (getattr(dataset, column) for column in COLUMNS)
    return ["" if value is None else str(value) for value in values]
