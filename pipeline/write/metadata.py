"""The columns of a run's metadata files, and their values for an edit.

`part` describes where the files are written, and in which order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from fpe_core import EditParameters, method_from_dict
from fpe_core.image.fit import Fit
from fpe_core.layer_rules import layer_rule_from_text
from pipeline.ledger.outcome import GATE_COLUMN, SCORE_COLUMNS, EditOutcome
from pipeline.manifest.arrow_types import can_be_written_as, converted, is_list
from pipeline.manifest.carried import WAS_UUID
from pipeline.manifest.features import (
    Feature,
    class_label,
    features_of,
    holds_images,
    metadata_of,
)
from pipeline.write.carried import (
    IMAGE_ENDINGS,
    image_fields,
    image_paths,
    new_name,
    without_files,
    written,
)

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
"""The metadata columns with the parameters of an edit by Free-Prompt-Editing."""
METHOD_COLUMNS = ("steps", "guidance_scale", "negative_prompt", "editor", "editor_parameters")
"""Those of an edit by another method: its name, and its parameters as JSON."""
_GUIDANCE_INTERVAL = pa.field("guidance_interval", pa.list_(pa.float64()))
_GATE_FIELD = pa.field(GATE_COLUMN, pa.float64())


@dataclass(frozen=True)
class MetadataLayout:
    """The columns of a run's metadata files: the pipeline's own, the labels, and the carried ones.

    A carried column with the name of one of the pipeline's own is written as manifest_<name>. So is
    one that `datasets` would open as an image file; it also loses its ending _file_name. `carried`
    has the class labels and images among its columns in its metadata, see `manifest.features`.
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
    label_classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The names of labels that are written as the numbers of classes."""
    writes_images: bool = True
    """Whether images among the carried columns are written as files. False in a run folder of an
    earlier release."""
    recorded: pa.Schema | None = None
    """The schema of the run folder's metadata, if earlier jobs have recorded one."""
    names_editor: bool = False
    """Whether the edits are another method's than Free-Prompt-Editing: METHOD_COLUMNS are there
    instead of PARAMETER_COLUMNS."""
    edited: bool = True
    """False for `editor: none`: then there is a column `editor`, and no columns for parameters and
    checkpoint. A folder with these columns cannot hold edits."""

    @cached_property
    def schema(self) -> pa.Schema:
        """The same for all parts of a run, so that they can be read as one table: columns with only
        nulls keep their type."""
        if self.recorded is not None:
            return self.recorded
        moved: list[pa.Field] = []
        features = {name: class_label(names) for name, names in self.label_classes.items()}
        for item in self.carried or ():
            name = self.carried_names[item.name]
            if item.name in self.image_columns:
                moved += image_fields(name, is_a_list=is_list(item.type))
                continue
            feature = self._features.get(item.name)
            if holds_images(feature):
                moved.append(pa.field(name, without_files(item.type)))
                continue
            kind, feature = written(item.type, feature)
            moved.append(pa.field(name, kind, metadata=item.metadata))
            if feature is not None:
                features[name] = feature
        fields = [*self._our_fields(self.keep_source), *self._label_fields, *moved]
        return pa.schema(fields, metadata_of(features))

    def continuing(self, recorded: pa.Schema) -> MetadataLayout | None:
        """This layout with the schema that a run folder has already; None if columns differ.

        Types may differ in how they store values (`arrow_types.can_be_written_as`).
        """
        own_types = {n: kind for n, kind in self.label_types.items() if n not in self.label_classes}
        of_before = replace(self, label_types=own_types, label_classes={})
        for layout in (self, of_before):
            for each in (layout, replace(layout, writes_images=False)):
                if _fits(each.schema, recorded):
                    return replace(each, recorded=recorded)
        return None

    @cached_property
    def _features(self) -> Mapping[str, Feature]:
        return {} if self.carried is None else features_of(self.carried)

    @cached_property
    def image_columns(self) -> frozenset[str]:
        """The carried columns whose images are written as files."""
        found = (name for name, each in self._features.items() if holds_images(each))
        return frozenset(found if self.writes_images else ())

    @cached_property
    def carried_names(self) -> dict[str, str]:
        """The output column of each carried column; of images what `datasets` calls it."""
        used = {item.name for item in (*self._our_fields(True), *self._label_fields)}
        used |= self._names_of_datasets
        result: dict[str, str] = {}
        for item in self.carried or ():
            chosen = new_name(item.name, used, is_image_name=item.name.endswith(IMAGE_ENDINGS))
            taken = {chosen}
            if item.name in self.image_columns:
                while used & (taken := _names_of_image(chosen, item.type)):
                    chosen = f"manifest_{chosen}"
            result[item.name] = chosen
            used |= taken
        return result

    def table(
        self,
        rows: Sequence[Mapping[str, Any]],
        carried: pa.Table | None,
        image_files: Mapping[str, Sequence[Any]] | None = None,
    ) -> pa.Table:
        """Metadata rows in `schema`: the pipeline's columns and the labels from `rows`, then the
        carried columns.

        `carried` has one row per row, in the same order; its values never become Python objects.
        `image_files`: for each of the `image_columns` the names of the files of each row.
        """
        inherited = {} if carried is None else self._inherited(carried, image_files or {})
        columns = []
        for item in self.schema:
            if item.name in inherited:
                columns.append(converted(inherited[item.name], item.type))
            elif item.name in self.labels and not pa.types.is_string(item.type):
                texts = [row.get(item.name) for row in rows]
                columns.append(self._label_numbers(item, texts))
            else:
                columns.append(pa.array([row.get(item.name) for row in rows], item.type))
        return pa.table(columns, schema=self.schema)

    def _inherited(
        self, carried: pa.Table, image_files: Mapping[str, Sequence[Any]]
    ) -> dict[str, pa.ChunkedArray]:
        """The carried columns by their names in the output."""
        found: dict[str, pa.ChunkedArray] = {}
        for name, output in self.carried_names.items():
            if name not in self.image_columns:
                found[output] = carried[name]
                continue
            files, paths = image_fields(output, is_a_list=is_list(carried[name].type))
            found[files.name] = pa.chunked_array([image_files[name]], files.type)
            cells = image_paths(carried[name].to_pylist())
            found[paths.name] = pa.chunked_array([cells], paths.type)
        return found

    def _label_numbers(self, item: pa.Field, texts: Sequence[str | None]) -> pa.Array:
        """The values of a label of whole numbers: those of its classes, if it has names."""
        places = {name: str(n) for n, name in enumerate(self.label_classes.get(item.name, ()))}
        numbers = [None if text is None else places.get(text, text) for text in texts]
        return pa.array(numbers, pa.string()).cast(item.type)

    def refused_labels(self) -> tuple[str, ...]:
        """Labels that cannot be columns, because the pipeline or `datasets` uses their names."""
        ours = {item.name for item in self._our_fields(True)} | self._names_of_datasets
        return tuple(n for n in self.labels if n in ours or n.endswith(IMAGE_ENDINGS))

    def _our_fields(self, keep_source: bool) -> list[pa.Field]:
        typed = (_EDIT_TYPE,) if self.judged or self.typed else ()
        judged = (*_VERDICT_FIELDS, *_JUDGED_FIELDS) if self.judged else ()
        gated = (_GATE_FIELD,) if self.gated else ()
        made = _made_fields(keep_source) if self.edited else _copied_fields(keep_source)
        if self.edited and self.names_editor:
            made = _with_editor(made)
        limited = (_GUIDANCE_INTERVAL,) if self.limits_guidance and self.edited else ()
        return [*made, *limited, *typed, *judged, *gated, *self.annotations]

    @property
    def _names_of_datasets(self) -> set[str]:
        """The names that `datasets` gives to the columns that it opens as images."""
        return {_opened_as(item.name) for item in self._our_fields(True)} - {""}

    @property
    def _label_fields(self) -> list[pa.Field]:
        return [pa.field(name, self.label_types.get(name, pa.string())) for name in self.labels]


