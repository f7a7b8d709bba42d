"""The first reading of a manifest: nothing is kept of it but what comes twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ManifestError
from pipeline.job.job import Job
from pipeline.manifest.rows import Problems
from pipeline.plan.ids import Occurrences
from pipeline.plan.plan import make_plan
from pipeline.plan.resolved_job import Repeats, ResolvedJob, resolve_job
from pipeline.plan.survey import survey_manifest

MakeResolved = Callable[..., ResolvedJob]


@pytest.fixture(scope="module")
def make_resolved(tmp_path_factory: pytest.TempPathFactory) -> MakeResolved:
    """make_resolved(columns): what a job over a manifest with these columns means."""

    def make(columns: dict[str, Any], **sections: Any) -> ResolvedJob:
        folder = tmp_path_factory.mktemp("survey")
        pq.write_table(pa.table(columns), folder / "m.parquet")
        values = {"manifest": str(folder / "m.parquet"), "output": str(folder / "run")}
        return resolve_job(Job.model_validate(values | {"editor": "none"} | sections))

    return make


def ids_of(
    resolved: ResolvedJob, repeats: Repeats | None
) -> list[tuple[bytes, bytes, list[bytes]]]:
    return [
        (group.group_id, group.source_id, [identity for identity, _ in group.edits])
        for groups, _ in resolved.groups(Problems(), repeats)
        for group in groups
    ]


rows = st.lists(
    st.tuples(
        st.sampled_from(["a.png", "b.png"]),
        st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=3, unique=True),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40)
@given(rows)
def test_ids_are_those_of_one_who_remembers_everything(
    make_resolved: MakeResolved, rows: Sequence[tuple[str, list[str]]]
) -> None:
    """Rows that are equal but for their prompts, in any order."""
    images, prompts = zip(*rows, strict=True)
    resolved = make_resolved({"image": list(images), "target_prompt": list(prompts)})
    survey = survey_manifest(resolved)
    everything = ids_of(resolved, None)
    assert ids_of(resolved, survey.repeats) == everything
    assert survey.sources == len({source for _, source, _ in everything})
    edits = [identity for *_, of in everything for identity in of]
    assert len(set(edits)) == len(edits)


def test_rows_with_ids_are_not_remembered(make_resolved: MakeResolved) -> None:
    columns = {"id": ["1", "2"], "image": ["a.png", "a.png"], "target_prompt": ["x", "x"]}
    survey = survey_manifest(make_resolved(columns))
    assert survey.repeats == Repeats()
    assert survey.sources == 2
    counter = Occurrences(survey.repeats.bases)
    assert [counter.next(bytes([n])) for n in (1, 2, 1)] == [0, 0, 0]
    assert len(counter) == 0


def test_ids_that_come_twice_are_told_in_the_order_of_rows(make_resolved: MakeResolved) -> None:
    columns = {
        "id": ["a", "b", "a", "c", "b", "a"],
        "image": ["0.png"] * 6,
        "target_prompt": ["x", "x", "x", "", "x", "x"],
    }
    with pytest.raises(ManifestError) as caught:
        survey_manifest(make_resolved(columns))
    assert caught.value.total == 4
    assert [line.partition(": ")[2] for line in caught.value.problems] == [
        "id 'a' is also the id of row 0",
        "target_prompt is empty",
        "id 'b' is also the id of row 1",
        "id 'a' is also the id of row 0",
    ]


def test_other_work_has_another_digest(make_resolved: MakeResolved) -> None:
    """Whatever the work list would show: also what is in no id."""
    columns: dict[str, Any] = {
        "id": ["1", "2"],
        "image": ["a.png", "b.png"],
        "target_prompt": [["x", "y"], ["x"]],
        "split": ["train", "test"],
        "weather": ["rain", "sun"],
    }
    changes: list[dict[str, Any]] = [
        {},
        {"id": ["1", "3"]},
        {"image": ["a.png", "c.png"]},
        {"target_prompt": [["x"], ["y", "x"]]},
        {"split": ["train", "train"]},
        {"weather": ["rain", None]},
    ]
    resolved_jobs = [make_resolved(columns | change) for change in changes]
    # A file in another folder has other places of its pictures, so all are moved into one.
    digests = []
    for resolved in resolved_jobs:
        folder = Path(resolved_jobs[0].job.manifest_urls[0]).parent
        (folder / "m.parquet").write_bytes(Path(resolved.job.manifest_urls[0]).read_bytes())
        digests.append(survey_manifest(resolve_job(resolved_jobs[0].job)).digest)
    assert len(set(digests)) == len(changes)


def test_a_plan_is_the_same_whatever_the_order_of_commits(make_resolved: MakeResolved) -> None:
    """Its id depends on which edits are left out, not on how the ledger got to know them."""
    job = make_resolved({"image": ["a.png", "b.png"], "target_prompt": ["x", "y"]}).job
    first, second = resolve_job(job).edit_ids()
    both = [
        make_plan(job, write=False, only=set(pair)).plan_id
        for pair in ([first, second], [second, first])
    ]
    assert both[0] == both[1]
    assert make_plan(job, write=False, only={first}).plan_id != both[0]
