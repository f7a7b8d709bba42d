"""The built-in scorer's training: near misses, true captions, kills, export, measurement."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTokenizer

from fpe_core.still_life import (
    FACTORS,
    Scene,
    caption,
    counterfactual,
    factors_in,
    object_mask,
    render,
    sample_scene,
)
from fpe_core.still_life.degrade import degrade
from fpe_core.still_life.render import as_pixels
from fpe_core.still_life.train.architecture import IMAGE_SIZE_PX, build_tokenizer
from fpe_core.still_life.train.data import rendered, training_scenes
from fpe_core.still_life.train.progress import Budget
from fpe_core.still_life.train.scorer import export_scorer, make_scorer, train_scorer
from fpe_core.still_life.train.scorer_model import (
    GROUP,
    Answers,
    Learner,
    ScenePool,
    build_scorer,
    contrastive_loss,
    half_copy,
    renderer_loss,
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rendered(folder, training_scenes(16))
    return folder


# --- batches --------------------------------------------------------------------------------------


def test_every_scene_has_three_near_misses_in_its_group() -> None:
    combinations = itertools.product(*FACTORS.values())
    scenes = [
        counterfactual(sample_scene(seed), **dict(zip(FACTORS, values, strict=True)))
        for seed, values in enumerate(combinations)
    ]
    chosen = ScenePool(scenes).batch(4, np.random.default_rng(0)).chosen
    for group in chosen.reshape(4, GROUP):
        for number in group:
            others = [changed_factors(scenes[number], scenes[other]) for other in group]
            near_misses = [factors for factors in others if len(factors) == 1]
            assert len(near_misses) == 3
            assert {"shape"} in near_misses
            assert len(set().union(*others)) == 3


def test_captions_are_true_of_every_scene_that_they_describe() -> None:
    scenes = training_scenes(500)
    for seed in range(4):
        batch = ScenePool(scenes).batch(6, np.random.default_rng(seed))
        assert batch.is_true.shape == (6 * GROUP, 6 * GROUP)
        for i, number in enumerate(batch.chosen):
            for j, text in enumerate(batch.captions):
                said = factors_in(text).items()
                fits = all(getattr(scenes[number], factor) == value for factor, value in said)
                assert batch.is_true[i, j] == fits
        assert batch.is_true.diagonal().all()


def test_a_pool_without_the_near_misses_gives_other_scenes() -> None:
    batch = ScenePool([sample_scene(0)]).batch(2, np.random.default_rng(0))
    assert (batch.chosen == 0).all()
    assert batch.is_true.all()


def test_spoilt_pictures_stay_what_they_are(pictures: Path) -> None:
    images = rendered(pictures, training_scenes(16))
    worn = degrade(images, np.random.default_rng(0))
    assert worn.shape == (16, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    assert worn.min() >= -1.0
    assert worn.max() <= 1.0
    assert torch.equal(worn, degrade(images, np.random.default_rng(0)))
    assert not torch.equal(worn, degrade(images, np.random.default_rng(1)))
    clean = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2) / 127.5 - 1.0
    assert abs(worn - clean).mean(dim=(1, 2, 3)).max() < 0.1


# --- the loss -------------------------------------------------------------------------------------


def test_the_loss_is_clips_where_every_picture_has_one_caption() -> None:
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    by_hand = [
        math.log1p(math.exp(-2.0)),  # image 0 among captions, then image 1
        math.log1p(math.exp(-2.0)),
        math.log1p(math.exp(-1.0)),  # caption 0 among images, then caption 1
        math.log1p(math.exp(-3.0)),
    ]
    loss = contrastive_loss(logits, torch.eye(2, dtype=torch.bool))
    assert loss.item() == pytest.approx(sum(by_hand) / 4)


def test_equal_captions_are_no_negatives() -> None:
    """Two equal captions: the loss is lowest if both fit both images equally."""
    twins = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    both = torch.where(twins, 20.0, 0.0)
    own_only = torch.where(torch.eye(3, dtype=torch.bool), 20.0, 0.0)
    lowest = (4 * math.log(2) + 0) / 6
    assert contrastive_loss(both, twins).item() == pytest.approx(lowest, abs=1e-6)
    assert contrastive_loss(own_only, twins).item() > lowest + 1.0


def test_the_renderer_knows_factors_and_outlines() -> None:
    """Answers that are right, on logits' scale, cost nothing; each wrong one costs."""
    scenes = [sample_scene(seed) for seed in range(3)]
    masks = np.stack([object_mask(scene, 32) for scene in scenes])
    outline = torch.stack(
        [
            torch.from_numpy(masks[:, y : y + 4, x : x + 4].reshape(3, 16))
            for y in range(0, 32, 4)
            for x in range(0, 32, 4)
        ],
        dim=1,
    )
    said = [
        [getattr(scene, factor) == value for factor in FACTORS for value in FACTORS[factor]]
        for scene in scenes
    ]
    right = Answers(torch.zeros(3, 3), 40.0 * torch.tensor(said), 80.0 * outline - 40.0)
    assert renderer_loss(right, scenes).item() == pytest.approx(0.0, abs=1e-6)
    assert renderer_loss(right._replace(outline=-right.outline), scenes) > 1.0
    assert renderer_loss(right._replace(factors=-right.factors), scenes) > 1.0


