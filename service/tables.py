"""Every table, for who must know all of them: migrations, and the removal of blobs that no table refers to."""

from __future__ import annotations

from service.adaptations import tables as adaptations
from service.core.tables import Base
from service.datasets import tables as datasets
from service.jobs import tables as jobs
from service.keys import tables as keys
from service.studies import tables as studies
from service.webhooks import tables as webhooks
from service.workers import tables as workers

METADATA = Base.metadata

__all__ = ["METADATA", "adaptations", "datasets", "jobs", "keys", "studies", "webhooks", "workers"]
