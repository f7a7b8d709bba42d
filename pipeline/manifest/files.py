"""The manifest: Parquet files that list what to edit. Opens, checks and streams them.

The pipeline reads the columns in `KNOWN_COLUMNS` and those that the job names; every other column
is carried, in its own type, to each edit of its row. This module handles the files, `rows` the
content of a row. Rows are numbered from 0 over all files, in the order of their URLs.
"""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import pyarrow as pa

from pipeline.errors import ManifestError, StorageError
from pipeline.manifest.arrow_types import holds_bytes, is_json, plain_type
from pipeline.manifest.carried import carried_column, carried_schema
from pipeline.manifest.columns import (
    _EXPECTED,
    EDIT_TYPE,
    INSTRUCTION,
    KNOWN_COLUMNS,
    OTHER_PROMPT,
    PROMPT_COLUMNS,
    _is_list_of_text,
    are_prompts,
    known_type,
    known_values,
)
from pipeline.manifest.file_layout import FileLayout
from pipeline.manifest.find import FoundFile, find_files
from pipeline.manifest.labels import TARGET_LABELS, label_fields
from pipeline.manifest.parquet_files import Footer, OpenedParquet, opened_in_turn, read_footers
from pipeline.manifest.partitions import partition_types
from pipeline.storage.folder import folder_and_name

MAX_PROBLEMS = 20
ROWS_PER_BATCH = 1024
ROWS_PER_BATCH_OF_BYTES = 16


@dataclass(frozen=True)
class ManifestFile:
    """One Parquet file of the manifest; `label` is its name in messages.

    `base` is the URL of the folder that relative URIs are relative to: that of the file, or of the
    table that the file belongs to. `key_base` is the base of relative URIs when ids are computed:
    `base` relative to the job's manifest URL, so that a dataset that moves together with its
    manifest keeps its ids. If the job lists several URLs it is `base`.

    `layout` makes the file's rows into rows of `schema`; None if they are as in the file.
    """

    url: str
    label: str
    rows: int
    first_row: int
    schema: pa.Schema
    base: str
    key_base: str
    layout: FileLayout | None = None
    is_live: bool = False
    """Whether it belongs to a table of Delta or Iceberg."""
    row_groups: tuple[tuple[int, int], ...] = ()
    """Of each row group the number of rows, deleted ones too, and its bytes in the file."""


@dataclass(frozen=True)
class ManifestBatch:
    """Some rows of one file: `known` as Python values by column, `carried` in `carried_schema`."""

    file: ManifestFile
    first_row: int
    known: Mapping[str, Sequence[Any]]
    carried: pa.Table
    rows: int


