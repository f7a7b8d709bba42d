"""The Ray Data graph: work list -> decode (tasks) -> edit and write (actors) -> outcomes.

Read and decode are one task per slice of the work list, or for slices whose images lie in the same
row group of the manifest (`plan.embedded_images`), and one block per slice. The rows of a block are
fixed before Ray starts and do not depend on the size of images, so a lost block is processed again
with the same rows, and a pool of any size has blocks for all its actors. (`read_parquet` would make
as few blocks as it can.)

If a worker dies, the next worker processes its block, and learns of the death from its orders
(`supervisor`). Ray pins blocks to an actor. If the actor's machine is gone, they wait until the
actor can be restarted elsewhere, at the latest when the other actors have nothing left to do. A
block that is lost nevertheless is processed again in the driver's next pass. Exceptions of single
rows do not reach the graph; `EditActor` catches them.

A worker whose model or device cannot be used takes no blocks (`RayEditActor`): the others go on.

Ray Data restarts actors and retries blocks without limit by itself; what limits deaths is the
supervisor.
"""

from __future__ import annotations

import functools
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import (
    ActorPoolStrategy,
    DataContext,
    Datasource,
    ExecutionResources,
    ReadTask,
    TaskPoolStrategy,
)
from ray.data.block import BlockMetadata

from pipeline.cluster.deputies import EditDeputy
from pipeline.cluster.pool import Pool
from pipeline.cluster.workers import RayEditActor, _decode_block, pack, unpack
from pipeline.edit.model_sharing import BLOCKS_AT_A_TIME
from pipeline.edit.settings import EditSettings
from pipeline.errors import UserError
from pipeline.manifest.embedded import Embedded
from pipeline.plan.embedded_images import Run, embedded_of, read_run, runs_of
from pipeline.plan.work_list import WorkSlice
from pipeline.read.decode import DecodeSettings
from pipeline.storage.folder import Folder
from pipeline.supervision.client import SupervisorClient
from pipeline.supervision.watchdog import TimeLimits

_MOST_LOST_BLOCKS = 1_000_000
"""Practically no limit, since lost blocks are processed again. `supervisor` limits deaths."""
_SHARE_OF_NODE = 0.5
"""The most of a node's memory that a task requests which reads and decodes."""
_RAY_CONSOLE = "console"
"""The name of Ray Data's logging handler that writes to the terminal."""

_log = logging.getLogger(__name__)


class WorkerError(UserError):
    """An editing worker cannot work at all, or Ray gave up; the message says why."""


