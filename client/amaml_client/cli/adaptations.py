"""`amaml adapt`: a learned initialization, trained on a task's rows out of files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amaml_client.cli.output import AsJson, emit, number, say, sparkline, table
from amaml_client.client import Client
from amaml_client.results import Adaptation
from amaml_client.rowfile import read_rows


def adapt(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="Id of a job that has succeeded.")],
    support: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            help='Rows that train: CSV, targets last or called y, or JSON {"x": …, "y": …}.',
        ),
    ],
    query: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Rows to predict at: the same; y may be left out."),
    ] = None,
    by: Annotated[str, typer.Option(help="flow, or finetune.")] = "flow",
    length: Annotated[float | None, typer.Option(help="Of the flow; the job's own by default.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of fine-tuning; the job's own by default.")] = None,
    lr: Annotated[float | None, typer.Option(help="Of fine-tuning; the job's own by default.")] = None,
    learned_rates: Annotated[
        bool | None,
        typer.Option(help="Fine-tune each parameter at lr times its learned rate; as the job's own by default."),
    ] = None,
    targets: Annotated[
        int, typer.Option(min=1, help="How many columns of a CSV, the last ones, are targets, where none is called y.")
    ] = 1,
    items: Annotated[bool, typer.Option("--items", help="Of ratings: a CSV's first column is the item's id.")] = False,
    curve: Annotated[bool, typer.Option("--curve", help="Show how the losses fall.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="Where the adapted weights go.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train what a job has learned on a task's rows, and predict at others."""
    known = read_rows(support, targets=targets, named=items)
    inputs = len(known["x"][0]) if known["x"] and isinstance(known["x"][0], list) else 1
    asked = {} if query is None else read_rows(query, targets=targets, inputs=inputs, named=items)
    wanted = {"predictions": query is not None, "curve": curve, "weights": output is not None}
    want = [name for name, is_wanted in wanted.items() if is_wanted]
    if not want:
        raise typer.BadParameter("give --query, --curve or -o: else nothing is answered")
    with Client() as client:
        adaptation = client.adapt(
            job_id, known["x"], known.get("y", []), asked.get("x"), query_y=asked.get("y"),
            by=by, length=length, epochs=epochs, lr=lr, learned_rates=learned_rates, want=want,
        ).check()  # fmt: skip
        if output is not None:
            client.download_weights(adaptation.id, output)
    if as_json:
        emit(adaptation)
    else:
        _show(adaptation, output)


def _show(adaptation: Adaptation, output: Path | None) -> None:
    if adaptation.predictions:
        rows = [[repr(value) for value in row] for row in adaptation.predictions]
        table(adaptation.outputs, rows)
    if adaptation.curve is not None:
        over, support, asked = adaptation.curve.over, adaptation.curve.support, adaptation.curve.query
        named = {"support": support, **({"query": asked} if asked is not None else {})}
        summaries = []
        for name, losses in named.items():
            known = [loss for loss in losses if loss is not None]
            summaries.append((name, number(losses[0]), number(losses[-1]), sparkline(known)))
        table(("loss", f"{over} = 0", f"{over} = {adaptation.curve.at[-1]:g}", "curve"), summaries)
    if output is not None and adaptation.weights is not None:
        say(f"{output}: {adaptation.weights.size_bytes} bytes, sha256 {adaptation.weights.sha256} verified")
