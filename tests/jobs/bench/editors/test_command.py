"""`fpe bench editors` as it is typed: what it prints and writes, and how it goes on."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from fpe_core import Editor, Inside, load_checkpoint
from fpe_core.still_life import FACTORS
from fpe_core.still_life.benchmark.benchmark import Arm, run_benchmark
from fpe_core.still_life.benchmark.edits import edits_of_scene
from jobs.bench.editors.compare import BOUND, COLUMNS, TUNED
from jobs.bench.editors.methods import METHODS, methods_named
from jobs.bench.editors.parts import ROW_SCHEMA, png_of
from jobs.bench.editors.picture import MOST_BYTES, save_small
from jobs.cli import app
from jobs.terminal.exits import OK
from tests.builders.tiny_checkpoint import build_tiny_checkpoint, write_defaults

FEW = methods_named(["p2p, words", "ddim"])
"""A method without parameters, and one that cannot make all edits."""


def fpe(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "100"})
    return result.exit_code, result.stdout, result.stderr


class Command:
    """The command on the tiny checkpoint with a few methods, one scene of each split."""

    def __init__(self, checkpoint: pathlib.Path, out: pathlib.Path) -> None:
        self.out = out
        where = ("--checkpoint", str(checkpoint), "--device", "cpu", "--out", str(out))
        few = ("--scenes", "1", "--tuning-scenes", "1", "--only", "p2p, words", "--only", "ddim")
        self.code, self.printed, self.said = fpe("bench", "editors", *few, *where)

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = pq.read_table(self.out / "edits.parquet").to_pylist()
        return rows


@pytest.fixture(scope="module")
def first(tiny_checkpoint: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    return Command(tiny_checkpoint, tmp_path_factory.mktemp("editors"))


def test_it_prints_both_columns_and_every_candidate(first: Command) -> None:
    assert first.code == OK, first.said
    for word in (*FACTORS, "ddim", "p2p, words", "published", "tuned", "cross_fraction 0.4"):
        assert word in first.printed
    candidates = first.printed[: first.printed.index("All types")]
    assert [line.split()[0] for line in candidates.splitlines()[4:] if line.split()] == [
        name for each in FEW for name in [each.name.split()[0]] * 5
    ]
    assert candidates.count("cross_fraction") == 1, "others say what differs"
    assert candidates.count("layers level") == 2
    assert candidates.count("*") == len(FEW), "one of each method is chosen"


def test_one_row_per_column_method_and_edit(first: Command) -> None:
    table = pq.read_table(first.out / "edits.parquet")
    assert table.schema.names == ["column", *ROW_SCHEMA.names]
    assert {(row["column"], row["method"], row["seed"], row["factor"]) for row in first.rows} == {
        (column, each.name, 2000, factor)
        for column in COLUMNS
        for each in FEW
        for factor in FACTORS
    }
    assert len(first.rows) == len(COLUMNS) * len(FEW) * len(FACTORS)
    for row in first.rows:
        if not row["not_applicable"]:
            assert row["success"] == (row["read_value"] == row["target_value"])
            assert row["score"] == row["success"] * row["structure"]
            assert row["unet_rows"] > 0
            assert row["seconds"] > 0
    published = {r["parameters"] for r in first.rows if r["column"] == "published"}
    assert {json.loads(each)["steps"] for each in published} == {4}


def test_an_edit_that_a_method_cannot_make_is_a_third_state(first: Command) -> None:
    lacking = [row for row in first.rows if row["not_applicable"]]
    assert [(row["method"], row["factor"], row["not_applicable"]) for row in lacking] == [
        ("p2p, words", "style", "no blend words"),
        ("p2p, words", "style", "no blend words"),
        ("ddim", "style", "no mask"),
        ("p2p, words", "style", "no blend words"),
    ]
    assert {row["success"] for row in lacking} == {row["psnr_db"] for row in lacking} == {None}
    assert "4 of 5" in first.printed
    assert "n/a" in first.printed


def test_masks_that_bind_are_compared_with_edits_that_are_free(first: Command) -> None:
    """Over the edits that both columns have: what should stay is then closer to the answer."""
    bound = {(r["method"], r["factor"]): r for r in first.rows if r["column"] == BOUND}
    free = {(r["method"], r["factor"]): r for r in first.rows if r["column"] == TUNED}
    for key, row in bound.items():
        if not row["not_applicable"]:
            assert json.loads(row["parameters"])["inside"] == Inside().to_dict()
            assert row["unet_rows"] >= free[key]["unet_rows"], "the inversion has fewer edits"
            assert row["kept_psnr_db"] > free[key]["kept_psnr_db"] + 3
    table = first.printed[first.printed.index("free, and inside masks") :]
    cells = next(line for line in table.splitlines() if "ddim" in line).split()
    assert len(cells) == 1 + 2 * 6, "shape, colour, material, background, all, what stays"


def test_the_picture_has_a_source_an_answer_and_every_method(first: Command) -> None:
    with Image.open(first.out / "grid.png") as grid:
        assert grid.width > (2 + len(FEW)) * 128
        assert 128 < grid.height < 2 * 128, "one scene shows one type of edit"


def test_a_second_call_edits_nothing_again(
    first: Command, tiny_checkpoint: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, edits = first.rows, []
    edit = Editor.edit
    monkeypatch.setattr(Editor, "edit", lambda *given: edits.append(given) or edit(*given))
    again = Command(tiny_checkpoint, first.out)
    assert (again.code, again.printed, again.rows) == (OK, first.printed, before)
    assert not edits
    for part in [*first.out.glob("parts/2000-*")][:1]:
        part.unlink()
    repaired = Command(tiny_checkpoint, first.out)
    assert len(edits) == 1, "only what is missing"
    assert without_seconds(repaired.rows) == without_seconds(before)


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: own for name, own in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("reads_instructions", [False, True])
def test_every_candidate_of_every_method_can_be_made(
    tiny_checkpoint: pathlib.Path, tmp_path: pathlib.Path, reads_instructions: bool
) -> None:
    checkpoint = tiny_checkpoint
    if reads_instructions:
        checkpoint = build_tiny_checkpoint(tmp_path / "instruct", sees_source=True)
        write_defaults(checkpoint, steps=2, size_px=64, editor={"name": "instruct_pix2pix"})
    editor = Editor(load_checkpoint(checkpoint, device="cpu"))
    recommended = editor.checkpoint.default_parameters
    arms: list[Arm] = [
        each.arm(parameters)
        for each in METHODS
        if each.reads_instructions == reads_instructions
        for parameters in each.candidates(recommended)
    ]
    assert len(arms) == 5 * (1 if reads_instructions else len(METHODS) - 1)
    judged = list(run_benchmark(editor, [2000], arms, factors=["background"]))
    assert [each.arm for each in judged] == [arm.name for arm in arms]


def test_instructions_go_to_the_model_that_reads_them(
    tiny_checkpoint: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """With its own recommendation, beside a method of the other kind."""
    instructed = build_tiny_checkpoint(tmp_path / "instruct", sees_source=True)
    write_defaults(instructed, steps=2, size_px=64, editor={"name": "instruct_pix2pix"})
    code, printed, said = fpe(
        *("bench", "editors", "--scenes", "1", "--tuning-scenes", "1", "--device", "cpu"),
        *("--checkpoint", str(tiny_checkpoint), "--instruct-checkpoint", str(instructed)),
        *("--out", str(tmp_path / "out"), "--only", "ddim", "--only", "instruct_pix2pix"),
    )
    assert code == OK, said
    assert "image_guidance_scale 1.5" in printed
    rows = pq.read_table(tmp_path / "out" / "edits.parquet").to_pylist()
    for row in rows:
        (edit,) = edits_of_scene(row["seed"], [row["factor"]])
        told = edit.instruction if row["method"] == "instruct_pix2pix" else edit.target_prompt
        lacks = "no mask" if (row["column"], row["factor"]) == (BOUND, "style") else ""
        assert (row["target_prompt"], row["not_applicable"]) == (told, lacks)
    made = [row for row in rows if not row["not_applicable"]]
    own = {row["unet_rows"] for row in made if row["method"] == "instruct_pix2pix"}
    assert own <= {3 * 2, 2 * 2}


def test_a_large_picture_is_saved_small(tmp_path: pathlib.Path) -> None:
    noise = Image.effect_noise((900, 400), 90).convert("RGB")
    assert len(png_of(noise.quantize(256))) > MOST_BYTES
    save_small(noise, tmp_path / "a.png")
    assert MOST_BYTES / 2 < (tmp_path / "a.png").stat().st_size <= MOST_BYTES
    flat = Image.new("RGB", (200, 100), (200, 30, 30))
    save_small(flat, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as read:
        assert read.convert("RGB").getpixel((5, 5)) == (200, 30, 30)


def test_a_method_that_is_none_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    code, _, said = fpe("bench", "editors", "--only", "p2q", "--out", str(tmp_path))
    assert code != OK
    assert "nothing to compare is called 'p2q'; there are 'fpe', 'ddim'" in " ".join(said.split())
