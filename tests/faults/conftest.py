"""Stores and workers as the worker's own tests have them."""

from __future__ import annotations

from tests.worker.conftest import database, store, stubbed_workers, worker, workers

__all__ = ["database", "store", "stubbed_workers", "worker", "workers"]
