"""LoRAs in all layouts, held against diffusers' own loading of the same files."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionPipeline,
)
from torch import Tensor

from fpe_core import Checkpoint, Lora, checkpoint_fingerprint, load_checkpoint
from tests.builders.lora_files import (
    DIFFUSERS,
    PEFT,
    TEXT_OF_DIFFUSERS,
    dotted,
    factors,
    kohya_of,
    layers_of,
    old_attention,
    written,
)
from tests.builders.single_file import write_single_file

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of peft

CLOSE = 1e-5
ATTENTION = r"attn\d\.to_|proj_in|proj_out|ff\.net"


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)


def loaded(folder: Path, *loras: Lora | Path, **options: Any) -> Checkpoint:
    return load_checkpoint(folder, device="cpu", **{"dtype": "float32", "loras": loras, **options})


def outputs(unet: Any, text_encoder: Any) -> tuple[Tensor, Tensor]:
    """What a UNet and a text encoder give for the same random input, at every call."""
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn((2, 4, 8, 8), generator=generator)
    width = unet.config.cross_attention_dim
    prompt = torch.randn((2, 7, width), generator=generator)
    ids = torch.randint(0, text_encoder.config.vocab_size, (2, 9), generator=generator)
    with torch.no_grad():
        return unet(latents, 7, prompt).sample, text_encoder(ids)[0]


def of_diffusers(folder: Path, files: Mapping[Path, Any]) -> tuple[Tensor, Tensor]:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    names = [f"lora{number}" for number in range(len(files))]
    for name, file in zip(names, files, strict=True):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipe.set_adapters(names, list(files.values()))
    return outputs(pipe.unet, pipe.text_encoder)


def assert_same(ours: Checkpoint, theirs: tuple[Tensor, Tensor], without: Checkpoint) -> None:
    """Equal to diffusers' within 1e-5; and not because the LoRA does nothing."""
    pairs = zip(
        outputs(ours.unet, ours.text_encoder),
        theirs,
        outputs(without.unet, without.text_encoder),
        strict=True,
    )
    for mine, expected, plain in pairs:
        assert float((mine - expected).abs().max()) <= CLOSE
        assert float((mine - plain).abs().max()) > 1e-2


def in_layout(layout: str, tiny: Checkpoint, seed: int = 1) -> dict[str, Tensor]:
    unet, text = tiny.unet, layers_of(tiny.text_encoder)
    if layout == "kohya":
        return kohya_of(tiny, seed)
    if layout == "old diffusers":
        of_text = dotted(text, "text_encoder.text_model.", seed, TEXT_OF_DIFFUSERS)
        return old_attention(unet, seed) | of_text
    ends = PEFT if layout == "peft" else DIFFUSERS
    of_text = PEFT if layout == "peft" else TEXT_OF_DIFFUSERS
    return dotted(layers_of(unet), "unet.", seed, ends) | dotted(
        text, "text_encoder.text_model.", seed + 1, of_text
    )


