"""instruct_pix2pix: the naive reference, diffusers' pipeline, rows, batches, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
)
from torch import Tensor

from fpe_core import (
    Checkpoint,
    CheckpointError,
    DdimEditing,
    EditInputs,
    Editor,
    EditParameters,
    Inside,
    InstructPix2Pix,
    NotApplicableError,
    ParameterError,
    checkpoint_defaults,
    load_checkpoint,
    row_counts,
)
from fpe_core.checkpoint.check import check_files, check_parameters
from fpe_core.checkpoint.files import locate
from tests.builders.single_file import write_single_file
from tests.builders.tiny_checkpoint import build_tiny_checkpoint
from tests.fpe_core.editors.cases import (
    SQUARE,
    TARGETS,
    WIDE,
    Case,
    check_batches,
    check_exact,
    check_rows,
    check_wrong,
    masks,
    photos,
)
from tests.fpe_core.editors.naive import Naive, counted_rows
from tests.fpe_core.editors.test_masked_editors import of_latent

SEEDS = [[EditInputs(seed=10 * s + n) for n in range(len(each))] for s, each in enumerate(TARGETS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_checkpoint(tmp_path_factory.mktemp("instruct"), sees_source=True)


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Checkpoint:
    """Instead of the four-channel one."""
    return load_checkpoint(folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def tiny_float64(folder: Path) -> Checkpoint:
    return load_checkpoint(folder, device="cpu", dtype=torch.float64)


def naive_edit(
    naive: Naive, z_0: Tensor, target: str, seed: int, image_guidance: float, sampler: str
) -> Tensor:
    """Three rows a step, all in full, the source's latent beside two of them."""
    image = z_0 / naive.checkpoint.vae.config.scaling_factor
    if naive.wrong == "scaled":
        image = z_0
    z, *draws = naive.noise(seed + (naive.wrong == "seed"), z_0, 1 + naive.steps)
    if naive.wrong == "one_noise":
        draws = [z] * naive.steps
    z = naive.kept(z, naive.steps)
    negative = "" if naive.wrong == "no_negative" else naive.negative
    for k in reversed(range(naive.steps)):
        with_image = torch.cat([z, image], 1)
        without = torch.cat([z, image if naive.wrong == "always_seen" else image * 0], 1)
        c, i, u = naive.unet(
            [with_image, with_image, without], k, [target, negative, naive.negative]
        ).split(1)
        text, seen = naive.guidance, image_guidance
        if naive.wrong == "swapped":
            text, seen = seen, text
        epsilon = u + text * (c - i) + seen * (i - u)
        if sampler == "ddim":
            z = naive.move(z, epsilon, k + 1, k)
        else:
            z = ancestral(naive, z, epsilon, k, draws[naive.steps - 1 - k])
        z = naive.kept(z, k)
    return z


def ancestral(naive: Naive, z: Tensor, epsilon: Tensor, k: int, noise: Tensor) -> Tensor:
    """Euler's ancestral step, of x = z / sqrt(a) at sigma = sqrt((1 - a) / a)."""
    a, b = naive.a(k + 1), naive.a(k) if k else 1.0
    sigma, to = ((1 - a) / a) ** 0.5, ((1 - b) / b) ** 0.5
    up = (to**2 * (sigma**2 - to**2) / sigma**2) ** 0.5
    down = (to**2 - up**2) ** 0.5
    x = z / a**0.5 + epsilon * (down - sigma) + noise * up
    made: Tensor = x * b**0.5
    return made


def case(size: tuple[int, int] = SQUARE, negative: str = "", **changes: Any) -> Case:
    method = InstructPix2Pix(**changes)

    def expected(naive: Naive, z_0: Tensor, s: int, n: int) -> Tensor:
        seed = SEEDS[s][n].seed
        assert seed is not None
        scale = method.image_guidance_scale
        return naive_edit(naive, z_0, TARGETS[s][n], seed, scale, method.sampler)

    return Case(method, expected, SEEDS, size=size, negative=negative)


