"""Collects the facts about a run from its folder: counts, scores, labels, cost, pictures.

    facts = read_report(Folder.open("out/recoloured"))
    facts.types[0].accepted, facts.histograms[0].rules, facts.tiles[0].edit.data

Their number is bounded, whatever the size of the run. How they are shown is decided elsewhere.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from fpe_core.errors import ParameterError
from fpe_core.judging.rules import Rule, Rules
from pipeline.ledger.outcome import SCORE_COLUMNS, Outcome
from pipeline.redact import redact_url
from pipeline.report.edit_table import LABEL_PREFIX, EditTable, planned_labels, read_edits
from pipeline.report.gallery import Chosen, Thumbnail, choose_edits, read_thumbnails, within_bytes
from pipeline.report.histogram import Histogram, histogram_of
from pipeline.report.judging import (
    ReconstructionFigures,
    RegionCounts,
    reconstruction_figures,
    region_counts,
    retries_by_reason,
)
from pipeline.run.folder import CONFIG_FILE, stored_job
from pipeline.run.stats import STATS_FILE, Retries
from pipeline.storage.folder import Folder


@dataclass(frozen=True)
class ReportLimits:
    """Limits that keep a report small, however large the run is."""

    tiles_per_group: int = 24
    """The most edits of each type, group and reason."""
    tiles: int = 360
    thumbnail_px: int = 144
    picture_bytes: int = 9_000_000
    """The size of all thumbnails together; as base64 text in a page they take a third more."""
    types: int = 12
    """How many edit types get a row and histograms of their own, the most frequent first; the
    others are counted together."""
    label_values: int = 60
    quota_cells: int = 200
    """Cells of quotas that are listed, those that lack most edits first."""
    job_chars: int = 100_000


OTHER_ROWS = "(all others)"
"""The name of the row that counts everything beyond a limit."""


@dataclass(frozen=True)
class Counts:
    """The number of edits by outcome. `name`: a type of edit, or a value of a label."""

    name: str
    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    not_applicable: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Reject reasons and failure codes, the most frequent first."""

    @property
    def total(self) -> int:
        return self.tried + self.not_applicable

    @property
    def tried(self) -> int:
        """Edits that their editor could make."""
        return self.accepted + self.rejected + self.failed

    @property
    def accepted_share(self) -> float:
        return self.accepted / self.tried if self.tried else 0.0


@dataclass(frozen=True)
class LabelCounts:
    """The number of edits by the values of one label, the most frequent value first."""

    label: str
    values: tuple[Counts, ...]


@dataclass(frozen=True)
class RunCost:
    """The cost of all attempts in a run folder.

    `model_seconds`: seconds of inverting and editing, summed over all workers.
    """

    unet_rows: float
    unet_rows_rejected: float
    model_seconds: float
    stages: Mapping[str, Mapping[str, float]]
    last_run_seconds: float | None
    last_run_edits: int
    workers: int | None
    busy_share: float | None


@dataclass(frozen=True)
class Edit:
    """One edit as a report shows it; texts as in the ledger, ids as hex."""

    edit_id: str
    row_id: str
    edit_type: str
    outcome: str
    reason: str
    message: str
    source_prompt: str
    target_prompt: str
    labels: Mapping[str, str]
    scores: Mapping[str, float]
    rules: tuple[Rule, ...]
    """The rules of its type, whether the edit breaks them or not."""
    edited_file_name: str
    source_file_name: str


@dataclass(frozen=True)
class Tile:
    """An edit with its pictures, and the groups of the gallery that it is in."""

    edit: Edit
    groups: tuple[str, ...]
    source_picture: Thumbnail
    edited_picture: Thumbnail


