"""Turns histograms into coordinates of rectangles and lines, which the template draws as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fpe_core.judging.rules import Rule
from jobs.report.words import MEANINGS, need, score_text
from pipeline.report.histogram import Histogram, bound_of

WIDTH = 240
BASE = 64
"""Height of the plot, which is the y of its horizontal axis."""
_GAP = 0.8
_LABEL_ROOM = 24  # a label nearer to an edge than this begins, or ends, at its line


@dataclass(frozen=True)
class Bar:
    """A rectangle for the edits of one outcome in one bin."""

    outcome: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Bound:
    """A vertical line with a label; `anchor` is the label's SVG text-anchor."""

    x: float
    text: str
    anchor: str


@dataclass(frozen=True)
class Span:
    """The area on the rejected side of a threshold."""

    x: float
    width: float


@dataclass(frozen=True)
class Chart:
    """One histogram, in units of the SVG's view box: 0 to `width`, 0 to `base` downward."""

    score: str
    meaning: str
    median: float
    low: float
    high: float
    bars: tuple[Bar, ...]
    bounds: tuple[Bound, ...]
    beyond: tuple[Span, ...]
    summary: str
    remark: str
    width: int = WIDTH
    base: int = BASE


def score_chart(histogram: Histogram) -> Chart:
    """The chart of a score, with the thresholds of its rules."""
    bounds = [(rule, _x(histogram, bound_of(rule))) for rule in histogram.rules]
    remark = MEANINGS.get(histogram.score, "")
    if histogram.rules:
        needs = " and ".join(need(rule) for rule in histogram.rules)
        reasons = ", ".join(dict.fromkeys(rule.reason.value for rule in histogram.rules))
        remark = f"{histogram.broken:,} of {histogram.edits:,} not {needs}: {reasons}"
    return _chart(
        histogram,
        bounds=[Bound(x, need(rule), _anchor(x)) for rule, x in bounds],
        beyond=[_beyond(rule, x) for rule, x in bounds],
        remark=remark,
    )


def difference_chart(histogram: Histogram) -> Chart:
    """The chart of a score's differences, with a line at 0."""
    is_inside = histogram.low <= 0 <= histogram.high
    x = _x(histogram, 0.0)
    return _chart(histogram, [Bound(x, "0", _anchor(x))] if is_inside else [], [], "")


def _chart(
    histogram: Histogram, bounds: Sequence[Bound], beyond: Sequence[Span], remark: str
) -> Chart:
    kind = histogram.edit_type or "all types"
    summary = (
        f"{histogram.score} of {histogram.edits:,} edits ({kind}): from "
        f"{score_text(histogram.low)} to {score_text(histogram.high)}, median "
        f"{score_text(histogram.median)}"
    )
    return Chart(
        score=histogram.score,
        meaning=MEANINGS.get(histogram.score, ""),
        median=histogram.median,
        low=histogram.low,
        high=histogram.high,
        bars=tuple(_bars(histogram)),
        bounds=tuple(bounds),
        beyond=tuple(beyond),
        summary=f"{summary}. {remark}" if remark else summary,
        remark=remark,
    )


def _bars(histogram: Histogram) -> list[Bar]:
    """Accepted edits stand on the axis, rejected ones on top of them."""
    width = WIDTH / len(histogram.accepted)
    unit = BASE / max(1, histogram.tallest)
    bars = []
    for number, counts in enumerate(zip(histogram.accepted, histogram.rejected, strict=True)):
        below = 0.0
        for outcome, count in zip(("accepted", "rejected"), counts, strict=True):
            if not count:
                continue
            height = max(1.0, count * unit)  # so that one edit among many is still visible
            x, y = number * width + _GAP / 2, BASE - below - height
            bars.append(Bar(outcome, _r(x), _r(y), _r(width - _GAP), _r(height)))
            below += height
    return bars


def _beyond(rule: Rule, x: float) -> Span:
    return Span(0.0, x) if rule.at_least is not None else Span(x, _r(WIDTH - x))


def _x(histogram: Histogram, value: float) -> float:
    return _r((value - histogram.low) / (histogram.high - histogram.low) * WIDTH)


def _anchor(x: float) -> str:
    if x < _LABEL_ROOM:
        return "start"
    return "end" if x > WIDTH - _LABEL_ROOM else "middle"


def _r(value: float) -> float:
    return round(value, 1)
