"""Edits of two runs are paired by source, prompt and labels, and differences are counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fpe_core.judging.rules import RejectReason
from pipeline.job.job import Job
from pipeline.ledger.outcome import EditKey, EditOutcome
from pipeline.report.comparison import ComparisonFacts, read_comparison
from pipeline.storage.folder import Folder
from tests.builders.judged_run import accepted, labelled_job, rejected, write_run
from tests.servers.stores import Store, store_on_disk


def plain(number: int, key: EditKey) -> EditOutcome:
    return accepted(number, key, changed_share=0.1, directional_similarity=0.6)


def worse(number: int, key: EditKey) -> EditOutcome:
    """Lower by 0.05, and so rejected, for two of six; higher by 0.1 for one."""
    scores = {"changed_share": 0.1, "directional_similarity": 0.6}
    if number < 2:
        scores["directional_similarity"] = 0.45
        return rejected(number, key, RejectReason.WRONG_DIRECTION, **scores)
    if number == 2:
        scores["directional_similarity"] = 0.7
    return accepted(number, key, **scores)


def compare(
    store: Store, checkpoint: Path, image: bytes, second: Job | None = None
) -> ComparisonFacts:
    a = labelled_job(store, str(checkpoint), name="a")
    b = second or labelled_job(
        store, str(checkpoint), name="b", manifest=a.manifest, edit={"guidance_scale": 2.0}
    )
    write_run(a, image, plain)
    write_run(b, image, worse)
    folders = [Folder.open(job.output, job.storage_options) for job in (a, b)]
    return read_comparison(*folders)


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return store_on_disk(tmp_path / "store")


@pytest.fixture
def image(picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]) -> bytes:
    return png(picture())


def test_edits_are_paired_although_their_ids_differ(
    store: Store, tiny_checkpoint: Path, image: bytes
) -> None:
    facts = compare(store, tiny_checkpoint, image)
    assert (facts.pairs, facts.only_a, facts.only_b) == (6, 0, 0)
    assert facts.verdicts == {("accepted", "accepted"): 4, ("accepted", "rejected"): 2}
    assert facts.flips == (("colour", "accepted", "rejected", 2),)
    for tile in facts.tiles:
        assert tile.a is not None
        assert tile.b is not None
        assert tile.a.edit_id != tile.b.edit_id
        assert tile.a.target_prompt == tile.b.target_prompt
        assert tile.a.labels == tile.b.labels
        assert tile.source_picture.data
        assert tile.a_picture.data
        assert tile.b_picture.data


def test_score_differences_are_those_of_the_pairs(
    disk: Store, tiny_checkpoint: Path, image: bytes
) -> None:
    facts = compare(disk, tiny_checkpoint, image)
    by_score = {each.score: each for each in facts.differences}
    assert set(by_score) == {"changed_share", "directional_similarity"}
    found = by_score["directional_similarity"]
    assert found.pairs == 6
    assert found.mean_difference == pytest.approx((-0.15 * 2 + 0.1) / 6)
    assert found.median_difference == pytest.approx(0.0)
    assert (found.higher_in_b, found.lower_in_b) == (1, 2)
    assert sum(found.histogram.accepted) == 4
    assert sum(found.histogram.rejected) == 2


def test_flips_are_shown_first_then_what_moved_most(
    disk: Store, tiny_checkpoint: Path, image: bytes
) -> None:
    groups = [tile.group for tile in compare(disk, tiny_checkpoint, image).tiles]
    assert groups == ["flipped"] * 2 + ["most changed"] * 4


def test_what_one_run_alone_has_is_counted_and_shown(
    disk: Store, tiny_checkpoint: Path, image: bytes
) -> None:
    other = labelled_job(
        disk,
        str(tiny_checkpoint),
        name="b",
        prompts={"target": "a {colour} {shape}", "labels": {"colour": ["red", "green"]}},
        manifest=disk.url("a.parquet"),
    )
    facts = compare(disk, tiny_checkpoint, image, other)
    assert (facts.pairs, facts.only_a, facts.only_b) == (3, 3, 3)
    groups = [tile.group for tile in facts.tiles]
    assert groups.count("only in A") == groups.count("only in B") == 3
    alone = next(tile for tile in facts.tiles if tile.group == "only in B")
    assert alone.a is None
    assert alone.either.labels == {"colour": "green"}
    assert alone.a_picture.missing == "not in this run"


def test_the_keys_that_the_jobs_differ_in_are_named(
    disk: Store, tiny_checkpoint: Path, image: bytes
) -> None:
    keys = {key: (a, b) for key, a, b in compare(disk, tiny_checkpoint, image).changed_keys}
    assert keys["edit.guidance_scale"][1] == "2.0"
    assert set(keys) == {"edit.guidance_scale", "output"}


def test_runs_without_a_common_edit_are_compared_too(
    disk: Store, tiny_checkpoint: Path, image: bytes
) -> None:
    other = labelled_job(
        disk,
        str(tiny_checkpoint),
        name="b",
        prompts={"target": "a {colour} {shape}", "labels": {"colour": ["green", "white"]}},
        manifest=disk.url("a.parquet"),
    )
    facts = compare(disk, tiny_checkpoint, image, other)
    assert (facts.pairs, facts.only_a, facts.only_b) == (0, 6, 6)


def test_synthetic_sources_are_paired_by_prompt_and_seed(
    disk: Store, tiny_checkpoint: Path, image: bytes
) -> None:
    """Their ids depend on the parameters, which decide what the source shows."""
    columns = {"source_prompt": ["a cat", "a cat"], "seed": [1, 2], "target_prompt": ["a dog"] * 2}
    manifest = disk.put_table("synthetic.parquet", columns)
    folders, ids = [], []
    for name, steps in (("a", 3), ("b", 4)):
        job = Job.model_validate(
            {
                "manifest": manifest,
                "output": disk.url(name),
                "storage_options": disk.storage_options,
                "model": {"checkpoint": str(tiny_checkpoint)},
                "edit": {"steps": steps},
            }
        )
        outcomes = write_run(job, image, plain)
        ids.append({each.key.source_id for each in outcomes})
        folders.append(Folder.open(job.output, job.storage_options))
    assert not ids[0] & ids[1]
    facts = read_comparison(*folders)
    assert (facts.pairs, facts.only_a, facts.only_b) == (2, 0, 0)


def test_a_run_compared_with_itself_differs_in_nothing(
    disk: Store, tiny_checkpoint: Path, image: bytes
) -> None:
    job = labelled_job(disk, str(tiny_checkpoint), name="a")
    write_run(job, image, worse)
    folder = Folder.open(job.output, job.storage_options)
    facts = read_comparison(folder, folder)
    assert (facts.pairs, facts.flips, facts.changed_keys) == (6, (), ())
    assert {each.mean_difference for each in facts.differences} == {0.0}
