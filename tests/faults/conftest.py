"""Stores and workers as the worker's own tests have them."""

from __future__ import annotations

from tests.worker.conftest import database, shared_store, store, workers

__all__ = ["database", "shared_store", "store", "workers"]
