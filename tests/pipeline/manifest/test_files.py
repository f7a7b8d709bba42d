"""The manifest is found, checked and streamed; every mistake is reported with its row."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fpe_core import EditParameters
from pipeline.errors import JobError, ManifestError
from pipeline.job.prompts import PromptsSection
from pipeline.manifest.files import Manifest
from pipeline.manifest.rows import Problems, RowReader, SourceRow
from tests.servers.stores import Store

PARAMETERS = EditParameters()
Images = Callable[[str | Sequence[str]], list[str]]


def write(path: Path, columns: dict[str, Any] | pa.Table, **settings: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, **settings)
    return str(path)


def read(
    urls: str | Sequence[str],
    prompts: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[list[SourceRow], Problems]:
    plan = None if prompts is None else PromptsSection.model_validate(prompts).to_plan()
    manifest = Manifest.open(urls, options, needs_target_prompt=plan is None)
    reader, problems = RowReader(manifest, PARAMETERS, plan), Problems()
    rows = [row for batch in manifest.batches() for row in reader.read(batch, problems)]
    return rows, problems


def good(
    urls: str | Sequence[str],
    prompts: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> list[SourceRow]:
    rows, problems = read(urls, prompts, options)
    problems.raise_if_any()
    return rows


class TestFiles:
    """Which files a URL names, and in which order."""

    @pytest.fixture
    def data(self, store: Store) -> str:
        for day in ("day1", "day2", "day10"):
            store.put_table(f"data/{day}/m.parquet", {"image": [day], "target_prompt": ["x"]})
        for hidden in ("data/_temporary/m.parquet", "data/day1/.m.parquet"):
            store.put_table(hidden, {"image": ["no"], "target_prompt": ["x"]})
        store.put("data/README.md", b"no")
        return store.url("data")

    @pytest.fixture
    def images(self, store: Store) -> Images:
        """images(urls): the last name of every row's image."""
        options = store.storage_options
        return lambda urls: [row.uri.rpartition("/")[2] for row in good(urls, options=options)]

    def test_a_file(self, data: str, images: Images) -> None:
        assert images(f"{data}/day2/m.parquet") == ["day2"]

    def test_a_folder_with_all_that_is_below_in_order(self, data: str, images: Images) -> None:
        assert images(data) == ["day1", "day10", "day2"]
        assert images(f"{data}/") == ["day1", "day10", "day2"]

    def test_a_pattern(self, data: str, images: Images) -> None:
        assert images(f"{data}/day1*/*.parquet") == ["day1", "day10"]
        assert images(f"{data}/**/m.parquet") == ["day1", "day10", "day2"]
        assert images(f"{data}/day[2]/m.parquet") == ["day2"]
        assert images(f"{data[:-1]}?/day[!1]/m.parquet") == ["day2"]

    def test_a_list_whose_files_come_once_each(self, data: str, images: Images) -> None:
        assert images([f"{data}/day2/m.parquet", f"{data}/day1", f"{data}/day2"]) == [
            "day1",
            "day2",
        ]

    def test_rows_are_numbered_over_all_files(self, data: str, store: Store) -> None:
        assert [row.row for row in good(data, options=store.storage_options)] == [0, 1, 2]

    def test_a_name_that_looks_like_a_pattern_is_a_name_first(
        self, store: Store, images: Images
    ) -> None:
        url = store.put_table("[1]*.parquet", {"image": ["a"], "target_prompt": ["x"]})
        assert images(url) == ["a"]
        store.put_table("[2]/m.parquet", {"image": ["b"], "target_prompt": ["x"]})
        assert images(store.url("[2]")) == ["b"]

    def test_a_file_of_zero_bytes_is_an_error_and_no_gap(self, data: str, store: Store) -> None:
        """Of ours it would be what a failed write left; of a manifest, rows are missing."""
        store.put("data/day3/m.parquet", b"")
        for url in (data, f"{data}/*/*.parquet", f"{data}/day3/m.parquet"):
            with pytest.raises(
                ManifestError, match=r"day3/m\.parquet is not a Parquet file, or is cut"
            ):
                Manifest.open(url, store.storage_options)

    @pytest.mark.parametrize("name", ["nothing.parquet", "nothing/", "data/*.csv", "data/day3"])
    def test_what_finds_nothing(self, data: str, store: Store, name: str) -> None:
        with pytest.raises(ManifestError, match=r"is not a Parquet file, a folder.*check the path"):
            Manifest.open(store.url(name), store.storage_options)

    def test_what_is_not_parquet(self, store: Store) -> None:
        store.put("m/a.parquet", b"image,target_prompt\n")
        with pytest.raises(
            ManifestError, match=r"a\.parquet is not a Parquet file, or is cut short"
        ):
            Manifest.open(store.url("m"), store.storage_options)

    def test_a_file_that_is_damaged_inside(self, tmp_path: Path, store: Store) -> None:
        prompts = [f"prompt {number}" for number in range(50_000)]
        path = tmp_path / "a.parquet"
        write(path, {"image": prompts, "target_prompt": prompts}, use_dictionary=False)
        content = bytearray(path.read_bytes())
        content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 4)
        url = store.put("a.parquet", content)
        with pytest.raises(ManifestError, match=r"a\.parquet cannot be read past row \d+"):
            good(url, options=store.storage_options)


