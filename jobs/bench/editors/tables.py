"""What `fpe bench editors` prints: every method, every type of edit, every candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from fpe_core import EditParameters
from fpe_core.still_life.scene import FACTORS
from jobs.bench.editors.compare import BOUND, TUNED, Tuning
from jobs.bench.editors.figures import MethodFigures, Rows, best_of_type, figures_of, made_of
from jobs.terminal.texts import or_dash
from jobs.terminal.titled_table import titled_table

NOT_APPLICABLE = "n/a"
BEST, AS_GOOD = "*", "~"
MARKS_LINE = (
    f"{BEST} the best of the type of edit; {AS_GOOD} so close that the difference may be chance; "
    f"{NOT_APPLICABLE} the method cannot make these edits"
)

_OF_A_REGION = tuple(factor for factor in FACTORS if factor != "style")
"""Types of edit that change a part of the image, which a mask can mark."""


def method_table(rows: Rows, column: str) -> Table:
    """A row per method: means over the types of edit, the number of edits, and what one costs."""
    table = titled_table(
        f"All types of edit, {column}",
        ("method", "edits", "success", "struct.", "score", "PSNR", "stays", "rows", "s"),
    )
    for method, own in _by_method(rows, column).items():
        figures = figures_of(own)
        if figures is None:
            table.add_row(method, f"0 of {len(own)}", *[NOT_APPLICABLE] * 7)
            continue
        table.add_row(
            method,
            f"{figures.made} of {figures.asked}",
            f"{figures.success:.2f}",
            f"{figures.structure:.2f}",
            f"{figures.score:.3f}",
            f"{figures.psnr_db:.1f}",
            or_dash(figures.kept_psnr_db, ".1f"),
            f"{figures.unet_rows:.1f}",
            f"{figures.seconds:.2f}",
        )
    return table


def type_table(rows: Rows, column: str) -> Table:
    """The score of every method by type of edit, the best of each type marked."""
    table = titled_table(f"Score by type of edit, {column}", ("method", *FACTORS))
    by_method = _by_method(rows, column)
    of_column = [row for own in by_method.values() for row in own]
    best = {factor: best_of_type(of_column, factor) for factor in FACTORS}
    for method, own in by_method.items():
        cells = []
        for factor in FACTORS:
            figures = figures_of([row for row in own if row["factor"] == factor])
            score = NOT_APPLICABLE if figures is None else f"{figures.score:.2f}"
            first, others = best[factor]
            mark = BEST if method == first else AS_GOOD if method in others else ""
            cells.append(score + mark)
        table.add_row(method, *cells)
    return table


def bound_table(rows: Rows) -> Table:
    """What masks that bind change: success by type without and with them, and of what stays the
    PSNR, over the edits that a method makes both ways.
    """
    table = titled_table(
        "Success, tuned: free, and inside masks", ("method", *_OF_A_REGION, "all", "stays, dB")
    )
    free, bound = _by_method(rows, TUNED), _by_method(rows, BOUND)
    for method, own in bound.items():
        made = {(row["seed"], row["factor"]) for row in made_of(own)}
        made &= {(row["seed"], row["factor"]) for row in made_of(free[method])}
        both = [
            [row for row in each if (row["seed"], row["factor"]) in made]
            for each in (free[method], own)
        ]
        cells = []
        for factor in (*_OF_A_REGION, None):
            of_type = [
                figures_of([row for row in each if factor in (None, row["factor"])])
                for each in both
            ]
            cells.append(_pair(of_type, "success", ".2f"))
            if factor is None:
                cells.append(_pair(of_type, "kept_psnr_db", ".1f"))
        table.add_row(method, *cells)
    return table


def _pair(figures: Sequence[MethodFigures | None], name: str, form: str) -> str:
    """A figure of two sets of edits."""
    return ", ".join(
        or_dash(None if each is None else getattr(each, name), form) for each in figures
    )


def tuning_table(tunings: Sequence[Tuning]) -> Table:
    """Every candidate of every method with its score on validation scenes, the chosen one marked.

    The first one has all parameters of its method, the others those that differ from it.
    """
    table = titled_table("Candidates on validation scenes", ("method", "setting", "score"), texts=2)
    for each in tunings:
        first: dict[str, str] = {}
        for parameters, score in zip(each.candidates, each.scores, strict=True):
            mark = BEST if parameters == each.chosen else ""
            shown = _shown(parameters)
            text = ", ".join(f"{n} {own}" for n, own in shown.items() if first.get(n) != own)
            table.add_row(each.compared.name, text, f"{score:.3f}{mark}")
            first = first or shown
        table.add_section()
    return table


def _by_method(rows: Rows, column: str) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of one column, by method, in their order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["column"] == column:
            found.setdefault(row["method"], []).append(row)
    return found


_OF_INVERSION = ("inversion", "skipped_fraction", "source_guidance_scale", "proximal")
"""Written only where they are used (`EditParameters.to_dict`)."""


def _shown(parameters: EditParameters) -> dict[str, str]:
    """The guidance scale, the inversion and the method's parameters, as short texts by name; empty
    lists are left out."""
    of_method = parameters.method.to_dict()
    del of_method["name"]
    written = parameters.to_dict()
    of_inversion = {name: written[name] for name in _OF_INVERSION if name in written}
    shown = {"guidance_scale": float(parameters.guidance_scale), **of_inversion, **of_method}
    return {name: _value(own) for name, own in shown.items() if own != []}


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {own}" for name, own in value.items())
    if isinstance(value, list):
        return "-".join(f"{each:g}" for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
