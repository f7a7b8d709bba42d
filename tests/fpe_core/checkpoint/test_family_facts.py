"""The families that single files are recognised as, and the facts about them, in full size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)

from fpe_core import (
    CheckpointError,
    EditParameters,
    LayersByLevel,
    LayersByTokens,
    checkpoint_defaults,
)
from fpe_core.checkpoint.check import check_files, check_parameters, check_steps
from fpe_core.checkpoint.family_facts import (
    INSTRUCT_PIX2PIX,
    STABLE_DIFFUSION_1,
    STABLE_DIFFUSION_2,
    STABLE_DIFFUSION_2_BASE,
    STABLE_DIFFUSION_XL,
)
from fpe_core.checkpoint.files import CheckpointFiles, locate
from fpe_core.checkpoint.single_file import configs_of, family_of_file
from fpe_core.editors.ddim import DdimEditing
from fpe_core.errors import ParameterError
from tests.builders.header_only import (
    autoencoder_on_meta,
    shapes_of,
    text_encoders_on_meta,
    unet_on_meta,
    write_header_only,
)

FAMILIES = {
    each.name: each
    for each in (
        STABLE_DIFFUSION_1,
        INSTRUCT_PIX2PIX,
        STABLE_DIFFUSION_2_BASE,
        STABLE_DIFFUSION_2,
        STABLE_DIFFUSION_XL,
    )
}
PARAMETERS = {
    "stable-diffusion-1": (859_520_964, 83_653_863, [123_060_480]),
    "instruct-pix2pix": (859_532_484, 83_653_863, [123_060_480]),
    "stable-diffusion-2-base": (865_910_724, 83_653_863, [340_387_840]),
    "stable-diffusion-2": (865_910_724, 83_653_863, [340_387_840]),
    "stable-diffusion-xl": (2_567_463_684, 83_653_863, [123_060_480, 694_659_840]),
}
"""Of UNet, autoencoder and text encoders, as the model cards and their files have them."""
PREDICTIONS = {"epsilon": "stable-diffusion-v2-512", "v_prediction": "stable-diffusion-v2-768-v"}


@pytest.fixture(autouse=True)
def without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's client is offline, and its cache is empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def check(source: Path, config: Path | None = None, given: tuple[str, ...] = ()) -> None:
    check_files(source, locate(source, False, None), False, config, given)


def count(module: Any) -> int:
    return sum(each.numel() for each in module.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_facts_are_the_published_models(name: str) -> None:
    """diffusers 0.42.1 and transformers 5.23.0 build networks of the published sizes from them."""
    family = FAMILIES[name]
    unet, vae, texts = PARAMETERS[name]
    assert count(unet_on_meta(family)) == unet
    assert count(autoencoder_on_meta(family)) == vae
    assert [count(each) for each in text_encoders_on_meta(family)] == texts


@pytest.mark.parametrize("name", FAMILIES)
def test_diffusers_converts_a_file_by_the_facts(name: str) -> None:
    """Its conversion reads the config itself, without the defaults of the class."""
    family = FAMILIES[name]
    with torch.device("meta"):
        held = {key: torch.empty(shape) for key, shape in shapes_of(family).items()}
    unet = convert_ldm_unet_checkpoint(dict(held), dict(family.unet))
    assert unet.keys() == unet_on_meta(family).state_dict().keys()
    vae = convert_ldm_vae_checkpoint(dict(held), dict(family.vae))
    assert vae.keys() == autoencoder_on_meta(family).state_dict().keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_alone_is_recognised_and_checked(tmp_path: Path, name: str) -> None:
    """Of full size, by its header, without configs, tokenizer or network."""
    family = FAMILIES[name]
    told = {"modelspec.architecture": PREDICTIONS[family.scheduler["prediction_type"]]}
    shapes = shapes_of(family)
    path = write_header_only(tmp_path / "model.safetensors", shapes, **told)
    found = family_of_file(path)
    assert found == family
    check(path)
    files = CheckpointFiles(path)
    folder = configs_of(path, None)
    assert folder is not None
    assert json.loads((folder / "unet/config.json").read_text()) == json.loads(
        json.dumps(family.unet)
    )
    size = int(family.unet["sample_size"]) * 8
    defaults = checkpoint_defaults(path)
    assert (defaults.width_px, defaults.height_px) == (size, size)
    if not defaults.editor:
        rule = {512: LayersByTokens(1024), 768: LayersByLevel(2), 1024: LayersByLevel(4)}
        assert defaults.layers == rule[size]
    if name == "instruct-pix2pix":
        with pytest.raises(ParameterError, match="eight input channels"):
            check_parameters(files, None, EditParameters().edited_by(DdimEditing()))
    else:
        check_parameters(files, None, EditParameters().edited_by(DdimEditing()))
    with pytest.raises(ParameterError, match="at most 999"):
        check_steps(files, None, 1000)
    lost = next(each for each in shapes if "middle_block.1.proj_in" in each)
    path = write_header_only(
        tmp_path / "lost.safetensors", {k: v for k, v in shapes.items() if k != lost}, **told
    )
    with pytest.raises(CheckpointError, match="its UNet, as its family has it, lacks 1 of"):
        check(path)


def test_stable_diffusion_2_does_not_say_what_it_predicts(
    tiny_folder: Path, tmp_path: Path
) -> None:
    shapes = shapes_of(STABLE_DIFFUSION_2)
    path = write_header_only(tmp_path / "model.safetensors", shapes)
    with pytest.raises(CheckpointError, match=r"2\.1-base.*Set model\.config .*scheduler_config"):
        check(path)
    config = tmp_path / "config"
    shutil.copytree(tiny_folder / "tokenizer", config / "tokenizer")
    with pytest.raises(CheckpointError, match=r"Set model\.config"):
        check(path, config)
    (config / "scheduler").mkdir()
    for prediction, family in (
        ("epsilon", STABLE_DIFFUSION_2_BASE),
        ("v_prediction", STABLE_DIFFUSION_2),
    ):
        content = {**family.scheduler, "prediction_type": prediction}
        (config / "scheduler/scheduler_config.json").write_text(json.dumps(content))
        check(path, config)
        size = int(family.unet["sample_size"]) * 8
        assert checkpoint_defaults(path, config=config).width_px == size
    marked = write_header_only(tmp_path / "v.safetensors", {**shapes, "v_pred": (0,)})
    assert family_of_file(marked) == STABLE_DIFFUSION_2
    marked = write_header_only(
        tmp_path / "zero.safetensors", {**shapes, "v_pred": (0,), "ztsnr": (0,)}
    )
    found = family_of_file(marked)
    assert found is not None
    assert found.scheduler["timestep_spacing"] == "trailing"
    assert found.scheduler["rescale_betas_zero_snr"] is True


XL_REFUSED: dict[str, tuple[Callable[[dict[str, tuple[int, ...]]], Any], dict[str, str], str]] = {
    "refiner": (
        lambda shapes: {
            **{k: v for k, v in shapes.items() if ".embedders.0" not in k},
            "conditioner.embedders.0.model.positional_embedding": (77, 1280),
        },
        {},
        "the refiner of Stable Diffusion XL",
    ),
    "inpainting": (
        lambda s: {**s, "model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)},
        {},
        "an inpainting model of Stable Diffusion XL",
    ),
    "EDM": (lambda shapes: {**shapes, "edm_mean": (4,)}, {}, "other noise levels"),
    "Turbo": (
        lambda shapes: shapes,
        {"modelspec.title": "Stable Diffusion XL Turbo"},
        r"distilled to a few steps .* \(Turbo\)",
    ),
}


@pytest.mark.parametrize("case", XL_REFUSED)
def test_models_of_stable_diffusion_xl_are_named(tmp_path: Path, case: str) -> None:
    change, told, message = XL_REFUSED[case]
    shapes = change(shapes_of(STABLE_DIFFUSION_XL))
    path = write_header_only(tmp_path / "model.safetensors", shapes, **told)
    with pytest.raises(CheckpointError, match=message):
        check(path)


def test_few_steps_by_the_name_of_the_file(tmp_path: Path) -> None:
    shapes = shapes_of(STABLE_DIFFUSION_XL)
    for name in ("sdxl_lightning_4step", "sd_xl_turbo_1.0_fp16", "sdxl-lcm", "Hyper-SDXL-8steps"):
        path = write_header_only(tmp_path / f"{name}.safetensors", shapes)
        with pytest.raises(CheckpointError, match="distilled to a few steps"):
            check(path)


@pytest.mark.parametrize(
    ("channels", "kind"), [(9, "an inpainting model"), (5, "a depth model"), (7, "another kind")]
)
def test_unets_of_other_kinds_are_named(tmp_path: Path, channels: int, kind: str) -> None:
    shapes = shapes_of(STABLE_DIFFUSION_1)
    shapes["model.diffusion_model.input_blocks.0.0.weight"] = (320, channels, 3, 3)
    path = write_header_only(tmp_path / "model.safetensors", shapes)
    with pytest.raises(CheckpointError, match=f"is .*{kind}.*takes {channels} channels"):
        check(path)


def test_a_foreign_autoencoder_is_named(tmp_path: Path) -> None:
    shapes = shapes_of(STABLE_DIFFUSION_1)
    shapes["first_stage_model.decoder.conv_in.weight"] = (512, 16, 3, 3)
    path = write_header_only(tmp_path / "model.safetensors", shapes)
    with pytest.raises(CheckpointError, match=r"\[512, 16, 3, 3\], not .*another family's"):
        check(path)
