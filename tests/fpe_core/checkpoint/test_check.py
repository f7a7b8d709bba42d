"""What cannot be loaded whole, or is of another family, is refused by configs and headers alone;
what the libraries' tools write is taken."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fpe_core import CheckpointError, EditParameters, checkpoint_defaults, load_checkpoint
from fpe_core.checkpoint.check import check_files
from fpe_core.checkpoint.files import locate
from fpe_core.checkpoint.original_layout import text_encoder_in_file
from fpe_core.unet.prompts import encode_prompts
from tests.builders.single_file import write_single_file

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
A_QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"

Spoil = Callable[[Path], object]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint"))


def check(source: Path, config: Path | None = None) -> None:
    check_files(source, locate(source, allow_pickle=False, revision=None), False, config)


def change_weights(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / file)
        change(weights)
        save_file(weights, folder / file, metadata={"format": "pt"})

    return spoil


def without(file: str, pattern: str) -> Spoil:
    def drop(weights: dict[str, torch.Tensor]) -> None:
        found = [name for name in weights if re.search(pattern, name)]
        assert found
        for name in found:
            del weights[name]

    return change_weights(file, drop)


def renamed(file: str, pattern: str, replacement: str) -> Spoil:
    def rename(weights: dict[str, torch.Tensor]) -> None:
        new = {re.sub(pattern, replacement, name): each for name, each in weights.items()}
        assert new.keys() != weights.keys()
        weights.clear()
        weights.update(new)

    return change_weights(file, rename)


def with_weights(file: str, **weights: torch.Tensor) -> Spoil:
    return change_weights(file, lambda held: held.update(weights))


def with_values(file: str, **values: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def without_value(file: str, *names: str) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in content.items() if k not in names}))

    return spoil


WEIGHTS: dict[str, tuple[Spoil, str]] = {
    "a UNet that lacks one": (
        without(UNET, re.escape(A_QUERY)),
        rf"its UNet lacks 1 of UNet2DConditionModel's weights \({A_QUERY}\)",
    ),
    "an autoencoder that lacks some": (
        without(VAE, r"^post_quant_conv"),
        "its autoencoder lacks 2 of AutoencoderKL's weights",
    ),
    "a text encoder that lacks a layer": (
        without(TEXT, r"encoder\.layers\.1\."),
        "its text encoder lacks 16 of CLIPTextModel's weights",
    ),
    "a text encoder without its last norm": (
        without(TEXT, "final_layer_norm"),
        "its text encoder lacks 2 of",
    ),
    # The names that peft 0.21.2 and diffusers 0.42.1 leave after fuse_lora() without an unload.
    "a LoRA fused and not unloaded, UNet": (
        renamed(UNET, r"attn1\.to_q\.", "attn1.to_q.base_layer."),
        "a network saved while a LoRA was still attached",
    ),
    "a LoRA fused and not unloaded, text encoder": (
        renamed(TEXT, r"q_proj\.", "q_proj.base_layer."),
        "a network saved while a LoRA was still attached",
    ),
    "a LoRA beside the weights": (
        with_weights(UNET, **{A_QUERY.replace(".weight", ".lora_A.default.weight"): torch.ones(2)}),
        r"holds 1 that UNet2DConditionModel does not have .* It looks like a LoRA",
    ),
    "LoRA processors": (
        with_weights(
            UNET, **{"mid_block.attentions.0.attn1.processor.to_q_lora.down.weight": torch.ones(2)}
        ),
        "It looks like a LoRA",
    ),
    "an IP-Adapter in the UNet": (
        with_weights(
            UNET, **{"mid_block.attentions.0.attn2.processor.to_k_ip.0.weight": torch.ones(2)}
        ),
        "an IP-Adapter",
    ),
    "a weight that nothing reads": (
        with_weights(VAE, something=torch.ones(2)),
        r"holds 1 that AutoencoderKL does not have \(something\)",
    ),
    "another shape": (
        with_weights(UNET, **{"conv_in.weight": torch.ones(8, 9, 3, 3)}),
        r"conv_in\.weight is \[8, 9, 3, 3\], not \[8, 4, 3, 3\]",
    ),
    "whole numbers": (
        with_weights(UNET, **{"conv_in.bias": torch.ones(8, dtype=torch.int8)}),
        r"conv_in\.bias is \[8\] of I8",
    ),
    "quantised by bitsandbytes": (
        with_weights(UNET, **{"conv_in.weight.absmax": torch.ones(8)}),
        "a quantised model",
    ),
    "a config with other widths": (
        with_values("unet/config.json", block_out_channels=[8, 16, 16, 24]),
        "its config describes otherwise",
    ),
}

FAMILIES: dict[str, tuple[Spoil, str]] = {
    "another text encoder, by the index": (
        with_values("model_index.json", text_encoder=["transformers", "XLMRobertaModel"]),
        "its text encoder is not a CLIPTextModel but a XLMRobertaModel",
    ),
    "another text encoder, by its config": (
        with_values("text_encoder/config.json", model_type="bert"),
        "its text encoder is not a CLIPTextModel: its model_type is 'bert'",
    ),
    "another tokenizer": (
        with_values("model_index.json", tokenizer=["transformers", "BertTokenizer"]),
        "its tokenizer is not a CLIPTokenizer but a BertTokenizer",
    ),
    "AutoencoderTiny": (
        with_values("vae/config.json", _class_name="AutoencoderTiny"),
        "its autoencoder is not an AutoencoderKL but an AutoencoderTiny",
    ),
    "a UNet of videos": (
        with_values("unet/config.json", _class_name="UNetMotionModel"),
        "its UNet is not a UNet2DConditionModel but a UNetMotionModel",
    ),
    "Stable Diffusion XL": (
        with_values("model_index.json", text_encoder_2=["transformers", "CLIPTextModel"]),
        "a second text encoder, and a UNet without added embeddings",
    ),
    "SDXL's UNet": (
        with_values("unet/config.json", addition_embed_type="text_time"),
        "no second text",
    ),
    "inpainting": (with_values("unet/config.json", in_channels=9), "an inpainting or depth model"),
    "a UNet that predicts variances": (
        with_values("unet/config.json", out_channels=8),
        "its UNet gives 8 channels, not 4",
    ),
    "latent consistency": (with_values("unet/config.json", time_cond_proj_dim=256), "time_cond"),
    "classes": (with_values("unet/config.json", num_class_embeds=10), "it has num_class_embeds"),
    "another width of texts": (
        with_values("unet/config.json", cross_attention_dim=32),
        "attends over width 32, its text encoder gives 16",
    ),
    "GLIGEN": (with_values("unet/config.json", attention_type="gated"), "its attention is gated"),
    "a quantised text encoder": (
        with_values("text_encoder/config.json", quantization_config={"load_in_4bit": True}),
        "its text encoder is quantised",
    ),
    "an autoencoder of another family": (
        with_values("vae/config.json", latent_channels=16),
        r"the autoencoder has 16 \(an autoencoder of another family\?\)",
    ),
    "depth in the autoencoder": (
        with_values("vae/config.json", in_channels=6, out_channels=6),
        "its autoencoder takes 6 and gives 6 channels",
    ),
}

SCHEDULES: dict[str, tuple[Spoil, str]] = {
    "betas": (
        with_values("scheduler/scheduler_config.json", beta_schedule="squaredcos_cap_v2"),
        "beta_schedule 'squaredcos_cap_v2' is not supported",
    ),
    "predictions": (
        with_values("scheduler/scheduler_config.json", prediction_type="sample"),
        "prediction_type 'sample' is not supported",
    ),
    "flow matching, by class": (
        with_values(
            "scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"
        ),
        "flow-matching",
    ),
    "flow matching, by option": (
        with_values("scheduler/scheduler_config.json", use_flow_sigmas=True),
        "flow-matching",
    ),
    "no betas": (
        without_value("scheduler/scheduler_config.json", "beta_start", "beta_end", "beta_schedule"),
        "does not say with which betas",
    ),
    "betas that are none": (
        with_values("scheduler/scheduler_config.json", trained_betas=[0.1, 2.0, 0.1]),
        "betas that are not all between 0 and 1",
    ),
    "words for betas": (
        with_values("scheduler/scheduler_config.json", beta_start="small"),
        "unusable betas",
    ),
}

TOKENIZERS: dict[str, tuple[Spoil, str]] = {
    "none": (
        lambda f: [path.unlink() for path in (f / "tokenizer").glob("*.*")],
        "has no tokenizer of CLIP",
    ),
    "tokens without an embedding": (
        lambda f: (f / "tokenizer/added_tokens.json").write_text('{"<cat-toy>": 5000}'),
        "tokens up to number 5000, its text encoder only",
    ),
}

REFUSED = {
    f"{kind}: {name}": spoilt
    for kind, cases in (
        ("weights", WEIGHTS),
        ("family", FAMILIES),
        ("schedule", SCHEDULES),
        ("tokenizer", TOKENIZERS),
    )
    for name, spoilt in cases.items()
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_edited_with_is_refused(folder: Path, case: str) -> None:
    spoil, message = REFUSED[case]
    check(folder)
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        check(folder)
    assert str(folder) in str(caught.value)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder, device="cpu")


def test_the_check_needs_no_torch(tiny_folder: Path) -> None:
    code = (
        "import sys; from fpe_core.checkpoint.check import check_files; "
        "from fpe_core.checkpoint.files import locate; "
        f"folder = {str(tiny_folder)!r}; "
        "check_files(folder, locate(folder, False, None), False, None); "
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_weights_in_pickles_are_checked_when_they_are_loaded(folder: Path) -> None:
    """transformers would fill them in with random numbers, and diffusers leave them empty."""
    for file, pickled, lost in (
        (TEXT, "text_encoder/pytorch_model.bin", "final_layer_norm.weight"),
        (UNET, "unet/diffusion_pytorch_model.bin", A_QUERY),
    ):
        weights = load_file(folder / file)
        whole = dict(weights)
        del weights[next(name for name in weights if name.endswith(lost))]
        torch.save(weights, folder / pickled)
        (folder / file).unlink()
        with pytest.raises(CheckpointError, match=f"lacks 1 of .*{re.escape(lost)}"):
            load_checkpoint(folder, device="cpu", allow_pickle=True)
        (folder / pickled).unlink()
        save_file(whole, folder / file, metadata={"format": "pt"})


# --- what is taken --------------------------------------------------------------------------------


def embedding(folder: Path, **options: Any) -> torch.Tensor:
    checkpoint = load_checkpoint(folder, device="cpu", **options)
    return encode_prompts(checkpoint.text_encoders, [("a red cat", None)]).embeddings


def with_old_attention(folder: Path) -> None:
    """As Stable Diffusion 1.5's own autoencoder has its attention (diffusers before 0.15)."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v")):
        renamed(VAE, rf"\.{new}\.", f".{old}.")(folder)
    renamed(VAE, r"\.to_out\.0\.", ".proj_attn.")(folder)


