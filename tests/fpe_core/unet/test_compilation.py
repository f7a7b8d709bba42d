"""Whole passes compiled for a few fixed shapes: how many graphs there are, and the same edits.

"eager" is torch's backend that traces the graphs and compiles nothing: what would be compiled, how
often, and with which result is the same.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from fpe_core import Checkpoint, Editor, EditParameters, LayersByTokens, ParameterError
from fpe_core.agreement import LATENT_TOLERANCE, latent_distance
from fpe_core.unet import shared_prefix
from fpe_core.unet.compilation import FixedShapes
from fpe_core.unet.rows import Chunk, UNetRows
from fpe_core.unet.shared_prefix import sharing_pays

PARAMETERS = EditParameters(
    steps=3, replaced_fraction=0.7, layers=LayersByTokens(16), width_px=64, height_px=64
)
CPU = torch.device("cpu")
MOST = 1000


@pytest.fixture(autouse=True)
def no_trace_log() -> None:
    """torch logs all that it traces where a handler is, and pytest's is one: it takes longer than
    tracing."""
    logging.getLogger("torch.__trace").disabled = True


@pytest.fixture
def short(tiny: Checkpoint) -> Checkpoint:
    """With a UNet of two levels: tracing takes as long as a UNet is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        )
    return dataclasses.replace(tiny, unet=unet.requires_grad_(False).eval())


def latents_of(
    editor: Editor, photos: Sequence[Image.Image], targets: Sequence[Sequence[str]]
) -> Tensor:
    inversion = editor.invert(photos, ["a cat"] * len(photos), PARAMETERS)
    result = editor.edit(inversion, targets)
    return torch.stack([edit.latent for edits in result.edits for edit in edits])


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def test_one_graph_for_each_kind_of_step_whatever_is_edited(
    short: Checkpoint, photos: list[Image.Image]
) -> None:
    """Steps of inversion, that record, that replace and that do neither; encoder and decoder.

    A smaller call with other prompts is filled up, and no graph has a break.
    """
    torch._dynamo.reset()
    compiled, eager = Editor(short, compiler="eager"), Editor(short)
    calls: list[int] = []
    compiled.unet.register_forward_hook(lambda _unet, inputs, _output: calls.append(len(inputs)))
    before = graphs()
    targets = [["a dog", "snow"], ["a red cat", "the car"], ["the blue car", "a dog"]]
    made = latents_of(compiled, photos, targets)
    assert graphs() - before == 6
    assert not counters["graph_break"]
    assert latent_distance(made, latents_of(eager, photos, targets)) <= LATENT_TOLERANCE[made.dtype]
    steps, replaced = PARAMETERS.steps, PARAMETERS.replaced_steps
    passes = 2 * steps + replaced
    assert len(calls) == passes, "those who watch see every pass"

    fewer = [["photo of the red dog"], ["green snow", "a cat"]]
    made = latents_of(compiled, photos[:2], fewer)
    assert graphs() - before == 6, "another batch was compiled for"
    expected = latents_of(eager, photos[:2], fewer)
    assert latent_distance(made, expected) <= LATENT_TOLERANCE[made.dtype]
    assert len(calls) == 2 * passes


def test_synthetic_sources_and_rows_in_chunks_are_the_same_compiled(short: Checkpoint) -> None:
    made = []
    torch._dynamo.reset()
    for editor in (Editor(short, max_rows=4), Editor(short, max_rows=4, compiler="eager")):
        sources = editor.synthesise(["a cat", "snow"], [1, 2], PARAMETERS)
        result = editor.edit(sources, [["a dog", "the car"], ["a red cat"]])
        made.append(torch.stack([edit.latent for edits in result.edits for edit in edits]))
    assert latent_distance(made[1], made[0]) <= LATENT_TOLERANCE[made[0].dtype]


def test_a_compiler_that_torch_does_not_have_is_refused(tiny: Checkpoint) -> None:
    with pytest.raises(ParameterError, match="no backend 'gcc'; allowed: aot_eager"):
        Editor(tiny, compiler="gcc")


def test_a_call_takes_the_least_shape_that_is_large_enough() -> None:
    shapes = FixedShapes()
    assert shapes.choose("plain", (4, 4, 8), MOST) == (4, 4, 8)
    assert shapes.choose("plain", (3, 3, 6), MOST) == (4, 4, 8)
    assert shapes.choose("plain", (6, 4, 8), MOST) == (6, 4, 8), "nothing holds it"
    assert shapes.choose("plain", (4, 4, 7), MOST) == (4, 4, 8)
    assert shapes.choose("plain", (4, 0, 8), MOST) == (4, 0, 8), "no rows stay no rows"
    assert shapes.choose("replacing", (1, 1, 1), MOST) == (1, 1, 1), "of another kind"


def test_a_shape_that_fits_badly_is_used_until_one_of_its_own_pays() -> None:
    shapes = FixedShapes()
    shapes.choose("plain", (12,), MOST)
    asked = [shapes.choose("plain", (2,), MOST) for _ in range(101)]
    assert asked == [(12,)] * 100 + [(2,)]
    assert shapes.choose("plain", (1,), MOST) == (2,)


def test_a_shape_that_memory_has_no_room_for_any_more_is_left_alone() -> None:
    shapes = FixedShapes()
    assert shapes.choose("plain", (64,), 64) == (64,)
    assert shapes.choose("plain", (32,), 32) == (32,)
    assert shapes.choose("plain", (31,), 32) == (32,)


def test_out_of_memory_goes_on_with_fewer_rows_compiled_too(
    short: Checkpoint, photos: list[Image.Image]
) -> None:
    """Not with fewer that are filled up to as many again."""
    torch._dynamo.reset()
    expected = Editor(short).invert(photos, None, PARAMETERS).trajectory
    editor = Editor(short, compiler="eager")

    def refuse_more_than_two(_unet: object, inputs: tuple[Chunk, ...]) -> None:
        if len(inputs[0].prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (on purpose)")

    editor.unet.register_forward_pre_hook(refuse_more_than_two)
    made = editor.invert(photos, None, PARAMETERS).trajectory
    assert latent_distance(made, expected) <= LATENT_TOLERANCE[made.dtype]


def test_shapes_are_bounded() -> None:
    shapes = FixedShapes()
    assert [shapes.choose("plain", (2**n,), MOST) for n in range(8)] == [(2**n,) for n in range(8)]
    assert shapes.choose("plain", (2**8,), MOST) is None
    assert shapes.choose("plain", (70,), MOST) == (128,)


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 4, 2), (2, 2, 5), (4, 3, 3)])
def test_rows_that_fill_up_are_copies_and_left_out_again(shape: tuple[int, int, int]) -> None:
    chunk = UNetRows((0, 1, 0, 1), (7, 7, 8, 9), 2, 7.5, CPU).chunk(0, 4)
    filled = chunk.filled_up(*shape)
    assert filled.shape == shape
    assert filled.is_fitted
    assert chunk.filled_up(*shape) is filled

    def rows(of) -> list[tuple[int, int]]:
        latents = of.latents[of.latent_of_row].tolist()
        return list(zip(latents, of.prompts.tolist(), strict=True))

    wanted = range(4) if filled.wanted is None else filled.wanted.tolist()
    assert [rows(filled)[row] for row in wanted] == rows(chunk)
    assert set(rows(filled)) == set(rows(chunk))
    unconditional = filled.first_conditional
    assert filled.conditional_items.tolist() == [item for item, _ in rows(filled)[unconditional:]]


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
