"""The machine that figures were measured on."""

from __future__ import annotations

import datetime
import platform
from dataclasses import dataclass

import torch

from fpe_core.device import device_name


@dataclass(frozen=True)
class Machine:
    """Where and when: figures of one machine say nothing about another."""

    device: str
    threads: int
    torch: str
    python: str
    date: str


def this_machine(device: torch.device) -> Machine:
    return Machine(
        device=device_name(device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def wait_for(device: torch.device) -> None:
    """Until everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
