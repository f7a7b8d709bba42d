"""A job with every default filled in from its checkpoint, and its groups of edits with ids."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from fpe_core import (
    CheckpointError,
    EditParameters,
    ParameterError,
)
from fpe_core.checkpoint.check import check_files, check_parameters, check_steps
from fpe_core.checkpoint.files import (
    CheckpointFiles,
    default_parameters_of,
    fingerprint_of,
    locate,
)
from pipeline.errors import JobError, StorageError
from pipeline.job.annotations import AnnotationsSection
from pipeline.job.editor import NO_EDITOR, method_of
from pipeline.job.job import Job
from pipeline.manifest.annotations import AnnotationSettings, BoxColumn, MaskColumn
from pipeline.manifest.arrow_types import is_json
from pipeline.manifest.columns import EDIT_TYPE
from pipeline.manifest.edit_inputs import CARRIED_INPUTS, InputColumns, input_columns
from pipeline.manifest.embedded import Embedded, embedded_in
from pipeline.manifest.features import class_names, features_of, metadata_of
from pipeline.manifest.files import Manifest, ManifestBatch
from pipeline.manifest.find import is_pattern, matches, split_pattern
from pipeline.manifest.labels import TARGET_LABELS, common_classes, label_type, type_of_texts
from pipeline.manifest.prompts import SOURCE_PREFIX, PromptPlan
from pipeline.manifest.rows import (
    Problems,
    RowReader,
    SourceRow,
    WantedEdit,
    template_columns,
)
from pipeline.plan.add_ons import with_add_ons
from pipeline.plan.ids import (
    EditContext,
    Occurrences,
    SourceKey,
    base_id,
    edit_id,
    group_id,
    source_id,
    source_key_of_bytes,
    source_key_of_prompt,
    source_key_of_uri,
)
from pipeline.storage.folder import Folder, absolute_url

_log = logging.getLogger(__name__)
SCHEMA_FILE = ".metadata-schema"
"""The schema of the run folder's metadata files: a later job with other columns is refused."""
_ID = "0123456789abcdef"
_FILES_OF_RUNS = (
    f"part-{_ID}/metadata.parquet",
    f"rejected/part-{_ID}/metadata.parquet",
    f"part-{_ID}/edited/source__{_ID}{_ID}.webp",
    "config.yaml",
    "README.md",
    "stats.json",
)
"""What a run writes; hidden files, such as the ledger's, are never in a manifest."""


@dataclass(frozen=True)
class PlannedGroup:
    """A row of the manifest with its ids: one source and its edits.

    `base`: the hash of all that its ids depend on, except target prompts (`plan.ids`).
    """

    source: SourceRow
    base: bytes
    group_id: bytes
    source_id: bytes
    edits: tuple[tuple[bytes, WantedEdit], ...]


@dataclass(frozen=True)
class Repeats:
    """What occurs more than once in a manifest; `survey` finds it before ids are made.

    Attributes:
        row_ids: digests (`manifest.rows.row_id_digest`) of repeated row ids, which are refused.
        bases: base ids of rows without an id that are equal in everything but target prompts.
    """

    row_ids: frozenset[bytes] = frozenset()
    bases: frozenset[bytes] = frozenset()


