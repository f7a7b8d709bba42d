"""What a run did, in numbers: counted while outcomes arrive, summed up at its end."""

from __future__ import annotations

import itertools
import json
import operator
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fpe_core.judging.rules import Rules
from pipeline.cluster.pool import Pool
from pipeline.errors import TooManyFailuresError
from pipeline.job.job import FailuresSection
from pipeline.ledger.ledger import LedgerCounts
from pipeline.ledger.outcome import Outcome
from pipeline.plan.plan import Plan
from pipeline.plan.quotas import QuotaRow
from pipeline.supervision.supervisor import StageFigures, merged

STATS_FILE = "stats.json"
STAGE_FIGURES = {
    "rows": "models loaded, sources decoded, edits attempted, images written, outcomes committed",
    "seconds": "of all workers together; of editing, what the model took",
    "block_seconds": "the same with everything around it: waiting for writes, for one",
    "worker_seconds": "that editing workers were there, each since it began to load its model",
    "span_seconds": "from the first block that was begun to the last one that ended",
    "encode_seconds": "of editing: prompts and pictures through their encoders",
    "invert_seconds": "of editing: the rest of inverting sources",
    "sample_seconds": "of editing: the rest of making edits",
    "decode_seconds": "of editing: latents back to pictures",
    "unet_rows": "that models evaluated, whatever became of them",
    "lost_unet_rows": "of blocks whose worker died or went away with its machine",
    "blocks": "that came to their end",
    "lost_blocks": "whose worker died or went away with its machine; they were made again",
    "requests": "to stores, each once however often it was tried; of committing, all of the driver",
    "retries": "further tries of them",
    "bytes_read": "from stores",
    "bytes_written": "to stores",
    "worker_deaths": "of processes that were processing a block",
}
"""The figures of a stage in stats.json; one that is missing is zero."""


@dataclass
class Retries:
    """What attempting rejected edits again came to.

    Attributes:
        edits: that were attempted more than once.
        attempts: of all of them, the first ones not counted.
        accepted: edits that one of these made acceptable.
        unet_rows: what these attempts cost.
    """

    edits: int = 0
    attempts: int = 0
    accepted: int = 0
    unet_rows: float = 0.0

    def add(self, tries: Sequence[Mapping[str, Any]]) -> None:
        """`tries`: that column of an outcome, attempt 1 included."""
        self.edits += 1
        self.attempts += len(tries) - 1
        self.accepted += any(not each["reason"] for each in tries)
        self.unet_rows += sum(each["unet_rows"] for each in tries[1:])


@dataclass(frozen=True)
class RunSummary:
    """One run. Counts are of this run, but `edits_planned` and `already_done` of the whole job.

    `edits_planned` = `already_done` + accepted + rejected + failed + `edits_skipped_by_quota` once
    a run has ended.

    Attributes:
        edits_skipped_by_quota: edits that quotas leave out, in a retry failed ones.
        quotas: how full each cell of the job's quotas is, over all runs; () without quotas.
        approximation: what the edits leave out, for people; "" where they are exact.
        failure_examples: by code, what the first edit that failed so said.
        scores_missing: by score, accepted edits that have none although a rule looks at it: that
            rule could not reject them.
        judge_fingerprints: hash of the files of each of the judge's models.
        stages: what decoding, editing, writing and committing cost (see `STAGE_FIGURES`).
        run: its name in logs and metrics (`Lease.run_id`).
        unet_rows: of its outcomes.
        unet_rows_wasted: rows that models evaluated beyond those: in blocks that were lost, in
            calls that raised. What a worker did in the last quarter of a second before its death
            is not known, and not in it.
        busy_share: part of the actors' time, each from when it began to load its model to the end,
            in which their models computed; None where no worker was needed.
    """

    edits_planned: int
    already_done: int
    accepted: int
    rejected: int
    failed: int
    failures_by_code: Mapping[str, int]
    seconds: float
    edits_per_second: float
    unet_rows: float
    unet_rows_per_edit: float
    output: str
    failure_examples: Mapping[str, str] = field(default_factory=dict)
    rejections_by_reason: Mapping[str, int] = field(default_factory=dict)
    scores_missing: Mapping[str, int] = field(default_factory=dict)
    judge_fingerprints: Mapping[str, str] = field(default_factory=dict)
    stages: StageFigures = field(default_factory=dict)
    busy_share: float | None = None
    retries: Retries = field(default_factory=Retries)
    edits_skipped_by_quota: int = 0
    quotas: tuple[QuotaRow, ...] = ()
    approximation: str = ""
    unet_rows_wasted: float = 0.0
    run: str = ""

    @property
    def wasted_share(self) -> float:
        """Part of all UNet rows that were wasted."""
        made = self.unet_rows + self.unet_rows_wasted
        return self.unet_rows_wasted / made if made else 0.0

    @property
    def edits_made(self) -> int:
        """Outcomes of this run, whatever they are."""
        return self.accepted + self.rejected + self.failed


