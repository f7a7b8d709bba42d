"""No step waits for the device."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from fpe_core import Checkpoint, Editor, EditParameters, LayersByTokens

PARAMETERS = EditParameters(
    steps=3, replaced_fraction=0.7, layers=LayersByTokens(16), width_px=64, height_px=64
)


class _Watched(TorchDispatchMode):
    """Records the operations from the first pass through the UNet on."""

    def __init__(self) -> None:
        super().__init__()
        self.is_on = False
        self.seen: set[str] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if self.is_on:
            self.seen.add(operation.overloadpacket.__name__)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("max_rows", [64, 3])
def test_no_step_waits_for_the_device(
    tiny: Checkpoint, photos: list[Image.Image], max_rows: int
) -> None:
    """Neither a value is read back nor a Python one brought there between the first pass and the
    last: `item`, `tolist`, `nonzero`, masks of unknown size, `torch.tensor`."""
    editor = Editor(tiny, max_rows=max_rows)
    watched = _Watched()

    def begin(*_: object) -> None:
        watched.is_on = True

    def end(*_: object) -> None:
        watched.is_on = False

    editor.unet.register_forward_pre_hook(begin)
    editor.autoencoder.decoder.register_forward_pre_hook(end)
    waiting = {"item", "nonzero", "masked_select", "lift_fresh", "is_nonzero"}
    inversion = editor.invert(photos, ["a cat", "", "snow"], PARAMETERS)
    watched.is_on = False
    with watched:
        editor.edit(inversion, [["a dog", "snow"], ["snow"], ["a red cat"]])
    assert {"conv2d", "index"} <= watched.seen
    assert not watched.seen & waiting
    begin()
    with watched, torch.inference_mode():
        torch.tensor([1.0]).nonzero().item()
    assert watched.seen & waiting == {"lift_fresh", "nonzero", "item"}
