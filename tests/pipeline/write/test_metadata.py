"""The files of a part: one schema for the run, column names without collisions, image formats."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fpe_core import EditParameters
from pipeline.errors import LeaseError
from pipeline.ledger.outcome import outcomes_table
from pipeline.ledger.parts import read_part_outcomes
from pipeline.write.image_format import ImageFormat
from pipeline.write.metadata import (
    MetadataLayout,
    carried_columns,
    fit_columns,
    parameter_columns,
    parameters_of_columns,
)
from pipeline.write.part import PartWriter, encode_metadata, part_name
from tests.builders.outcome_rows import accepted, failed
from tests.builders.work_rows import work_row, work_table
from tests.servers.stores import Store

CARRIED = pa.schema(
    [pa.field("weather", pa.string()), pa.field("speed", pa.int64()), pa.field("x", pa.float32())]
)


def one_row(**values: Any) -> dict[str, Any]:
    return {"edited_file_name": "edited/a.png", "edit_id": "00", **values}


def test_the_schema_does_not_depend_on_the_rows() -> None:
    layout = MetadataLayout(("colour",), CARRIED)
    full = pa.table({"weather": ["rain"], "speed": [3], "x": [0.5]}, schema=CARRIED)
    empty = pa.table({name: [None] for name in CARRIED.names}, schema=CARRIED)
    rows = [one_row(colour="red", seed=4, steps=5, guidance_scale=7.5, fit_scale_x=1), one_row()]
    schemas = {
        pq.read_schema(io.BytesIO(encode_metadata(layout.table([row], inherited), ".outcomes/a")))
        .remove_metadata()
        .to_string()
        for row in rows
        for inherited in (full, empty)
    }
    assert schemas == {layout.schema.to_string()}


@pytest.mark.parametrize(
    ("column", "becomes"),
    [
        ("weather", "weather"),
        ("seed", "manifest_seed"),
        ("edit_id", "manifest_edit_id"),
        ("fit_scale_x", "manifest_fit_scale_x"),
        ("colour", "manifest_colour"),
        ("edited", "manifest_edited"),
        ("source", "manifest_source"),
        ("file_name", "manifest_file_path"),
        ("cover_file_name", "manifest_cover_file_path"),
        ("cover_file_names", "manifest_cover_file_path"),
        ("edited_file_name", "manifest_edited_file_path"),
    ],
)
def test_carried_names_that_mean_something_are_moved(column: str, becomes: str) -> None:
    layout = MetadataLayout(("colour",), pa.schema([pa.field(column, pa.string())]))
    assert layout.carried_names == {column: becomes}
    assert layout.schema.names.count(becomes) == 1


def test_moved_names_stay_distinct() -> None:
    names = ["seed", "manifest_seed", "a_file_name", "a_file_names"]
    layout = MetadataLayout(carried=pa.schema([pa.field(name, pa.string()) for name in names]))
    assert len(set(layout.schema.names)) == len(layout.schema.names)


def test_only_a_job_that_limits_guidance_has_a_column_of_it() -> None:
    """A folder of another job keeps its columns, and takes no edits of such a job."""
    limited = EditParameters(guidance_interval=(0.0, 0.6))
    row = one_row(**parameter_columns(limited))
    table = MetadataLayout(limits_guidance=True).table([row], None)
    assert table["guidance_interval"].to_pylist() == [[0.0, 0.6]]
    assert "guidance_interval" not in MetadataLayout().table([row], None).column_names
    assert parameters_of_columns(row, limited) == limited


def test_labels_that_cannot_be_columns() -> None:
    layout = MetadataLayout(("colour", "seed", "edited", "cover_file_name"))
    assert layout.refused_labels() == ("seed", "edited", "cover_file_name")


def test_carried_values_line_up_with_their_rows() -> None:
    rows = [work_row(n, carried={"weather": f"w{n}", "speed": None, "x": None}) for n in range(3)]
    carried = carried_columns(work_table(rows, CARRIED))
    assert carried is not None
    table = MetadataLayout((), CARRIED).table([one_row()] * 3, carried.take([2, 0, 0]))
    assert table["weather"].to_pylist() == ["w2", "w0", "w0"]
    assert carried_columns(work_table([])) is None


def test_a_synthetic_source_has_no_fit() -> None:
    assert set(fit_columns(None).values()) == {None}


def test_a_part_is_named_by_its_edits_and_their_order() -> None:
    ids = [bytes([number]) * 16 for number in range(3)]
    assert part_name(ids) == part_name(iter(ids))
    assert len({part_name(ids), part_name(ids[::-1]), part_name(ids[:2]), part_name([])}) == 4


@pytest.mark.parametrize(
    ("image_format", "kind", "largest_error"),
    [
        (ImageFormat("png"), "PNG", 0),
        (ImageFormat("jpeg", 95), "JPEG", 12),
        (ImageFormat("webp", 95), "WEBP", 40),
        (ImageFormat("webp", 100), "WEBP", 0),
    ],
)
def test_formats(
    image_format: ImageFormat,
    kind: str,
    largest_error: int,
    picture: Callable[..., Image.Image],
) -> None:
    image = picture(1)
    data = image_format.encode(image)
    assert data == image_format.encode(image)
    with Image.open(io.BytesIO(data)) as decoded:
        assert decoded.format == kind
        error = np.abs(np.asarray(decoded.convert("RGB"), int) - np.asarray(image, int)).max()
    assert error <= largest_error


def test_quality_means_something(picture: Callable[..., Image.Image]) -> None:
    sizes = [len(ImageFormat("jpeg", quality).encode(picture(1))) for quality in (20, 60, 95)]
    assert sizes == sorted(set(sizes))


def test_the_first_finish_of_a_part_wins(store: Store, picture: Callable[..., Image.Image]) -> None:
    folder, layout = store.folder("run"), MetadataLayout()
    mine = outcomes_table([accepted(1), failed(2)])
    theirs = outcomes_table([accepted(1), accepted(2)])
    with ThreadPoolExecutor(1) as pool:
        writer = PartWriter(folder, "part-a", ImageFormat(), pool)
        assert writer.finished_outcomes() is None
        name = writer.put_edited("stem", b"\1" * 16, picture(0)).result()
        assert writer.finish(layout.table([one_row()], None), mine).equals(mine)
        assert writer.finish(layout.table([one_row()] * 2, None), theirs).equals(mine)
        found = writer.finished_outcomes()
    assert found is not None
    assert found.equals(mine)
    assert name == f"edited/stem__{'01' * 16}.png"
    visible = {path for path in store.raw() if not path.startswith("run/.outcomes/part-a-")}
    assert visible == {f"run/part-a/{name}", "run/part-a/metadata.parquet"}
    assert read_part_outcomes(folder, "part-a").equals(mine)


class Lost:
    """A right to write that was lost."""

    def check(self) -> None:
        raise LeaseError("somebody else has it")


def test_a_writer_that_lost_the_folder_finishes_no_part(store: Store) -> None:
    folder, layout = store.folder("run"), MetadataLayout()
    with ThreadPoolExecutor(1) as pool:
        writer = PartWriter(folder, "part-a", ImageFormat(), pool, Lost())
        with pytest.raises(LeaseError):
            writer.finish(layout.table([one_row()], None), outcomes_table([accepted(1)]))
    assert store.raw() == {}


@pytest.mark.parametrize("is_same_attempt", [False, True])
def test_an_image_that_is_there_is_neither_overwritten_nor_taken_for_another(
    store: Store, picture: Callable[..., Image.Image], is_same_attempt: bool
) -> None:
    """An attempt that was killed left image 0; the next one makes image 1 for the same name."""
    folder = store.folder("run")
    with ThreadPoolExecutor(2) as pool:
        writer = PartWriter(folder, "part-a", ImageFormat(), pool)
        name = writer.put_source("s", b"\2" * 16, picture(0)).result()
        left = store.raw()
        assert list(left) == [f"run/part-a/{name}"]
        if not is_same_attempt:
            writer = PartWriter(folder, "part-a", ImageFormat(), pool)
        assert writer.put_source("s", b"\2" * 16, picture(0)).result() == name
        assert store.raw() == left
        other = writer.put_source("s", b"\2" * 16, picture(1)).result()
        assert other == writer.put_source("s", b"\2" * 16, picture(1)).result()
    assert other.startswith(f"source/s__{'02' * 16}-")
    assert store.raw()[f"run/part-a/{name}"] == left[f"run/part-a/{name}"]
    assert store.raw()[f"run/part-a/{other}"] == ImageFormat().encode(picture(1), None)
    assert len(store.raw()) == 2
