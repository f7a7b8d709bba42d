"""All scores at once equal the single ones; each can be left out; repeated work is done once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from fpe_core import ParameterError
from fpe_core.scores.clip import (
    ClipScorer,
    directional_similarity,
    image_similarity,
    load_scorer,
    text_score,
)
from fpe_core.scores.edit_scores import SCORES, EditScores
from fpe_core.scores.lpips import LpipsModel, load_lpips, lpips
from fpe_core.scores.pixels import (
    changed_share,
    clipped_shift,
    psnr_db,
    saturation_shift,
    sharpness_ratio,
    ssim,
)
from fpe_core.scores.score import score_edits
from fpe_core.scores.structure import StructureModel, load_structure_model, structure_distance
from fpe_core.still_life import caption, counterfactual, render, sample_scene

SCENE, OTHER = sample_scene(2000), sample_scene(2001)
ANSWERS = [
    counterfactual(SCENE, colour="green" if SCENE.colour != "green" else "red"),
    counterfactual(SCENE, background="black" if SCENE.background != "black" else "pink"),
    counterfactual(OTHER, colour="green" if OTHER.colour != "green" else "red"),
]
SOURCES = [render(SCENE, 64), render(SCENE, 64), render(OTHER, 64)]
EDITS = [render(answer, 64) for answer in ANSWERS]
PROMPTS = [caption(SCENE), caption(SCENE), caption(OTHER)]
TARGETS = [caption(answer) for answer in ANSWERS]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "clip": load_scorer(device="cpu"),
        "structure": load_structure_model(device="cpu"),
        "lpips_model": random_lpips(tmp_path_factory.mktemp("alexnet") / "alex.safetensors"),
    }


@pytest.fixture(scope="module")
def every(models: dict[str, Any]) -> list[EditScores]:
    return score_edits(SOURCES, EDITS, PROMPTS, TARGETS, **models)


def test_every_score_is_the_single_one(models: dict[str, Any], every: list[EditScores]) -> None:
    clip, structure = models["clip"], models["structure"]
    images, texts = clip.embed_images, clip.embed_texts
    expected = {
        "text_score": text_score(images(EDITS), texts(TARGETS)),
        "directional_similarity": directional_similarity(
            images(SOURCES), images(EDITS), texts(PROMPTS), texts(TARGETS)
        ),
        "image_similarity": image_similarity(images(SOURCES), images(EDITS)),
        "structure_distance": structure_distance(
            structure.self_similarities(SOURCES), structure.self_similarities(EDITS)
        ),
        "lpips": lpips(models["lpips_model"], SOURCES, EDITS),
        "ssim": ssim(SOURCES, EDITS),
        "psnr_db": psnr_db(SOURCES, EDITS),
        "changed_share": changed_share(SOURCES, EDITS),
        "sharpness_ratio": sharpness_ratio(SOURCES, EDITS),
        "saturation_shift": saturation_shift(SOURCES, EDITS),
        "clipped_shift": clipped_shift(SOURCES, EDITS),
    }
    assert set(expected) == SCORES
    for name, values in expected.items():
        assert [getattr(each, name) for each in every] == pytest.approx(values, abs=1e-5), name
    assert all(value is not None for each in every for value in dataclasses.astuple(each))
    alone = [
        score_edits([a], [b], [c], [d], **models)[0]
        for a, b, c, d in zip(SOURCES, EDITS, PROMPTS, TARGETS, strict=True)
    ]
    for one, other in zip(every, alone, strict=True):
        assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), abs=1e-5)


def test_a_score_without_its_model_is_off() -> None:
    (found,) = score_edits(SOURCES[:1], EDITS[:1], PROMPTS[:1], TARGETS[:1])
    assert {name for name, value in dataclasses.asdict(found).items() if value is None} == {
        "text_score",
        "directional_similarity",
        "image_similarity",
        "structure_distance",
        "lpips",
    }


@pytest.mark.parametrize("name", sorted(SCORES))
def test_each_score_alone(name: str, models: dict[str, Any], every: list[EditScores]) -> None:
    only = score_edits(SOURCES, EDITS, PROMPTS, TARGETS, **models, which={name})
    for one, all_of_them in zip(only, every, strict=True):
        expected = EditScores(**{name: getattr(all_of_them, name)})
        assert dataclasses.asdict(one) == pytest.approx(dataclasses.asdict(expected))


def test_each_score_can_be_off(models: dict[str, Any]) -> None:
    row = SOURCES[:1], EDITS[:1], PROMPTS[:1], TARGETS[:1]
    for name in ("text_score", "lpips", "structure_distance", "ssim"):
        (found,) = score_edits(*row, **models, which=SCORES - {name})
        assert [n for n, value in dataclasses.asdict(found).items() if value is None] == [name]


def test_nothing_is_asked(models: dict[str, Any]) -> None:
    assert score_edits(SOURCES, EDITS, PROMPTS, TARGETS, which=frozenset()) == [EditScores()] * 3
    assert score_edits([], [], [], [], **models) == []


def test_no_edit_has_no_direction(models: dict[str, Any]) -> None:
    (found,) = score_edits(SOURCES[:1], SOURCES[:1], PROMPTS[:1], TARGETS[:1], **models)
    assert found.directional_similarity is None
    assert found.psnr_db == math.inf
    assert (found.structure_distance, found.changed_share, found.lpips) == (0.0, 0.0, 0.0)
    assert found.ssim == pytest.approx(1.0)
    assert found.image_similarity == pytest.approx(1.0)


def test_an_unknown_source_prompt_has_no_direction(models: dict[str, Any]) -> None:
    found = score_edits(SOURCES, EDITS, [None, "", PROMPTS[2]], TARGETS, **models)
    assert found[0].directional_similarity is None
    assert None not in {found[1].directional_similarity, found[2].directional_similarity}
    assert found[0].text_score is not None


def test_what_repeats_goes_through_a_model_once(models: dict[str, Any]) -> None:
    clip, structure = CountingClip.of(models["clip"]), CountingStructure.of(models["structure"])
    again = [SOURCES[0], SOURCES[0].copy(), SOURCES[2], SOURCES[0]]
    rows = [0, 1, 2, 0]
    edits, targets = [EDITS[row] for row in rows], [TARGETS[row] for row in rows]
    found = score_edits(
        again, edits, [PROMPTS[row] for row in rows], targets, clip=clip, structure=structure
    )
    assert sorted(clip.images) == [2, 4], "two different sources, four edits"
    assert sorted(clip.texts) == [2, 3]
    assert sorted(structure.pictures) == [2, 4]
    assert found[0] == found[3]
    expected = score_edits(
        SOURCES, EDITS, PROMPTS, TARGETS, clip=models["clip"], structure=models["structure"]
    )
    for row, one in zip(rows, found, strict=True):
        assert dataclasses.asdict(one) == pytest.approx(dataclasses.asdict(expected[row]), abs=1e-5)


def test_sources_with_equal_bytes_and_other_sizes_are_two(models: dict[str, Any]) -> None:
    structure = CountingStructure.of(models["structure"])
    plain = [Image.new("RGB", size, "red") for size in ((64, 32), (32, 64))]
    score_edits(plain, plain, ["a", "a"], ["b", "b"], structure=structure)
    assert structure.pictures == [2, 2]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ({"beauty"}, "no score 'beauty'; there are changed_share, "),
        ({"lpips"}, "lpips needs a model; give lpips_model="),
        ({"psnr_db", "text_score"}, "text_score needs a model; give clip="),
        ({"structure_distance"}, "give structure="),
    ],
)
def test_what_cannot_be_computed_is_named(which: set[str], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        score_edits(SOURCES, EDITS, PROMPTS, TARGETS, which=which)


def test_lists_and_sizes_that_do_not_match_are_refused(models: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="got 3, 3, 2, 3"):
        score_edits(SOURCES, EDITS, PROMPTS[:2], TARGETS)
    with pytest.raises(ParameterError, match="64 x 64 px and 32 x 32 px"):
        score_edits(SOURCES[:1], [EDITS[0].resize((32, 32))], PROMPTS[:1], TARGETS[:1])


@dataclasses.dataclass(frozen=True)
class CountingClip(ClipScorer):
    """The real scorer, which records how many images and texts each call gets."""

    images: list[int] = dataclasses.field(default_factory=list)
    texts: list[int] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, scorer: ClipScorer) -> CountingClip:
        return cls(**{f.name: getattr(scorer, f.name) for f in dataclasses.fields(scorer)})

    def embed_images(self, images: Iterable[Image.Image]) -> Tensor:
        images = list(images)
        self.images.append(len(images))
        return super().embed_images(images)

    def embed_texts(self, texts: Iterable[str]) -> Tensor:
        texts = list(texts)
        self.texts.append(len(texts))
        return super().embed_texts(texts)


@dataclasses.dataclass(frozen=True)
class CountingStructure(StructureModel):
    pictures: list[int] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, model: StructureModel) -> CountingStructure:
        return cls(**{f.name: getattr(model, f.name) for f in dataclasses.fields(model)})

    def self_similarities(self, pictures: Any) -> list[Tensor]:
        self.pictures.append(len(pictures))
        return super().self_similarities(pictures)


def random_lpips(path: Path) -> LpipsModel:
    torch.manual_seed(0)
    shapes = {
        0: (64, 3, 11),
        3: (192, 64, 5),
        6: (384, 192, 3),
        8: (256, 384, 3),
        10: (256, 256, 3),
    }
    weights = {}
    for number, (wide, narrow, side) in shapes.items():
        weights[f"features.{number}.weight"] = torch.randn(wide, narrow, side, side) * 0.05
        weights[f"features.{number}.bias"] = torch.zeros(wide)
    save_file(weights, path)
    return load_lpips(path, device="cpu")
