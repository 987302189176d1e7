"""Every command, and those that the installed server side brings along."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated

import typer

from amaml_client.cli import adaptations, catalogue, datasets, jobs, studies, usage, webhooks

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
    jobs.extend,
    jobs.metrics,
    jobs.download,
    adaptations.adapt,
    catalogue.families,
    catalogue.models,
    catalogue.methods,
    catalogue.solvers,
    usage.usage,
):
    app.command()(command)
app.add_typer(datasets.app, name="datasets")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(studies.app, name="study")


def _brought_along(point: EntryPoint) -> Callable[[], None]:
    """A command without options of another package, which is imported when it is called and not before."""

    def command() -> None:
        point.load()()

    package = point.dist.name if point.dist else point.module
    command.__doc__ = f"Run `{point.name}` of the package {package}, which is installed here."
    return command


for point in entry_points(group="amaml.commands"):
    app.command(point.name)(_brought_along(point))
