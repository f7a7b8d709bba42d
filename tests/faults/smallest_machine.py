"""Runs a job file on a machine of one CPU, and of two, where it is stopped once and goes on.

    python -m tests.faults.smallest_machine JOB.json

A program of its own, because a process has one Ray. Prints what happened, as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path

import pyarrow as pa
import ray

from pipeline.errors import Interrupted, ResourceError
from pipeline.job.job import Job
from pipeline.run.driver import run_job
from tests.faults.nobody import Nobody


class Stopper(Nobody):
    """A progress sink that asks this process to end when the first outcomes arrive, once."""

    def __init__(self) -> None:
        self._has_asked = False

    def advance(self, outcomes_table: pa.Table) -> None:
        if not self._has_asked:
            self._has_asked = True
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.ERROR)
    job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
    happened = {}
    _start_ray(cpus=1)
    try:
        run_job(job, progress=Stopper())
    except ResourceError as error:
        happened["refused"] = str(error)
    ray.shutdown()
    _start_ray(cpus=2)
    stopper = Stopper()
    try:
        run_job(job, progress=stopper)
    except Interrupted as error:
        happened["interrupted"] = str(error)
    summary = run_job(job, progress=stopper)
    happened["accepted"] = str(summary.already_done + summary.accepted)
    ray.shutdown()
    sys.stdout.write(json.dumps(happened))


def _start_ray(cpus: int) -> None:
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)


if __name__ == "__main__":
    main()
