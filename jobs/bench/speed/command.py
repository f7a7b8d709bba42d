"""`fpe bench speed`: what an edit costs, beside the authors' procedure and a plain loop."""

from __future__ import annotations

import enum
import os
import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.terminal import console
from jobs.terminal.exits import STOPPED, guarded

if TYPE_CHECKING:
    from jobs.bench.speed.presets import Preset


class PresetName(enum.StrEnum):
    """Ready-made measurements (`jobs.bench.speed.presets`)."""

    CPU = "cpu"
    GPU = "gpu"
    MICRO = "micro"


@guarded
def speed(
    *,
    preset: Annotated[
        PresetName | None,
        typer.Option(help="What the other options are unless given; by the device if left out."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="sd15, sd21, cpu-512, micro (random weights), still-life, or a checkpoint; "
            "may be given repeatedly.",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16; A is float32 always.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=3, max=999, help="At least 3.")] = None,
    size: Annotated[int | None, typer.Option(min=8, help="Pixels; else the model's own.")] = None,
    gate_size: Annotated[
        int | None, typer.Option(min=8, help="Pixels in the gate, where that should be fewer.")
    ] = None,
    sources: Annotated[str | None, typer.Option(help="How many, such as 1,4.")] = None,
    edits: Annotated[str | None, typer.Option(help="Of each source, such as 1,4,16.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Times of each arm.")] = None,
    baseline_edits: Annotated[
        int, typer.Option(min=1, help="Most edits of A and of B, which share nothing, in a round.")
    ] = 1,
    arms: Annotated[
        str | None, typer.Option(metavar="A,B,..", help="Those to measure; A is always there.")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of the device; prints the price of 1,000 edits.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Of the gate, a share of the latents' norm.")
    ] = None,
    authors: Annotated[
        pathlib.Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A is the authors' own code: diffusion/FreePromptEditing of a checkout of "
            "alibaba/EasyNLP.",
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option(help="What the device does with our fastest arm's time, by torch.")
    ] = True,
    resume: Annotated[
        bool, typer.Option(help="Go on from --out's speed.json: its cells are not measured again.")
    ] = False,
    out: Annotated[
        pathlib.Path, typer.Option(help="Folder for speed.json and speed.png.")
    ] = pathlib.Path("out/bench-speed"),
) -> None:
    """Compare the editor's speed with the authors' procedure and a plain diffusers loop.

    First every way has to give the same latents, and mistakes other ones; else nothing is timed.
    Results are written after every cell. Exit code 1: a model or an arm is missing among them.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler tells each start and stop
    from jobs.bench.speed.plot import require_matplotlib
    from jobs.bench.speed.presets import PRESETS
    from jobs.bench.speed.session import Session
    from jobs.bench.speed.sweep import Settings

    require_matplotlib()
    chosen = PRESETS[preset or _preset_of(device)]
    settings = Settings(
        device=device or chosen.device,
        dtype=dtype or chosen.dtype,
        steps=steps or chosen.steps,
        size_px=size,
        gate_size_px=gate_size or chosen.gate_size_px,
        cells=_cells(_counts("sources", sources), _counts("edits", edits), chosen),
        rounds=rounds or chosen.rounds,
        baseline_edits=baseline_edits,
        arms=_arms(arms),
        tolerance=tolerance,
        authors=str(authors.resolve()) if authors else "",
        profiles=profile,
    )
    session = Session(settings, out, price_per_hour, console.out(), resumes=resume)
    complete = [session.measure(name) for name in dict.fromkeys(model or chosen.models)]
    session.print_aims(chosen.targets)
    if not all(complete):
        raise typer.Exit(STOPPED)


def _cells(
    sources: tuple[int, ...], edits: tuple[int, ...], preset: Preset
) -> tuple[tuple[int, int], ...]:
    """The preset's own; where numbers are given, all sources with all edits."""
    if not sources and not edits:
        return preset.cells
    sources = sources or tuple(sorted({s for s, _ in preset.cells}))
    edits = edits or tuple(sorted({n for _, n in preset.cells}))
    return tuple(dict.fromkeys((s, n) for n in edits for s in sources))


def _arms(text: str | None) -> str:
    from fpe_core import ParameterError
    from jobs.bench.speed.arms import NAMES

    asked = NAMES if text is None else text.split(",")
    if unknown := [name for name in asked if name not in NAMES]:
        raise ParameterError(f"--arms knows {', '.join(NAMES)}; got {unknown[0]!r}")
    return ",".join(name for name in NAMES if name in asked or name == NAMES[0])


def _preset_of(device: str | None) -> str:
    from fpe_core.device import choose_device

    return "gpu" if choose_device(device or "auto").type == "cuda" else "cpu"


def _counts(name: str, text: str | None) -> tuple[int, ...]:
    """ "1,4,16" to numbers; nothing for None."""
    from fpe_core import ParameterError

    if text is None:
        return ()
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = (0,)
    if min(counts) < 1:
        raise ParameterError(f"--{name} must be whole numbers from 1, such as 1,4; got {text!r}")
    return counts