@dataclass(frozen=True)
class RunFacts:
    """The facts about a run.

    Attributes:
        counts: of all edits.
        types: counts by type of edit, the most frequent first; the name is "" for edits without a
            type.
        histograms: by type, then score; scores with a rule come first.
        types_left_out: number of edit types without histograms, because of the limits.
        quotas: rows of `quotas` in stats.json, those that lack most edits first; () if the job has
            no quotas.
        quotas_left_out: number of rows beyond the limit.
        retries: by the reason of the first rejection; {} if nothing was attempted again.
        reconstruction: figures of the gate; None if it measured nothing.
        regions: counts of the verdicts on boxes and masks; () if the run has none.
        is_judged: whether some edit has a score or was rejected.
        editor: name of the editing method; "" if config.yaml does not have it.
        job_text: config.yaml.
        notes: messages about what could not be read or was cut short.
    """

    url: str
    counts: Counts
    sources: int
    types: tuple[Counts, ...]
    histograms: tuple[Histogram, ...]
    types_left_out: int
    labels: tuple[LabelCounts, ...]
    tiles: tuple[Tile, ...]
    cost: RunCost
    quotas: tuple[Mapping[str, Any], ...]
    quotas_left_out: int
    retries: Mapping[str, Retries]
    reconstruction: ReconstructionFigures | None
    regions: tuple[RegionCounts, ...]
    failure_examples: Mapping[str, str]
    is_judged: bool
    editor: str
    job_text: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RunFolder:
    """The content of a run folder's config.yaml and stats.json; empty for a file that is
    missing."""

    folder: Folder
    job_text: str
    job: Mapping[str, Any]
    rules: Rules
    stats: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def editor(self) -> str:
        """The name of the editing method."""
        editor = self.job.get("editor", "")
        return str(_mapping(editor).get("name", "") if not isinstance(editor, str) else editor)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the job, or of its manifest."""
        prompts = self.job.get("prompts")
        if prompts is None:
            return planned_labels(self.folder)
        return tuple(_mapping(_mapping(prompts).get("labels")))


def read_report(folder: Folder, limits: ReportLimits | None = None) -> RunFacts:
    """The facts of a run folder. Raises StorageError if there is no run, and LedgerError."""
    limits = limits or ReportLimits()
    run = read_run_folder(folder, limits)
    edits = read_edits(folder, run.labels)
    rows, types = edits.rows, types_of(edits.rows)
    chosen = choose_edits(rows, run.rules, per_group=limits.tiles_per_group, at_most=limits.tiles)
    quotas, notes = _quotas(run.stats), list(run.notes)
    return RunFacts(
        url=redact_url(folder.url),
        counts=counts_of("", rows),
        sources=len(pc.unique(rows["source_key"])),
        types=_by_value(rows, "edit_type", limits.types),
        histograms=tuple(_histograms(rows, types[: limits.types], run.rules)),
        types_left_out=max(0, len(types) - limits.types),
        labels=tuple(
            LabelCounts(name, _by_value(rows, f"{LABEL_PREFIX}{name}", limits.label_values))
            for name in run.labels
        ),
        tiles=_tiles(folder, edits, chosen, run.rules, limits),
        cost=_cost(edits, run.stats),
        quotas=quotas[: limits.quota_cells],
        quotas_left_out=max(0, len(quotas) - limits.quota_cells),
        retries=retries_by_reason(rows),
        reconstruction=reconstruction_figures(rows, _mapping(run.job.get("judge"))),
        regions=region_counts(folder, rows, _mapping(run.job.get("annotations")), notes),
        failure_examples=_mapping(_mapping(run.stats.get("last_run")).get("failure_examples")),
        is_judged=_is_judged(rows),
        editor=run.editor,
        job_text=run.job_text,
        notes=tuple(notes),
    )


def read_run_folder(folder: Folder, limits: ReportLimits) -> RunFolder:
    """Reads config.yaml and stats.json. A missing or damaged file becomes a note, not an error."""
    notes: list[str] = []
    text = _text(folder, CONFIG_FILE, notes)
    job: Mapping[str, Any] = {}
    rules = Rules()
    try:
        job = stored_job(text)
        rules = Rules.from_dict(_mapping(_mapping(job.get("judge")).get("rules")))
    except (yaml.YAMLError, ValueError, RecursionError, ParameterError) as error:
        notes.append(f"{CONFIG_FILE}: {error}; no thresholds are drawn")
    try:
        stats = _mapping(json.loads(_text(folder, STATS_FILE, notes) or "{}"))
    except ValueError as error:
        stats = {}
        notes.append(f"{STATS_FILE} is damaged: {error}")
    if len(text) > limits.job_chars:
        text = text[: limits.job_chars] + "\n..."
        notes.append(f"{CONFIG_FILE} is cut short here")
    return RunFolder(folder, text, job, rules, stats, tuple(notes))


def edit_of(row: Mapping[str, Any], labels: Sequence[str], rules: Rules) -> Edit:
    """Converts a row of the table of edits."""
    named = {name: row[f"{LABEL_PREFIX}{name}"] for name in labels}
    return Edit(
        edit_id=row["edit_id"].hex(),
        row_id=row["id"],
        edit_type=row["edit_type"],
        outcome=row["outcome"],
        reason=row["reason"],
        message=row["message"],
        source_prompt=row["source_prompt"],
        target_prompt=row["target_prompt"],
        labels={name: value for name, value in named.items() if value is not None},
        scores={name: row[name] for name in SCORE_COLUMNS if row[name] is not None},
        rules=rules.of(row["edit_type"]),
        edited_file_name=row["edited_file_name"],
        source_file_name=row["source_file_name"],
    )


def picture_of(
    path: str, read: Mapping[str, Thumbnail], *, of_source: bool, edit: Edit
) -> Thumbnail:
    """The thumbnail of a path, or one that gives the reason why there is no picture."""
    if path:
        return read[path]
    if of_source:
        return Thumbnail(missing="no source was kept")
    if edit.outcome in (Outcome.FAILED, Outcome.NOT_APPLICABLE):
        return Thumbnail(missing="not made")
    return Thumbnail(missing="not kept")


def _tiles(
    folder: Folder, edits: EditTable, chosen: Sequence[Chosen], rules: Rules, limits: ReportLimits
) -> tuple[Tile, ...]:
    rows = edits.rows.take([each.row for each in chosen]).to_pylist()
    shown = [edit_of(row, edits.labels, rules) for row in rows]
    paths = [path for edit in shown for path in (edit.source_file_name, edit.edited_file_name)]
    read = read_thumbnails(folder, paths, limits.thumbnail_px)
    pictures = [
        (
            picture_of(edit.source_file_name, read, of_source=True, edit=edit),
            picture_of(edit.edited_file_name, read, of_source=False, edit=edit),
        )
        for edit in shown
    ]
    return tuple(
        Tile(edit, each.groups, *pair)
        for edit, each, pair in zip(
            shown, chosen, within_bytes(pictures, limits.picture_bytes), strict=True
        )
    )


def counts_of(name: str, rows: pa.Table) -> Counts:
    """Counts the rows of a table of edits by outcome and reason."""
    outcomes, reasons = tally(rows["outcome"]), tally(rows["reason"])
    del reasons[""]
    return Counts(
        name,
        accepted=outcomes[Outcome.ACCEPTED],
        rejected=outcomes[Outcome.REJECTED],
        failed=outcomes[Outcome.FAILED],
        not_applicable=outcomes[Outcome.NOT_APPLICABLE],
        reasons=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    )


def _by_value(rows: pa.Table, column: str, at_most: int) -> tuple[Counts, ...]:
    """Counts by the values of a column, without null; values beyond the `at_most` most frequent are
    counted together."""
    rows = rows.select(list(dict.fromkeys([column, "outcome", "reason"])))
    counted = tally(rows[column])
    common = [name for name, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))]
    result = [
        counts_of(name, rows.filter(pc.equal(rows[column], name))) for name in common[:at_most]
    ]
    if len(common) > at_most:
        others = pc.is_in(rows[column], value_set=pa.array(common[at_most:]))
        result.append(counts_of(OTHER_ROWS, rows.filter(others)))
    return tuple(result)


def tally(column: pa.ChunkedArray) -> Counter[str]:
    """How often each value of a column of text occurs, without null."""
    counted = pc.value_counts(column.drop_null())
    values, counts = (counted.field(name).to_pylist() for name in ("values", "counts"))
    return Counter(dict(zip(values, counts, strict=True)))


def types_of(rows: pa.Table) -> list[str]:
    """The types of the edits, the most frequent first."""
    counted = tally(rows["edit_type"])
    return sorted(counted, key=lambda name: (-counted[name], name))


def _is_judged(rows: pa.Table) -> bool:
    """Whether any edit has a score, or was rejected (the gate may reject all, without scores)."""
    has_scores = any(rows[name].null_count < len(rows) for name in SCORE_COLUMNS)
    return has_scores or Outcome.REJECTED.value in pc.unique(rows["outcome"]).to_pylist()


def _histograms(rows: pa.Table, types: Sequence[str], rules: Rules) -> list[Histogram]:
    found = []
    is_accepted = pc.equal(rows["outcome"], Outcome.ACCEPTED.value).to_numpy()
    for edit_type in types:
        is_of_type = pc.equal(rows["edit_type"], edit_type).to_numpy()
        looked_at = [rule.score for rule in rules.of(edit_type)]
        order = dict.fromkeys([*looked_at, *SCORE_COLUMNS])
        for score in order:
            values = np.asarray(rows[score].to_numpy(), np.float64)[is_of_type]
            accepted = is_accepted[is_of_type]
            found.append(histogram_of(score, edit_type, values, accepted, rules.of(edit_type)))
    return [each for each in found if each is not None]


def _cost(edits: EditTable, stats: Mapping[str, Any]) -> RunCost:
    last, pool = _mapping(stats.get("last_run")), _mapping(stats.get("resources"))
    is_rejected = pc.equal(edits.rows["outcome"], Outcome.REJECTED.value)
    rejected = edits.rows.select(["unet_rows"]).filter(is_rejected)
    made = sum(int(last.get(name) or 0) for name in map(str, Outcome))
    return RunCost(
        unet_rows=edits.unet_rows,
        unet_rows_rejected=float(np.nansum(rejected["unet_rows"].to_numpy())),
        model_seconds=edits.seconds,
        stages=_mapping(last.get("stages") or last.get("stations")),  # named so before 0.2.0
        last_run_seconds=last.get("seconds"),
        last_run_edits=made,
        workers=pool.get("actors"),
        busy_share=last.get("busy_share"),
    )


def _quotas(stats: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The rows of `quotas`, those that lack most edits first, otherwise in their order."""
    found = stats.get("quotas")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    return tuple(sorted(rows, key=lambda row: -int(row.get("short_by") or 0)))


def _text(folder: Folder, path: str, notes: list[str]) -> str:
    if not folder.exists(path):
        notes.append(f"{path} is not there: no run has ended yet, or the file was moved")
        return ""
    return folder.read(path).decode("utf-8", "replace")


def _mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else {}."""
    return value if isinstance(value, dict) else {}
