"""Models whose last timestep is pure noise, sampled with trailing spacing (Lin et al. 2023, arXiv
2305.08891): every editor and inversion, on Stable Diffusion 2 in miniature."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from fpe_core import (
    Checkpoint,
    CheckpointError,
    Editor,
    EditParameters,
    checkpoint_fingerprint,
    load_checkpoint,
)
from fpe_core.checkpoint.check import check_files
from fpe_core.checkpoint.files import locate
from fpe_core.editors.ddim import DdimEditing
from fpe_core.noise_levels import training_levels
from fpe_core.schedule import ddim_schedule, seeded_noise
from tests.builders.tiny_checkpoint import build_tiny_checkpoint
from tests.fpe_core.editors import (
    test_instruct_pix2pix,
    test_null_text,
    test_pix2pix_zero,
    test_shape_guided,
)
from tests.fpe_core.editors.cases import SQUARE, Case, check_exact, photos
from tests.fpe_core.editors.test_stable_diffusion_2 import EDITORS

SCHEDULER = Path("scheduler/scheduler_config.json")


def configured(folder: Path, **values: object) -> Path:
    """The checkpoint with other values in the config of its scheduler."""
    config = json.loads((folder / SCHEDULER).read_text())
    (folder / SCHEDULER).write_text(json.dumps({**config, **values}))
    return folder


def build(folder: Path, *, sees_source: bool = False) -> Path:
    build_tiny_checkpoint(folder, is_second=True, sees_source=sees_source)
    return configured(folder, timestep_spacing="trailing", rescale_betas_zero_snr=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("zero"))


@pytest.fixture(scope="module")
def zero(folder: Path) -> Checkpoint:
    check_files(folder, locate(folder, allow_pickle=False, revision=None), False, None)
    return load_checkpoint(folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    made = build(tmp_path_factory.mktemp("instruct"), sees_source=True)
    return load_checkpoint(made, device="cpu", dtype=torch.float64)


CASES = {**EDITORS, "shape guided": test_shape_guided.case, "null text": test_null_text.ddim}


@pytest.mark.parametrize("name", CASES)
def test_edits_equal_the_reference(zero: Checkpoint, name: str) -> None:
    """Latents to 1e-10. The reference has its own levels and timesteps."""
    assert ddim_schedule(zero.scheduler_config, 6).timesteps[-1] == 999
    assert ddim_schedule(zero.scheduler_config, 6).alphas_bar[-1] == 0
    check_exact(zero, CASES[name]())


def test_instructions_equal_the_reference(instruct: Checkpoint) -> None:
    check_exact(instruct, test_instruct_pix2pix.case())


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_instructions_stay_finite(instruct: Checkpoint, sampler: str) -> None:
    check_finite(instruct, test_instruct_pix2pix.case(sampler=sampler))


def test_pix2pix_zero_stays_finite(zero: Checkpoint) -> None:
    check_finite(zero, test_pix2pix_zero.zero())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 0.1), (torch.bfloat16, 0.5)], ids=str
)
def test_half_precision_does_not_overflow(
    folder: Path, dtype: torch.dtype, tolerance: float
) -> None:
    """diffusers#6981: in float16 the first step divides by what is 0 there. Here the DDIM
    arithmetic is float32, and the edits are those of float32 within the precision of the UNet."""
    half, full = (load_checkpoint(folder, device="cpu", dtype=d) for d in (dtype, torch.float32))
    made = check_finite(half, EDITORS["ddim"]())
    assert made[0].dtype == torch.float32
    for each, expected in zip(made, check_finite(full, EDITORS["ddim"]()), strict=True):
        assert float((each - expected).norm() / expected.norm()) < tolerance


def check_finite(checkpoint: Checkpoint, case: Case) -> list[torch.Tensor]:
    made = case.make(checkpoint, [(s, range(len(each))) for s, each in enumerate(case.targets)])
    edits = [edit for of_source in made.edits for edit in of_source]
    assert all(edit.is_finite for edit in edits)
    return [edit.latent for edit in edits]


def test_plain_sampling_is_diffusers_pipeline(folder: Path, zero: Checkpoint) -> None:
    """Five steps, which divide the training's 1,000: with others diffusers 0.42.1 steps between
    levels that are not those of its timesteps."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, dtype=torch.float64
    )
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    exact = torch.from_numpy(training_levels(zero.scheduler_config))
    pipeline.scheduler.alphas_cumprod = exact
    pipeline.scheduler.final_alpha_cumprod = exact[0]
    parameters = EditParameters(
        steps=5, guidance_scale=6.0, negative_prompt="a car", width_px=64, height_px=64
    ).edited_by(DdimEditing())
    editor = Editor(zero)
    sources = editor.synthesise(["the cat in snow"], [3], parameters)
    ours = editor.edit(sources, [["the cat in snow"]]).edits[0][0].latent
    theirs = pipeline(
        "the cat in snow",
        negative_prompt="a car",
        num_inference_steps=5,
        guidance_scale=6.0,
        height=64,
        width=64,
        latents=seeded_noise(3, (1, 4, 8, 8)).double(),
        output_type="latent",
    ).images[0]
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-10


