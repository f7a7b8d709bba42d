"""The editing actor without Ray: the outcomes it returns, the files it writes, and failures of
rows."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fpe_core import (
    CheckpointError,
    Editor,
    LayersByRange,
    ParameterError,
    PromptError,
    RowsOutOfMemoryError,
    checkpoint_fingerprint,
)
from pipeline.edit.actor import EditActor, EditedBlock
from pipeline.edit.model_sharing import ModelLock, ModelThread
from pipeline.edit.phase_clock import MODEL_PHASES
from pipeline.edit.settings import WORKER_FIELD, EditSettings
from pipeline.errors import LeaseError
from pipeline.judge.judge import JudgeSettings
from pipeline.ledger.outcome import OUTCOME_SCHEMA
from pipeline.read.decode import DecodeSettings, decode
from pipeline.supervision.supervisor import Orders
from pipeline.write.image_format import ImageFormat
from pipeline.write.metadata import MetadataLayout
from pipeline.write.part import part_name
from tests.builders.tiny_checkpoint import SIZE_PX, build_tiny_checkpoint
from tests.builders.watched import Watched
from tests.builders.work_rows import PARAMETERS, work_row, work_table

GUIDED_ROWS = 2 * PARAMETERS.steps
EDIT_ROWS = GUIDED_ROWS - 1  # all edits of a source share the first unconditional row:
SHARED_ROW = 1
SOURCE_ROWS = PARAMETERS.steps + PARAMETERS.replaced_steps

Rows = list[dict[str, Any]]
MakeRows = Callable[..., Rows]


@pytest.fixture
def rows(picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]) -> MakeRows:
    """rows(n, **work_row arguments): n work rows with different pictures."""

    def make(count: int, **options: Any) -> Rows:
        return [work_row(n, image_bytes=png(picture(n)), **options) for n in range(count)]

    return make


@pytest.fixture
def settings(tiny_checkpoint: Path, tmp_path: Path) -> EditSettings:
    return EditSettings(
        output=str(tmp_path / "run"),
        checkpoint=str(tiny_checkpoint),
        checkpoint_fingerprint=checkpoint_fingerprint(tiny_checkpoint),
        device="cpu",
        write_threads=2,
    )


def run(settings: EditSettings, rows: Sequence[dict[str, Any]], **options: Any) -> pa.Table:
    block = decode(work_table(rows, **options), DecodeSettings())
    return EditActor(settings)(block)


def metadata(settings: EditSettings) -> Rows:
    files = sorted(Path(settings.output).glob("part-*/metadata.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def written(settings: EditSettings, kind: str) -> list[Path]:
    return sorted(Path(settings.output).glob(f"part-*/{kind}/*"))


def test_outcomes_images_and_metadata_say_the_same(settings: EditSettings, rows: MakeRows) -> None:
    table = run(settings, rows(3, targets=("a red cat", "a blue dog")))
    assert table.schema.equals(pa.schema([*OUTCOME_SCHEMA, WORKER_FIELD]))
    outcomes = table.to_pylist()
    assert [o["outcome"] for o in outcomes] == ["accepted"] * 6
    assert [o["row"] for o in outcomes] == [0, 0, 1, 1, 2, 2]
    root = Path(settings.output)
    for outcome, row in zip(outcomes, metadata(settings), strict=True):
        assert row["edit_id"] == outcome["edit_id"].hex()
        assert f"{outcome['part']}/{row['edited_file_name']}" == outcome["edited_file_name"]
        for name in ("edited_file_name", "source_file_name"):
            with Image.open(root / outcome["part"] / row[name]) as image:
                assert (image.size, image.mode) == ((SIZE_PX, SIZE_PX), "RGB")
    assert len(written(settings, "edited")) == 6
    assert len(written(settings, "source")) == 3


def test_the_written_source_is_the_fitted_picture(
    settings: EditSettings, rows: MakeRows, picture: Callable[..., Image.Image]
) -> None:
    run(settings, rows(1))
    (path,) = written(settings, "source")
    with Image.open(path) as source:
        assert np.array_equal(np.asarray(source), np.asarray(picture(0)))


def test_a_source_is_inverted_once_for_all_its_edits(
    settings: EditSettings, rows: MakeRows
) -> None:
    table = run(settings, rows(2, targets=("a red cat", "a blue dog", "a green car")))
    expected = 2 * (SOURCE_ROWS + SHARED_ROW + 3 * EDIT_ROWS)
    assert sum(table["unet_rows"].to_pylist()) == pytest.approx(expected)


def test_sources_can_stay_unwritten(settings: EditSettings, rows: MakeRows) -> None:
    run(replace(settings, layout=MetadataLayout(keep_source=False)), rows(2))
    assert written(settings, "source") == []
    assert "source_file_name" not in metadata(settings)[0]


def test_synthetic_sources_are_made_beside_their_edits(settings: EditSettings) -> None:
    row = work_row(0, source_prompt="a photo of a dog", seed=11, targets=("a cat", "a car"))
    table = run(settings, [row])
    assert table["outcome"].to_pylist() == ["accepted", "accepted"]
    expected = GUIDED_ROWS + SHARED_ROW + 2 * EDIT_ROWS
    assert sum(table["unet_rows"].to_pylist()) == pytest.approx(expected)
    assert len(written(settings, "source")) == 1
    (first, _) = metadata(settings)
    assert (first["seed"], first["source_prompt"]) == (11, "a photo of a dog")
    assert first["fit_policy"] is None


def test_a_bad_row_costs_one_row(settings: EditSettings, rows: MakeRows) -> None:
    good, (broken,) = rows(3), rows(1, targets=("a red cat", "a blue dog"))
    broken |= work_row(7, image_bytes=b"junk", targets=("a red cat", "a blue dog"))
    table = run(settings, [good[0], broken, good[1], good[2]])
    assert table["outcome"].to_pylist() == ["accepted", "failed", "failed", "accepted", "accepted"]
    assert table["reason"].to_pylist() == ["", "decode_failed", "decode_failed", "", ""]
    assert len(metadata(settings)) == 3


class Poisoned:
    """A real editor that raises whenever a certain prompt goes through it."""

    def __init__(self, editor: Editor, prompt: str, error: Exception) -> None:
        self._editor, self._prompt, self._error = editor, prompt, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._editor, name)

    def invert(self, images: Any, prompts: Sequence[str], *others: Any, **named: Any) -> Any:
        self._raise_for(prompts)
        return self._editor.invert(images, prompts, *others, **named)

    def edit(self, sources: Any, prompts: Sequence[Sequence[str]], *others: Any) -> Any:
        for of_source in prompts:
            self._raise_for(of_source)
        return self._editor.edit(sources, prompts, *others)

    def _raise_for(self, prompts: Sequence[str]) -> None:
        if self._prompt in prompts:
            raise self._error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PromptError("no such word"), "prompt_invalid"),
        (RowsOutOfMemoryError("one row is too many"), "out_of_memory"),
        (RuntimeError("something odd"), "worker_died"),
    ],
)
@pytest.mark.parametrize("where", ["target", "source"])
def test_what_raises_in_the_model_costs_only_itself(
    settings: EditSettings, rows: MakeRows, error: Exception, code: str, where: str
) -> None:
    """All rows go through the model together, so the guilty one takes the others down first."""
    block = rows(4, targets=("a red cat", "a blue dog"))
    if where == "target":
        block[2]["edits"][1]["target_prompt"] = "poison"
        expected = ["", "", "", "", "", code, "", ""]
    else:
        block[2]["source_prompt"] = "poison"
        expected = ["", "", "", "", code, code, "", ""]
    actor = EditActor(settings)
    actor._editor = Poisoned(actor._editor, "poison", error)
    outcomes = actor(decode(work_table(block), DecodeSettings())).to_pylist()
    assert [outcome["reason"] for outcome in outcomes] == expected
    assert str(error) in outcomes[5]["message"]
    assert len(written(settings, "edited")) == len(metadata(settings)) == expected.count("")


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_an_edit_that_is_not_finite_fails_alone(settings: EditSettings, rows: MakeRows) -> None:
    wild, tame = rows(2)
    endless = replace(PARAMETERS, guidance_scale=1e38)
    wild["parameters"] = work_row(0, parameters=endless)["parameters"]
    table = run(settings, [wild, tame])
    assert table["reason"].to_pylist() == ["nan_latent", ""]
    assert len(written(settings, "edited")) == len(written(settings, "source")) == 1


@pytest.fixture(scope="module")
def diverging_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose noise predictions are beyond all numbers."""
    folder = build_tiny_checkpoint(tmp_path_factory.mktemp("diverging"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_out.weight"] *= 1e38
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def test_a_diverged_inversion_fails_its_edits(
    settings: EditSettings, rows: MakeRows, diverging_checkpoint: Path
) -> None:
    table = run(
        replace(
            settings,
            checkpoint=str(diverging_checkpoint),
            checkpoint_fingerprint=checkpoint_fingerprint(diverging_checkpoint),
        ),
        rows(2, targets=("a", "b")),
    )
    assert Counter(table["reason"].to_pylist()) == {"inversion_diverged": 4}
    assert sum(table["unet_rows"].to_pylist()) == pytest.approx(2 * PARAMETERS.steps)
    assert not Path(settings.output).exists()


def test_rows_of_one_block_keep_their_own_parameters(
    settings: EditSettings, rows: MakeRows
) -> None:
    plain, other = rows(2)
    unguided = replace(PARAMETERS, guidance_scale=1.0, layers=LayersByRange(3, 13))
    other["parameters"] = work_row(0, parameters=unguided)["parameters"]
    table = run(settings, [plain, other])
    assert table["unet_rows"].to_pylist() == pytest.approx(
        [SOURCE_ROWS + GUIDED_ROWS, SOURCE_ROWS + PARAMETERS.steps]
    )
    found = [(row["guidance_scale"], row["layers"]) for row in metadata(settings)]
    assert found == [(3.0, "tokens<=1024"), (1.0, "3-13")]


def test_a_prompt_that_is_cut_is_noted(settings: EditSettings, rows: MakeRows) -> None:
    table = run(settings, rows(1, targets=("word " * 80 + "zebra", "short")))
    assert table["outcome"].to_pylist() == ["accepted", "accepted"]
    long, short = table["message"].to_pylist()
    assert long.startswith("target prompt cut")
    assert long.endswith("zebra")
    assert short == ""


def test_after_a_death_a_block_is_made_one_group_at_a_time(
    settings: EditSettings, rows: MakeRows
) -> None:
    block = decode(work_table(rows(3)), DecodeSettings())
    groups = block["group_id"].to_pylist()
    together, careful = Watched(Orders()), Watched(Orders(is_careful=True))
    other = replace(settings, output=f"{settings.output}-2")
    outcomes = EditActor(settings)(block, together).to_pylist()
    again = EditActor(other)(block, careful).to_pylist()
    assert together.in_focus == [groups]
    assert careful.in_focus == [[group] for group in groups]
    assert [o["outcome"] for o in (*outcomes, *again)] == ["accepted"] * 6
    assert {o["part"] for o in outcomes} == {o["part"] for o in again}
    calls_of_the_unet = PARAMETERS.steps * 2 + PARAMETERS.replaced_steps
    assert together.signs_of_life == calls_of_the_unet + 6, "and one per file"
    assert careful.signs_of_life == 3 * (calls_of_the_unet + 2)


def test_a_group_that_killed_its_workers_fails_and_is_not_tried(
    settings: EditSettings, rows: MakeRows
) -> None:
    block = decode(work_table(rows(3, targets=("a red cat", "a cat"))), DecodeSettings())
    first, guilty, last = block["group_id"].to_pylist()
    watched = Watched(Orders(is_careful=True, quarantined={guilty: "it died of it"}))
    outcomes = EditActor(settings)(block, watched).to_pylist()
    assert watched.in_focus == [[first], [last]]
    assert [o["reason"] for o in outcomes] == [""] * 2 + ["worker_died"] * 2 + [""] * 2
    assert outcomes[2]["message"] == "it died of it"
    assert len(written(settings, "edited")) == 4


class _Gate(Executor):
    """The writer's or the judge's pool: nothing is done before the gate is open."""

    def __init__(self, pool: Executor) -> None:
        self.open = threading.Event()
        self._pool = pool

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def later() -> Any:
            assert self.open.wait(60.0), "the next block should have had the model by now"
            return fn(*args, **kwargs)

        return self._pool.submit(later)


@pytest.mark.parametrize("at_work", ["_pool", "_judging"])
def test_the_next_block_has_the_model_while_one_is_judged_and_written(
    settings: EditSettings, rows: MakeRows, at_work: str
) -> None:
    before = torch.get_num_threads()
    actor = EditActor(replace(settings, judge=JudgeSettings(), threads=1), ModelThread())
    torch.set_num_threads(before)
    gate = _Gate(getattr(actor, at_work))
    setattr(actor, at_work, gate)
    lock, begun, written = ModelLock(), [], []
    blocks = [decode(work_table([row]), DecodeSettings()) for row in rows(2)]

    def edit(block: pa.Table) -> EditedBlock:
        with lock.acquire(exclusive=False) as hold:
            begun.append(block)
            if len(begun) == 2:  # the first waits for the gate, so it is not through
                written.append(len(list(Path(settings.output).rglob("*.png"))))
                gate.open.set()
            return actor.edit(actor.prepare(block), Watched(Orders()), hold.release_model)

    with ThreadPoolExecutor(2) as threads:
        edited = list(threads.map(edit, blocks))
    assert written == [0], "the second began when nothing of the first had been written"
    for each in edited:
        assert each.outcomes["outcome"].to_pylist() == ["accepted"]
        of_edit = each.figures["edit"]
        assert (of_edit["rows"], of_edit["unet_rows"]) == (1, SOURCE_ROWS + GUIDED_ROWS)
        assert of_edit["sample_seconds"] > 0
        assert each.figures["judge"]["rows"] == 1
    assert len(metadata(settings)) == 2


@pytest.mark.parametrize(("threads", "judges_there"), [(1, False), (2, True)])
def test_on_a_cpu_no_second_thread_has_a_team(
    settings: EditSettings, threads: int, judges_there: bool
) -> None:
    before, thread = torch.get_num_threads(), ModelThread()
    try:
        actor = EditActor(replace(settings, judge=JudgeSettings(), threads=threads), thread)
    finally:
        torch.set_num_threads(before)
    judged_in = actor._judging.submit(threading.get_ident).result()
    assert (judged_in == thread.run(threading.get_ident)) is judges_there


def test_a_block_that_is_made_with_care_keeps_the_model(
    settings: EditSettings, rows: MakeRows
) -> None:
    actor, passed_on = EditActor(settings), []
    for careful in (True, False):
        block = actor.prepare(decode(work_table(rows(2)[careful:]), DecodeSettings()))
        actor.edit(block, Watched(Orders(is_careful=careful)), lambda: passed_on.append(1))
        assert bool(passed_on) is not careful


def test_in_a_run_that_is_stopped_nothing_is_made(settings: EditSettings, rows: MakeRows) -> None:
    block = decode(work_table(rows(2)), DecodeSettings())
    stopped = Watched(Orders(is_stopping=True))
    table = EditActor(settings)(block, stopped)
    assert table.num_rows == 0
    assert table.schema.equals(pa.schema([*OUTCOME_SCHEMA, WORKER_FIELD]))
    assert not Path(settings.output).exists()


def test_a_finished_part_is_taken_as_it_is(settings: EditSettings, rows: MakeRows) -> None:
    """The retry of a block whose worker died after its last write."""
    block = [*rows(2), work_row(9, image_bytes=b"junk")]
    first = run(settings, block)
    files = {p: p.stat().st_mtime_ns for p in Path(settings.output).rglob("*") if p.is_file()}
    second = run(settings, block)
    assert second.drop_columns(["worker"]).equals(first.drop_columns(["worker"]))
    after = {p: p.stat().st_mtime_ns for p in Path(settings.output).rglob("*") if p.is_file()}
    assert after == files


def test_the_metadata_is_written_last(settings: EditSettings, rows: MakeRows) -> None:
    run(settings, rows(3, targets=("a red cat", "a blue dog")))
    (last,) = Path(settings.output).glob("part-*/metadata.parquet")
    images = [*written(settings, "edited"), *written(settings, "source")]
    assert len(images) == 9
    assert all(image.stat().st_mtime_ns <= last.stat().st_mtime_ns for image in images)


def test_an_image_that_cannot_be_written_costs_its_edit(
    settings: EditSettings, rows: MakeRows
) -> None:
    first, second = rows(2)
    part = part_name([first["edits"][0]["edit_id"], second["edits"][0]["edit_id"]])
    first["stem"] = "x" * 300  # longer than a file name may be
    table = run(settings, [first, second])
    assert table["reason"].to_pylist() == ["write_failed", ""]
    assert [row["edit_id"] for row in metadata(settings)] == [second["edits"][0]["edit_id"].hex()]
    assert table["part"].to_pylist() == ["", part]


def test_without_metadata_nothing_is_accepted(settings: EditSettings, rows: MakeRows) -> None:
    block = rows(2)
    part = Path(settings.output) / part_name([row["edits"][0]["edit_id"] for row in block])
    part.mkdir(parents=True)
    (part / "metadata.parquet").symlink_to(part / "nowhere")  # not there, and cannot be created
    table = run(settings, block)
    assert table["reason"].to_pylist() == ["write_failed", "write_failed"]
    assert set(table["part"].to_pylist()) == {""}


def test_carried_columns_keep_their_types(settings: EditSettings, rows: MakeRows) -> None:
    carried = pa.schema(
        [
            pa.field("weather", pa.string()),
            pa.field("boxes", pa.list_(pa.list_(pa.float32()))),
            pa.field("taken", pa.timestamp("ns", "UTC")),
            pa.field("seed", pa.int8()),
        ]
    )
    values = {"weather": None, "boxes": [[1.5, 2.0]], "taken": 1_700_000_000_123_456_789, "seed": 3}
    layout = MetadataLayout(("colour",), carried)
    run(
        replace(settings, layout=layout),
        rows(2, targets=("a red cat", "a blue cat"), labels=[["red"], ["blue"]], carried=values),
        carried=carried,
    )
    (path,) = Path(settings.output).glob("part-*/metadata.parquet")
    table = pq.read_table(path)
    assert table.schema.equals(layout.schema)
    assert table["colour"].to_pylist() == ["red", "blue"] * 2
    assert table["boxes"].to_pylist() == [[[1.5, 2.0]]] * 4
    assert table["taken"].cast(pa.int64()).to_pylist() == [1_700_000_000_123_456_789] * 4
    assert table["manifest_seed"].to_pylist() == [3] * 4
    assert table["seed"].null_count == table["weather"].null_count == 4


def test_a_checkpoint_that_is_none_is_refused(settings: EditSettings, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no-such-model"):
        EditActor(replace(settings, checkpoint=str(tmp_path / "no-such-model")))


def test_parameters_that_do_not_fit_the_model_are_no_rows_fault(
    settings: EditSettings, rows: MakeRows
) -> None:
    too_many = replace(PARAMETERS, layers=LayersByRange(15, 20))
    with pytest.raises(ParameterError, match="16"):
        run(settings, rows(2, parameters=too_many))


def test_torch_threads_are_as_set(settings: EditSettings) -> None:
    before = torch.get_num_threads()
    try:
        EditActor(replace(settings, threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_same_edit_is_the_same_image_in_any_block(
    settings: EditSettings, rows: MakeRows
) -> None:
    block = rows(3)
    together = run(settings, block).to_pylist()
    alone = run(settings, block[1:2]).to_pylist()
    assert together[1]["edit_id"] == alone[0]["edit_id"]
    root = Path(settings.output)
    one, two = (root / o["edited_file_name"] for o in (together[1], alone[0]))
    assert np.abs(_pixels(one) - _pixels(two)).max() <= 1


def test_another_checkpoint_than_the_planned_one_is_refused(settings: EditSettings) -> None:
    with pytest.raises(CheckpointError, match="another checkpoint here"):
        EditActor(replace(settings, checkpoint_fingerprint="0" * 32))


def test_rows_are_told_while_they_are_made_and_all_of_them_at_the_end(
    settings: EditSettings, rows: MakeRows
) -> None:
    actor, watched = EditActor(settings), Watched(Orders())
    block = actor.prepare(decode(work_table(rows(2)), DecodeSettings()))
    edited = actor.edit(block, watched)
    made = sum(edited.outcomes["unet_rows"].to_pylist())
    told = watched.unet_rows_told
    assert told == sorted(told)
    assert told[0] == 0
    assert told[0] < told[-1] < made
    edit = edited.figures["edit"]
    assert edit["unet_rows"] == pytest.approx(made)
    phases = [edit[f"{phase}_seconds"] for phase in MODEL_PHASES]
    assert all(seconds > 0 for seconds in phases)
    assert sum(phases) <= edit["seconds"]
    assert actor.edit(block, watched).figures == {}, "the part is there: nothing is made again"


class Lost:
    """A right to write that is lost after the images were written."""

    def check(self) -> None:
        raise LeaseError("another run has the folder")


def test_images_of_an_attempt_that_was_killed_are_not_taken_for_those_of_the_next(
    settings: EditSettings,
    picture: Callable[..., Image.Image],
    png: Callable[[Image.Image], bytes],
) -> None:
    """The file behind a URI was replaced meanwhile, and the images' quality too: same ids."""
    first = replace(settings, lease=Lost(), image_format=ImageFormat("jpeg", 50))  # type: ignore[arg-type]
    with pytest.raises(LeaseError):
        run(first, [work_row(0, image_bytes=png(picture(0)))])
    left = {
        path: path.read_bytes() for path in (*written(first, "edited"), *written(first, "source"))
    }
    assert len(left) == 2
    second = replace(settings, image_format=ImageFormat("jpeg", 95))
    rows = [work_row(0, image_bytes=png(picture(5)))]
    run(second, rows)
    alone = replace(second, output=f"{settings.output}-alone")
    run(alone, rows)
    (row,), (expected,) = metadata(second), metadata(alone)
    (part,) = Path(second.output).glob("part-*")
    for name in ("edited_file_name", "source_file_name"):
        image = (part / row[name]).read_bytes()
        assert row[name] != expected[name]
        assert image == Path(alone.output, part.name, expected[name]).read_bytes()
    assert {path: path.read_bytes() for path in left} == left
