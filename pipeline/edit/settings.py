"""The settings of an editing worker, and the column that names the worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from fpe_core.checkpoint.add_ons import AddOns
from fpe_core.text_settings import AS_IT_IS, TextSettings
from pipeline.judge.judge import JudgeSettings
from pipeline.ledger.lease import Lease
from pipeline.manifest.annotations import AnnotationSettings
from pipeline.storage.model_store import ModelStore
from pipeline.write.image_format import ImageFormat
from pipeline.write.metadata import MetadataLayout

WORKER_FIELD = pa.field("worker", pa.string(), nullable=False)
"""The process that made the edit, host:pid. The driver counts workers by it; the ledger has no such
column."""


@dataclass(frozen=True)
class EditSettings:
    """The settings of an editing worker. Small and picklable.

    Attributes:
        add_ons: LoRAs, embeddings and an autoencoder, as the job names them.
        text_settings: how the text encoders are used.
        encoders: processes that encode images; 0: threads of this one do.
        makes_edits: False for `editor: none`.
        store: where models are found that lie in an object store.
        inversions: the folder in which inversions are kept; None: they are not.
    """

    output: str
    checkpoint: str
    checkpoint_fingerprint: str
    storage_options: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    dtype: str = "auto"
    allow_pickle: bool = False
    revision: str | None = None
    config: str | None = None
    add_ons: AddOns = field(default_factory=AddOns)
    text_settings: TextSettings = AS_IT_IS
    max_rows: int | None = None
    memory_share: float = 1.0
    threads: int | None = None
    image_format: ImageFormat = field(default_factory=ImageFormat)
    layout: MetadataLayout = field(default_factory=MetadataLayout)
    write_threads: int = 8
    encoders: int = 0
    lease: Lease | None = None
    judge: JudgeSettings | None = None
    annotations: AnnotationSettings | None = None
    makes_edits: bool = True
    store: ModelStore = field(default_factory=ModelStore)
    inversions: str | None = None
