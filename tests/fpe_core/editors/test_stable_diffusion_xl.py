"""Stable Diffusion XL in miniature: two text encoders, seventy self-attentions, sizes it is told.

All editors that need no weights of their own, against the naive reference; plain sampling against
diffusers' pipeline; what is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from fpe_core import (
    Checkpoint,
    CheckpointError,
    DdimEditing,
    EditInputs,
    Editor,
    EditParameters,
    LayersByLevel,
    LayersByRange,
    ParameterError,
    checkpoint_defaults,
    checkpoint_fingerprint,
    load_checkpoint,
)
from fpe_core.checkpoint.check import check_files, check_parameters
from fpe_core.checkpoint.files import locate
from fpe_core.editors.pix2pix_zero import Pix2PixZero
from fpe_core.editors.shape_guided import ShapeGuided
from fpe_core.layer_rules import LayersByPart
from fpe_core.noise_levels import training_levels
from fpe_core.schedule import seeded_noise
from fpe_core.unet import check as unet_check
from fpe_core.unet.attention import self_attention_layers
from tests.builders.tiny_checkpoint import build_tiny_xl
from tests.fpe_core.editors import (
    test_edit_friendly,
    test_instruct_pix2pix,
    test_masked_editors,
    test_p2p,
    test_pnp_and_masactrl,
    test_simple_editors,
)
from tests.fpe_core.editors.cases import (
    SQUARE,
    STEPS,
    TOLERANCE,
    WIDE,
    Case,
    check_batches,
    check_exact,
    check_rows,
    check_wrong,
    distance,
    photos,
)
from tests.fpe_core.editors.naive import Naive

ODD = (72, 56)
"""Latents of 9 x 7, which no level halves evenly."""
UP = LayersByPart("up", first=11)
"""Layers 45-70."""


def fpe(size=SQUARE, **changes: Any) -> Case:
    return test_simple_editors.fpe(size, layers=LayersByLevel(4), **changes)


EDITORS: dict[str, Callable[[], Case]] = {
    "fpe": fpe,
    "fpe, negative prompt": lambda: fpe(inversion="negative_prompt"),
    "ddim": test_simple_editors.ddim,
    "sdedit": test_simple_editors.sdedit,
    "p2p": lambda: test_p2p.p2p(layers=LayersByLevel(4)),
    "p2p, words": lambda: test_p2p.blended(layers=LayersByLevel(4)),
    "pnp": lambda: test_pnp_and_masactrl.pnp(
        layers=UP, residual_layers=LayersByPart("up", first=11, last=11)
    ),
    "masactrl": lambda: test_pnp_and_masactrl.masactrl(layers=UP),
    "masactrl, union": lambda: test_pnp_and_masactrl.masactrl(layers=UP, keys="appended"),
    "diffedit": test_masked_editors.diffedit,
    "blended": test_masked_editors.blended,
    "edit friendly": test_edit_friendly.ddim,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def xl(folder: Path) -> Checkpoint:
    return load_checkpoint(folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def xl_float64(folder: Path) -> Checkpoint:
    return load_checkpoint(folder, device="cpu", dtype=torch.float64)


@pytest.mark.parametrize("name", EDITORS)
def test_edits_equal_the_reference(xl_float64: Checkpoint, name: str) -> None:
    check_exact(xl_float64, EDITORS[name](), sources=(0, 1, 2) if name == "fpe" else (1,))


@pytest.mark.parametrize("size", [SQUARE, WIDE, ODD])
def test_edits_in_float32_equal_the_reference(xl: Checkpoint, size: tuple[int, int]) -> None:
    check_exact(xl, fpe(size), sources=[1])


def test_edits_of_an_odd_size_in_chunks_equal_the_reference(xl_float64: Checkpoint) -> None:
    check_exact(xl_float64, fpe(ODD), max_rows=3)


def test_a_wrong_procedure_is_a_hundred_tolerances_off(xl: Checkpoint) -> None:
    check_wrong(xl, fpe(), "one_step_off", (1, 1))


@pytest.mark.parametrize("name", ["fpe", "p2p, words"])
def test_an_edit_is_the_same_in_any_batch(xl_float64: Checkpoint, name: str) -> None:
    check_batches(xl_float64, EDITORS[name]())


@pytest.mark.parametrize("edits", [1, 3])
def test_rows_are_those_of_stable_diffusion_1(xl: Checkpoint, edits: int) -> None:
    check_rows(xl, fpe(), edits, {"R": 40})


def test_rows_of_a_latent_share_only_what_comes_before_the_prompt(xl: Checkpoint) -> None:
    """The first residual block already sees the pooled prompt."""
    rows: dict[str, list[int]] = {"conv_in": [], "resnet": []}
    unet = xl.unet
    handles = [
        module.register_forward_pre_hook(lambda _m, args, n=name: rows[n].append(len(args[0])))
        for name, module in (("conv_in", unet.conv_in), ("resnet", unet.down_blocks[0].resnets[0]))
    ]
    try:
        fpe().make(xl, [(0, [0])])
    finally:
        for handle in handles:
            handle.remove()
    # The last two of six steps have no row of the source: two rows of one latent.
    assert rows["conv_in"][-2:] == [1, 1]
    assert rows["resnet"][-2:] == [2, 2]


# --- sizes ----------------------------------------------------------------------------------------


def _cut() -> list[Image.Image]:
    """Pictures of two sizes, which are both scaled and cut to 64 x 64."""
    noise = torch.rand(2, 3, 48, 120, generator=torch.Generator().manual_seed(1))
    pixels = (noise * 255).byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(pixels[0]), Image.fromarray(pixels[1]).resize((128, 256))]


SIZES = [(48, 120, 0, 48, 64, 64), (256, 128, 32, 0, 64, 64)]
"""Height and width before, what was cut at the top and at the left, height and width after."""


def test_every_picture_is_told_its_own_size_and_crop(xl_float64: Checkpoint) -> None:
    """In one call; also told another size, the edit is another one."""
    case = fpe()
    prompts = ["the cat", "a dog"]
    editor = Editor(xl_float64)
    inversion = editor.invert(_cut(), prompts, case.parameters)
    assert [tuple(each) for each in inversion.sizes] == SIZES
    made = editor.edit(inversion, [["a red cat", "snow"], ["a red cat"]]).edits
    for s, n, target in [(0, 0, "a red cat"), (0, 1, "snow"), (1, 0, "a red cat")]:
        z_0 = inversion.trajectory[s : s + 1, 0]
        naive = Naive(xl_float64, STEPS)
        naive.sizes = SIZES[s]
        expected = naive.fpe(naive.invert(z_0, prompts[s]), prompts[s], target, 4)[0]
        assert distance(made[s][n].latent, expected) <= TOLERANCE[torch.float64]
        other = Naive(xl_float64, STEPS)
        other.sizes = SIZES[1 - s]
        wrong = other.fpe(other.invert(z_0, prompts[s]), prompts[s], target, 4)[0]
        assert distance(made[s][n].latent, wrong) > 100 * TOLERANCE[torch.float32]


def test_a_padded_picture_was_not_cut(xl: Checkpoint) -> None:
    parameters = fpe().parameters
    inversion = Editor(xl).invert(_cut(), None, parameters, fit="pad")
    assert [each[:4] for each in inversion.sizes] == [(48, 120, 0, 0), (256, 128, 0, 0)]


# --- plain sampling -------------------------------------------------------------------------------


@pytest.mark.parametrize("negative", ["a car", ""])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str
)
def test_plain_sampling_is_diffusers_pipeline(
    folder: Path, dtype: torch.dtype, tolerance: float, negative: str
) -> None:
    """From the same noise; without a negative prompt its embedding is zero in both."""
    checkpoint = load_checkpoint(folder, device="cpu", dtype=dtype)
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, dtype=dtype, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, set_alpha_to_one=False, clip_sample=False
    )
    exact = torch.from_numpy(training_levels(checkpoint.scheduler_config))
    pipeline.scheduler.alphas_cumprod = exact
    pipeline.scheduler.final_alpha_cumprod = exact[0]
    parameters = EditParameters(
        steps=5, guidance_scale=6.0, negative_prompt=negative, width_px=64, height_px=64
    ).edited_by(DdimEditing())
    editor = Editor(checkpoint)
    sources = editor.synthesise(["the cat in snow"], [3], parameters)
    made = editor.edit(sources, [["the cat in snow"]])
    theirs = pipeline(
        "the cat in snow",
        negative_prompt=negative or None,
        num_inference_steps=5,
        guidance_scale=6.0,
        height=64,
        width=64,
        latents=seeded_noise(3, (1, 4, 8, 8)).to(dtype),
        output_type="latent",
    ).images[0]
    assert distance(made.edits[0][0].latent, theirs) <= tolerance


def test_an_empty_prompt_is_zero_only_if_the_checkpoint_says_so(
    folder: Path, xl: Checkpoint, tmp_path: Path
) -> None:
    """Which is also in the fingerprint."""
    embeddings, pooled = xl.text_encoders.encode(["", "a cat"])
    assert pooled is not None
    assert [float(each.abs().max()) for each in (embeddings[0], pooled[0])] == [0, 0]
    assert float(embeddings[1].abs().min()) > 0
    other = shutil.copytree(folder, tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(
        json.dumps({**index, "force_zeros_for_empty_prompt": False})
    )
    embeddings, _ = load_checkpoint(other, device="cpu").text_encoders.encode([""])
    assert float(embeddings.abs().min()) > 0
    assert checkpoint_fingerprint(other) != checkpoint_fingerprint(folder)


# --- instructions ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_xl(tmp_path_factory.mktemp("instruct"), sees_source=True)


def test_instructions_equal_the_reference(instruct: Path) -> None:
    checkpoint = load_checkpoint(instruct, device="cpu", dtype=torch.float64)
    check_exact(checkpoint, test_instruct_pix2pix.case())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
def test_instructions_are_diffusers_pipeline(instruct: Path) -> None:
    """StableDiffusionXLInstructPix2PixPipeline, from the same generator."""
    pipeline = StableDiffusionXLInstructPix2PixPipeline.from_pretrained(
        instruct, add_watermarker=False
    )
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, set_alpha_to_one=False, clip_sample=False
    )
    pipeline.set_progress_bar_config(disable=True)
    checkpoint = load_checkpoint(instruct, device="cpu", dtype=torch.float32)
    parameters = replace(test_instruct_pix2pix.case(SQUARE, "snow").parameters, steps=5)
    editor, pictures = Editor(checkpoint), photos(2, SQUARE)
    inversion = editor.invert(pictures, None, parameters)
    prompts = ["a red dog", "the cat"]
    made = editor.edit(
        inversion,
        [[prompt] for prompt in prompts],
        inputs=[[EditInputs(seed=7)], [EditInputs(seed=8)]],
    )
    for place, prompt in enumerate(prompts):
        theirs = pipeline(
            prompt,
            image=pictures[place],
            negative_prompt="snow",
            num_inference_steps=5,
            guidance_scale=7.5,
            image_guidance_scale=1.5,
            generator=torch.Generator().manual_seed(7 + place),
            output_type="latent",
        ).images[0]
        assert distance(made.edits[place][0].latent, theirs) <= 1e-5


# --- the family -----------------------------------------------------------------------------------


def test_it_has_seventy_layers_at_two_levels(xl: Checkpoint) -> None:
    layers = self_attention_layers(xl.unet, 128, 128)
    tokens = [each.tokens for each in layers]
    assert tokens == [64**2] * 4 + [32**2] * 60 + [64**2] * 6
    assert [each.part for each in layers].count("up") == 36


def test_it_recommends_its_own_layers_and_guidance(folder: Path) -> None:
    defaults = checkpoint_defaults(folder)
    assert (defaults.layers, defaults.guidance_scale) == (LayersByLevel(4), 5.0)


def test_layers_are_counted_over_all_seventy(folder: Path) -> None:
    files = locate(folder, allow_pickle=False, revision=None)
    check_parameters(files, None, EditParameters(layers=LayersByRange(45, 70)))
    with pytest.raises(ParameterError, match="at most 70, the number of self-attention layers"):
        check_parameters(files, None, EditParameters(layers=LayersByRange(45, 71)))


def test_its_autoencoder_stays_in_float32_in_half_precision(folder: Path, tmp_path: Path) -> None:
    half = load_checkpoint(folder, device="cpu", dtype=torch.float16)
    assert (half.unet.dtype, half.vae.dtype) == (torch.float16, torch.float32)
    mended = shutil.copytree(folder, tmp_path / "mended")
    config = json.loads((mended / "vae" / "config.json").read_text())
    (mended / "vae" / "config.json").write_text(json.dumps({**config, "force_upcast": False}))
    assert load_checkpoint(mended, device="cpu", dtype=torch.float16).vae.dtype == torch.float16


def test_another_forward_pass_is_refused_when_it_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        unet_check, "embed_added", lambda _unet, pooled, _sizes: pooled.new_zeros(1)
    )
    with pytest.raises(CheckpointError, match=r"diffusers .* computes this UNet in another way"):
        load_checkpoint(folder, device="cpu")


@pytest.mark.parametrize(
    "parameters",
    [
        EditParameters().edited_by(Pix2PixZero()),
        EditParameters().edited_by(ShapeGuided()),
        EditParameters(inversion="null_text"),
    ],
    ids=["pix2pix_zero", "shape_guided", "null_text"],
)
def test_methods_of_embeddings_are_refused(
    folder: Path, xl: Checkpoint, parameters: EditParameters
) -> None:
    files = locate(folder, allow_pickle=False, revision=None)
    with pytest.raises(ParameterError, match="Stable Diffusion XL"):
        check_parameters(files, None, parameters)
    with pytest.raises(ParameterError, match="Stable Diffusion XL"):
        Editor(xl).invert([], None, parameters)


def _check(folder: Path) -> None:
    files = locate(folder, allow_pickle=False, revision=None)
    check_files(folder, files, allow_pickle=False, config=None)


def _changed(folder: Path, name: str, **changes: object) -> None:
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, **changes}))


def _refiner(folder: Path) -> None:
    _changed(
        folder,
        "model_index.json",
        requires_aesthetics_score=True,
        text_encoder=[None, None],
        tokenizer=[None, None],
    )
    shutil.rmtree(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")


def _turbo(folder: Path) -> None:
    name = "scheduler/scheduler_config.json"
    _changed(
        folder, name, _class_name="EulerAncestralDiscreteScheduler", timestep_spacing="trailing"
    )


def _without(weight: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        path = folder / "text_encoder_2" / "model.safetensors"
        held = load_file(path)
        del held[weight]
        save_file(held, path)

    return remove


def _projected_otherwise(folder: Path) -> None:
    _changed(folder, "text_encoder_2/config.json", projection_dim=21)


def _one_encoder(folder: Path) -> None:
    _changed(folder, "model_index.json", text_encoder_2=[None, None], tokenizer_2=[None, None])


def _cosxl(folder: Path) -> None:
    _changed(folder, "model_index.json", is_cosxl_edit=True)


@pytest.mark.parametrize(
    ("spoil", "name", "message"),
    [
        (_refiner, "base", "it is a refiner"),
        (_turbo, "base", r"model of few steps .*trailing, epsilon"),
        (lambda _folder: None, "my-Lightning-4step", r"its name says 'Lightning'"),
        (lambda _folder: None, "sdxl-lcm", r"its name says 'lcm'"),
        (_without("text_projection.weight"), "base", r"second text encoder lacks 1 of"),
        (_projected_otherwise, "base", "takes 60 numbers beside the timestep"),
        (_one_encoder, "base", "it has no second text encoder"),
        (_cosxl, "base", "CosXL-Edit, whose noise levels"),
    ],
    ids=[
        "refiner",
        "turbo",
        "lightning",
        "lcm",
        "tensor missing",
        "projection",
        "one encoder",
        "cosxl",
    ],
)
def test_what_cannot_be_edited_with_is_refused(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], None], name: str, message: str
) -> None:
    """When it is planned, without torch, and when it is loaded."""
    copy = shutil.copytree(folder, tmp_path / name)
    spoil(copy)
    with pytest.raises(CheckpointError, match=message):
        _check(copy)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(copy, device="cpu")
