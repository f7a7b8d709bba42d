"""Fourth station: the files of a part. Images first, then the metadata that makes them exist.

    part-<id>/edited/<stem>__<edit_id>.<ext>
              source/<stem>__<source_id>.<ext>
              mask/<stem>__<hash of the file>.png
              metadata.parquet

`datasets.load_dataset(run_dir)` reads exactly the rows of the metadata files, so images of a part
that was never finished are invisible. Every name comes from content: whoever writes a file a second
time writes the same file, and leaves it as it is. All metadata files of a run folder have one
schema (`MetadataLayout`).
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin

from fpe_core import EditParameters
from fpe_core.colour import srgb_profile
from fpe_core.edit_scores import EditScores
from fpe_core.fit import Fit
from fpe_core.parameters import layer_rule_from_text
from fpe_core.reproduction import Reproduction
from pipeline.commit import METADATA_FILE, PART_PREFIX, read_part_outcomes
from pipeline.errors import AlreadyExistsError
from pipeline.ledger import Right
from pipeline.outcome import (
    OUTCOMES_METADATA_KEY,
    REPRODUCTION_COLUMNS,
    SCORE_COLUMNS,
    outcomes_to_bytes,
)
from pipeline.storage import Folder

_PNG_COMPRESS_LEVEL = 3  # twice as fast as Pillow's 6 for some 3 % larger files
_FIT_FIELDS = (
    pa.field("fit_policy", pa.string()),
    pa.field("fit_source_width_px", pa.int32()),
    pa.field("fit_source_height_px", pa.int32()),
    pa.field("fit_scale_x", pa.float64()),
    pa.field("fit_scale_y", pa.float64()),
    pa.field("fit_offset_x_px", pa.float64()),
    pa.field("fit_offset_y_px", pa.float64()),
)
_JUDGED_FIELDS = (
    pa.field("edit_type", pa.string()),
    pa.field("tries", pa.int32()),
    *(pa.field(name, pa.float64()) for name in SCORE_COLUMNS),
)
PARAMETER_COLUMNS = (
    "steps",
    "guidance_scale",
    "negative_prompt",
    "replaced_fraction",
    "layers",
)
"""The metadata columns that say how an edit was made, in every run."""
_GUIDANCE_INTERVAL = pa.field("guidance_interval", pa.list_(pa.float64()))
_REPRODUCTION_FIELDS = tuple(pa.field(name, pa.float64()) for name in REPRODUCTION_COLUMNS)
REJECTED_FOLDER = "rejected"
"""Beside the parts, where no dataset looks: rejected/part-<id>/<stem>__<edit_id>.<ext>."""
_IMAGE_ENDINGS = ("file_name", "file_names")
"""`datasets` opens a column x_file_name as images and calls it x."""


@dataclass(frozen=True)
class ImageFormat:
    """How images are encoded."""

    name: Literal["png", "jpeg", "webp"] = "png"
    quality: int = 95

    @property
    def extension(self) -> str:
        return "jpg" if self.name == "jpeg" else self.name

    def encode(self, image: Image.Image, xmp: bytes | None = None) -> bytes:
        """An RGB image, taken as sRGB, as the bytes of a file; equal input gives equal bytes.

        The file says that it is sRGB (PNG: an sRGB chunk; JPEG and WebP: a profile of some 500
        bytes) and carries the XMP packet, if there is one; nothing else that `image.info` holds.
        Raises ValueError for a packet of more than 65,502 bytes in a JPEG.
        """
        image = image.copy()
        image.info = {}  # Pillow writes some of it unasked: profiles and comments
        sink = io.BytesIO()
        if self.name == "png":
            image.save(sink, "PNG", compress_level=_PNG_COMPRESS_LEVEL, pnginfo=_png_chunks(xmp))
            return sink.getvalue()
        marks = {"icc_profile": srgb_profile(), **({"xmp": xmp} if xmp else {})}
        if self.name == "jpeg":
            image.save(sink, "JPEG", quality=self.quality, subsampling=0, **marks)
        else:
            lossless = self.quality == 100
            image.save(sink, "WEBP", quality=self.quality, lossless=lossless, **marks)
        return sink.getvalue()


def _png_chunks(xmp: bytes | None) -> PngImagePlugin.PngInfo:
    """An sRGB chunk, and the packet where Adobe's XMP specification (part 3, 1.1.5) wants it."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"sRGB", b"\0")  # 0: perceptual, as for photographs
    if xmp:
        chunks.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=False)
    return chunks


