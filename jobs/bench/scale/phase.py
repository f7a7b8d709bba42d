"""Runs one phase of the benchmark in a process of its own, so that its peak memory can be measured.

    python -m jobs.bench.scale.phase plan|quotas|run|fill|resume|verify MANIFEST OUTPUT

The last line that it prints has its figures as JSON.

`fill` makes the run folder of a finished run without running it (`filled_run`), for sizes that
would take hours.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.bench.scale.figures import PhaseCost
from jobs.bench.scale.filled_run import fill_run
from jobs.bench.scale.workload import QUOTA, scale_job
from pipeline.ledger.ledger import Ledger
from pipeline.plan.plan import make_plan
from pipeline.run.driver import run_job
from pipeline.storage.folder import Folder
from pipeline.verify.verify import verify_run

_POLL_S = 1.0
_MEMORY_POLL_S = 0.02


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
    (start,), began, cpu = _memory_bytes("VmRSS"), time.monotonic(), time.process_time()
    memory, ended = _Memory(), threading.Event()
    looking = threading.Thread(target=memory.look, args=(ended,), daemon=True)
    looking.start()
    try:
        yield
    finally:
        ended.set()
        looking.join()
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    cost = PhaseCost(seconds, cpu_seconds, start, memory.peak_bytes(), memory.shared_bytes)
    found["cost"] = asdict(cost)


@dataclass
class _Memory:
    """Peak memory of this process by polling: its own, and mapped pages of the object store."""

    own_bytes: int = 0
    shared_bytes: int = 0

    def look(self, ended: threading.Event) -> None:
        while not ended.wait(_MEMORY_POLL_S):
            held, shared = _memory_bytes("VmRSS", "RssShmem")
            self.own_bytes = max(self.own_bytes, held - shared)
            self.shared_bytes = max(self.shared_bytes, shared)

    def peak_bytes(self) -> int:
        """The kernel's own peak, which is exact, unless it includes shared memory."""
        return self.own_bytes if self.shared_bytes else _memory_bytes("VmHWM")[0]


def _memory_bytes(*keys: str) -> tuple[int, ...]:
    """Values of /proc/self/status in bytes; 0 if the system does not report them."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    found = (re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE) for key in keys)
    return tuple(int(match[1]) * 1024 if match else 0 for match in found)


def plan(manifest: Path, output: Path) -> dict[str, Any]:
    """Makes the plan and writes the work list."""
    found: dict[str, Any] = {}
    with _costing(found):
        planned = make_plan(scale_job(manifest, output))
    sizes = [(output / name).stat().st_size for name in planned.work_files]
    return found | {
        "edits": planned.edits_total,
        "work_files": len(sizes),
        "work_bytes": sum(sizes),
    }


def quotas(manifest: Path, output: Path) -> dict[str, Any]:
    """Plans the first round of a job with quotas; writes nothing."""
    found: dict[str, Any] = {}
    job = scale_job(manifest, output, quota=QUOTA)
    with _costing(found):
        planned = make_plan(job, write=False)
    return found | {"edits": planned.edits_total, "selected": planned.edits_pending}


def run(manifest: Path, output: Path) -> dict[str, Any]:
    """Runs the job. Without an editor this is everything except the model."""
    found: dict[str, Any] = {}
    progress, began = _Progress(), time.monotonic()
    with _costing(found):
        summary = run_job(scale_job(manifest, output), progress=progress)
    if summary.accepted != summary.edits_planned:
        raise RuntimeError(f"{summary.accepted} of {summary.edits_planned} edits were accepted")
    return found | {
        "edits": summary.accepted,
        "start_s": (progress.first_at or time.monotonic()) - began,
        "store_bytes": progress.store_bytes,
        "requests": {name: of.get("requests", 0.0) for name, of in summary.stages.items()},
    }


def fill(manifest: Path, output: Path) -> dict[str, Any]:
    """Makes the run folder of a finished run, as a run does, without making images."""
    return {"edits": fill_run(scale_job(manifest, output))}


def resume(manifest: Path, output: Path) -> dict[str, Any]:
    """Runs the job again, with nothing left to do."""
    found: dict[str, Any] = {}
    job = scale_job(manifest, output)
    with _costing(found):
        summary = run_job(job, progress=_Progress())
    if summary.edits_made or summary.already_done != summary.edits_planned:
        raise RuntimeError(f"{summary.edits_made} edits were made again")
    files = Ledger(Folder.open(job.output)).files()
    return found | {
        "edits": summary.already_done,
        "ledger_files": len(files),
        "ledger_bytes": sum((output / name).stat().st_size for name in files),
    }


def verify(manifest: Path, output: Path) -> dict[str, Any]:
    """Checks a finished run, with all its images."""
    found: dict[str, Any] = {}
    with _costing(found):
        checked = verify_run(scale_job(manifest, output))
    if not checked.ok or checked.pending:
        raise RuntimeError(f"the run is not in order: {checked.problems}")
    return found | {"edits": checked.planned, "images": checked.images_checked}


PHASE_FUNCTIONS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "plan": plan,
    "quotas": quotas,
    "run": run,
    "fill": fill,
    "resume": resume,
    "verify": verify,
}


def main(phase: str, manifest: str, output: str) -> None:
    found = PHASE_FUNCTIONS[phase](Path(manifest), Path(output))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
