"""768 x 512 px, and XL at a size of its buckets, where explicit maps take seconds each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fpe_core import Checkpoint, load_checkpoint
from tests.builders.tiny_checkpoint import build_tiny_xl
from tests.fpe_core.editors.cases import Case, check_exact
from tests.fpe_core.editors.test_inside import EDITORS, bound
from tests.fpe_core.editors.test_stable_diffusion_xl import fpe as fpe_of_xl

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


def test_edits_of_xl_at_a_size_of_its_buckets_equal_the_reference(tmp_path: Path) -> None:
    """In float32 seventy layers are 2.8e-4 apart by rounding; a mistake is 2e-2."""
    xl = load_checkpoint(build_tiny_xl(tmp_path), device="cpu")
    check_exact(xl, one_edit(fpe_of_xl((1152, 896))), max_rows=4, sources=[1], tolerance=1e-3)
