"""What an edit does not compute: counted at the modules of the UNet, as rows that reach them.

That the pictures are the same all the same is held by test_against_reference.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from fpe_core import Checkpoint, Editor, EditParameters, LayersByTokens
from fpe_core.attention import select_layers, self_attention_layers

PARAMETERS = EditParameters(
    steps=3, replaced_fraction=0.7, layers=LayersByTokens(16), width_px=64, height_px=64
)
T, R = PARAMETERS.steps, PARAMETERS.replaced_steps
TARGETS = ["a dog", "snow"]
N = len(TARGETS)


@contextmanager
def rows_through(unet: torch.nn.Module, names: Sequence[str]) -> Iterator[dict[str, int]]:
    """Rows that come out of the named modules, none of them known to the editor."""
    rows = dict.fromkeys(names, 0)

    def counter(name: str):
        def count(_module, _inputs, output) -> None:
            rows[name] += len(output)

        return count

    handles = [unet.get_submodule(name).register_forward_hook(counter(name)) for name in names]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def replaced_layers(checkpoint: Checkpoint) -> list[str]:
    """Module names of the replaced self-attention layers, in order of execution."""
    layers = select_layers(self_attention_layers(checkpoint.unet, 8, 8), PARAMETERS.layers)
    return [layer.processor_name.removesuffix(".processor") for layer in layers]


@pytest.mark.parametrize("max_rows", [64, 2])
def test_a_real_source_s_row_ends_in_the_last_replaced_layer(
    tiny: Checkpoint, photos: list[Image.Image], max_rows: int
) -> None:
    assert R == 2
    editor = Editor(tiny, max_rows=max_rows)
    inversion = editor.invert(photos, None, PARAMETERS)
    first, *_, last = replaced_layers(tiny)
    block = last.rpartition(".")[0]
    reached = [f"{first}.to_q", f"{first}.to_v", f"{last}.to_q", f"{last}.to_k"]
    not_reached = [f"{last}.to_v", f"{last}.to_out.0", f"{block}.attn2", f"{block}.ff", "conv_out"]
    with rows_through(tiny.unet, [*reached, *not_reached]) as rows:
        editor.edit(inversion, [TARGETS] * 3)
    sources, targets, replaced = 3 * R, 3 * 2 * T * N, 3 * R * N
    assert rows[f"{first}.to_v"] == sources + targets
    for name in (f"{first}.to_q", f"{last}.to_q", f"{last}.to_k"):
        assert rows[name] == sources + targets - replaced, "replaced rows take the source's"
    assert {rows[name] for name in not_reached} == {targets}