def _names_of_image(column: str, kind: pa.DataType) -> set[str]:
    return {column, *(item.name for item in image_fields(column, is_a_list=is_list(kind)))}


def _fits(schema: pa.Schema, recorded: pa.Schema) -> bool:
    """Whether rows of `schema` can be written with the recorded one."""
    if schema.names != recorded.names:
        return False
    classes, before = features_of(schema), features_of(recorded)
    return all(
        can_be_written_as(item.type, was.type, was_uuid=item.metadata == WAS_UUID)
        and before.get(item.name) in (None, classes.get(item.name))
        for item, was in zip(schema, recorded, strict=True)
    )


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


def _with_editor(fields: Sequence[pa.Field]) -> list[pa.Field]:
    """With METHOD_COLUMNS in the place of PARAMETER_COLUMNS."""
    names = [item.name for item in fields]
    place = names.index("replaced_fraction")
    kept = [item for item in fields if item.name not in ("replaced_fraction", "layers")]
    added = [pa.field(name, pa.string()) for name in ("editor", "editor_parameters")]
    return [*kept[:place], *added, *kept[place:]]


def _copied_fields(keep_source: bool) -> list[pa.Field]:
    """The columns of a run that makes no edits."""
    of_edits = {*PARAMETER_COLUMNS, "checkpoint", "checkpoint_fingerprint"}
    kept = [item for item in _made_fields(keep_source) if item.name not in of_edits]
    return [*kept, pa.field("editor", pa.string())]


def _opened_as(column: str) -> str:
    """The name under which `datasets` opens a column as images; "" if it does not."""
    for ending in IMAGE_ENDINGS:
        if column.endswith(f"_{ending}"):
            return column.removesuffix(f"_{ending}")
    return ""


def parameter_columns(parameters: EditParameters) -> dict[str, Any]:
    """The values of PARAMETER_COLUMNS or METHOD_COLUMNS, and of the guidance interval's column."""
    method: dict[str, Any] = {
        "replaced_fraction": parameters.replaced_fraction,
        "layers": str(parameters.layers),
    }
    if parameters.editor is not None:
        own = parameters.editor.to_dict()
        name = own.pop("name")
        method = {"editor": name, "editor_parameters": json.dumps(own, sort_keys=True)}
    return {
        "steps": parameters.steps,
        "guidance_scale": parameters.guidance_scale,
        "negative_prompt": parameters.negative_prompt,
        **method,
        _GUIDANCE_INTERVAL.name: list(parameters.guidance_interval),
    }


def parameters_of_columns(row: Mapping[str, Any], planned: EditParameters) -> EditParameters:
    """The reverse of `parameter_columns`: the parameters with which an edit was made. Size and
    guidance interval are those of `planned`, because no retry changes them.

    Raises KeyError if a column is missing, fpe_core.ParameterError if a value is not valid.
    """
    shared = replace(
        planned,
        steps=row["steps"],
        guidance_scale=row["guidance_scale"],
        negative_prompt=row["negative_prompt"],
    )
    if planned.editor is not None:
        own = json.loads(row["editor_parameters"])
        return shared.edited_by(method_from_dict({"name": row["editor"], **own}))
    return replace(
        shared,
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
