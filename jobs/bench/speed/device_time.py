"""How an arm's time is divided among kinds of operations, by torch's profiler.

Kernels on CUDA, and torch's operators on a CPU, are classified by their names.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from jobs.bench.machine import wait_for
from jobs.bench.speed.arms import Arm
from jobs.bench.speed.instruments import PhaseClock
from jobs.bench.speed.workload import BenchWorkload

_LONGEST = 10
IDLE = "idle, launch"
"""The rest: the device waits for Python, the scheduler or images; on a CPU also torch's
dispatch."""

_NAMES = (
    (IDLE, r"^aten::(empty|resize_|(_unsafe_|_reshape_)?(view|alias)|as_strided|transpose|expand)"),
    (IDLE, r"^aten::(permute|reshape|slice|select|unsqueeze|chunk|split|narrow|t$|unbind|detach)"),
    ("attention", r"attention|flash|fmha|sdpa|softmax"),
    ("convolution", r"conv|fprop|winograd"),
    ("matrix product", r"gemm|nvjet|cutlass|mm$|matmul|[:_]linear"),
    ("copy", r"copy|memcpy|memset|catarray|nchwtonhwc|nhwctonchw|aten::(cat|clone|contiguous)"),
    ("norm", r"norm|rowwisemoments|fusedparams|welford"),
)
"""Words in the names of operations by kind; the first kind that matches counts."""

KINDS = ("convolution", "matrix product", "attention", "norm", "elementwise", "copy", IDLE)


@dataclass(frozen=True)
class DeviceTime:
    """One run of an arm in the profiler.

    Attributes:
        arm: its name.
        sources, edits_per_source: the cell of the sweep.
        wall_s: duration of the run; the profiler makes it a little longer.
        share: share of the time by kind (`KINDS`); the shares add up to 1.
        longest: the operations that took most time, by name, with their shares.
    """

    arm: str
    sources: int
    edits_per_source: int
    wall_s: float
    share: dict[str, float]
    longest: dict[str, float]


def profiled(arm: Arm, workload: BenchWorkload) -> DeviceTime:
    """Runs an arm once in the profiler. The arm should have run before, so that it is warmed up."""
    device = arm.checkpoint.device
    on_cuda = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU
    wait_for(device)
    with torch.profiler.profile(activities=[activity]) as profiler:
        start = time.perf_counter()
        arm.edit(workload, PhaseClock(device))
        wait_for(device)
        wall_s = time.perf_counter() - start
    seconds: defaultdict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        seconds[event.key] += _own_seconds(event, on_cuda)
    kinds = dict.fromkeys(KINDS, 0.0)
    for name, own_s in seconds.items():
        kinds[kind_of(name)] += own_s
    whole_s = max(wall_s, sum(kinds.values()))
    kinds[IDLE] += whole_s - sum(kinds.values())
    longest = sorted(seconds.items(), key=lambda item: item[1], reverse=True)[:_LONGEST]
    return DeviceTime(
        arm=arm.name,
        sources=len(workload.images),
        edits_per_source=len(workload.target_prompts[0]),
        wall_s=wall_s,
        share={kind: kinds[kind] / whole_s for kind in KINDS},
        longest={name: own_s / whole_s for name, own_s in longest},
    )


def kind_of(name: str) -> str:
    """The kind, one of `KINDS`, of a torch operator or CUDA kernel, by its name."""
    for kind, pattern in _NAMES:
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return "elementwise"


def _own_seconds(event: Any, on_cuda: bool) -> float:
    microseconds = event.self_device_time_total if on_cuda else event.self_cpu_time_total
    return float(microseconds) / 1e6
