"""Describes the machine on which figures were measured, and waits for its device."""

from __future__ import annotations

import datetime
import platform
from dataclasses import dataclass

import torch

from fpe_core.device import device_name


@dataclass(frozen=True)
class Machine:
    """Where and when figures were measured: those of one machine do not hold for another."""

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
    """Waits until the device has finished all work that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
