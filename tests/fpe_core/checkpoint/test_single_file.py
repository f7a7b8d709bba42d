"""Single files find their configs without a network, by their headers and facts about families."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors.torch import load_file, save_file

from fpe_core import (
    CheckpointError,
    EditParameters,
    checkpoint_defaults,
    checkpoint_fingerprint,
    load_checkpoint,
)
from fpe_core.checkpoint.check import check_files, check_method, check_steps
from fpe_core.checkpoint.config_folder import SINGLE_FILE_CONFIG
from fpe_core.checkpoint.family_facts import (
    INSTRUCT_PIX2PIX,
    STABLE_DIFFUSION_1,
    STABLE_DIFFUSION_2,
    STABLE_DIFFUSION_2_BASE,
    STABLE_DIFFUSION_XL,
)
from fpe_core.checkpoint.files import CheckpointFiles, locate
from fpe_core.checkpoint.pretrained import clip_tokenizer
from fpe_core.checkpoint.single_file import configs_of, family_of_file
from fpe_core.checkpoint.single_file_load import load_single_file
from fpe_core.editors.ddim import DdimEditing
from fpe_core.errors import ParameterError
from fpe_core.unet.prompts import encode_prompts
from tests.builders.header_only import (
    autoencoder_on_meta,
    shapes_of,
    text_encoders_on_meta,
    unet_on_meta,
    write_header_only,
)
from tests.builders.single_file import write_single_file
from tests.builders.tiny_checkpoint import build_tiny_checkpoint

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


def in_cache(hub: Path, content: Path, only: str = "*") -> None:
    """What the hub's client has after Stable Diffusion 1.5's repository was downloaded."""
    repository = hub / f"models--{SINGLE_FILE_CONFIG.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    for path in (*content.glob(f"{only}/*"), content / "model_index.json"):
        if only != "*" and path.parent == content:
            continue
        target = repository / "snapshots" / ("0" * 40) / path.relative_to(content)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


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


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "stable-diffusion-xl"])
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
    if name == "instruct-pix2pix":
        with pytest.raises(ParameterError, match="eight input channels"):
            check_method(files, None, DdimEditing())
    else:
        check_method(files, None, DdimEditing())
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
    "base": (lambda shapes: shapes, {}, "Stable Diffusion XL, another family"),
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


# --- the tokenizer --------------------------------------------------------------------------------


@pytest.fixture
def single(tiny_folder: Path, tmp_path: Path) -> Path:
    return write_single_file(tiny_folder, tmp_path / "model.safetensors")


@pytest.fixture
def networks(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder with the configs of the tiny networks, and no more."""
    folder = tmp_path / "networks"
    for name in ("unet", "vae", "text_encoder"):
        (folder / name).mkdir(parents=True)
        shutil.copyfile(tiny_folder / name / "config.json", folder / name / "config.json")
    return folder


def embedding(source: Path, config: Path | None = None) -> torch.Tensor:
    loaded = load_checkpoint(source, device="cpu", config=config)
    return encode_prompts(loaded.tokenizer, loaded.text_encoder, ["a red cat"]).embeddings


@pytest.mark.parametrize("inside", ["tokenizer", "."])
@pytest.mark.parametrize("two_files", [False, True])
def test_a_tokenizer_and_configs_are_enough(
    single: Path, networks: Path, tiny_folder: Path, inside: str, two_files: bool
) -> None:
    """In a folder of its own or in the folder itself; of two files, too."""
    check_tokenizer = networks / inside
    check_tokenizer.mkdir(exist_ok=True)
    for path in (tiny_folder / "tokenizer").iterdir():
        content = json.loads(path.read_text())
        if not two_files:
            shutil.copyfile(path, check_tokenizer / path.name)
        elif path.name == "tokenizer.json":
            model = content["model"]
            (check_tokenizer / "vocab.json").write_text(json.dumps(model["vocab"]))
            merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
            (check_tokenizer / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    check(single, networks)
    assert torch.equal(embedding(single, networks), embedding(tiny_folder))
    loaded = load_checkpoint(single, device="cpu", config=networks)
    assert loaded.tokenizer.model_max_length == 77
    assert loaded.scheduler_config["beta_end"] == 0.012
    assert loaded.fingerprint == checkpoint_fingerprint(single, config=networks)
    whole = load_checkpoint(single, device="cpu", config=tiny_folder)
    for name in ("unet", "vae", "text_encoder"):
        state = getattr(whole, name).state_dict()
        for key, value in getattr(loaded, name).state_dict().items():
            assert torch.equal(value, state[key])


def test_a_tokenizer_in_the_hub_s_cache_is_enough(
    tiny_folder: Path, tmp_path: Path, without_network: Path
) -> None:
    path = write_header_only(tmp_path / "model.safetensors", shapes_of(STABLE_DIFFUSION_1))
    files = CheckpointFiles(path)
    assert not (configs_of(path, None) / "tokenizer").exists()  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=r"no tokenizer, .* set model\.config to a folder"):
        load_single_file(files, torch.float32, None)
    in_cache(without_network, tiny_folder, "tokenizer")
    check(path)
    folder = configs_of(path, None)
    assert folder is not None
    assert (folder / "tokenizer/tokenizer.json").read_bytes() == (
        tiny_folder / "tokenizer/tokenizer.json"
    ).read_bytes()


