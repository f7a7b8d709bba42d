"""The tree of errors."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from pipeline import errors
from pipeline.errors import ManifestError, PipelineError, RowError, UserError
from pipeline.ledger.outcome import FailureCode

CLASSES = {
    name: value
    for name, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, PipelineError)
}


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = set(re.findall(r"\b[A-Z]\w*Error\b|\bInterrupted\b", errors.__doc__ or ""))
    assert drawn == set(CLASSES)


def test_every_error_is_either_a_users_or_a_rows() -> None:
    leaves = set(CLASSES.values()) - {PipelineError, UserError, RowError}
    assert all(issubclass(c, UserError) != issubclass(c, RowError) for c in leaves)


@pytest.mark.parametrize(
    "kind", [c for c in CLASSES.values() if issubclass(c, RowError) and c is not RowError]
)
def test_every_row_error_has_a_failure_code(kind: type[RowError]) -> None:
    assert FailureCode(kind.code) == kind.code


def test_a_manifest_error_shows_a_page_and_the_total() -> None:
    error = ManifestError("wrong:", ["row 1: a", "row 2: b"], total=7)
    assert str(error) == "wrong:\n  row 1: a\n  row 2: b\n  ... and 5 more"
    assert (error.problems, error.total) == (("row 1: a", "row 2: b"), 7)
    assert str(ManifestError("wrong:", ["row 1: a"])) == "wrong:\n  row 1: a"


@pytest.mark.parametrize("error", [ManifestError("h", ["p"], total=3), errors.JobError("x")])
def test_errors_cross_processes(error: PipelineError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
