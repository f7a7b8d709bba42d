"""Drives a run: plans, starts Ray, streams outcomes into the ledger, writes the summaries.

lease    one run at a time: a second one on the same folder is refused
adopt    commits finished parts that a killed run could not commit any more
plan     ids of all edits, minus those in the ledger; if none is left, the run ends without Ray
stream   decode -> edit -> write on the cluster, supervised; outcomes arrive block by block
commit   every few seconds, and at the end however it ends: a failure, a signal, a dead worker
retry    blocks that were lost with their worker, device or machine run again until all of them have
         outcomes; rows that crash their workers fail as worker_died
round    under quotas: plans, streams and commits again until no cell needs another edit
sum up   stats.json, README.md, config.yaml

`pipeline.ledger` describes what is written when, and what a crash between two writes leaves.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Generator, Iterable
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.cluster.pool import Pool, bundles_of, size_pool
from pipeline.cluster.session import ray_session, wait_for_capacity, wait_until_free
from pipeline.errors import Interrupted, StorageError
from pipeline.job.job import Job
from pipeline.ledger.lease import Lease, hold_lease
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import FailureCode, Outcome
from pipeline.ledger.parts import adopt_orphan_parts
from pipeline.logs import label_lines
from pipeline.plan.old_plans import remove_old_plans
from pipeline.plan.plan import Plan, make_plan, quota_rows
from pipeline.plan.quotas import QuotaRow
from pipeline.plan.work_list import cut_work, lost_slices, quarantined
from pipeline.run.commits import Commits, ProgressSink
from pipeline.run.dataset_card import CARD_FILE, dataset_card
from pipeline.run.folder import (
    CONFIG_FILE,
    claim_columns,
    encode_config,
    metadata_layout,
    refuse_other_judge,
)
from pipeline.run.metrics import FiguresPoller, RunMetrics
from pipeline.run.signals import StopRequests
from pipeline.run.stats import STATS_FILE, RunSummary, RunTotals, encode_stats
from pipeline.run.worker_settings import decode_settings, edit_settings
from pipeline.storage.folder import Folder
from pipeline.storage.requests import request_counts
from pipeline.supervision.watchdog import TimeLimits
from pipeline.write.metadata import MetadataLayout

if TYPE_CHECKING:
    from pipeline.supervision.client import SupervisorClient

_MAX_PASSES_WITHOUT_PROGRESS = 2
"""How many passes in a row may recover no lost block before the run gives up, not counting the
passes that isolate a row that crashes its worker."""
_WIND_UP_POLL_S = 0.05
_WITHOUT = {
    "directional_similarity": ": it needs a source prompt, and an edit that differs from its source"
}
_log = logging.getLogger(__name__)


def run_job(job: Job, *, progress: ProgressSink) -> RunSummary:
    """Makes every edit of a job that the ledger of its run folder does not have yet.

    Raises UserErrors: LeaseError if another run uses the folder, or takes it over; JobError and
    ManifestError before any work; ResourceError; TooManyFailuresError, Interrupted and WorkerError
    once all outcomes that arrived are committed.
    """
    return _hold_and_run(job, progress, retry=None)


def retry_failed(
    job: Job, codes: Collection[FailureCode] = (), *, progress: ProgressSink
) -> RunSummary:
    """Retries the edits of a job whose standing outcome in the ledger is a failure.

    `codes`: only failures with these codes; empty: all. Edits without an outcome are left to
    `run_job`. Failed edits of other jobs or manifests, and under quotas those of full cells, stay
    as they are. Raises what `run_job` raises.
    """
    return _hold_and_run(job, progress, retry=codes)


def _hold_and_run(
    job: Job, progress: ProgressSink, retry: Collection[FailureCode] | None
) -> RunSummary:
    folder = Folder.open(job.output, job.storage_options)
    times = job.lease
    with hold_lease(folder, expiry_s=times.expiry_s, heartbeat_s=times.heartbeat_s) as lease:
        return _run_with(lease, job, progress, retry)


def _run_with(
    lease: Lease, job: Job, progress: ProgressSink, retry: Collection[FailureCode] | None
) -> RunSummary:
    """All of a run between taking the lease and releasing it.

    `retry`: the failure codes to retry; None: make the edits without an outcome.
    """
    folder, requests = lease.folder, request_counts()
    totals = RunTotals() if job.judge is None else RunTotals(job.judge.to_rules())
    label_lines(run=lease.run_id)
    ledger, metrics = Ledger.open(folder, lease), RunMetrics(lease.run_id)
    adopt_orphan_parts(folder, ledger, metrics.committed)
    only = None if retry is None else ledger.failed_ids(retry)
    ledger.reopen(only or frozenset())
    plan = make_plan(job, ledger, only=only)
    if not plan.makes_edits:
        _log.warning("editor: none: nothing is edited, every output is a copy of its fitted source")
    others = 0 if only is None else len(only) - plan.edits_pending - plan.edits_skipped_by_quota
    if others:
        _log.warning(
            "%d failed edits belong to another job, manifest or model and are not retried", others
        )
    layout = metadata_layout(job, plan)
    commits = Commits(plan, ledger, totals, metrics=metrics, progress=progress, requests=requests)
    run = _Driver(job, lease, ledger, layout, metrics, commits, is_retry=retry is not None)
    if not plan.edits_pending:
        left_out = plan.edits_done + plan.edits_skipped_by_quota
        _log.info("nothing to do: %d edits planned, %d left out", plan.edits_total, left_out)
        if plan.edits_total and not run.is_summed_up():
            run.sum_up()  # the last run was killed after its last commit, or quotas are new
        return run.summary()
    run.claim_folder()
    remove_old_plans(lease, plan)
    with StopRequests() as stops:
        try:
            run.work(stops)
        except (KeyboardInterrupt, SystemExit) as interrupt:  # Ray's SIGTERM handler exits
            left = run.left()
            if not left:
                return run.summary()
            raise Interrupted(
                f"interrupted with {left} of {plan.edits_total} edits left. What had arrived is "
                "committed; the same command goes on from there."
            ) from interrupt
    return run.summary()


def _warn_of_slow_dtype(dtype: str) -> None:
    """Logs a warning if a CPU like this one is slow with the networks' dtype."""
    if dtype != "bfloat16":
        return  # the only slow dtype; without it the driver need not load torch
    import torch

    from fpe_core.device import warn_of_slow_bfloat16

    warn_of_slow_bfloat16(torch.bfloat16, torch.device("cpu"))


