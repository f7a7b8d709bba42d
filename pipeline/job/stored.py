"""The job that a run folder keeps (config.yaml), in the job-file keys of this release.

A run folder that 0.1 wrote is read on by later releases; its job has the keys of then. Job files
that people write are not translated: there an old key is reported like any unknown one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED_JUDGE_KEYS = {"reproduction": "reconstruction", "second_tries": "retries"}
"""Keys of the section `judge`: the name in 0.1, and the name now."""

REMOVED_LIMIT = "inversion_psnr_db_at_least"
"""A second limit of that gate in 0.1. Where it was null it decided nothing, and is left out."""


def in_todays_keys(job: Mapping[str, Any]) -> dict[str, Any]:
    """A stored job with its keys renamed to today's; any other mapping is returned as a copy.

    A removed key that was set stays, so that validation reports it: the run depended on it.
    """
    judge = job.get("judge")
    if not isinstance(judge, Mapping):
        return dict(job)
    renamed = {RENAMED_JUDGE_KEYS.get(name, name): value for name, value in judge.items()}
    gate = renamed.get("reconstruction")
    if isinstance(gate, Mapping) and gate.get(REMOVED_LIMIT, "") is None:
        renamed["reconstruction"] = {n: v for n, v in gate.items() if n != REMOVED_LIMIT}
    return {**job, "judge": renamed}
