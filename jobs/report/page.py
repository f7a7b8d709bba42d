"""Renders the facts of a run, or of two, as one HTML page, and writes it to a folder, file or URL.

The page needs no server and no network: style, script and images are embedded, and its content
security policy forbids everything else. Equal runs give equal pages.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from jobs.report import words as report_words
from jobs.report.charts import Chart, difference_chart, score_chart
from jobs.terminal import texts
from pipeline.errors import JobError
from pipeline.ledger.outcome import SCORE_COLUMNS, Outcome
from pipeline.report.comparison import PAIR_GROUPS, ComparisonFacts, PairTile, read_comparison
from pipeline.report.facts import Edit, ReportLimits, RunFacts, read_report
from pipeline.report.gallery import GROUPS
from pipeline.report.side_by_side import SideBySideFacts, read_side_by_side
from pipeline.storage.folder import Folder, absolute_url

REPORT_NAME = "report.html"
COMPARISON_NAME = "comparison.html"
SIDE_BY_SIDE_NAME = "side_by_side.html"
_STAGES = ("decode", "load", "edit", "judge", "write", "commit")


@dataclass(frozen=True)
class Choice:
    """A filter of the gallery: the values of one attribute, data-<key>, of its tiles."""

    title: str
    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class GalleryView:
    """The tiles of a gallery, and the filters for them."""

    tiles: tuple[Any, ...]
    groups: tuple[tuple[str, int], ...]
    choices: tuple[Choice, ...]
    scores: tuple[str, ...]
    label_number: Mapping[str, int]


@dataclass(frozen=True)
class TypeCharts:
    """The charts of one type of edit: of scores that a rule uses, and of the others."""

    name: str
    edits: int
    ruled: tuple[Chart, ...]
    others: tuple[Chart, ...]


@dataclass(frozen=True)
class StageView:
    """A stage of the last run; `share` is its part of the seconds of all stages, 0..1."""

    name: str
    share: float
    rows: float = 0
    seconds: float = 0
    bytes_read: float = 0
    bytes_written: float = 0
    requests: float = 0
    retries: float = 0
    worker_deaths: float = 0


@dataclass(frozen=True)
class CostView:
    """Costs per edit and as shares; amounts of money are None without a price."""

    rows_per_edit: float
    rows_per_accepted: float
    rejected_share: float
    stages: tuple[StageView, ...]
    price_per_hour: float | None
    money_all: float | None
    money_per_thousand: float | None
    money_last_run: float | None


def render_report(
    facts: RunFacts, *, price_per_hour: float | None = None, is_in_run: bool = True
) -> bytes:
    """The page of one run, UTF-8.

    Args:
        price_per_hour: of one worker, in any currency.
        is_in_run: whether the page is written into the run folder and can link to its images.
    """
    return _render(
        "report.html.j2",
        link=_link if is_in_run else _no_link,
        run=facts,
        charts=_charts(facts),
        view=_run_view(facts),
        cost=_cost(facts, price_per_hour),
        is_in_run=is_in_run,
    )


def render_comparison(facts: ComparisonFacts) -> bytes:
    """The page of two runs, UTF-8."""
    accepted = Outcome.ACCEPTED.value
    flips = [(a, b, n) for (a, b), n in facts.verdicts.items() if a != b]
    return _render(
        "comparison.html.j2",
        link=_no_link,
        facts=facts,
        view=_pair_view(facts),
        outcomes=[
            outcome.value
            for outcome in Outcome
            if outcome != Outcome.NOT_APPLICABLE or any(outcome in pair for pair in facts.verdicts)
        ],
        won=sum(n for _, b, n in flips if b == accepted),
        lost=sum(n for a, _, n in flips if a == accepted),
    )


def render_side_by_side(facts: SideBySideFacts) -> bytes:
    """The page of several runs, UTF-8."""
    return _render("side_by_side.html.j2", link=_no_link, facts=facts)


def _render(template: str, *, link: Callable[[str], str], **values: Any) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs.report", "templates"),
        autoescape=True,  # prompts, ids and messages are untrusted text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": texts.count_text,
        "percent": report_words.percent_text,
        "score": report_words.score_text,
        "script_number": report_words.script_number,
        "signed": report_words.signed_text,
        "duration": texts.duration_text,
        "money": texts.money_text,
        "size": lambda count: texts.size_text(count) if count else "–",
        "shorten": report_words.shorten,
        "words": report_words.words,
        "breakable": report_words.breakable,
        "plain": report_words.plain,
        "last_name": report_words.last_name,
        "data_uri": report_words.data_uri,
        "search_text": report_words.search_text,
        "prompt_words": report_words.prompt_words,
        "ruled_scores": report_words.ruled_scores,
        "other_scores": report_words.other_scores,
        "pair_scores": report_words.pair_scores,
        "meaning": lambda score: report_words.MEANINGS.get(score, ""),
        "difference_chart": difference_chart,
        "link": link,
    }
    style, script = (_own_file(environment, name) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template).render(
        style=Markup(style),  # noqa: S704 - our own files, no one's input
        script=Markup(script),  # noqa: S704
        script_hash=digest,
        **values,
    )
    return page.encode("utf-8", "replace")  # a lone surrogate in a text becomes "?"


def _own_file(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _link(path: str) -> str:
    """The URL of a file of the run folder, relative to a page in it."""
    return "./" + jinja2.filters.do_urlencode(path) if path else ""


def _no_link(_path: str) -> str:
    return ""


def _charts(facts: RunFacts) -> list[TypeCharts]:
    result = []
    for edit_type, group in itertools.groupby(facts.histograms, key=lambda each: each.edit_type):
        histograms = list(group)
        result.append(
            TypeCharts(
                name=edit_type,
                edits=max(each.edits for each in histograms),
                ruled=tuple(score_chart(each) for each in histograms if each.rules),
                others=tuple(score_chart(each) for each in histograms if not each.rules),
            )
        )
    return result


def _run_view(facts: RunFacts) -> GalleryView:
    edits = [tile.edit for tile in facts.tiles]
    numbers = {label.label: number for number, label in enumerate(facts.labels)}
    found = {name for edit in edits for name in edit.scores}
    return GalleryView(
        tiles=facts.tiles,
        groups=_groups(GROUPS, (group for tile in facts.tiles for group in tile.groups)),
        choices=_choices(
            ("Type", "type", [edit.edit_type for edit in edits]),
            ("Verdict", "verdict", [edit.outcome for edit in edits]),
            ("Reason", "reason", [edit.reason for edit in edits]),
            *_label_values(edits, numbers),
        ),
        scores=tuple(name for name in SCORE_COLUMNS if name in found),
        label_number=numbers,
    )


def _pair_view(facts: ComparisonFacts) -> GalleryView:
    tiles: Sequence[PairTile] = facts.tiles
    numbers = {name: number for number, name in enumerate(facts.labels)}
    edits = [tile.either for tile in tiles]
    return GalleryView(
        tiles=facts.tiles,
        groups=_groups(PAIR_GROUPS, (tile.group for tile in tiles)),
        choices=_choices(
            ("Type", "type", [edit.edit_type for edit in edits]),
            ("In A", "a", [tile.a.outcome if tile.a else "not there" for tile in tiles]),
            ("In B", "b", [tile.b.outcome if tile.b else "not there" for tile in tiles]),
            ("Reason in B", "reason", [(tile.b or tile.either).reason for tile in tiles]),
            *_label_values(edits, numbers),
        ),
        scores=(),
        label_number=numbers,
    )


def _groups(order: Sequence[str], found: Iterable[str]) -> tuple[tuple[str, int], ...]:
    counts = Counter(found)
    return tuple((name, counts[name]) for name in order if counts[name])


def _label_values(
    edits: Sequence[Edit], numbers: Mapping[str, int]
) -> list[tuple[str, str, list[str]]]:
    return [
        (name, f"label-{number}", [e.labels[name] for e in edits if name in e.labels])
        for name, number in numbers.items()
    ]


def _choices(*found: tuple[str, str, list[str]]) -> tuple[Choice, ...]:
    """Filters with their values, the most common first; no filter if all values are equal."""
    choices = []
    for title, key, values in found:
        counts = Counter(values)
        if len(counts) > 1:
            names = sorted(counts, key=lambda name: (-counts[name], name))
            choices.append(Choice(title, key, tuple(names)))
    return tuple(choices)


def _cost(facts: RunFacts, price: float | None) -> CostView:
    cost, accepted = facts.cost, facts.counts.accepted
    seconds = sum(float(figures.get("seconds", 0)) for figures in cost.stages.values())
    stages = []
    for name in sorted(cost.stages, key=_stage_place):
        known = StageView.__dataclass_fields__.keys() - {"name", "share"}
        figures = {key: value for key, value in cost.stages[name].items() if key in known}
        share = float(figures.get("seconds", 0)) / seconds if seconds else 0.0
        stages.append(StageView(name, share, **figures))
    money = None if price is None else price * cost.model_seconds / 3600
    last_run = None
    if price is not None and cost.last_run_seconds is not None and cost.workers:
        last_run = price * cost.last_run_seconds * cost.workers / 3600
    return CostView(
        rows_per_edit=_ratio(cost.unet_rows, facts.counts.total),
        rows_per_accepted=_ratio(cost.unet_rows, accepted),
        rejected_share=cost.unet_rows_rejected / cost.unet_rows if cost.unet_rows else 0.0,
        stages=tuple(stages),
        price_per_hour=price,
        money_all=money,
        money_per_thousand=money / accepted * 1000 if money is not None and accepted else None,
        money_last_run=last_run,
    )


def _stage_place(name: str) -> tuple[int, str]:
    return (_STAGES.index(name) if name in _STAGES else len(_STAGES), name)


def _ratio(total: float, count: int) -> float:
    """The ratio; NaN, which is shown as a dash, if `count` is 0."""
    return total / count if count else float("nan")


@dataclass(frozen=True)
class Written:
    """A page that was written: its URL or path, and its size."""

    url: str
    size_bytes: int


def write_report(
    folder: Folder,
    *,
    out: str | None = None,
    price_per_hour: float | None = None,
    limits: ReportLimits | None = None,
) -> Written:
    """Writes the report of a run to RUN/report.html, replacing an earlier one, or to `out`.

    Raises StorageError if there is no run or the page cannot be written, LedgerError for a damaged
    ledger, and JobError if `out` is not the name of an HTML file.
    """
    place, name = _place(folder, out, REPORT_NAME)
    facts = read_report(folder, limits)
    is_in_run = place.url == folder.url
    page = render_report(facts, price_per_hour=price_per_hour, is_in_run=is_in_run)
    return _write(place, name, page)


def write_comparison(
    a: Folder, b: Folder, *, out: str | None = None, limits: ReportLimits | None = None
) -> Written:
    """Writes the comparison of two runs to A/comparison.html, or to `out`; raises as above."""
    place, name = _place(a, out, COMPARISON_NAME)
    return _write(place, name, render_comparison(read_comparison(a, b, limits)))


def write_side_by_side(
    folders: Sequence[Folder], *, out: str | None = None, limits: ReportLimits | None = None
) -> Written:
    """Writes the page of three or more runs to FIRST/side_by_side.html, or to `out`; raises as
    above."""
    place, name = _place(folders[0], out, SIDE_BY_SIDE_NAME)
    return _write(place, name, render_side_by_side(read_side_by_side(folders, limits)))


def _place(folder: Folder, out: str | None, name: str) -> tuple[Folder, str]:
    if out is None:
        return folder, name
    if not out.endswith((".html", ".htm")):  # so that a mistyped name does not overwrite data
        raise JobError(f"--out {out}: name a file that ends in .html")
    above, _, name = absolute_url(out).rpartition("/")
    options: Mapping[str, Any] = folder.options
    is_same_store = ("://" in above) == ("://" in folder.url)
    return Folder.open(above or posixpath.sep, options if is_same_store else {}), name


def _write(place: Folder, name: str, page: bytes) -> Written:
    place.replace(name, page)
    return Written(place.url_of(name), len(page))
