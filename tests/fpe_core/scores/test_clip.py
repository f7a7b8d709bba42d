"""Scores by hand, embeddings as in transformers, and clear errors for what is not a CLIP."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer

from fpe_core import CheckpointError, ParameterError, PromptError
from fpe_core.scores.clip import (
    ROWS_AT_ONCE,
    ClipScorer,
    directional_similarity,
    image_similarity,
    load_scorer,
    text_score,
)
from fpe_core.scores.files import SCORER_DIR
from fpe_core.scores.structure import load_structure_model
from fpe_core.still_life import FACTORS, caption, counterfactual, render, sample_scene
from fpe_core.still_life.train.architecture import build_tokenizer

TEXTS = ["a photo of a red ball", "a teal star", "", "Grüße"]
WINDOW = 12

# As openai/clip-vit-large-patch14 has it, but for the size: older names, bare numbers.
PREPROCESSING = {
    "crop_size": 32,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def folder(shared_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(shared_folder, tmp_path / "clip"))


@pytest.fixture(scope="module")
def scorer(shared_folder: Path) -> ClipScorer:
    return load_scorer(shared_folder, device="cpu")


@pytest.fixture(scope="module")
def built_in() -> ClipScorer:
    return load_scorer(device="cpu")


@pytest.fixture
def pictures(picture: Callable[..., Image.Image]) -> list[Image.Image]:
    """Larger and smaller than the model's size, wide and tall, grey and transparent."""
    modes = ("RGB", "L", "RGBA")
    return [picture(n, 20 + 30 * n, 60 - 10 * n).convert(mode) for n, mode in enumerate(modes)]


# --- the scores -----------------------------------------------------------------------------------


def test_text_score_is_the_cosine() -> None:
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    texts = torch.tensor([[0.6, 0.8], [0.6, 0.8], [-1.0, 0.0]])
    assert text_score(images, texts) == pytest.approx([0.6, 1.0, -1.0])
    assert max(text_score(images, texts)) <= 1.0


def test_image_similarity_is_the_cosine_and_symmetric() -> None:
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.28, 0.96]])
    assert image_similarity(first, second) == pytest.approx([0.28])
    assert image_similarity(second, first) == image_similarity(first, second)


def test_directional_similarity_by_hand() -> None:
    """Differences (-1, 1), (-0.4, 0.8), (1, -1), (-0.4, -0.8) against (-1, 1)."""
    source = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    edited = torch.tensor([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0], [0.6, -0.8]])
    before, after = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([[0.0, 1.0]] * 4)
    expected = [1.0, 1.2 / math.sqrt(2 * 0.8), -1.0, -0.4 / math.sqrt(2 * 0.8)]
    assert directional_similarity(source, edited, before, after) == pytest.approx(expected)


def test_directional_similarity_forgets_what_source_and_edit_share() -> None:
    """Only the differences count, and of them only the direction."""
    torch.manual_seed(0)
    source, edited, before, after = torch.randn(4, 3, 8).unbind()
    expected = directional_similarity(source, edited, before, after)
    moved = directional_similarity(source + 5.0, edited + 5.0, before, after)
    halved = directional_similarity(source, (source + edited) / 2, before, after)
    assert moved == pytest.approx(expected, abs=1e-5)
    assert halved == pytest.approx(expected, abs=1e-5)
    assert directional_similarity(edited, source, before, after) == pytest.approx(
        [-value for value in expected if value is not None]
    )


def test_no_change_has_no_direction() -> None:
    unit, other = torch.eye(4)[:1], torch.eye(4)[1:2]
    rounding = unit + 1e-6
    assert directional_similarity(unit, rounding, unit, other) == [None]
    assert directional_similarity(unit, other, unit, unit) == [None]
    assert directional_similarity(unit, other, unit, other) == pytest.approx([1.0])


def test_rows_that_do_not_match_are_refused() -> None:
    two, three = torch.eye(3)[:2], torch.eye(3)
    with pytest.raises(ParameterError, match=r"text_score .* \(2, 3\) and \(3, 3\)"):
        text_score(two, three)
    with pytest.raises(ParameterError, match="image_similarity"):
        image_similarity(three[0], three[0])
    with pytest.raises(ParameterError, match="directional_similarity"):
        directional_similarity(two, two, two, torch.eye(2))
    assert text_score(two[:0], two[:0]) == []


