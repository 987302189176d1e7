"""Every command, and those that the installed server side brings along."""

from __future__ import annotations

from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from amaml_client.cli import catalogue, datasets, jobs

app = typer.Typer(
    name="amaml",
    help="Meta-training jobs on an A-MAML server. AMAML_URL names the server, AMAML_API_KEY the key.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"amaml-client {version('amaml-client')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


for command in (
    jobs.submit,
    jobs.jobs,
    jobs.status,
    jobs.watch,
    jobs.cancel,
    jobs.pause,
    jobs.resume,
    jobs.metrics,
    jobs.download,
    catalogue.families,
    catalogue.models,
    catalogue.methods,
    catalogue.solvers,
):
    app.command()(command)
app.add_typer(datasets.app, name="datasets")

for point in entry_points(group="amaml.commands"):
    app.command(point.name)(point.load())
