"""LoRAs in all layouts, held against diffusers' own loading of the same files."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fpe_core import Checkpoint, CheckpointError, Lora, checkpoint_fingerprint, load_checkpoint
from fpe_core.checkpoint.add_on_check import check_add_ons
from fpe_core.checkpoint.add_on_files import located
from fpe_core.checkpoint.add_ons import AddOns
from fpe_core.checkpoint.files import locate
from fpe_core.checkpoint.lora import merge_loras
from tests.builders.lora_files import (
    DIFFUSERS,
    PEFT,
    TEXT_OF_DIFFUSERS,
    dotted,
    factors,
    kohya,
    kohya_of,
    kohya_of_text,
    layers_of,
    old_attention,
    original_spelling,
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


# --- Stable Diffusion XL --------------------------------------------------------------------------


def xl_networks() -> dict[str, Any]:
    """Networks of Stable Diffusion XL in miniature: two text encoders, added embeddings."""
    torch.manual_seed(3)
    text = {
        "vocab_size": 99,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    return {
        "unet": UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16, 16),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 3),
            attention_head_dim=(1, 2, 4),
            norm_num_groups=4,
            cross_attention_dim=32,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=8 + 6 * 4,
        ).eval(),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text)).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**text)).eval(),
    }


def original_spelling_of_xl(name: str) -> str:
    """With three levels instead of four, whose names tests.builders.single_file does not have."""
    name = name.replace("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv")
    name = name.replace("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv")
    return original_spelling(name)


@pytest.mark.parametrize("layout", ["kohya", "kohya, original names", "peft"])
def test_a_lora_for_xl_is_what_diffusers_makes_of_it(layout: str, tmp_path: Path) -> None:
    networks, theirs = xl_networks(), xl_networks()
    unet = layers_of(networks["unet"], r"(down|mid|up)_block")
    first = layers_of(networks["text_encoder"])
    second = layers_of(networks["text_encoder_2"], r"encoder\.layers")
    if layout == "peft":
        tensors = dotted(unet, "unet.", 1, PEFT)
        tensors |= dotted(first, "text_encoder.", 2, PEFT)
        tensors |= dotted(second, "text_encoder_2.", 3, PEFT)
    else:
        spelling = original_spelling_of_xl if "original" in layout else str
        tensors = kohya(unet, "lora_unet_", 1, spelling=spelling)
        tensors |= kohya_of_text(first, "lora_te1_", 2)
        tensors |= kohya_of_text(second, "lora_te2_", 3)
        assert any("input_blocks_4_1" in name for name in tensors) == ("original" in layout)
    file = written(tensors, tmp_path / "lora.safetensors")
    plain = xl_outputs(**networks)
    merge_loras(networks, [Lora(file, 0.4)], "tiny XL")
    pipe = StableDiffusionXLPipeline(
        **theirs, vae=None, tokenizer=None, tokenizer_2=None, scheduler=None
    )
    pipe.load_lora_weights(str(tmp_path), weight_name=file.name, adapter_name="a")
    pipe.set_adapters(["a"], [0.4])
    for mine, expected, before in zip(
        xl_outputs(**networks), xl_outputs(**theirs), plain, strict=True
    ):
        assert float((mine - expected).abs().max()) <= CLOSE
        assert float((mine - before).abs().max()) > 1e-2


def xl_outputs(unet: Any, text_encoder: Any, text_encoder_2: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 99, (2, 9), generator=generator)
    latents = torch.randn((2, 4, 8, 8), generator=generator)
    prompt = torch.randn((2, 9, 32), generator=generator)
    more = {
        "text_embeds": torch.randn((2, 8), generator=generator),
        "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2),
    }
    with torch.no_grad():
        return [
            unet(latents, 7, prompt, added_cond_kwargs=more).sample,
            text_encoder(ids)[0],
            text_encoder_2(ids, output_hidden_states=True).hidden_states[-2],
            text_encoder_2(ids)[0],
        ]


# --- what is refused ------------------------------------------------------------------------------


def with_names(change: Callable[[str], str]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {change(name): each for name, each in tensors.items()}


def without(pattern: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {n: each for n, each in tensors.items() if not re.search(pattern, n)}


def for_width(width: int) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """As if it were for a model whose cross-attention sees this width."""

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: torch.ones(4, width) if re.search(r"attn2_to_[kv].lora_down", name) else each
            for name, each in tensors.items()
        }

    return change


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "other names": (
        with_names(lambda name: name.replace("attentions_0", "attentions_7")),
        r"LoRA .*lora.safetensors does not fit the checkpoint .*: \d+ of its \d+ tensors fit no "
        r"layer \(lora_unet_\w+attentions_7\S+, \S+, \S+ and \d+ more\)",
    ),
    "one name": (
        lambda tensors: {**tensors, "lora_unet_else.lora_down.weight": torch.ones(2, 2)},
        r"1 of its \d+ tensors fit no layer \(lora_unet_else.lora_down.weight\)",
    ),
    "Stable Diffusion 1.x": (for_width(768), "It seems to be for Stable Diffusion 1.x"),
    "Stable Diffusion 2.x": (for_width(1024), "It seems to be for Stable Diffusion 2.x"),
    "Stable Diffusion XL": (
        for_width(2048),
        r"\d+ of its layers have other shapes than the checkpoint's \(lora_unet_\w+"
        r"\.lora_down\.weight \[4, 2048\] and .*It seems to be for Stable Diffusion XL: its "
        r"cross-attention sees 2048 numbers, not 16",
    ),
    "a second text encoder": (
        with_names(lambda name: name.replace("lora_te_", "lora_te2_")),
        r"fit no layer \(lora_te2_.*It seems to be for Stable Diffusion XL",
    ),
    "half of it": (without("up.weight"), r"have no counterpart \(down and up\)"),
    "a transformer": (
        lambda _: {"transformer.single_transformer_blocks.0.lora_A.weight": torch.ones(2, 2)},
        "It seems to be for a transformer",
    ),
    "a whole model": (
        lambda _: {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2, 2)},
        "none of its 1 tensors is a LoRA's.*a whole model; name it as the checkpoint",
    ),
    "a UNet": (lambda _: {"conv_in.weight": torch.ones(2, 2)}, "a network of a model"),
    "an embedding": (lambda _: {"<cat>": torch.ones(2, 2)}, "name it in embeddings"),
    "LoHa": (with_names(lambda n: n.replace("lora_up", "hada_w1_a")), "LyCORIS LoHa"),
    "LoKr": (with_names(lambda n: n.replace("lora_up.weight", "lokr_w1")), "LyCORIS LoKr"),
    "Tucker": (with_names(lambda n: n.replace("lora_up", "lora_mid")), "Tucker decomposition"),
    "whole differences": (
        lambda tensors: {**tensors, "lora_unet_conv_in.diff": torch.ones(2, 2)},
        "differences of whole weights",
    ),
    "DoRA": (
        lambda tensors: {**tensors, "lora_unet_conv_in.dora_scale": torch.ones(2, 2)},
        "it is a DoRA",
    ),
    "PEFT's own": (
        lambda _: {"base_model.model.conv_in.lora_A.weight": torch.ones(2, 2)},
        "adapter_config.json",
    ),
    "nothing": (lambda _: {}, "none of its 0 tensors|it is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_fits_nothing_is_refused_when_planned_and_when_loaded(
    case: str, tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    change, message = REFUSED[case]
    file = written(change(kohya_of(tiny)), tmp_path / "lora.safetensors")
    add_ons = located(AddOns.of([file]), allow_pickle=False)
    with pytest.raises(CheckpointError, match=message):
        check_add_ons(tiny_folder, locate(tiny_folder, False, None), add_ons, False, None)
    networks = {"unet": tiny.unet, "text_encoder": tiny.text_encoder}
    before = [each.clone() for each in tiny.unet.parameters()]
    with pytest.raises(CheckpointError, match=message):
        merge_loras(networks, add_ons.loras, tiny_folder)
    assert all(torch.equal(*each) for each in zip(before, tiny.unet.parameters(), strict=True))


def test_a_weight_for_text_encoders_that_are_not_changed_is_refused(
    tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    tensors = kohya(layers_of(tiny.unet), "lora_unet_", 1)
    file = written(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="changes no text encoder"):
        loaded(tiny_folder, Lora(file, 1.0, 0.5))


def test_weights_that_are_not_finite_are_refused(
    tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    tensors = kohya_of(tiny)
    next(iter(tensors.values()))[0] = float("nan")
    with pytest.raises(CheckpointError, match="is not finite"):
        loaded(tiny_folder, written(tensors, tmp_path / "lora.safetensors"))
    with pytest.raises(CheckpointError, match="weight nan is not finite"):
        loaded(tiny_folder, Lora(tmp_path / "lora.safetensors", float("nan")))


def test_pickles_are_read_only_if_they_are_allowed(
    tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    tensors = kohya_of(tiny)
    pickled = tmp_path / "lora.bin"
    torch.save(tensors, pickled)
    with pytest.raises(CheckpointError, match="is a pickle"):
        loaded(tiny_folder, pickled)
    ours = loaded(tiny_folder, pickled, allow_pickle=True)
    same = loaded(tiny_folder, written(tensors, tmp_path / "lora.safetensors"))
    for mine, theirs in zip(ours.unet.parameters(), same.unet.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    torch.save({"fn": print}, pickled)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        loaded(tiny_folder, pickled, allow_pickle=True)


def test_files_that_are_not_there_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    for name in ("none.safetensors", "some/none.safetensors", "deep/some/none.safetensors"):
        with pytest.raises(CheckpointError, match=r"no LoRA at|could not be downloaded"):
            loaded(tiny_folder, Path(name))
    with pytest.raises(CheckpointError, match="is a folder"):
        loaded(tiny_folder, tmp_path)


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