def with_projection(folder: Path) -> None:
    with_weights(TEXT, **{"text_projection.weight": torch.ones(16, 16)})(folder)
    with_values("model_index.json", text_encoder=["transformers", "CLIPTextModelWithProjection"])(
        folder
    )


def in_shards(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / UNET).unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="100KB")
    assert len(list((folder / "unet").glob("*-of-*"))) > 1


TAKEN: dict[str, Spoil] = {
    "old names of the autoencoder's attention": with_old_attention,
    "position ids, as transformers 4.30 saved them": with_weights(
        TEXT, **{"text_model.embeddings.position_ids": torch.arange(77)[None]}
    ),
    "a projection": with_projection,
    "shards": in_shards,
    "an index without the classes": lambda f: (f / "model_index.json").write_text("{}"),
    "a fast tokenizer": with_values(
        "model_index.json", tokenizer=["transformers", "CLIPTokenizerFast"]
    ),
    "no window": without_value("tokenizer/tokenizer_config.json", "model_max_length"),
    "another scheduler": with_values(
        "scheduler/scheduler_config.json", _class_name="PNDMScheduler"
    ),
    "a ControlNet in the index": with_values(
        "model_index.json", controlnet=["diffusers", "ControlNetModel"], image_encoder=[None, None]
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_usual_tools_write_is_taken(tiny_folder: Path, folder: Path, case: str) -> None:
    TAKEN[case](folder)
    check(folder)
    assert torch.equal(embedding(folder), embedding(tiny_folder))


@pytest.mark.parametrize("has_prefix", [False, True])
def test_both_spellings_of_the_text_encoder_are_read(
    tiny_folder: Path, folder: Path, has_prefix: bool
) -> None:
    """transformers before 5.6 writes names with `text_model.`, later ones without."""
    weights = load_file(folder / TEXT)
    bare = {name.removeprefix("text_model."): each for name, each in weights.items()}
    prefix = "text_model." if has_prefix else ""
    save_file({prefix + k: v for k, v in bare.items()}, folder / TEXT, metadata={"format": "pt"})
    assert torch.equal(embedding(folder), embedding(tiny_folder))


def test_layers_left_out_by_the_config_are_not_missed(tiny_folder: Path, folder: Path) -> None:
    """ "Clip skip" as a config: the text encoder ends one layer earlier."""
    with_values("text_encoder/config.json", num_hidden_layers=1)(folder)
    check(folder)
    shorter = load_checkpoint(folder, device="cpu")
    assert len(shorter.text_encoder.state_dict()) == 16 + 4
    assert not torch.equal(embedding(folder), embedding(tiny_folder))


@pytest.mark.parametrize("stated", [None, 20, 512])
def test_the_window_is_the_smaller_of_tokenizer_and_text_encoder(
    folder: Path, stated: int | None
) -> None:
    file = "tokenizer/tokenizer_config.json"
    without_value(file, "model_max_length")(folder)
    if stated is not None:
        with_values(file, model_max_length=stated)(folder)
    expected = min(stated or 77, 77)
    checkpoint = load_checkpoint(folder, device="cpu")
    assert checkpoint.tokenizer.model_max_length == expected
    encoded = encode_prompts(checkpoint.text_encoders, [("cat " * 100, None)])
    assert encoded.embeddings.shape == (1, expected, 16)
    assert encoded.truncated


def test_a_tokenizer_of_two_files(tmp_path: Path) -> None:
    """vocab.json and merges.txt alone, as OpenAI's and many conversions have it."""
    from fpe_core.checkpoint.files import CHECKPOINT_DIR

    folder = Path(shutil.copytree(CHECKPOINT_DIR, tmp_path / "checkpoint"))
    for path in (folder / "tokenizer").iterdir():
        if path.name not in ("vocab.json", "merges.txt"):
            path.unlink()
    check(folder)
    assert torch.equal(embedding(folder), embedding(CHECKPOINT_DIR))


# --- single files ---------------------------------------------------------------------------------


@pytest.fixture
def single(tiny_folder: Path, tmp_path: Path) -> Path:
    return write_single_file(tiny_folder, tmp_path / "model.safetensors")


def rewritten(single: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, Any]]) -> None:
    save_file(change(load_file(single)), single)


