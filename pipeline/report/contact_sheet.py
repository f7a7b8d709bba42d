"""Draws the contact sheet of a run: a row per source, with its edits next to it, and captions.

The sources with the smallest ids are shown. Ids are content hashes, so this is a fair sample, and
the same run always gives the same sheet.
"""

from __future__ import annotations

import dataclasses
import difflib
import heapq
import io
from collections.abc import Iterator, Mapping, Sequence

import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from pipeline.storage.folder import Folder

SHEET_NAME = "contact_sheet.png"

_COLUMNS = (
    "source_id",
    "id",
    "source_prompt",
    "target_prompt",
    "edited_file_name",
    "source_file_name",
)

_PAPER, _INK, _FAINT, _ACCENT = (255, 255, 255), (32, 33, 36), (128, 132, 138), (196, 60, 20)
_EMPTY = (236, 237, 239)


@dataclasses.dataclass(frozen=True)
class SheetLayout:
    """How much the sheet shows, and in what size."""

    sources: int = 9
    edits_per_source: int = 5
    picture_px: int = 208
    """Side of the square each picture is fitted into."""
    font_px: int = 16
    gap_px: int = 14
    caption_lines: int = 5
    """Longer captions end in an ellipsis."""


@dataclasses.dataclass(frozen=True)
class SheetEdit:
    """One edited picture: its path in the run folder and its target prompt."""

    path: str
    target_prompt: str


@dataclasses.dataclass(frozen=True)
class SheetRow:
    """One source with the edits that are shown; `source_path` is "" if the source was not kept."""

    source_id: str
    name: str
    source_path: str
    source_prompt: str
    edits: tuple[SheetEdit, ...]


def draw_contact_sheet(
    folder: Folder, *, title: str = "", layout: SheetLayout | None = None
) -> Image.Image | None:
    """The sheet of a run folder as an RGB picture, or None while no edit has been accepted."""
    layout = layout or SheetLayout()
    rows = choose_rows(folder, layout)
    if not rows:
        return None
    columns = 1 + max(len(row.edits) for row in rows)
    pen = _Pen(layout, columns)
    strips = [pen.header(title)]
    strips += [pen.row(row, _pictures(folder, row)) for row in rows]
    return _stack(strips)


def write_contact_sheet(
    folder: Folder, *, title: str = "", layout: SheetLayout | None = None
) -> str | None:
    """Draws the sheet and stores it in the run folder.

    Returns its path there, or None while no edit has been accepted.
    """
    sheet = draw_contact_sheet(folder, title=title, layout=layout)
    if sheet is None:
        return None
    data = io.BytesIO()
    sheet.save(data, "PNG", optimize=True)
    folder.replace(SHEET_NAME, data.getvalue())
    return SHEET_NAME


def choose_rows(folder: Folder, layout: SheetLayout) -> list[SheetRow]:
    """The `layout.sources` sources with the smallest ids, sorted by name, each with its first
    edits."""
    chosen: dict[str, SheetRow] = {}
    largest_first: list[_Reversed] = []
    for part, record in _accepted_edits(folder):
        source_id = record["source_id"]
        row = chosen.get(source_id)
        if row is None:
            if len(chosen) == layout.sources:
                if source_id > largest_first[0].text:
                    continue
                del chosen[heapq.heappop(largest_first).text]
            row = _new_row(part, record)
            heapq.heappush(largest_first, _Reversed(source_id))
        if len(row.edits) < layout.edits_per_source:
            edit = SheetEdit(f"{part}/{record['edited_file_name']}", record["target_prompt"])
            row = dataclasses.replace(row, edits=(*row.edits, edit))
        chosen[source_id] = row
    return sorted(chosen.values(), key=lambda row: (row.name, row.source_id))


@dataclasses.dataclass(frozen=True)
class _Reversed:
    """Text that sorts backwards, so that a heap gives the largest first."""

    text: str

    def __lt__(self, other: _Reversed) -> bool:
        return self.text > other.text


def _accepted_edits(folder: Folder) -> Iterator[tuple[str, Mapping[str, str]]]:
    """(part, metadata row) of every accepted edit, part by part; null values are ""."""
    for part in folder.list_folders():
        path = f"{part}/metadata.parquet"
        if not part.startswith("part-") or not folder.exists(path):
            continue  # its worker crashed before committing it; the next run makes it again
        with folder.open_read(path) as file:
            parquet = pq.ParquetFile(file)
            table = parquet.read([c for c in _COLUMNS if c in parquet.schema_arrow.names])
        for record in table.to_pylist():
            yield part, {name: value or "" for name, value in record.items()}


def _new_row(part: str, record: Mapping[str, str]) -> SheetRow:
    source_file = record.get("source_file_name")  # no such column if sources are not kept
    return SheetRow(
        source_id=record["source_id"],
        name=record["id"],
        source_path=f"{part}/{source_file}" if source_file else "",
        source_prompt=record["source_prompt"],
        edits=(),
    )


def _pictures(folder: Folder, row: SheetRow) -> list[Image.Image | None]:
    """The source and the edits of a row; None for a file that was not kept or cannot be read."""
    return [_picture(folder, path) for path in (row.source_path, *(e.path for e in row.edits))]