@dataclass(frozen=True)
class Manifest:
    """The files of a manifest, their schemas checked. Holds no rows.

    `read_too` are further columns that are read like the known ones and not carried. `labels` are
    the fields of `target_labels`; none if the job's own templates make the prompts. `prompts`: what
    those of the rows are, as `EditMethod.prompts` has it; "" if they are not read. Batches have
    them as `target_prompt`, whatever column they are in.
    """

    files: tuple[ManifestFile, ...]
    carried_schema: pa.Schema
    options: Mapping[str, Any]
    read_too: tuple[str, ...] = ()
    labels: tuple[pa.Field, ...] = ()
    prompts: str = "target"

    @classmethod
    def open(
        cls,
        urls: str | Sequence[str],
        options: Mapping[str, Any] | None = None,
        *,
        carry: Sequence[str] = (),
        read_too: Sequence[str] = (),
        needs_target_prompt: bool = True,
        prompts: str = "target",
    ) -> Self:
        """Finds the files and checks their columns and types.

        `carry`: known columns that are carried as well. `read_too`: other columns that are read and
        not carried. `prompts`: what those of the job's editor are. Raises ManifestError, with the
        problems of each file, and StorageError.
        """
        options = dict(options or {})
        files = _open_files(urls, options)
        if not files:
            raise ManifestError(f"the manifest {_shown(urls)} holds no Parquet file")
        problems = [
            f"{file.label}: {problem}"
            for file in files
            for problem in _schema_problems(file.schema, prompts if needs_target_prompt else "")
        ]
        if problems:
            raise ManifestError(
                "the manifest's columns are not as they must be:",
                problems[:MAX_PROBLEMS],
                total=len(problems),
            )
        labels: tuple[pa.Field, ...] = ()
        if needs_target_prompt:
            labels = label_fields([file.schema for file in files])
            read_too = (*read_too, *_lists_of_types(files))
        schemas = {file.label: file.schema for file in files}
        prompts = prompts if needs_target_prompt else ""
        own = [PROMPT_COLUMNS[prompts]] if prompts else []
        carried = carried_schema(schemas, carry, (*KNOWN_COLUMNS, *own, *read_too))
        return cls(tuple(files), carried, options, tuple(read_too), labels, prompts)

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def columns(self) -> frozenset[str]:
        return frozenset(name for file in self.files for name in file.schema.names)

    @property
    def partition_columns(self) -> frozenset[str]:
        """The columns that are in the names of folders, and in no file."""
        plain = [file.layout for file in self.files if file.layout is not None and not file.is_live]
        found = {name for layout in plain for name in layout.constants}
        return frozenset(found - {name for layout in plain for name in layout.sources})

    def without(self, columns: Container[str]) -> Self:
        """The manifest without some of the columns that are carried."""
        kept = [field for field in self.carried_schema if field.name not in columns]
        return replace(self, carried_schema=pa.schema(kept))

    def has_image_bytes(self, file: ManifestFile) -> bool:
        """Whether a file holds encoded images, so that its rows may be large."""
        kinds = [
            plain_type(file.schema.field(name).type)
            for name in ("image", *self.read_too)
            if name in file.schema.names
        ]
        return any(map(holds_bytes, kinds))

    def batches(self) -> Iterator[ManifestBatch]:
        """All rows in order, a bounded number at a time. Raises ManifestError for damaged files.

        Keeps a few rows and one Parquet page per column in memory; the writer chose the page size.
        """
        for file, opened in opened_in_turn(self.files, lambda file: file.url, self.options):
            row = file.first_row
            for table in self._tables(file, opened):
                yield self._batch(file, row, table)
                row += len(table)

    def _tables(self, file: ManifestFile, opened: OpenedParquet) -> Iterator[pa.Table]:
        size = ROWS_PER_BATCH_OF_BYTES if self.has_image_bytes(file) else ROWS_PER_BATCH
        rows = 0
        try:
            for first, batch in opened.batches(size):
                if file.layout is None:
                    yield pa.Table.from_batches([batch])
                else:
                    yield file.layout.rows_of(batch, first)
                rows = first + batch.num_rows
        except StorageError:
            raise
        except ManifestError as error:
            raise ManifestError(f"{file.url}: {error}") from error
        except Exception as error:  # Arrow's, or a client's
            raise ManifestError(f"{file.url} cannot be read past row {rows}: {error}") from error

    def _batch(self, file: ManifestFile, first_row: int, table: pa.Table) -> ManifestBatch:
        known: dict[str, list[Any]] = {}
        prompts: dict[str, list[Any]] = {}
        columns = []
        name = ""
        try:
            for name in (*KNOWN_COLUMNS, *self.read_too):
                is_there = name in table.column_names
                if is_there:
                    known[name] = known_values(name, table[name], file.schema)
                else:
                    known[name] = [None] * len(table)
            for kind, name in PROMPT_COLUMNS.items() if self.prompts else ():
                place = "target_prompt" if kind == self.prompts else OTHER_PROMPT
                prompts[place] = [None] * len(table)
                if name in table.column_names and are_prompts(known_type(name, file.schema)):
                    prompts[place] = known_values(name, table[name], file.schema)
            for field in self.carried_schema:
                name = field.name
                if name in table.column_names:
                    columns.append(
                        carried_column(
                            name, table[name], file.schema, self.carried_schema, file.base
                        )
                    )
                else:
                    columns.append(pa.nulls(len(table), field.type))
        except (ValueError, pa.ArrowException) as error:
            last_row = first_row + len(table) - 1
            raise ManifestError(
                f"{file.url}: column {name} cannot be read, in one of the rows {first_row} to "
                f"{last_row}: {error}"
            ) from error
        carried = pa.table(columns, schema=self.carried_schema)
        return ManifestBatch(file, first_row, {**known, **prompts}, carried, len(table))


