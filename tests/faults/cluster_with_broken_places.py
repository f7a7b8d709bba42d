"""Runs a job file on a local cluster, some machines of which are broken, and tells what happened.

    python -m tests.faults.cluster_with_broken_places JOB.json FOLDER FAULTS.json

A program of its own, because a process has one Ray. GPUs are pretended; the job's model is on the
CPU. The head has the readers. `machines` of the faults is how many others there are, with one GPU
each; the first `device` of them have one that fails, the next `model` cannot load the model, and
`prompt` breaks all. With `kills_supervisor` the run's supervisor is killed when the first outcomes
arrive, as by the kernel when memory is short. Prints, as JSON, what the run did, or its error.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

from pipeline.errors import UserError
from pipeline.job.job import Job
from pipeline.run.driver import run_job
from tests.faults.broken_places import BROKEN, VARIABLE
from tests.faults.nobody import Nobody


class SupervisorKiller(Nobody):
    """A progress sink that kills the supervisor when the first outcomes arrive."""

    def __init__(self) -> None:
        self.killed = 0

    def advance(self, outcomes_table: pa.Table) -> None:
        if not self.killed:
            (pid,) = (
                actor["Pid"]
                for actor in actors().values()
                if "Supervisor" in str(actor["ActorClassName"])
            )
            os.kill(pid, signal.SIGKILL)
            self.killed = 1


def main(job_file: str, folder: str, faults_file: str) -> None:
    """Entry point."""
    logging.basicConfig(level=logging.WARNING)
    job = Job.model_validate_json(Path(job_file).read_bytes())
    faults: dict[str, Any] = json.loads(Path(faults_file).read_bytes())
    at = Path(folder) / "places.json"
    os.environ[VARIABLE] = str(at)
    (at.parent / BROKEN).write_text("")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    kinds = faults.get("accelerators", [])
    nodes = [
        cluster.add_node(
            num_cpus=1,
            num_gpus=1,
            resources={f"accelerator_type:{kinds[number]}": 1} if kinds else {},
        ).node_id
        for number in range(faults["machines"])
    ]
    device, model = faults.get("device", 0), faults.get("model", 0)
    broken = {"device": nodes[:device], "model": nodes[device : device + model]}
    at.write_text(json.dumps(broken | {"prompt": faults.get("prompt", "")}))
    hook = "tests.faults.broken_places.break_here"
    ray.init(
        address=cluster.address,
        runtime_env={"worker_process_setup_hook": hook},
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    sink = SupervisorKiller() if faults.get("kills_supervisor") else Nobody()
    try:
        did = dataclasses.asdict(run_job(job, progress=sink))
    except UserError as error:
        did = {"error": str(error), "kind": type(error).__name__}
    finally:
        ray.shutdown()
        cluster.shutdown()
    fired = Counter((at.parent / BROKEN).read_text().split())
    did["broken"] = [fired[node] for node in nodes]
    sys.stdout.write(json.dumps(did))


if __name__ == "__main__":
    main(*sys.argv[1:])
