"""`fpe manifest from` as it is typed: what it prints, refuses, writes and keeps."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from jobs.manifest_from import registry, writer
from jobs.manifest_from.source import TARGET_PROMPT, Entries, Options, Picture, Row
from jobs.manifest_from.writer import write_manifest
from pipeline.errors import JobError, ManifestError
from pipeline.job.job import Job
from pipeline.plan.plan import make_plan
from tests.jobs.manifest_from.conftest import Make
from tests.jobs.test_cli import fpe

SETS = (
    *("easynlp", "emu-edit", "gedit-bench", "imagenet-r-ti2i", "magicbrush", "pie-bench"),
    *("pie-bench-pp", "shapeprompts", "wild-ti2i"),
)


@pytest.fixture
def cars(tmp_path: Path, save: Callable[..., Path]) -> Path:
    """A list of two cars, one of whose pictures is not there, and one entry without a picture."""
    save(tmp_path / "cars/a b%.jpg", 1)
    entries = [
        {"image_name": name, "soure_prompt": "a white car", "edit_prompt": "a red car"}
        for name in ("a b%.jpg", "nowhere.jpg", None)
    ]
    (tmp_path / "cars/Car_real_edit.json").write_text(json.dumps(entries), encoding="utf-8")
    return tmp_path / "cars"


def test_without_a_set_all_are_listed() -> None:
    code, printed, errors = fpe("manifest", "from")
    assert (code, errors) == (0, "")
    assert tuple(registry.sources()) == SETS
    for source in registry.sources().values():
        assert source.name in printed
        assert source.licence.split(",")[0].split(";")[0][:20] in " ".join(printed.split())


def test_what_is_printed(cars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, errors = fpe("manifest", "from", "easynlp", "cars")
    assert (code, errors) == (0, "")
    assert "easynlp.parquet: 2 rows, 2 edits" in printed
    assert "Licence of easynlp: lists Apache-2.0;" in printed
    assert "2 rows have a problem" in printed
    assert "there is no picture nowhere.jpg in cars" in printed
    assert "1 of them are in _easynlp.problems.parquet instead" in " ".join(printed.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "_easynlp.problems.parquet",
        "cars",
        "easynlp.parquet",
    ]


def test_paths_are_relative_below_the_manifest_and_absolute_elsewhere(
    make: Make, cars: Path, tmp_path: Path
) -> None:
    assert make("easynlp", cars).rows[0]["image"] == "cars/a b%.jpg"
    target = tmp_path / "other/manifest.parquet"
    code, _, errors = fpe("manifest", "from", "easynlp", str(cars), "--output", str(target))
    assert (code, errors) == (0, "")
    assert pq.read_table(target)["image"][0].as_py() == str(cars / "a b%.jpg")


def test_a_folder_of_manifests_is_one_manifest(
    cars: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """The rows that no job takes lie beside them, and are left out."""
    for name in ("one", "two"):
        target = tmp_path / f"manifests/{name}.parquet"
        code, _, errors = fpe("manifest", "from", "easynlp", str(cars), "--output", str(target))
        assert (code, errors) == (0, "")
        ids = [f"{name}-{number}" for number in range(2)]
        table = pq.read_table(target)
        pq.write_table(table.set_column(0, "id", [ids]), target)
    assert len(list((tmp_path / "manifests").iterdir())) == 4
    job = {
        "manifest": str(tmp_path / "manifests"),
        "output": str(tmp_path / "run"),
        "model": {"checkpoint": str(tiny_checkpoint)},
    }
    plan = make_plan(Job.model_validate(job), write=False)
    assert plan.edits_total == 4


def test_embedded_pictures_are_their_files(make: Make, cars: Path) -> None:
    made = make("easynlp", cars, "--embed")
    found, missing = made.rows
    data = (cars / "a b%.jpg").read_bytes()
    assert found["image"] == {"bytes": data, "path": "cars/a b%.jpg"}
    assert missing["image"] == {"bytes": None, "path": "cars/nowhere.jpg"}
    opened = datasets.load_dataset("parquet", data_files=made.printed["manifest"], split="train")
    assert opened.features["image"] == datasets.Image()
    assert opened[0]["image"].size == (64, 64)
    assert list(opened[0]["target_prompt"]) == ["a red car"]


def test_nothing_is_overwritten(cars: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    for name in ("out.parquet", "_out.problems.parquet"):
        (tmp_path / name).write_bytes(b"mine")
        message = refusal("easynlp", cars, "--output", str(tmp_path / "out.parquet"))
        assert "already exists; name another file with --output" in message
        assert (tmp_path / name).read_bytes() == b"mine"
        (tmp_path / name).unlink()


def test_a_file_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"

    def rows() -> Iterator[Row]:
        target.write_bytes(b"theirs")
        yield Row("a", Picture(tmp_path / "a.png"), {"target_prompt": "a cup"})

    with pytest.raises(JobError, match="already exists"):
        write_manifest(target, Entries((TARGET_PROMPT,), rows()))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [
        ("out.parquet", b"theirs")
    ]


def test_what_fails_midway_leaves_nothing(tmp_path: Path) -> None:
    def rows() -> Iterator[Row]:
        yield Row("a", Picture(tmp_path / "a.png"), {"target_prompt": "a cup"})
        raise ManifestError("damaged")

    with pytest.raises(ManifestError, match="damaged"):
        write_manifest(tmp_path / "out.parquet", Entries((TARGET_PROMPT,), rows()))
    with pytest.raises(ManifestError, match="the set has no entries"):
        write_manifest(tmp_path / "out.parquet", Entries((TARGET_PROMPT,), iter([])))
    wrong = Row("a", Picture(tmp_path / "a.png"), {"target_prompt": ["a cup"]})
    with pytest.raises(ManifestError, match="entries a to a have a value of another type"):
        write_manifest(tmp_path / "out.parquet", Entries((TARGET_PROMPT,), [wrong]))
    assert list(tmp_path.iterdir()) == []


def test_rows_are_written_group_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many bytes and rows of pictures are kept while others are read."""
    monkeypatch.setattr(writer, "_MOST_BYTES", 1000)
    kept: list[int] = []

    def rows() -> Iterator[Row]:
        for number in range(20):
            hidden = [path for path in tmp_path.glob(".tmp-*") if "problems" not in path.name]
            kept.append(hidden[0].stat().st_size)
            yield Row(f"{number}", Picture(data=bytes(400)), {"target_prompt": "a cup"})

    write_manifest(tmp_path / "out.parquet", Entries((TARGET_PROMPT,), rows(), has_bytes=True))
    groups = pq.ParquetFile(tmp_path / "out.parquet").metadata
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [3] * 6 + [2]
    assert kept[0] < kept[4] < kept[-1], "the file grows while rows are taken"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "."], "unknown set 'nothing'; there are easynlp, emu-edit, "),
        (["easynlp"], "name the SOURCE: one list of edits of alibaba/EasyNLP"),
        (["easynlp", ".", "--no-frame"], "--no-frame has no meaning for easynlp"),
        (["emu-edit", ".", "--seed", "1"], "--seed has no meaning for emu-edit"),
        (["emu-edit", ".", "--mapping", "x"], "--mapping has no meaning for emu-edit"),
        (["easynlp", ".", "--images", "no"], "--images: no is not a folder"),
        (["easynlp", "no"], "there is no no"),
    ],
)
def test_wrong_command_lines(arguments: list[str], message: str) -> None:
    code, _, errors = fpe("manifest", "from", *arguments)
    assert code == 2
    assert message in " ".join(errors.split())


def test_a_source_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another module beside the others is another set."""
    folder = tmp_path / "more"
    shutil.copytree(Path(registry.sets.__path__[0]), folder)
    text = (folder / "emu_edit.py").read_text(encoding="utf-8")
    (folder / "zz_mine.py").write_text(text.replace('"emu-edit"', '"mine"'), encoding="utf-8")
    monkeypatch.setattr(registry.sets, "__path__", [str(folder)])
    registry.sources.cache_clear()
    try:
        assert tuple(registry.sources()) == tuple(sorted((*SETS, "mine")))
        assert registry.source_named("mine", Options()).hub_id == "facebook/emu_edit_test_set"
    finally:
        registry.sources.cache_clear()
        sys.modules.pop("jobs.manifest_from.sets.zz_mine", None)


def test_neither_torch_nor_ray_is_loaded(cars: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "out.parquet")
    code = (
        "import sys\nfrom jobs.cli import app\n"
        f"try:\n    app(['manifest', 'from', 'easynlp', {str(cars)!r}, '--output', {target!r}])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'ray', 'transformers', 'diffusers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
