"""A sample of a finished run is made again: edits are equal, or the ones that differ are named.

The runs are made in blocks of two sources, in this process. When it is made again, every edit is
made alone.
"""

from __future__ import annotations

import io
import itertools
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from fpe_core import CheckpointError
from fpe_core.judging.retry_ladder import Change, RetryLadder
from fpe_core.judging.rules import RejectReason, Rule, Rules
from pipeline.job.job import Job
from pipeline.judge.judge import JudgeSettings
from pipeline.ledger.ledger import Ledger
from pipeline.storage.folder import Folder
from pipeline.verify.recompute import (
    ComparisonVerdict,
    EditComparison,
    Recomputation,
    choose_sample,
    recompute_sample,
)
from pipeline.verify.verify import verify_run
from pipeline.write.image_format import ImageFormat
from tests.builders.finished_run import make_edits

EDITS = 6
NO_CHANGE = RejectReason.NO_CHANGE
Draw = Callable[..., Image.Image]


def job_of(sources: Path, output: Path, checkpoint: Path, **sections: Any) -> Job:
    """Two pictures and a synthetic source with two edits each."""
    table = pa.table(
        {
            "image": ["0.png", "1.png", None],
            "source_prompt": ["", "the cat", "a photo of a dog"],
            "seed": [None, None, 7],
            "weather": ["rain", None, "snow"],
        }
    )
    pq.write_table(table, sources / "manifest.parquet")
    values: dict[str, Any] = {
        "manifest": str(sources / "manifest.parquet"),
        "output": str(output),
        "model": {"checkpoint": str(checkpoint), "device": "cpu"},
        "edit": {"steps": 2},
        "prompts": {"target": "a {colour} car", "labels": {"colour": ["red", "blue"]}},
    }
    return Job.model_validate(values | sections)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, picture: Draw) -> Path:
    """The folder with the pictures and the manifest; who changes it puts it right again."""
    folder = tmp_path_factory.mktemp("sources")
    for number in range(2):
        picture(number).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, sources: Path, tiny_checkpoint: Path) -> Job:
    """A finished run in PNG, for reading only."""
    job = job_of(sources, tmp_path_factory.mktemp("finished") / "run", tiny_checkpoint)
    make_edits(job, groups_per_block=2)
    return job


@pytest.fixture
def job(finished: Job, tmp_path: Path) -> Job:
    """A copy of it."""
    shutil.copytree(finished.output, tmp_path / "run")
    return finished.model_copy(update={"output": str(tmp_path / "run")})


def numbers(found: Recomputation) -> tuple[int, int, int]:
    """The same, different, not made."""
    same = len(found.of(ComparisonVerdict.EQUAL)) + len(
        found.of(ComparisonVerdict.WITHIN_TOLERANCE)
    )
    return (
        same,
        len(found.of(ComparisonVerdict.DIFFERENT)),
        len(found.of(ComparisonVerdict.NOT_MADE)),
    )


def only(found: Recomputation, verdict: ComparisonVerdict) -> EditComparison:
    (comparison,) = found.of(verdict)
    return comparison


def files(job: Job, kind: str) -> list[str]:
    return Folder.open(job.output).glob(f"part-*/{kind}/*")


def change(job: Job, file: str, edit: Callable[[np.ndarray], None]) -> None:
    """Changes the pixels of a PNG of the run."""
    folder = Folder.open(job.output)
    with Image.open(io.BytesIO(folder.read(file))) as image:
        pixels = np.array(image)
    edit(pixels)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    folder.replace(file, sink.getvalue())


def raise_a_patch(pixels: np.ndarray, levels: int) -> None:
    patch = pixels[8:16, 24:32].astype(int)
    pixels[8:16, 24:32] = np.where(patch < 128, patch + levels, patch - levels)


