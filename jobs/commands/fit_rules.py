"""Fits a judge's thresholds to edits that a person has judged, and reports how well they do.

The wanted precision is meant for other edits than these; `fpe_core.judging.calibration` describes
how the aim on these edits is chosen for that.
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
"""Precisions for which the table shows what recall is left."""


def fit(judged: Judgements, precision: float, recall: float) -> dict[str, Fitted]:
    """Rules for every type of edit in the table. Raises JobError if they cannot be fitted."""
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
    """The rules as YAML, as a job file has them under `judge.rules`."""
    return str(yaml.safe_dump({"judge": {"rules": rules.to_dict()}}, sort_keys=False))


def fitted_table(fitted: Mapping[str, Fitted], title: str) -> Table:
    """The chosen rules by type of edit: their aim, and precision and recall on held-out edits."""
    headings = ("edits of", "judged", "aimed at", "precision", "surely", "recall", "surely")
    table = titled_table(title, headings)
    for edit_type, each in fitted.items():
        precision, recall = _shares(each.held_out)
        surely = (f"{each.sure_precision:.3f}", f"{each.sure_recall:.3f}")
        counts = (str(each.own.edits), f"{each.aim:.3f}")
        table.add_row(edit_type, *counts, precision, surely[0], recall, surely[1])
    return table


def quality_table(rules: Rules, judged: Judgements, title: str) -> Table:
    """Precision and recall of rules on judged edits, by type of edit."""
    headings = ("edits of", "judged", "good", "accepted", "precision", "recall")
    table = titled_table(title, headings)
    for edit_type, edits in judged.items():
        found = quality_of(rules.of(edit_type), edits)
        counts = (str(found.edits), str(found.good), str(found.accepted))
        table.add_row(edit_type, *counts, *_shares(found))
    return table


def curve_table(judged: Judgements) -> Table:
    """Precision and recall for each aim, on the edits that were fitted to and on held-out ones."""
    held_out = ("held-out precision", "held-out recall")
    table = titled_table("Curve", ("edits of", "aimed at", "precision", "recall", *held_out))
    for edit_type, edits in judged.items():
        for each in fit_for(edits, CURVE):
            shares = (*_shares(each.own), *_shares(each.held_out))
            table.add_row(edit_type, f"{each.aim:.2f}", *shares)
    return table


def _shares(quality: Quality) -> Sequence[str]:
    """Precision and recall; "-" if there is nothing to take the share of."""
    return [or_dash(share, ".3f") for share in (quality.precision, quality.recall)]