class TestColumns:
    """Schemas that do not fit are refused before any row is read."""

    def problems(self, *tables: dict[str, Any] | pa.Table, tmp_path: Path) -> tuple[str, ...]:
        for number, table in enumerate(tables):
            write(tmp_path / f"{number}.parquet", table)
        with pytest.raises(ManifestError) as caught:
            Manifest.open(str(tmp_path))
        return caught.value.problems

    def test_missing_columns_with_what_was_perhaps_meant(self, tmp_path: Path) -> None:
        assert self.problems({"Image": ["a"], "prompt": ["b"]}, tmp_path=tmp_path) == (
            "0.parquet: needs a column image (is it 'Image'?), or source_prompt and seed for "
            "synthetic sources",
            "0.parquet: needs a column target_prompt (there are Image, prompt), or a prompts "
            "section in the job",
        )

    def test_every_wrong_type_in_every_file(self, tmp_path: Path) -> None:
        good_table = {"image": ["a"], "target_prompt": ["b"]}
        found = self.problems(
            good_table,
            {
                "image": [1],
                "target_prompt": [{"a": 1}],
                "id": [True],
                "seed": ["1"],
                "split": [True],
                "steps": [True],
                "guidance_scale": ["7"],
            },
            tmp_path=tmp_path,
        )
        assert [re.match(r"1\.parquet: column (\w+) must be .*, it is ", p)[1] for p in found] == [
            "image",
            "target_prompt",
            "id",
            "seed",
            "split",
            "guidance_scale",
            "steps",
        ]

    def test_a_struct_that_is_no_image(self, tmp_path: Path) -> None:
        table = pa.table({"image": [{"data": b"x"}], "target_prompt": ["b"]})
        assert "struct<bytes: binary, path: string>" in self.problems(table, tmp_path=tmp_path)[0]

    def test_a_column_that_is_there_twice(self, tmp_path: Path) -> None:
        table = pa.table([["a"], ["b"], ["c"], ["d"]], names=["image", "target_prompt", "x", "x"])
        assert self.problems(table, tmp_path=tmp_path) == ("0.parquet: column x appears 2 times",)

    def test_a_page_of_problems(self, tmp_path: Path) -> None:
        for number in range(25):
            write(tmp_path / f"{number:02d}.parquet", {"x": [1]})
        with pytest.raises(ManifestError, match=r"\.\.\. and 30 more") as caught:
            Manifest.open(str(tmp_path))
        assert (len(caught.value.problems), caught.value.total) == (20, 50)

    def test_types_of_carried_columns_are_those_of_all_files(self, tmp_path: Path) -> None:
        base = {"image": ["a"], "target_prompt": ["b"]}
        write(tmp_path / "0.parquet", base | {"n": [1], "late": pa.nulls(1), "never": pa.nulls(1)})
        write(tmp_path / "1.parquet", base | {"n": [1.5], "late": ["x"], "never": pa.nulls(1)})
        write(
            tmp_path / "2.parquet",
            base | {"boxes": [[1, 2]], "kind": pa.array(["k"]).dictionary_encode()},
        )
        manifest = Manifest.open(str(tmp_path))
        assert manifest.carried_schema == pa.schema(
            {
                "n": pa.float64(),
                "late": pa.string(),
                "never": pa.string(),
                "boxes": pa.list_(pa.int64()),
                "kind": pa.string(),
            }
        )
        carried = pa.concat_tables([batch.carried for batch in manifest.batches()])
        assert carried.to_pylist() == [
            {"n": 1.0, "late": None, "never": None, "boxes": None, "kind": None},
            {"n": 1.5, "late": "x", "never": None, "boxes": None, "kind": None},
            {"n": None, "late": None, "never": None, "boxes": [1, 2], "kind": "k"},
        ]

    def test_carried_columns_that_cannot_be_one(self, tmp_path: Path) -> None:
        base = {"image": ["a"], "target_prompt": ["b"]}
        write(tmp_path / "0.parquet", base | {"n": [1]})
        write(tmp_path / "1.parquet", base | {"n": [[1]]})
        with pytest.raises(ManifestError, match=r"different types in different files.*n"):
            Manifest.open(str(tmp_path))

    @pytest.mark.parametrize(
        "kind",
        [
            pa.string(),
            pa.large_string(),
            pa.dictionary(pa.int32(), pa.string()),
            pa.list_(pa.string()),
            pa.large_list(pa.large_string()),
            pa.list_(pa.string(), 1),
        ],
        ids=str,
    )
    def test_prompts_in_every_kind_of_text(self, tmp_path: Path, kind: pa.DataType) -> None:
        is_list = not (pa.types.is_dictionary(kind) or str(kind).removeprefix("large_") == "string")
        prompts = pa.array([["a cat"] if is_list else "a cat"], kind)
        write(tmp_path / "m.parquet", {"image": ["a"], "target_prompt": prompts})
        [row] = good(str(tmp_path))
        assert [edit.target_prompt for edit in row.edits] == ["a cat"]

    def test_images_as_hugging_face_writes_them(self, tmp_path: Path) -> None:
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        cells = [{"bytes": b"1", "path": "x/a.png"}, {"bytes": None, "path": "b.png"}]
        write(
            tmp_path / "m.parquet",
            {"image": pa.array(cells, kind), "target_prompt": ["x", "x"]},
        )
        first, second = good(str(tmp_path))
        assert (first.image_bytes, first.uri, first.path) == (b"1", "", "x/a.png")
        assert (second.image_bytes, second.uri) == (None, f"{tmp_path}/b.png")
        assert not first.is_synthetic
        assert not second.is_synthetic

    def test_images_as_plain_bytes(self, tmp_path: Path) -> None:
        write(tmp_path / "m.parquet", {"image": [b"1"], "target_prompt": ["x"]})
        assert [row.image_bytes for row in good(str(tmp_path))] == [b"1"]


