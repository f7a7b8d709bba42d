"""Planning: every edit has an id from its content, and what the ledger has is left out."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

import pipeline.plan.work_list
from fpe_core import Editor, EditParameters, load_checkpoint
from fpe_core.scores.files import SCORER_DIR
from jobs.terminal.tables import plan_table
from pipeline.errors import JobError, ManifestError
from pipeline.job.job import Job
from pipeline.job.section import LayerRange
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import EditKey, outcomes_table
from pipeline.plan.group_shape import GroupShape
from pipeline.plan.plan import Plan, make_plan
from pipeline.plan.resolved_job import resolve_job
from pipeline.plan.work_list import work_schema
from pipeline.run.folder import claim_columns, metadata_layout
from pipeline.storage.folder import Folder
from tests.builders.single_file import write_single_file
from tests.servers.stores import Store

MakeJob = Callable[..., Job]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"edit": {"size_px": 8}}, r"judge\.scores: ssim needs at least 11 px .* have 8 x 8"),
        (
            {"edit": {"size_px": [32, 8]}, "judge": {"scores": ["ssim"]}},
            r"judge\.scores: ssim needs at least 11 px",
        ),
        ({"judge": {"clip": "/nowhere"}}, r"judge\.clip: no scorer at /nowhere"),
    ],
)
def test_a_judge_that_could_judge_nothing_is_refused_at_planning(
    sections: dict[str, Any], message: str, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job({"image": ["a.png"], "target_prompt": ["a cat"]}, **{"judge": {}, **sections})
    with pytest.raises(JobError, match=message):
        make_plan(job)
    assert not (tmp_path / "run").exists()


def test_what_needs_larger_pictures_can_be_left_out(make_job: MakeJob) -> None:
    job = make_job(
        {"image": ["a.png"], "target_prompt": ["a cat"]},
        edit={"size_px": 8},
        judge={"scores": ["psnr_db", "text_score"]},
    )
    assert set(make_plan(job).judge_fingerprints) == {"clip", "structure"}


@pytest.fixture
def make_stored_job(store: Store, tiny_checkpoint: Path) -> MakeJob:
    """make_stored_job(columns, **sections): `make_job` with manifest and output on every store."""

    def make(columns: dict[str, Any], **sections: Any) -> Job:
        values = {
            "manifest": store.put_table("manifest.parquet", columns),
            "output": store.url("run"),
            "storage_options": store.storage_options,
            "model": {"checkpoint": str(tiny_checkpoint)},
        }
        return Job.model_validate(values | sections)

    return make


@pytest.fixture
def make_job(tmp_path: Path, tiny_checkpoint: Path) -> MakeJob:
    """make_job(columns, **sections): a job over a manifest with these columns, on local disk."""

    def make(columns: dict[str, Any] | None = None, **sections: Any) -> Job:
        if columns is not None:
            pq.write_table(pa.table(columns), tmp_path / "manifest.parquet")
        values = {
            "manifest": str(tmp_path / "manifest.parquet"),
            "output": str(tmp_path / "run"),
            "model": {"checkpoint": str(tiny_checkpoint)},
        }
        return Job.model_validate(values | sections)

    return make


def run_folder(job: Job) -> Folder:
    return Folder.open(job.output, job.storage_options)


def work(job: Job, plan: Plan) -> pa.Table:
    folder = run_folder(job)
    return pa.concat_tables(
        pq.read_table(io.BytesIO(folder.read(name))) for name in plan.work_files
    )


def edit_ids(job: Job) -> list[bytes]:
    return list(resolve_job(job).edit_ids())


def finish(job: Job, edits: list[bytes]) -> None:
    """Commits edits as if a run had failed at them."""
    keys = [EditKey(edit, bytes(16), bytes(16), 0, "x") for edit in edits]
    outcomes = outcomes_table(key.failed("decode_failed", "") for key in keys)
    Ledger.open(run_folder(job)).commit(outcomes)


COLUMNS: dict[str, Any] = {
    "image": ["a.png", "b.png", None],
    "target_prompt": [["x", "y"], ["x"], ["x", "y", "z"]],
    "source_prompt": ["a cat", None, "a dog"],
    "seed": [None, None, 5],
    "id": ["one", "two", "three"],
    "split": ["train", "test", None],
    "boxes": [[[1, 2, 3, 4]], [], None],
    "score": [0.5, None, 1.0],
    "steps": [None, 2, None],
}


def test_the_work_list_has_one_row_per_source_in_the_fixed_schema(
    make_stored_job: MakeJob, store: Store
) -> None:
    job = make_stored_job(COLUMNS)
    plan = make_plan(job)
    table = work(job, plan)
    assert plan.carried_schema == pa.schema(
        {"boxes": pa.list_(pa.list_(pa.int64())), "score": pa.float64()}
    )
    assert table.schema.equals(work_schema(plan.carried_schema))
    first, second, third = table.to_pylist()
    assert plan.parameters == EditParameters(**{**vars(plan.parameters), "steps": 4})
    assert first["uri"] == store.url("a.png")
    assert (first["row"], first["id"], first["stem"], first["split"]) == (0, "one", "one", "train")
    assert (first["source_prompt"], first["seed"], first["synthetic"]) == ("a cat", 0, False)
    assert first["image_bytes"] is None
    assert [edit["target_prompt"] for edit in first["edits"]] == ["x", "y"]
    assert first["carried"] == {"boxes": [[1, 2, 3, 4]], "score": 0.5}
    assert EditParameters.from_dict(json.loads(first["parameters"])) == plan.parameters
    assert json.loads(second["parameters"])["steps"] == 2
    assert (third["uri"], third["seed"], third["synthetic"]) == ("", 5, True)
    assert third["split"] == ""
    ids = [edit["edit_id"] for row in (first, second, third) for edit in row["edits"]]
    assert ids == edit_ids(job)
    assert len({len(identity) for identity in ids} | {16}) == 1
    assert len(set(ids)) == 6


def test_a_plan_in_numbers(make_job: MakeJob) -> None:
    plan = make_plan(make_job(COLUMNS))
    assert (plan.edits_total, plan.edits_done, plan.edits_pending) == (6, 0, 6)
    assert (plan.groups_pending, plan.sources) == (3, 3)
    # Four steps, half of them replaced, guided; the second row takes two steps. The 1 is the first
    # step's unconditional row, which all edits of a source share.
    real_two_edits, real_one_edit, synthetic_three = 4 + 2 + 1 + 2 * 7, 2 + 1 + 1 + 3, 8 + 1 + 3 * 7
    assert plan.unet_rows == real_two_edits + real_one_edit + synthetic_three
    assert plan.output_bytes > 9 * 64 * 64


@pytest.mark.parametrize("synthetic", [False, True])
@pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
@pytest.mark.parametrize("source_prompt", ["a cat", "snow"])
@pytest.mark.parametrize("replaced_fraction", [0.7, 0.0])
@pytest.mark.parametrize("guidance_interval", [(0.0, 1.0), (0.0, 0.5), (0.5, 1.0)])
def test_the_rows_that_are_planned_are_those_the_editor_counts(
    tiny_checkpoint: Path,
    picture: Callable[..., Any],
    synthetic: bool,
    guidance_scale: float,
    source_prompt: str,
    replaced_fraction: float,
    guidance_interval: tuple[float, float],
) -> None:
    parameters = EditParameters(
        steps=2,
        guidance_scale=guidance_scale,
        negative_prompt="snow",
        replaced_fraction=replaced_fraction,
        guidance_interval=guidance_interval,
        width_px=64,
        height_px=64,
    )
    editor = Editor(load_checkpoint(tiny_checkpoint, device="cpu"))
    prompts = ["a red cat", "a dog"]
    if synthetic:
        sources = editor.synthesise([source_prompt], [1], parameters)
        spent = 0
    else:
        sources = editor.invert([picture()], [source_prompt], parameters)
        spent = sources.unet_rows
    spent += editor.edit(sources, [prompts], parameters).unet_rows
    assert spent == GroupShape.of(parameters, len(prompts), synthetic=synthetic).unet_rows


def test_planning_the_same_again_finds_the_same_files(
    make_stored_job: MakeJob, store: Store
) -> None:
    job = make_stored_job(COLUMNS)
    first = make_plan(job)
    files = store.raw("run/")
    assert len(files) == 2
    assert make_plan(job) == first
    assert store.raw("run/") == files


def test_without_writing_nothing_is_written(make_stored_job: MakeJob, store: Store) -> None:
    job = make_stored_job(COLUMNS)
    plan = make_plan(job, write=False)
    assert plan.work_files == ()
    assert store.raw("run") == {}
    assert make_plan(job).plan_id == plan.plan_id


def test_what_the_ledger_has_is_left_out(make_stored_job: MakeJob) -> None:
    job = make_stored_job(COLUMNS)
    before = make_plan(job)
    ids = edit_ids(job)
    finish(job, [ids[0], ids[2]])
    plan = make_plan(job)
    assert (plan.edits_total, plan.edits_done, plan.groups_pending) == (6, 2, 2)
    assert plan.plan_id != before.plan_id
    rows = work(job, plan).to_pylist()
    assert [row["row"] for row in rows] == [0, 2]
    assert [edit["edit_id"] for row in rows for edit in row["edits"]] == [ids[1], *ids[3:]]
    assert rows[1]["carried"] == {"boxes": None, "score": 1.0}
    assert [r["group_id"] for r in rows] == [
        r["group_id"] for r in work(job, before).to_pylist() if r["row"] != 1
    ]


def test_when_all_is_done_nothing_is_written(make_stored_job: MakeJob, store: Store) -> None:
    job = make_stored_job(COLUMNS)
    finish(job, edit_ids(job))
    plan = make_plan(job)
    assert (plan.edits_pending, plan.groups_pending, plan.work_files) == (0, 0, ())
    assert (plan.unet_rows, plan.output_bytes) == (0, 0)
    assert store.raw("run/.plan") == {}


def test_only_some_edits_are_planned_whatever_is_done(make_job: MakeJob) -> None:
    job = make_job(COLUMNS)
    edits = edit_ids(job)
    finish(job, edits[:3])
    plan = make_plan(job, only={edits[1], edits[5], b"of another job"})
    planned = [edit["edit_id"] for row in work(job, plan)["edits"].to_pylist() for edit in row]
    assert planned == [edits[1], edits[5]]
    assert (plan.edits_total, plan.edits_pending, plan.groups_pending) == (6, 2, 2)
    assert make_plan(job, only=set()).edits_pending == 0


def test_rows_added_to_a_manifest_leave_the_others_ids_alone(make_job: MakeJob) -> None:
    columns = {"image": ["b.png", "c.png"], "target_prompt": ["x", "x"]}
    before = edit_ids(make_job(columns))
    grown = {"image": ["a.png", "b.png", "c.png"], "target_prompt": ["x", "x", "x"]}
    assert edit_ids(make_job(grown))[1:] == before


def test_equal_rows_are_all_kept_and_told_apart(make_job: MakeJob) -> None:
    columns = {
        "image": ["a.png"] * 3,
        "target_prompt": [["x", "y"], ["y", "z"], ["x", "y"]],
        "note": ["1", "2", "3"],
    }
    job = make_job(columns)
    plan = make_plan(job)
    rows = work(job, plan).to_pylist()
    ids = [edit["edit_id"] for row in rows for edit in row["edits"]]
    assert len(set(ids)) == plan.edits_total == 6
    assert len({row["group_id"] for row in rows}) == 3
    assert plan.sources == len({row["source_id"] for row in rows}) == 1
    # The first of each is what it would be alone.
    alone = edit_ids(make_job({"image": ["a.png"], "target_prompt": [["x", "y"]]}))
    assert ids[:2] == alone


def test_ids_do_not_depend_on_where_a_dataset_lies(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"image": ["a.png", "sub/b.png"], "target_prompt": ["x", "x"]}
    ids = edit_ids(make_job(columns))
    (tmp_path / "moved").mkdir()
    (tmp_path / "manifest.parquet").rename(tmp_path / "moved/manifest.parquet")
    assert edit_ids(make_job(manifest=str(tmp_path / "moved/manifest.parquet"))) == ids
    assert edit_ids(make_job(manifest=str(tmp_path / "moved"))) == ids
    assert edit_ids(make_job(manifest=f"{tmp_path}/moved/*.parquet")) == ids
    monkeypatch.chdir(tmp_path)
    assert edit_ids(make_job(manifest="moved/manifest.parquet")) == ids
    assert edit_ids(make_job(manifest="moved/manifest.parquet", output="elsewhere")) == ids


def test_equal_names_in_two_folders_are_two_sources(make_job: MakeJob, tmp_path: Path) -> None:
    for day in ("day1", "day2"):
        (tmp_path / "data" / day).mkdir(parents=True)
        pq.write_table(
            pa.table({"image": ["0.png"], "target_prompt": ["x"]}),
            tmp_path / "data" / day / "m.parquet",
        )
    for manifest in (
        str(tmp_path / "data"),
        [f"{tmp_path}/data/day1/m.parquet", f"{tmp_path}/data/day2/m.parquet"],
    ):
        assert make_plan(make_job(manifest=manifest), write=False).sources == 2


def test_images_in_the_manifest_are_known_by_their_bytes(make_job: MakeJob) -> None:
    cells = [{"bytes": b"1", "path": "x.png"}, {"bytes": b"2", "path": "x.png"}]
    job = make_job({"image": cells, "target_prompt": ["x", "x"]})
    rows = work(job, make_plan(job)).to_pylist()
    assert [(row["image_bytes"], row["embedded"]) for row in rows] == [(None, True)] * 2
    assert [row["uri"] for row in rows] == ["", ""]
    assert [row["stem"] for row in rows] == ["x", "x"]
    assert rows[0]["source_id"] != rows[1]["source_id"]
    renamed = make_job({"image": [b"1"], "target_prompt": ["x"]})
    assert edit_ids(renamed) == [rows[0]["edits"][0]["edit_id"]]


def test_labels_and_the_columns_they_replace(make_job: MakeJob) -> None:
    job = make_job(
        {
            "image": ["a.png", "b.png", "c.png"],
            "colour": ["red", "green", "blue"],
            "shape": ["cat", "dog", "cow"],
            "target_prompt": ["not used", "not used", "not used"],
        },
        prompts={
            "target": "a {colour} {shape}",
            "source": "a {colour} {shape}",
            "labels": {"colour": ["red", "blue"]},
        },
    )
    plan = make_plan(job)
    assert plan.label_names == ("colour",)
    assert plan.carried_schema.names == ["target_prompt", "source_colour", "shape"] or (
        sorted(plan.carried_schema.names) == ["shape", "source_colour", "target_prompt"]
    )
    rows = work(job, plan).to_pylist()
    assert [[edit["labels"] for edit in row["edits"]] for row in rows] == [
        [["blue"]],
        [["red"], ["blue"]],
        [["red"]],
    ]
    assert [edit["target_prompt"] for edit in rows[1]["edits"]] == ["a red dog", "a blue dog"]
    assert [row["source_prompt"] for row in rows] == ["a red cat", "a green dog", "a blue cow"]
    assert [row["carried"]["source_colour"] for row in rows] == ["red", "green", "blue"]


def test_a_row_whose_edits_all_change_nothing_is_no_work(make_job: MakeJob) -> None:
    job = make_job(
        {"image": ["a.png", "b.png"], "colour": ["red", "blue"], "n": [1, 2]},
        prompts={"target": "{colour}", "labels": {"colour": ["red"]}},
    )
    plan = make_plan(job)
    [row] = work(job, plan).to_pylist()
    assert (plan.edits_total, plan.sources) == (1, 1)
    assert (row["row"], row["carried"]) == (1, {"source_colour": "blue", "n": 2})


@pytest.mark.parametrize(
    "sections",
    [
        {"edit": {"steps": 3}},
        {"edit": {"negative_prompt": "blurred"}},
        {"edit": {"size_px": 128}},
        {"images": {"fit": "pad"}},
    ],
)
def test_what_changes_the_image_changes_the_ids(
    make_job: MakeJob, sections: dict[str, Any]
) -> None:
    columns = {"image": ["a.png"], "target_prompt": ["x"]}
    assert edit_ids(make_job(columns, **sections)) != edit_ids(make_job(columns))


@pytest.mark.parametrize(
    "sections",
    [
        {"images": {"format": "jpeg"}},
        {"resources": {"actors": 2}},
        {"model": {"device": "cpu"}},
        {"edit": {"steps": 4}},  # what the checkpoint recommends anyway
    ],
)
def test_what_does_not_change_the_image_does_not(
    make_job: MakeJob, tiny_checkpoint: Path, sections: dict[str, Any]
) -> None:
    columns = {"image": ["a.png"], "target_prompt": ["x"]}
    if "model" in sections:
        sections = {"model": {"checkpoint": str(tiny_checkpoint), **sections["model"]}}
    assert edit_ids(make_job(columns, **sections)) == edit_ids(make_job(columns))


def test_a_manifest_with_a_mistake_in_its_last_row_leaves_nothing_behind(
    make_job: MakeJob,
) -> None:
    rows = 3000
    columns = {"image": ["a.png"] * rows, "target_prompt": ["x"] * (rows - 1) + [""]}
    job = make_job(columns)
    with pytest.raises(ManifestError, match=r"row 2999 \(manifest\.parquet, row 2999\)"):
        make_plan(job)
    assert not Path(job.output).exists()


def lacks_a_query(folder: Path) -> None:
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
    save_file(weights, file, metadata={"format": "pt"})


def has_other_betas(folder: Path) -> None:
    file = folder / "scheduler/scheduler_config.json"
    content = json.loads(file.read_text()) | {"beta_schedule": "squaredcos_cap_v2"}
    file.write_text(json.dumps(content))


def has_zero_snr(folder: Path) -> None:
    file = folder / "scheduler/scheduler_config.json"
    content = json.loads(file.read_text()) | {"rescale_betas_zero_snr": True}
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "sections", "message"),
    [
        (lacks_a_query, {}, r"model\.checkpoint: .*lacks 1 of UNet2DConditionModel's weights"),
        (has_other_betas, {}, r"model\.checkpoint: .*beta_schedule 'squaredcos_cap_v2'"),
        (has_zero_snr, {"edit": {"steps": 500}}, r"edit: 500 steps begin at timestep 999"),
    ],
)
def test_a_checkpoint_that_cannot_be_edited_with_is_refused_at_planning(
    spoil: Callable[[Path], object],
    sections: dict[str, Any],
    message: str,
    make_job: MakeJob,
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    spoil(folder)
    job = make_job(COLUMNS, **sections, model={"checkpoint": str(folder)})
    with pytest.raises(JobError, match=message):
        make_plan(job)
    assert not (tmp_path / "run").exists()


def test_a_judge_model_that_is_not_whole_is_refused_at_planning(
    make_job: MakeJob, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(SCORER_DIR, tmp_path / "clip"))
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    job = make_job(COLUMNS, judge={"clip": str(folder)})
    with pytest.raises(JobError, match=r"judge\.clip: .*lacks 1 of CLIPModel's weights"):
        make_plan(job)
    (folder / "preprocessor_config.json").unlink()
    job = make_job(COLUMNS, judge={"structure": str(folder)})
    with pytest.raises(JobError, match=r"judge\.structure: .*no preprocessor_config\.json"):
        make_plan(job)


def test_a_single_file_is_planned_with_the_defaults_of_its_config(
    make_job: MakeJob, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    single = write_single_file(tiny_checkpoint, tmp_path / "model.safetensors")
    model = {"checkpoint": str(single), "config": str(tiny_checkpoint)}
    resolved = resolve_job(make_job(COLUMNS, model=model))
    assert resolved.parameters == resolve_job(make_job(COLUMNS)).parameters
    assert (resolved.parameters.steps, resolved.parameters.width_px) == (4, 64)


def test_a_checkpoint_that_is_none(make_job: MakeJob) -> None:
    job = make_job(COLUMNS, model={"checkpoint": "/no/such/checkpoint"})
    with pytest.raises(JobError, match=r"model\.checkpoint: .*no/such/checkpoint"):
        make_plan(job)


def test_an_empty_manifest_is_a_plan_of_nothing(make_job: MakeJob) -> None:
    empty = {"image": pa.array([], pa.string()), "target_prompt": pa.array([], pa.string())}
    plan = make_plan(make_job(empty))
    assert (plan.edits_total, plan.work_files) == (0, ())


def test_a_large_plan_is_cut_into_files_and_stays_in_order(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.plan.work_list, "WORK_FILE_GROUPS", 1000)
    rows = 5000
    columns = {"image": [f"{n}.png" for n in range(rows)], "target_prompt": ["x"] * rows}
    job = make_job(columns)
    plan = make_plan(job)
    assert len(plan.work_files) > 3
    assert plan.work_files == tuple(sorted(plan.work_files))
    assert work(job, plan)["row"].to_pylist() == list(range(rows))


def test_planning_images_in_the_manifest_takes_little_memory(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.plan.work_list, "WORK_FILE_GROUPS", 16)
    image_bytes, images = 1 << 20, 96
    cells = [bytes([number]) * image_bytes for number in range(images)]
    pq.write_table(
        pa.table({"image": cells, "target_prompt": ["x"] * images}),
        tmp_path / "manifest.parquet",
        use_dictionary=False,
        write_batch_size=1,
    )
    del cells
    pool = pa.default_memory_pool()
    peaks = []
    write = Folder.write_if_absent

    def measured(folder: Folder, path: str, data: bytes) -> bool:
        peaks.append(pool.bytes_allocated())
        return write(folder, path, data)

    monkeypatch.setattr(Folder, "write_if_absent", measured)
    before = pool.bytes_allocated()
    plan = make_plan(make_job())
    assert len(plan.work_files) >= 5
    assert max(peaks) - before < images * image_bytes / 2


def test_a_plan_is_the_same_plan_on_every_store(
    make_job: MakeJob, make_stored_job: MakeJob, store: Store
) -> None:
    job, stored = make_job(COLUMNS), make_stored_job(COLUMNS)
    here, there = make_plan(job, write=False), make_plan(stored, write=False)
    assert edit_ids(stored) == edit_ids(job)
    assert (there.edits_total, there.unet_rows) == (here.edits_total, here.unet_rows)
    # A folder of two files, in which names are relative to what the job names.
    store.put_table("data/1/m.parquet", {"image": ["a.png"], "target_prompt": ["x"]})
    store.put_table("data/2/m.parquet", {"image": ["a.png"], "target_prompt": ["x"]})
    folder = make_stored_job(COLUMNS, manifest=store.url("data"))
    assert make_plan(folder, write=False).sources == 2


def test_plan_json_says_what_was_planned(make_stored_job: MakeJob, store: Store) -> None:
    job = make_stored_job(COLUMNS)
    finish(job, edit_ids(job)[:1])
    plan = make_plan(job)
    stored = json.loads(store.raw()[f"run/.plan/{plan.plan_id}/plan.json"])
    assert stored["ledger_edits"] == 1
    assert stored["edits_pending"] == plan.edits_pending == 5
    assert stored["work_files"] == list(plan.work_files)
    assert EditParameters.from_dict(stored["parameters"]) == plan.parameters


def test_more_layers_than_there_are_is_a_mistake_in_the_job(make_job: MakeJob) -> None:
    job = make_job({"image": ["a.png"], "target_prompt": ["x"]})
    edit = job.edit.model_copy(update={"layers": LayerRange(first=1, last=17)})
    with pytest.raises(JobError, match=r"edit: layers\.last must be at most 16"):
        make_plan(job.model_copy(update={"edit": edit}))
    assert not Path(job.output).exists()


def test_an_output_inside_the_manifest_folder_is_refused(
    make_stored_job: MakeJob, store: Store
) -> None:
    columns = {"image": ["a.png"], "target_prompt": ["x"]}
    inside = make_stored_job(columns, manifest=store.url(), output=store.url("run"))
    with pytest.raises(JobError, match="lies in the manifest folder"):
        make_plan(inside)


@pytest.mark.parametrize(
    ("pattern", "output", "is_refused"),
    [
        ("**/*.parquet", "run", True),
        ("**/*.parquet", "deep/er/run", True),
        ("**", "run", True),
        ("**/part-*/*", "run", True),
        ("*/*/*.parquet", "run", True),
        ("*/*/*/metadata.parquet", "run", True),  # of rejected edits
        ("run/part-*/*.parquet", "run", True),
        ("**/m*.parquet", "run", True),
        ("*.parquet", "run", False),
        ("*/*.parquet", "run", False),
        ("**/manifest*.parquet", "run", False),
        ("**/*.parquet", "_runs/1", False),  # hidden from patterns
        ("**/*.parquet", "../run", False),
    ],
)
def test_an_output_that_the_manifests_pattern_finds_is_refused(
    make_stored_job: MakeJob, store: Store, pattern: str, output: str, is_refused: bool
) -> None:
    rows = {"image": ["a.png"], "target_prompt": ["x"]}
    for path in ("data/manifest.parquet", "data/b/manifest.parquet", "data/run/part-0/m.parquet"):
        store.put_table(path, rows)
    store.put_table("data/b/c/d/metadata.parquet", rows)
    place = store.url("run") if output == "../run" else store.url(f"data/{output}")
    job = make_stored_job(rows, manifest=store.url(f"data/{pattern}"), output=place)
    if is_refused:
        with pytest.raises(JobError, match=r"output: .* lies where the manifest .* finds files"):
            make_plan(job, write=False)
    else:
        assert make_plan(job, write=False).edits_total > 0


def test_a_manifest_of_the_runs_own_files_is_refused(
    make_stored_job: MakeJob, store: Store
) -> None:
    rows = {"image": ["a.png"], "target_prompt": ["x"]}
    own = store.put_table("run/part-0a/metadata.parquet", rows)
    other = store.put_table("run/manifest.parquet", rows)
    run = store.url("run")
    for url in (own, store.url("run/part-0a"), [other, own]):
        with pytest.raises(JobError, match=r"holds part-0a/metadata\.parquet, a file of its run"):
            make_plan(make_stored_job(rows, manifest=url, output=run), write=False)
    for name in (".outcomes/part-0a-00.parquet", ".plan/0/work-00000.parquet"):
        hidden = store.put_table(f"run/{name}", rows)
        with pytest.raises(JobError, match="a file of its run"):
            make_plan(make_stored_job(rows, manifest=hidden, output=run), write=False)
    assert make_plan(make_stored_job(rows, manifest=other, output=run), write=False).edits_total


def test_an_output_that_a_link_leads_into_the_manifest(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job({"image": ["a.png"], "target_prompt": ["x"]})
    (tmp_path / "link").symlink_to(Path(job.manifest_urls[0]).parent)
    there = f"{Path(job.manifest_urls[0]).parent}/**/*.parquet"
    job = job.model_copy(update={"manifest": there, "output": str(tmp_path / "link" / "run")})
    with pytest.raises(JobError, match="finds files"):
        make_plan(job, write=False)


def test_rows_that_repeat_exactly_are_counted(make_job: MakeJob) -> None:
    columns = {
        "image": ["a.png", "a.png", "a.png", "a.png", "b.png", "b.png", "c.png", "c.png", "c.png"],
        "target_prompt": [["x"], ["x"], ["x"], ["y"], ["x"], ["x"], ["x"], ["x"], ["x"]],
        "note": ["1", "1", "1", "1", "1", "2", None, None, "1"],
    }
    plan = make_plan(make_job(columns), write=False)
    assert plan.rows_repeated == 3, "two of a, one of c: the others differ in a prompt or a note"
    assert plan.edits_total == 9, "all are made"
    printed = [str(cell) for cell in plan_table(plan, "run").columns[0].cells]
    assert "rows that repeat another one exactly" in printed
    assert make_plan(make_job({k: v[3:6] for k, v in columns.items()})).rows_repeated == 0


def test_a_run_folder_that_was_begun_without_partition_columns_goes_on(
    make_job: MakeJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Releases up to 0.2.0 did not read the names of folders."""
    folder = tmp_path / "hive" / "split=train" / "kind=cat"
    folder.mkdir(parents=True)
    rows = {"image": ["a.png"], "target_prompt": ["x"], "note": ["n"]}
    pq.write_table(pa.table(rows), folder / "m.parquet")
    old = make_job(manifest=str(folder / "m.parquet"))
    new = make_job(manifest=str(tmp_path / "hive"))
    plain = make_job(rows)
    claim_columns(run_folder(new), metadata_layout(plain, make_plan(plain, write=False)))
    plan = make_plan(new, write=False)
    assert plan.carried_schema is not None
    assert plan.carried_schema.names == ["note"]
    claim_columns(run_folder(new), metadata_layout(new, plan))
    assert "was begun without the columns kind" in caplog.text
    needed = make_job(manifest=old.manifest, prompts={"target": "a {kind}"})
    kept = make_plan(needed, write=False).carried_schema
    assert kept is not None
    assert kept.names[0:2] == ["target_prompt", "note"]
    assert "kind" in kept.names
    fresh = new.model_copy(update={"output": str(tmp_path / "fresh")})
    assert "kind" in make_plan(fresh, write=False).carried_schema.names  # type: ignore[union-attr]


def test_a_plan_counts_the_sources_that_may_not_be_read(
    make_job: MakeJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uris = ["a.png", "/etc/passwd", "https://me:SECRET@host/b.png?sig=SECRET", None]
    columns = {"image": uris, "target_prompt": ["x"] * 4, "source_prompt": ["y"] * 4}
    columns |= {"seed": [None, None, None, 7]}
    job = make_job(columns, images={"allowed_sources": [str(tmp_path)]})
    plan = make_plan(job, write=False)
    assert (plan.edits_pending, plan.sources_refused) == (4, 2)
    assert "2 sources will fail as source_forbidden; the first is that of row 1" in caplog.text
    assert make_plan(make_job(columns), write=False).sources_refused == 0
    finish(job, edit_ids(job))
    assert make_plan(job, write=False).sources_refused == 0
