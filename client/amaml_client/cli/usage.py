"""What the workspace uses."""

from __future__ import annotations

from amaml_client.cli.output import AsJson, emit, table
from amaml_client.client import Client
from amaml_client.results import Quota


def usage(as_json: AsJson = False) -> None:
    """Show the workspace's quotas, and what is used of them."""
    with Client() as client:
        found = client.usage()
    if as_json:
        emit(found)
        return
    quotas: list[tuple[str, Quota]] = [
        ("queued_jobs", found.queued_jobs),
        ("running_jobs", found.running_jobs),
        ("compute_seconds", found.compute_seconds),
        ("stored_bytes", found.stored_bytes),
    ]
    table(
        ("quota", "used", "expected", "bound"),
        [
            (name, f"{one.used:.15g}", f"{one.expected:.15g}", "none" if one.bound is None else str(one.bound))
            for name, one in quotas
        ],
    )
