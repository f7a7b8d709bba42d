"""The columns of a run's metadata files, and their values for an edit.

`part` describes where the files are written, and in which order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from fpe_core import EditParameters
from fpe_core.image.fit import Fit
from fpe_core.parameters import layer_rule_from_text
from pipeline.ledger.outcome import GATE_COLUMN, SCORE_COLUMNS, EditOutcome

_FIT_FIELDS = (
    pa.field("fit_policy", pa.string()),
    pa.field("fit_source_width_px", pa.int32()),
    pa.field("fit_source_height_px", pa.int32()),
    pa.field("fit_scale_x", pa.float64()),
    pa.field("fit_scale_y", pa.float64()),
    pa.field("fit_offset_x_px", pa.float64()),
    pa.field("fit_offset_y_px", pa.float64()),
)
_EDIT_TYPE = pa.field("edit_type", pa.string())
_VERDICT_FIELDS = (pa.field("verdict", pa.string()), pa.field("reject_reason", pa.string()))
_JUDGED_FIELDS = (
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
"""The metadata columns with the parameters of an edit, in every run that makes edits."""
_GUIDANCE_INTERVAL = pa.field("guidance_interval", pa.list_(pa.float64()))
_GATE_FIELD = pa.field(GATE_COLUMN, pa.float64())
_IMAGE_ENDINGS = ("file_name", "file_names")
"""`datasets` opens a column x_file_name as images and names it x."""


@dataclass(frozen=True)
class MetadataLayout:
    """The columns of a run's metadata files: the pipeline's own, the labels, and the carried ones.

    A carried column with the name of one of the pipeline's own is written as manifest_<name>. So is
    one that `datasets` would open as an image file; it also loses its ending _file_name.
    """

    labels: tuple[str, ...] = ()
    carried: pa.Schema | None = None
    keep_source: bool = True
    judged: bool = False
    gated: bool = False
    limits_guidance: bool = False
    annotations: tuple[pa.Field, ...] = ()
    typed: bool = False
    """Whether the manifest has a list of edit types per row; a judged run has that column
    anyway."""
    label_types: Mapping[str, pa.DataType] = field(default_factory=dict)
    """The types of labels that are not text."""
    edited: bool = True
    """False for `editor: none`: then there is a column `editor`, and no columns for parameters and
    checkpoint. A folder with these columns cannot hold edits."""

    @cached_property
    def schema(self) -> pa.Schema:
        """The same for all parts of a run, so that they can be read as one table: columns with only
        nulls keep their type."""
        moved = [
            pa.field(self.carried_names[item.name], item.type) for item in (self.carried or ())
        ]
        return pa.schema([*self._our_fields(self.keep_source), *self._label_fields, *moved])

    @cached_property
    def carried_names(self) -> dict[str, str]:
        """The output column of each carried column."""
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
        """Metadata rows in `schema`: the pipeline's columns and the labels from `rows`, then the
        carried columns.

        `carried` has one row per row, in the same order; its values never become Python objects.
        """
        columns = []
        names = {output: name for name, output in self.carried_names.items()}
        for item in self.schema:
            if carried is not None and item.name in names:
                columns.append(carried[names[item.name]].cast(item.type))
            elif item.name in self.label_types:
                columns.append(
                    pa.array([row.get(item.name) for row in rows], pa.string()).cast(item.type)
                )
            else:
                columns.append(pa.array([row.get(item.name) for row in rows], item.type))
        return pa.table(columns, schema=self.schema)

    def refused_labels(self) -> tuple[str, ...]:
        """Labels that cannot be columns, because the pipeline or `datasets` uses their names."""
        ours = {item.name for item in self._our_fields(True)} | self._names_of_datasets
        return tuple(n for n in self.labels if n in ours or n.endswith(_IMAGE_ENDINGS))

    def _our_fields(self, keep_source: bool) -> list[pa.Field]:
        typed = (_EDIT_TYPE,) if self.judged or self.typed else ()
        judged = (*_VERDICT_FIELDS, *_JUDGED_FIELDS) if self.judged else ()
        gated = (_GATE_FIELD,) if self.gated else ()
        made = _made_fields(keep_source) if self.edited else _copied_fields(keep_source)
        limited = (_GUIDANCE_INTERVAL,) if self.limits_guidance and self.edited else ()
        return [*made, *limited, *typed, *judged, *gated, *self.annotations]

    @property
    def _names_of_datasets(self) -> set[str]:
        """The names that `datasets` gives to the columns that it opens as images."""
        return {_opened_as(item.name) for item in self._our_fields(True)} - {""}

    @property
    def _label_fields(self) -> list[pa.Field]:
        return [pa.field(name, self.label_types.get(name, pa.string())) for name in self.labels]


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
    """The columns of a run that makes no edits."""
    of_edits = {*PARAMETER_COLUMNS, "checkpoint", "checkpoint_fingerprint"}
    kept = [item for item in _made_fields(keep_source) if item.name not in of_edits]
    return [*kept, pa.field("editor", pa.string())]


def _opened_as(column: str) -> str:
    """The name under which `datasets` opens a column as images; "" if it does not."""
    for ending in _IMAGE_ENDINGS:
        if column.endswith(f"_{ending}"):
            return column.removesuffix(f"_{ending}")
    return ""


def parameter_columns(parameters: EditParameters) -> dict[str, Any]:
    """The values of PARAMETER_COLUMNS, and of the guidance interval's column."""
    return {
        "steps": parameters.steps,
        "guidance_scale": parameters.guidance_scale,
        "negative_prompt": parameters.negative_prompt,
        "replaced_fraction": parameters.replaced_fraction,
        "layers": str(parameters.layers),
        _GUIDANCE_INTERVAL.name: list(parameters.guidance_interval),
    }


def parameters_of_columns(row: Mapping[str, Any], planned: EditParameters) -> EditParameters:
    """The reverse of `parameter_columns`: the parameters with which an edit was made. Size and
    guidance interval are those of `planned`, because no retry changes them.

    Raises KeyError if a column is missing, fpe_core.ParameterError if a value is not valid.
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


def judged_columns(outcome: EditOutcome) -> dict[str, Any]:
    """The metadata columns of the judge; null if there was none.

    `tries` is the number of attempts; the parameter columns are those of the attempt that is kept.
    """
    return {
        _EDIT_TYPE.name: outcome.key.edit_type or None,
        "verdict": outcome.outcome,
        "reject_reason": outcome.reason or None,
        "tries": max(1, len(outcome.tries)) if outcome.edited_file_name else None,
        **vars(outcome.scores),
        _GATE_FIELD.name: outcome.autoencoder_psnr_db,
    }


def carried_columns(table: pa.Table) -> pa.Table | None:
    """The carried columns of a block of work rows as a separate table; None if there are none."""
    if "carried" not in table.column_names:
        return None
    column = table["carried"]
    return pa.table(column.flatten(), schema=pa.schema(list(column.type)))
