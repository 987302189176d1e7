"""A job's progress, live."""

from __future__ import annotations

from time import monotonic

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from amaml_client.cli.output import META_LOSS, console, duration, number, say, sparkline
from amaml_client.client import Client
from amaml_client.results import Event, Job

LINE_SECONDS = 2.0
"""A pipe gets a line no more often than this, unless the state or phase changes."""

ADAPTED = ("_flow", "_tuned", "_random")
"""How the names of the scores end that are said in the end; what they begin with, the server's answer tells."""


class View:
    """Where a job is, gathered from its events from the first on."""

    def __init__(self) -> None:
        self.state = "queued"
        self.phase: str | None = None
        self.iteration = self.iterations = 0
        self.eta: float | None = None
        self.losses: list[float] = []

    def take(self, event: Event) -> None:
        data = event.data
        if event.kind == "state":
            self.state = data.get("state", self.state)
        elif event.kind == "progress":
            before = self.iteration
            self.phase = data.get("phase", self.phase)
            self.iteration = data.get("iteration", self.iteration)
            self.iterations = data.get("iterations", self.iterations)
            self.eta = data.get("eta_seconds")
            loss = (data.get("metrics") or {}).get(META_LOSS)
            if isinstance(loss, (int, float)) and self.iteration != before:
                self.losses.append(loss)

    @property
    def words(self) -> str:
        return f"{self.state}, {self.phase}" if self.state == "running" and self.phase else self.state

    @property
    def loss(self) -> str:
        return f"{META_LOSS} {number(self.losses[-1])}" if self.losses else ""


def show_until_it_ends(client: Client, job: Job) -> Job:
    """Follows the job's events to its end, and says how it ended. On a terminal a bar, in a pipe plain lines."""
    say(f"job {job.id}" + (f" ({job.name})" if job.name else ""))
    if not job.ended:
        (_bar if console.is_terminal else _lines)(client, job)
    ended = client.wait(job.id)
    took = (ended.ended_at - ended.created_at).total_seconds() if ended.ended_at else None
    why = ": ".join(part for part in (ended.status_reason, ended.status_detail) if part)
    scores = [name for how in ADAPTED for name in ended.metrics if name.endswith(how)]
    evaluated = [f"{name} {number(ended.metrics[name])}" for name in scores]
    say(" ".join([f"{ended.state} after {duration(took)}", *evaluated]) + (f" ({why})" if why else ""))
    return ended


def _lines(client: Client, job: Job) -> None:
    view = View()
    shown, shown_at = "", -LINE_SECONDS
    for event in client.stream(job.id):
        view.take(event)
        if view.words != shown or monotonic() - shown_at >= LINE_SECONDS:
            shown, shown_at = view.words, monotonic()
            eta = f"eta {duration(view.eta)}" if view.eta is not None else ""
            done = f"{view.iteration}/{view.iterations}" if view.iterations else ""
            say(" ".join(part for part in (view.words, done, view.loss, eta) if part))


def _bar(client: Client, job: Job) -> None:
    view = View()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rest]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(view.words, total=view.iterations or None, rest="")
        for event in client.stream(job.id):
            view.take(event)
            eta = f"eta {duration(view.eta)}" if view.eta is not None else ""
            rest = "  ".join(part for part in (eta, view.loss, sparkline(view.losses)) if part)
            bar.update(task, description=view.words, completed=view.iteration, total=view.iterations, rest=rest)
