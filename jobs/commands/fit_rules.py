"""Thresholds for a job's judge, from edits that somebody has judged, and what they are worth.

A wanted precision is one on other edits: `fpe_core.judging.calibration` says how the aim is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml
from rich.table import Table

from fpe_core import ParameterError
from fpe_core.judging.calibration import Fitted, Quality, fit_for, fit_to_hold, quality_of
from fpe_core.judging.rules import Rules
from jobs.commands.judgements import Judgements
from jobs.terminal.texts import or_dash
from jobs.terminal.titled_table import titled_table
from pipeline.errors import JobError

CURVE = (0.5, 0.8, 0.9, 0.95, 0.97, 0.99, 1.0)
"""Precisions that are aimed at, to see what recall is left."""


def fit(judged: Judgements, precision: float, recall: float) -> dict[str, Fitted]:
    """Rules for every type that was judged. Raises JobError."""
    fitted = {}
    for edit_type, edits in judged.items():
        try:
            fitted[edit_type] = fit_to_hold(edits, precision, recall)
        except ParameterError as error:
            raise JobError(f"edits of {edit_type}: {error}") from error
    return fitted


def rules_of(fitted: Mapping[str, Fitted]) -> Rules:
    return Rules({edit_type: each.rules for edit_type, each in fitted.items()})


def rules_yaml(rules: Rules) -> str:
    """A job file's `judge.rules`."""
    return str(yaml.safe_dump({"judge": {"rules": rules.to_dict()}}, sort_keys=False))


def fitted_table(fitted: Mapping[str, Fitted], title: str) -> Table:
    """The rules chosen: their aim, and what it came to on edits that were held out."""
    headings = ("edits of", "judged", "aimed at", "precision", "surely", "recall", "surely")
    table = titled_table(title, headings)
    for edit_type, each in fitted.items():
        precision, recall = _shares(each.held_out)
        surely = (f"{each.sure_precision:.3f}", f"{each.sure_recall:.3f}")
        counts = (str(each.own.edits), f"{each.aim:.3f}")
        table.add_row(edit_type, *counts, precision, surely[0], recall, surely[1])
    return table


def quality_table(rules: Rules, judged: Judgements, title: str) -> Table:
    """What rules make of judged edits, by type."""
    headings = ("edits of", "judged", "good", "accepted", "precision", "recall")
    table = titled_table(title, headings)
    for edit_type, edits in judged.items():
        found = quality_of(rules.of(edit_type), edits)
        counts = (str(found.edits), str(found.good), str(found.accepted))
        table.add_row(edit_type, *counts, *_shares(found))
    return table


def curve_table(judged: Judgements) -> Table:
    """What precision and recall come of each aim: on the edits fitted to, and on held-out ones."""
    held_out = ("held-out precision", "held-out recall")
    table = titled_table("Curve", ("edits of", "aimed at", "precision", "recall", *held_out))
    for edit_type, edits in judged.items():
        for each in fit_for(edits, CURVE):
            shares = (*_shares(each.own), *_shares(each.held_out))
            table.add_row(edit_type, f"{each.aim:.2f}", *shares)
    return table


def _shares(quality: Quality) -> Sequence[str]:
    """Precision and recall, "-" for a share of nothing."""
    return [or_dash(share, ".3f") for share in (quality.precision, quality.recall)]
