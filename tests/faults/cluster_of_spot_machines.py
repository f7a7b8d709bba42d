"""Runs a job file on a local cluster whose machines come and go, at random and in the same order
every time.

    python -m tests.faults.cluster_of_spot_machines JOB.json EDITS SEED

A program of its own, because a process has one Ray. The head has no room for an actor; each of the
others has room for one, and there are one to three of them. What happens next is drawn beforehand;
when it happens, the number of outcomes that have come in decides. Prints what the run did, as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from pipeline.job.job import Job
from pipeline.run.driver import run_job
from tests.faults.machines import edits_by_machine
from tests.faults.nobody import Nobody

KILLS = 4
FIRST, MOST = 2, 3
"""Machines with room for an actor: at the start, and at any time."""


def schedule(chance: random.Random) -> Iterator[str]:
    """KILLS times "kill", and "add" between them so that one to MOST machines are there."""
    there, kills = FIRST, 0
    while kills < KILLS:
        if there == MOST or (there > 1 and chance.random() < 0.5):
            there, kills = there - 1, kills + 1
            yield "kill"
        else:
            there += 1
            yield "add"


class SpotMarket(Nobody):
    """A progress sink that gives and takes machines as outcomes come in."""

    def __init__(self, cluster: Cluster, edits: int, seed: int) -> None:
        self._cluster = cluster
        self._chance = random.Random(seed)
        events = list(schedule(self._chance))
        # All within the first nine tenths: what dies then has to be made again.
        marks = sorted(self._chance.sample(range(2, edits * 9 // 10), len(events)))
        self._coming = list(zip(marks, events, strict=True))
        self._arrived = 0
        self.killed = self.added = 0

    def advance(self, outcomes_table: pa.Table) -> None:
        self._arrived += outcomes_table.num_rows
        while self._coming and self._coming[0][0] <= self._arrived:
            _, event = self._coming.pop(0)
            if event == "add":
                self._cluster.add_node(num_cpus=2, wait=False)
                self.added += 1
            else:
                machines = sorted(self._cluster.worker_nodes, key=lambda each: each.unique_id)
                self._cluster.remove_node(self._chance.choice(machines), allow_graceful=False)
                self.killed += 1


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.WARNING)
    job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
    edits, seed = (int(argument) for argument in sys.argv[2:])
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    for _ in range(FIRST):
        cluster.add_node(num_cpus=2)
    cluster.connect()
    of_the_start = {node["NodeID"] for node in ray.nodes()}
    market = SpotMarket(cluster, edits, seed)
    try:
        summary = run_job(job, progress=market)
        by_machine = edits_by_machine(job)
    finally:
        ray.shutdown()
        cluster.shutdown()
    did = {
        "killed": market.killed,
        "added": market.added,
        "by_added": sum(n for machine, n in by_machine.items() if machine not in of_the_start),
        "wasted_share": summary.wasted_share,
    }
    sys.stdout.write(json.dumps(did | dataclasses.asdict(summary)))


if __name__ == "__main__":
    main()
