"""Verification: a good run passes, and every kind of damage is found and named."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import ManifestError, ResourceError
from pipeline.job.job import Job
from pipeline.ledger.checked_file import checked_parquet, read_checked
from pipeline.ledger.ledger import Ledger, number_of
from pipeline.ledger.parts import adopt_orphan_parts
from pipeline.storage.folder import Folder
from pipeline.verify import images
from pipeline.verify.verify import Verification, verify_run
from tests.builders.finished_run import FinishedRun
from tests.servers.stores import Store

EDITS = 6


@pytest.fixture
def run(
    store: Store,
    tiny_checkpoint: Path,
    picture: Callable[..., Image.Image],
    png: Callable[[Image.Image], bytes],
) -> FinishedRun:
    """An empty run of a job with six edits."""
    prompts = [["x", "y"], ["x", "y"], ["x", "y"]]
    columns = {"image": ["a.png", "b.png", "c.png"], "target_prompt": prompts}
    values: dict[str, Any] = {
        "manifest": store.put_table("m.parquet", columns),
        "output": store.url("run"),
        "storage_options": store.storage_options,
        "model": {"checkpoint": str(tiny_checkpoint)},
    }
    return FinishedRun(Job.model_validate(values), png(picture()))


def numbers(found: Verification) -> tuple[int, int, int, int, int]:
    return found.planned, found.accepted, found.rejected, found.failed, found.pending


def test_nothing_done_yet_is_all_pending(run: FinishedRun) -> None:
    found = verify_run(run.job)
    assert found.ok
    assert numbers(found) == (EDITS, 0, 0, 0, EDITS)


def test_a_run_in_the_middle_and_at_its_end(run: FinishedRun) -> None:
    keys = run.keys()
    run.commit(run.write_part("part-a", keys[:3], failed=keys[3:4]))
    found = verify_run(run.job)
    assert found.ok, found.problems
    assert numbers(found) == (EDITS, 3, 0, 1, 2)
    assert found.images_checked == 5
    run.commit(run.write_part("part-b", keys[4:]))
    found = verify_run(run.job)
    assert found.ok, found.problems
    assert numbers(found) == (EDITS, 5, 0, 1, 0)
    assert found.planned == found.accepted + found.rejected + found.failed + found.pending


def test_edits_of_an_earlier_job_are_checked_and_counted_apart(run: FinishedRun) -> None:
    keys = run.keys()
    other = FinishedRun(run.job.model_copy(update={"edit": run.job.edit.model_copy()}), run.image)
    changed = FinishedRun(Job.model_validate(_with_steps(run.job, 3)), run.image)
    run.commit(run.write_part("part-a", keys))
    changed.commit(changed.write_part("part-b", changed.keys()[:2]))
    assert other.keys() == keys
    found = verify_run(run.job)
    assert found.ok, found.problems
    assert numbers(found) == (EDITS, EDITS, 0, 0, 0)
    assert found.not_planned == 2
    assert found.images_checked == 9 + 3


def _with_steps(job: Job, steps: int) -> dict[str, Any]:
    return job.model_dump(mode="json") | {"edit": {"steps": steps}}


def damage_missing(run: FinishedRun) -> None:
    run.folder.fs.rm(run.folder.path_of(f"part-a/edited/{run.keys()[0].edit_id.hex()}.png"))


def damage_truncated(run: FinishedRun) -> None:
    path = f"part-a/edited/{run.keys()[0].edit_id.hex()}.png"
    run.folder.replace(path, run.image[: len(run.image) // 2])


def damage_source(run: FinishedRun) -> None:
    run.folder.replace(f"part-a/source/{run.keys()[0].source_id.hex()}.png", b"")


def damage_metadata_gone(run: FinishedRun) -> None:
    run.folder.fs.rm(run.folder.path_of("part-a/metadata.parquet"))


def damage_metadata(run: FinishedRun) -> None:
    run.folder.replace("part-a/metadata.parquet", b"PAR1")


def damage_double_metadata(run: FinishedRun) -> None:
    key = run.keys()[0]
    run.write_part("part-z", [key])


def damage_double_ledger(run: FinishedRun) -> None:
    run.folder.write_new(
        ".ledger/outcomes-00000005.parquet", run.folder.read(".ledger/outcomes-00000000.parquet")
    )


def damage_orphan(run: FinishedRun) -> None:
    run.write_part("part-z", run.keys()[4:])


def damage_row_not_committed(run: FinishedRun) -> None:
    keys = run.keys()
    table = run.write_part("part-z", keys[4:])
    run.commit(table.slice(0, 1))


def damage_failed_with_an_image(run: FinishedRun) -> None:
    key = run.keys()[4]
    run.write_part("part-z", [key])
    failed = FinishedRun(run.job, run.image).write_part("part-y", [], failed=[key])
    run.commit(failed)


def damage_other_file(run: FinishedRun) -> None:
    key = run.keys()[0]
    table = read_checked(run.folder.read("part-a/metadata.parquet"))
    names = table["edited_file_name"].to_pylist()
    names[0], names[1] = names[1], names[0]
    assert key.edit_id.hex() in names[1]
    table = table.set_column(0, "edited_file_name", pa.array(names))
    run.folder.replace("part-a/metadata.parquet", checked_parquet(table))


def damage_another_image(run: FinishedRun) -> None:
    other = io.BytesIO()
    Image.new("RGB", (8, 8)).save(other, "PNG")
    path = f"part-a/edited/{run.keys()[0].edit_id.hex()}.png"
    run.folder.replace(path, other.getvalue())


def damage_outcomes_gone(run: FinishedRun) -> None:
    (path,) = run.folder.list(".outcomes")
    run.folder.fs.rm(run.folder.path_of(path))


@pytest.mark.parametrize(
    ("damage", "problems"),
    [
        (damage_missing, ["an image is missing: .*not found"]),
        (damage_truncated, [r"part-a/edited/\w+\.png does not decode"]),
        (damage_source, [r"part-a/source/\w+\.png does not decode"]),
        (damage_metadata_gone, ["is accepted in the ledger and in no part's metadata"] * 4),
        (
            damage_metadata,
            [
                r"part-a/metadata\.parquet cannot be read",
                *["in no part's metadata"] * 4,
                r"part-a/metadata\.parquet is damaged.*move the folder away",
            ],
        ),
        (damage_double_metadata, ["is twice in the metadata"]),
        (damage_double_ledger, ["is twice in the ledger"] * 4),
        (damage_orphan, ["part-z is finished, and 2 of its edits are not in the ledger: run"]),
        (
            damage_row_not_committed,
            [
                "is not in the ledger, which has other edits of its part",
                "part-z is finished, and 1",
            ],
        ),
        (
            damage_failed_with_an_image,
            ["is failed in the ledger", "part-z is finished, and 1 of its edits"],
        ),
        (damage_other_file, ["the ledger names another file"] * 2),
        (damage_another_image, [r"\w+\.png is not the image that was written there"]),
        (damage_outcomes_gone, [r"\.outcomes/part-a-\w+\.parquet is missing; restore it"] * 2),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_damage_is_found(
    run: FinishedRun, damage: Callable[[FinishedRun], None], problems: list[str]
) -> None:
    run.commit(run.write_part("part-a", run.keys()[:4]))
    assert verify_run(run.job).ok
    damage(run)
    found = verify_run(run.job)
    assert not found.ok
    assert found.problems_total == len(found.problems) == len(problems)
    for problem, pattern in zip(found.problems, problems, strict=True):
        assert re.search(pattern, problem), problem


def test_problems_are_a_page_and_all_counted(run: FinishedRun) -> None:
    keys = run.keys()
    run.commit(run.write_part("part-a", keys))
    for number in range(1, 6):
        run.folder.write_new(
            f".ledger/outcomes-{number:08d}.parquet",
            run.folder.read(".ledger/outcomes-00000000.parquet"),
        )
    found = verify_run(run.job)
    assert (len(found.problems), found.problems_total) == (20, 5 * EDITS)


def test_the_same_command_again_heals_what_a_kill_left(run: FinishedRun) -> None:
    keys = run.keys()
    run.commit(run.write_part("part-a", keys[:3]))
    run.write_part("part-b", keys[3:5], failed=keys[5:])
    assert not verify_run(run.job).ok
    adopt_orphan_parts(run.folder, Ledger.open(run.folder))
    found = verify_run(run.job)
    assert found.ok, found.problems
    assert numbers(found) == (EDITS, 5, 0, 1, 0)


def test_a_finished_part_heals_what_counts_as_failed(run: FinishedRun) -> None:
    """As where the last write of a part went through, and its answer was lost."""
    damage_failed_with_an_image(run)
    adopt_orphan_parts(run.folder, Ledger.open(run.folder))
    found = verify_run(run.job)
    assert found.ok, found.problems
    assert (found.accepted, found.failed, found.not_planned) == (1, 0, 0)


def test_an_edit_that_failed_may_come_again_and_one_that_did_not_may_not(run: FinishedRun) -> None:
    key, other = run.keys()[:2]
    failed = run.write_part("part-a", [other], failed=[key])
    run.commit(failed)
    ledger = Ledger.open(run.folder)
    for again in (failed.slice(0, 1), run.write_part("part-b", [key])):
        ledger.reopen(frozenset([key.edit_id]))
        ledger.commit(again)
    found = verify_run(run.job)
    assert found.ok, found.problems
    assert (found.accepted, found.failed) == (2, 0)
    assert sum(map(len, ledger.outcomes())) == 4, "two of them are history"
    next_number = number_of(ledger.files()[-1]) + 1
    name = f".ledger/outcomes-{next_number:08d}.parquet"
    run.folder.write_new(name, run.folder.read(".ledger/outcomes-00000001.parquet"))
    found = verify_run(run.job)
    assert found.problems[0].endswith("is twice in the ledger, accepted at first")


def test_verifying_changes_nothing(run: FinishedRun) -> None:
    run.commit(run.write_part("part-a", run.keys()[:3]))
    damage_orphan(run)
    before = {path: run.folder.read(path) for path in run.folder.list()}
    verify_run(run.job)
    assert {path: run.folder.read(path) for path in run.folder.list()} == before


@pytest.mark.parametrize("damage", [damage_missing, damage_truncated, damage_source])
def test_processes_find_what_threads_find(
    run: FinishedRun, damage: Callable[[FinishedRun], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.commit(run.write_part("part-a", run.keys()))
    damage(run)
    few = verify_run(run.job)
    monkeypatch.setattr(images, "_FEW_IMAGES", 0)
    assert verify_run(run.job) == few
    assert (few.problems_total, few.images_checked) == (1, 9)


def test_a_process_that_is_killed_is_an_error_and_not_a_good_image(
    tmp_path: Path, picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]
) -> None:
    folder = Folder.open(str(tmp_path))
    folder.write_new("a.png", png(picture()))
    with images.ImageChecks(folder) as checks:
        process = checks._start()
        assert images._ask(process, [("a.png", "")]) == []
        process.kill()
        with pytest.raises(ResourceError, match="ended with code -9"):
            images._ask(process, [("a.png", "")])


def test_rows_without_an_id_that_repeat_are_counted_one_by_one(
    store: Store, run: FinishedRun
) -> None:
    """Their ids depend on the rows before them: two equal rows are four edits."""
    columns = {"image": ["a.png", "a.png"], "target_prompt": [["x", "y"]] * 2}
    values = run.job.model_dump(mode="json") | {"manifest": store.put_table("n.parquet", columns)}
    twice = FinishedRun(Job.model_validate(values), run.image)
    keys = twice.keys()
    assert len({key.edit_id for key in keys}) == 4
    twice.commit(twice.write_part("part-a", keys[1:]))
    found = verify_run(twice.job)
    assert found.ok, found.problems
    assert (numbers(found), found.not_planned) == ((4, 3, 0, 0, 1), 0)


def test_a_manifest_with_problems_is_refused(store: Store, run: FinishedRun) -> None:
    columns = {"id": ["1", "2", "1"], "image": ["a.png"] * 3, "target_prompt": [["x"]] * 3}
    values = run.job.model_dump(mode="json") | {"manifest": store.put_table("n.parquet", columns)}
    with pytest.raises(ManifestError, match="id '1' is also the id of row 0"):
        verify_run(Job.model_validate(values))


def test_hundreds_of_edits_with_several_kinds_of_faults(
    tmp_path: Path,
    tiny_checkpoint: Path,
    picture: Callable[..., Image.Image],
    png: Callable[[Image.Image], bytes],
) -> None:
    """The faults lie in many buckets of ids, and all are counted."""
    columns = {
        "id": [str(number) for number in range(60)],
        "image": ["a.png"] * 60,
        "target_prompt": [[f"{p}" for p in range(10)]] * 60,
    }
    pq.write_table(pa.table(columns), tmp_path / "many.parquet")
    values: dict[str, Any] = {
        "manifest": str(tmp_path / "many.parquet"),
        "output": str(tmp_path / "many"),
        "model": {"checkpoint": str(tiny_checkpoint)},
    }
    many = FinishedRun(Job.model_validate(values), png(picture()))
    keys = many.keys()
    parts = [keys[at : at + 100] for at in range(0, 500, 100)]
    tables = [many.write_part(f"part-{n}", part[20:], part[:20]) for n, part in enumerate(parts)]
    for table in (*tables[:3], tables[4]):
        many.commit(table)
    ledger = Ledger.open(many.folder)
    again = f".ledger/outcomes-{number_of(ledger.files()[-1]) + 1:08d}.parquet"
    many.folder.write_new(again, many.folder.read(ledger.files()[1]))  # those of part-1
    many.commit(tables[3].slice(0, 90))  # it ends within a part
    many.folder.fs.rm(many.folder.path_of("part-0/metadata.parquet"))
    many.write_part("part-z", keys[220:225])  # they are in part-2
    found = verify_run(many.job)
    assert numbers(found) == (600, 390, 0, 100, 110)
    assert found.images_checked == 4 * (80 + 8) + 5 + 1
    twice, not_committed, without_metadata = 80, 10, 80
    differences = 5 + not_committed
    lacking = 1  # a line for each part
    assert found.problems_total == twice + differences + without_metadata + lacking
    kinds = Counter(re.sub(r"edit [0-9a-f]{32}", "edit", problem) for problem in found.problems)
    assert kinds == {"edit is twice in the ledger, accepted at first": 20}
