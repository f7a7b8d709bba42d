"""The contact sheet shows a fixed choice of sources with legible captions, whatever is there."""

from __future__ import annotations

import hashlib
import io
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.ledger.outcome import EditKey, outcomes_table
from pipeline.report.contact_sheet import (
    SHEET_NAME,
    SheetLayout,
    changed_words,
    choose_rows,
    draw_contact_sheet,
    write_contact_sheet,
)
from pipeline.storage.folder import Folder
from pipeline.write.image_format import ImageFormat
from pipeline.write.metadata import MetadataLayout
from pipeline.write.part import PartWriter, part_name
from tests.servers.stores import Store

RED, GREEN, GREY = (220, 30, 30), (30, 180, 30), (128, 128, 128)


def id_of(*words: object) -> bytes:
    return hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=16).digest()


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (48, 48)) -> Image.Image:
    return Image.new("RGB", size, colour)


def write_part(
    folder: Folder,
    sources: dict[str, list[str]],
    *,
    keep_source: bool = True,
    source_prompt: str = "a red hat",
    size: tuple[int, int] = (48, 48),
) -> str:
    """A real part: one red source per name, one green edit per target prompt."""
    keys = {
        (name, target): EditKey(id_of(name, target), id_of("g", name), id_of(name), 0, target)
        for name, targets in sources.items()
        for target in targets
    }
    part = part_name(key.edit_id for key in keys.values())
    rows: list[dict[str, Any]] = []
    outcomes = []
    with ThreadPoolExecutor(2) as pool:
        writer = PartWriter(folder, part, ImageFormat("png"), pool)
        for (name, target), key in keys.items():
            edited = writer.put_edited(name, key.edit_id, picture(GREEN, size)).result()
            row = {
                "edited_file_name": edited,
                "edit_id": key.edit_id.hex(),
                "source_id": key.source_id.hex(),
                "group_id": key.group_id.hex(),
                "id": name,
                "source_prompt": source_prompt,
                "target_prompt": target,
            }
            if keep_source:
                source = writer.put_source(name, key.source_id, picture(RED, size)).result()
                row["source_file_name"] = source
            rows.append(row)
            outcomes.append(
                key.accepted(
                    part=part, edited_file_name=f"{part}/{edited}", unet_rows=1.0, seconds=1.0
                )
            )
        layout = MetadataLayout(keep_source=keep_source)
        writer.finish(layout.table(rows, None), outcomes_table(outcomes))
    return part


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> Folder:
    return Folder.open(str(tmp_path / "run"))


@pytest.fixture
def stored(store: Store) -> Folder:
    """The run folder on every store, for what reads and writes; what is drawn is drawn once."""
    return store.folder("run")


