"""The device that networks run on: which one, its name, dtypes, free memory and errors."""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path

import psutil
import torch

from fpe_core.errors import CheckpointError

_log = logging.getLogger(__name__)


_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def choose_device(device: str | torch.device) -> torch.device:
    """The device of a name; "auto" is the first available one of CUDA, MPS and CPU.

    Raises CheckpointError for a device that is unknown or not on this machine.
    """
    if isinstance(device, torch.device):
        return device
    if device != "auto":
        try:
            chosen = torch.device(device)
        except RuntimeError as error:
            raise CheckpointError(f"unknown device {device!r}; try auto, cpu, cuda, mps") from error
        if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
            raise CheckpointError(f"torch sees no device {device!r} on this machine; try auto, cpu")
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of a name; "auto" is float16 on CUDA and float32 elsewhere.

    Raises CheckpointError for an unknown name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    dtype = choose_dtype_name(dtype, device.type)
    if dtype not in _DTYPES:
        raise CheckpointError(f"unknown dtype {dtype!r}; allowed: auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def choose_dtype_name(dtype: str, device_type: str) -> str:
    """What "auto" means on a type of device, which this machine need not have; else the name."""
    if dtype != "auto":
        return dtype
    return "float16" if device_type == "cuda" else "float32"


def device_name(device: torch.device) -> str:
    """The manufacturer's name of the GPU or processor.

    Measured times are stored under this name, because they only hold for one model of device.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def has_native_bfloat16() -> bool | None:
    """Whether this CPU has bfloat16 instructions (AVX512-BF16, AMX, Arm's BF16).

    None if torch does not report it: old versions, and builds for other architectures.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:
        return None
    found = [bool(has) for name, has in capabilities().items() if "bf16" in name]
    return any(found) if found else None


def warn_of_slow_bfloat16(dtype: torch.dtype, device: torch.device) -> None:
    """Logs a warning if networks of this type will be slow because instructions are missing."""
    if dtype == torch.bfloat16 and device.type == "cpu" and has_native_bfloat16() is False:
        _log.warning(
            "this CPU has no bfloat16 instructions (AVX512-BF16, AMX), so bfloat16 is emulated: "
            "every product is converted there and back; dtype auto takes float32"
        )


def usable_cores() -> int:
    """How many cores this process may run on, hyperthreads included; at least 1."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory_bytes(device: torch.device, memory_share: float) -> float:
    """How many bytes of a device's memory this process may still use.

    `memory_share`: its share of the device's memory, 0..1; see `rows_that_fit`.
    """
    if device.type == "cuda":
        return _free_bytes_of_gpu(device, memory_share)
    return _free_bytes_of_machine() * memory_share


def _free_bytes_of_gpu(device: torch.device, share: float) -> float:
    """This process' share minus what its tensors hold, but at most what is free."""
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    kept = torch.cuda.memory_reserved(device) - held  # cached by torch for its next tensors
    return float(min(total * share - held, free + kept))


def _free_bytes_of_machine() -> float:
    available = float(psutil.virtual_memory().available)
    try:  # a container's own limit (cgroup v2) is below the machine's
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # not in a container, or "max"
        return available
    return min(available, float(max(0, limit - used)))


DEVICE_FAILED: tuple[type[Exception], ...] = (
    (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()  # torch >= 2.8
)
"""Errors after which a device cannot be used: every later call in the process fails too."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on any device: CUDA and MPS have error types, the CPU a message."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator: can't allocate memory" in message
        or "DefaultCPUAllocator: not enough memory" in message
        or "out of memory" in message
    )
