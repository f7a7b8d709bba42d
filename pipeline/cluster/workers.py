"""The actors and tasks that Ray runs: thin shells around plain functions and classes.

The driver and the workers that read load this module too, and need no torch: only the editing
worker imports the models' code, as it starts.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import ray

from fpe_core import FPEError
from pipeline.cluster.actor_kinds import ActorKind
from pipeline.edit.model_sharing import ModelThread, Turns, loop_alone
from pipeline.edit.settings import WORKER_FIELD, EditSettings
from pipeline.errors import UserError
from pipeline.ledger.outcome import OUTCOME_SCHEMA, EditKey, FailureCode, outcomes_table
from pipeline.read.decode import DecodeSettings, decode
from pipeline.storage.requests import request_counts
from pipeline.supervision.line import Line
from pipeline.supervision.supervisor import StationFigures, merged

if TYPE_CHECKING:
    from pipeline.edit.actor import EditActor

_ERROR_FIELD = pa.field("error", pa.string(), nullable=False)
_EMPTY = pa.schema([*OUTCOME_SCHEMA, WORKER_FIELD, _ERROR_FIELD]).empty_table()

_log = logging.getLogger(__name__)


class RayEditActor:
    """`EditActor` in a Ray worker. Never raises: Ray would retry, or drop the block without a word.

    What it cannot do it reports in the column `error`, for the driver to raise.
    """

    def __init__(self, settings: EditSettings, line: Line, kinds: Sequence[ActorKind] = ()) -> None:
        """`kinds`: those of the run's actors, where they are not all alike."""
        self._line = line
        self._error = ""
        self._actor: EditActor | None = None
        self._turns = Turns()
        self._requests = _Requests("write")
        try:
            self._load(_settings_here(settings, kinds))
        except Exception as error:  # noqa: BLE001 - reported by the first call
            self._error = f"the model cannot be used: {error}"

    def _load(self, settings: EditSettings) -> None:
        """Under supervision, because Ray starts an actor that is killed here again and again."""
        me = str(ray.get_runtime_context().get_actor_id()).encode()
        began = time.monotonic()

        def figures() -> StationFigures:
            return {"load": {"rows": 1, "seconds": time.monotonic() - began}}

        with self._line.block("load", [me], figures, is_watched=False) as oversight:
            if me in oversight.orders.quarantined:
                self._error = (
                    "two workers died while they loaded the model: is there enough memory for "
                    "resources.actors of them?"
                )
            elif not oversight.orders.is_stopping:
                from fpe_core.checkpoint.lean_imports import lean_imports

                with nullcontext() if settings.compiler else lean_imports():
                    from pipeline.edit.actor import EditActor

                    self._actor = EditActor(settings, ModelThread())

    def __call__(self, packed: pa.Table) -> pa.Table:
        if self._error:
            return _report(self._error)
        if self._actor is None:
            return _EMPTY  # the run was being stopped when this worker came up
        return self._edit(self._actor, _unpack(packed))

    def _edit(self, actor: EditActor, table: pa.Table) -> pa.Table:
        from fpe_core.device import DEVICE_FAILED

        costs: list[StationFigures] = []

        def figures() -> StationFigures:
            return merged(*costs, self._requests.take_figures())

        groups = _groups_of(table)
        loop_alone()
        try:
            block = actor.prepare(table)
            with (
                self._turns.take(alone=self._line.is_suspect("edit", groups)) as turn,
                self._line.block("edit", groups, figures) as oversight,
            ):
                edited = actor.edit(block, oversight, turn.pass_on)
                costs.append(edited.figures)
        except DEVICE_FAILED:
            # Every later call in this process would fail too. Ray starts a new one and tries again.
            _log.exception("the device failed; this worker ends itself")
            os._exit(70)
        except (FPEError, UserError) as error:
            return _report(str(error))
        except Exception:  # noqa: BLE001 - rows are caught further down, so this is a defect
            return _report(f"an editing worker failed:\n{traceback.format_exc()}")
        no_error = pa.array([""] * len(edited.outcomes), pa.string())
        return edited.outcomes.append_column(_ERROR_FIELD, no_error)


def _settings_here(settings: EditSettings, kinds: Sequence[ActorKind]) -> EditSettings:
    """The settings of the kind that this actor is, as what Ray gave it tells."""
    if not kinds:
        return settings
    given = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    (kind,) = (kind for kind in kinds if kind.was_given(given))
    return replace(
        settings,
        device=settings.device if kind.gpus_per_actor else "cpu",
        memory_share=kind.memory_share,
        threads=kind.threads_per_actor,
    )


class _Requests:
    """The requests of this process, since now or since they were last taken, as figures of one
    station."""

    def __init__(self, station: str) -> None:
        self._station = station
        self._before = request_counts()
        self._counting = threading.Lock()

    def take_figures(self) -> StationFigures:
        with self._counting:
            now, before = request_counts(), self._before
            self._before = now
        return {self._station: asdict(now - before)}


def _decode_block(table: pa.Table, settings: DecodeSettings, line: Line) -> pa.Table:
    requests, began = _Requests("decode"), time.monotonic()

    def figures() -> StationFigures:
        own = {"rows": table.num_rows, "seconds": time.monotonic() - began}
        return merged({"decode": own}, requests.take_figures())

    with line.block("decode", _groups_of(table), figures) as oversight:
        return _pack(decode(table, settings, oversight))


def _pack(table: pa.Table) -> pa.Table:
    """A block in one row: Ray puts blocks together that are shorter than others, and no rows."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.table({"block": pa.array([sink.getvalue().to_pybytes()], pa.large_binary())})


def _unpack(packed: pa.Table) -> pa.Table:
    (block,) = packed["block"]
    return pa.ipc.open_stream(block.as_buffer()).read_all()


def _groups_of(table: pa.Table) -> list[bytes]:
    return list(table["group_id"].to_pylist())


def _report(error: str) -> pa.Table:
    """A block of one empty row that carries an error to the driver."""
    schema = pa.schema([*OUTCOME_SCHEMA, WORKER_FIELD, _ERROR_FIELD])
    nobody = EditKey(
        edit_id=bytes(16), group_id=bytes(16), source_id=bytes(16), row=-1, target_prompt=""
    )
    (row,) = outcomes_table([nobody.failed(FailureCode.WORKER_DIED, error)]).to_pylist()
    return pa.Table.from_pylist([row | {"worker": "", "error": error}], schema=schema)