def _picture(folder: Folder, path: str) -> Image.Image | None:
    if not path or not folder.exists(path):
        return None
    try:
        with Image.open(io.BytesIO(folder.read(path))) as picture:
            return picture.convert("RGB")
    except (
        OSError,
        SyntaxError,
    ):  # what Pillow raises for a damaged file; `fpe verify` reports it
        return None


def _stack(strips: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (strips[0].width, sum(s.height for s in strips)), _PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


Word = tuple[str, bool]
"""A word of a caption, and whether it differs from the source prompt."""


def changed_words(source_prompt: str, target_prompt: str) -> list[Word]:
    """The words of the target prompt, each with True if the source prompt does not have it
    there."""
    before, after = source_prompt.split(), target_prompt.split()
    if not before:
        return [(word, False) for word in after]
    words: list[Word] = []
    for kind, _, _, start, end in difflib.SequenceMatcher(
        None, before, after, autojunk=False
    ).get_opcodes():
        words += [(word, kind != "equal") for word in after[start:end]]
    return words


class _Pen:
    """Draws the rows of one sheet, which share fonts, widths and the number of columns."""

    def __init__(self, layout: SheetLayout, columns: int) -> None:
        self._layout = layout
        self._font = ImageFont.load_default(layout.font_px)
        self._title_font = ImageFont.load_default(round(layout.font_px * 1.25))
        self._line_px = round(layout.font_px * 1.3)
        self._pitch_px = layout.picture_px + layout.gap_px
        self._width_px = layout.gap_px + columns * self._pitch_px

    def header(self, title: str) -> Image.Image:
        gap = self._layout.gap_px
        title_px = round(self._layout.font_px * 1.25 * 1.5) if title else 0
        strip = Image.new("RGB", (self._width_px, gap + title_px + self._line_px), _PAPER)
        draw = ImageDraw.Draw(strip)
        if title:
            shown = self._cut(title, self._title_font, self._width_px - 2 * gap)
            draw.text((gap, gap), shown, fill=_INK, font=self._title_font)
        for column, word in ((0, "source"), (1, "edits")):
            draw.text(
                (gap + column * self._pitch_px, gap + title_px), word, fill=_FAINT, font=self._font
            )
        return strip

    def row(self, row: SheetRow, pictures: Sequence[Image.Image | None]) -> Image.Image:
        side, gap = self._layout.picture_px, self._layout.gap_px
        own = row.source_prompt or row.name or "(no caption)"
        captions = [self._wrap([(word, False) for word in own.split()])]
        captions += [
            self._wrap(changed_words(row.source_prompt, e.target_prompt)) for e in row.edits
        ]
        lines = max(len(caption) for caption in captions)
        height = gap // 2 + side + 4 + lines * self._line_px + gap // 2
        strip = Image.new("RGB", (self._width_px, height), _PAPER)
        draw = ImageDraw.Draw(strip)
        for column, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
            left, top = gap + column * self._pitch_px, gap // 2
            self._place(strip, draw, picture, left, top)
            for number, line in enumerate(caption):
                self._write(draw, line, left, top + side + 4 + number * self._line_px)
        return strip

    def _place(
        self,
        strip: Image.Image,
        draw: ImageDraw.ImageDraw,
        picture: Image.Image | None,
        left: int,
        top: int,
    ) -> None:
        side = self._layout.picture_px
        if picture is None:
            draw.rectangle((left, top, left + side - 1, top + side - 1), fill=_EMPTY)
            centre = (left + side // 2, top + side // 2)
            draw.text(centre, "no picture", fill=_FAINT, font=self._font, anchor="mm")
            return
        scale = side / max(picture.size)
        fitted = picture.resize(
            (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
            Image.Resampling.LANCZOS,
        )
        strip.paste(fitted, (left + (side - fitted.width) // 2, top + (side - fitted.height) // 2))

    def _write(
        self, draw: ImageDraw.ImageDraw, line: Sequence[Word], left: float, top: float
    ) -> None:
        for word, changed in line:
            draw.text((left, top), word, fill=_ACCENT if changed else _INK, font=self._font)
            left += self._font.getlength(word + " ")

    def _wrap(self, words: Sequence[Word]) -> list[list[Word]]:
        """Breaks words into at most `caption_lines` lines, each no wider than a picture."""
        width = self._layout.picture_px
        lines: list[list[Word]] = [[]]
        for word, changed in words:
            shown = self._cut(word, self._font, width)
            line = " ".join([*(w for w, _ in lines[-1]), shown])
            if lines[-1] and self._font.getlength(line) > width:
                lines.append([])
            lines[-1].append((shown, changed))
        if len(lines) > self._layout.caption_lines:
            lines = lines[: self._layout.caption_lines]
            last, changed = lines[-1][-1]
            lines[-1][-1] = (self._cut(last + "...", self._font, width), changed)
        return lines

    def _cut(
        self, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
    ) -> str:
        if font.getlength(text) <= width:
            return text
        while text and font.getlength(text + "...") > width:
            text = text[:-1]
        return text + "..."