@pytest.mark.parametrize("negative", ["", "snow"])
@pytest.mark.parametrize("image_guidance", [1.5, 1.0, 0.0])
def test_edits_equal_the_reference(
    checkpoint: Checkpoint, image_guidance: float, negative: str
) -> None:
    check_exact(checkpoint, case(negative=negative, image_guidance_scale=image_guidance))


def test_edits_of_another_shape_equal_the_reference(tiny_float64: Checkpoint) -> None:
    check_exact(tiny_float64, case(WIDE, "snow"), max_rows=4, sources=[1, 2])


def test_edits_of_the_published_sampler_equal_the_reference(checkpoint: Checkpoint) -> None:
    check_exact(checkpoint, case(negative="snow", sampler="euler_ancestral"))


@pytest.mark.parametrize("wrong", ["one_noise", "seed"])
def test_a_wrong_sampler_is_a_hundred_tolerances_off(tiny: Checkpoint, wrong: str) -> None:
    check_wrong(tiny, case(sampler="euler_ancestral"), wrong, (1, 1))


@pytest.mark.parametrize("wrong", ["scaled", "seed", "always_seen", "swapped", "no_negative"])
def test_a_wrong_procedure_is_a_hundred_tolerances_off(tiny: Checkpoint, wrong: str) -> None:
    check_wrong(tiny, case(negative="snow"), wrong, (1, 1))


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_an_edit_is_the_same_in_any_batch(checkpoint: Checkpoint, sampler: str) -> None:
    check_batches(checkpoint, case(sampler=sampler))


def test_the_sampler_is_in_the_record_only_if_it_is_not_ddim() -> None:
    assert "sampler" not in InstructPix2Pix().to_dict()
    assert InstructPix2Pix(sampler="euler_ancestral").to_dict()["sampler"] == "euler_ancestral"
    with pytest.raises(ParameterError, match="sampler must be one of ddim, euler_ancestral"):
        InstructPix2Pix(sampler="euler")


@pytest.mark.parametrize("edits", [1, 3])
def test_rows_are_those_of_the_formula(tiny: Checkpoint, edits: int) -> None:
    check_rows(tiny, case(), edits, {})
    assert eval(InstructPix2Pix.rows_formula, {"T": 50, "N": edits}) == 150 * edits


@pytest.mark.parametrize(
    ("text", "image", "interval", "rows"),
    [
        (7.5, 1.5, (0.0, 1.0), 30),
        (7.5, 1.0, (0.0, 1.0), 20),
        (1.0, 1.5, (0.0, 1.0), 30),
        (1.0, 1.0, (0.0, 1.0), 10),
        (7.5, 1.5, (0.2, 0.7), 20),
        (7.5, 1.0, (0.2, 0.7), 15),
        (1.0, 1.5, (0.2, 0.7), 20),
    ],
)
def test_a_scale_of_one_saves_rows_and_changes_nothing_else(
    tiny: Checkpoint, text: float, image: float, interval: tuple[float, float], rows: int
) -> None:
    """Counted at the UNet, and equal to all three rows with the scales that each step has."""
    parameters = replace(
        case(image_guidance_scale=image).parameters,
        steps=10,
        guidance_scale=text,
        guidance_interval=interval,
    )
    editor = Editor(tiny)
    with counted_rows(tiny) as calls:
        inversion = editor.invert(photos(1, SQUARE), [""], parameters)
        made = editor.edit(inversion, [["a red dog"]], inputs=[[EditInputs(seed=4)]])
    assert sum(calls) == made.unet_rows == rows
    assert row_counts(parameters, [EditInputs(seed=4)]).total == rows
    z_0 = inversion.trajectory[:, 0]
    naive = Naive(tiny, 10)
    seen = torch.cat([z_0, z_0], 1)
    seen[:, :4] = 0
    seen /= tiny.vae.config.scaling_factor
    (z,) = naive.noise(4, z_0, 1)
    for step, k in enumerate(reversed(range(10))):
        is_guided = interval[0] <= step / 10 < interval[1]
        s_t, s_i = (text, image) if is_guided else (1.0, 1.0)
        bare = torch.cat([z, torch.zeros_like(z)], 1)
        c, i, u = naive.unet([bare + seen, bare + seen, bare], k, ["a red dog", "", ""]).split(1)
        z = naive.move(z, u + s_t * (c - i) + s_i * (i - u), k + 1, k)
    off = (made.edits[0][0].latent - z[0]).norm() / z.norm()
    assert off <= 2e-4


