"""The demo's scenes ask for edits whose true answer the renderer knows."""

from __future__ import annotations

import pathlib

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from fpe_core.still_life import FACTORS, caption, factors_in, object_mask, sample_scene
from jobs.demo_scenes import SIZE_PX, edits_of, object_box, write_scenes
from jobs.job_file.ready_made import BUILTIN_FOLDER
from pipeline.job.file import load_job
from pipeline.manifest.rows import Problems
from pipeline.plan.plan import make_plan
from pipeline.plan.resolved_job import resolve_job


def test_every_row_has_a_picture_a_caption_and_five_targets(tmp_path: pathlib.Path) -> None:
    scenes = write_scenes(tmp_path, 6)
    table = pq.read_table(scenes.manifest).to_pylist()
    assert (scenes.scenes, scenes.edits, len(table)) == (6, 30, 6)
    for row in table:
        with Image.open(tmp_path / row["image"]) as picture:
            assert picture.size == (SIZE_PX, SIZE_PX)
        own = factors_in(row["source_prompt"])
        changed = [
            {name for name, value in factors_in(target).items() if value != own[name]}
            for target in row["target_prompt"]
        ]
        assert changed == [{"colour"}, {"colour"}, {"background"}, {"material"}, {"style"}]
        assert len(set(row["target_prompt"])) == 5
        assert [{name} for name in row["edit_type"]] == changed
        for target, labels in zip(row["target_prompt"], row["target_labels"], strict=True):
            new = {name: value for name, value in labels.items() if value is not None}
            assert own | new == factors_in(target)
            assert len(new) == 1
        assert {name: row[name] for name in own} == own


def test_the_demo_plans_each_edit_with_its_labels_and_its_type(tmp_path: pathlib.Path) -> None:
    rendered = write_scenes(tmp_path, 1)
    job = load_job(
        BUILTIN_FOLDER / "demo.yaml",
        [f"manifest={rendered.manifest}", f"output={tmp_path / 'run'}"],
    )
    (row,) = pq.read_table(rendered.manifest).to_pylist()
    plan = make_plan(job, write=False)
    assert plan.label_names == tuple(FACTORS)
    assert plan.has_edit_types
    assert plan.carried_schema is not None
    assert [f"source_{name}" for name in FACTORS] == plan.carried_schema.names[: len(FACTORS)]
    ((group,),) = (groups for groups, _ in resolve_job(job).groups(Problems()))
    for (_, edit), labels in zip(group.edits, row["target_labels"], strict=True):
        (changed,) = (name for name in FACTORS if labels[name] is not None)
        new = dict(zip(FACTORS, edit.labels, strict=True))
        assert new == {name: row[name] for name in FACTORS} | {changed: labels[changed]}
        assert edit.edit_type == changed


def test_a_second_call_writes_nothing(tmp_path: pathlib.Path) -> None:
    write_scenes(tmp_path, 2)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    before = [path.stat().st_mtime_ns for path in files]
    write_scenes(tmp_path, 2)
    assert [path.stat().st_mtime_ns for path in files] == before


def test_the_edits_change_one_factor_of_the_scene() -> None:
    scene = sample_scene(7)
    assert len({caption(edited) for _, edited in edits_of(scene)}) == 5
    for factor, edited in edits_of(scene):
        changed = [name for name in FACTORS if getattr(edited, name) != getattr(scene, name)]
        assert changed == [factor]
        assert (edited.centre_x, edited.shape) == (scene.centre_x, scene.shape)


def test_the_box_holds_the_object_and_no_more() -> None:
    scene = sample_scene(11)
    left, top, width, height = object_box(scene)
    mask = object_mask(scene, SIZE_PX)
    assert mask[top : top + height, left : left + width].sum() == mask.sum()
    inside = mask[top : top + height, left : left + width]
    for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
        assert np.any(edge)


def test_relabelling_takes_the_boxes_of_the_scenes_along(tmp_path: pathlib.Path) -> None:
    """The ready-made job fits the demo's manifest: its `box` is found, and comes out moved."""
    rendered = write_scenes(tmp_path, 1)
    job = load_job(
        BUILTIN_FOLDER / "relabel.yaml",
        [f"manifest={rendered.manifest}", f"output={tmp_path / 'run'}"],
    )
    plan = make_plan(job, write=False)
    assert plan.edits_total == 7, "every colour but its own"
    assert plan.annotations is not None
    names = [item.name for item in plan.annotations.fields]
    assert names == ["edited_box", "box_verdict", "box_structure", "box_visible"]
