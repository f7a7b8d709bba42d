"""Runs a job file on a cluster that has too little at first, and tells who did what.

    python -m tests.faults.cluster_that_grows JOB.json by-hand|by-itself

A program of its own, because a process has one Ray. GPUs are pretended; the job's model is on the
CPU. `by-hand`: the head and one machine with a GPU, and a second one as soon as an outcome has come
in. `by-itself`: the head alone, and Ray's own autoscaler, which makes machines as processes here.
(Ray's AutoscalingCluster would end every Ray on this machine first, and needs a file that Ray does
not ship.) Prints, as JSON, how many edits each machine made, what the autoscaler was asked for at
the end, and what the run did.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.cluster_utils import Cluster

from pipeline.job.job import Job
from pipeline.run.driver import run_job
from tests.faults.machines import edits_by_machine
from tests.faults.nobody import Nobody

MACHINE = {"CPU": 1, "GPU": 1}
_HEAD_TYPE = "ray.head.default"
"""As Ray's provider of pretended machines calls the head's type."""
_START_S = 60.0


class Grower(Nobody):
    """A progress sink that adds a machine at the first outcome."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def advance(self, outcomes_table: pa.Table) -> None:
        if len(self._cluster.worker_nodes) < 2:
            self._cluster.add_node(num_cpus=MACHINE["CPU"], num_gpus=MACHINE["GPU"], wait=False)


@contextmanager
def grown_by_hand() -> Iterator[Nobody]:
    """A cluster of two machines, to which the sink adds one."""
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=MACHINE["CPU"], num_gpus=MACHINE["GPU"])
    cluster.connect()
    try:
        yield Grower(cluster)
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextmanager
def growing_by_itself() -> Iterator[Nobody]:
    """A cluster of a head, whose autoscaler adds at most two machines."""
    with tempfile.TemporaryDirectory(prefix="fpe") as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        Path(folder, "cluster.json").write_text(json.dumps(_cluster_file(address)))
        log = Path(folder, "head.log")
        with log.open("w") as sink:
            head = subprocess.Popen(_head(folder, address), env=_environment(), stdout=sink)
        try:
            _connect(address, log)
            yield Nobody()
        finally:
            ray.shutdown()
            _end(head)


def _head(folder: str, address: str) -> list[str]:
    return [
        str(Path(sys.executable).with_name("ray")),
        *("start", "--head", "--block", "--num-cpus=1", "--include-dashboard=false"),
        f"--port={address.rpartition(':')[2]}",
        f"--autoscaling-config={folder}/cluster.json",
        f"--temp-dir={folder}/ray",
        "--object-store-memory=100000000",
    ]


def _environment() -> dict[str, str]:
    return os.environ | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": _HEAD_TYPE,
    }


_NOTHING_TO_RUN = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
)


def _cluster_file(address: str) -> dict[str, Any]:
    empty: dict[str, Any] = {name: [] for name in _NOTHING_TO_RUN}
    return empty | {
        "auth": {},
        "file_mounts": {},
        "cluster_name": "pretended",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": address,
        },
        "head_node_type": _HEAD_TYPE,
        "available_node_types": {
            _HEAD_TYPE: {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": MACHINE | {"object_store_memory": 100_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
    }


def _connect(address: str, log: Path) -> None:
    """Once the head is complete: Ray listens before it can take anybody."""
    until = time.monotonic() + _START_S
    while "Ray runtime started" not in log.read_text():
        if time.monotonic() > until:
            raise TimeoutError(f"no Ray at {address} after {_START_S:g} s: {log.read_text()}")
        time.sleep(0.2)
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def _end(head: subprocess.Popen[bytes]) -> None:
    """And all that it started: machines outlive the autoscaler that made them."""
    started = psutil.Process(head.pid).children(recursive=True)
    head.terminate()
    head.wait()
    for process in started:
        if process.is_running():
            process.kill()
    psutil.wait_procs(started, timeout=10)


def _still_requested() -> list[Any]:
    from ray.autoscaler.v2.sdk import get_cluster_status

    demands = get_cluster_status(ray.get_runtime_context().gcs_address).resource_demands
    constraints = demands.cluster_constraint_demand
    asked = [bundle for each in constraints for bundle in each.bundles_by_count]
    return [str(each) for each in (*asked, *demands.ray_task_actor_demand)]


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("pipeline").setLevel(logging.INFO)
    job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
    with growing_by_itself() if sys.argv[2] == "by-itself" else grown_by_hand() as sink:
        summary = run_job(job, progress=sink)
        machines = sorted(edits_by_machine(job).values())
        asked = _still_requested() if sys.argv[2] == "by-itself" else []
    told = {"machines": machines, "asked": asked} | dataclasses.asdict(summary)
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