class WorkList(Datasource):
    """The work list as a source of Ray Data: a read task per run, and a packed block per slice."""

    def __init__(self, folder: Folder, runs: Sequence[Run], embedded: Embedded | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._folder = folder
        self._runs = tuple(runs)
        self._embedded = embedded

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - the runs decide
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,  # noqa: ARG002 - nothing here depends on it
    ) -> list[ReadTask]:
        return [
            ReadTask(
                functools.partial(
                    _read_blocks, self._folder, run, embedded_of(run, self._embedded)
                ),
                BlockMetadata(
                    num_rows=len(run), size_bytes=None, exec_stats=None, input_files=None
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for run in self._runs
        ]


def _read_blocks(folder: Folder, run: Run, embedded: Embedded | None) -> Iterator[pa.Table]:
    return map(pack, read_run(folder, run, embedded))


def stream_outcomes(
    folder: Folder,
    slices: Sequence[WorkSlice],
    *,
    decoding: DecodeSettings,
    editing: EditSettings,
    pool: Pool,
    supervisor: SupervisorClient,
    embedded: Embedded | None = None,
    left_out: int = 0,
    bars: bool = False,
) -> Iterator[pa.Table]:
    """Runs the graph; yields each block's outcomes, with a column `worker`, once it is done.

    Closing the iterator stops the work. `embedded`: the plan's. `left_out`: how many actors could
    not work in an earlier pass, and may be started in addition. `bars`: show Ray Data's progress
    bars, which need a terminal. Raises WorkerError, and SupervisorLostError.
    """
    actors = pool.actors_for(len(slices), left_out=left_out)
    supervisor = supervisor.begin_pass(min(actors, pool.places or actors))
    runs = runs_of(slices, embedded)
    context = _data_context(supervisor.limits, rows=max(part.rows for part in slices))
    if len(runs) < len(slices):
        # A task's blocks go on one by one: every block is one packed row, which is never split.
        context.target_max_block_size = 1
    context.enable_progress_bars = bars
    context.enable_rich_progress_bars = True
    context.use_ray_tqdm = False  # otherwise Ray ignores the line above
    context.execution_options.verbose_progress = True  # a bar per stage in addition to the total
    if len(pool.kinds) > 1:  # its actors are ours, and Ray Data does not know what they take
        context.execution_options.exclude_resources = ExecutionResources(
            cpu=sum((kind.actors - kind.later) * kind.cpus_per_actor for kind in pool.kinds),
            gpu=sum((kind.actors - kind.later) * kind.gpus_per_actor for kind in pool.kinds),
        )
    if pool.waiting_bytes is not None:
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            object_store_memory=pool.waiting_bytes
        )
    with DataContext.current(context):
        dataset = _dataset(
            folder,
            runs,
            embedded,
            decoding=decoding,
            editing=editing,
            pool=pool,
            supervisor=supervisor,
            actors=actors,
        )
    _silence_ray_data()
    try:
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for packed in batches:
            table = unpack(packed)
            for error in table["error"].to_pylist():
                if error:
                    raise WorkerError(error)
            yield table.drop_columns(["error"])
    except UserError:
        raise
    except Exception as error:  # Ray has several trees of errors, and gives causes as text
        raise WorkerError(
            f"Ray gave up: {_in_one_line(error)} More is in Ray's logs (logs/ in its session "
            "folder). The same command goes on from what is committed."
        ) from error


def _dataset(
    folder: Folder,
    runs: Sequence[Run],
    embedded: Embedded | None,
    *,
    decoding: DecodeSettings,
    editing: EditSettings,
    pool: Pool,
    supervisor: SupervisorClient,
    actors: int,
) -> Any:
    """The graph as a Ray Dataset: work list, decode, edit."""
    memory = _reader_memory_bytes(decoding)
    blocks = sum(map(len, runs))

    def readers(tasks: int) -> int | None:  # Ray warns of a limit that is never reached
        return pool.readers if pool.readers and pool.readers < tasks else None

    dataset = ray.data.read_datasource(
        WorkList(folder, runs, embedded),
        num_cpus=1,
        memory=memory,
        concurrency=readers(len(runs)),
        override_num_blocks=len(runs),
    )
    dataset = dataset.map_batches(
        _decode_block,
        fn_kwargs={"settings": decoding, "supervisor": supervisor},
        batch_size=None,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=readers(blocks)),
        num_cpus=1,
        memory=memory,
    )
    kinds, several = pool.kinds, len(pool.kinds) > 1
    # Ray Data starts all actors of a stage with the same resources: those of several kinds have
    # deputies there, which take none.
    of_pool = (time.monotonic_ns(),) if several else ()
    return dataset.map_batches(
        EditDeputy if several else RayEditActor,
        fn_constructor_args=(editing, supervisor, kinds, *of_pool),
        batch_size=1,  # one packed block
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=actors,
            max_concurrent_calls_per_actor=BLOCKS_AT_A_TIME,
            enable_true_multi_threading=True,
        ),
        num_cpus=0 if several else kinds[0].cpus_per_actor,
        num_gpus=0 if several else kinds[0].gpus_per_actor,
        accelerator_type=None if several else kinds[0].accelerator,
    )


def _reader_memory_bytes(decoding: DecodeSettings) -> int:
    """The memory that each task requests which reads and decodes; no actor requests any.

    So a node has no more of these tasks than its memory allows. On a node that is too small for the
    largest image, there is one with half of its memory, as Ray counts it: the image may fit
    nevertheless, and a task that requests more than any node has would wait for ever.

    It is never 0. Ray Data runs a stage inside of the actors of the next one if both request the
    same, and then no CPU but theirs would decode.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    largest = max((node.get("memory", 0.0) for node in nodes), default=0.0)
    return max(1, min(decoding.memory_bytes, int(largest * _SHARE_OF_NODE)))


def _data_context(limits: TimeLimits, rows: int) -> DataContext:
    context = DataContext.get_current().copy()
    context.target_max_block_size = None  # never split a block: slices are the right size
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.max_errored_blocks = _MOST_LOST_BLOCKS
    context.max_consecutive_actor_init_deaths = 3  # after 3 the model does not fit
    context.max_tasks_in_flight_per_actor = BLOCKS_AT_A_TIME
    context.execution_options.preserve_order = False
    if "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S" not in os.environ:
        # Ray's timeout ends the run, so it must be longer than our watchdog's, which ends a worker.
        longest_s = 2 * limits.stall_s + limits.group_s * rows
        context.execution_no_progress_timeout_s = max(1800.0, longest_s)
    return context


def _silence_ray_data() -> None:
    """Keeps Ray Data's own log lines out of the terminal; they stay in the session's ray-data.log.

    Handlers that other code added to its logger are left alone. It also warns of a pool with more
    actors than blocks: some of those actors will be left out.
    """
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == _RAY_CONSOLE:
            handler.setLevel(logging.CRITICAL)


def _in_one_line(error: Exception) -> str:
    """The first line of an error's message, or the last line of a remote traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{type(error).__name__}: {lines[-1] if 'Traceback' in str(error) else lines[0]}"
