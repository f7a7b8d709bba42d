"""Runs a job file on a local cluster of machines of different kinds and tells who did what.

    python -m tests.faults.cluster_of_kinds JOB.json

A program of its own, because a process has one Ray. GPUs are pretended; the job's model is on the
CPU. The head has no CPU, each machine with GPUs as many as the actors that the job puts there, and
the last one two CPUs and no GPU: nothing but it has room for readers. Prints, as JSON, what each
editing actor was given, its kind of machine, and what the run did.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

from pipeline.job import Job
from pipeline.run import run_job
from tests.faults.nobody import Nobody

ACTORS = 3
MACHINES: dict[str, dict[str, Any]] = {
    "A10G": {"num_cpus": 2, "num_gpus": 1, "resources": {"accelerator_type:A10G": 1}},
    "H100": {"num_cpus": 1, "num_gpus": 1, "resources": {"accelerator_type:H100": 1}},
    "none": {"num_cpus": 2, "num_gpus": 0},
}


class Onlooker(Nobody):
    """A progress sink that looks, at the first outcomes, where the editing actors are."""

    def __init__(self, kind_of_machine: dict[str, str]) -> None:
        self._kind_of_machine = kind_of_machine
        self.actors: list[dict[str, Any]] = []

    def advance(self, outcomes_table: pa.Table) -> None:
        while len(self.actors) < ACTORS:  # Ray starts them one by one
            self.actors = [
                {
                    "machine": self._kind_of_machine[actor["Address"]["NodeID"]],
                    "class": actor["ActorClassName"],
                }
                for actor in actors().values()
                if "RayEditActor" in actor["ActorClassName"] and actor["Address"]["NodeID"]
            ]
            time.sleep(0.05)


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.WARNING)
    job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    nodes = {name: cluster.add_node(**has) for name, has in MACHINES.items()}
    cluster.connect()
    onlooker = Onlooker({node.node_id: name for name, node in nodes.items()})
    try:
        summary = run_job(job, progress=onlooker)
    finally:
        ray.shutdown()
        cluster.shutdown()
    did = dataclasses.asdict(summary) | {"actors": onlooker.actors}
    sys.stdout.write(json.dumps(did))


if __name__ == "__main__":
    main()
