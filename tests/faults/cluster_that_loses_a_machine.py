"""Runs a job file on a local cluster of three machines and takes one away in the middle.

    python -m tests.faults.cluster_that_loses_a_machine JOB.json

A program of its own, because a process has one Ray. The head has no room for an actor; each of the
two others has room for one. When the first outcomes arrive, one of those is killed, with everything
on it, and does not come back. Prints what the run did, as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from pipeline.job.job import Job
from pipeline.run.driver import run_job
from tests.faults.nobody import Nobody


class MachineKiller(Nobody):
    """A progress sink that kills one of the two machines when the first outcomes arrive."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.killed = 0

    def advance(self, outcomes_table: pa.Table) -> None:
        if not self.killed:
            self.killed = 1
            self._cluster.remove_node(next(iter(self._cluster.worker_nodes)), allow_graceful=False)


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.WARNING)
    job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    cluster.connect()
    killer = MachineKiller(cluster)
    try:
        summary = run_job(job, progress=killer)
    finally:
        ray.shutdown()
        cluster.shutdown()
    sys.stdout.write(json.dumps({"killed": killer.killed} | dataclasses.asdict(summary)))


if __name__ == "__main__":
    main()
