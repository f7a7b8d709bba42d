"""One training process per core, or one for the GPU, that average their gradients.

Many small operators gain little from a second thread and stall when another program wants its
core; two single-threaded processes with half of the batch each do neither.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from fpe_core.device import usable_cores


def run_on_workers(
    task: Callable[..., None], *arguments: Any, processes: int | None = None
) -> None:
    """Runs `task(*arguments)` in several processes at once; returns when all are done.

    `processes`: None: one with a GPU, else one per usable core.
    """
    processes = processes or _sensible_count()
    if processes == 1:
        task(*arguments)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start: Callable[..., None] = spawn
    start(_work, (processes, port, task, arguments), nprocs=processes)


def rank() -> int:
    """This process's number; the one that writes files is 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Returns once every process has called it."""
    if dist.is_initialized():
        dist.barrier()


def agree(value: float) -> float:
    """Process 0's value, in every process."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(shared, src=0)
    return float(shared)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the processes."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _sensible_count() -> int:
    return 1 if torch.cuda.is_available() else usable_cores()


def _work(
    number: int, processes: int, port: int, task: Callable[..., None], arguments: Any
) -> None:
    # torch turns the parent's death into SIGINT here, which a background job would ignore.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=processes
    )
    try:
        task(*arguments)
    finally:
        dist.destroy_process_group()
