"""Printed tables of the results."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from jobs.bench.machine import Machine
from jobs.bench.speed.device_time import KINDS
from jobs.bench.speed.gate import GateComparison
from jobs.bench.speed.instruments import NETWORK_PHASES
from jobs.bench.speed.presets import Target
from jobs.bench.speed.results import REST, Sweep, price_per_thousand
from jobs.terminal.titled_table import titled_table


def gate_table(model: str, gate: Sequence[GateComparison]) -> Table:
    """The distance of each arm, and of each mistake, from A."""
    table = titled_table(
        f"{model}: final latents against A, float32", ("", "distance", "wanted", "")
    )
    for each in gate:
        table.add_row(
            each.title if each.is_control else f"{each.name}  {each.title}",
            f"{each.distance:.1e}",
            f"{'at least' if each.is_control else 'at most'} {each.bound:.0e}",
            "ok" if each.ok else "NOT OK",
        )
    return table


def speed_table(sweep: Sweep, price_per_hour: float | None) -> Table:
    """Every arm in every cell: speed, UNet rows, utilisation, memory, distances, price."""
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
        "from A",
        "from C",
        "spread",
    ]
    if price_per_hour is not None:
        columns.append("per 1,000")
    table = titled_table(f"{sweep.model}: speed", columns)
    for sources, edits in sweep.cells:
        cell = sweep.of(sources, edits)
        speed = {each.arm: each.edits_per_s for each in cell}
        for each in cell:
            needed, run = sweep.utilisation(each)
            price = [] if price_per_hour is None else [price_per_thousand(each, price_per_hour)]
            table.add_row(
                f"{sources} x {edits}",
                f"{each.arm} *" if each.timed_in else each.arm,
                f"{each.edits_per_s:.3g}",
                f"{3600 * each.edits_per_s:,.0f}",
                *(_times(each.edits_per_s, speed.get(unit)) for unit in ("A", "B")),
                f"{each.rows_per_edit:.1f}",
                f"{needed:.1%}",
                f"{run:.1%}" if run else "-",
                f"{each.peak_bytes / 2**20:,.0f}",
                *(_distance(own) for own in (each.from_authors, each.from_ours)),
                f"{each.spread:.1%}",
                *(f"{figure:.2f}" for figure in price),
                end_section=each is cell[-1],
            )
    return table


def phase_table(sweep: Sweep) -> Table:
    """Milliseconds per edit, phase by phase."""
    table = titled_table(
        f"{sweep.model}: milliseconds per edit", ("sources x edits", "arm", *NETWORK_PHASES, REST)
    )
    for sources, edits in sweep.cells:
        cell = sweep.of(sources, edits)
        for each in cell:
            phases = [f"{each.phase_ms[phase]:,.1f}" for phase in (*NETWORK_PHASES, REST)]
            table.add_row(f"{sources} x {edits}", each.arm, *phases, end_section=each is cell[-1])
    return table


def profile_table(sweep: Sweep) -> Table:
    """How the time of our fastest arm is divided among kinds of operations, cell by cell."""
    table = titled_table(
        f"{sweep.model}: the device's time, our fastest arm", ("sources x edits", "arm", *KINDS)
    )
    for each in sweep.profiles:
        shares = [f"{each.share[kind]:.1%}" for kind in KINDS]
        table.add_row(f"{each.sources} x {each.edits_per_source}", each.arm, *shares)
    return table


def notes(sweep: Sweep, machine: Machine) -> list[str]:
    """Explanations of the tables, a line each."""
    legend = {each.arm: each.title for each in sweep.measured}
    lines = [
        "; ".join(f"{arm}: {title}" for arm, title in legend.items()),
        "needed: FLOPs of the UNet in the minimal exact procedure, run: all that was run, both per "
        "second over a matrix product's: "
        + ", ".join(
            f"{dtype} {rate / 1e12:.3g} TFLOP/s"
            for dtype, rate in sorted(sweep.product_flops_per_s.items())
        ),
        "from A, from C: the edit farthest from A's, and from C's, as a share of its latent's norm",
        "noise (D against D again): "
        + ", ".join(f"{s} x {n} {_share(sweep.noise(s, n))}" for s, n in sweep.cells),
    ]
    if reused := sorted({(each.arm, each.timed_in) for each in sweep.measured if each.timed_in}):
        cells = ", ".join(f"{arm} in {cell}" for arm, cell in reused)
        lines.append(f"* the same work as in an earlier cell, timed there: {cells}")
    lines += [
        f"failed: {each.sources} x {each.edits_per_source} {each.arm}: {each.cause}"
        for each in sweep.failed
    ]
    lines.append(
        f"{machine.device}, {machine.threads} CPU threads, torch {machine.torch}, {machine.date}"
    )
    return lines


def target_lines(targets: Sequence[Target], sweeps: Sequence[Sweep]) -> list[str]:
    """A line for every aim that was measured: reached or missed by the faster of C and D."""
    lines = []
    for target in targets:
        for sweep in sweeps:
            reached = target.reached(sweep)
            if reached is not None:
                word = "reached" if reached >= target.least else "MISSED"
                lines.append(f"aim {word}: {target}; measured: {target.in_words(reached)}")
    return lines


def _times(speed: float, unit: float | None) -> str:
    return "-" if unit is None else f"{speed / unit:.2f}"


def _distance(distance: float | None) -> str:
    return "-" if distance is None else f"{distance:.1e}"


def _share(share: float | None) -> str:
    return "unknown, D failed" if share is None else f"{share:.1%}"
