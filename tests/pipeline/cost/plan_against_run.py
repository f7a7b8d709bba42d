"""Plans a job, runs it, plans it again, and prints the estimates next to the results.

    python -m tests.pipeline.cost.plan_against_run [--clock processor] FOLDER JOB.yaml [KEY=VALUE]

The run is written to FOLDER/run, which must not exist. The clock is the wall clock, or the
processor time of the probe and of the editing workers: on a shared machine the wall clock mostly
shows how much of the machine was free. A worker's processor time includes its first calls, which
the plan counts as loading the model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

import pipeline.cost.measure
from pipeline.cost.estimate import Estimate
from pipeline.cost.price import price
from pipeline.cost.probe import ProbeStore
from pipeline.job.file import load_job
from pipeline.ledger.ledger import Ledger
from pipeline.plan.plan import make_plan
from pipeline.storage.folder import Folder

_LOOK_S = 0.1


class ProcessorClock:
    """Stands where `time` does in the probe's modules."""

    perf_counter = staticmethod(time.process_time)


@dataclass
class Worker:
    """Processor seconds of an editing worker: when its model was loaded, and at the last look."""

    loaded_s: float = 0.0
    last_s: float = 0.0


def expected(arguments: list[str], output: Path, seconds: float) -> Estimate:
    """What `fpe plan --probe` would say."""
    job = load_job(arguments[0], [*arguments[1:], f"output={output}"])
    ledger = Ledger.open(Folder.open(job.output))
    plan, store = make_plan(job, ledger, write=False), ProbeStore(output.with_name("probes.json"))
    return price(job, plan, ledger, store, measure=True, seconds=seconds).estimate


def run(arguments: list[str], output: Path) -> dict[str, float]:
    """`fpe run`, and the processor time of its editing workers."""
    command = [sys.executable, "-m", "jobs", "run", *arguments, f"output={output}"]
    workers: dict[int, Worker] = {}
    with subprocess.Popen(command) as running:
        while running.poll() is None:
            with suppress(psutil.Error):  # it may have ended
                for process in psutil.Process(running.pid).children(recursive=True):
                    _look_at(process, workers)
            time.sleep(_LOOK_S)
    last_run = json.loads((output / "stats.json").read_bytes())["last_run"]
    pictures = [*output.glob("part-*/edited/*"), *output.glob("part-*/source/*")]
    return {
        "unet_rows": round(last_run["unet_rows"]),
        "output_bytes": sum(path.stat().st_size for path in pictures),
        "wall_s": last_run["stages"]["edit"]["block_seconds"] / max(1, len(workers)),
        "processor_s": sum(each.last_s - each.loaded_s for each in workers.values()),
    }


def _look_at(process: psutil.Process, workers: dict[int, Worker]) -> None:
    try:
        name, times = " ".join(process.cmdline()), process.cpu_times()
    except psutil.Error:
        return
    if "RayEditActor" in name:
        worker = workers.setdefault(process.pid, Worker())
        worker.last_s = times.user + times.system
        if "__init__" in name:  # Ray names a process for what it is doing
            worker.loaded_s = worker.last_s


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument("--probe-seconds", type=float, default=30.0)
    parser.add_argument("folder", type=Path)
    parser.add_argument("job", nargs="+")
    asked = parser.parse_args()
    if asked.clock == "processor":
        pipeline.cost.measure.time = ProcessorClock  # type: ignore[attr-defined]
    asked.folder.mkdir(parents=True, exist_ok=True)
    before = expected(asked.job, asked.folder / "run", asked.probe_seconds)
    came = run(asked.job, asked.folder / "run")
    after = expected(asked.job, asked.folder / "again", asked.probe_seconds)
    for name, found in (("before", before), ("after", after)):
        pairs = {
            "unet_rows": (found.unet_rows, came["unet_rows"]),
            "output_bytes": (round(found.output_bytes), came["output_bytes"]),
            f"{asked.clock}_s": (
                found.wall_s if asked.clock == "wall" else found.device_s,
                came[f"{asked.clock}_s"],
            ),
        }
        for what, (planned, real) in pairs.items():
            print(f"{name:7} {what:13} {planned:12.1f} {real:12.1f} {planned / real:6.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
