"""The Ray Data graph: work list -> decode (tasks) -> edit and write (actors) -> outcomes.

Read and decode are one task per slice of the work list: which rows a block holds is settled before
Ray starts and does not depend on their size, so a lost block comes back as the same block, and a
pool of any size has blocks for all its actors. (`read_parquet` would make as few blocks as it can.)

A block whose worker dies is made again by the next one, which is told so (`supervisor`). Ray pins
an actor's blocks to it, so where its machine is gone they wait until there is a place for it, at
the latest when the other actors have nothing left to do. A block that is lost all the same is made
again by the driver, see `run`. Exceptions of rows never get here; `EditActor` catches them.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from fpe_core import FPEError
from fpe_core.rows import DEVICE_FAILED
from pipeline.actor_kinds import ActorKind, InTurn
from pipeline.decode import DecodeSettings, decode
from pipeline.edit_actor import WORKER_FIELD, EditActor, EditSettings
from pipeline.errors import UserError
from pipeline.model_thread import ModelThread, loop_alone
from pipeline.outcome import OUTCOME_SCHEMA, EditKey, FailureCode, outcomes_table
from pipeline.oversight import Line
from pipeline.resources import Pool
from pipeline.storage import Folder
from pipeline.store_requests import request_counts
from pipeline.supervisor import StationFigures, merged
from pipeline.turns import BLOCKS_AT_A_TIME, Turns
from pipeline.watchdog import TimeLimits
from pipeline.work_slice import WorkSlice, read_slice

_MOST_TRIES = 20
"""Deaths of workers and machines that a block survives; its rows are quarantined long before."""
_MOST_LOST_BLOCKS = 1_000_000
"""As good as any number: they are made again. How many deaths are too many, `supervisor` says."""
_RAY_CONSOLE = "console"
"""Ray Data's own name of its handler that writes to the terminal."""
_ERROR_FIELD = pa.field("error", pa.string(), nullable=False)
_EMPTY = pa.schema([*OUTCOME_SCHEMA, WORKER_FIELD, _ERROR_FIELD]).empty_table()
_log = logging.getLogger(__name__)


class WorkerError(UserError):
    """An editing worker cannot work at all; the message is the worker's."""


class WorkList(Datasource):
    """The work list as a source of Ray Data: one read task, and one block, per slice."""

    def __init__(self, folder: Folder, slices: Sequence[WorkSlice]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._folder = folder
        self._slices = tuple(slices)

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - the slices decide
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,  # noqa: ARG002 - nothing here depends on it
    ) -> list[ReadTask]:
        return [
            ReadTask(
                functools.partial(_read_block, self._folder, part),
                BlockMetadata(
                    num_rows=part.rows, size_bytes=None, exec_stats=None, input_files=None
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for part in self._slices
        ]


def _read_block(folder: Folder, part: WorkSlice) -> list[pa.Table]:
    return [read_slice(folder, part)]


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
                self._actor = EditActor(settings, ModelThread())

    def __call__(self, packed: pa.Table) -> pa.Table:
        if self._error:
            return _report(self._error)
        if self._actor is None:
            return _EMPTY  # the run was being stopped when this worker came up
        return self._edit(self._actor, _unpack(packed))

    def _edit(self, actor: EditActor, table: pa.Table) -> pa.Table:
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


def stream_outcomes(
    folder: Folder,
    slices: Sequence[WorkSlice],
    *,
    decoding: DecodeSettings,
    editing: EditSettings,
    pool: Pool,
    line: Line,
    bars: bool = False,
) -> Iterator[pa.Table]:
    """Runs the graph; yields the outcomes of a block, with their worker, as soon as it is done.

    Closing the iterator stops the work. `bars`: Ray Data draws its own, which needs a terminal.
    """
    context = _data_context(line.limits, rows=max(part.rows for part in slices))
    context.enable_progress_bars = bars
    context.enable_rich_progress_bars = True
    context.use_ray_tqdm = False  # else Ray takes no notice of the line above
    context.execution_options.verbose_progress = True  # a bar for each station, not for all alone
    with DataContext.current(context), warnings.catch_warnings():
        # Ray 2.60 deprecates **ray_remote_args and has no other door yet for max_task_retries.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        dataset = _dataset(folder, slices, decoding=decoding, editing=editing, pool=pool, line=line)
    _silence_ray_data()
    try:
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for table in batches:
            for error in table["error"].to_pylist():
                if error:
                    raise WorkerError(error)
            yield table.drop_columns(["error"])
    except UserError:
        raise
    except Exception as error:  # Ray has its own trees of errors, and its causes hide in text
        raise WorkerError(
            f"Ray gave up: {_in_one_line(error)} More is in Ray's logs (logs/ in its session "
            "folder). The same command goes on from what is committed."
        ) from error


def _dataset(
    folder: Folder,
    slices: Sequence[WorkSlice],
    *,
    decoding: DecodeSettings,
    editing: EditSettings,
    pool: Pool,
    line: Line,
) -> Any:
    """Work list, decode, edit, as a Dataset, whose batches Ray has no exact type for."""
    dataset = ray.data.read_datasource(
        WorkList(folder, slices),
        num_cpus=1,
        override_num_blocks=len(slices),
        ray_remote_args={"max_retries": _MOST_TRIES},
    )
    dataset = dataset.map_batches(
        _decode_block,
        fn_kwargs={"settings": decoding, "line": line},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        max_retries=_MOST_TRIES,
    )
    return dataset.map_batches(
        RayEditActor,
        fn_constructor_args=(editing, line, pool.kinds),
        batch_size=1,  # one packed block
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=min(pool.actors, len(slices)),
            max_concurrent_calls_per_actor=BLOCKS_AT_A_TIME,
            enable_true_multi_threading=True,
        ),
        # Of several kinds the least: with more, Ray Data would wait for what nobody asks for.
        num_cpus=min(kind.cpus_per_actor for kind in pool.kinds or (pool,)),
        num_gpus=min(kind.gpus_per_actor for kind in pool.kinds or (pool,)),
        max_restarts=-1,
        max_task_retries=_MOST_TRIES,
        ray_remote_args_fn=InTurn(pool.kinds) if pool.kinds else None,
    )


def _data_context(limits: TimeLimits, rows: int) -> DataContext:
    context = DataContext.get_current().copy()
    context.target_max_block_size = None  # never split a block: slices are the right size
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.max_errored_blocks = _MOST_LOST_BLOCKS
    context.max_consecutive_actor_init_deaths = 3  # then the machine is too small for the model
    context.max_tasks_in_flight_per_actor = BLOCKS_AT_A_TIME
    context.execution_options.preserve_order = False
    if "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S" not in os.environ:
        # Ray's guard, which ends the run, must not come before our watchdog, which ends a worker.
        longest_s = 2 * limits.stall_s + limits.group_s * rows
        context.execution_no_progress_timeout_s = max(1800.0, longest_s)
    return context


def _silence_ray_data() -> None:
    """Keeps Ray Data's own lines out of the terminal; they stay in the session's ray-data.log.

    Handlers that somebody else put on its logger are none of our business.
    """
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == _RAY_CONSOLE:
            handler.setLevel(logging.CRITICAL)


def _in_one_line(error: Exception) -> str:
    """What an error says, or where it is a remote traceback, how that ends."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{type(error).__name__}: {lines[-1] if 'Traceback' in str(error) else lines[0]}"