@dataclass(frozen=True)
class ResolvedJob:
    """A job with every default filled in from its checkpoint, and the manifest's columns checked.

    `recommended`: the checkpoint's default parameters; `parameters`: the job's on top of them.
    Streams the groups of the manifest.
    """

    job: Job
    manifest: Manifest
    recommended: EditParameters
    parameters: EditParameters
    context: EditContext
    prompts: PromptPlan | None
    annotations: AnnotationSettings | None = None
    inputs: InputColumns = field(default_factory=InputColumns)

    @property
    def has_masks(self) -> bool:
        return self.annotations is not None and self.annotations.masks is not None

    @property
    def label_names(self) -> tuple[str, ...]:
        return _label_names(self.prompts, self.manifest)

    @property
    def label_types(self) -> dict[str, pa.DataType]:
        """The types of labels that are not text."""
        schema = self.manifest.carried_schema
        own = {name: schema.field(name).type for name in self.label_names if name in schema.names}
        if self.prompts is None:
            types = {
                item.name: label_type(own.get(item.name), item.type)
                for item in self.manifest.labels
            }
        else:
            features = features_of(schema)
            types = {
                name: type_of_texts(
                    kind, self.prompts.values_of(name), class_names(features.get(name))
                )
                for name, kind in own.items()
            }
        return {name: kind for name, kind in types.items() if not pa.types.is_string(kind)}

    @property
    def label_classes(self) -> dict[str, tuple[str, ...]]:
        """The names of labels that are class labels, and written as their numbers.

        Raises ManifestError if the files of the manifest have different ones.
        """
        features = features_of(self.manifest.carried_schema)
        found = {name: class_names(features.get(name)) for name in self.label_names}
        if self.prompts is None:
            found |= common_classes([file.schema for file in self.manifest.files])
        return {name: found[name] for name in self.label_types if found.get(name)}

    @property
    def has_edit_types(self) -> bool:
        """Whether the manifest has a type for each edit of a row."""
        return EDIT_TYPE in self.manifest.read_too

    @property
    def carried_schema(self) -> pa.Schema:
        """The columns that edits inherit. One with a label's name is renamed to source_<name>."""
        labels = self.label_names
        own = self.manifest.carried_schema
        names = {name: SOURCE_PREFIX + name if name in labels else name for name in own.names}
        fields = [field.with_name(names[field.name]) for field in own]
        features = {names[name]: each for name, each in features_of(own).items()}
        return pa.schema(fields, metadata_of(features))

    def embedded(self) -> Embedded | None:
        """Where the images are that lie in the manifest; None if there are none.

        Raises StorageError.
        """
        masks = None if self.annotations is None else self.annotations.masks
        return embedded_in(self.manifest, masks, self.inputs.mask)

    def rows(
        self, problems: Problems, repeats: Repeats | None = None
    ) -> Iterator[tuple[ManifestBatch, list[SourceRow]]]:
        """For each batch of the manifest, its checked rows, with or without edits.

        `repeats`: what occurs more than once, if that is known; without it every id is kept.
        """
        wanted = self.annotations or AnnotationSettings()
        reader = RowReader(
            self.manifest,
            self.parameters,
            self.prompts,
            wanted.boxes,
            wanted.masks,
            inputs=self.inputs,
            repeated_ids=None if repeats is None else repeats.row_ids,
        )
        for batch in self.manifest.batches():
            yield batch, list(reader.read(batch, problems))
        reader.finish(self.manifest.files, problems)

    def groups(
        self,
        problems: Problems,
        repeats: Repeats | None = None,
        watch: Callable[[Sequence[SourceRow]], None] = lambda _: None,
    ) -> Iterator[tuple[list[PlannedGroup], pa.Table]]:
        """For each batch of rows, its groups and the carried columns of exactly these groups.

        Rows with a problem, and those of which no edit would change anything, are left out.
        `repeats`: as in `rows`. `watch` is called with the checked rows of each batch.
        """
        bases = None if repeats is None else repeats.bases
        group_counter, edit_counter = Occurrences(bases), Occurrences()
        names = self.carried_schema.names
        for batch, rows in self.rows(problems, repeats):
            watch(rows)
            groups = [
                self._planned(row, group_counter, edit_counter, bases) for row in rows if row.edits
            ]
            indices = [group.source.row - batch.first_row for group in groups]
            carried = batch.carried.take(pa.array(indices, pa.int64()))
            yield groups, carried.rename_columns(names)

    def edit_ids(self, repeats: Repeats | None = None) -> Iterator[bytes]:
        """The ids of all edits of the job, in order. Raises ManifestError.

        `repeats`: as in `rows`.
        """
        problems = Problems()
        for groups, _ in self.groups(problems, repeats):
            for group in groups:
                yield from (identity for identity, _ in group.edits)
        problems.raise_if_any()

    def base_of(self, row: SourceRow, key: SourceKey) -> bytes:
        return base_id(
            key,
            source_prompt=row.source_prompt,
            parameters=row.parameters,
            seed=row.seed,
            context=self.context,
            edit_mask=None if row.edit_mask is None else row.edit_mask.key,
        )

    def _planned(
        self,
        row: SourceRow,
        group_counter: Occurrences,
        edit_counter: Occurrences,
        repeated: Container[bytes] | None,
    ) -> PlannedGroup:
        key = source_key(row)
        base = self.base_of(row, key)
        # The prompts of a row differ, so an edit can only be repeated if its base is.
        is_counted = repeated is None or base in repeated
        edits = []
        for edit in row.edits:
            own = (edit.blend_words, edit.region_prompts)
            identity = edit_id(base, edit.target_prompt, 0, *own)
            if is_counted and (repetition := edit_counter.next(identity)):
                identity = edit_id(base, edit.target_prompt, repetition, *own)
            edits.append((identity, edit))
        return PlannedGroup(
            source=row,
            base=base,
            group_id=group_id(base, group_counter.next(base)),
            source_id=source_id(key, base),
            edits=tuple(edits),
        )