@dataclass
class _Driver:
    """Drives one run: plans its rounds, streams their outcomes to `commits`, writes summaries."""

    job: Job
    lease: Lease
    ledger: Ledger
    layout: MetadataLayout
    metrics: RunMetrics
    commits: Commits
    is_retry: bool
    pool: Pool | None = None
    """The pool of the first round, once the cluster has room for it."""
    warned_of: set[str] = field(default_factory=set)
    """Workers that are left out, of which a warning is in the log."""

    @property
    def folder(self) -> Folder:
        return self.lease.folder

    @property
    def plan(self) -> Plan:
        """The plan of the current round."""
        return self.commits.plan

    def claim_folder(self) -> None:
        """Writes schema, config and card before any edit, so that a killed run can be loaded too.

        Raises JobError if the job's columns, or its judge, differ from those of the folder's edits.
        """
        if self.job.judge is not None:
            refuse_other_judge(self.folder, CONFIG_FILE, self.job.judge, self.ledger)
        self.layout = claim_columns(self.folder, self.layout)
        self.folder.replace(CONFIG_FILE, encode_config(self.job, self.plan))
        self.folder.replace(CARD_FILE, self._card())

    def work(self, stops: StopRequests) -> None:
        """Runs all rounds on Ray, and writes the summaries however they end."""
        self.commits.start_progress()
        try:
            with ray_session(self.job.resources.ray_address):
                stops.arm()
                self._run_round(stops)
                while self._plan_next_round():
                    self._run_round(stops)
        finally:
            self.commits.finish_progress()
            self.sum_up()
            self._warn_of_missing_scores()

    def _warn_of_missing_scores(self) -> None:
        for name, edits in sorted(self.commits.totals.scores_missing.items()):
            _log.warning(
                "%d edits were accepted without %s, which a rule looks at%s",
                edits,
                name,
                _WITHOUT.get(name, ""),
            )

    def _plan_next_round(self) -> bool:
        """Plans the next round; False if no quota needs more edits, or there are no quotas."""
        if self.job.quotas is None:
            return False
        self.commits.next_round(make_plan(self.job, self.ledger, only=self._only()))
        if not self.plan.edits_pending:
            return False
        _log.info("quotas call for %d more edits", self.plan.edits_pending)
        self.commits.finish_progress()
        self.commits.start_progress()
        return True

    def _only(self) -> AbstractSet[bytes] | None:
        """The edits that plans are limited to; None: no limit."""
        return self.ledger.reopened_ids() if self.is_retry else None

    def _wait_for_pool(self) -> Pool:
        """The pool, as soon as the cluster has room for it."""
        resources, parameters = self.job.resources, self.plan.parameters
        device = self.job.model.device if self.plan.makes_edits else "cpu"
        size = partial(
            size_pool,
            resources=resources,
            device=device,
            groups=self.plan.groups_pending,
            pixels_per_image=parameters.width_px * parameters.height_px,
            makes_edits=self.plan.makes_edits,
        )
        bundles = bundles_of(resources, device=device, groups=self.plan.groups_pending)
        pool = wait_for_capacity(
            size, bundles, wait_s=resources.wait_s if resources.can_grow else 0.0
        )
        if pool.later:
            _log.info("%d of %d actors are waiting for a machine", pool.later, pool.actors)
        return pool

    def _run_round(self, stops: StopRequests) -> None:
        """Makes the edits of the current plan."""
        from pipeline.supervision.client import supervision  # loads Ray

        failures, pool = self.job.failures, self._wait_for_pool()
        if self.pool is None and not pool.gpus_per_actor:
            # A worker warns too, but its log is not shown in the terminal.
            _warn_of_slow_dtype(self.job.model.dtype)
        self.pool = self.pool or pool
        self.metrics.planned(self.plan.edits_total, self.commits.left, pool.actors)
        _log.info("working with %s", pool)
        limits = TimeLimits(failures.max_stall_s, failures.max_group_s)
        logs = self.job.logs.to_settings(self.lease.run_id)
        with supervision(limits, failures.max_in_a_row, logs) as supervisor:
            self._stream(pool, supervisor, stops)

    def _stream(self, pool: Pool, supervisor: SupervisorClient, stops: StopRequests) -> None:
        """Runs the graph and commits its outcomes; adds the stages' figures however it ends."""
        poller = FiguresPoller(self.metrics, supervisor.poll)
        try:
            with (
                poller.polling(),
                stops.winding_up(partial(self._wind_up, supervisor)),
                closing(self._outcomes(pool, supervisor, stops)) as outcomes,
            ):
                self._collect(outcomes, supervisor, stops)
        finally:
            figures = supervisor.figures()
            self.commits.totals.add_stages(figures)
            poller.finish(figures)

    def _wind_up(self, supervisor: SupervisorClient) -> None:
        """Stops workers from beginning new sources, and waits for those that they have begun."""
        grace_s = self.job.stop.grace_s
        in_progress, until = supervisor.stop("edit"), time.monotonic() + grace_s
        self.commits.commit()
        _log.warning(
            "stopping: the %d sources that workers have begun are finished first, for at most %g s "
            "(a second signal stops at once)",
            len(in_progress - self.commits.groups_done),
            grace_s,
        )
        while not in_progress <= self.commits.groups_done and time.monotonic() < until:
            time.sleep(_WIND_UP_POLL_S)

    def _collect(
        self, outcomes: Iterable[pa.Table], supervisor: SupervisorClient, stops: StopRequests
    ) -> None:
        """Takes and commits the outcomes; what arrived is committed however the stream ends."""
        commits = self.commits
        try:
            for table in outcomes:
                with stops.held():  # a signal must not interrupt it: a block is taken whole
                    commits.take(table)
                commits.totals.check(self.job.failures)
                if commits.is_due:
                    with stops.held():
                        commits.commit()
                    self._left_out(supervisor)
        finally:
            with stops.held():
                commits.commit()

    def left(self) -> int:
        """How many edits are left to do."""
        if self.plan.round is None:
            return self.commits.left
        return sum(row.to_do for row in self._quota_rows())

    def summary(self) -> RunSummary:
        """The summary of the run so far."""
        summary = self.commits.totals.summary(self.plan, self.folder.url, self._quota_rows())
        return replace(summary, run=self.lease.run_id)

    def _quota_rows(self) -> list[QuotaRow]:
        return quota_rows(self.plan, self.ledger, self._only())

    def is_summed_up(self) -> bool:
        """Whether the numbers of stats.json are those of the ledger."""
        try:
            stats = json.loads(self.folder.read(STATS_FILE))
            total, counts = stats["total"], self.ledger.counts()
            found = tuple(total.get(outcome.value, 0) for outcome in Outcome)
            quotas = [asdict(row) for row in self._quota_rows()]
            is_counted = found == tuple(getattr(counts, outcome.value) for outcome in Outcome)
            return bool(is_counted and stats.get("quotas", []) == quotas)
        except (StorageError, ValueError, KeyError, TypeError):
            return False

    def sum_up(self) -> None:
        """Writes the summaries, all derived from the ledger. Raises LeaseError, StorageError.

        stats.json comes last: `is_summed_up` reads it.
        """
        self.lease.check()
        stats = encode_stats(
            self.summary(),
            self.ledger.counts(),
            pool=self.pool,
            workers=self.commits.totals.edits_by_worker,
        )
        self.folder.replace(CARD_FILE, self._card())
        self.folder.replace(STATS_FILE, stats)

    def _outcomes(
        self, pool: Pool, supervisor: SupervisorClient, stops: StopRequests
    ) -> Generator[pa.Table]:
        """The outcomes of all pending groups, with a column `worker` if a worker made them."""
        from pipeline.cluster.graph import (  # loads Ray Data: only when needed
            WorkerError,
            stream_outcomes,
        )

        decoding = decode_settings(self.job)
        editing = edit_settings(self.job, self.plan, pool, self.layout, self.lease)
        slices = cut_work(
            self.folder, self.plan.work_files, pool.groups_per_block, pool.edits_per_block
        )
        without_progress, deaths, broken, left_out = 0, 0.0, 0.0, 0
        while slices:
            self.metrics.blocks_to_do += len(slices)
            done_before, deaths_before = len(self.commits.groups_done), deaths
            started = pool.actors_for(len(slices), left_out=left_out)
            try:
                yield from stream_outcomes(
                    self.folder,
                    slices,
                    decoding=decoding,
                    editing=editing,
                    pool=pool,
                    supervisor=supervisor,
                    embedded=self.plan.embedded,
                    left_out=left_out,
                    bars=self.job.logs.shows_ray_bars,
                )
            except WorkerError:
                # If none of a few workers can work, others may, at places that are free.
                if len(self._left_out(supervisor)) < started or started >= pool.places:
                    raise
            if stops.is_requested():
                return  # blocks that were not begun have no outcomes; they are not lost
            slices = lost_slices(self.folder, slices, self.commits.groups_done)
            if not slices:
                return
            supervisor.raise_if_too_many_deaths()
            left_out = len(self._left_out(supervisor))
            deaths, failures = supervisor.lost_workers()
            # That a place turns out to be broken is progress too: there are only so many.
            broken, broken_before = max(broken, failures + left_out), broken
            has_progress = len(self.commits.groups_done) > done_before or broken > broken_before
            without_progress = 0 if has_progress else without_progress + 1
            is_stuck = without_progress >= _MAX_PASSES_WITHOUT_PROGRESS and deaths <= deaths_before
            if is_stuck:
                raise WorkerError(
                    f"stopped: {len(slices)} blocks of work were lost {without_progress} times, "
                    "and no worker died. The reason is in ray-data.log and the workers' logs, in "
                    "Ray's session folder. The same command goes on from what is committed."
                )
            isolating = max(part.rows for part in slices)
            if without_progress > _MAX_PASSES_WITHOUT_PROGRESS + isolating:
                break
            _log.warning(
                "%d blocks were lost with their workers and are processed again", len(slices)
            )
            wait_until_free(pool)
        for part in slices:
            yield quarantined(self.folder, part)

    def _left_out(self, supervisor: SupervisorClient) -> list[str]:
        """The workers of the pass that are left out; warns of those that are new."""
        left_out = supervisor.left_out()
        for each in left_out:
            if each not in self.warned_of:
                _log.warning("left out, while others go on: %s", each)
        self.warned_of.update(left_out)
        return left_out

    def _card(self) -> bytes:
        judge = self.job.judge
        return dataset_card(
            self.plan,
            self.layout,
            self.ledger.counts(),
            self.job.model.checkpoint,
            add_ons=self.job.model.described(),
            keeps_rejected=judge is not None and judge.rejected == "keep",
        )
