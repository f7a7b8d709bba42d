"""Values mean the same whatever type they are stored in: as prompts, ids, words, labels, boxes."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import JobError, ManifestError
from pipeline.job.job import Job
from pipeline.manifest.arrow_types import can_be_written_as, converted, plain_type
from pipeline.manifest.files import Manifest
from pipeline.manifest.rows import Problems, SourceRow
from pipeline.plan.plan import make_plan
from pipeline.plan.resolved_job import ResolvedJob, resolve_job
from tests.builders.parquet_types import KINDS, array_of, mark_column

Write = Callable[..., str]
CLASSES = ("cat", "dog")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(name="m.parquet", features=..., **columns): a manifest of these columns."""

    def write(
        name: str = "m.parquet", features: dict[str, Any] | None = None, **columns: Any
    ) -> str:
        rows = len(next(iter(columns.values())))
        base = {
            "image": [f"{number}.png" for number in range(rows)],
            "target_prompt": ["x"] * rows,
        }
        table = pa.table({**base, **columns})
        if features:
            metadata = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": metadata})
        pq.write_table(table, tmp_path / name)
        return str(tmp_path / name)

    return write


def resolved(manifest: str, tmp_path: Path, **sections: Any) -> ResolvedJob:
    values: dict[str, Any] = {"manifest": manifest, "output": f"{tmp_path}-out"}
    if "annotations" not in sections:
        values["editor"] = "none"
    return resolve_job(Job.model_validate(values | sections))


def rows_of(job: ResolvedJob) -> list[SourceRow]:
    problems = Problems()
    rows = [row for _, rows in job.rows(problems) for row in rows]
    problems.raise_if_any()
    return rows


def prompts_of(manifest: str, tmp_path: Path, target: str, **section: Any) -> list[str]:
    job = resolved(manifest, tmp_path, prompts={"target": target, **section})
    return [edit.target_prompt for row in rows_of(job) for edit in row.edits]


def test_every_type_is_read_as_the_plain_one() -> None:
    for name, kind in KINDS.items():
        if name != "large_uint64":  # not by its type, but by its values
            assert plain_type(kind.type).equals(kind.becomes), name
        values = pa.chunked_array([array_of(kind.type, [*kind.values, None])])
        plain = converted(values, kind.becomes)
        plain.validate(full=True)
        assert plain.equals(pa.chunked_array([pa.array([*kind.carried, None], kind.becomes)])), name


class TestWords:
    """What values become in prompts and labels."""

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            (pa.array([3.0, None, 2.5]), ["3", "2.5"]),
            (pa.array([3.0, float("nan"), -0.0]), ["3", "0"]),
            (pa.array([1e20, 0.1]), ["1e+20", "0.1"]),
            (pa.array([0.1, 3.0], pa.float32()), ["0.1", "3"]),
            (pa.array([0.1, 3.0], pa.float16()), ["0.1", "3"]),
            (pa.array([Decimal("1.50"), Decimal("3.00")]), ["1.50", "3.00"]),
            (pa.array([Decimal("0E-10")], pa.decimal128(20, 10)), ["0.0000000000"]),
            (pa.array([2**64 - 1, 5], pa.uint64()), ["18446744073709551615", "5"]),
            (pa.array([True, False]), ["True", "False"]),
            (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
            (array_of(pa.bool8(), [1, 0]), ["True", "False"]),
            (
                array_of(pa.uuid(), [bytes(range(16))]),
                ["00010203-0405-0607-0809-0a0b0c0d0e0f"],
            ),
            (
                array_of(pa.json_(pa.string()), ['"cat"', "3", "3.0", "true", "null", "plain"]),
                ["cat", "3", "3", "True", "plain"],
            ),
        ],
        ids=lambda each: str(each.type) if isinstance(each, pa.Array) else "",
    )
    def test_of_a_column(
        self, write: Write, tmp_path: Path, values: pa.Array, words: list[str]
    ) -> None:
        """Floats that are whole are whole numbers; floats of 32 bits have their own digits."""
        url = write(thing=values)
        problems = Problems()
        job = resolved(url, tmp_path, prompts={"target": "{thing}"})
        found = [e.target_prompt for _, rows in job.rows(problems) for r in rows for e in r.edits]
        assert found == words
        assert problems.total == len(values) - len(words)

    def test_of_pandas_with_missing_values(self, tmp_path: Path) -> None:
        """pandas 3.1 stores whole numbers with a missing one as float64."""
        frame = {"image": ["a", "b"], "count": [3, None], "id": [17, None]}
        pd.DataFrame(frame).to_parquet(tmp_path / "m.parquet")
        assert str(pq.read_schema(tmp_path / "m.parquet").field("count").type) == "double"
        job = resolved(str(tmp_path / "m.parquet"), tmp_path, prompts={"target": "{count} cats"})
        problems = Problems()
        [row] = [row for _, rows in job.rows(problems) for row in rows]
        assert (row.id, row.edits[0].target_prompt) == ("17", "3 cats")
        assert problems.total == 1

    @pytest.mark.parametrize(
        "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(1)], ids=str
    )
    def test_bytes_have_none(self, write: Write, tmp_path: Path, kind: pa.DataType) -> None:
        url = write(thing=pa.array([b"a"], kind))
        with pytest.raises(JobError, match=r"column thing is .*a template needs text or numbers"):
            prompts_of(url, tmp_path, "{thing}")

    def test_lists_of_json_have_none(self, write: Write, tmp_path: Path) -> None:
        url = write(thing=array_of(pa.json_(pa.string()), ["[1, 2]", '{"a": 1}', '["cut']))
        with pytest.raises(ManifestError) as error:
            prompts_of(url, tmp_path, "{thing}")
        text = str(error.value)
        assert "column thing: [1, 2] is JSON with several values" in text
        assert 'row 2 (m.parquet, row 2): column thing: ["cut is not valid JSON' in text

    def test_float_of_32_bits_among_files_of_64(self, write: Write, tmp_path: Path) -> None:
        write("a.parquet", thing=pa.array([0.1], pa.float32()))
        write("b.parquet", thing=pa.array([0.1], pa.float64()))
        assert prompts_of(str(tmp_path), tmp_path, "{thing}") == ["0.1", "0.1"]


