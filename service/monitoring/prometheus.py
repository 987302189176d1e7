"""/metrics: for Prometheus. It needs an API key, as everything that reveals the state of the installation."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import CollectorRegistry

from service.core import row_security
from service.core.database import transaction
from service.http.access import registry
from service.http.problems import ALWAYS, declared
from service.jobs import store as jobs
from service.jobs.transitions import STATES
from service.keys.authentication import Caller, needs
from service.workers import store as workers

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    dependencies=[needs("workers:read")],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus' text format.",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": 'amaml_jobs{state="queued"} 2.0\n'}},
        },
        **declared(*ALWAYS),
    },
)
def scrape(_: Caller) -> Response:
    """Requests to this process since it started; from the database, the jobs by state and the workers that are alive."""
    with row_security.across_workspaces(), transaction() as session:
        states, alive = jobs.counts(session), sum(lives for _, lives in workers.every(session))
    now = CollectorRegistry()
    now.register(_Stored(states, alive))
    return Response(generate_latest(registry) + generate_latest(now), headers={"Content-Type": CONTENT_TYPE_LATEST})


class _Stored:
    """Numbers from the database, as a collector of prometheus_client."""

    def __init__(self, states: dict[str, int], alive: int) -> None:
        self._states, self._alive = states, alive

    def collect(self) -> list[GaugeMetricFamily]:
        jobs_by_state = GaugeMetricFamily("amaml_jobs", "Jobs in each state.", labels=["state"])
        for state in STATES:
            jobs_by_state.add_metric([state], self._states.get(state, 0))
        return [jobs_by_state, GaugeMetricFamily("amaml_workers", "Workers seen of late.", value=self._alive)]