# --- training -------------------------------------------------------------------------------------


def test_some_steps_lower_the_loss(pictures: Path, tmp_path: Path) -> None:
    scenes = training_scenes(16)
    images = rendered(pictures, scenes)
    model, tokenizer = fresh_scorer(tmp_path)
    batch = ScenePool(scenes).batch(2, np.random.default_rng(0))
    pixels, is_true = as_pixels(images[batch.chosen]), torch.from_numpy(batch.is_true)
    token_ids = tokenizer(batch.captions, padding=True, return_tensors="pt").input_ids

    def loss() -> float:
        with torch.no_grad():
            logits = Learner(model)(pixels, token_ids).captions
        return float(contrastive_loss(logits, is_true))

    before = loss()
    train(tmp_path, model, tokenizer, images, steps=6)
    assert loss() < before - 0.02


def test_a_killed_training_goes_on_from_its_snapshot(pictures: Path, tmp_path: Path) -> None:
    images = rendered(pictures, training_scenes(16))
    straight, stopped = (tmp_path / name for name in ("straight", "stopped"))
    expected, tokenizer = fresh_scorer(straight)
    train(straight, expected, tokenizer, images, steps=4)

    interrupted, tokenizer = fresh_scorer(stopped)
    with pytest.raises(KilledError):
        train(stopped, interrupted, tokenizer, PicturesUntil(images, kill_at=3), steps=4)
    resumed, tokenizer = fresh_scorer(stopped)
    counted = PicturesUntil(images, kill_at=99)
    train(stopped, resumed, tokenizer, counted, steps=4)
    assert counted.reads == 1, "three of the four steps were in the snapshot"
    for name, weight in resumed.state_dict().items():
        assert torch.equal(weight, expected.state_dict()[name]), name


def test_gradients_of_the_half_copy_are_those_of_the_model(tmp_path: Path) -> None:
    """To what bfloat16 resolves, against transformers' own loss in float32."""
    model, tokenizer = fresh_scorer(tmp_path)
    pixels = as_pixels(np.stack([np.asarray(render(sample_scene(seed))) for seed in range(4)]))
    texts = [caption(sample_scene(seed)) for seed in range(4)]
    token_ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    model(input_ids=token_ids, pixel_values=pixels, return_loss=True).loss.backward()
    expected = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    model.zero_grad()
    half = half_copy(Learner(model))
    answers = half.fresh()(pixels.to(torch.bfloat16), token_ids)
    contrastive_loss(answers.captions, torch.eye(4, dtype=torch.bool)).backward()
    half.hand_over_gradients()
    found = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.98