class TestSkipUnchanged:
    """An edit is left out if its labels are the row's own values, however they are stored."""

    @pytest.mark.parametrize(
        ("own", "labels", "left"),
        [
            (pa.array([3.0, 4.0]), ["3", "4"], ["4", "3"]),
            (pa.array([3.0, 4.0]), ["3.0", "4.00"], ["4.00", "3.0"]),
            (pa.array([0.1], pa.float32()), ["0.1", "0.2"], ["0.2"]),
            (pa.array([Decimal("1.50")]), ["1.5", "2"], ["2"]),
            (pa.array(["3"], pa.string_view()), ["3", "3.0"], ["3.0"]),
            (pa.array(["red"], pa.dictionary(pa.int8(), pa.string())), ["red", "blue"], ["blue"]),
            (pa.array([3], pa.int64()), ["3", "03"], ["03"]),
            (array_of(pa.json_(pa.string()), ['"red"']), ["red", "blue"], ["blue"]),
        ],
        ids=lambda each: str(each.type) if isinstance(each, pa.Array) else str(each),
    )
    def test_values_are_compared(
        self, write: Write, tmp_path: Path, own: pa.Array, labels: list[str], left: list[str]
    ) -> None:
        assert prompts_of(write(x=own), tmp_path, "{x}", labels={"x": labels}) == left


