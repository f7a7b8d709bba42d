"""The tables that `fpe checkpoint inspect` prints."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from rich.table import Table

from fpe_core.checkpoint.editor_uses import layers_text, steps_text
from jobs.terminal.texts import count_text, or_dash, size_text
from jobs.terminal.titled_table import figures_table, titled_table

if TYPE_CHECKING:
    from fpe_core.checkpoint.editor_uses import EditorUse
    from fpe_core.checkpoint.inspection import Inspection

_NAMES = {
    "unet": "UNet",
    "vae": "autoencoder",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}


def checkpoint_tables(found: Inspection) -> Iterator[Table]:
    """What it is, its layers, what editors do with them, and its memory."""
    yield _facts(found)
    yield _layers(found)
    yield _editors(found)
    yield _memory(found)


def _facts(found: Inspection) -> Table:
    table = figures_table(f"Checkpoint {found.name}")
    table.add_row("family", found.family)
    table.add_row("fingerprint", found.fingerprint)
    table.add_row("predicts", found.prediction_type)
    noise = ", down to pure noise" if found.reaches_noise else ""
    table.add_row("schedule", f"{found.timesteps} timesteps{noise}, {found.spacing} spacing")
    table.add_row("own size", _size(*found.size_px))
    channels, height, width = found.latent
    table.add_row(
        f"latent at {_size(found.width_px, found.height_px)}",
        f"{channels} channels of {_size(width, height)}",
    )
    for each in found.networks:
        stored = f" in {', '.join(each.stored_as)}" if each.stored_as else ""
        table.add_row(_NAMES[each.name], f"{or_dash(each.parameters, ',.0f')} parameters{stored}")
    for text in found.text_encoders:
        table.add_row(
            f"{_NAMES[text.name]}'s prompts",
            f"{text.tokens} tokens of width {text.width}, {text.layers} layers",
        )
    vectors = " and ".join(str(width) for width in found.embedding_widths.values())
    table.add_row("embeddings that fit", f"vectors of width {vectors}")
    widths = ", ".join(str(each) for each in found.cross_attention_widths)
    table.add_row("LoRAs that fit", f"{found.lora_family} (cross-attention width {widths})")
    return table


def _layers(found: Inspection) -> Table:
    table = titled_table(
        f"Self-attention layers at {_size(found.width_px, found.height_px)}",
        ["layers", "part", "level", "tokens", "heads x channels of each"],
        texts=2,
    )
    alike = groupby(found.layers, key=lambda layer: (layer.part, layer.level, layer.tokens))
    for (part, level, tokens), group in alike:
        layers = list(group)
        first, last = layers[0], layers[-1]
        numbers = str(first.number) if first is last else f"{first.number}-{last.number}"
        size = f"{first.heads} x {first.channels // first.heads}"
        table.add_row(numbers, part, str(level), count_text(tokens), size)
    return table


def _editors(found: Inspection) -> Table:
    table = titled_table(
        "Editors with their own settings, fpe with the checkpoint's",
        ["editor", "what it replaces by its source's", "UNet rows of one edit"],
        texts=2,
    )
    for use in found.editors:
        rows = "-" if use.rows is None else count_text(use.rows)
        table.add_row(use.editor, _use_text(use, len(found.layers)), rows)
    return table


def _use_text(use: EditorUse, count: int) -> str:
    if use.why_not:
        return use.why_not
    lines = [
        f"{each.what} {layers_text(each.layers, count)}, {steps_text(each.steps)}"
        for each in use.replaces
    ]
    return "\n".join([*lines, *use.also]) or "nothing"


def _memory(found: Inspection) -> Table:
    table = titled_table(
        f"Memory at {_size(found.width_px, found.height_px)}",
        ["type", "all weights", "a UNet row at its peak, about"],
    )
    for each in found.memory:
        weights = "-" if each.weights is None else size_text(each.weights)
        table.add_row(each.dtype, weights, size_text(each.row))
    return table


def _size(width: int, height: int) -> str:
    return f"{width} x {height}"