@dataclass(frozen=True)
class MetadataLayout:
    """The columns of a run's metadata files: ours, the labels, the carried ones as they are.

    A carried column whose name is ours comes out as manifest_<name>. So does one that `datasets`
    would open as an image file, and then without its _file_name ending.
    """

    labels: tuple[str, ...] = ()
    carried: pa.Schema | None = None
    keep_source: bool = True
    judged: bool = False
    gated: bool = False
    limits_guidance: bool = False
    annotations: tuple[pa.Field, ...] = ()
    edited: bool = True
    """False for `editor: none`: a column `editor` says so, and none has parameters or a checkpoint.
    So such a folder has other columns than one with edits, and refuses them."""

    @cached_property
    def schema(self) -> pa.Schema:
        """Fixed for the run: all-null columns keep their type, so all parts read as one."""
        moved = [
            pa.field(self.carried_names[item.name], item.type) for item in (self.carried or ())
        ]
        return pa.schema([*self._our_fields(self.keep_source), *self._label_fields, *moved])

    @cached_property
    def carried_names(self) -> dict[str, str]:
        """Carried column to output column."""
        used = {item.name for item in (*self._our_fields(True), *self._label_fields)}
        used |= self._names_of_datasets
        result: dict[str, str] = {}
        for name in () if self.carried is None else self.carried.names:
            chosen = name
            while chosen in used or chosen.endswith(_IMAGE_ENDINGS):
                if chosen.endswith(_IMAGE_ENDINGS):
                    chosen = chosen.removesuffix("_names").removesuffix("_name") + "_path"
                chosen = f"manifest_{chosen}"
            result[name] = chosen
            used.add(chosen)
        return result

    def table(self, rows: Sequence[Mapping[str, Any]], carried: pa.Table | None) -> pa.Table:
        """Metadata rows in `schema`: ours and the labels from `rows`, the carried columns beside.

        `carried` has one row per row, in the same order; its values never become Python objects.
        """
        columns = []
        names = {output: name for name, output in self.carried_names.items()}
        for item in self.schema:
            if carried is not None and item.name in names:
                columns.append(carried[names[item.name]].cast(item.type))
            else:
                columns.append(pa.array([row.get(item.name) for row in rows], item.type))
        return pa.table(columns, schema=self.schema)

    def refused_labels(self) -> tuple[str, ...]:
        """Labels that cannot be columns: ours, or `datasets`' meaning, has the name."""
        ours = {item.name for item in self._our_fields(True)} | self._names_of_datasets
        return tuple(n for n in self.labels if n in ours or n.endswith(_IMAGE_ENDINGS))

    def _our_fields(self, keep_source: bool) -> list[pa.Field]:
        judged = _JUDGED_FIELDS if self.judged else ()
        gated = _REPRODUCTION_FIELDS if self.gated else ()
        made = _made_fields(keep_source) if self.edited else _copied_fields(keep_source)
        limited = (_GUIDANCE_INTERVAL,) if self.limits_guidance and self.edited else ()
        return [*made, *limited, *judged, *gated, *self.annotations]

    @property
    def _names_of_datasets(self) -> set[str]:
        """What `datasets` calls the columns that it opens as images."""
        return {_opened_as(item.name) for item in self._our_fields(True)} - {""}

    @property
    def _label_fields(self) -> list[pa.Field]:
        return [pa.field(name, pa.string()) for name in self.labels]