SINGLE: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, Any]], str]] = {
    "no autoencoder": (
        lambda w: {k: v for k, v in w.items() if not k.startswith("first_stage_model.")},
        "holds no autoencoder: .* It holds UNet and text encoder only",
    ),
    "no text encoder": (
        lambda w: {k: v for k, v in w.items() if not k.startswith("cond_stage_model.")},
        "holds no text encoder",
    ),
    "a LoRA": (
        lambda _: {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2)},
        "It looks like a LoRA",
    ),
    "a UNet alone": (
        lambda _: {"conv_in.weight": torch.ones(2), "mid_block.x": torch.ones(2)},
        "It looks like a UNet alone",
    ),
    "an embedding": (lambda _: {"emb_params": torch.ones(2)}, "an embedding of textual inversion"),
    "Stable Diffusion XL": (
        lambda w: {
            k.replace("cond_stage_model", "conditioner.embedders.0"): v for k, v in w.items()
        },
        "Stable Diffusion XL",
    ),
    "a middle block that is missing": (
        lambda w: {k: v for k, v in w.items() if ".middle_block.1." not in k},
        "its UNet, with the config of .*, lacks 26 of",
    ),
    "a LoRA attached": (
        lambda w: {k.replace("attn1.to_q.", "attn1.to_q.base_layer."): v for k, v in w.items()},
        "while a LoRA was still attached",
    ),
    "another width": (
        lambda w: w | {"model.diffusion_model.time_embed.0.weight": torch.ones(64, 8)},
        r"is \[64, 8\], not \[32, 8\].* The config is of another model",
    ),
}


