"""The columns of a run's metadata files, and their values for an edit.

`part` describes which file goes where, and when.
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
"""The metadata columns that say how an edit was made, in every run."""
_GUIDANCE_INTERVAL = pa.field("guidance_interval", pa.list_(pa.float64()))
_GATE_FIELD = pa.field(GATE_COLUMN, pa.float64())
_IMAGE_ENDINGS = ("file_name", "file_names")
"""`datasets` opens a column x_file_name as images and calls it x."""


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
    typed: bool = False
    """Whether the manifest says of each edit what type it is of; a judged run has that column."""
    label_types: Mapping[str, pa.DataType] = field(default_factory=dict)
    """Of labels that are not text."""
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
        """Metadata rows in `schema`: ours and the labels from `rows`, then the carried columns.

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
        """Labels that cannot be columns: ours, or `datasets`' meaning, has the name."""
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
        """What `datasets` calls the columns that it opens as images."""
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
    which no retry changes, are the planned ones.

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


def judged_columns(outcome: EditOutcome) -> dict[str, Any]:
    """The metadata columns of the judge; null where there was none.

    `tries` is how many attempts it took; the parameter columns are those of the kept one.
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
    """The carried columns of a block of work rows as a table of their own; None for none."""
    if "carried" not in table.column_names:
        return None
    column = table["carried"]
    return pa.table(column.flatten(), schema=pa.schema(list(column.type)))
