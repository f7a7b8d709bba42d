"""The parts of CUDA graphs that need no GPU; tests/gpu has the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from fpe_core import Checkpoint, Editor, EditParameters, LayersByTokens
from fpe_core.inversion import Sources
from fpe_core.unet.call import UNetCall
from fpe_core.unet.cuda_graphs import CudaGraphs

PARAMETERS = EditParameters(
    steps=3, replaced_fraction=0.7, layers=LayersByTokens(16), width_px=64, height_px=64
)


class FromCopies(CudaGraphs):
    """Does what a replay does: every pass works on copies, and what it gives is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: Counter[Hashable] = Counter()
        self._kept: dict[Hashable, tuple[Tensor, ...]] = {}

    def run(
        self,
        kind: Hashable,
        function: Callable[[Sequence[Tensor]], tuple[Tensor, ...]],
        inputs: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        key = kind, tuple((each.shape, each.dtype) for each in inputs)
        self.kinds[key] += 1
        kept = self._kept.setdefault(key, tuple(torch.empty_like(each) for each in inputs))
        for into, each in zip(kept, inputs, strict=True):
            into.copy_(each)
        return tuple(output.clone() for output in function(kept))


@pytest.mark.parametrize("synthetic", [False, True])
def test_a_pass_is_a_function_of_its_tensors_and_its_kind(
    tiny: Checkpoint,
    photos: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    synthetic: bool,
) -> None:
    """A graph's inputs are overwritten by each later pass of its kind and shapes."""

    def latents_of(editor: Editor) -> list[Tensor]:
        prompts = ["a cat", "snow", "the car"]
        sources: Sources
        if synthetic:
            sources = editor.synthesise(prompts, [1, 2, 3], PARAMETERS)
        else:
            sources = editor.invert(photos, prompts, PARAMETERS)
        result = editor.edit(sources, [["a dog", "snow"], ["a red cat"], ["the blue car"]])
        return [edit.latent for edits in result.edits for edit in edits]

    expected = latents_of(Editor(tiny))
    editor, graphs = Editor(tiny), FromCopies()
    editor.unet.graphs = graphs
    monkeypatch.setattr(UNetCall, "_can_capture", staticmethod(lambda _: True))
    for one, other in zip(latents_of(editor), expected, strict=True):
        assert torch.equal(one, other)
    assert max(graphs.kinds.values()) >= 2, "no pass came twice"
    assert len(graphs.kinds) < sum(graphs.kinds.values())


def twice(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (2 * inputs[0],)


def too_large(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    raise torch.OutOfMemoryError("on purpose")


def test_memory_that_runs_out_is_told_and_ends_the_graphs() -> None:
    """They keep memory that is needed now."""
    graphs, value = CudaGraphs(), torch.ones(3)
    assert torch.equal(graphs.run("twice", twice, [value])[0], 2 * value)
    assert graphs.captures
    with pytest.raises(torch.OutOfMemoryError, match="on purpose"):
        graphs.run("too large", too_large, [value])
    assert not graphs.captures
    for _ in range(5):  # without it, the second would be timed by the device's events
        assert torch.equal(graphs.run("twice", twice, [value])[0], 2 * value)