def test_a_folder_without_a_tokenizer_is_named(single: Path, networks: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer of CLIP.*vocab\.json"):
        check(single, networks)


def test_the_folder_is_made_anew_when_it_has_to_be(
    single: Path, networks: Path, tiny_folder: Path
) -> None:
    """When the tokenizer has changed, or another process has removed it."""
    shutil.copytree(tiny_folder / "tokenizer", networks / "tokenizer")
    first = configs_of(single, networks)
    assert first is not None
    assert configs_of(single, networks) == first
    file = networks / "tokenizer/tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 9}))
    assert load_checkpoint(single, device="cpu", config=networks).tokenizer.model_max_length == 9
    shutil.rmtree(first)
    made = configs_of(single, networks)
    assert made is not None
    assert (made / "tokenizer/tokenizer.json").is_file()


def test_stable_diffusion_2_fills_prompts_up_with_exclamation_marks(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """As its own tokenizer has it, whichever the tokens are taken from."""
    told = {"modelspec.prediction_type": "epsilon"}
    shapes = shapes_of(STABLE_DIFFUSION_2_BASE)
    path = write_header_only(tmp_path / "model.safetensors", shapes, **told)
    folder = configs_of(path, tiny_folder / "tokenizer")
    assert folder is not None
    content = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
    assert content["pad_token"] == "!"
    tokenizer = clip_tokenizer(folder / "tokenizer")
    ids = tokenizer("a cat", padding="max_length", max_length=77).input_ids
    assert ids[-1] == tokenizer.convert_tokens_to_ids("!") != tokenizer.eos_token_id


# --- fingerprints ---------------------------------------------------------------------------------


def _fingerprint_of_0_6(path: Path, config: Path | None) -> str:
    digest = blake2b(digest_size=16)

    def add(label: str, file: Path) -> None:
        digest.update(f"{label}:{file.stat().st_size}\n".encode() + file.read_bytes())

    add("single", path)
    if config is None:
        digest.update(SINGLE_FILE_CONFIG.encode())
        return digest.hexdigest()
    for component in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        for file in sorted((config / component).iterdir()):
            if file.suffix in (".json", ".txt", ".model"):
                add(f"{component}/{file.name}", file)
    return digest.hexdigest()


def test_fingerprints_of_before_stay(
    single: Path, tiny_folder: Path, without_network: Path
) -> None:
    """With configs given, and with those of Stable Diffusion 1.5, in the cache or not."""
    for config in (tiny_folder, None):
        assert checkpoint_fingerprint(single, config=config) == _fingerprint_of_0_6(single, config)
    in_cache(without_network, tiny_folder)
    assert checkpoint_fingerprint(single) == _fingerprint_of_0_6(single, None)
    assert load_checkpoint(single, device="cpu").fingerprint == _fingerprint_of_0_6(single, None)


def test_what_decides_an_edit_is_in_the_fingerprint(
    single: Path, networks: Path, tiny_folder: Path
) -> None:
    shutil.copytree(tiny_folder / "tokenizer", networks / "tokenizer")
    found = {checkpoint_fingerprint(single, config=tiny_folder)}
    found.add(checkpoint_fingerprint(single, config=networks))
    (networks / "scheduler").mkdir()
    scheduler = json.loads((tiny_folder / "scheduler/scheduler_config.json").read_text())
    for spacing in ("leading", "trailing"):
        content = json.dumps({**scheduler, "timestep_spacing": spacing})
        (networks / "scheduler/scheduler_config.json").write_text(content)
        found.add(checkpoint_fingerprint(single, config=networks))
    shutil.move(networks / "tokenizer/tokenizer.json", networks / "tokenizer.json")
    shutil.rmtree(networks / "tokenizer")
    found.add(checkpoint_fingerprint(single, config=networks))
    bare = networks / "tokenizer.json"
    bare.write_text(bare.read_text() + " ")
    found.add(checkpoint_fingerprint(single, config=networks))
    assert len(found) == 6


# --- what files hold ------------------------------------------------------------------------------


def rewritten(
    path: Path, change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]
) -> None:
    save_file(dict(change(load_file(path))), path)


def test_copies_of_the_weights_beside_are_not_used(single: Path, tiny_folder: Path) -> None:
    """The average over the training (EMA); diffusers 0.42.1 takes the weights themselves, too."""
    expected = load_checkpoint(single, device="cpu", config=tiny_folder).unet.state_dict()

    def with_copies(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        copies = {
            "model_ema." + name.removeprefix("model.").replace(".", ""): torch.zeros_like(each)
            for name, each in weights.items()
            if name.startswith("model.diffusion_model.")
        }
        return {**weights, **copies, "model_ema.decay": torch.ones(())}

    rewritten(single, with_copies)
    check(single, tiny_folder)
    found = load_checkpoint(single, device="cpu", config=tiny_folder).unet.state_dict()
    assert all(torch.equal(found[name], each) for name, each in expected.items())
    rewritten(
        single, lambda w: {k: v for k, v in w.items() if not k.startswith("model.diffusion_model.")}
    )
    with pytest.raises(CheckpointError, match=r"no UNet.*average of the UNet's weights \(EMA\)"):
        check(single, tiny_folder)


def test_a_text_encoder_without_prefix_is_read(single: Path, tiny_folder: Path) -> None:
    """As files that were made with old scripts have it; diffusers 0.42.1 does not load them."""
    expected = embedding(single, tiny_folder)
    rewritten(single, lambda w: {k.replace(".text_model.", "."): v for k, v in w.items()})
    check(single, tiny_folder)
    assert torch.equal(embedding(single, tiny_folder), expected)
    rewritten(single, lambda w: {k: v for k, v in w.items() if "layers.1.mlp.fc1" not in k})
    with pytest.raises(CheckpointError, match=r"its text encoder, .*lacks 2 of"):
        check(single, tiny_folder)
    with pytest.raises(CheckpointError, match=r"its text encoder,? .*lacks 2 of"):
        load_single_file(CheckpointFiles(single), torch.float32, tiny_folder)


def test_an_autoencoder_from_elsewhere_may_be_missing(single: Path, tiny_folder: Path) -> None:
    def without(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v for k, v in weights.items() if not k.startswith("first_stage_model.")}

    rewritten(single, without)
    with pytest.raises(CheckpointError, match="holds no autoencoder"):
        check(single, tiny_folder)
    check(single, tiny_folder, given=("vae",))
    made = load_single_file(CheckpointFiles(single), torch.float32, tiny_folder, given=("vae",))
    assert made["vae"].config.scaling_factor == 5.0
    assert {each.device.type for each in made["vae"].parameters()} == {"meta"}
    assert {each.device.type for each in made["unet"].parameters()} == {"cpu"}


@pytest.mark.parametrize(
    "lost",
    [
        "model.diffusion_model.out.2.bias",
        "first_stage_model.decoder.norm_out.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    ],
)
def test_a_tensor_that_is_missing_is_refused(single: Path, tiny_folder: Path, lost: str) -> None:
    rewritten(single, lambda weights: {k: v for k, v in weights.items() if k != lost})
    with pytest.raises(CheckpointError, match=f"lacks 1 of .*{lost}"):
        check(single, tiny_folder)
    with pytest.raises(CheckpointError, match=f"lacks 1 of .*{lost}"):
        load_checkpoint(single, device="cpu", config=tiny_folder)


def test_instructions_with_facts_alone(tmp_path: Path) -> None:
    """Of an InstructPix2Pix, the number of channels says the family and the editor."""
    folder = build_tiny_checkpoint(tmp_path / "instruct", sees_source=True)
    single = write_single_file(folder, tmp_path / "instruct.safetensors")
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        (folder / name).unlink()
    found = family_of_file(single)
    assert found == INSTRUCT_PIX2PIX
    loaded = load_checkpoint(single, device="cpu", config=folder)
    assert loaded.sees_source
    method = checkpoint_defaults(single, config=folder).method
    assert method == EditParameters().edited_by(method).method
    assert method.name == "instruct_pix2pix"
