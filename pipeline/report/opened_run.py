"""A run folder as an object, for notebooks: its edits as tables, its pictures, its progress.

    run = OpenedRun.open("out/recoloured")
    run.edits().to_pandas().groupby("colour").size()
    run.picture(run.edits().to_pylist()[0])

Everything is read on demand and nothing is written, so a run may be in progress at the same time.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from fpe_core import decode_image
from pipeline.errors import StorageError
from pipeline.in_order import in_order
from pipeline.job.file import CONFIG_NAME, load_job_of_run
from pipeline.job.job import Job
from pipeline.ledger.by_id import RowsById
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import OUTCOME_SCHEMA, Outcome
from pipeline.ledger.parts import METADATA_FILE
from pipeline.plan.resolved_job import SCHEMA_FILE
from pipeline.report.edit_table import edits_so_far, planned_labels, standing_outcomes
from pipeline.report.status import RunStatus, require_run, run_status
from pipeline.run.stats import STATS_FILE
from pipeline.storage.folder import Folder

_THREADS = 16
_MOST_PIXELS = 2**31  # no limit is needed: the pipeline itself wrote these pictures
_IDS = ("edit_id", "group_id", "source_id")


@dataclass(frozen=True)
class OpenedRun:
    """A run folder, local or on an object store. `open` makes one."""

    folder: Folder

    @classmethod
    def open(cls, url: str, storage_options: Mapping[str, Any] | None = None) -> Self:
        """The run folder at a URL or local path; `storage_options` as in a job file.

        Raises StorageError if there is no run, or if the store cannot be reached.
        """
        folder = Folder.open(url, storage_options)
        require_run(folder)
        return cls(folder)

    @property
    def url(self) -> str:
        """The folder's URL; an absolute path for a local one."""
        return self.folder.url

    def edits(self) -> pa.Table:
        """The metadata of the accepted edits, one row per edit, with the columns of the output.

        Names of files (`edited_file_name`, `source_file_name`, masks) are relative to the run
        folder. Ids are text, as in `outcomes`. Raises StorageError and LedgerError.
        """
        return self._metadata_of(Outcome.ACCEPTED)

    def rejected(self) -> pa.Table:
        """The same for rejected edits whose pictures were kept (`judge.rejected: keep`)."""
        return self._metadata_of(Outcome.REJECTED)

    def outcomes(self) -> pa.Table:
        """The standing outcome of every edit, one row per edit, sorted by edit_id.

        The columns of a ledger (pipeline/ledger/outcome.py: `outcome`, `reason`, `message`, scores,
        file names, `unet_rows`, `seconds`, ...), with ids as hexadecimal text, and columns from the
        plan: `id`, `source_prompt` and "label:<name>" for every label of the job.
        Raises StorageError and LedgerError.
        """
        rows = edits_so_far(self.folder, planned_labels(self.folder)).rows
        for name in _IDS:
            at = rows.column_names.index(name)
            text = pa.chunked_array([_as_text(ids) for ids in rows[name].chunks], pa.string())
            rows = rows.set_column(at, name, text)
        return rows.drop_columns(["source_key"])

    def picture_path(self, edit: Mapping[str, Any]) -> str:
        """The path of the picture of an edit: a local path, or a URL on the store.

        `edit`: a row of `edits`, `rejected` or `outcomes`, as `to_pylist` gives it. Raises
        ValueError if the edit has no picture: it failed, or was rejected and not kept.
        """
        return self.folder.url_of(_name_of("edited_file_name", edit))

    def source_path(self, edit: Mapping[str, Any]) -> str:
        """The same for the source as the model saw it, cropped or padded to the model's size."""
        return self.folder.url_of(_name_of("source_file_name", edit))

    def picture(self, edit: Mapping[str, Any]) -> Image.Image:
        """The picture of an edit, RGB. Raises ValueError as `picture_path` does, and
        StorageError."""
        data = self.folder.read(_name_of("edited_file_name", edit))
        return decode_image(data, max_pixels=_MOST_PIXELS)

    @property
    def statistics(self) -> Mapping[str, Any]:
        """The content of stats.json: figures of the last run, and totals; {} before a run has
        ended."""
        if not self.folder.exists(STATS_FILE):
            return {}
        try:
            return dict(json.loads(self.folder.read(STATS_FILE)))
        except (TypeError, ValueError) as error:
            raise StorageError(f"{self.folder.url_of(STATS_FILE)} is damaged: {error}") from error

    def status(self) -> RunStatus:
        """The progress of the run, and whether it is running. Raises StorageError, LedgerError."""
        return run_status(self.folder.url, self.folder.options)

    @property
    def job(self) -> Job | None:
        """The job as it last ran, with every default filled in; None if there is no config.yaml.

        Its output is this folder, even if it was moved. Raises JobError if config.yaml is not a
        valid job of this release, or if the manifest's URL had a secret, which was not stored.
        """
        if not self.folder.exists(CONFIG_NAME):
            return None
        return load_job_of_run(self.folder.url, storage_options=self.folder.options)

    def _metadata_of(self, outcome: Outcome) -> pa.Table:
        """Metadata rows of the edits with this standing outcome in the ledger, part by part."""
        schema = pa.schema([OUTCOME_SCHEMA.field(n) for n in ("edit_id", "outcome", "part")])
        with RowsById(schema) as outcomes:
            for table in Ledger(self.folder).outcomes(schema.names):
                outcomes.add(table)
            of_part = [
                table.filter(pc.equal(table["outcome"], outcome.value)).select(["edit_id", "part"])
                for table in standing_outcomes(outcomes)
            ]
        chosen = pa.concat_tables(of_part).sort_by("part").combine_chunks()
        groups = chosen.group_by("part", use_threads=False).aggregate([([], "count_all")])
        ends = np.cumsum(groups["count_all"].to_numpy()).tolist()
        parts = [
            (part, chosen["edit_id"].slice(first, end - first))
            for part, first, end in zip(groups["part"].to_pylist(), [0, *ends], ends, strict=False)
            if part
        ]
        if not parts:
            return self._schema().empty_table()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="parts") as pool:
            tables = in_order(pool, lambda each: self._rows_of_part(*each), parts, _THREADS)
            return pa.concat_tables(list(tables))

    def _rows_of_part(self, part: str, edit_ids: pa.ChunkedArray) -> pa.Table:
        """The metadata of these edits of a part, with file names relative to the run folder."""
        path = f"{part}/{METADATA_FILE}"
        data = self.folder.read(path)
        try:
            table = pq.read_table(io.BytesIO(data)).replace_schema_metadata(None)
            table = table.filter(pc.is_in(table["edit_id"], value_set=_as_text(edit_ids)))
        except (pa.ArrowException, KeyError) as error:
            raise StorageError(f"{self.folder.url_of(path)} is damaged: {error}") from error
        for at, item in enumerate(table.schema):
            if item.name.endswith("_file_name"):
                names = pc.binary_join_element_wise(part, table[item.name], "/")
                table = table.set_column(at, item, names)
            elif item.name.endswith("_file_names"):
                lists = [
                    None if names is None else [f"{part}/{name}" for name in names]
                    for names in table[item.name].to_pylist()
                ]
                table = table.set_column(at, item, pa.array(lists, item.type))
        return table

    def _schema(self) -> pa.Schema:
        """The columns of this folder's metadata; none before the first run has begun to edit."""
        if not self.folder.exists(SCHEMA_FILE):
            return pa.schema([])
        return pa.ipc.read_schema(pa.py_buffer(self.folder.read(SCHEMA_FILE)))


def _as_text(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Ids as hexadecimal text."""
    return pa.array([identity.hex() for identity in ids.to_pylist()], pa.string())


def _name_of(column: str, edit: Mapping[str, Any]) -> str:
    name = edit.get(column)
    if not name:
        raise ValueError(
            f"this edit has no {column}: it failed, or it was rejected and not kept, or the job "
            "has images.keep_source: false"
        )
    return str(name)
