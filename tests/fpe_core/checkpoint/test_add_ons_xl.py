"""LoRAs, embeddings and an autoencoder with Stable Diffusion XL, held against diffusers'."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor

from fpe_core import Checkpoint, CheckpointError, Embedding, Lora, load_checkpoint
from fpe_core.checkpoint.add_on_check import check_add_ons
from fpe_core.checkpoint.add_on_files import located
from fpe_core.checkpoint.add_ons import AddOns
from fpe_core.checkpoint.files import locate
from tests.builders.lora_files import (
    PEFT,
    dotted,
    kohya,
    kohya_of_text,
    layers_of,
    original_spelling,
    written,
)
from tests.builders.tiny_checkpoint import build_tiny_xl

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of peft
CLOSE = 1e-5
PROMPT = "a <ink> cat in snow"


@pytest.fixture(scope="session")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="session")
def plain(xl_folder: Path) -> Checkpoint:
    return loaded(xl_folder)


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)


def loaded(folder: Path, **options: Any) -> Checkpoint:
    return load_checkpoint(folder, device="cpu", **{"dtype": "float32", **options})


def checked(folder: Path, **add_ons: Any) -> None:
    """As when a job is planned."""
    found = located(AddOns.of(**add_ons), allow_pickle=False)
    check_add_ons(folder, locate(folder, False, None), found, False, None)


def predicted(unet: Any) -> Tensor:
    """What a UNet gives for the same random input, at every call."""
    generator = torch.Generator().manual_seed(5)
    more = {
        "text_embeds": torch.randn((2, 12), generator=generator),
        "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2),
    }
    latents = torch.randn((2, 4, 8, 8), generator=generator)
    prompt = torch.randn((2, 9, 40), generator=generator)
    with torch.no_grad():
        return unet(latents, 7, prompt, added_cond_kwargs=more).sample


def assert_same(ours: Checkpoint, theirs: Any, without: Checkpoint) -> None:
    """Predictions of the UNet, embeddings of a prompt, and the pooled one."""
    expected, _, pooled, _ = theirs.encode_prompt(
        PROMPT, device="cpu", do_classifier_free_guidance=False
    )
    mine, before = ours.text_encoders.encode([PROMPT]), without.text_encoders.encode([PROMPT])
    for own, other, plainly in zip(
        (predicted(ours.unet), *mine),
        (predicted(theirs.unet), expected.detach(), pooled.detach()),
        (predicted(without.unet), *before),
        strict=True,
    ):
        assert other is not None
        assert float((own - other).abs().max()) <= CLOSE
        assert float((own - plainly).abs().max()) > 1e-2


def in_original(name: str) -> str:
    """The original layout's name; tests.builders.single_file has those of four levels."""
    for block in range(2):
        name = name.replace(
            f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{3 * block + 2}.2.conv"
        )
    return original_spelling(name)


@pytest.mark.parametrize("layout", ["kohya", "kohya, original names", "peft"])
def test_a_lora_for_xl_is_what_diffusers_makes_of_it(
    layout: str, xl_folder: Path, plain: Checkpoint, tmp_path: Path
) -> None:
    """Every linear layer and convolution in the UNet's blocks, and those of both text encoders."""
    unet = layers_of(plain.unet, r"(down|mid|up)_block")
    first = layers_of(plain.text_encoder)
    second = layers_of(plain.text_encoder_2, r"encoder\.layers")
    if layout == "peft":
        tensors = dotted(unet, "unet.", 1, PEFT)
        tensors |= dotted(first, "text_encoder.", 2, PEFT)
        tensors |= dotted(second, "text_encoder_2.", 3, PEFT)
    else:
        spelling = in_original if "original" in layout else str
        tensors = kohya(unet, "lora_unet_", 1, spelling=spelling)
        tensors |= kohya_of_text(first, "lora_te1_", 2)
        tensors |= kohya_of_text(second, "lora_te2_", 3)
        assert any("input_blocks_4_1" in name for name in tensors) == ("original" in layout)
    file = written(tensors, tmp_path / "lora.safetensors")
    checked(xl_folder, loras=[file])
    pipe = StableDiffusionXLPipeline.from_pretrained(xl_folder)
    pipe.load_lora_weights(str(tmp_path), weight_name=file.name, adapter_name="a")
    pipe.set_adapters(["a"], [0.2])
    assert_same(loaded(xl_folder, loras=[Lora(file, 0.2)]), pipe, plain)


