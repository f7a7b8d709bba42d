"""The metadata of a block: one row per edit with files, in one table for accepted edits and one
for rejected ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from pipeline.edit.attempt import MadeEdit, UnmadeEdit
from pipeline.edit.no_editor import NOT_EDITED
from pipeline.judge.regions import annotation_columns
from pipeline.ledger.outcome import EditOutcome, Outcome
from pipeline.manifest.arrow_types import is_list
from pipeline.write.metadata import fit_columns, judged_columns, parameter_columns

if TYPE_CHECKING:
    from pipeline.edit.settings import EditSettings
    from pipeline.write.part import PartWriter


@dataclass(frozen=True)
class FileNames:
    """The files of an edit, as its metadata names them; "" and () for files it does not have."""

    edited: str
    source: str
    masks: tuple[str, ...]

    @classmethod
    def of(cls, made: MadeEdit | UnmadeEdit) -> Self:
        """Waits until the files are written. Raises the error that writing one of them raised."""
        return cls(
            edited=made.edited_file.result() if made.edited_file else "",
            source=made.source_file.result() if made.source_file else "",
            masks=tuple(file.result() for file in made.mask_files),
        )

    @property
    def has_any(self) -> bool:
        return bool(self.edited or self.source)


class MetadataRows:
    """Collects the metadata rows of a block."""

    def __init__(self, settings: EditSettings) -> None:
        self._settings = settings
        self._rows: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        self._places: dict[bool, list[int]] = {False: [], True: []}
        self._stems: dict[int, str] = {}

    @property
    def is_empty(self) -> bool:
        return not any(self._rows.values())

    def add(self, made: MadeEdit | UnmadeEdit, outcome: EditOutcome, names: FileNames) -> None:
        is_rejected = outcome.outcome == Outcome.REJECTED
        self._rows[is_rejected].append(self._row(made, outcome, names))
        self._places[is_rejected].append(made.group.place)
        self._stems[made.group.place] = made.group.stem

    def table(self, carried: pa.Table | None, writer: PartWriter, *, is_rejected: bool) -> pa.Table:
        """The rows in the run's schema; `carried` are the carried columns of the block's groups.

        Writes the images among them. Raises StorageError.
        """
        layout, places = self._settings.layout, self._places[is_rejected]
        if carried is None:
            return layout.table(self._rows[is_rejected], None)
        files: dict[str, list[Any]] = {}
        for name in sorted(layout.image_columns):
            put = partial(self._image_file, writer=writer, is_rejected=is_rejected)
            of_place: dict[int, Any] = {}
            for place in dict.fromkeys(places):
                cell = carried[name][place].as_py()
                if is_list(carried[name].type):  # null becomes [], since datasets cannot load null
                    of_place[place] = [put(each, place) for each in cell or ()]
                else:
                    of_place[place] = put(cell, place)
            files[name] = [of_place[place] for place in places]
        inherited = carried.take(pa.array(places, pa.int64()))
        return layout.table(self._rows[is_rejected], inherited, files)

    def _image_file(
        self, image: Any, place: int, *, writer: PartWriter, is_rejected: bool
    ) -> str | None:
        """Writes a carried image; returns the name of its file, None for an image without bytes."""
        if image is None:
            return None
        data = image["fpe_data"] if image["bytes"] is None else image["bytes"]
        if data is None:
            return None
        return writer.put_carried(self._stems[place], data, is_rejected=is_rejected).result()

    def _row(
        self, made: MadeEdit | UnmadeEdit, outcome: EditOutcome, names: FileNames
    ) -> dict[str, Any]:
        group, key = made.group, made.edit.key
        return {
            "edited_file_name": names.edited or None,
            "source_file_name": names.source or None,
            "edit_id": key.edit_id.hex(),
            "source_id": key.source_id.hex(),
            "group_id": key.group_id.hex(),
            "id": group.id or None,
            "split": group.split or None,
            "source_prompt": group.source_prompt,
            "target_prompt": key.target_prompt,
            **dict(zip(self._settings.layout.labels, made.edit.labels, strict=True)),
            "seed": group.seed,
            **self._model_columns(made),
            **fit_columns(group.fit),
            **judged_columns(outcome),
            **self._annotation_columns(made, names.masks),
        }

    def _model_columns(self, made: MadeEdit | UnmadeEdit) -> dict[str, Any]:
        """The parameters and checkpoint of an edit; with `editor: none`, a note that it is a
        copy."""
        settings = self._settings
        if not settings.makes_edits:
            return {"editor": NOT_EDITED}
        return {
            **parameter_columns(made.parameters),
            "checkpoint": settings.checkpoint,
            "checkpoint_fingerprint": settings.checkpoint_fingerprint,
        }

    def _annotation_columns(
        self, made: MadeEdit | UnmadeEdit, masks: tuple[str, ...]
    ) -> dict[str, Any]:
        settings = self._settings.annotations
        if settings is None or made.annotated is None:
            return {}
        return annotation_columns(settings, made.group, made.annotated, masks)