def test_an_inversion_arrives_at_pure_noise(zero: Checkpoint) -> None:
    """Its last latent is the noise that the UNet sees in the one before, without its signal."""
    parameters = replace(EDITORS["ddim"]().parameters, steps=10)
    editor = Editor(zero)
    trajectory = editor.invert(photos(1, SQUARE), [""], parameters).trajectory[0].double()
    schedule = ddim_schedule(zero.scheduler_config, 10)
    assert schedule.timesteps[-1] == 999
    with torch.inference_mode():
        text = zero.text_encoder(
            zero.tokenizer("", padding="max_length", return_tensors="pt").input_ids
        )[0]
        velocity = zero.unet(trajectory[-2:-1], 999, encoder_hidden_states=text).sample[0]
    a = schedule.alphas_bar[-2]
    noise = a**0.5 * velocity + (1 - a) ** 0.5 * trajectory[-2]
    assert float((trajectory[-1] - noise).norm() / noise.norm()) <= 1e-5


def test_only_trailing_spacing_changes_a_fingerprint(tmp_path: Path) -> None:
    """It was run as leading before 0.7.0; for a folder, and for the configs of a single file."""
    plain = build_tiny_checkpoint(tmp_path / "plain", is_second=True)
    leading = configured(shutil.copytree(plain, tmp_path / "leading"), timestep_spacing="leading")
    as_before = {
        spacing: _fingerprint_of_0_6(configured(leading, timestep_spacing=spacing))
        == checkpoint_fingerprint(leading)
        for spacing in ("leading", "linspace", "trailing")
    }
    assert as_before == {"leading": True, "linspace": True, "trailing": False}
    assert _fingerprint_of_0_6(plain) == checkpoint_fingerprint(plain)


def _fingerprint_of_0_6(folder: Path) -> str:
    """As 0.6.0 made it: configs and weights, component by component."""
    digest = blake2b(digest_size=16)

    def add(label: str, path: Path) -> None:
        digest.update(f"{label}:{path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())

    for component in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        for kind in ((".json", ".txt", ".model"), (".safetensors",)):
            for path in sorted((folder / component).iterdir()):
                if path.suffix in kind:
                    add(f"{component}/{path.name}", path)
    return digest.hexdigest()


def test_epsilon_is_refused_when_the_checkpoint_is_checked(tmp_path: Path) -> None:
    made = configured(build(tmp_path / "made"), prediction_type="epsilon")
    files = locate(made, allow_pickle=False, revision=None)
    with pytest.raises(CheckpointError, match=r"pure noise .*predicts epsilon"):
        check_files(made, files, False, None)
    with pytest.raises(CheckpointError, match=r"pure noise .*predicts epsilon"):
        load_checkpoint(made, device="cpu")
