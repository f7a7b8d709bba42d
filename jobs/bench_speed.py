"""`fpe bench speed`: what an edit costs, beside the authors' procedure and a plain loop."""

from __future__ import annotations

import enum
import json
import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import console
from jobs.exits import STOPPED, guarded

if TYPE_CHECKING:
    from jobs.speed.presets import Preset
    from jobs.speed.report import Sweep

_out = console()


class PresetName(enum.StrEnum):
    """Ready-made measurements (`jobs.speed.presets`)."""

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
    compiler: Annotated[
        str, typer.Option(metavar="BACKEND", help="torch.compile's backend, or none: no E.")
    ] = "inductor",
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of the device; prints the price of 1,000 edits.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Of the gate, a share of the latents' norm.")
    ] = None,
    out: Annotated[
        pathlib.Path, typer.Option(help="Folder for speed.json and speed.png.")
    ] = pathlib.Path("out/bench-speed"),
) -> None:
    """Compare the editor's speed with the authors' procedure and a plain diffusers loop.

    First every way has to give the same latents, and mistakes other ones; else nothing is timed.
    """
    from fpe_core.checkpoint import choose_device
    from jobs.speed import tables
    from jobs.speed.gate import TOLERANCE
    from jobs.speed.plot import require_matplotlib, speed_plot
    from jobs.speed.presets import PRESETS
    from jobs.speed.report import as_json, this_machine
    from jobs.speed.sweep import Settings, check, measure

    require_matplotlib()
    chosen = PRESETS[preset or _preset_of(device)]
    settings = Settings(
        device=device or chosen.device,
        dtype=dtype or chosen.dtype,
        steps=steps or chosen.steps,
        size_px=size,
        gate_size_px=gate_size or chosen.gate_size_px,
        sources=_counts("sources", sources) or chosen.sources,
        edits=_counts("edits", edits) or chosen.edits,
        rounds=rounds or chosen.rounds,
        baseline_edits=baseline_edits,
        compiler=compiler,
        tolerance=TOLERANCE if tolerance is None else tolerance,
    )
    machine = this_machine(choose_device(settings.device))
    sweeps = []
    for name in model or chosen.models:
        checked = check(name, settings)
        _out.print(tables.gate_table(name, checked.gate))
        if not checked.ok:
            _out.print(f"{name} did not pass the gate: nothing was timed.")
            raise typer.Exit(STOPPED)
        sweep = measure(checked, settings)
        _out.print(tables.speed_table(sweep, price_per_hour))
        _out.print(tables.phase_table(sweep))
        for line in tables.notes(sweep, machine):
            _out.print(line, markup=False)
        sweeps.append(sweep)
    _print_aims(chosen, sweeps)
    out.mkdir(parents=True, exist_ok=True)
    report = as_json(machine, sweeps, price_per_hour)
    (out / "speed.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    speed_plot(sweeps, out / "speed.png")
    _out.print(f"{out}/speed.json, speed.png")


def _preset_of(device: str | None) -> str:
    from fpe_core.checkpoint import choose_device

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


def _print_aims(preset: Preset, sweeps: list[Sweep]) -> None:
    from jobs.speed.tables import target_table

    measured = [(sweep.model, each) for sweep in sweeps for each in sweep.measured]
    table = target_table(preset.targets, measured)
    if table.row_count:
        _out.print(table)