class TestRows:
    """What rows say, and what is wrong with them."""

    def lines(self, tmp_path: Path, columns: dict[str, Any], **prompts: Any) -> list[str]:
        write(tmp_path / "m.parquet", columns)
        _, problems = read(f"{tmp_path}/m.parquet", prompts or None)
        assert len(problems.lines) == problems.total
        return problems.lines

    def test_a_row_with_everything(self, tmp_path: Path) -> None:
        columns = {
            "image": ["a/b.png"],
            "target_prompt": [["x", "y"]],
            "id": [7],
            "source_prompt": ["a cat"],
            "seed": [3],
            "split": ["train"],
            "guidance_scale": [2],
            "negative_prompt": ["blurred"],
            "replaced_fraction": [0.5],
            "steps": [10.0],
        }
        write(tmp_path / "m.parquet", columns)
        [row] = good(f"{tmp_path}/m.parquet")
        assert row.parameters == EditParameters(
            steps=10, guidance_scale=2.0, negative_prompt="blurred", replaced_fraction=0.5
        )
        assert (row.id, row.source_prompt, row.seed, row.split) == ("7", "a cat", 3, "train")
        assert (row.uri, row.uri_key) == (f"{tmp_path}/a/b.png", "a/b.png")
        assert [edit.target_prompt for edit in row.edits] == ["x", "y"]

    def test_nulls_are_what_the_job_says(self, tmp_path: Path) -> None:
        columns: dict[str, Any] = {"image": ["a"], "target_prompt": ["x"]}
        for name in ("id", "source_prompt", "seed", "split", "steps", "guidance_scale"):
            columns[name] = pa.nulls(1)
        columns["replaced_fraction"] = [float("nan")]
        write(tmp_path / "m.parquet", columns)
        [row] = good(f"{tmp_path}/m.parquet")
        assert row.parameters == PARAMETERS
        assert (row.id, row.source_prompt, row.seed, row.split) == ("", "", None, "")

    def test_a_synthetic_source(self, tmp_path: Path) -> None:
        columns = {"source_prompt": ["a cat"], "seed": [3.0], "target_prompt": ["x"]}
        write(tmp_path / "m.parquet", columns)
        [row] = good(f"{tmp_path}/m.parquet")
        assert row.is_synthetic
        assert row.seed == 3

    def test_problems_name_row_file_and_row_in_file(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", {"image": ["a", "b"], "target_prompt": ["x", "y"]})
        write(tmp_path / "b/c.parquet", {"image": ["a", "b"], "target_prompt": ["x", " "]})
        rows, problems = read(str(tmp_path))
        assert problems.lines == ["row 3 (b/c.parquet, row 1): target_prompt is empty"]
        assert [row.row for row in rows] == [0, 1, 2]
        with pytest.raises(ManifestError, match=r"has 1 problem \(rows count from 0\):\n  row 3"):
            problems.raise_if_any()

    def test_empty_and_repeated_prompts(self, tmp_path: Path) -> None:
        prompts = [None, [], ["x", ""], ["x", None], ["x", "y", "x"], ["x"]]
        assert self.lines(tmp_path, {"image": ["a"] * 6, "target_prompt": prompts}) == [
            "row 0 (m.parquet, row 0): target_prompt is empty",
            "row 1 (m.parquet, row 1): target_prompt is empty",
            "row 2 (m.parquet, row 2): target_prompt is empty (number 1 of its list)",
            "row 3 (m.parquet, row 3): target_prompt is empty (number 1 of its list)",
            "row 4 (m.parquet, row 4): target prompt 'x' appears twice in this row",
        ]

    def test_ids_that_are_there_twice(self, tmp_path: Path) -> None:
        columns = {
            "image": list("abcde"),
            "target_prompt": ["x"] * 5,
            "id": ["p", "q", "p", "", ""],
        }
        assert self.lines(tmp_path, columns) == [
            "row 2 (m.parquet, row 2): id 'p' is also the id of row 0"
        ]

    def test_ids_that_are_there_twice_in_two_files(self, tmp_path: Path) -> None:
        for number in range(2):
            columns = {"image": ["a"], "target_prompt": ["x"], "id": [17]}
            write(tmp_path / f"{number}.parquet", columns)
        _, problems = read(str(tmp_path))
        assert problems.lines == ["row 1 (1.parquet, row 0): id '17' is also the id of row 0"]

    def test_neither_image_nor_prompt_and_seed(self, tmp_path: Path) -> None:
        columns = {
            "image": [None, "", None, None],
            "source_prompt": ["a cat", "a cat", " ", None],
            "seed": [None, 1, 1, 1],
            "target_prompt": ["x"] * 4,
        }
        found = self.lines(tmp_path, columns)
        assert [line.split(" ")[1] for line in found] == ["0", "2", "3"]
        assert all("neither an image nor both source_prompt and seed" in line for line in found)

    def test_overrides_that_cannot_be(self, tmp_path: Path) -> None:
        columns = {
            "image": ["a"] * 5,
            "target_prompt": ["x"] * 5,
            "steps": [0, 1.5, None, None, None],
            "guidance_scale": [None, None, -1.0, float("inf"), None],
            "seed": [None, None, None, None, -3],
        }
        zero, half, low, infinite, seed = self.lines(tmp_path, columns)
        assert "steps must be 1 to 999, got 0" in zero
        assert "steps must be a whole number, got 1.5" in half
        assert "guidance_scale must be >= 0, got -1.0" in low
        assert "guidance_scale must be a finite number" in infinite
        assert "seed must be 0 to 2^63-1, got -3" in seed

    def test_a_page_of_problems_and_all_of_them_counted(self, tmp_path: Path) -> None:
        write(tmp_path / "m.parquet", {"image": ["a"] * 5000, "target_prompt": [""] * 5000})
        _, problems = read(str(tmp_path))
        assert (len(problems.lines), problems.total) == (20, 5000)
        with pytest.raises(ManifestError, match=r"has 5000 problems(.*\n)*.*\.\.\. and 4980 more"):
            problems.raise_if_any()

    def test_uris_are_relative_to_their_manifest_file(self, store: Store) -> None:
        uris = ["x.png", "../up.png", "/abs.png", "s3://bucket/x.png"]
        columns = {"image": uris, "target_prompt": ["x"] * 4}
        data = store.put_table("data/day/m.parquet", columns).removesuffix("/day/m.parquet")
        expected = [f"{data}/day/x.png", f"{data}/up.png", *uris[2:]]
        for url in (f"{data}/day/m.parquet", data, f"{data[:-1]}*/*/*.parquet"):
            rows = good(url, options=store.storage_options)
            assert [row.uri for row in rows] == expected

    def test_keys_of_uris_are_relative_to_what_the_job_names(self, store: Store) -> None:
        uris = ["x.png", "../up.png", "/abs.png", "s3://bucket/x.png"]
        columns = {"image": uris, "target_prompt": ["x"] * 4}
        data = store.put_table("data/day/m.parquet", columns).removesuffix("/day/m.parquet")

        def keys(url: str | list[str]) -> list[str]:
            return [row.uri_key for row in good(url, options=store.storage_options)]

        assert keys(f"{data}/day/m.parquet") == ["x.png", "../up.png", *uris[2:]]
        assert keys(data) == ["day/x.png", "up.png", *uris[2:]]
        assert keys(f"{data}/*/m.parquet") == ["day/x.png", "up.png", *uris[2:]]
        assert keys([data]) == [row.uri for row in good(data, options=store.storage_options)]


class TestTemplates:
    """Prompts from a template read the manifest's columns."""

    def test_a_template_reads_columns_of_any_plain_type(self, tmp_path: Path) -> None:
        columns = {"image": ["a"], "shape": ["cat"], "count": [2], "good": [True]}
        write(tmp_path / "m.parquet", columns)
        prompts = {"target": "{count} {shape} {good}", "source": "one {shape}"}
        [row] = good(str(tmp_path), prompts)
        assert row.edits[0].target_prompt == "2 cat True"
        assert row.source_prompt == "one cat"

    def test_a_row_without_a_value_is_a_problem(self, tmp_path: Path) -> None:
        write(tmp_path / "m.parquet", {"image": ["a", "b"], "shape": ["cat", None]})
        rows, problems = read(str(tmp_path), {"target": "a {shape}"})
        assert len(rows) == 1
        assert problems.lines == [
            "row 1 (m.parquet, row 1): the template needs {shape}, which is empty here"
        ]

    def test_the_source_prompt_column_stays_without_a_template(self, tmp_path: Path) -> None:
        write(tmp_path / "m.parquet", {"image": ["a"], "source_prompt": ["a cat"]})
        [row] = good(str(tmp_path), {"target": "a dog"})
        assert row.source_prompt == "a cat"

    @pytest.mark.parametrize(
        ("prompts", "message"),
        [
            ({"target": "{nothing}"}, r"prompts: .*\{nothing\}.*image, shape"),
            ({"target": "{boxes}"}, r"column boxes is list<.*needs text or numbers"),
            ({"target": "{split}", "labels": {"split": ["a"]}}, "split: this name has a meaning"),
            ({"target": "{shape}", "labels": {"shape": ["a"]}}, "such a column already"),
        ],
    )
    def test_templates_that_do_not_fit_the_manifest(
        self, tmp_path: Path, prompts: dict[str, Any], message: str
    ) -> None:
        columns = {"image": ["a"], "shape": ["cat"], "source_shape": ["dog"], "boxes": [[1]]}
        write(tmp_path / "m.parquet", columns)
        with pytest.raises(JobError, match=message):
            read(str(tmp_path), prompts)


def test_a_manifest_full_of_images_is_read_in_little_memory(tmp_path: Path) -> None:
    image_bytes, images = 1 << 20, 96
    cells = [bytes([number]) * image_bytes for number in range(images)]
    write(
        tmp_path / "m.parquet",
        {"image": cells, "target_prompt": ["x"] * images},
        use_dictionary=False,
        compression="none",
        write_batch_size=1,  # a page is the least that can be read: make small ones
    )
    del cells
    pool = pa.default_memory_pool()
    manifest = Manifest.open(str(tmp_path))
    before, peak, rows = pool.bytes_allocated(), 0, 0
    for batch in manifest.batches():
        rows += batch.rows
        peak = max(peak, pool.bytes_allocated() - before)
    assert rows == images
    assert peak < images * image_bytes / 3


def test_text_that_is_no_utf8_names_its_column_and_rows(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    )
    for column in ("target_prompt", "taste"):
        columns = {"image": ["a.png"] * 2, "target_prompt": pa.array(["x", "y"]), column: broken}
        url = write(tmp_path / f"{column}.parquet", pa.table(columns))
        with pytest.raises(ManifestError, match=f"column {column} .*rows 0 to 1"):
            list(Manifest.open(url).batches())


def test_a_carried_map_is_refused_because_the_output_would_not_load(tmp_path: Path) -> None:
    kinds = pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32()))
    columns = {"image": ["a.png"], "target_prompt": ["x"], "tags": kinds}
    url = write(tmp_path / "m.parquet", pa.table(columns))
    with pytest.raises(ManifestError, match="column tags is a map"):
        Manifest.open(url)


