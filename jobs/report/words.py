"""The filters of the report's templates: numbers, scores and prompts as text."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fpe_core.judging.rules import Rule
from jobs.terminal.texts import count_text
from pipeline.report.comparison import PairTile
from pipeline.report.contact_sheet import Word, changed_words
from pipeline.report.facts import Edit
from pipeline.report.gallery import Thumbnail
from pipeline.report.histogram import bound_of

_PROMPT_CHARS = 400

MEANINGS = {
    "text_score": "fits the target prompt; higher = better",
    "directional_similarity": "changed as the prompt did; higher = better",
    "image_similarity": "similarity to the source (CLIP); higher = more alike",
    "structure_distance": "difference of the layout; lower = structure kept",
    "lpips": "perceptual difference; lower = more alike",
    "ssim": "similarity to the source; higher = more alike",
    "psnr_db": "similarity to the source, in dB; higher = more alike",
    "changed_share": "share of the pixels that changed",
    "sharpness_ratio": "edit divided by source; below 1 = softer",
    "saturation_shift": "edit minus source",
    "clipped_shift": "clipped values, edit minus source",
}
"""The meaning of each score of `fpe_core.scores.edit_scores` in a few words."""


@dataclass(frozen=True)
class RuledScore:
    """A score of an edit that a rule uses."""

    score: str
    value: float
    need: str
    is_broken: bool


@dataclass(frozen=True)
class PairScore:
    """A score that both edits of a pair have."""

    score: str
    a: float
    b: float

    @property
    def difference(self) -> float:
        return self.b - self.a


def percent_text(share: float) -> str:
    """12.3 %, or 12 % if it is whole. 0 % and 100 % are shown only if they are exact."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{share * 100:.1f}".removesuffix(".0") + " %"


def score_text(value: float) -> str:
    """At most four significant digits, and at most three decimals unless the score is tiny."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "–"
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    if 0 < abs(value) < 0.1:
        text = f"{value:.3g}" if abs(value) < 1e-4 else f"{value:.4f}"
    text = text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
    return "0" if text in ("-0", "") else text


def script_number(value: float) -> str:
    """A number with all its digits, as JavaScript's Number() parses it."""
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return "NaN" if math.isnan(value) else repr(float(value))


def signed_text(value: float) -> str:
    text = score_text(value)
    return f"+{text}" if value > 0 and text != "0" else text.replace("-", "−")


def shorten(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[: chars - 1].rstrip() + "…"


def words(name: str) -> str:
    return name.replace("_", " ")


def breakable(name: str) -> Markup:
    """A name that may be broken into lines after each underscore."""
    return Markup("_<wbr>").join(name.split("_"))


def plain(value: Any) -> str:
    """A value of stats.json as text: numbers with thousands separators, lists and mappings in one
    line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return count_text(value)
    return "–" if value is None else str(value)


def last_name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2] or url


def data_uri(picture: Thumbnail) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture.data).decode()}"


def search_text(edit: Edit) -> str:
    """The text that the gallery's search matches, in lower case."""
    text = f"{edit.target_prompt[:_PROMPT_CHARS]} {edit.row_id} {edit.edit_id}"
    return text.lower()


def prompt_words(edit: Edit) -> list[Word]:
    """The words of the target prompt, each with whether the source prompt has it at that
    position."""
    return changed_words(
        edit.source_prompt[:_PROMPT_CHARS], shorten(edit.target_prompt, _PROMPT_CHARS)
    )


def need(rule: Rule) -> str:
    """What a rule requires, such as "≥ 0.5"."""
    return f"{'≥' if rule.at_least is not None else '≤'} {score_text(bound_of(rule))}"


def ruled_scores(edit: Edit) -> list[RuledScore]:
    """The scores that the rules of the edit's type use, in the order of the rules."""
    return [
        RuledScore(rule.score, value, need(rule), rule.broken_by(value))
        for rule in edit.rules
        if (value := edit.scores.get(rule.score)) is not None
    ]


def other_scores(edit: Edit) -> Sequence[tuple[str, float]]:
    looked_at = {rule.score for rule in edit.rules}
    return [item for item in edit.scores.items() if item[0] not in looked_at]


def pair_scores(tile: PairTile) -> list[PairScore]:
    if tile.a is None or tile.b is None:
        return []
    return [
        PairScore(name, value, tile.b.scores[name])
        for name, value in tile.a.scores.items()
        if name in tile.b.scores
    ]