def _made_fields(keep_source: bool) -> list[pa.Field]:
    files = ["edited_file_name", "source_file_name"] if keep_source else ["edited_file_name"]
    texts = [
        *files,
        "edit_id",
        "source_id",
        "group_id",
        "id",
        "split",
        "source_prompt",
        "target_prompt",
    ]
    return [
        *(pa.field(name, pa.string()) for name in texts),
        pa.field("seed", pa.int64()),
        pa.field("steps", pa.int32()),
        pa.field("guidance_scale", pa.float64()),
        pa.field("negative_prompt", pa.string()),
        pa.field("replaced_fraction", pa.float64()),
        pa.field("layers", pa.string()),
        pa.field("checkpoint", pa.string()),
        pa.field("checkpoint_fingerprint", pa.string()),
        *_FIT_FIELDS,
    ]


def _copied_fields(keep_source: bool) -> list[pa.Field]:
    """Of pictures that nothing edited."""
    of_edits = {*PARAMETER_COLUMNS, "checkpoint", "checkpoint_fingerprint"}
    kept = [item for item in _made_fields(keep_source) if item.name not in of_edits]
    return [*kept, pa.field("editor", pa.string())]


def _opened_as(column: str) -> str:
    """ "" for a column that `datasets` leaves as it is."""
    for ending in _IMAGE_ENDINGS:
        if column.endswith(f"_{ending}"):
            return column.removesuffix(f"_{ending}")
    return ""


def parameter_columns(parameters: EditParameters) -> dict[str, Any]:
    """PARAMETER_COLUMNS of an edit, and that of a job that limits guidance."""
    return {
        "steps": parameters.steps,
        "guidance_scale": parameters.guidance_scale,
        "negative_prompt": parameters.negative_prompt,
        "replaced_fraction": parameters.replaced_fraction,
        "layers": str(parameters.layers),
        _GUIDANCE_INTERVAL.name: list(parameters.guidance_interval),
    }


def parameters_of_columns(row: Mapping[str, Any], planned: EditParameters) -> EditParameters:
    """The reverse of `parameter_columns`: with what an edit was made; size and guidance interval,
    which no further try changes, are the planned ones.

    Raises fpe_core.ParameterError and KeyError for columns that say nothing of the kind.
    """
    return replace(
        planned,
        steps=row["steps"],
        guidance_scale=row["guidance_scale"],
        negative_prompt=row["negative_prompt"],
        replaced_fraction=row["replaced_fraction"],
        layers=layer_rule_from_text(row["layers"]),
    )


def fit_columns(fit: Fit | None) -> dict[str, Any]:
    """The metadata columns that map original to edited pixels; null for synthetic sources."""
    values = {} if fit is None else fit.to_dict()
    return {item.name: values.get(item.name.removeprefix("fit_")) for item in _FIT_FIELDS}


def judged_columns(edit_type: str, scores: EditScores | None, *, tries: int = 1) -> dict[str, Any]:
    """The metadata columns of the judge; null where there was none.

    `tries`: how many it took; the parameter columns are the last one's.
    """
    judged = {} if scores is None else {"tries": tries, **asdict(scores)}
    return {"edit_type": edit_type or None, **judged}


def reproduction_columns(reproduction: Reproduction | None) -> dict[str, Any]:
    """The metadata columns of the reproduction gate; null where it was not asked."""
    return {} if reproduction is None else asdict(reproduction)


def part_name(edit_ids: Iterable[bytes]) -> str:
    """The folder of the part in which these edits are attempted together, whatever comes of it."""
    digest = hashlib.blake2b(digest_size=16)
    for edit_id in edit_ids:
        digest.update(edit_id)
    return f"{PART_PREFIX}{digest.hexdigest()}"


