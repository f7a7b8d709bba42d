"""What the tests of all editors share: sources, prompts, sizes, and what must hold of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fpe_core import (
    Checkpoint,
    EditInputs,
    EditMethod,
    Editor,
    EditParameters,
    EditResult,
    Inside,
    Inversion,
    row_counts,
)
from fpe_core.agreement import LATENT_TOLERANCE, latent_distance
from tests.fpe_core.editors.naive import Naive, counted_rows

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-10}
STEPS = 6
SOURCES = ["photo of the red cat", "the dog in snow", "a blue car"]
TARGETS = [
    ["photo of the green cat"],
    ["the cat in snow", "a red dog in green snow"],
    ["a red car"],
]
SQUARE, WIDE = (64, 64), (192, 128)
"""Widths and heights: square, and 3 : 2 as 768 x 512."""

OneEdit = Callable[[Naive, Tensor, int, int], Tensor]
"""(reference, z_0, source, edit of the source) to the edit's latent."""


def photos(count: int, size: tuple[int, int]) -> list[Image.Image]:
    width, height = size
    y, x = np.mgrid[0:height, 0:width] / height
    planes = [
        [128 + 127 * np.sin(6 * x * (i + 1)), 255 * np.clip(y, 0, 1), 85 * np.abs(x - y) ** (i + 1)]
        for i in range(count)
    ]
    return [Image.fromarray(np.stack(each, -1).clip(0, 255).astype(np.uint8)) for each in planes]


