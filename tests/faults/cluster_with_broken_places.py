"""Runs a job file on a local cluster, some machines of which are broken, and tells what happened.

    python -m tests.faults.cluster_with_broken_places JOB.json FOLDER FAULTS.json

A program of its own, because a process has one Ray. GPUs are pretended; the job's model is on the
CPU. The head has the readers. `machines` of the faults is how many others there are, with one GPU
each; the first `device` of them have one that fails, the next `model` cannot load the model, and
`prompt` breaks all; the others begin after `first` failures (`broken_places`). With
`kills_supervisor` the run's supervisor is killed when the first outcomes arrive, as by the kernel
when memory is short. `cpus`, `head` and `each` are options of the machines. Prints, as JSON, what
the run did, or its error; and what Ray's object store on the head held at most, and spilled.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import ray
from ray._private.internal_api import node_stats
from ray._private.state import actors
from ray.cluster_utils import Cluster

from jobs.terminal.exits import exit_code
from pipeline.errors import UserError
from pipeline.job.job import Job
from pipeline.run.driver import run_job
from tests.faults.broken_places import BROKEN, THREADS, VARIABLE, use_broken_workers
from tests.faults.nobody import Nobody
from tests.servers.forked_workers import forked_workers


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


class StoreWatch:
    """Polls Ray's object store of a machine: what it holds, and what it has spilled, in bytes."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self.peak_bytes = self.spilled_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        raylet = self._node.node_ip_address, self._node.node_manager_port
        while not self._ended.wait(0.05):
            store = node_stats(*raylet, include_memory_info=False).store_stats
            self.peak_bytes = max(self.peak_bytes, store.object_store_bytes_used)
            self.spilled_bytes = store.spilled_bytes_total


def main(job_file: str, folder: str, faults_file: str) -> None:
    """Entry point."""
    logging.basicConfig(level=logging.WARNING)
    job = Job.model_validate_json(Path(job_file).read_bytes())
    faults: dict[str, Any] = json.loads(Path(faults_file).read_bytes())
    at = Path(folder) / "places.json"
    os.environ[VARIABLE] = str(at)
    for notes in (BROKEN, THREADS):
        (at.parent / notes).write_text("")
    use_broken_workers()
    with forked_workers():
        did = run_on_cluster(job, faults, at)
    sys.stdout.write(json.dumps(did))


def run_on_cluster(job: Job, faults: dict[str, Any], at: Path) -> dict[str, Any]:
    """What the run did, or its error; and how often each machine broke. `at`: `broken_places`."""
    head = {"num_cpus": 1, "include_dashboard": False} | faults.get("head", {})
    cluster = Cluster(initialize_head=True, head_node_args=head)
    kinds = faults.get("accelerators", [])
    nodes = [
        cluster.add_node(
            num_cpus=faults.get("cpus", [1] * faults["machines"])[number],
            num_gpus=1,
            **faults.get("each", {}),
            resources={f"accelerator_type:{kinds[number]}": 1} if kinds else {},
        ).node_id
        for number in range(faults["machines"])
    ]
    device, model = faults.get("device", 0), faults.get("model", 0)
    broken = {"device": nodes[:device], "model": nodes[device : device + model]}
    rest = {"prompt": "", "first": 0, "loaded": 0, "slow_s": 0.0}
    at.write_text(json.dumps(broken | {name: faults.get(name, rest[name]) for name in rest}))
    cluster.connect()
    sink = SupervisorKiller() if faults.get("kills_supervisor") else Nobody()
    try:
        with StoreWatch(cluster.head_node) as store:
            did = dataclasses.asdict(run_job(job, progress=sink))
    except UserError as error:
        kind, code = type(error).__name__, exit_code(error)
        did = {"error": str(error), "kind": kind, "exit_code": code}
    finally:
        ray.shutdown()
        cluster.shutdown()
    fired = Counter((at.parent / BROKEN).read_text().split())
    of_store = {"store_peak_bytes": store.peak_bytes, "store_spilled_bytes": store.spilled_bytes}
    told = map(json.loads, (at.parent / THREADS).read_text().splitlines())
    threads = sorted({(nodes.index(node), *rest) for node, *rest in told})
    return did | of_store | {"broken": [fired[node] for node in nodes], "threads": threads}


if __name__ == "__main__":
    main(*sys.argv[1:])
