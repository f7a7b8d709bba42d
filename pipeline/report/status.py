"""How far a run is, told from its folder alone.

How fast a run goes, told from its ledger: rows of its files, and when the store got them.

No clock of this machine is asked: a file's time is the store's, so the rate is the same from
wherever one looks.

"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.ledger.lease import LeaseState, lease_state
from pipeline.ledger.ledger import LEDGER_FOLDER, Ledger, LedgerCounts
from pipeline.ledger.parts import orphan_parts
from pipeline.plan.plan import PLAN_FILE, PLAN_FOLDER
from pipeline.run.stats import STATS_FILE
from pipeline.storage.folder import Folder


@dataclass(frozen=True)
class RunStatus:
    """A run folder in numbers.

    `pending` is of the latest plan, less what was committed since; None before the first plan.
    Under quotas that is a round, `edits_skipped_by_quota` are the edits that it left out, and
    another round may take some of them (`is_in_rounds`). If a run has ended since, both are as its
    quotas were then.
    `parts` hold the accepted edits; `unadopted_parts` are finished and wait for the next run to
    enter them into the ledger. `lease` says which run has the folder, or had it last; None where
    none ever did. `edits_per_second` is of that run's latest commits, None while it has none.
    `silent_s`: since its last heartbeat by the clock here, None while that is less than it
    promised.
    `stats` is stats.json, {} where the run has not ended once.
    """

    output: str
    counts: LedgerCounts
    pending: int | None
    parts: int
    unadopted_parts: int
    ledger_files: int
    lease: LeaseState | None = None
    edits_per_second: float | None = None
    stats: Mapping[str, Any] = field(default_factory=dict)
    edits_skipped_by_quota: int = 0
    is_in_rounds: bool = False
    silent_s: float | None = None

    @property
    def done(self) -> int:
        """Edits in the ledger."""
        return self.counts.total

    @property
    def is_running(self) -> bool:
        """Whether a run has the folder. One whose machine went away has it until somebody asks."""
        return self.lease is not None and not self.lease.is_over

    @property
    def is_silent(self) -> bool:
        """Whether the run that has the folder was not heard of for longer than it promised."""
        return self.is_running and self.silent_s is not None

    @property
    def seconds_left(self) -> float | None:
        """At this pace; None where no run is at work, or no pace is known."""
        if self.is_silent or not self.is_running:
            return None
        if self.pending is None or not self.edits_per_second:
            return None
        return self.pending / self.edits_per_second


def run_status(output: str, options: Mapping[str, Any] | None = None) -> RunStatus:
    """The state of a run folder; reads only. Raises StorageError where there is no run."""
    folder = Folder.open(output, options)
    plans = require_run(folder)
    ledger, lease = Ledger.open(folder), lease_state(folder)
    files = ledger.files()
    commits = recent_commits(folder, files) if lease is not None else []
    counts, stats = ledger.counts(), _read_json(folder, STATS_FILE)
    work = _work_left(folder, plans, counts.total, stats)
    return RunStatus(
        output=folder.url,
        counts=counts,
        pending=work.pending,
        edits_skipped_by_quota=work.edits_skipped_by_quota,
        is_in_rounds=work.is_in_rounds,
        parts=len({name.rpartition("/")[2] for name in ledger.parts()}),
        unadopted_parts=sum(1 for _ in orphan_parts(folder, ledger)),
        ledger_files=len(files),
        lease=lease,
        edits_per_second=None if lease is None else edits_per_second(commits, lease.taken_at),
        stats=stats,
        silent_s=None if lease is None else _silent_s(lease),
    )


def require_run(folder: Folder) -> list[str]:
    """The ids of the plans in a run folder. Raises StorageError where there is no run."""
    plans = folder.list_folders(PLAN_FOLDER)
    if not plans and not folder.exists(LEDGER_FOLDER):
        raise StorageError(
            f"there is no run in {folder.url}: it has neither {PLAN_FOLDER} nor {LEDGER_FOLDER}; "
            "give the output folder of a job"
        )
    return plans


def _silent_s(lease: LeaseState) -> float | None:
    """By the clock here: reading it off the store, as a run does that takes over, needs a write."""
    silent_s = time.time() - lease.heard_at
    return silent_s if silent_s > lease.holder.expiry_s else None


@dataclass(frozen=True)
class _Work:
    pending: int | None
    edits_skipped_by_quota: int = 0
    is_in_rounds: bool = False


def _work_left(folder: Folder, plan_ids: list[str], done: int, stats: Mapping[str, Any]) -> _Work:
    """What the latest plan has left, or what quotas call for where a run has ended since."""
    plan, planned_at = _latest_plan(folder, plan_ids)
    rows = stats.get("quotas", [])
    if rows and (not plan or folder.modified(STATS_FILE) >= planned_at):
        pending = sum(int(row["to_do"]) for row in rows)
        candidates_left = sum(int(row["candidates"]) - int(row["done"]) for row in rows)
        return _Work(pending, candidates_left - pending)
    if not plan:
        return _Work(None)
    pending = max(0, int(plan["edits_pending"]) - (done - int(plan["ledger_edits"])))
    named_before = plan.get("edits_spared", 0)  # until 0.2.0
    skipped = int(plan.get("edits_skipped_by_quota", named_before))
    return _Work(pending, skipped, is_in_rounds=skipped > 0)


def _latest_plan(folder: Folder, plan_ids: list[str]) -> tuple[dict[str, Any], float]:
    """plan.json and its time; {} without one. Plans have no dates: the latest knew the fullest
    ledger."""
    latest: dict[str, Any] = {}
    latest_age = (-1, 0.0)
    for plan_id in plan_ids:
        path = f"{PLAN_FOLDER}/{plan_id}/{PLAN_FILE}"
        plan = _read_json(folder, path)
        if not plan:
            continue  # planning was interrupted
        age = (int(plan["ledger_edits"]), folder.modified(path))
        if age > latest_age:
            latest, latest_age = plan, age
    return latest, latest_age[1]


def _read_json(folder: Folder, path: str) -> dict[str, Any]:
    """{} for a file that is not there."""
    if not folder.exists(path):
        return {}
    try:
        value = json.loads(folder.read(path))
    except ValueError as error:
        raise StorageError(f"{folder.url_of(path)} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise StorageError(f"{folder.url_of(path)} is damaged: it holds no mapping")
    return value


RECENT_FILES = 20
"""The latest commits, at least five seconds apart: what the rate is of, and what is read for it."""


@dataclass(frozen=True)
class Commit:
    """One file of a ledger: how many outcomes, and when, in seconds since 1970 by the store."""

    outcomes: int
    at_s: float


def recent_commits(folder: Folder, files: Sequence[str]) -> list[Commit]:
    """The latest commits of a ledger whose files these are, oldest first, without fences.

    Raises StorageError.
    """
    commits = []
    for path in files[-RECENT_FILES:]:
        outcomes = pq.read_metadata(io.BytesIO(folder.read(path))).num_rows
        if outcomes:
            commits.append(Commit(outcomes, folder.modified(path)))
    return commits


def edits_per_second(commits: Sequence[Commit], since_s: float) -> float | None:
    """Outcomes per second of the run that began at `since_s`; None while that cannot be told.

    Between the first of its commits and the last: what came before the first was loading models.
    With one commit, since it began.
    """
    own = [commit for commit in commits if commit.at_s >= since_s]
    if len(own) > 1 and own[-1].at_s > own[0].at_s:
        return sum(commit.outcomes for commit in own[1:]) / (own[-1].at_s - own[0].at_s)
    if own and own[-1].at_s > since_s:
        return sum(commit.outcomes for commit in own) / (own[-1].at_s - since_s)
    return None