@pytest.mark.parametrize("name", [b"taste", b"child"])
def test_names_of_columns_that_are_no_utf8_name_the_file(tmp_path: Path, name: bytes) -> None:
    columns = {"image": ["a.png"], "target_prompt": ["x"], "taste": [{"child": 1}]}
    url = write(tmp_path / "m.parquet", pa.table(columns), store_schema=False)
    content = Path(url).read_bytes()
    Path(url).write_bytes(content.replace(name, b"\xff" * len(name)))
    with pytest.raises(
        ManifestError, match=r"m\.parquet is not a Parquet file, or is cut short.*utf"
    ):
        Manifest.open(url)


@pytest.mark.parametrize(
    ("kind", "are_large"),
    [
        (pa.string(), False),
        (pa.float64(), False),
        (pa.list_(pa.list_(pa.string())), False),
        (pa.struct([("source", pa.string()), ("target", pa.string())]), False),
        (pa.binary(), True),
        (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), True),
    ],
)
def test_rows_are_read_in_small_batches_only_for_bytes(
    tmp_path: Path, kind: pa.DataType, are_large: bool
) -> None:
    table = pa.table({"image": ["a.png"], "target_prompt": ["x"], "own": pa.nulls(1, kind)})
    pq.write_table(table, tmp_path / "m.parquet")
    manifest = Manifest.open(str(tmp_path / "m.parquet"), read_too=("own",))
    assert manifest.has_image_bytes(manifest.files[0]) is are_large
