"""What specs may name on this server."""

from __future__ import annotations

from amaml_client.cli.output import AsJson, listing
from amaml_client.client import Client
from amaml_client.results import Kind


def families(as_json: AsJson = False) -> None:
    """List the task families of the server."""
    with Client() as client:
        _show(client.families(), as_json)


def models(as_json: AsJson = False) -> None:
    """List the network architectures of the server."""
    with Client() as client:
        _show(client.models(), as_json)


def methods(as_json: AsJson = False) -> None:
    """List the meta-gradient methods of the server."""
    with Client() as client:
        _show(client.methods(), as_json)


def solvers(as_json: AsJson = False) -> None:
    """List the solvers of the server."""
    with Client() as client:
        _show(client.solvers(), as_json)


def _show(kinds: list[Kind], as_json: bool) -> None:
    listing(kinds, ("kind", "summary"), lambda kind: (kind.kind, kind.summary), as_json)
