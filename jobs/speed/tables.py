"""The measurements as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from jobs.speed.clock import PHASES
from jobs.speed.gate import Comparison
from jobs.speed.presets import Target
from jobs.speed.report import Machine, Sweep, compile_s, price_per_thousand
from jobs.speed.rounds import REST, Measured


def gate_table(model: str, gate: Sequence[Comparison]) -> Table:
    """How far each arm is from A, and each mistake."""
    table = _table(f"{model}: final latents against A, float32", ("", "distance", "wanted", ""))
    for each in gate:
        table.add_row(
            each.title if each.is_control else f"{each.name}  {each.title}",
            f"{each.distance:.1e}",
            f"{'at least' if each.is_control else 'at most'} {each.bound:.0e}",
            "ok" if each.ok else "NOT OK",
        )
    return table


def speed_table(sweep: Sweep, price_per_hour: float | None) -> Table:
    """Every arm of every cell: speed, rows, utilisation, memory, price."""
    columns = [
        "sources x edits",
        "arm",
        "edits/s",
        "edits/h",
        "x A",
        "x B",
        "rows/edit",
        "needed",
        "run",
        "MiB",
        "spread",
    ]
    if price_per_hour is not None:
        columns.append("per 1,000")
    table = _table(f"{sweep.model}: speed", columns)
    for sources, edits in sweep.cells:
        cell = sweep.of(sources, edits)
        speed = {each.arm: each.edits_per_s for each in cell}
        for each in cell:
            needed, run = sweep.utilisation(each)
            price = [] if price_per_hour is None else [price_per_thousand(each, price_per_hour)]
            table.add_row(
                f"{sources} x {edits}",
                each.arm,
                f"{each.edits_per_s:.3g}",
                f"{3600 * each.edits_per_s:,.0f}",
                f"{each.edits_per_s / speed['A']:.2f}",
                f"{each.edits_per_s / speed['B']:.2f}",
                f"{each.rows_per_edit:.1f}",
                f"{needed:.1%}",
                f"{run:.1%}",
                "-" if each.peak_bytes is None else f"{each.peak_bytes / 2**20:,.0f}",
                f"{each.spread:.1%}",
                *(f"{figure:.2f}" for figure in price),
                end_section=each is cell[-1],
            )
    return table


def phase_table(sweep: Sweep) -> Table:
    """Milliseconds per edit, phase by phase."""
    table = _table(
        f"{sweep.model}: milliseconds per edit", ("sources x edits", "arm", *PHASES, REST)
    )
    for sources, edits in sweep.cells:
        cell = sweep.of(sources, edits)
        for each in cell:
            phases = [f"{each.phase_ms[phase]:,.1f}" for phase in (*PHASES, REST)]
            table.add_row(f"{sources} x {edits}", each.arm, *phases, end_section=each is cell[-1])
    return table


def notes(sweep: Sweep, machine: Machine) -> list[str]:
    """What has to be known to read the tables."""
    legend = {each.arm: each.title for each in sweep.measured}
    lines = [
        "; ".join(f"{arm}: {title}" for arm, title in legend.items()),
        "needed: FLOPs of the UNet in the minimal exact procedure, run: all that was run, both per "
        "second over a matrix product's: "
        + ", ".join(
            f"{dtype} {rate / 1e12:.3g} TFLOP/s"
            for dtype, rate in sorted(sweep.product_flops_per_s.items())
        ),
        "noise (D against D again): "
        + ", ".join(f"{s} x {n} {sweep.noise(s, n):.1%}" for s, n in sweep.cells),
    ]
    if sweep.compile_error:
        lines.append(f"E is missing: {sweep.compile_error}")
    if compiled := [each for each in sweep.measured if each.arm == "E"]:
        times = ", ".join(
            f"{each.sources} x {each.edits_per_source} {compile_s(each):.0f} s" for each in compiled
        )
        lines.append(f"compiling E, not in its times: {times}")
    lines.append(
        f"{machine.device}, {machine.threads} CPU threads, torch {machine.torch}, {machine.date}"
    )
    return lines


def target_table(targets: Sequence[Target], measured: Sequence[tuple[str, Measured]]) -> Table:
    """The aims for what was measured; `measured` has the model's name beside each measurement."""
    table = _table("Aims, by the fastest of C, D and E", ("aim", "reached", ""))
    for target in targets:
        cell = [
            each
            for model, each in measured
            if (model, each.edits_per_source) == (target.model, target.edits_per_source)
        ]
        if cell:
            reached = target.reached(cell)
            table.add_row(
                str(target), f"{reached:,.3g}", "" if reached >= target.least else "missed"
            )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table
