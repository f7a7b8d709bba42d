"""The actors and tasks that Ray runs: thin wrappers around plain functions and classes.

The driver and the workers that decode import this module too, and need no torch. So the models'
code is imported only when an editing worker starts.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import ray

from fpe_core import FPEError
from pipeline.cluster.actor_kinds import ActorKind
from pipeline.edit.model_sharing import ModelLock, ModelThread, use_one_openmp_thread
from pipeline.edit.settings import WORKER_FIELD, EditSettings
from pipeline.errors import UserError
from pipeline.ledger.outcome import OUTCOME_SCHEMA, EditKey, FailureCode, outcomes_table
from pipeline.read.decode import DecodeSettings, decode
from pipeline.storage.requests import request_counts
from pipeline.supervision.client import SupervisorClient
from pipeline.supervision.supervisor import StageFigures, merged

if TYPE_CHECKING:
    from pipeline.edit.actor import EditActor

_ERROR_FIELD = pa.field("error", pa.string(), nullable=False)
_EMPTY = pa.schema([*OUTCOME_SCHEMA, WORKER_FIELD, _ERROR_FIELD]).empty_table()

_log = logging.getLogger(__name__)


class RayEditActor:
    """`EditActor` in a Ray worker. Never raises: Ray would retry, or silently drop the block.

    Errors are returned in the column `error`; the driver raises them.
    """

    def __init__(
        self, settings: EditSettings, supervisor: SupervisorClient, kinds: Sequence[ActorKind] = ()
    ) -> None:
        """`kinds`: the kinds of actors of the run."""
        self._supervisor = supervisor
        self._error = ""
        self._actor: EditActor | None = None
        self._lock = ModelLock()
        self._requests = _Requests("write")
        try:
            self._load(_settings_here(settings, kinds))
        except Exception as error:  # noqa: BLE001 - reported by the first call
            self._error = f"the model cannot be used: {error}"

    def _load(self, settings: EditSettings) -> None:
        """Loads the model under supervision: Ray restarts an actor that dies here without limit."""
        me = str(ray.get_runtime_context().get_actor_id()).encode()
        began = time.monotonic()

        def figures() -> StageFigures:
            return {"load": {"rows": 1, "seconds": time.monotonic() - began}}

        with self._supervisor.block("load", [me], figures, is_watched=False) as oversight:
            if me in oversight.orders.quarantined:
                self._error = (
                    "two workers died while they loaded the model: is there enough memory for "
                    "resources.actors of them?"
                )
            elif not oversight.orders.is_stopping:
                from pipeline.edit.actor import EditActor

                self._actor = EditActor(settings, ModelThread())

    def __call__(self, packed: pa.Table) -> pa.Table:
        """The outcomes of a block, both packed."""
        if self._error:
            return pack(_report(self._error))
        if self._actor is None:
            return pack(_EMPTY)  # the run was being stopped when this worker started
        return pack(self._edit(self._actor, unpack(packed)))

    def is_ready(self) -> bool:
        """True, as soon as the constructor is done."""
        return True

    def edit_block(self, packed: pa.Table) -> pa.Table:
        """A call of this object, with a name, as Ray wants it for a call from another actor."""
        return self(packed)

    def _edit(self, actor: EditActor, table: pa.Table) -> pa.Table:
        from fpe_core.device import DEVICE_FAILED

        costs: list[StageFigures] = []

        def figures() -> StageFigures:
            return merged(*costs, self._requests.take_figures())

        groups = _groups_of(table)
        use_one_openmp_thread()
        try:
            block = actor.prepare(table)
            with (
                self._lock.acquire(exclusive=self._supervisor.is_suspect("edit", groups)) as hold,
                self._supervisor.block("edit", groups, figures) as oversight,
            ):
                edited = actor.edit(block, oversight, hold.release_model)
                costs.append(edited.figures)
        except DEVICE_FAILED:
            # Every later call in this process would fail too. Ray starts a new process and retries.
            _log.exception("the device failed; this worker ends itself")
            os._exit(70)
        except (FPEError, UserError) as error:
            return _report(str(error))
        except Exception:  # noqa: BLE001 - errors of rows are caught further down; this is a bug
            return _report(f"an editing worker failed:\n{traceback.format_exc()}")
        no_error = pa.array([""] * len(edited.outcomes), pa.string())
        return edited.outcomes.append_column(_ERROR_FIELD, no_error)


def _settings_here(settings: EditSettings, kinds: Sequence[ActorKind]) -> EditSettings:
    """The settings of this actor's kind, found by the resources that Ray assigned to it."""
    if len(kinds) < 2:
        return settings  # they are made for the first kind
    given = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    (kind,) = (kind for kind in kinds if kind.matches(given))
    return replace(
        settings,
        device=settings.device if kind.gpus_per_actor else "cpu",
        memory_share=kind.memory_share,
        threads=kind.threads_per_actor,
    )


class _Requests:
    """Counts this process's requests to stores, as figures of one stage, from one call of
    `take_figures` to the next."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._before = request_counts()
        self._counting = threading.Lock()

    def take_figures(self) -> StageFigures:
        with self._counting:
            now, before = request_counts(), self._before
            self._before = now
        return {self._stage: asdict(now - before)}


def _decode_block(
    packed: pa.Table, settings: DecodeSettings, supervisor: SupervisorClient
) -> pa.Table:
    table, requests, began = unpack(packed), _Requests("decode"), time.monotonic()

    def figures() -> StageFigures:
        own = {"rows": table.num_rows, "seconds": time.monotonic() - began}
        return merged({"decode": own}, requests.take_figures())

    with supervisor.block("decode", _groups_of(table), figures) as oversight:
        return pack(decode(table, settings, oversight))


def pack(table: pa.Table) -> pa.Table:
    """Packs a block into a single row, because Ray Data splits and merges blocks by their size, but
    never rows."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.table({"block": pa.array([sink.getvalue().to_pybytes()], pa.large_binary())})


def unpack(packed: pa.Table) -> pa.Table:
    (block,) = packed["block"]
    return pa.ipc.open_stream(block.as_buffer()).read_all()


def _groups_of(table: pa.Table) -> list[bytes]:
    return list(table["group_id"].to_pylist())


def _report(error: str) -> pa.Table:
    """A block of one dummy row that carries an error to the driver."""
    schema = pa.schema([*OUTCOME_SCHEMA, WORKER_FIELD, _ERROR_FIELD])
    no_edit = EditKey(
        edit_id=bytes(16), group_id=bytes(16), source_id=bytes(16), row=-1, target_prompt=""
    )
    (row,) = outcomes_table([no_edit.failed(FailureCode.WORKER_DIED, error)]).to_pylist()
    return pa.Table.from_pylist([row | {"worker": "", "error": error}], schema=schema)
