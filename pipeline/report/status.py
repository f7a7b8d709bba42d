"""The progress of a run, read from its folder: counts, edits per second, time left, who runs it.

The rate follows from the ledger's files: their rows, and the times at which the store got them.
Those are the store's times, so the rate is the same on any machine.
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
    """The state of a run folder in numbers.

    Attributes:
        pending: edits of the latest plan that are not committed yet; None before the first plan.
            Under quotas the plan is one round. If a run has ended since, the number follows from
            the quotas at its end.
        parts: number of parts with accepted edits.
        unadopted_parts: parts that are finished, and that the next run will add to the ledger.
        lease: the run that holds the folder, or held it last; None if there was none.
        edits_per_second: rate of that run's latest commits; None while it has none.
        stats: the content of stats.json; {} if no run has ended yet.
        edits_skipped_by_quota: edits that the latest round left out because of quotas.
        is_in_rounds: whether another round may take some of these edits.
        silent_s: seconds since the last heartbeat by this machine's clock; None while that is
            shorter than the lease's expiry.
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
        """Whether a run holds the folder. A run whose machine was lost holds it until another run
        takes it over."""
        return self.lease is not None and not self.lease.is_over

    @property
    def is_silent(self) -> bool:
        """Whether the run that holds the folder sent no heartbeat for longer than its expiry."""
        return self.is_running and self.silent_s is not None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the run is done, at its present rate; None if it is not running, or if the
        rate is unknown."""
        if self.is_silent or not self.is_running:
            return None
        if self.pending is None or not self.edits_per_second:
            return None
        return self.pending / self.edits_per_second


def run_status(output: str, options: Mapping[str, Any] | None = None) -> RunStatus:
    """Reads the state of a run folder; writes nothing. Raises StorageError if there is no run."""
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
    """The ids of the plans in a run folder. Raises StorageError if there is no run."""
    plans = folder.list_folders(PLAN_FOLDER)
    if not plans and not folder.exists(LEDGER_FOLDER):
        raise StorageError(
            f"there is no run in {folder.url}: it has neither {PLAN_FOLDER} nor {LEDGER_FOLDER}; "
            "give the output folder of a job"
        )
    return plans


def _silent_s(lease: LeaseState) -> float | None:
    """Uses this machine's clock: to get the store's time, one would have to write a file."""
    silent_s = time.time() - lease.heard_at
    return silent_s if silent_s > lease.holder.expiry_s else None


@dataclass(frozen=True)
class _Work:
    pending: int | None
    edits_skipped_by_quota: int = 0
    is_in_rounds: bool = False


def _work_left(folder: Folder, plan_ids: list[str], done: int, stats: Mapping[str, Any]) -> _Work:
    """The work left of the latest plan; if a run with quotas has ended since, what its quotas
    still need."""
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
    """The latest plan.json and its time; {} without one. Plans have no date: the latest is the one
    that was made with the most edits in the ledger."""
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
    """The mapping in a JSON file; {} if there is no such file."""
    if not folder.exists(path):
        return {}
    try:
        value = json.loads(folder.read(path))
    except ValueError as error:
        raise StorageError(f"{folder.url_of(path)} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise StorageError(f"{folder.url_of(path)} is damaged: it does not hold a mapping")
    return value


RECENT_FILES = 20
"""How many of the latest commits the rate is computed from, and how many files are read for it."""


@dataclass(frozen=True)
class Commit:
    """One file of a ledger: its number of outcomes, and its time in the store (Unix seconds)."""

    outcomes: int
    at_s: float


def recent_commits(folder: Folder, files: Sequence[str]) -> list[Commit]:
    """The latest commits of a ledger, oldest first, without fences. `files`: the ledger's files.

    Raises StorageError.
    """
    commits = []
    for path in files[-RECENT_FILES:]:
        outcomes = pq.read_metadata(io.BytesIO(folder.read(path))).num_rows
        if outcomes:
            commits.append(Commit(outcomes, folder.modified(path)))
    return commits


def edits_per_second(commits: Sequence[Commit], since_s: float) -> float | None:
    """Outcomes per second of the run that began at `since_s`; None if there is no commit yet.

    Measured from its first commit to its last, because models are loaded before the first. With one
    commit, measured from the start of the run.
    """
    own = [commit for commit in commits if commit.at_s >= since_s]
    if len(own) > 1 and own[-1].at_s > own[0].at_s:
        return sum(commit.outcomes for commit in own[1:]) / (own[-1].at_s - own[0].at_s)
    if own and own[-1].at_s > since_s:
        return sum(commit.outcomes for commit in own) / (own[-1].at_s - since_s)
    return None