def test_layers_outside_the_blocks_are_read_too(
    xl_folder: Path, plain: Checkpoint, tmp_path: Path
) -> None:
    """kohya's names for them in the original layout, and the projection of the second encoder."""
    names = {
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    unet = {name: each for name, each in layers_of(plain.unet).items() if name in names}
    assert set(unet) == set(names)
    second = layers_of(plain.text_encoder_2, "text_projection")
    ours, theirs = (
        kohya(unet, "lora_unet_", 1, spelling=spelling) | kohya_of_text(second, "lora_te2_", 3)
        for spelling in (names.__getitem__, str)
    )
    files = [
        written(each, tmp_path / f"{number}.safetensors")
        for number, each in enumerate((ours, theirs))
    ]
    checked(xl_folder, loras=files)
    one, other = (loaded(xl_folder, loras=[each]) for each in files)
    assert torch.equal(predicted(one.unet), predicted(other.unet))
    assert float((predicted(one.unet) - predicted(plain.unet)).abs().max()) > 1e-2
    (_, pooled), (_, before) = (e.text_encoders.encode([PROMPT]) for e in (one, plain))
    assert pooled is not None
    assert float((pooled - before).abs().max()) > 1e-2


def test_an_embedding_for_xl_is_what_diffusers_makes_of_it(
    xl_folder: Path, plain: Checkpoint, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(2)
    tensors = {
        "clip_l": torch.randn((3, 16), generator=generator),
        "clip_g": torch.randn((3, 24), generator=generator),
    }
    file = tmp_path / "ink.safetensors"
    save_file(tensors, file)
    checked(xl_folder, embeddings=[Embedding(file, "<ink>")])
    pipe = StableDiffusionXLPipeline.from_pretrained(xl_folder)
    for name, end in (("clip_l", ""), ("clip_g", "_2")):
        pipe.load_textual_inversion(
            {"<ink>": tensors[name]},
            tokenizer=getattr(pipe, f"tokenizer{end}"),
            text_encoder=getattr(pipe, f"text_encoder{end}"),
        )
    ours = loaded(xl_folder, embeddings=[Embedding(file, "<ink>")])
    expected, _, pooled, _ = pipe.encode_prompt(
        PROMPT, device="cpu", do_classifier_free_guidance=False
    )
    mine, mine_pooled = ours.text_encoders.encode([PROMPT])
    assert mine_pooled is not None
    assert float((mine - expected.detach()).abs().max()) <= CLOSE
    assert float((mine_pooled - pooled.detach()).abs().max()) <= CLOSE
    assert float((mine - plain.text_encoders.encode([PROMPT])[0]).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"<ink>": torch.ones((1, 16))}, "for a model with one text encoder"),
        ({"clip_l": torch.ones((1, 16))}, "no vectors for the checkpoint's text_encoder_2"),
        ({"clip_l": torch.ones((1, 16)), "clip_g": torch.ones((2, 24))}, "other numbers of vec"),
        ({"clip_l": torch.ones((1, 16)), "clip_g": torch.ones((1, 16))}, "its clip_g is"),
    ],
)
def test_an_embedding_that_does_not_fit_both_is_refused(
    tensors: dict[str, Tensor], message: str, xl_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "ink.safetensors"
    save_file(tensors, file)
    for load in (checked, loaded):
        with pytest.raises(CheckpointError, match=message):
            load(xl_folder, embeddings=[Embedding(file, "<ink>")])


def test_the_autoencoder_stays_in_float32_where_half_precision_overflows(
    xl_folder: Path, plain: Checkpoint, tmp_path: Path
) -> None:
    """As without add-ons; one of one's own, mended for half precision, is used in it."""
    text = layers_of(plain.text_encoder)
    file = written(kohya_of_text(text, "lora_te1_", 2), tmp_path / "lora.safetensors")
    half = loaded(xl_folder, dtype="float16", loras=[file])
    assert (half.vae.dtype, half.unet.dtype) == (torch.float32, torch.float16)
    assert half.text_encoder_2.dtype == half.text_encoder.dtype == torch.float16
    mended = Path(shutil.copytree(xl_folder / "vae", tmp_path / "vae"))
    assert loaded(xl_folder, dtype="float16", vae=mended).vae.dtype == torch.float32
    config = json.loads((mended / "config.json").read_text())
    (mended / "config.json").write_text(json.dumps(config | {"force_upcast": False}))
    checked(xl_folder, vae=mended)
    own = loaded(xl_folder, dtype="float16", vae=mended).vae
    assert own.dtype == torch.float16
    theirs = AutoencoderKL.from_pretrained(mended, torch_dtype=torch.float16)
    for mine, expected in zip(own.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, expected)