class PartWriter:
    """Writes one part. Images go out on the pool's threads while the device computes on."""

    def __init__(
        self,
        folder: Folder,
        part: str,
        image_format: ImageFormat,
        pool: Executor,
        right: Right | None = None,
    ) -> None:
        self.part = part
        self._right = right
        self._folder = folder
        self._format = image_format
        self._pool = pool
        self._images_written = 0
        self._seconds = 0.0
        self._counting = threading.Lock()

    def finished_outcomes(self) -> pa.Table | None:
        """The outcomes of the part if its metadata is already there, else None.

        It is there when an earlier attempt at the same work died between writing and reporting.
        """
        if not self._folder.exists(self._metadata_path):
            return None
        return read_part_outcomes(self._folder, self.part)

    def put_edited(
        self, stem: str, edit_id: bytes, image: Image.Image, xmp: bytes | None = None
    ) -> Future[str]:
        """Starts writing an edited image; the future gives its name within the part, or raises.

        `xmp`: the packet it carries, see `provenance`.
        """
        return self._put(f"edited/{stem}__{edit_id.hex()}.{self._format.extension}", image, xmp)

    def put_rejected(
        self, stem: str, edit_id: bytes, image: Image.Image, xmp: bytes | None = None
    ) -> Future[str]:
        """Same for an edit outside the dataset; the future gives its name within the run folder."""
        name = f"{stem}__{edit_id.hex()}.{self._format.extension}"
        path = f"{REJECTED_FOLDER}/{self.part}/{name}"
        return self._write(path, lambda: self._format.encode(image, xmp), path)

    def put_source(
        self, stem: str, source_id: bytes, image: Image.Image, xmp: bytes | None = None
    ) -> Future[str]:
        """Same for the source, fitted or synthetic."""
        return self._put(f"source/{stem}__{source_id.hex()}.{self._format.extension}", image, xmp)

    def put_mask(self, stem: str, png: bytes) -> Future[str]:
        """Same for a fitted mask, encoded already. Equal masks of a source are one file."""
        digest = hashlib.blake2b(png, digest_size=16).hexdigest()
        name = f"mask/{stem}__{digest}.png"
        return self._write(f"{self.part}/{name}", lambda: png, name)

    def figures(self) -> dict[str, float]:
        """rows: images written; seconds: for encoding and writing them, of all threads together."""
        return {"rows": self._images_written, "seconds": self._seconds}

    def finish(self, metadata: pa.Table, outcomes: pa.Table) -> pa.Table:
        """Writes metadata.parquet, the last write of a part, and returns the part's outcomes.

        `metadata` describes the accepted edits. If another attempt at the same work finished first,
        its file stays and its outcomes come back: what is returned is what the folder says. Raises
        LeaseError, and writes nothing, where another run has the folder by now.
        """
        if self._right is not None:
            self._right.check()
        try:
            self._folder.write_new(self._metadata_path, encode_metadata(metadata, outcomes))
        except AlreadyExistsError:
            return read_part_outcomes(self._folder, self.part)
        return outcomes

    @property
    def _metadata_path(self) -> str:
        return f"{self.part}/{METADATA_FILE}"

    def _put(self, name: str, image: Image.Image, xmp: bytes | None) -> Future[str]:
        return self._write(f"{self.part}/{name}", lambda: self._format.encode(image, xmp), name)

    def _write(self, path: str, encode: Callable[[], bytes], name: str) -> Future[str]:
        """The future gives `name`."""

        def encode_and_write() -> str:
            began = time.monotonic()
            self._folder.write_if_absent(path, encode())
            with self._counting:
                self._images_written += 1
                self._seconds += time.monotonic() - began
            return name

        return self._pool.submit(encode_and_write)


def encode_metadata(metadata: pa.Table, outcomes: pa.Table) -> bytes:
    """A metadata.parquet, with all outcomes of the part in its key-values."""
    table = metadata.replace_schema_metadata({OUTCOMES_METADATA_KEY: outcomes_to_bytes(outcomes)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def carried_columns(table: pa.Table) -> pa.Table | None:
    """The carried columns of a block of work rows as a table of their own; None for none."""
    if "carried" not in table.column_names:
        return None
    column = table["carried"]
    return pa.table(column.flatten(), schema=pa.schema(list(column.type)))