@pytest.mark.parametrize("case", SINGLE)
def test_a_single_file_that_is_not_whole(single: Path, tiny_folder: Path, case: str) -> None:
    change, message = SINGLE[case]
    check(single, tiny_folder)
    rewritten(single, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        check(single, tiny_folder)
    assert str(single) in str(caught.value)
    assert "without network access" not in str(caught.value), "configs were given"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(single, device="cpu", config=tiny_folder)


def test_what_single_files_hold_beside_the_networks(single: Path, tiny_folder: Path) -> None:
    more = {
        "betas": torch.ones(1000),
        "model_ema.diffusion_modelout2bias": torch.ones(4),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "cond_stage_model.logit_scale": torch.ones(()),
        "first_stage_model.loss.logvar": torch.ones(()),
    }
    expected = embedding(single, config=tiny_folder)
    rewritten(single, lambda weights: weights | more)
    check(single, tiny_folder)
    assert torch.equal(embedding(single, config=tiny_folder), expected)


def test_a_single_file_of_stable_diffusion_2(single: Path, tiny_folder: Path) -> None:
    """Its text encoder is OpenCLIP's, with one layer more than its config has."""
    expected = embedding(single, config=tiny_folder)
    text = load_file(tiny_folder / TEXT)
    text = {name.removeprefix("text_model."): each for name, each in text.items()}

    def as_openclip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        joined: dict[str, dict[str, torch.Tensor]] = {}
        for name, each in text.items():
            (original,) = text_encoder_in_file(
                {name: tuple(each.shape)}, ["cond_stage_model.model.ln_final.weight"]
            )
            joined.setdefault(original, {})[name] = each
        made = {k: v for k, v in weights.items() if not k.startswith("cond_stage_model.")}
        for original, parts in joined.items():  # q_proj, k_proj, v_proj in this order
            names = sorted(parts, key=lambda name: "qkv".find(name.split(".")[-2][0]))
            made[original] = torch.cat([parts[name] for name in names])
        last = [name for name in made if ".resblocks.1." in name]
        return made | {n.replace(".resblocks.1.", ".resblocks.2."): made[n].clone() for n in last}

    rewritten(single, as_openclip)
    check(single, tiny_folder)
    assert torch.equal(embedding(single, config=tiny_folder), expected)


def test_a_single_file_has_the_size_and_defaults_of_its_config(single: Path, folder: Path) -> None:
    assert checkpoint_defaults(single) == EditParameters()
    assert checkpoint_defaults(single, config=folder) == EditParameters(width_px=64, height_px=64)
    (folder / "fpe_defaults.json").write_text('{"size_px": 96, "steps": 25}')
    expected = EditParameters(steps=25, width_px=96, height_px=96)
    assert checkpoint_defaults(single, config=folder) == expected
    loaded = load_checkpoint(single, device="cpu", config=folder)
    assert loaded.default_parameters == expected
    (folder / "tokenizer/tokenizer_config.json").write_text("{}")
    assert load_checkpoint(single, device="cpu", config=folder).tokenizer.model_max_length == 77


# --- textual inversion ----------------------------------------------------------------------------


def test_an_embedding_of_several_vectors_means_all_of_them(tiny_folder: Path, folder: Path) -> None:
    """As diffusers 0.42.1 has it (TextualInversionLoaderMixin.maybe_convert_prompt)."""
    from diffusers import StableDiffusionPipeline

    pipe: Any = StableDiffusionPipeline.from_pretrained(
        tiny_folder, safety_checker=None, requires_safety_checker=False
    )
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    pipe.load_textual_inversion(vectors, token="<cat-toy>")
    pipe.save_pretrained(folder)
    check(folder)
    checkpoint = load_checkpoint(folder, device="cpu")
    prompts = [
        "a red <cat-toy> of snow",
        "a red <cat-toy> <cat-toy>_1 <cat-toy>_2 of snow",
        "<cat-toy>, <cat-toy>",
        "a cat",
    ]
    found = encode_prompts(checkpoint.text_encoders, [(each, None) for each in prompts])
    assert torch.equal(found.embeddings[0], found.embeddings[1]), "written out"
    for prompt in (prompts[0], prompts[2], prompts[3]):
        expected = pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)[0][0]
        assert torch.equal(found.embeddings[found.of(prompt)], expected)
