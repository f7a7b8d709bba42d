"""Runs a job file on a local cluster of machines of different kinds and tells who did what.

    python -m tests.faults.cluster_of_kinds JOB.json

A program of its own, because a process has one Ray. GPUs are pretended; the job's model is on the
CPU. The head has no CPU, each machine with GPUs as many as the actors that the job puts there, and
the last one two CPUs and no GPU: nothing but it has room for readers. Prints, as JSON, on which
machines the editing actors were, and what the run did.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

from pipeline.job.job import Job
from pipeline.run.driver import run_job
from tests.faults.nobody import Nobody

MACHINES: dict[str, dict[str, Any]] = {
    "A10G": {"num_cpus": 2, "num_gpus": 1, "resources": {"accelerator_type:A10G": 1}},
    "H100": {"num_cpus": 1, "num_gpus": 1, "resources": {"accelerator_type:H100": 1}},
    "none": {"num_cpus": 2, "num_gpus": 0},
}


def machines_of_editing_actors(name_of_node: dict[str, str]) -> list[str]:
    """Ray remembers where an actor was when it is gone. Readers are tasks, and no actors."""
    at = (actor["Address"]["NodeID"] for actor in actors().values() if _edits(actor))
    return [name_of_node[node] for node in at]


def _edits(actor: dict[str, Any]) -> bool:
    return "RayEditActor" in str(actor["ActorClassName"])


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.WARNING)
    job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    nodes = {name: cluster.add_node(**has) for name, has in MACHINES.items()}
    cluster.connect()
    try:
        summary = run_job(job, progress=Nobody())
        machines = machines_of_editing_actors({node.node_id: name for name, node in nodes.items()})
    finally:
        ray.shutdown()
        cluster.shutdown()
    sys.stdout.write(json.dumps({"machines": machines} | dataclasses.asdict(summary)))


if __name__ == "__main__":
    main()