def resolve_job(job: Job) -> ResolvedJob:
    """Opens the job's manifest and reads its checkpoint's defaults, without loading the model.

    Raises JobError and ManifestError.
    """
    prompts = None if job.prompts is None else job.prompts.to_plan()
    carry = () if prompts is None else ("target_prompt", TARGET_LABELS)
    if prompts is not None and prompts.source is not None:
        carry = (*carry, "source_prompt")
    masks = None if job.annotations is None else job.annotations.masks
    method = method_of(job.editor)
    binding = None if job.edit.inside is None else job.edit.inside.binding
    of_editor = input_columns(method, binding)
    manifest = Manifest.open(
        job.manifest,
        job.storage_options,
        carry=(*carry, *(name for name in of_editor if name in CARRIED_INPUTS)),
        read_too=tuple(dict.fromkeys((*(() if masks is None else (masks.column,)), *of_editor))),
        needs_target_prompt=prompts is None,
        prompts="target" if method is None else method.prompts,
    )
    _refuse_lists_of_types(job, manifest)
    annotations = _annotations(job.annotations, manifest, prompts)
    inputs = InputColumns.find(manifest, method, binding)
    fingerprint, defaults, files = _checkpoint_of(job)
    try:
        parameters = job.resolve_parameters(defaults)
        if files is not None:
            check_steps(files, job.model.config, parameters.steps)
            check_parameters(files, job.model.config, parameters, job.model.text_settings)
    except ParameterError as error:
        raise JobError(f"edit: {error}") from error
    _refuse_output_in_manifest(job, manifest)
    manifest = _as_begun(job, manifest, prompts)
    context = EditContext(fingerprint=fingerprint, fit=job.images.fit)
    return ResolvedJob(job, manifest, defaults, parameters, context, prompts, annotations, inputs)


def _label_names(prompts: PromptPlan | None, manifest: Manifest) -> tuple[str, ...]:
    if prompts is not None:
        return prompts.label_names
    return tuple(item.name for item in manifest.labels)


def _checkpoint_of(job: Job) -> tuple[str, EditParameters, CheckpointFiles | None]:
    """Fingerprint, default parameters and files of the job's checkpoint.

    With `editor: none` no checkpoint is read, and ids differ from those of every checkpoint.

    Raises:
        JobError: it is not a checkpoint, or cannot be edited with.
        StorageError: the store that it is in, or the disk for its copy, fails.
    """
    if job.editor == NO_EDITOR:
        return NO_EDITOR, EditParameters(), None
    model = job.model
    try:
        store = job.model_store
        checkpoint = store.checkpoint(model.checkpoint, allow_pickle=model.allow_pickle)
        config = store.config(model.config)
        files = locate(checkpoint, model.allow_pickle, model.revision)
        given = () if model.vae is None else ("vae",)
        check_files(model.checkpoint, files, model.allow_pickle, config, given)
        fingerprint = fingerprint_of(files, model.allow_pickle, config)
        fingerprint = with_add_ons(fingerprint, job, files, config)
        fingerprint = model.text_settings.of_fingerprint(fingerprint)
        defaults = default_parameters_of(files, config)
    except CheckpointError as error:
        copied = "" if model.checkpoint in str(error) else f" ({model.checkpoint})"
        raise JobError(f"model.checkpoint: {error}{copied}") from error
    except StorageError as error:
        raise StorageError(f"model.checkpoint: {error}") from error
    return fingerprint, defaults, files


def _annotations(
    section: AnnotationsSection | None, manifest: Manifest, prompts: PromptPlan | None
) -> AnnotationSettings | None:
    """Raises JobError if a column does not exist, or has the wrong type."""
    if section is None:
        return None
    boxes, masks = section.boxes, section.masks
    settings = AnnotationSettings(
        boxes=None
        if boxes is None
        else BoxColumn.find(manifest.carried_schema, boxes.column, boxes.format),
        masks=None if masks is None else MaskColumn.find(manifest, masks.column),
        **({} if boxes is None else {"box_rule": boxes.to_rule()}),
        **({} if masks is None else {"mask_rule": masks.to_rule()}),
    )
    used = set() if settings.boxes is None else {settings.boxes.path[0]}
    used |= set() if masks is None else {masks.column}
    for name in used & set(_label_names(prompts, manifest)):
        where = TARGET_LABELS if prompts is None else "prompts.labels"
        raise JobError(f"{where}.{name}: this column holds boxes or masks; rename the label")
    names = [item.name for item in settings.fields]
    for name in names:
        if names.count(name) > 1:
            raise JobError(f"annotations: two output columns would be called {name}; rename boxes")
    return settings


