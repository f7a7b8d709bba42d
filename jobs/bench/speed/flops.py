"""FLOPs that an edit needs, that an arm runs, and that the device can compute per second.

An edit needs the UNet's FLOPs in the minimal exact procedure (`minimal_flops`). They are added up
from counts per module for one row, made on torch's meta device, which computes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fpe_core import Checkpoint
from fpe_core.checkpoint.autoencoder import latent_shape
from fpe_core.unet.attention import select_layers, self_attention_layers
from fpe_core.unet.family import is_told_sizes
from jobs.bench.machine import wait_for
from jobs.bench.speed.workload import BenchWorkload

_PRODUCT_EDGE = {"cuda": 8192, "cpu": 1024}
_PRODUCT_ROUNDS = 7


@dataclass(frozen=True)
class RowFlops:
    """FLOPs of one row through the UNet.

    Attributes:
        row: the whole row without `time` and `text`.
        time: layers that depend only on the timestep.
        text: keys and values of the cross-attention, which depend only on the prompt.
        prefix: layers before the first cross-attention, which do not depend on the prompt; of
            Stable Diffusion XL those before the first residual block, which sees the pooled prompt.
        source: layers up to the queries and keys of the last replaced layer.
        replaced: queries and keys of the replaced layers, which an edit does not compute.
    """

    row: int
    time: int
    text: int
    prefix: int
    source: int
    replaced: int


def count_row(checkpoint: Checkpoint, workload: BenchWorkload) -> RowFlops:
    """Counts one row of a checkpoint's UNet at a workload's size. Computes nothing."""
    _, height, width = latent_shape(checkpoint, workload.parameters)
    units = _units(checkpoint, height, width)
    layers = select_layers(
        self_attention_layers(checkpoint.unet, height, width), workload.parameters.layers
    )
    replaced = {layer.processor_name.removesuffix("processor") for layer in layers}
    body = [(name, flops) for name, flops in units if not (_is_time(name) or _is_text(name))]
    names = [name for name, _ in units]
    first_text = next(n for n, name in enumerate(names) if _sees_text(name, checkpoint))
    asked = {f"{layer}{part}" for layer in replaced for part in ("to_q", "to_k")}
    last = max((n for n, name in enumerate(names) if name in asked), default=-1)
    return RowFlops(
        row=sum(flops for _, flops in body),
        time=sum(flops for name, flops in units if _is_time(name)),
        text=sum(flops for name, flops in units if _is_text(name)),
        prefix=sum(flops for name, flops in units[:first_text] if not _is_time(name)),
        source=sum(
            flops for name, flops in units[: last + 1] if not (_is_time(name) or _is_text(name))
        ),
        replaced=sum(flops for name, flops in units if name in asked),
    )


def minimal_flops(row: RowFlops, steps: int, replaced_steps: int, edits: int) -> int:
    """The UNet's FLOPs for one source and its edits with guidance, if all exact savings are used.

    - Inversion evaluates one row per step.
    - While maps are replaced, the source's row is evaluated up to the last queries and keys needed.
    - An edit evaluates two rows per step, which share everything before the first cross-attention.
    - In the first step all edits of a source start from the same latent. So they share one
      unconditional row, and its prefix is also that of the source.
    - Keys and values of the text are computed once per prompt (source, negative, targets).
    - What depends on the timestep is computed once per timestep, for inversion and edits together.
    """
    inversion = steps * row.row
    source = replaced_steps * row.source
    targets = edits * (steps * (2 * row.row - row.prefix) - replaced_steps * row.replaced)
    first_step = (edits - 1) * row.row + (row.prefix if replaced_steps else 0)
    return inversion + source + targets - first_step + (edits + 2) * row.text + steps * row.time


def product_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of a large square matrix product on this device, the median of seven.

    On CUDA it uses TF32 for float32 if cuDNN's convolutions do, which are most of an arm's work.
    Compared with a product without TF32, the utilisation of A could exceed 1.
    """
    edge = _PRODUCT_EDGE.get(device.type, _PRODUCT_EDGE["cpu"])
    first, second = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    times_s = []
    with _as_convolutions():
        for _ in range(_PRODUCT_ROUNDS + 1):
            wait_for(device)
            start = time.perf_counter()
            torch.mm(first, second)
            wait_for(device)
            times_s.append(time.perf_counter() - start)
    warm = sorted(times_s[1:])
    return float(2 * edge**3 / warm[len(warm) // 2])


@contextmanager
def _as_convolutions() -> Iterator[None]:
    """Inside it, matrix products use TF32 if convolutions do."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def flop_counter() -> FlopCounterMode:
    """A context that counts FLOPs. Unlike torch's own it knows the CPU's attention kernel."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: _attention_flops})


def _units(checkpoint: Checkpoint, height: int, width: int) -> list[tuple[str, int]]:
    """Name and FLOPs of the UNet's layers in order of execution. They add up to the whole row.

    The entry of an attention module does not include its projections, which have their own entries.
    """
    with torch.device("meta"):
        unet = type(checkpoint.unet).from_config(checkpoint.unet.config)
        latent = torch.zeros(1, checkpoint.latent_channels, height, width)
        window = int(checkpoint.tokenizer.model_max_length)
        config = checkpoint.unet.config
        text = torch.zeros(1, window, int(config.cross_attention_dim))
        beside = None
        if is_told_sizes(config):
            waves = 6 * config.addition_time_embed_dim
            pooled = config.projection_class_embeddings_input_dim - waves
            beside = {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, 6)}
    counter = flop_counter()
    units: list[tuple[str, int]] = []
    inside: list[list[int]] = []  # per entered module: the count before it, FLOPs of its parts

    def enter(_module: Any, _inputs: Any) -> None:
        inside.append([counter.get_total_flops(), 0])

    def leave(name: str) -> Any:
        def record(_module: Any, _inputs: Any, _output: Any) -> None:
            before, parts = inside.pop()
            whole = counter.get_total_flops() - before
            units.append((name, whole - parts))
            if inside:
                inside[-1][1] += whole

        return record

    for name, module in unet.named_modules():
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave(name))
    with torch.inference_mode(), counter:
        unet(latent, 1, encoder_hidden_states=text, added_cond_kwargs=beside)
    return [(name, flops) for name, flops in units if flops]


def _attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **_options: Any
) -> int:
    """FLOPs of attention on queries, keys and values of shape (rows, heads, tokens, width)."""
    return int(sdpa_flop_count(query, key, value))


def _sees_text(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a layer is the first of a pass, or a later one, that depends on the prompt."""
    if is_told_sizes(checkpoint.unet.config):
        return name.startswith("down_blocks")
    return _is_text(name)


def _is_time(name: str) -> bool:
    return name.startswith("time_embedding") or name.endswith("time_emb_proj")


def _is_text(name: str) -> bool:
    return name.endswith(("attn2.to_k", "attn2.to_v")) or name.startswith("add_embedding")