@pytest.mark.parametrize(("size", "steps"), [(SQUARE, 5), (WIDE, 4)])
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
def test_it_is_diffusers_pipeline(
    folder: Path, tiny: Checkpoint, sampler: str, size: tuple[int, int], steps: int
) -> None:
    """StableDiffusionInstructPix2PixPipeline with either scheduler, from the same generator."""
    scheduler = DDIMScheduler if sampler == "ddim" else EulerAncestralDiscreteScheduler
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = scheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="leading", steps_offset=1
    )
    pipeline.set_progress_bar_config(disable=True)
    parameters = replace(case(size, "snow", sampler=sampler).parameters, steps=steps)
    editor = Editor(tiny)
    pictures = photos(2, size)
    inversion = editor.invert(pictures, None, parameters)
    made = editor.edit(
        inversion, [["a red dog"], ["the cat"]], inputs=[[EditInputs(seed=7)], [EditInputs(seed=8)]]
    )
    for place, (prompt, seed) in enumerate([("a red dog", 7), ("the cat", 8)]):
        theirs = pipeline(
            prompt,
            image=pictures[place],
            negative_prompt="snow",
            num_inference_steps=steps,
            guidance_scale=7.5,
            image_guidance_scale=1.5,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images[0]
        ours = made.edits[place][0].latent
        assert float((ours - theirs).norm() / theirs.norm()) <= 1e-5
    assert (made.edits[0][0].latent - made.edits[1][0].latent).norm() > 1e-2


def test_it_needs_a_seed_and_an_image(tiny: Checkpoint) -> None:
    editor, parameters = Editor(tiny), case().parameters
    inversion = editor.invert(photos(1, SQUARE), None, parameters)
    assert inversion.unet_rows == 0
    with pytest.raises(NotApplicableError, match="no seed"):
        editor.edit(inversion, [["a dog"]])
    sources = editor.synthesise(["a cat"], [1], parameters)
    with pytest.raises(ParameterError, match=r"instruct_pix2pix .* edits images"):
        editor.edit(sources, [["a dog"]], inputs=[[EditInputs(seed=1)]])
    assert "not a synthetic one" in parameters.not_applicable(
        "a cat", "make it red", EditInputs(seed=1), synthetic=True
    )
    empty = editor.edit(inversion, [[]], inputs=[[]])
    assert empty.edits == ((),)
    assert empty.unet_rows == 0


def test_methods_and_unets_of_other_kinds_refuse_each_other(
    tiny: Checkpoint, tiny_folder: Path, folder: Path
) -> None:
    plain = replace(case().parameters.edited_by(DdimEditing()), steps=2)
    four = Editor(load_checkpoint(tiny_folder, device="cpu", dtype=torch.float32))
    with pytest.raises(ParameterError, match=r"ddim cannot edit with it.*instruct_pix2pix"):
        Editor(tiny).invert(photos(1, SQUARE), None, plain)
    with pytest.raises(ParameterError, match="instruct_pix2pix needs a UNet of eight input"):
        four.invert(photos(1, SQUARE), None, case().parameters)
    inversion = four.invert(photos(1, SQUARE), None, replace(plain, steps=6))
    with pytest.raises(ParameterError, match="instruct_pix2pix needs a UNet of eight input"):
        four.edit(inversion, [["a dog"]], case().parameters, [[EditInputs(seed=1)]])
    for path, wrong, right in (
        (folder, DdimEditing(), InstructPix2Pix()),
        (tiny_folder, InstructPix2Pix(), DdimEditing()),
    ):
        files = locate(path, allow_pickle=False, revision=None)
        check_parameters(files, None, EditParameters().edited_by(right))
        with pytest.raises(ParameterError, match="eight input channels"):
            check_parameters(files, None, EditParameters().edited_by(wrong))


def test_it_is_what_such_a_checkpoint_recommends(folder: Path, tiny: Checkpoint) -> None:
    parameters = checkpoint_defaults(folder)
    assert parameters.method == InstructPix2Pix()
    assert (parameters.width_px, parameters.steps) == (64, 50)
    assert tiny.default_parameters == parameters


@pytest.mark.parametrize("inversion", ["negative_prompt"])
def test_another_inversion_is_refused(inversion: str) -> None:
    with pytest.raises(ParameterError, match="inversion must be direct"):
        EditParameters(inversion=inversion).edited_by(InstructPix2Pix())


def test_it_keeps_more_of_the_source_by_more_guidance() -> None:
    assert InstructPix2Pix(1.5).keeping(0.2) == InstructPix2Pix(1.8)
    assert InstructPix2Pix(1.5).keeping(-0.2) == InstructPix2Pix(1.2)
    assert InstructPix2Pix(1.5).keeping(-1.0) == InstructPix2Pix(0.0)


@pytest.mark.parametrize("scale", [-0.1, float("nan"), "1.5"])
def test_a_scale_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(ParameterError, match="image_guidance_scale"):
        InstructPix2Pix(image_guidance_scale=scale)


def test_a_single_file_loads_with_the_configs_of_its_folder(
    folder: Path, tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    """With those of a four-channel model it is refused, before anything is loaded."""
    path = write_single_file(folder, tmp_path / "instruct.safetensors")
    loaded = load_checkpoint(path, device="cpu", dtype=torch.float32, config=folder)
    assert loaded.sees_source
    parameters = case().parameters
    made = []
    for checkpoint in (tiny, loaded):
        editor = Editor(checkpoint)
        inversion = editor.invert(photos(1, SQUARE), None, parameters)
        edited = editor.edit(inversion, [["a dog"]], inputs=[[EditInputs(seed=1)]])
        made.append(edited.edits[0][0].latent)
    for name, weight in tiny.unet.state_dict().items():
        assert torch.equal(weight, loaded.unet.state_dict()[name])
    # Not bit for bit: kernels may differ by where in memory the weights are.
    assert float((made[0] - made[1]).norm() / made[0].norm()) <= 1e-5
    files = locate(path, allow_pickle=False, revision=None)
    with pytest.raises(CheckpointError, match=r"input_blocks\.0\.0\.weight"):
        check_files(path, files, allow_pickle=False, config=tiny_folder)


def test_a_mask_that_binds_costs_no_row_and_needs_no_inversion(tiny: Checkpoint) -> None:
    """Outside, the latent is z_0 with the edit's start noise at every level."""
    drawn = masks(SQUARE)[1]
    inside = Inside()

    def expected(naive: Naive, z_0: Tensor, s: int, n: int) -> Tensor:
        seed = SEEDS[s][n].seed
        assert seed is not None
        (noise,) = naive.noise(seed, z_0, 1)
        levels = [naive.noised(z_0, k, noise) for k in range(naive.steps + 1)]
        naive.mask = of_latent(drawn)
        naive.bound = naive.mask, levels
        return naive_edit(naive, z_0, TARGETS[s][n], seed, 1.5, "ddim")

    inputs = [[replace(each, mask=drawn) for each in of_source] for of_source in SEEDS]
    bound = Case(InstructPix2Pix(), expected, inputs, inside=inside)
    result = check_exact(tiny, bound)
    assert bound.invert(Editor(tiny)).unet_rows == 0
    source = np.asarray(bound.invert(Editor(tiny)).images[1])
    same = (np.asarray(result.edits[1][0].image) == source).all(axis=-1)
    assert same[~drawn].all()
    assert same[drawn].mean() < 0.5
    check_wrong(tiny, bound, "cleaner", (1, 1))