def _refuse_lists_of_types(job: Job, manifest: Manifest) -> None:
    """Raises JobError if the manifest's edit types belong to its own prompts, not to the job's."""
    if job.prompts is None or job.judge is None or job.judge.edit_type is not None:
        return
    kinds = [f.schema.field(EDIT_TYPE).type for f in manifest.files if EDIT_TYPE in f.schema.names]
    if any(pa.types.is_nested(kind) or is_json(kind) for kind in kinds):
        raise JobError(
            f"judge.edit_type: the manifest's column {EDIT_TYPE} has a type for each of its own "
            "target prompts, and this job has prompts: say here what type of edits they ask for"
        )


def _refuse_output_in_manifest(job: Job, manifest: Manifest) -> None:
    """Raises JobError if files of the run are in the manifest: the next run would read them as
    rows. Files that are not there yet are looked for by names that a run gives."""
    place = partial(_place, options=job.storage_options)
    output = place(job.output)
    for url in job.manifest_urls:
        absolute = absolute_url(url).rstrip("/")
        if output.startswith(place(absolute)):
            raise JobError(
                f"output: {job.output} lies in the manifest folder {url}; give it a place outside, "
                "or name the manifest's files"
            )
        if not is_pattern(absolute):
            continue
        above, pattern = split_pattern(absolute)
        inside = output.removeprefix(place(above))
        if inside != output and any(matches(pattern, inside + name) for name in _FILES_OF_RUNS):
            raise JobError(
                f"output: {job.output} lies where the manifest {url} finds files, so that the next "
                "run would read this run's own files as rows; give it a place outside"
            )
    for file in manifest.files:
        inside = place(file.url).rstrip("/").removeprefix(output)
        if re.fullmatch(r"(rejected/)?part-[^/]+/[^/]+|\.(ledger|outcomes|plan)/.+", inside):
            raise JobError(
                f"output: {job.output} holds {inside}, a file of its run, which the manifest "
                "names as well; give the job another output"
            )


def _as_begun(job: Job, manifest: Manifest, prompts: PromptPlan | None) -> Manifest:
    """The manifest without partition columns that a run folder of an earlier release lacks.

    Those did not read the names of folders, and a run folder has one set of columns. Columns that
    this job needs stay.
    """
    carried = set(manifest.carried_schema.names) & manifest.partition_columns
    folder = Folder.open(job.output, job.storage_options)
    if not carried or not folder.exists(SCHEMA_FILE):
        return manifest
    there = pa.ipc.read_schema(pa.py_buffer(folder.read(SCHEMA_FILE))).names
    needed = set(_label_names(prompts, manifest))
    needed |= set() if prompts is None else template_columns(manifest, prompts)
    needed |= set() if job.quotas is None else set(job.quotas.by)
    lacking = {
        name
        for name in carried - needed
        if not {name, f"{SOURCE_PREFIX}{name}", f"manifest_{name}"} & set(there)
    }
    if lacking:
        _log.warning(
            "%s was begun without the columns %s, which are in the names of the manifest's folders:"
            " they are left out here too; a job with another output has them",
            job.output,
            ", ".join(sorted(lacking)),
        )
    return manifest.without(lacking)


def _place(url: str, options: Mapping[str, Any]) -> str:
    """A folder's store and path, equal for all spellings of its URL, with a slash at the end."""
    folder = Folder.open(url, options)
    path = os.path.realpath(folder.root) if "://" not in folder.url else folder.root
    return f"{type(folder.fs).__name__}:{path}".rstrip("/") + "/"


def source_key(row: SourceRow) -> SourceKey:
    """What identifies the source of a row in ids."""
    if row.image_bytes is not None:
        return source_key_of_bytes(row.id, row.image_bytes)
    if row.uri:
        return source_key_of_uri(row.id, row.uri_key)
    assert row.seed is not None  # manifest_row lets no other row pass
    return source_key_of_prompt(row.id, row.source_prompt, row.seed)
