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
from pipeline.cluster.session import node_of
from pipeline.edit.model_sharing import ModelLock, ModelThread, use_one_openmp_thread
from pipeline.edit.settings import WORKER_FIELD, EditSettings
from pipeline.errors import SupervisorLostError, UserError
from pipeline.ledger.outcome import OUTCOME_SCHEMA, EditKey, FailureCode, outcomes_table
from pipeline.read.decode import DecodeSettings, decode
from pipeline.storage.requests import request_counts
from pipeline.supervision.client import SupervisorClient
from pipeline.supervision.supervisor import StageFigures, merged

if TYPE_CHECKING:
    from pipeline.edit.actor import EditActor

_ERROR_FIELD = pa.field("error", pa.string(), nullable=False)
_EMPTY = pa.schema([*OUTCOME_SCHEMA, WORKER_FIELD, _ERROR_FIELD]).empty_table()

_LOST_KEY = b"supervisor_lost"
"""In the metadata of a block's schema: it was not decoded, because of this error."""
_STAND_BY_POLL_S = 2.0

_log = logging.getLogger(__name__)


class WorkerLeftOutError(Exception):
    """Ends an actor for good whose model or device cannot be used."""


class RayEditActor:
    """`EditActor` in a Ray worker. Never raises: Ray would retry, or silently drop the block.

    Errors are returned in the column `error`; the driver raises them.
    """

    def __init__(
        self, settings: EditSettings, supervisor: SupervisorClient, kinds: Sequence[ActorKind] = ()
    ) -> None:
        """`kinds`: the kinds of actors of the run.

        Returns when this worker can take blocks. If it is left out, the constructor waits until the
        pass ends, so that nothing else is started in its place, and Ray gives it no block. If
        another process of this actor died with blocks in hand, Ray keeps those for it; so the
        constructor raises WorkerLeftOutError, which ends the actor, and the blocks are lost to the
        next pass.
        """
        self._supervisor = supervisor
        self._error = ""
        self._actor: EditActor | None = None
        self._lock = ModelLock()
        self._requests = _Requests("write")
        try:
            why = self._load(settings, kinds)
        except SupervisorLostError as error:
            self._error = str(error)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, other workers may be able to
            why = f"the model cannot be used: {error}"
        if why:
            self._error = self._stand_aside(why)

    def _load(self, settings: EditSettings, kinds: Sequence[ActorKind]) -> str:
        """Loads the model under supervision: Ray restarts an actor that dies here without limit.

        Returns why this worker has to be left out; "" if it has a model, or the run is stopping.
        """
        me, began = _actor_id(), time.monotonic()

        def figures() -> StageFigures:
            return {"load": {"rows": 1, "seconds": time.monotonic() - began}}

        with self._supervisor.block("load", [me], figures, is_watched=False) as oversight:
            if oversight.orders.left_out or oversight.orders.is_stopping:
                return oversight.orders.left_out
            from pipeline.edit.actor import EditActor

            self._actor = EditActor(_settings_here(settings, kinds), ModelThread())
        return ""

    def _stand_aside(self, why: str) -> str:
        """Leaves this worker out. Returns the error with which the run has to stop, if any."""
        me = _actor_id()
        try:
            is_awaited = self._supervisor.leave_out(me, why)
            while (answer := self._supervisor.stand_by(me)) is None:
                if is_awaited:
                    raise WorkerLeftOutError(why)
                time.sleep(_STAND_BY_POLL_S)
        except SupervisorLostError as error:
            return str(error)
        return answer

    def __call__(self, packed: pa.Table) -> pa.Table:
        """The outcomes of a block, both packed."""
        if self._error:
            return pack(_report(self._error))
        if self._actor is None:
            return pack(_EMPTY)  # the run was being stopped when this worker started
        block = unpack(packed)
        lost = (block.schema.metadata or {}).get(_LOST_KEY)
        if lost is not None:
            return pack(_report(lost.decode()))
        return pack(self._edit(self._actor, block))

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
                if oversight.orders.is_handed_on:
                    return _EMPTY
                edited = actor.edit(block, oversight, hold.release_model)
                costs.append(edited.figures)
        except DEVICE_FAILED as error:
            return self._end_with_device(error)
        except (FPEError, UserError) as error:
            return _report(str(error))
        except Exception:  # noqa: BLE001 - errors of rows are caught further down; this is a bug
            return _report(f"an editing worker failed:\n{traceback.format_exc()}")
        no_error = pa.array([""] * len(edited.outcomes), pa.string())
        return edited.outcomes.append_column(_ERROR_FIELD, no_error)

    def _end_with_device(self, error: Exception) -> pa.Table:
        """Ends this process, because every later call in it would fail too. Ray starts another."""
        _log.error("the device failed; this worker ends itself", exc_info=error)
        try:
            self._supervisor.device_failed(_in_one_line(error))
        except SupervisorLostError as lost:
            return _report(str(lost))
        os._exit(70)


def _settings_here(settings: EditSettings, kinds: Sequence[ActorKind]) -> EditSettings:
    """The settings of this actor's kind on this machine.

    The kind is found by the resources that Ray assigned to the actor.
    """
    if not kinds:
        return settings
    here, kind, device = ray.get_runtime_context(), kinds[0], settings.device
    if len(kinds) > 1:
        given = here.get_assigned_resources()  # type: ignore[no-untyped-call]
        (kind,) = (kind for kind in kinds if kind.matches(given))
        device = device if kind.gpus_per_actor else "cpu"
    kind = kind.on_node(node_of(here.get_node_id()))
    return replace(
        settings,
        device=device,
        memory_share=kind.memory_share,
        threads=kind.threads_per_actor,
        encoders=kind.encoders_per_actor,
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

    try:
        with supervisor.block("decode", _groups_of(table), figures) as oversight:
            return pack(decode(table, settings, oversight))
    except SupervisorLostError as error:  # an editing worker passes it on to the driver
        return pack(table.slice(0, 0).replace_schema_metadata({_LOST_KEY: str(error).encode()}))


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


def _actor_id() -> bytes:
    return str(ray.get_runtime_context().get_actor_id()).encode()


def _in_one_line(error: Exception) -> str:
    """Its first line: below it CUDA prints advice for those who debug kernels."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
