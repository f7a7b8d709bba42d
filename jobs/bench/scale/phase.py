"""Runs one phase of the benchmark in a process of its own, so that its peak memory can be measured.

    python -m jobs.bench.scale.phase plan|quotas|run|fill|resume|verify < JOB.json

The last line that it prints has its figures as JSON.

`fill` makes the run folder of a finished run without running it (`filled_run`), for sizes that
would take hours.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from jobs.bench.scale.figures import PhaseCost
from jobs.bench.scale.filled_run import fill_run
from jobs.bench.scale.memory import memory_bytes, polled_memory
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.plan.plan import make_plan
from pipeline.run.driver import run_job
from pipeline.storage.folder import Folder
from pipeline.verify.verify import verify_run

_POLL_S = 1.0


class _Progress:
    """Records when the first outcomes arrive, and polls the size of Ray's object store."""

    def __init__(self) -> None:
        self.first_at: float | None = None
        self.store_bytes: int | None = None
        self._ended = threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)

    def start(self, total: int, done: int) -> None:  # noqa: ARG002 - the interface of a sink
        if not self._looking.is_alive():
            self._looking.start()

    def advance(self, outcomes_table: pa.Table) -> None:  # noqa: ARG002
        self.first_at = self.first_at or time.monotonic()

    def finish(self) -> None:
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(_POLL_S):
            used = _store_bytes()
            if used is not None:
                self.store_bytes = max(used, self.store_bytes or 0)


def _store_bytes() -> int | None:
    """Bytes in Ray's object store now; None if Ray does not run or does not report them."""
    import ray

    if not ray.is_initialized():
        return None
    try:
        from ray._private import internal_api  # no public call reports it without a dashboard

        ask: Any = internal_api
        state = ask.get_state_from_address(ray.get_runtime_context().gcs_address)
        return int(ask.get_memory_info_reply(state).store_stats.object_store_bytes_used)
    except Exception:  # noqa: BLE001 - only this figure is missing then
        return None


@contextmanager
def _costing(found: dict[str, Any]) -> Iterator[None]:
    (start,), began, cpu = memory_bytes("VmRSS"), time.monotonic(), time.process_time()
    with polled_memory() as memory:
        yield
    cost = PhaseCost(
        time.monotonic() - began,
        time.process_time() - cpu,
        start,
        memory.peak_bytes(),
        memory.shared_bytes,
        memory.reader_bytes,
        memory.editor_bytes,
    )
    found["cost"] = asdict(cost)


def plan(job: Job) -> dict[str, Any]:
    """Makes the plan and writes the work list."""
    found: dict[str, Any] = {}
    with _costing(found):
        planned = make_plan(job)
    folder = Folder.open(job.output, job.storage_options)
    sizes = [folder.size(name) for name in planned.work_files]
    return found | {
        "edits": planned.edits_total,
        "work_files": len(sizes),
        "work_bytes": sum(sizes),
    }


def quotas(job: Job) -> dict[str, Any]:
    """Plans the first round of a job with quotas; writes nothing."""
    found: dict[str, Any] = {}
    with _costing(found):
        planned = make_plan(job, write=False)
    return found | {"edits": planned.edits_total, "selected": planned.edits_pending}


def run(job: Job) -> dict[str, Any]:
    """Runs the job. Without an editor this is everything except the model."""
    found: dict[str, Any] = {}
    progress, began = _Progress(), time.monotonic()
    with _costing(found):
        summary = run_job(job, progress=progress)
    wanted = summary.edits_planned - summary.edits_skipped_by_quota
    if summary.accepted != wanted:
        raise RuntimeError(f"{summary.accepted} of {wanted} edits were accepted")
    return found | {
        "edits": summary.accepted,
        "start_s": (progress.first_at or time.monotonic()) - began,
        "store_bytes": progress.store_bytes,
        "requests": {name: of.get("requests", 0.0) for name, of in summary.stages.items()},
    }


def fill(job: Job) -> dict[str, Any]:
    """Makes the run folder of a finished run, as a run does, without making images."""
    return {"edits": fill_run(job)}


def resume(job: Job) -> dict[str, Any]:
    """Runs the job again, with nothing left to do."""
    found: dict[str, Any] = {}
    with _costing(found):
        summary = run_job(job, progress=_Progress())
    if summary.edits_made or summary.already_done != summary.edits_planned:
        raise RuntimeError(f"{summary.edits_made} edits were made again")
    folder = Folder.open(job.output)
    files = Ledger(folder).files()
    return found | {
        "edits": summary.already_done,
        "ledger_files": len(files),
        "ledger_bytes": sum(folder.size(name) for name in files),
    }


def verify(job: Job) -> dict[str, Any]:
    """Checks a finished run, with all its images."""
    found: dict[str, Any] = {}
    with _costing(found):
        checked = verify_run(job)
    if not checked.ok or checked.pending:
        raise RuntimeError(f"the run is not in order: {checked.problems}")
    return found | {"edits": checked.planned, "images": checked.images_checked}


PHASE_FUNCTIONS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "plan": plan,
    "quotas": quotas,
    "run": run,
    "fill": fill,
    "resume": resume,
    "verify": verify,
}


def main(phase: str) -> None:
    found = PHASE_FUNCTIONS[phase](Job.model_validate_json(sys.stdin.read()))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
