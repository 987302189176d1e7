"""What a job reads, as blobs of the store: its data set, its checkpoint, the θ that it starts from."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from amaml.families.spec import uploaded_dataset
from amaml.spec import JobSpec
from service.core.database import transaction
from service.datasets.tables import Dataset
from service.jobs.claims import Claim
from service.jobs.sources import initialization_blob

Input = Literal["dataset", "checkpoint", "initialization"]


class NotCheckedYet(Exception):
    """The job's data set was uploaded again since the job was claimed, and is being checked anew."""


class MissingInput(Exception):
    """Something that the job reads was deleted or is invalid; the message is a whole sentence for the job's user."""


def inputs(claim: Claim, spec: JobSpec) -> dict[Input, UUID]:
    """What the job reads: its role → the blob's id. Raises MissingInput, NotCheckedYet."""
    found: dict[Input, UUID] = {}
    dataset_id = uploaded_dataset(getattr(spec.family, "dataset", None))
    if dataset_id is not None:
        found["dataset"] = _dataset(dataset_id)
    init_from = spec.meta.init_from
    if claim.checkpoint is not None:
        found["checkpoint"] = claim.checkpoint[1]
    elif init_from is not None:
        found["initialization"] = _initialization(claim.id, init_from.job, init_from.step)
    return found


def _dataset(dataset_id: UUID) -> UUID:
    with transaction() as session:
        dataset = session.get(Dataset, dataset_id)
    if dataset is None:
        raise MissingInput(
            f"Data set {dataset_id} (family.dataset) was deleted: upload it again, and name the new one."
        )
    if dataset.state == "pending":
        raise NotCheckedYet
    if dataset.state == "invalid":
        raise MissingInput(
            f"Data set {dataset_id} (family.dataset) is invalid: {dataset.status_detail} Its report tells more; "
            "upload a corrected file, and name that."
        )
    return dataset.blob_id


def _initialization(job_id: UUID, source_id: UUID, step: int | None) -> UUID:
    with transaction() as session:
        blob_id = initialization_blob(session, job_id, source_id, step)
    if blob_id is None:
        what = "finished initialization" if step is None else f"checkpoint at iteration {step}"
        raise MissingInput(
            f"Job {source_id} (meta.init_from) has no {what} (any more): name a job that succeeded, or a checkpoint it has."
        )
    return blob_id