def test_an_edit_accepted_on_a_retry_is_made_the_same_again(
    sources: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """It was made with other parameters than the job's; which, is in its metadata."""
    job = job_of(sources, tmp_path / "run", tiny_checkpoint)
    change = Change(replaced_fraction=0.0)
    judge = JudgeSettings(clip=None, structure=None, scores=("psnr_db",))
    once = {"rules": Rules({"other": (Rule("psnr_db", NO_CHANGE, at_least=1000.0),)})}
    ladder = RetryLadder({NO_CHANGE: (change,)}, most=1)
    make_edits(job, 2, replace(judge, **once, ladder=ladder))
    ((first, second), *_) = (
        [each["psnr_db"] for each in tries]
        for table in Ledger.open(Folder.open(job.output)).outcomes()
        for tries in table["tries"].to_pylist()
    )
    between = (first + second) / 2
    side = {"at_least": between} if second > first else {"at_most": between}
    job = job_of(sources, tmp_path / "again", tiny_checkpoint)
    rules = Rules({"other": (Rule("psnr_db", NO_CHANGE, **side),)})
    make_edits(job, 2, replace(judge, rules=rules, ladder=ladder))
    tries = [
        each
        for part in Path(job.output).glob("part-*/metadata.parquet")
        for each in pq.read_table(part)["tries"].to_pylist()
    ]
    assert 2 in tries
    assert numbers(recompute_sample(job, EDITS)) == (len(tries), 0, 0)


@pytest.mark.parametrize(
    "images",
    [
        {"format": "png"},
        {"format": "jpeg"},
        {"format": "webp"},
        {"format": "webp", "quality": 100, "keep_source": False},
    ],
    ids=lambda images: "-".join(map(str, images.values())),
)
def test_a_finished_run_comes_out_again(
    sources: Path,
    tmp_path: Path,
    tiny_checkpoint: Path,
    picture: Draw,
    images: dict[str, Any],
) -> None:
    job = job_of(sources, tmp_path / "run", tiny_checkpoint, images=images)
    make_edits(job, groups_per_block=2)
    seen: list[tuple[int, int]] = []
    found = recompute_sample(job, 20, progress=lambda *counts: seen.append(counts))
    assert numbers(found) == (EDITS, 0, 0), [str(c) for c in found.comparisons]
    assert found.ok
    assert found.compared == EDITS
    assert (found.device, found.dtype) == ("cpu", "float32")
    assert {c.file for c in found.comparisons} == set(files(job, "edited"))
    assert seen == [(done, EDITS) for done in range(1, EDITS + 1)]

    folder = Folder.open(job.output)
    one = files(job, "edited")[0]
    folder.replace(one, ImageFormat(images["format"]).encode(picture(5)))
    found = recompute_sample(job, 20)
    assert numbers(found) == (EDITS - 1, 1, 0)
    assert only(found, ComparisonVerdict.DIFFERENT).file == one
    assert "levels apart" in only(found, ComparisonVerdict.DIFFERENT).detail
    assert not found.ok


def test_nothing_is_written(finished: Job) -> None:
    folder = Folder.open(finished.output)
    before = {path: folder.read(path) for path in folder.list()}
    recompute_sample(finished, 1)
    assert {path: folder.read(path) for path in folder.list()} == before


def test_what_was_changed_is_found_and_named(job: Job) -> None:
    """A patch of three levels, a picture of another size, a broken one, one that is gone."""
    patched, shrunk, broken, gone = files(job, "edited")[:4]
    change(job, patched, lambda pixels: raise_a_patch(pixels, 3))
    folder, sink = Folder.open(job.output), io.BytesIO()
    Image.new("RGB", (32, 64)).save(sink, "PNG")
    folder.replace(shrunk, sink.getvalue())
    folder.replace(broken, b"no picture")
    folder.fs.rm(folder.path_of(gone))
    found = recompute_sample(job, EDITS)
    assert numbers(found) == (EDITS - 4, 4, 0)
    detail = {c.file: c.detail for c in found.of(ComparisonVerdict.DIFFERENT)}
    assert detail.keys() == {patched, shrunk, broken, gone}
    assert "up to 3 of 255 levels apart, 1." in detail[patched]  # 64 of 4096 pixels, and noise
    assert detail[shrunk] == "32 x 64 px instead of 64 x 64 px"
    assert "cannot be read" in detail[broken]
    assert "not found" in detail[gone]
    named = [str(c) for c in found.of(ComparisonVerdict.DIFFERENT)]
    assert sum(line.startswith("edit ") and patched in line for line in named) == 1
    assert verify_run(job).problems_total == 4


def test_one_level_everywhere_is_no_rounding(job: Job) -> None:
    """Rounding moves a few values; a picture that is a level brighter is another one."""
    file = files(job, "edited")[0]
    change(job, file, lambda pixels: np.copyto(pixels, np.where(pixels < 255, pixels + 1, 254)))
    found = recompute_sample(job, EDITS)
    assert only(found, ComparisonVerdict.DIFFERENT).detail.startswith("up to ")


def test_a_source_that_is_gone_or_another_is_said_and_is_no_difference(
    finished: Job, sources: Path, picture: Draw
) -> None:
    try:
        (sources / "0.png").unlink()
        picture(5).save(sources / "1.png")
        found = recompute_sample(finished, EDITS)
    finally:
        for number in range(2):
            picture(number).save(sources / f"{number}.png")
    assert numbers(found) == (EDITS - 4, 0, 4)
    assert found.ok
    assert found.compared == EDITS - 4
    details = sorted(c.detail for c in found.of(ComparisonVerdict.NOT_MADE))
    assert [d.split(":")[0] for d in details] == ["its source is another one now"] * 2 + [
        "source_missing"
    ] * 2
    assert "0.png" in details[2]


@pytest.mark.parametrize("stem", ["1", "a-photo-of-a-dog"], ids=["real", "synthetic"])
def test_a_stored_source_that_was_changed_is_a_difference(job: Job, stem: str) -> None:
    (file,) = (f for f in files(job, "source") if f.split("/")[2].startswith(f"{stem}__"))
    change(job, file, lambda pixels: raise_a_patch(pixels, 3))
    found = recompute_sample(job, EDITS)
    assert numbers(found) == (EDITS - 2, 2, 0)
    for comparison in found.of(ComparisonVerdict.DIFFERENT):
        assert comparison.detail.startswith(f"its source, {file}: up to 3")


def test_another_checkpoint_is_refused(
    sources: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    job = job_of(sources, tmp_path / "run", checkpoint)
    make_edits(job, groups_per_block=4)
    weights_file = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(weights_file)
    weights["conv_out.bias"] += 1e-6
    save_file(weights, weights_file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="is another checkpoint now") as refused:
        recompute_sample(job, 3)
    (part,) = Folder.open(job.output).glob("part-*/metadata.parquet")
    made_with = pq.read_table(f"{job.output}/{part}")["checkpoint_fingerprint"][0].as_py()
    assert made_with in str(refused.value)


def test_edits_of_another_job_are_none_of_the_sample(job: Job) -> None:
    other = Job.model_validate(job.model_dump(mode="json") | {"edit": {"steps": 1}})
    empty = recompute_sample(other, EDITS)
    assert (empty.comparisons, empty.compared, empty.ok) == ((), 0, True)
    make_edits(other, groups_per_block=4)
    found = recompute_sample(other, 2 * EDITS)
    assert numbers(found) == (EDITS, 0, 0)
    assert numbers(recompute_sample(job, 2 * EDITS)) == (EDITS, 0, 0)


def test_the_sample_is_the_same_every_time_and_of_both_parts(finished: Job) -> None:
    one, two = (recompute_sample(finished, 2) for _ in range(2))
    assert one == two
    assert {c.file.split("/")[0] for c in one.comparisons} == {
        file.split("/")[0] for file in files(finished, "edited")
    }


def test_a_sample_is_chosen_by_content_from_all_parts() -> None:
    draw = random.Random(3)
    by_part = {f"part-{p}": [draw.randbytes(16) for _ in range(p * 5 + 1)] for p in range(6)}
    everything = sorted(itertools.chain(*by_part.values()))

    def choose(count: int) -> list[bytes]:
        edits = ((edit_id, part) for part, ids in by_part.items() for edit_id in ids)
        return list(choose_sample(sorted(edits), count))

    chosen = choose(12)
    assert len(set(chosen)) == 12
    part_of = {edit_id: part for part, ids in by_part.items() for edit_id in ids}
    assert {part_of[edit_id] for edit_id in chosen[:6]} == set(by_part), "one of every part first"
    assert {min(ids) for ids in by_part.values()} == set(chosen[:6])

    assert choose(12) == chosen
    assert choose(7) == chosen[:7]
    assert sorted(choose(1000)) == everything
    assert choose_sample([], 5) == {}