def _lists_of_types(files: Sequence[ManifestFile]) -> tuple[str, ...]:
    """(EDIT_TYPE,) if that column has a list with one type per prompt, else ()."""
    kinds = (f.schema.field(EDIT_TYPE).type for f in files if EDIT_TYPE in f.schema.names)
    are_lists = any(is_json(kind) or _is_list_of_text(plain_type(kind)) for kind in kinds)
    return (EDIT_TYPE,) if are_lists else ()


def _shown(urls: str | Sequence[str]) -> str:
    return urls if isinstance(urls, str) else ", ".join(urls)


def _open_files(urls: str | Sequence[str], options: Mapping[str, Any]) -> list[ManifestFile]:
    """The files with their row numbers, in the order of their URLs, each once."""
    found: dict[str, FoundFile] = {}
    for url in [urls] if isinstance(urls, str) else urls:
        for file in find_files(url, options):
            found.setdefault(file.url, file)
    ordered = [found[url] for url in sorted(found)]
    footers = read_footers([file.url for file in ordered], options)
    schemas = [footer.schema for footer in footers]
    types = partition_types([(f.partitions, s) for f, s in zip(ordered, schemas, strict=True)])
    files: list[ManifestFile] = []
    first_row = 0
    for file, footer in zip(ordered, footers, strict=True):
        root = file.root if isinstance(urls, str) else ""
        files.append(_manifest_file(file, root, footer, types, first_row))
        first_row += files[-1].rows
    return files


def _manifest_file(
    file: FoundFile,
    root: str,
    footer: Footer,
    types: Mapping[str, pa.DataType],
    first_row: int,
) -> ManifestFile:
    """`root`: the folder to which the file's label and `key_base` are relative; "": none."""
    schema, layout = footer.schema, None
    try:
        if file.live is not None:
            layout = FileLayout.of_table(file.live, schema)
        elif file.partitions:
            layout = FileLayout.of_partitions(file.partitions, types, schema)
    except ManifestError as error:
        raise ManifestError(f"{file.url}: {error}") from error
    base = folder_and_name(file.url)[0] if file.live is None else file.live.table
    return ManifestFile(
        url=file.url,
        label=file.url[len(root) :].lstrip("/") if root and file.url.startswith(root) else file.url,
        rows=footer.rows if layout is None else footer.rows - layout.dead,
        first_row=first_row,
        schema=schema if layout is None else layout.schema,
        base=base or "/",
        key_base=base[len(root) :].strip("/") if root else base,
        layout=layout,
        is_live=file.live is not None,
        row_groups=footer.row_groups,
    )


def _schema_problems(schema: pa.Schema, prompts: str) -> Iterator[str]:
    """What is wrong with the columns of one file. `prompts`: as of `Manifest`."""
    names = schema.names
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"column {name} appears {names.count(name)} times"
    if "image" not in names and not {"source_prompt", "seed"} <= set(names):
        near = _near("image", names)
        yield f"needs a column image{near}, or source_prompt and seed for synthetic sources"
    if prompts and PROMPT_COLUMNS[prompts] not in names:
        yield _no_prompts(prompts, names)
    for name, (fits, expected) in _EXPECTED.items():
        if name == TARGET_LABELS and not prompts:
            continue  # not used, since the job makes the prompts
        if names.count(name) == 1 and not fits(known_type(name, schema)):
            yield f"column {name} must be {expected}, it is {schema.field(name).type}"
    if prompts == "instruction" and names.count(INSTRUCTION) == 1:
        kind = schema.field(INSTRUCTION).type
        if not are_prompts(known_type(INSTRUCTION, schema)):
            yield f"column {INSTRUCTION} must be text or lists of it, it is {kind}"


def _no_prompts(prompts: str, names: Sequence[str]) -> str:
    """A file has no column with prompts of this kind."""
    column = PROMPT_COLUMNS[prompts]
    reads = ", which its editor reads" if prompts == "instruction" else ""
    there = [name for kind, name in PROMPT_COLUMNS.items() if kind != prompts and name in names]
    near = f" (there is {there[0]}, for other editors)" if there else _near(column, names)
    return f"needs a column {column}{near}{reads}, or a prompts section in the job"


def _near(name: str, names: Sequence[str]) -> str:
    lowered = {other.lower(): other for other in names if other not in KNOWN_COLUMNS}
    found = difflib.get_close_matches(name, lowered, n=1, cutoff=0.7)
    return f" (is it {lowered[found[0]]!r}?)" if found else f" (there are {', '.join(names)})"
