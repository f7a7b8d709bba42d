"""A job's LoRAs, embeddings and autoencoder: checked when it is planned, and part of its ids."""

from __future__ import annotations

from fpe_core import CheckpointError
from fpe_core.checkpoint.add_on_check import check_add_ons
from fpe_core.checkpoint.add_on_files import add_to_fingerprint, located
from fpe_core.checkpoint.files import CheckpointFiles
from pipeline.errors import JobError
from pipeline.job.job import Job


def with_add_ons(fingerprint: str, job: Job, files: CheckpointFiles, config: str | None) -> str:
    """The fingerprint with the job's LoRAs, embeddings and autoencoder, after their check.

    Raises:
        JobError: one of them is missing, or does not fit the checkpoint.
        StorageError: the store that it is in, or the disk for its copy, fails.
    """
    model = job.model
    if not model.add_ons:
        return fingerprint
    try:
        copied = job.model_store.add_ons(model.add_ons, allow_pickle=model.allow_pickle)
        add_ons = located(copied, model.allow_pickle)
        check_add_ons(model.checkpoint, files, add_ons, model.allow_pickle, config)
    except CheckpointError as error:
        raise JobError(f"model: {error}") from error
    return add_to_fingerprint(fingerprint, add_ons, model.allow_pickle)
