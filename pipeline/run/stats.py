"""The statistics of a run: counted while outcomes arrive, written to stats.json at the end."""

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
from pipeline.job.ending import FailuresSection
from pipeline.ledger.ledger import LedgerCounts
from pipeline.ledger.outcome import Outcome
from pipeline.plan.plan import Plan
from pipeline.plan.quotas import QuotaRow
from pipeline.supervision.supervisor import StageFigures, merged

STATS_FILE = "stats.json"
STAGE_FIGURES = {
    "rows": "models loaded, sources decoded, edits attempted, images written, outcomes committed",
    "seconds": "of all workers added up; of the stage edit only the time of the model",
    "block_seconds": "from begin to end of each block, added up; waiting for writes included",
    "worker_seconds": "for which editing workers existed, each since it began to load its model",
    "span_seconds": "from the begin of the first block to the end of the last one",
    "encode_seconds": "of editing: encoding prompts and images",
    "invert_seconds": "of editing: inverting sources, without encoding",
    "sample_seconds": "of editing: sampling edits, without decoding",
    "decode_seconds": "of editing: decoding latents to images",
    "unet_rows": "that models evaluated, including those of lost blocks and failed calls",
    "lost_unet_rows": "of blocks whose worker died or went away with its machine",
    "blocks": "that were finished",
    "lost_blocks": "whose worker died or went away with its machine; they were processed again",
    "requests": "to stores, without retries; those of the stage commit are all of the driver's",
    "retries": "of these requests",
    "bytes_read": "from stores",
    "bytes_written": "to stores",
    "worker_deaths": "processes that died while they processed a block",
    "device_failures": "of devices, each of which ended a process; their blocks went to others",
}
"""The figures of a stage in stats.json; one that is missing is zero."""


@dataclass
class Retries:
    """What the retry ladder did: attempts 2, 3 ... of edits that the judge had rejected.

    Attributes:
        edits: edits that were attempted more than once.
        attempts: their attempts, not counting the first ones.
        accepted: edits of which a later attempt was accepted.
        unet_rows: what the later attempts cost.
    """

    edits: int = 0
    attempts: int = 0
    accepted: int = 0
    unet_rows: float = 0.0

    def add(self, tries: Sequence[Mapping[str, Any]]) -> None:
        """`tries`: that column of an outcome, which includes attempt 1."""
        self.edits += 1
        self.attempts += len(tries) - 1
        self.accepted += any(not each["reason"] for each in tries)
        self.unet_rows += sum(each["unet_rows"] for each in tries[1:])


@dataclass(frozen=True)
class RunSummary:
    """The numbers of one run, except `edits_planned` and `already_done`, which are the whole job's.

    `edits_planned` = `already_done` + accepted + rejected + failed + not applicable +
    `edits_skipped_by_quota` once a run has ended.

    Attributes:
        edits_skipped_by_quota: edits that quotas leave out; in a retry, failed ones.
        quotas: how full each cell of the job's quotas is, over all runs; () without quotas.
        rows_repeated: rows of the manifest that equal an earlier row in everything.
        approximation: text that names the approximations of the edits; "" if they are exact.
        failure_examples: by failure code, the message of the first edit that failed with it.
        scores_missing: by score, how many edits were accepted without it although a rule checks it,
            so that this rule could not reject them.
        judge_fingerprints: hash of the files of each of the judge's models.
        stages: what decoding, editing, writing and committing cost (see `STAGE_FIGURES`).
        not_applicable: edits that the job's editor cannot make, because their rows lack something.
        run: its name in logs and metrics (`Lease.run_id`).
        unet_rows: UNet rows of the run's outcomes.
        unet_rows_wasted: UNet rows that models evaluated in addition: in blocks that were lost and
            in calls that raised. Rows of the last quarter of a second before a worker's death are
            not known, and not included.
        busy_share: share of the actors' time, each from the begin of loading its model to the end,
            in which their models computed; None if no worker was needed.
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
    rows_repeated: int = 0
    not_applicable: int = 0

    @property
    def wasted_share(self) -> float:
        """Share of all UNet rows that were wasted, 0 to 1."""
        made = self.unet_rows + self.unet_rows_wasted
        return self.unet_rows_wasted / made if made else 0.0

    @property
    def edits_made(self) -> int:
        """How many outcomes of any kind this run has."""
        return self.accepted + self.rejected + self.failed + self.not_applicable


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
    """Outcomes that had arrived when the plan was made; 0 except in later rounds of quotas."""

    def add(self, table: pa.Table) -> None:
        """Counts a table of outcomes. A column `worker` is optional."""
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
        """Counts the (outcome, reason, message) of a source's edits, which arrive together.

        A source counts as failed if all its edits failed: one bad image is one failure, however
        many prompts it has. Edits that are not applicable say nothing of their source.
        """
        tried = {outcome for outcome, _, _ in edits} - {Outcome.NOT_APPLICABLE}
        self.sources += bool(tried)
        for outcome, reason, message in edits:
            self.outcomes[outcome] += 1
            if outcome == Outcome.REJECTED:
                self.rejections[reason] += 1
            if outcome == Outcome.FAILED:
                self.failures[reason] += 1
                self.examples.setdefault(reason, message)
                self.last_failure = f"{reason}: {message}"
        if tried == {Outcome.FAILED}:
            self.failed_sources += 1
            self.failed_in_a_row += 1
        elif tried:
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
        """Adds what the stages cost."""
        self.stages = merged(self.stages, figures)

    def next_round(self) -> None:
        """Notes that the next plan counts all outcomes so far as done."""
        self.before_round = self.outcomes.total()

    def left(self, plan: Plan) -> int:
        """Edits of the plan that have no outcome yet."""
        return plan.edits_pending - (self.outcomes.total() - self.before_round)

    def summary(self, plan: Plan, output: str, quotas: Sequence[QuotaRow] = ()) -> RunSummary:
        """The summary of the run so far."""
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
            not_applicable=self.outcomes[Outcome.NOT_APPLICABLE],
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
            rows_repeated=plan.rows_repeated,
        )


def _resources(pool: Pool) -> dict[str, Any]:
    return {"actors": pool.actors, "later": pool.later, **asdict(pool)}


def encode_stats(
    summary: RunSummary, totals: LedgerCounts, *, pool: Pool | None, workers: Mapping[str, int]
) -> bytes:
    """stats.json: the last run, its edits by worker, how full quotas are, the folder's totals."""
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