@dataclass
class RunTotals:
    """Counts the outcomes of a run as they arrive. `rules`: the judge's."""

    rules: Rules = field(default_factory=Rules)
    started: float = field(default_factory=time.monotonic)
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    rejections: Counter[str] = field(default_factory=Counter)
    scores_missing: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    edits_by_worker: Counter[str] = field(default_factory=Counter)
    unet_rows: float = 0.0
    sources: int = 0
    failed_sources: int = 0
    failed_in_a_row: int = 0
    last_failure: str = ""
    stages: StageFigures = field(default_factory=dict)
    retries: Retries = field(default_factory=Retries)
    before_round: int = 0
    """Outcomes that had arrived when the plan was made; 0 but for the later rounds of quotas."""

    def add(self, table: pa.Table) -> None:
        """Takes in outcomes; a column `worker` is counted where there is one."""
        self.unet_rows += sum(table["unet_rows"].to_pylist())
        if "worker" in table.column_names:
            self.edits_by_worker.update(table["worker"].to_pylist())
        for tries in table["tries"].drop_null().to_pylist():
            self.retries.add(tries)
        if self.rules.by_type:
            self._look_for_scores(table)
        names = ("group_id", "outcome", "reason", "message")
        rows = zip(*(table[name].to_pylist() for name in names), strict=True)
        for _, edits in itertools.groupby(rows, key=operator.itemgetter(0)):
            self._add_source([edit[1:] for edit in edits])

    def _look_for_scores(self, table: pa.Table) -> None:
        accepted = table.filter(pc.equal(table["outcome"], Outcome.ACCEPTED.value))
        columns = ["edit_type", *sorted(self.rules.scores)]
        for row in accepted.select(columns).to_pylist():
            looked_at = {rule.score for rule in self.rules.of(row["edit_type"])}
            self.scores_missing.update(name for name in looked_at if row[name] is None)

    def _add_source(self, edits: Sequence[tuple[str, str, str]]) -> None:
        """(outcome, reason, message) of a source's edits, which arrive together.

        A source counts as failed where nothing came of it: however many prompts it has, one bad
        image is one failure.
        """
        self.sources += 1
        for outcome, reason, message in edits:
            self.outcomes[outcome] += 1
            if outcome == Outcome.REJECTED:
                self.rejections[reason] += 1
            if outcome == Outcome.FAILED:
                self.failures[reason] += 1
                self.examples.setdefault(reason, message)
                self.last_failure = f"{reason}: {message}"
        if all(outcome == Outcome.FAILED for outcome, _, _ in edits):
            self.failed_sources += 1
            self.failed_in_a_row += 1
        else:
            self.failed_in_a_row = 0

    def check(self, limits: FailuresSection) -> None:
        """Raises TooManyFailuresError past the limits."""
        failed, tried = self.failed_sources, self.sources
        reason = ""
        if self.failed_in_a_row >= limits.max_in_a_row:
            reason = f"{self.failed_in_a_row} sources failed in a row (failures.max_in_a_row)"
        elif tried >= limits.min_sources_for_share and failed > limits.max_share * tried:
            reason = f"{failed} of {tried} sources failed (failures.max_share)"
        if reason:
            raise TooManyFailuresError(
                f"stopped: {reason}. The last one: {self.last_failure}. What had arrived is "
                "committed; fix the cause, or raise the limit, and start the same command again."
            )

    def add_stages(self, figures: StageFigures) -> None:
        """Takes in what the stages cost."""
        self.stages = merged(self.stages, figures)

    def next_round(self) -> None:
        """What has arrived by now is done before the plan that is made now."""
        self.before_round = self.outcomes.total()

    def left(self, plan: Plan) -> int:
        """Edits of the plan that have no outcome yet."""
        return plan.edits_pending - (self.outcomes.total() - self.before_round)

    def summary(self, plan: Plan, output: str, quotas: Sequence[QuotaRow] = ()) -> RunSummary:
        """The run so far."""
        editing = self.stages.get("edit", {})
        model_s, there_s = editing.get("seconds", 0.0), editing.get("worker_seconds", 0.0)
        seconds, made = time.monotonic() - self.started, self.outcomes.total()
        evaluated = editing.get("unet_rows", 0.0)
        return RunSummary(
            edits_planned=plan.edits_total,
            already_done=plan.edits_done - self.before_round,
            accepted=self.outcomes[Outcome.ACCEPTED],
            rejected=self.outcomes[Outcome.REJECTED],
            failed=self.outcomes[Outcome.FAILED],
            failures_by_code=dict(sorted(self.failures.items())),
            rejections_by_reason=dict(sorted(self.rejections.items())),
            scores_missing=dict(sorted(self.scores_missing.items())),
            judge_fingerprints=dict(plan.judge_fingerprints),
            failure_examples=dict(sorted(self.examples.items())),
            seconds=seconds,
            edits_per_second=made / seconds if seconds else 0.0,
            unet_rows=self.unet_rows,
            unet_rows_per_edit=self.unet_rows / made if made else 0.0,
            output=output,
            stages=self.stages,
            busy_share=model_s / there_s if there_s else None,
            retries=replace(self.retries),
            edits_skipped_by_quota=plan.edits_skipped_by_quota,
            quotas=tuple(quotas),
            unet_rows_wasted=max(0.0, evaluated - self.unet_rows),
            approximation=plan.approximation,
        )


def _resources(pool: Pool) -> dict[str, Any]:
    return {"actors": pool.actors, "later": pool.later, **asdict(pool)}


def encode_stats(
    summary: RunSummary, totals: LedgerCounts, *, pool: Pool | None, workers: Mapping[str, int]
) -> bytes:
    """stats.json: the last run, who made its edits, how full quotas are, the folder's totals."""
    last_run = asdict(summary)
    quotas = last_run.pop("quotas")
    values = {
        "last_run": last_run,
        "resources": None if pool is None else _resources(pool),
        "edits_by_worker": dict(sorted(workers.items())),
        "quotas": quotas,
        "total": asdict(totals) | {"edits": totals.total},
    }
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
