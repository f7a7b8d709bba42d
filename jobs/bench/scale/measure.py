"""Runs all phases at one size, each in its own process, and counts the files they leave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.bench.scale.figures import (
    Objects,
    PhaseCost,
    Planned,
    Resumed,
    RunThrough,
    Selected,
    SizeFigures,
    Verified,
)
from jobs.bench.scale.workload import QUOTA, scale_job, write_manifest
from pipeline.errors import ResourceError
from pipeline.job.job import Job
from pipeline.ledger.ledger import LEDGER_FOLDER
from pipeline.ledger.parts import PART_PREFIX
from pipeline.plan.plan import PLAN_FOLDER

_OUTPUT_CHARS = 2000


@dataclass(frozen=True)
class Limits:
    """The largest number of edits for each phase; planning has no limit."""

    run_edits: int
    resume_edits: int


def measure(
    folder: Path, rows: int, edits_per_row: int, limits: Limits, report: Callable[[str], None]
) -> SizeFigures:
    """Measures all phases at one size.

    `folder` is for scratch files; run folders in it are deleted afterwards. `report` is called with
    a line for each phase. Raises ResourceError if a phase fails.
    """
    edits = rows * edits_per_row
    report(f"{rows:,} rows: manifest")
    manifest = write_manifest(folder, rows, edits_per_row)
    scratch = folder / f"size-{rows}x{edits_per_row}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        report(f"{rows:,} rows: planning {edits:,} edits")
        planned = Planned(**_with_cost(run_phase("plan", scale_job(manifest, scratch / "plan"))))
        shutil.rmtree(scratch / "plan")
        report(f"{rows:,} rows: planning under quotas")
        wanted = scale_job(manifest, scratch / "quotas", quota=QUOTA)
        selected = Selected(**_with_cost(run_phase("quotas", wanted)))
        run = resumed = verified = None
        output = scratch / "run"
        job = scale_job(manifest, output)
        if edits <= limits.run_edits:
            report(f"{rows:,} rows: running {edits:,} edits")
            found = _with_cost(run_phase("run", job))
            run = RunThrough(**found, objects=count_objects(output))
        elif edits <= limits.resume_edits:
            report(f"{rows:,} rows: committing {edits:,} outcomes without making images")
            run_phase("fill", job)
        if output.exists():
            report(f"{rows:,} rows: resuming")
            if run is None:  # the first time also writes the summaries that a finished run has
                run_phase("resume", job)
            found = _with_cost(run_phase("resume", job))
            resumed = Resumed(**found, is_run_whole=run is not None)
            report(f"{rows:,} rows: verifying")
            verified = Verified(**_with_cost(run_phase("verify", job)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return SizeFigures(rows, edits_per_row, planned, run, resumed, selected, verified)


def count_objects(run_folder: Path) -> Objects:
    """Counts the files of a run folder by kind."""
    counts = dict.fromkeys(("images", "in_parts", "ledger", "work", "others"), 0)
    parts = 0
    for folder, _, names in os.walk(run_folder):
        top, _, inner = Path(folder).relative_to(run_folder).as_posix().partition("/")
        if top.startswith(PART_PREFIX):
            parts += not inner
            kind = "images" if inner else "in_parts"
        else:
            kind = {LEDGER_FOLDER: "ledger", PLAN_FOLDER: "work"}.get(top, "others")
        counts[kind] += len(names)
    return Objects(parts=parts, **counts)


def _with_cost(found: dict[str, Any]) -> dict[str, Any]:
    return found | {"cost": PhaseCost(**found["cost"])}


def run_phase(name: str, job: Job) -> dict[str, Any]:
    """Runs a phase (`phase.PHASE_FUNCTIONS`) of a job as a process; returns its figures."""
    return run_module(("jobs.bench.scale.phase", name), job.model_dump_json().encode())


def run_module(command: Sequence[str], stdin: bytes) -> dict[str, Any]:
    """Runs a module with arguments as a process; returns the JSON of the last line that it prints.

    Its log lines go to our stderr. Raises ResourceError if it fails.
    """
    # By default Ray lowers the priority of its workers. On a busy machine they would then wait for
    # other programs, and their load would be measured. The second one is for the bare script on
    # servers that send wrong checksums, see `pipeline.storage.clients`.
    environment = {
        "RAY_worker_niceness": "0",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        **os.environ,
    }
    ended = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-m", *command],
        input=stdin,
        stdout=subprocess.PIPE,
        check=False,
        env=environment,
    )
    if ended.returncode:
        output_tail = ended.stdout.decode(errors="replace")[-_OUTPUT_CHARS:]
        raise ResourceError(
            f"{' '.join(command[:2])} ended with code {ended.returncode}. {output_tail}".strip()
        )
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found
