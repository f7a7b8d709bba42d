"""No step waits for the device, and the shared prefix is shared where that pays."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fpe_core import Checkpoint, Editor, EditParameters, LayersByTokens
from fpe_core.agreement import LATENT_TOLERANCE, latent_distance
from fpe_core.unet import shared_prefix
from fpe_core.unet.shared_prefix import sharing_pays

PARAMETERS = EditParameters(
    steps=3, replaced_fraction=0.7, layers=LayersByTokens(16), width_px=64, height_px=64
)


def latents_of(
    editor: Editor, photos: Sequence[Image.Image], targets: Sequence[Sequence[str]]
) -> Tensor:
    inversion = editor.invert(photos, ["a cat"] * len(photos), PARAMETERS)
    result = editor.edit(inversion, targets)
    return torch.stack([edit.latent for edits in result.edits for edit in edits])


class _Watched(TorchDispatchMode):
    """Remembers the operations from the first pass through the UNet on."""

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


@pytest.mark.parametrize(("slower", "shares"), [("shared", False), ("apart", True)])
def test_a_prefix_that_is_no_faster_shared_is_not_shared(
    tiny: Checkpoint,
    photos: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    slower: str,
    shares: bool,
) -> None:
    """Which is faster is said here; that the edits are the same is not."""
    editor, clock = Editor(tiny, measures=True), [0.0]

    def pass_time(*_: object) -> None:
        clock[0] += 2.0 if editor.unet.shares_prefix == (slower == "shared") else 1.0

    expected = latents_of(Editor(tiny), photos[:1], [["a dog"]])
    handle = editor.unet.register_forward_hook(pass_time)
    with monkeypatch.context() as patched:
        patched.setattr(shared_prefix.time, "perf_counter", lambda: clock[0])
        assert sharing_pays(editor.unet, 8, 8, 77) == shares
        assert editor.unet.shares_prefix
    handle.remove()
    monkeypatch.setattr("fpe_core.editor.sharing_pays", lambda *_: shares)
    made = latents_of(editor, photos[:1], [["a dog"]])
    assert editor.unet.shares_prefix == shares
    assert latent_distance(made, expected) <= LATENT_TOLERANCE[made.dtype]