# --- the embeddings -------------------------------------------------------------------------------


def test_scores_are_those_of_transformers(
    shared_folder: Path, scorer: ClipScorer, pictures: list[Image.Image]
) -> None:
    """Its own model and processor, fed as its documentation says."""
    model = CLIPModel.from_pretrained(shared_folder).eval()
    processor = CLIPProcessor.from_pretrained(shared_folder)
    inputs = processor(text=TEXTS, images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = model(**inputs)
    images, texts = scorer.embed_images(pictures), scorer.embed_texts(TEXTS)
    torch.testing.assert_close(images, expected.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(texts, expected.text_embeds, atol=1e-5, rtol=0)
    logits = model.logit_scale.exp().detach() * images @ texts.T
    torch.testing.assert_close(logits, expected.logits_per_image, atol=1e-4, rtol=0)


def test_embeddings_have_unit_norm_and_can_be_none_or_many(
    scorer: ClipScorer, pictures: list[Image.Image]
) -> None:
    assert scorer.embed_images([]).shape == scorer.embed_texts([]).shape == (0, 16)
    many = scorer.embed_images(pictures * ROWS_AT_ONCE)
    assert many.shape == (3 * ROWS_AT_ONCE, 16)
    assert many.dtype == torch.float32
    torch.testing.assert_close(many.norm(dim=-1), torch.ones(len(many)))
    torch.testing.assert_close(many[-3:], scorer.embed_images(pictures), atol=1e-6, rtol=0)
    alone = torch.cat([scorer.embed_texts([text]) for text in TEXTS])
    torch.testing.assert_close(scorer.embed_texts(TEXTS), alone, atol=1e-6, rtol=0)


def test_a_long_text_is_cut_and_named(scorer: ClipScorer, caplog: pytest.LogCaptureFixture) -> None:
    seen = " ".join(["red"] * (WINDOW - 2))
    with caplog.at_level(logging.WARNING, logger="fpe_core.scores.clip"):
        long, short = scorer.embed_texts([f"{seen} star heart", seen])
    torch.testing.assert_close(long, short, atol=1e-6, rtol=0)
    assert [record.args for record in caplog.records] == [(f"{seen} star heart", 14, WINDOW)]


def test_what_is_no_text_is_refused(scorer: ClipScorer) -> None:
    with pytest.raises(PromptError, match="got 3"):
        scorer.embed_texts(["a star", 3])  # type: ignore[list-item]
    with pytest.raises(PromptError, match="cannot be tokenized"):
        scorer.embed_texts(["\ud800"])


# --- loading --------------------------------------------------------------------------------------


def test_a_hub_id_from_the_local_cache(
    shared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hub's client left in its cache loads by name and revision, without a network."""
    repository = tmp_path / "hub" / "models--somebody--tiny-clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "converted").write_text("0" * 40)
    shutil.copytree(shared_folder, repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    scorer = load_scorer("somebody/tiny-clip", device="cpu", revision="converted")
    assert (scorer.name, scorer.width) == ("somebody/tiny-clip", 16)
    with pytest.raises(CheckpointError, match="could not be downloaded from the Hugging Face hub"):
        load_scorer("somebody/tiny-clip", revision="main")


def test_half_precision_weights_are_scored_in_float32(
    folder: Path, scorer: ClipScorer, pictures: list[Image.Image]
) -> None:
    weights = folder / "model.safetensors"
    save_file({name: each.half() for name, each in load_file(weights).items()}, weights)
    halved = load_scorer(folder, device="cpu")
    assert {weight.dtype for weight in halved.model.parameters()} == {torch.float32}
    assert not any(weight.requires_grad for weight in halved.model.parameters())
    expected = scorer.embed_images(pictures)
    torch.testing.assert_close(halved.embed_images(pictures), expected, atol=2e-3, rtol=0)


def test_a_clip_as_transformers_5_saves_it(
    shared_folder: Path, scorer: ClipScorer, pictures: list[Image.Image], tmp_path: Path
) -> None:
    """CLIPProcessor.save_pretrained of transformers 5.23.0 writes processor_config.json only."""
    folder = tmp_path / "saved"
    CLIPProcessor.from_pretrained(shared_folder).save_pretrained(folder)
    CLIPModel.from_pretrained(shared_folder).save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()
    saved = load_scorer(folder, device="cpu")
    assert torch.equal(saved.embed_images(pictures), scorer.embed_images(pictures))
    assert torch.equal(saved.embed_texts(["a cat"]), scorer.embed_texts(["a cat"]))
    assert load_structure_model(folder, device="cpu").size_px == 32


def test_without_a_window_the_positions_are_the_window(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_scorer(folder, device="cpu")
    assert loaded.window == 77
    assert loaded.embed_texts(["cat " * 100]).shape == (1, loaded.width)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "is not a model's config"),
        (lambda f: (f / "config.json").write_text("[]"), "is not a model's config"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "clip_text_model"}'),
            "its model_type is 'clip_text_model'",
        ),
        (lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
        (lambda f: (f / "preprocessor_config.json").write_text("{"), "cannot be loaded"),
        (
            lambda f: [path.unlink() for path in f.glob("*") if path.name in TOKENIZER_FILES],
            "has no tokenizer",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "pickled weights .* are not read"),
        (lambda f: (f / "model.safetensors").write_bytes(b"abc"), "cannot be loaded"),
        (lambda f: drop_a_weight(f, "text_projection.weight"), "lacks 1 of CLIPModel's weights"),
    ],
)
def test_a_spoilt_folder_is_named(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_scorer(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/place/at all", "Accepted: a folder with a CLIPModel"),
        ("builtin:landscape", "there is builtin:still-life"),
        (__file__, "Accepted: a folder"),
    ],
)
def test_what_is_no_scorer(source: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_scorer(source)


def test_an_unknown_device_is_named(shared_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown device 'gpu'"):
        load_scorer(shared_folder, device="gpu")


# --- the built-in scorer --------------------------------------------------------------------------


def test_the_built_in_scorer_is_small_and_has_a_card() -> None:
    files = [path for path in SCORER_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    assert {path.suffix for path in files} == {".safetensors", ".json", ".txt", ".md"}
    assert "held-out" in (SCORER_DIR / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("factor", FACTORS)
def test_the_built_in_scorer_prefers_the_true_caption(built_in: ClipScorer, factor: str) -> None:
    """Of every value of a factor, on scenes that it was never trained on."""
    scenes = [sample_scene(seed) for seed in range(40)]
    images = built_in.embed_images(render(scene) for scene in scenes)
    scores = torch.tensor(
        [
            text_score(
                images,
                built_in.embed_texts(
                    caption(counterfactual(scene, **{factor: value})) for scene in scenes
                ),
            )
            for value in FACTORS[factor]
        ]
    )
    true = [FACTORS[factor].index(getattr(scene, factor)) for scene in scenes]
    assert (scores.argmax(0) == torch.tensor(true)).double().mean() >= 0.95


def test_the_built_in_scorer_sees_the_direction_of_an_edit(built_in: ClipScorer) -> None:
    """The requested colour has the direction; another colour has it less, and no edit has none."""
    scenes = [sample_scene(seed) for seed in range(12)]
    wanted = [counterfactual(scene, colour=another(scene.colour, 2)) for scene in scenes]
    other = [counterfactual(scene, colour=another(scene.colour, 6)) for scene in scenes]
    pictures = [
        built_in.embed_images(render(scene) for scene in each) for each in (scenes, wanted, other)
    ]
    asked = [built_in.embed_texts(caption(scene) for scene in each) for each in (scenes, wanted)]
    right = directional_similarity(pictures[0], pictures[1], *asked)
    wrong = directional_similarity(pictures[0], pictures[2], *asked)
    for first, second in zip(right, wrong, strict=True):
        assert first is not None
        assert second is not None
        assert first > 0.8
        assert first > second + 0.1
    assert directional_similarity(pictures[0], pictures[0], *asked) == [None] * len(scenes)


def another(colour: str, further: int) -> str:
    colours = FACTORS["colour"]
    return colours[(colours.index(colour) + further) % len(colours)]


TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")


def build_tiny_clip(folder: Path) -> Path:
    """A random CLIP for images of 32 px and texts of twelve tokens, as the hub would have it."""
    tokenizer = build_tokenizer(folder)
    CLIPTokenizer.from_pretrained(folder, model_max_length=WINDOW).save_pretrained(folder)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return folder


def drop_a_weight(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