@pytest.mark.parametrize("layout", ["kohya", "peft", "diffusers", "old diffusers"])
def test_a_lora_is_what_diffusers_makes_of_it(
    layout: str, tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    """Every linear layer and convolution of the UNet and the text encoder."""
    file = written(in_layout(layout, tiny), tmp_path / "lora.safetensors")
    ours = loaded(tiny_folder, Lora(file, 0.6))
    assert_same(ours, of_diffusers(tiny_folder, {file: 0.6}), tiny)


def test_several_loras_with_weights_are_what_diffusers_makes_of_them(
    tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    first = written(in_layout("kohya", tiny, 1), tmp_path / "a.safetensors")
    second = written(in_layout("peft", tiny, 7), tmp_path / "b.safetensors")
    theirs = of_diffusers(tiny_folder, {first: 0.7, second: {"unet": -0.4, "text_encoder": 0.25}})
    assert_same(loaded(tiny_folder, Lora(first, 0.7), Lora(second, -0.4, 0.25)), theirs, tiny)


def test_the_order_of_loras_does_not_matter_at_all(
    tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    first = Lora(written(kohya_of(tiny, 1), tmp_path / "a.safetensors"), 0.7)
    second = Lora(written(kohya_of(tiny, 5), tmp_path / "b.safetensors"), -0.4)
    one, other = loaded(tiny_folder, first, second), loaded(tiny_folder, second, first)
    assert one.fingerprint == other.fingerprint
    for mine, theirs in zip(one.unet.parameters(), other.unet.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("is_root", [False, True])
def test_settings_of_peft_in_the_header_count(
    is_root: bool, tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    """What diffusers' own training scripts write: the alpha is in the header alone."""
    layers = layers_of(tiny.unet, r"attn\d\.to_")
    some = next(iter(layers))
    text = layers_of(tiny.text_encoder, "q_proj|fc1")
    settings: dict[str, Any] = {}
    for name, each in (("unet", layers), ("text_encoder", text)):
        settings |= {
            f"{name}.r": 4,
            f"{name}.lora_alpha": 2,
            f"{name}.use_rslora": is_root,
            f"{name}.target_modules": sorted(each),
        }
    settings["unet.alpha_pattern"] = {some.replace(".", r"\."): 3}
    file = written(
        dotted(layers, "unet.", 1, PEFT) | dotted(text, "text_encoder.", 2, PEFT),
        tmp_path / "lora.safetensors",
        lora_adapter_metadata=json.dumps(settings),
    )
    assert_same(loaded(tiny_folder, file), of_diffusers(tiny_folder, {file: 1.0}), tiny)


def test_every_layer_has_its_own_alpha_and_rank(
    tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    """Against the formula: diffusers gives attention layers one alpha only."""
    layers = dict(list(layers_of(tiny.unet, r"attn\d\.to_").items())[:6])
    tensors: dict[str, Tensor] = {}
    expected = {}
    for number, (name, shape) in enumerate(layers.items(), start=1):
        down, up = factors({name: shape}, number, rank=number)[name]
        flat = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        if number > 1:  # the first has none, which is the same as its rank
            tensors[f"{flat}.alpha"] = torch.tensor(0.5 * number**2)
        scale = 1.0 if number == 1 else 0.5 * number
        expected[name] = 2.0 * scale * (up.double() @ down.double())
    file = written(tensors, tmp_path / "lora.safetensors")
    ours = dict(loaded(tiny_folder, Lora(file, 2.0)).unet.named_parameters())
    for name, weight in tiny.unet.named_parameters():
        added = expected.get(name.removesuffix(".weight"), torch.zeros(()))
        assert torch.allclose(ours[name].double(), weight.double() + added, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_merge_is_in_float32_whatever_the_model_runs_in(
    dtype: torch.dtype, tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    file = written(kohya_of(tiny), tmp_path / "lora.safetensors")
    half = loaded(tiny_folder, Lora(file, 0.3), dtype=dtype)
    wide = loaded(tiny_folder, Lora(file, 0.3))
    assert half.dtype == dtype
    for name in ("unet", "text_encoder", "vae"):
        ours, theirs = getattr(half, name).state_dict(), getattr(wide, name).state_dict()
        for key, weight in theirs.items():
            assert torch.equal(ours[key], weight.to(dtype)), key


def test_a_single_file_takes_a_lora_like_its_folder(
    tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    single = write_single_file(tiny_folder, tmp_path / "model.safetensors")
    file = written(kohya_of(tiny), tmp_path / "lora.safetensors")
    ours = loaded(single, file, config=tiny_folder)
    theirs = loaded(tiny_folder, file)
    for mine, expected in zip(
        outputs(ours.unet, ours.text_encoder),
        outputs(theirs.unet, theirs.text_encoder),
        strict=True,
    ):
        assert float((mine - expected).abs().max()) <= CLOSE


# --- the fingerprint ------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_content_and_the_weights(
    tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    file = written(kohya_of(tiny), tmp_path / "a.safetensors")
    same = written(kohya_of(tiny), tmp_path / "same.safetensors")
    other = written(kohya_of(tiny, 9), tmp_path / "other.safetensors")
    of = {
        "none": checkpoint_fingerprint(tiny_folder),
        "a": checkpoint_fingerprint(tiny_folder, loras=[file]),
        "weaker": checkpoint_fingerprint(tiny_folder, loras=[Lora(file, 0.5)]),
        "in text": checkpoint_fingerprint(tiny_folder, loras=[Lora(file, 1.0, 0.5)]),
        "other": checkpoint_fingerprint(tiny_folder, loras=[other]),
        "both": checkpoint_fingerprint(tiny_folder, loras=[file, other]),
    }
    assert len(set(of.values())) == len(of)
    assert of["none"] == tiny.fingerprint == checkpoint_fingerprint(tiny_folder, loras=[])
    assert of["a"] == checkpoint_fingerprint(tiny_folder, loras=[Lora(same, 1.0, 1.0)])
    assert of["both"] == checkpoint_fingerprint(tiny_folder, loras=[other, same])
    assert loaded(tiny_folder, Lora(file, 0.5)).fingerprint == of["weaker"]


# --- what it needs --------------------------------------------------------------------------------


def test_peft_is_not_needed(tiny_folder: Path, tiny: Checkpoint, tmp_path: Path) -> None:
    file = written(kohya_of(tiny), tmp_path / "lora.safetensors")
    code = (
        "import sys; sys.modules['peft'] = None; from fpe_core import load_checkpoint; "
        "print(load_checkpoint(sys.argv[1], device='cpu', loras=[sys.argv[2]]).fingerprint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_folder), str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == checkpoint_fingerprint(tiny_folder, loras=[file]), done.stderr


def test_planning_needs_no_torch(tiny_folder: Path, tiny: Checkpoint, tmp_path: Path) -> None:
    file = written(kohya_of(tiny), tmp_path / "lora.safetensors")
    code = (
        "import sys; from fpe_core.checkpoint.add_on_check import check_add_ons; "
        "from fpe_core.checkpoint.add_on_files import located; "
        "from fpe_core.checkpoint.add_ons import AddOns; "
        "from fpe_core.checkpoint.files import locate; folder, file = sys.argv[1:]; "
        "add_ons = located(AddOns.of([file]), False); "
        "check_add_ons(folder, locate(folder, False, None), add_ons, False, None); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny_folder), str(file)], check=True)
