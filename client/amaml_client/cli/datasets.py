"""`amaml datasets`: files that task families read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amaml_client.cli.output import AsJson, emit, say, table
from amaml_client.client import Client
from amaml_client.results import Dataset

app = typer.Typer(help="Upload, list and delete data sets.", no_args_is_help=True, rich_markup_mode=None)

DatasetId = Annotated[str, typer.Argument(metavar="ID", help="The data set's id.")]
COLUMNS = ("id", "name", "format", "rows", "tasks", "bytes", "state")


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="The file, as published.")],
    name: Annotated[str | None, typer.Option(help="A name for it; the file's own by default.")] = None,
    format_: Annotated[str, typer.Option("--format", help="The file's format, where `auto` can't tell.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Upload a file as a data set."""
    with Client() as client:
        _show(client.upload_dataset(file, name=name, format=format_), as_json)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the data sets."""
    with Client() as client:
        found = client.datasets()
    if as_json:
        emit(found)
    else:
        table(COLUMNS, [_row(dataset) for dataset in found])


@app.command()
def get(dataset_id: DatasetId, as_json: AsJson = False) -> None:
    """Show one data set."""
    with Client() as client:
        _show(client.dataset(dataset_id), as_json)


@app.command()
def delete(dataset_id: DatasetId, as_json: AsJson = False) -> None:
    """Delete a data set."""
    with Client() as client:
        client.delete_dataset(dataset_id)
    if as_json:
        emit({"id": dataset_id, "deleted": True})
    else:
        say(f"data set {dataset_id} is deleted")


def _show(dataset: Dataset, as_json: bool) -> None:
    if as_json:
        emit(dataset)
    else:
        table(("field", "value"), [*zip(COLUMNS, _row(dataset), strict=True), ("sha256", dataset.sha256)])


def _row(dataset: Dataset) -> list[str]:
    return [str(getattr(dataset, column)) for column in COLUMNS]
