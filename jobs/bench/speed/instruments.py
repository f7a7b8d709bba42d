"""Measures an arm from outside: time per phase, UNet rows, and peak memory.

Hooks on the networks measure every arm in the same way, whatever its code looks like. On CUDA they
record events on the stream, so that no step has to wait for the device.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from fpe_core.unet.rows import Chunk

NETWORK_PHASES = ("encode", "invert", "edit", "decode")
"""Encoding texts and images, the UNet's inversion, the UNet's editing, decoding images."""


class Networks(NamedTuple):
    """The networks of an arm. `unet` is diffusers' own, or `fpe_core.unet.call.UNetCall`."""

    text_encoder: nn.Module
    encoder: nn.Module
    decoder: nn.Module
    unet: nn.Module


class PhaseClock:
    """Counts UNet rows and measures the networks' time inside `watching`.

    Attributes:
        rows: UNet rows so far, including rows that are not evaluated to the end.
    """

    def __init__(self, device: torch.device) -> None:
        self.rows = 0
        self._device = device
        self._unet_phase = "edit"
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def inverting(self) -> Iterator[None]:
        """The UNet's time inside it counts as inversion, elsewhere as editing."""
        self._unet_phase = "invert"
        try:
            yield
        finally:
            self._unet_phase = "edit"

    @contextmanager
    def watching(self, networks: Networks) -> Iterator[None]:
        """Installs hooks on the networks, and removes them at the end."""
        with ExitStack() as hooks:
            for network, phase in (
                (networks.text_encoder, lambda: "encode"),
                (networks.encoder, lambda: "encode"),
                (networks.decoder, lambda: "decode"),
                (networks.unet, lambda: self._unet_phase),
            ):
                for handle in self._watch(network, phase):
                    hooks.callback(handle.remove)
            counting = networks.unet.register_forward_pre_hook(self._count)
            hooks.callback(counting.remove)
            yield

    def seconds(self) -> dict[str, float]:
        """Seconds inside the networks by phase. On CUDA call it only after waiting for the
        device."""
        total = Counter(dict.fromkeys(NETWORK_PHASES, 0.0))
        for phase, start, end in self._spans:
            total[phase] += (
                end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
            )
        return dict(total)

    def _watch(self, network: nn.Module, phase: Callable[[], str]) -> Iterator[Any]:
        begun: list[Any] = []

        def enter(*_: Any) -> None:
            begun.append(self._now())

        def leave(*_: Any) -> None:
            self._spans.append((phase(), begun.pop(), self._now()))

        yield network.register_forward_pre_hook(enter)
        yield network.register_forward_hook(leave, always_call=True)

    def _count(self, _unet: nn.Module, inputs: tuple[Chunk | Tensor, ...]) -> None:
        rows = inputs[0]
        self.rows += len(rows.prompts if isinstance(rows, Chunk) else rows)

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


_MEMORY_EVENT = "[memory]"  # torch's name for an allocation or a release


class PeakMemory:
    """Measures peak memory; `bytes` has it after `measuring`.

    On CUDA this is the peak of allocated memory, weights included. On a CPU it is the peak of the
    memory of tensors above that at the start, from events of torch's profiler. The size of the
    process would depend on what had run before, because a heap keeps its pages.
    """

    def __init__(self, device: torch.device) -> None:
        self.bytes = 0
        self._device = device

    @contextmanager
    def measuring(self) -> Iterator[None]:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            yield
            self.bytes = torch.cuda.max_memory_allocated(self._device)
            return
        with torch.profiler.profile(
            activities=[ProfilerActivity.CPU], profile_memory=True
        ) as profiler:
            yield
        self.bytes = _peak(profiler)


def _peak(profiler: Any) -> int:
    """The highest sum of allocations minus releases, in the order of time."""
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == _MEMORY_EVENT]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest
