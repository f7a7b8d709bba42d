"""A run's facts agree with its folder, and their number is bounded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from fpe_core.judging.rules import RejectReason
from pipeline.errors import StorageError
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import EditKey, EditOutcome, outcomes_table
from pipeline.report.facts import OTHER_ROWS, ReportLimits, read_report
from pipeline.storage.folder import Folder
from tests.builders.judged_run import accepted, failed, labelled_job, rejected, write_run
from tests.servers.stores import Store, store_on_disk


def one_of_each(number: int, key: EditKey) -> EditOutcome:
    """Four accepted with rising scores, one rejected, one failed."""
    if number == 4:
        return rejected(
            number, key, RejectReason.NO_CHANGE, changed_share=0.01, directional_similarity=0.9
        )
    if number == 5:
        return failed(key)
    return accepted(number, key, changed_share=0.1, directional_similarity=0.6 + 0.1 * number)


@pytest.fixture
def image(picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]) -> bytes:
    return png(picture())


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoint: Path) -> Job:
    return labelled_job(store_on_disk(tmp_path / "store"), str(tiny_checkpoint))


@pytest.fixture
def stored_job(store: Store, tiny_checkpoint: Path) -> Job:
    """On every store, for what reads one; what is made of it is tested once."""
    return labelled_job(store, str(tiny_checkpoint))


def folder_of(job: Job) -> Folder:
    return Folder.open(job.output, job.storage_options)


def test_the_facts_are_those_of_the_run(stored_job: Job, image: bytes) -> None:
    outcomes = write_run(stored_job, image, one_of_each)
    facts = read_report(folder_of(stored_job))
    assert (facts.counts.accepted, facts.counts.rejected, facts.counts.failed) == (4, 1, 1)
    assert facts.counts.reasons == {"no_change": 1, "source_missing": 1}
    assert [(each.name, each.total) for each in facts.types] == [("colour", 6)]
    assert facts.sources == 3
    assert facts.is_judged
    assert facts.notes == ()
    assert yaml.safe_load(facts.job_text)["edit"]["steps"] is None
    assert facts.failure_examples == {"source_missing": "not there"}
    assert facts.cost.unet_rows == sum(each.unet_rows for each in outcomes) == 50.0
    assert facts.cost.unet_rows_rejected == 10.0
    assert facts.cost.model_seconds == 2.5
    assert facts.cost.stages["edit"]["seconds"] == 3.0
    assert facts.cost.last_run_edits == 6


def test_labels_and_prompts_are_known_of_rejected_and_failed_edits_too(
    job: Job, image: bytes
) -> None:
    write_run(job, image, one_of_each)
    facts = read_report(folder_of(job))
    (label,) = facts.labels
    assert label.label == "colour"
    assert {each.name: (each.accepted, each.total) for each in label.values} == {
        "red": (2, 3),
        "blue": (2, 3),
    }
    for tile in facts.tiles:
        colour, shape = tile.edit.target_prompt.split()[1:]
        assert tile.edit.labels == {"colour": colour}
        assert tile.edit.source_prompt == f"a {shape}"


def test_histograms_have_the_rules_of_their_type(job: Job, image: bytes) -> None:
    write_run(job, image, one_of_each)
    facts = read_report(folder_of(job))
    first, second = facts.histograms
    assert (first.score, first.edits, first.broken) == ("changed_share", 5, 1)
    assert [rule.at_least for rule in first.rules] == [0.02]
    assert (second.score, second.broken) == ("directional_similarity", 0)
    assert (sum(second.accepted), sum(second.rejected)) == (4, 1)


def test_every_edit_of_a_small_run_is_shown_once_with_its_pictures(job: Job, image: bytes) -> None:
    outcomes = write_run(job, image, one_of_each)
    facts = read_report(folder_of(job))
    shown = [tile.edit.edit_id for tile in facts.tiles]
    assert sorted(shown) == sorted(each.edit_id.hex() for each in outcomes)
    by_outcome = {tile.edit.outcome: tile for tile in facts.tiles}
    assert by_outcome["accepted"].edited_picture.data.startswith(b"RIFF")
    assert by_outcome["rejected"].edited_picture.data.startswith(b"RIFF")
    assert by_outcome["failed"].edited_picture.missing == "not made"
    assert by_outcome["failed"].edit.message == "not there"
    best = facts.tiles[0]
    assert best.groups[0] == "best"
    assert best.edit.scores["directional_similarity"] == pytest.approx(0.9)


def test_a_picture_that_is_gone_or_damaged_costs_its_tile_only(
    stored_job: Job, image: bytes
) -> None:
    outcomes = write_run(stored_job, image, one_of_each)
    folder = folder_of(stored_job)
    folder.replace(outcomes[0].edited_file_name, b"no picture")
    folder.fs.rm(folder.path_of(outcomes[1].edited_file_name))
    folder.replace(outcomes[2].edited_file_name, image[: len(image) // 2])
    missing = {tile.edit.edit_id: tile.edited_picture.missing for tile in read_report(folder).tiles}
    assert missing[outcomes[0].edit_id.hex()].startswith("damaged: ")
    assert missing[outcomes[1].edit_id.hex()] == "the file is gone"
    assert missing[outcomes[2].edit_id.hex()].startswith("damaged: ")
    assert missing[outcomes[3].edit_id.hex()] == ""


def test_without_a_judge_there_is_a_sample_in_the_order_of_ids(job: Job, image: bytes) -> None:
    outcomes = write_run(job, image, lambda number, key: accepted(number, key))
    facts = read_report(folder_of(job), ReportLimits(tiles_per_group=4))
    assert not facts.is_judged
    assert facts.histograms == ()
    assert {tile.groups for tile in facts.tiles} == {("accepted",)}
    assert [tile.edit.edit_id for tile in facts.tiles] == sorted(
        each.edit_id.hex() for each in outcomes
    )[:4]


def test_the_metadata_tells_where_the_work_list_is_gone(job: Job, image: bytes) -> None:
    write_run(job, image, one_of_each)
    folder = folder_of(job)
    folder.fs.rm(folder.path_of(".plan"), recursive=True)
    facts = read_report(folder)
    for tile in facts.tiles:
        colour, shape = tile.edit.target_prompt.split()[1:]
        is_known = tile.edit.outcome == "accepted"
        assert tile.edit.labels == ({"colour": colour} if is_known else {})
        assert tile.edit.source_prompt == (f"a {shape}" if is_known else "")


def test_only_the_latest_outcome_of_an_edit_counts(job: Job, image: bytes) -> None:
    outcomes = write_run(job, image, one_of_each)
    ledger = Ledger.open(folder_of(job))
    ledger.commit(outcomes_table([accepted(5, outcomes[5].key)]))
    facts = read_report(folder_of(job))
    assert (facts.counts.accepted, facts.counts.failed) == (5, 0)
    assert facts.cost.unet_rows == 60.0


def test_what_is_missing_or_damaged_at_the_top_is_noted(job: Job, image: bytes) -> None:
    write_run(job, image, one_of_each)
    folder = folder_of(job)
    folder.replace("config.yaml", b"judge: {rules: {colour: [{score: beauty, reason: ugly}]}}")
    folder.replace("stats.json", b"{")
    facts = read_report(folder)
    assert len(facts.notes) == 2
    assert "no score 'beauty'" in facts.notes[0]
    assert "stats.json is damaged" in facts.notes[1]
    assert facts.counts.total == 6
    folder.fs.rm(folder.path_of("config.yaml"))
    assert "config.yaml is not there" in read_report(folder).notes[0]


def test_quotas_of_the_run_come_along(job: Job, image: bytes) -> None:
    write_run(job, image, one_of_each)
    folder = folder_of(job)
    rows = [{"cell": {"colour": "red"}, "accepted": 3}]
    folder.replace("stats.json", json.dumps({"quotas": rows}).encode())
    assert list(read_report(folder).quotas) == rows


def test_of_many_quotas_those_that_lack_most_are_kept(job: Job, image: bytes) -> None:
    write_run(job, image, one_of_each)
    folder = folder_of(job)
    lacking = {"a": 0, "b": 2, "c": 5, "d": 2, "e": 0}
    rows = [{"cell": {"colour": name}, "short_by": n} for name, n in lacking.items()]
    folder.replace("stats.json", json.dumps({"quotas": rows}).encode())
    facts = read_report(folder, ReportLimits(quota_cells=3))
    assert [row["cell"]["colour"] for row in facts.quotas] == ["c", "b", "d"]
    assert facts.quotas_left_out == 2
    assert read_report(folder).quotas_left_out == 0


def test_types_without_room_for_histograms_are_counted(job: Job, image: bytes) -> None:
    def of_types(number: int, key: EditKey) -> EditOutcome:
        outcome = accepted(number, key, changed_share=0.1 * number)
        return dataclasses.replace(
            outcome, key=dataclasses.replace(outcome.key, edit_type=f"type {number // 2}")
        )

    write_run(job, image, of_types)
    facts = read_report(folder_of(job), ReportLimits(types=2))
    assert {each.edit_type for each in facts.histograms} == {"type 0", "type 1"}
    assert facts.types_left_out == 1
    assert read_report(folder_of(job)).types_left_out == 0


def test_rejections_alone_tell_that_there_was_a_judge(
    tmp_path: Path, tiny_checkpoint: Path, image: bytes
) -> None:
    """The gate's, for one: nothing has a score then."""

    def gated(number: int, key: EditKey) -> EditOutcome:
        return rejected(number, key, RejectReason.SOURCE_NOT_RECONSTRUCTED)

    store = store_on_disk(tmp_path / "store")
    job = labelled_job(store, str(tiny_checkpoint))
    write_run(job, image, gated)
    assert read_report(folder_of(job)).is_judged
    plain = labelled_job(store, str(tiny_checkpoint), name="plain", judge=None)
    write_run(plain, image, lambda number, key: accepted(number, key))
    assert not read_report(folder_of(plain)).is_judged


def test_limits_bound_tiles_bytes_and_rows(job: Job, image: bytes) -> None:
    write_run(job, image, one_of_each)
    limits = ReportLimits(tiles=3, label_values=1, picture_bytes=1)
    facts = read_report(folder_of(job), limits)
    assert len(facts.tiles) == 3
    assert all(not tile.edited_picture.data for tile in facts.tiles)
    assert "too large" in facts.tiles[0].edited_picture.missing
    assert [each.name for each in facts.labels[0].values] == ["blue", OTHER_ROWS]
    assert sum(each.total for each in facts.labels[0].values) == 6


def test_equal_runs_have_equal_facts_whatever_the_order_of_commits(job: Job, image: bytes) -> None:
    outcomes = write_run(job, image, one_of_each)
    facts = read_report(folder_of(job))
    folder = folder_of(job)
    for name in folder.list(".ledger"):
        folder.fs.rm(folder.path_of(name))
    for outcome in reversed(outcomes):
        Ledger.open(folder).commit(outcomes_table([outcome]))
    assert read_report(folder) == facts


def test_a_folder_without_a_run_is_refused(store: Store) -> None:
    with pytest.raises(StorageError, match="give the output of a job"):
        read_report(store.folder("nothing"))
