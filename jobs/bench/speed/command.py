"""The command `fpe bench speed`."""

from __future__ import annotations

import enum
import os
import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.bench.options import whole_numbers
from jobs.terminal import console
from jobs.terminal.exits import STOPPED, guarded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.bench.speed.presets import BenchPreset, Target
    from jobs.bench.speed.session import Session


class PresetName(enum.StrEnum):
    """Names of the ready-made measurements of `jobs.bench.speed.presets`."""

    CPU = "cpu"
    GPU = "gpu"
    GPU_XL = "gpu-xl"
    MICRO = "micro"


PresetOption = Annotated[
    PresetName | None,
    typer.Option(help="Values of the options not given; if left out, by the device."),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="sd15, sd21, sdxl, cpu-512, micro, micro-xl (random weights), still-life, or a "
        "checkpoint; may be given repeatedly.",
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16, float16; A always runs in float32.")
]
Steps = Annotated[int | None, typer.Option(min=3, max=999, help="At least 3.")]
Size = Annotated[
    int | None, typer.Option(min=8, help="Pixels; if left out, the size of the model.")
]
GateSize = Annotated[
    int | None, typer.Option(min=8, help="Pixels in the gate; if left out, the same size.")
]
Sources = Annotated[str | None, typer.Option(help="Numbers of sources, such as 1,4.")]
EditsPerSource = Annotated[str | None, typer.Option(help="Edits of each source, such as 1,4,16.")]
Rounds = Annotated[int | None, typer.Option(min=1, help="How often each arm is timed.")]
BaselineEdits = Annotated[
    int, typer.Option(min=1, help="Most edits per round of A and B, which share nothing.")
]
Arms = Annotated[
    str | None, typer.Option(metavar="A,B,..", help="Arms to measure; A is always included.")
]
PricePerHour = Annotated[
    float | None, typer.Option(min=0, help="Of the device; prints the price of 1,000 edits.")
]
Tolerance = Annotated[
    float | None, typer.Option(min=0, help="Of the gate, as a share of the latents' norm.")
]
Authors = Annotated[
    pathlib.Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Run the authors' own code as A: diffusion/FreePromptEditing of a checkout of "
        "alibaba/EasyNLP.",
    ),
]
Profile = Annotated[
    bool, typer.Option(help="Profile the fastest of our arms in each cell, with torch's profiler.")
]
Resume = Annotated[
    bool, typer.Option(help="Continue speed.json in --out: its cells are not measured again.")
]
OutFolder = Annotated[pathlib.Path, typer.Option(help="Folder for speed.json and speed.png.")]


@guarded
def speed(
    *,
    preset: PresetOption = None,
    model: Models = None,
    device: Device = None,
    dtype: Dtype = None,
    steps: Steps = None,
    size: Size = None,
    gate_size: GateSize = None,
    sources: Sources = None,
    edits: EditsPerSource = None,
    rounds: Rounds = None,
    baseline_edits: BaselineEdits = 1,
    arms: Arms = None,
    price_per_hour: PricePerHour = None,
    tolerance: Tolerance = None,
    authors: Authors = None,
    profile: Profile = True,
    resume: Resume = False,
    out: OutFolder = pathlib.Path("out/bench-speed"),
) -> None:
    """Compare the editor's speed with the authors' procedure and a plain diffusers loop.

    Before anything is timed, every arm must produce the same latents, and known mistakes different
    ones. Results are written after every cell. Exit code 1: a model or an arm has no result.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler logs each start and stop
    from jobs.bench.speed.presets import PRESETS
    from jobs.bench.speed.session import Session
    from jobs.bench.speed.sweep import Settings

    chosen = PRESETS[preset or _preset_of(device)]
    settings = Settings(
        device=device or chosen.device,
        dtype=dtype or chosen.dtype,
        steps=steps or chosen.steps,
        size_px=size,
        gate_size_px=gate_size or chosen.gate_size_px,
        cells=_cells(sources, edits, chosen),
        rounds=rounds or chosen.rounds,
        baseline_edits=baseline_edits,
        arms=_arms(arms),
        tolerance=tolerance,
        authors=str(authors.resolve()) if authors else "",
        profiles=profile,
    )
    session = Session(settings, out, price_per_hour, console.out(), resumes=resume)
    _measure(session, model or chosen.models, chosen.targets)


def _measure(session: Session, models: Sequence[str], targets: Sequence[Target]) -> None:
    """Measures, prints and writes one model after the other. Exits with 1 if one has no result."""
    complete = [session.measure(name) for name in dict.fromkeys(models)]
    session.print_aims(targets)
    if not all(complete):
        raise typer.Exit(STOPPED)


def _cells(
    sources: str | None, edits: str | None, preset: BenchPreset
) -> tuple[tuple[int, int], ...]:
    """The preset's cells; if numbers are given, every number of sources with every number of
    edits."""
    if sources is None and edits is None:
        return preset.cells
    of_preset = [sorted(set(numbers)) for numbers in zip(*preset.cells, strict=True)]
    own_sources = whole_numbers("--sources", sources, "1,4") if sources else of_preset[0]
    own_edits = whole_numbers("--edits", edits, "1,4") if edits else of_preset[1]
    return tuple(dict.fromkeys((s, n) for n in own_edits for s in own_sources))


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