# --- the export -----------------------------------------------------------------------------------


def test_the_same_command_again_adds_what_its_budget_has_more(
    pictures: Path, tmp_path: Path
) -> None:
    first = make(tmp_path, pictures, steps=1)
    weights = tmp_path / "scorer" / "model.safetensors"
    before = weights.read_bytes()
    (tmp_path / "scorer" / "README.md").write_text("kept")
    second = make(tmp_path, pictures, steps=2)
    assert (first["steps"], second["steps"]) == (1, 2)
    assert second["seconds"] > first["seconds"]
    assert weights.read_bytes() != before
    assert (tmp_path / "scorer" / "README.md").read_text() == "kept"
    assert {path.name for path in tmp_path.glob("scorer*") if path.is_dir()} == {"scorer"}


def test_the_export_loads_is_small_and_says_what_it_reaches(pictures: Path, tmp_path: Path) -> None:
    figures = make(tmp_path, pictures, steps=1)
    folder = tmp_path / "scorer"
    model = CLIPModel.from_pretrained(folder)
    assert model.config.vision_config.image_size == IMAGE_SIZE_PX
    assert model.logit_scale.isfinite()
    assert CLIPTokenizer.from_pretrained(folder).model_max_length == 32
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 5_000_000
    assert {w.dtype for w in load_file(folder / "model.safetensors").values()} == {torch.float16}
    written = json.loads((folder / "training.json").read_text())
    assert written["held_out"] == figures["held_out"]
    assert set(written["held_out"]) == set(FACTORS)
    assert (written["steps"], written["scenes"]) == (1, 16)


# --- the measurement ------------------------------------------------------------------------------


def test_a_scorer_that_ignores_pictures_is_found_out(tmp_path: Path) -> None:
    model, tokenizer = fresh_scorer(tmp_path)
    with torch.no_grad():
        model.vision_model.embeddings.patch_embedding.weight.zero_()
    judged = export_scorer(tmp_path / "scorer", model, tokenizer, {}, range(3000, 3006))
    for factor, judgement in judged.items():
        assert judgement["edits_ranked_first"] == 0.0, factor
        assert judgement["of_true_edits"] == 0.0, factor
        assert judgement["read_right"] < 0.8, factor


def fresh_scorer(folder: Path) -> tuple[CLIPModel, CLIPTokenizer]:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(folder / "tokenizer")
    return build_scorer(tokenizer), tokenizer


def train(
    folder: Path, model: CLIPModel, tokenizer: CLIPTokenizer, images: Any, *, steps: int
) -> None:
    """Eight images a step, a snapshot after every step."""
    train_scorer(
        model,
        tokenizer,
        images,
        training_scenes(16),
        folder=folder,
        budget=Budget(steps=steps),
        device=torch.device("cpu"),
        groups_per_step=1,
        snapshot_every_s=0.0,
    )


class KilledError(Exception):
    """What a kill looks like from inside the loop."""


class PicturesUntil:
    """Images that kill the training at their n-th read."""

    def __init__(self, images: NDArray[np.uint8], kill_at: int) -> None:
        self.images, self.kill_at, self.reads = images, kill_at, 0

    def __getitem__(self, chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self.reads == self.kill_at:
            raise KilledError
        self.reads += 1
        picked: NDArray[np.uint8] = self.images[chosen]
        return picked


def make(out: Path, pictures: Path, *, steps: int) -> dict[str, Any]:
    return make_scorer(
        out,
        Budget(steps=steps),
        images_folder=pictures,
        scene_count=16,
        measured_seeds=range(3000, 3002),
    )


def changed_factors(first: Scene, second: Scene) -> set[str]:
    return {factor for factor in FACTORS if getattr(first, factor) != getattr(second, factor)}
