"""Single files find their configs without a network, by their headers and facts about families."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fpe_core import (
    CheckpointError,
    EditParameters,
    checkpoint_defaults,
    checkpoint_fingerprint,
    load_checkpoint,
)
from fpe_core.checkpoint.check import check_files
from fpe_core.checkpoint.config_folder import SINGLE_FILE_CONFIG
from fpe_core.checkpoint.family_facts import (
    INSTRUCT_PIX2PIX,
    STABLE_DIFFUSION_1,
    STABLE_DIFFUSION_2_BASE,
)
from fpe_core.checkpoint.files import CheckpointFiles, locate
from fpe_core.checkpoint.pretrained import clip_tokenizer
from fpe_core.checkpoint.single_file import configs_of, family_of_file
from fpe_core.checkpoint.single_file_load import load_single_file
from fpe_core.unet.prompts import encode_prompts
from tests.builders.header_only import (
    shapes_of,
    write_header_only,
)
from tests.builders.single_file import write_single_file
from tests.builders.tiny_checkpoint import build_tiny_checkpoint


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
    return encode_prompts(loaded.text_encoders, [("a red cat", None)]).embeddings


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