def masks(size: tuple[int, int]) -> list[np.ndarray]:
    """Three different masks of the edit's size."""
    width, height = size
    made = [np.zeros((height, width), bool) for _ in range(3)]
    made[0][: height // 2, : width // 2] = True
    made[1][height // 4 :, width // 8 : width // 2] = True
    made[2][3, :] = True  # one row of pixels: a row of latent positions
    return made


@dataclass(frozen=True)
class Case:
    """A method with prompts, inputs and the reference that its edits must equal.

    Attributes:
        inputs: per source and edit; None: none.
        expected: the same edit by the naive reference.
        others: further parameters, such as of an inversion.
    """

    method: EditMethod
    expected: OneEdit
    inputs: Sequence[Sequence[EditInputs]] | None = None
    sources: Sequence[str] = tuple(SOURCES)
    targets: Sequence[Sequence[str]] = tuple(map(tuple, TARGETS))
    size: tuple[int, int] = SQUARE
    negative: str = ""
    inversion: str = "direct"
    inside: Inside | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> EditParameters:
        return EditParameters(
            steps=STEPS,
            negative_prompt=self.negative,
            width_px=self.size[0],
            height_px=self.size[1],
            inversion=self.inversion,
            inside=self.inside,
            **self.others,
        ).edited_by(self.method)

    @property
    def all_inputs(self) -> list[list[EditInputs]]:
        if self.inputs is not None:
            return [list(each) for each in self.inputs]
        return [[EditInputs() for _ in prompts] for prompts in self.targets]

    def invert(self, editor: Editor, chosen: Sequence[int] | None = None) -> Inversion:
        chosen = range(len(self.sources)) if chosen is None else chosen
        pictures = photos(len(self.sources), self.size)
        return editor.invert(
            [pictures[s] for s in chosen], [self.sources[s] for s in chosen], self.parameters
        )

    def make(
        self, checkpoint: Checkpoint, pairs: Sequence[tuple[int, Sequence[int]]], max_rows: int = 64
    ) -> EditResult:
        """Edits (source, numbers of its edits), in this order, in one call."""
        editor = Editor(checkpoint, max_rows=max_rows)
        inversion = self.invert(editor, [s for s, _ in pairs])
        return editor.edit(
            inversion,
            [[self.targets[s][n] for n in edits] for s, edits in pairs],
            inputs=[[self.all_inputs[s][n] for n in edits] for s, edits in pairs],
        )


def distance(made: Tensor, expected: Tensor) -> float:
    assert made.isfinite().all()
    assert expected.isfinite().all()
    return float((made.double() - expected.double()).norm() / expected.double().norm())


def check_exact(
    checkpoint: Checkpoint,
    case: Case,
    max_rows: int = 64,
    sources: Sequence[int] = (0, 1, 2),
    tolerance: float | None = None,
) -> EditResult:
    """All edits equal the reference's, with one and several edits of several sources in a call.

    `tolerance`: None: that of the dtype.
    """
    limit = TOLERANCE[checkpoint.dtype] if tolerance is None else tolerance
    result = case.make(checkpoint, [(s, range(len(case.targets[s]))) for s in sources], max_rows)
    start = case.invert(Editor(checkpoint)).trajectory[:, 0]
    for place, s in enumerate(sources):
        for n in range(len(case.targets[s])):
            reference = Naive(checkpoint, STEPS, negative=case.negative)
            expected = case.expected(reference, start[s : s + 1], s, n)[0]
            made = result.edits[place][n]
            off = distance(made.latent, expected)
            assert off <= limit, (s, n, off)
            if reference.mask is not None:
                assert made.mask is not None
                assert torch.equal(made.mask, reference.mask)
    return result


def check_wrong(checkpoint: Checkpoint, case: Case, wrong: str, edit: tuple[int, int]) -> None:
    """A mistake in the procedure is a hundred tolerances off."""
    s, n = edit
    made = case.make(checkpoint, [(s, [n])]).edits[0][0].latent
    start = case.invert(Editor(checkpoint), [s]).trajectory[:, 0]
    reference = Naive(checkpoint, STEPS, negative=case.negative)
    right = case.expected(reference, start, s, n)[0]
    reference = Naive(checkpoint, STEPS, negative=case.negative, wrong=wrong)
    assert distance(made, right) <= TOLERANCE[checkpoint.dtype]
    assert (
        distance(made, case.expected(reference, start, s, n)[0]) >= 100 * TOLERANCE[torch.float32]
    )


def check_rows(checkpoint: Checkpoint, case: Case, edits: int, formula: dict[str, int]) -> None:
    """Rows at the UNet, as reported, by `row_counts` and by the method's formula, of one source."""
    parameters = replace(case.parameters, steps=50)
    editor = Editor(checkpoint)
    targets = ["a red dog in snow", "the cat", "the dog in snow snow", "a car in snow"][:edits]
    if case.inputs is not None:
        targets = [case.targets[0][0]] * edits
    given = [case.all_inputs[0][0]] * edits
    with counted_rows(checkpoint) as calls:
        inversion = editor.invert(photos(1, case.size), [case.sources[0]], parameters)
        result = editor.edit(inversion, [targets], inputs=[given])
    expected = row_counts(parameters, given, source_prompt=case.sources[0])
    assert (inversion.unet_rows, inversion.unet_rows + result.unet_rows) == (
        expected.inversion,
        sum(calls),
    )
    assert expected.total == sum(calls)
    assert sum(calls) == eval(case.method.rows_formula, {"T": 50, "N": edits, **formula})


def check_batches(checkpoint: Checkpoint, case: Case) -> None:
    """An edit is the same alone, among eight in another order, and five rows at a time.

    The eight are of all sources, some of them twice.
    """
    alone = case.make(checkpoint, [(1, [0])], max_rows=1).edits[0][0]
    eight = [(2, [0, 0]), (1, [1, 0]), (0, [0]), (1, [1, 1, 0])]
    for max_rows in (64, 5):
        result = case.make(checkpoint, eight, max_rows)
        for made in (result.edits[1][1], result.edits[3][2]):
            off = latent_distance(made.latent, alone.latent)
            assert off <= LATENT_TOLERANCE[checkpoint.dtype], off
    other = case.make(checkpoint, [(1, [1])]).edits[0][0]
    assert latent_distance(other.latent, alone.latent) > 1e-3