def share_of(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    """Pixels of exactly this colour."""
    return int((np.asarray(sheet) == np.array(colour, np.uint8)).all(axis=2).sum())


def test_every_source_stands_beside_its_edits(folder: Folder) -> None:
    write_part(folder, {"a": ["a green hat", "a tall hat"], "b": ["a blue hat"]})
    layout = SheetLayout(picture_px=100)
    sheet = draw_contact_sheet(folder, title="two hats", layout=layout)
    assert sheet is not None
    assert sheet.width == layout.gap_px + 3 * (100 + layout.gap_px)
    assert share_of(sheet, RED) == 2 * 100 * 100
    assert share_of(sheet, GREEN) == 3 * 100 * 100
    left = np.asarray(sheet)[:, : layout.gap_px + 100]
    assert not (left == np.array(GREEN, np.uint8)).all(axis=2).any(), "sources stand on the left"


def test_pictures_keep_their_proportions(folder: Folder) -> None:
    write_part(folder, {"a": ["a green hat"]}, size=(60, 30))
    sheet = draw_contact_sheet(folder, layout=SheetLayout(picture_px=100))
    assert sheet is not None
    assert share_of(sheet, GREEN) == 100 * 50


def test_the_choice_does_not_depend_on_parts(tmp_path: pathlib.Path) -> None:
    names = [f"source-{number}" for number in range(9)]
    whole, split = Folder.open(str(tmp_path / "whole")), Folder.open(str(tmp_path / "split"))
    write_part(whole, {name: ["x y", "z"] for name in names})
    for name in reversed(names):
        write_part(split, {name: ["x y", "z"]})
    layout = SheetLayout(sources=4)
    chosen = choose_rows(whole, layout)
    assert [row.name for row in chosen] == sorted(sorted(names, key=id_of)[:4])
    assert [row.name for row in choose_rows(split, layout)] == [row.name for row in chosen]


def test_a_sources_edits_are_gathered_from_all_parts_up_to_the_limit(stored: Folder) -> None:
    for target in ("one", "two", "three"):
        write_part(stored, {"a": [target]})
    (row,) = choose_rows(stored, SheetLayout(edits_per_source=2))
    assert len(row.edits) == 2
    (row,) = choose_rows(stored, SheetLayout(edits_per_source=9))
    assert {edit.target_prompt for edit in row.edits} == {"one", "two", "three"}


def test_the_file_is_the_same_every_time(stored: Folder) -> None:
    write_part(stored, {"a": ["a green hat"], "b": ["a tall hat"]})
    assert write_contact_sheet(stored) == SHEET_NAME
    first = stored.read(SHEET_NAME)
    assert write_contact_sheet(stored) == SHEET_NAME
    assert stored.read(SHEET_NAME) == first
    with Image.open(io.BytesIO(first)) as sheet:
        assert sheet.format == "PNG"


def test_an_empty_folder_has_no_sheet(stored: Folder) -> None:
    assert write_contact_sheet(stored) is None
    assert not stored.exists(SHEET_NAME)


def test_parts_without_metadata_do_not_exist(stored: Folder) -> None:
    stored.write_new("part-00/edited/a__00.png", b"half a picture")
    assert draw_contact_sheet(stored) is None


def test_what_is_not_there_or_damaged_leaves_a_grey_square(stored: Folder) -> None:
    part = write_part(stored, {"a": ["a green hat", "a tall hat"]})
    damaged, removed = stored.list(f"{part}/edited")
    stored.replace(damaged, stored.read(damaged)[:40])
    stored.fs.rm(stored.path_of(removed))
    sheet = draw_contact_sheet(stored, layout=SheetLayout(picture_px=100))
    assert sheet is not None
    assert share_of(sheet, GREEN) == 0
    assert share_of(sheet, RED) == 100 * 100
    assert share_of(sheet, (236, 237, 239)) > 2 * 80 * 80


def test_sources_that_were_not_kept_leave_a_grey_square(stored: Folder) -> None:
    write_part(stored, {"a": ["a green hat"]}, keep_source=False)
    sheet = draw_contact_sheet(stored, layout=SheetLayout(picture_px=100))
    assert sheet is not None
    assert share_of(sheet, RED) == 0
    assert share_of(sheet, GREEN) == 100 * 100


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "word",
        "a hat " * 60,
        "x" * 400,
        "ein grüner Hut, naïve – 帽子",
        "tabs\tand\nnew lines",
    ],
)
def test_captions_stay_under_their_picture(folder: Folder, caption: str) -> None:
    """Ink only where the pictures stand: between the columns the paper stays white."""
    write_part(folder, {"a": [caption, "b"], "c": [caption]}, source_prompt=caption)
    layout = SheetLayout(picture_px=100)
    sheet = draw_contact_sheet(folder, title="t " * 100, layout=layout)
    assert sheet is not None
    pixels = np.asarray(sheet)
    header_px = 60
    for column in range(4):
        left = column * (100 + layout.gap_px)
        gutter = pixels[header_px:, left + 2 : left + layout.gap_px - 2]
        assert (gutter == 255).all(), f"ink left of column {column}"


def test_captions_are_drawn_large_and_dark(folder: Folder) -> None:
    write_part(folder, {"a": ["a green hat"]})
    layout = SheetLayout(picture_px=200)
    sheet = draw_contact_sheet(folder, layout=layout)
    assert sheet is not None
    rows_with_ink = (np.asarray(sheet.convert("L"))[-40:, : 200 + layout.gap_px] < 100).any(axis=1)
    assert rows_with_ink.sum() >= 9, "letters are at least nine pixels high"


def test_changed_words_are_marked() -> None:
    before, after = "a photo of a red hat", "a photo of a tall green hat"
    marked = [word for word, changed in changed_words(before, after) if changed]
    assert marked == ["tall", "green"]
    assert " ".join(word for word, _ in changed_words(before, after)) == after
    assert changed_words("", "a hat") == [("a", False), ("hat", False)]
    assert changed_words("a hat", "") == []


def test_the_sheet_does_not_get_into_the_dataset(folder: Folder, tmp_path: pathlib.Path) -> None:
    import datasets  # two seconds to import, for this one test

    write_part(folder, {"a": ["a green hat", "a tall hat"], "b": ["a blue hat"]})
    write_contact_sheet(folder)
    loaded = datasets.load_dataset(folder.root, cache_dir=str(tmp_path / "cache"), split="train")
    assert sorted(loaded["target_prompt"]) == ["a blue hat", "a green hat", "a tall hat"]
    assert loaded[0]["edited"].getpixel((0, 0)) == GREEN
