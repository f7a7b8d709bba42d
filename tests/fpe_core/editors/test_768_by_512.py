"""768 x 512 px, where the explicit maps of the naive reference take seconds each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fpe_core import Checkpoint
from tests.fpe_core.editors.cases import Case, check_exact
from tests.fpe_core.editors.test_inside import EDITORS, bound

pytestmark = [pytest.mark.endurance, pytest.mark.soak]
SIZE = (768, 512)


def one_edit(case: Case) -> Case:
    """The case with the first edit of its second source alone."""
    targets = [[], [case.targets[1][0]], []]
    inputs = None if case.inputs is None else [[], [case.inputs[1][0]], []]
    return replace(case, targets=targets, inputs=inputs)


@pytest.mark.parametrize("name", ["fpe", "p2p", "pnp", "masactrl"])
def test_edits_equal_the_reference(tiny: Checkpoint, name: str) -> None:
    check_exact(tiny, one_edit(EDITORS[name](SIZE)), max_rows=4, sources=[1])


def test_an_edit_in_a_mask_that_binds_equals_the_reference(tiny: Checkpoint) -> None:
    check_exact(tiny, one_edit(bound(EDITORS["fpe"](SIZE))), max_rows=4, sources=[1])
