"""Commands on jobs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from amaml_client.cli import output
from amaml_client.cli.output import META_LOSS, AsJson, answer, console, emit, listing, number, say, sparkline, table
from amaml_client.cli.watch import show_until_it_ends
from amaml_client.client import Client
from amaml_client.errors import Invalid
from amaml_client.results import FINAL, Job
from amaml_client.specfile import SpecFile, read_spec

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
FOLLOW_SECONDS = 1.0


def submit(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="The job spec, .json or .yaml; - is standard input.")],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay and show the progress until it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Queue a job."""
    file = read_spec(spec)
    with Client() as client:
        try:
            job = client.submit(file.spec)
        except Invalid as problem:
            raise located(problem, file) from problem
        if watch:
            _watch(client, job, as_json)
            return
    answer(job, f"job {job.id} is {job.state}", as_json)


def jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    family: Annotated[str | None, typer.Option(help="Only jobs of this task family.")] = None,
    method: Annotated[str | None, typer.Option(help="Only jobs of this method.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only jobs with this tag: NAME or NAME:VALUE.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, the latest first.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep the list up to date until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the jobs, the latest first."""
    with Client() as client:

        def found() -> list[Job]:
            return client.jobs(state=state, family=family, method=method, tag=tag, limit=limit)

        if not follow:
            _list(found(), as_json)
            return
        try:
            with Live(console=console, auto_refresh=False, transient=False) as live:
                seen: dict[str, str] = {}
                while True:
                    _follow(found(), seen, live, as_json)
                    time.sleep(FOLLOW_SECONDS)
        except KeyboardInterrupt:
            return


def status(job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job."""
    with Client() as client:
        job = client.job(job_id)
    if as_json:
        emit(job)
        return
    rows = list(zip(output.JOB_COLUMNS, output.job_row(job), strict=True))
    rows += [("phase", job.phase or ""), ("eta", output.duration(job.progress.eta_seconds))]
    rows += [("attempt", str(job.attempt)), ("reason", job.status_reason or ""), ("detail", job.status_detail or "")]
    rows += [(name, number(value)) for name, value in sorted(job.metrics.items()) if name != META_LOSS]
    if job.initialization:
        rows += [
            ("sha256", job.initialization.sha256),
            ("parameters", str(job.initialization.parameters)),
            ("size", f"{job.initialization.size_bytes} bytes"),
        ]
    table(("field", "value"), [(name, value) for name, value in rows if str(value)])


def watch(job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job's progress until it ends. Ctrl-C stops watching; the job goes on."""
    with Client() as client:
        _watch(client, client.job(job_id), as_json)


def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """Cancel a job."""
    with Client() as client:
        _changed(client.cancel(job_id), as_json)


def pause(job_id: JobId, as_json: AsJson = False) -> None:
    """Stop a job at its next checkpoint, to be resumed later."""
    with Client() as client:
        _changed(client.pause(job_id), as_json)


def resume(job_id: JobId, as_json: AsJson = False) -> None:
    """Let a paused job go on."""
    with Client() as client:
        _changed(client.resume(job_id), as_json)


def extend(
    job_id: JobId,
    iterations: Annotated[int, typer.Option(min=1, help="Meta-iterations in all, those that are done among them.")],
    as_json: AsJson = False,
) -> None:
    """Let a job that succeeded go on, as if it had never ended."""
    with Client() as client:
        _changed(client.extend(job_id, iterations), as_json)


def metrics(
    job_id: JobId,
    name: Annotated[str | None, typer.Option(help="One metric only.")] = None,
    points: Annotated[bool, typer.Option("--points", help="List every point.")] = False,
    max_points: Annotated[int | None, typer.Option(min=4, help="At most so many points a metric.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a job's metrics."""
    with Client() as client:
        curves = client.metrics(job_id, name=name, max_points=max_points)
    if as_json:
        emit(curves)
    elif points:
        rows = [
            (key, str(step), "" if value is None else f"{value!r}") for key in curves for step, value in curves[key]
        ]
        table(("metric", "step", "value"), rows)
    else:
        summaries = []
        for key, curve in curves.items():
            values = [value for _, value in curve if value is not None]
            if values:
                last = str(curve[-1][0])
                summaries.append((key, last, number(values[-1]), number(min(values)), sparkline(values)))
        table(("metric", "step", "last", "least", "curve"), summaries)


def download(
    job_id: JobId,
    file: Annotated[Path, typer.Option("--output", "-o", help="Where to; must not be a folder.", dir_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Download the learned initialization, whole and verified, or nothing."""
    with Client() as client:
        job = client.job(job_id)
        client.download(job_id, file)
    if as_json:
        emit({"path": str(file), **(job.initialization.model_dump(mode="json") if job.initialization else {})})
    elif job.initialization:
        say(f"{file}: {job.initialization.size_bytes} bytes, sha256 {job.initialization.sha256} verified")


def located(problem: Invalid, file: SpecFile) -> Invalid:
    """The same refusal, each of its errors with its place in the file."""
    errors, lines = [], [problem.detail]
    for error in problem.errors:
        line = file.line(error.pointer or "")
        errors.append({"pointer": error.pointer, "detail": error.detail, "file": file.name, "line": line})
        lines.append(f"  {file.name}{'' if line is None else f':{line}'}: {error.place}: {error.detail}")
    located = Invalid(problem.status, {**problem.document, "errors": errors})
    located.args = ("\n".join(lines),)
    return located


def _watch(client: Client, job: Job, as_json: bool) -> None:
    with output.until_ctrl_c("job", job.id, "amaml"):
        ended = client.wait(job.id) if as_json else show_until_it_ends(client, job)
    if as_json:
        emit(ended)
    if not ended.succeeded:
        raise typer.Exit(1)


def _changed(job: Job, as_json: bool) -> None:
    answer(job, f"job {job.id} is {job.state}", as_json)


def _list(found: list[Job], as_json: bool) -> None:
    listing(found, output.JOB_COLUMNS, output.job_row, as_json)


def _follow(found: list[Job], seen: dict[str, str], live: Live, as_json: bool) -> None:
    """A terminal's table is drawn anew; a pipe gets a line for each job that changed."""
    if console.is_terminal and not as_json:
        live.update(output.rich_table(output.JOB_COLUMNS, [output.job_row(job) for job in found]), refresh=True)
        return
    for job in reversed(found):
        now = job.model_dump_json(include={"state", "progress"} if job.state not in FINAL else {"state"})
        if seen.get(job.id) != now:
            seen[job.id] = now
            if as_json:
                output.emit_line(job)
            else:
                say("\t".join(str(cell) for cell in output.job_row(job)))