class TestKnownColumns:
    """The columns that the pipeline reads, in every type."""

    @pytest.mark.parametrize(
        "values",
        [
            pa.array([["a", "b"]], pa.list_view(pa.string())),
            pa.array([["a", "b"]], pa.large_list_view(pa.string_view())),
            pa.array([["a", "b"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
            pa.array([["a", "b"]], pa.list_(pa.string_view(), 2)),
            array_of(pa.json_(pa.string()), ['["a", "b"]']),
        ],
        ids=lambda each: str(each.type),
    )
    def test_lists_of_prompts(self, write: Write, tmp_path: Path, values: pa.Array) -> None:
        [row] = rows_of(resolved(write(target_prompt=values), tmp_path))
        assert [edit.target_prompt for edit in row.edits] == ["a", "b"]

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("[1, 2]", "must be a list of texts"),
            ('{"a": 1}', "several values"),
            ('["', "not valid"),
        ],
    )
    def test_json_that_is_no_prompt(
        self, write: Write, tmp_path: Path, text: str, problem: str
    ) -> None:
        url = write(target_prompt=array_of(pa.json_(pa.string()), [text]))
        with pytest.raises(ManifestError, match=f"column target_prompt cannot be read.*{problem}"):
            rows_of(resolved(url, tmp_path))

    def test_lists_as_fastparquet_writes_them(self, write: Write, tmp_path: Path) -> None:
        """fastparquet 2026.9 writes lists as text of the logical type JSON, without a stored Arrow
        schema."""
        table = pq.read_table(
            write(
                target_prompt=['["a red cat","a blue cat"]'],
                edit_type=['["colour","colour"]'],
                split=['"train"'],
            )
        )
        pq.write_table(table, tmp_path / "m.parquet", store_schema=False, use_dictionary=False)
        for column in ("target_prompt", "edit_type", "split"):
            mark_column(tmp_path / "m.parquet", column, "JSON")
        [row] = rows_of(resolved(str(tmp_path / "m.parquet"), tmp_path))
        assert [(edit.target_prompt, edit.edit_type) for edit in row.edits] == [
            ("a red cat", "colour"),
            ("a blue cat", "colour"),
        ]
        assert row.split == "train"

    @pytest.mark.parametrize(
        ("values", "ids"),
        [
            (pa.array([1.0, 2.0, None, float("nan")]), ["1", "2", "", ""]),
            (pa.array([Decimal("7.0"), None]), ["7", ""]),
            (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
            (
                array_of(pa.uuid(), [b"\xff" * 16, None]),
                ["ffffffff-ffff-ffff-ffff-ffffffffffff", ""],
            ),
            (pa.array(["a"], pa.string_view()), ["a"]),
        ],
        ids=lambda each: str(each.type) if isinstance(each, pa.Array) else "",
    )
    def test_ids(self, write: Write, tmp_path: Path, values: pa.Array, ids: list[str]) -> None:
        assert [row.id for row in rows_of(resolved(write(id=values), tmp_path))] == ids

    def test_ids_that_are_not_whole(self, write: Write, tmp_path: Path) -> None:
        """2^53 + 2 is even: above 2^53 two whole numbers share a float."""
        url = write(id=[1.5, 2.0**53 + 2])
        with pytest.raises(ManifestError) as error:
            rows_of(resolved(url, tmp_path))
        assert "row 0 (m.parquet, row 0): id must be text or a whole number, got 1.5" in str(
            error.value
        )
        assert "row 1" in str(error.value)

    def test_decimals_are_numbers(self, write: Write, tmp_path: Path) -> None:
        """DuckDB's literal 7.5 is a DECIMAL(2, 1)."""
        source = write(n=[1])
        duckdb.sql(
            "copy (select image, target_prompt, 7.5 as guidance_scale, 3.0 as steps, 0.5 as "
            f"replaced_fraction, 7::DECIMAL(18, 0) as seed from '{source}') to "
            f"'{tmp_path}/d.parquet'"
        )
        [row] = rows_of(resolved(f"{tmp_path}/d.parquet", tmp_path))
        found = row.parameters
        assert (found.guidance_scale, found.steps, found.replaced_fraction, row.seed) == (
            7.5,
            3,
            0.5,
            7,
        )
        assert isinstance(found.guidance_scale, float)

    def test_images_in_views(self, write: Write, tmp_path: Path) -> None:
        url = write(image=pa.array([b"1"], pa.binary_view()))
        assert rows_of(resolved(url, tmp_path))[0].image_bytes == b"1"
        struct = pa.struct({"bytes": pa.binary_view(), "path": pa.string_view()})
        url = write(image=pa.array([{"bytes": None, "path": "a.png"}], struct))
        assert rows_of(resolved(url, tmp_path))[0].uri == f"{tmp_path}/a.png"

    def test_labels_of_target_labels(self, write: Write, tmp_path: Path) -> None:
        kinds = {
            "n": pa.float64(),
            "f": pa.float32(),
            "d": pa.decimal128(3, 1),
            "t": pa.string_view(),
        }
        cells = [{"n": 3.0, "f": 0.1, "d": Decimal("1.5"), "t": "a"}]
        labels = array_of(pa.struct(list(kinds.items())), cells)
        [row] = rows_of(resolved(write(target_labels=labels), tmp_path))
        assert row.edits[0].labels == ("3", "0.1", "1.5", "a")

    def test_ids_of_edits_do_not_depend_on_how_values_are_stored(
        self, write: Write, tmp_path: Path
    ) -> None:
        """The ids of a manifest of plain types, as earlier releases made them."""
        plain = {"image": ["a.png"], "target_prompt": [["x", "y"]], "id": ["7"], "thing": ["3"]}
        other = {
            "image": pa.array(["a.png"], pa.string_view()),
            "target_prompt": pa.array([["x", "y"]], pa.list_view(pa.string_view())),
            "id": [7.0],
            "thing": [3.0],
        }
        found = []
        for columns in (plain, other):
            for sections in ({}, {"prompts": {"target": "{thing} cats"}}):
                job = resolved(write(**columns), tmp_path, **sections)
                found.append([identity.hex() for identity in job.edit_ids()])
        assert found[:2] == found[2:] == OF_EARLIER_RELEASES


OF_EARLIER_RELEASES = [
    ["fb8aaf72f140dbb9bc5da56b85b9e05b", "b49da3df5ced6cce6aa22d6e939d88b2"],
    ["0e8f79eeac3ff5d3f1916b5199ed9bad"],
]


class TestClasses:
    """Hugging Face's class labels: numbers whose names are in the schema's metadata."""

    FEATURE: ClassVar[dict[str, Any]] = {"names": list(CLASSES), "_type": "ClassLabel"}

    def test_prompts_have_their_names(self, write: Write, tmp_path: Path) -> None:
        url = write(label=[0, 1], features={"label": self.FEATURE})
        assert prompts_of(url, tmp_path, "a {label}") == ["a cat", "a dog"]
        labels = {"label": list(CLASSES)}
        assert prompts_of(url, tmp_path, "a {label}, not a {source_label}", labels=labels) == [
            "a dog, not a cat",
            "a cat, not a dog",
        ]

    def test_a_job_may_have_their_numbers(self, write: Write, tmp_path: Path) -> None:
        url = write(label=[0, 1], features={"label": self.FEATURE})
        section = {"labels": {"label": ["0", "1"], "word": ["cat", "dog"]}, "combine": "zip"}
        job = resolved(url, tmp_path, prompts={"target": "a {word}", **section})
        assert [e.labels for row in rows_of(job) for e in row.edits][:2] == [
            ("0", "cat"),
            ("1", "dog"),
        ]
        assert job.label_classes == {"label": CLASSES}

    def test_no_class_is_no_value(self, write: Write, tmp_path: Path) -> None:
        url = write(label=[-1], features={"label": self.FEATURE})
        with pytest.raises(ManifestError, match=r"needs \{label\}, which is empty here"):
            prompts_of(url, tmp_path, "a {label}")

    def test_numbers_without_a_name_are_refused(self, write: Write, tmp_path: Path) -> None:
        """datasets 5.2 cannot load them (ClassLabel.encode_example)."""
        for columns, features in (
            ({"label": [2]}, {"label": self.FEATURE}),
            ({"label": [[0], [-2]]}, {"label": {"feature": self.FEATURE, "_type": "List"}}),
            ({"label": [{"a": [5]}]}, {"label": {"a": [self.FEATURE]}}),
        ):
            url = write(features=features, **columns)
            with pytest.raises(ManifestError, match=r"column label cannot be read.*has no name"):
                rows_of(resolved(url, tmp_path))

    def test_files_with_other_classes_are_refused(self, write: Write, tmp_path: Path) -> None:
        write("a.parquet", label=[0], features={"label": self.FEATURE})
        other = {"names": ["dog", "cat"], "_type": "ClassLabel"}
        write("b.parquet", label=[0], features={"label": other})
        with pytest.raises(ManifestError, match=r"label has other class labels in a.* than in b"):
            resolved(str(tmp_path), tmp_path)

    def test_files_without_classes(self, write: Write, tmp_path: Path) -> None:
        """They may be carried, as numbers; in prompts they would be numbers next to names."""
        write("a.parquet", label=[0], features={"label": self.FEATURE})
        write("b.parquet", label=[0])
        assert len(rows_of(resolved(str(tmp_path), tmp_path))) == 2
        with pytest.raises(JobError, match=r"in some files of the manifest, and not in b\.parquet"):
            prompts_of(str(tmp_path), tmp_path, "a {label}")

    def test_split_and_edit_type(self, write: Write, tmp_path: Path) -> None:
        features = {"split": self.FEATURE, "edit_type": self.FEATURE}
        job = resolved(write(split=[0], edit_type=[1], features=features), tmp_path)
        assert rows_of(job)[0].split == "cat"
        [(_, carried)] = list(job.groups(Problems()))
        assert carried["edit_type"].to_pylist() == ["dog"]

    def test_target_labels(self, write: Write, tmp_path: Path) -> None:
        url = write(
            target_labels=[[{"label": 1}]],
            label=[0],
            features={"label": self.FEATURE, "target_labels": [{"label": self.FEATURE}]},
        )
        job = resolved(url, tmp_path)
        assert rows_of(job)[0].edits[0].labels == ("dog",)
        assert job.label_classes == {"label": CLASSES}

    def test_cells_of_quotas(self, write: Write, tmp_path: Path) -> None:
        url = write(label=[0, 1, 1], features={"label": self.FEATURE})
        cells = [{"where": {"label": "dog"}, "accepted": 1}]
        quotas = {"by": ["label"], "accepted": 5, "cells": cells}
        values = {"manifest": url, "output": str(tmp_path / "out"), "editor": "none"}
        plan = make_plan(Job.model_validate({**values, "quotas": quotas}), write=False)
        assert plan.edits_pending == 2

    @pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": {"features": 3}}', b"\xff"])
    def test_metadata_that_cannot_be_read(
        self, write: Write, tmp_path: Path, metadata: bytes
    ) -> None:
        url = write(label=[0])
        pq.write_table(pq.read_table(url).replace_schema_metadata({b"huggingface": metadata}), url)
        assert prompts_of(url, tmp_path, "a {label}") == ["a 0"]


class TestCarried:
    """What is carried: one type in all files, and nothing that datasets cannot load."""

    @pytest.mark.parametrize(
        ("kind", "place"),
        [
            (pa.map_(pa.string(), pa.int64()), "x is a map"),
            (pa.list_(pa.map_(pa.string(), pa.int64())), r"x\[\] is a map"),
            (pa.struct([("tags", pa.map_(pa.string(), pa.string()))]), r"x\.tags is a map"),
            (
                pa.struct([("a", pa.list_(pa.struct([("m", pa.map_(pa.int8(), pa.int8()))])))]),
                r"x\.a\[\]\.m is a map",
            ),
            (pa.struct([("a", pa.int8()), ("a", pa.int8())]), "x is a struct"),
        ],
        ids=str,
    )
    def test_what_datasets_cannot_load_is_refused(
        self, write: Write, tmp_path: Path, kind: pa.DataType, place: str
    ) -> None:
        url = write(x=pa.nulls(1, kind))
        with pytest.raises(ManifestError, match=rf"{place}.*which datasets\.load_dataset cannot"):
            resolved(url, tmp_path)

    def test_times_that_would_lose_digits_are_refused(self, write: Write, tmp_path: Path) -> None:
        """pandas 3.1 cannot read a file with such a time, datasets 5.2 drops its nanoseconds."""
        url = write(at=pa.array([1], pa.time64("ns")))
        with pytest.raises(ManifestError, match=r"column at cannot be read.*would lose data"):
            rows_of(resolved(url, tmp_path))

    def test_one_text_and_another_are_one_type(self, write: Write, tmp_path: Path) -> None:
        kinds = [
            pa.string(),
            pa.large_string(),
            pa.string_view(),
            pa.dictionary(pa.int32(), pa.large_string()),
        ]
        for number, kind in enumerate(kinds):
            write(
                f"{number}.parquet",
                note=pa.array(["a"], kind),
                notes=pa.array([["a"]], pa.list_(kind)),
                inner=pa.array([{"a": "a"}], pa.struct([("a", kind)])),
            )
        manifest = Manifest.open(str(tmp_path))
        table = pa.concat_tables([batch.carried for batch in manifest.batches()])
        assert table.to_pylist() == [{"note": "a", "notes": ["a"], "inner": {"a": "a"}}] * 4

    def test_structs_with_fields_in_some_files(self, write: Write, tmp_path: Path) -> None:
        write("a.parquet", x=[{"a": 1, "b": "t"}])
        write("b.parquet", x=pa.array([{"c": True, "b": "u"}]))
        manifest = Manifest.open(str(tmp_path))
        found = [row for batch in manifest.batches() for row in batch.carried.to_pylist()]
        assert found == [
            {"x": {"a": 1, "b": "t", "c": None}},
            {"x": {"a": None, "b": "u", "c": True}},
        ]

    @pytest.mark.parametrize(
        ("kind", "before", "fits"),
        [
            (pa.string(), pa.large_string(), True),
            (pa.list_(pa.string()), pa.list_(pa.large_string()), True),
            (pa.struct([("a", pa.string())]), pa.struct([("a", pa.large_string())]), True),
            (pa.binary(), pa.binary(4), True),
            (pa.decimal128(20, 0), pa.uint64(), True),
            (pa.time64("us"), pa.time64("ns"), True),
            (pa.bool_(), pa.int8(), True),
            (pa.int64(), pa.int32(), False),
            (pa.float64(), pa.int64(), False),
            (pa.string(), pa.int64(), False),
            (pa.string(), pa.binary(16), False),
            (pa.list_(pa.string()), pa.list_(pa.string(), 2), False),
            (pa.struct([("a", pa.string())]), pa.struct([]), False),
        ],
        ids=str,
    )
    def test_what_a_run_folder_can_go_on_with(
        self, kind: pa.DataType, before: pa.DataType, *, fits: bool
    ) -> None:
        assert can_be_written_as(kind, before) is fits
        if fits and not pa.types.is_nested(kind):
            values = {"decimal128(20, 0)": Decimal(2**64 - 1), "bool": True}.get(str(kind))
            column = pa.chunked_array([pa.array([values], kind)])
            assert converted(column, before).to_pylist() == [values]


class TestBoxes:
    """Boxes are in pixels; those that can only be shares of the picture are refused."""

    def job(self, url: str, tmp_path: Path, column: str = "box", form: str = "xywh") -> ResolvedJob:
        section = {"boxes": {"column": column, "format": form}}
        return resolved(url, tmp_path, annotations=section)

    @pytest.mark.parametrize(
        ("boxes", "form"),
        [
            ([[0.1, 0.2, 0.5, 0.8], [0.0, 0.0, 1.0, 1.0]], "xyxy"),
            ([[0.6, 0.6, 0.4000001, 0.4], None], "xywh"),
            ([[Decimal("0.1"), Decimal("0.1"), Decimal("0.5"), Decimal("0.5")]], "xyxy"),
        ],
    )
    def test_shares_are_refused(
        self, write: Write, tmp_path: Path, boxes: list[Any], form: str
    ) -> None:
        job = self.job(write(box=boxes), tmp_path, form=form)
        with pytest.raises(ManifestError, match=r"row 0 .*box: .*shares of the picture.*multiply"):
            rows_of(job)

    @pytest.mark.parametrize(
        "boxes",
        [
            [[0.1, 0.2, 0.5, 0.8], [10.0, 10.0, 20.0, 20.0]],
            [[0, 0, 1, 1]],
            [[0.0, 0.0, 0.0, 0.0]],
            [None],
        ],
    )
    def test_pixels_are_not(self, write: Write, tmp_path: Path, boxes: list[Any]) -> None:
        kind = pa.int64() if boxes == [[0, 0, 1, 1]] else pa.float64()
        url = write(box=pa.array(boxes, pa.list_(kind)))
        assert len(rows_of(self.job(url, tmp_path))) == len(boxes)

    @pytest.mark.parametrize(
        "kind",
        [
            pa.list_view(pa.float32()),
            pa.large_list(pa.float16()),
            pa.list_(pa.decimal128(5, 1)),
            pa.fixed_shape_tensor(pa.float64(), [4]),
        ],
        ids=str,
    )
    def test_boxes_in_every_type_of_list(
        self, write: Write, tmp_path: Path, kind: pa.DataType
    ) -> None:
        numbers = [Decimal(n) if "decimal" in str(kind) else float(n) for n in (1, 2, 30, 40)]
        url = write(box=array_of(kind, [numbers]))
        job = self.job(url, tmp_path)
        assert len(rows_of(job)) == 1
        assert job.annotations is not None
        assert job.annotations.boxes is not None
        [(_, carried)] = list(job.groups(Problems()))
        [cell] = job.annotations.boxes.cells(carried)
        [box] = job.annotations.boxes.boxes(cell) or ()
        assert (box.left, box.top, box.right, box.bottom) == (1, 2, 31, 42)

    def test_boxes_of_json_are_refused(self, write: Write, tmp_path: Path) -> None:
        url = write(box=array_of(pa.json_(pa.string()), ["[1, 2, 3, 4]"]))
        with pytest.raises(JobError, match="JSON has to be written as lists"):
            self.job(url, tmp_path)

    def test_masks_of_json_are_refused(self, write: Write, tmp_path: Path) -> None:
        url = write(mask=array_of(pa.json_(pa.string()), ['["a.png"]']))
        with pytest.raises(JobError, match=r"annotations\.masks\.column: 'mask' must be text"):
            resolved(url, tmp_path, annotations={"masks": {"column": "mask"}})
