"""One run of `fpe bench speed`: measures models, prints the results, and writes speed.json.

speed.json is written after every cell, and read by a run that resumes.
"""

from __future__ import annotations

import gc
import json
import pathlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from rich.console import Console

from fpe_core.device import choose_device
from fpe_core.errors import RowsOutOfMemoryError
from jobs.bench.machine import Machine, this_machine
from jobs.bench.options import require_matplotlib
from jobs.bench.speed import tables
from jobs.bench.speed.device_time import DeviceTime
from jobs.bench.speed.gate import GateComparison
from jobs.bench.speed.plot import speed_plot
from jobs.bench.speed.presets import Target
from jobs.bench.speed.results import Failed, Measured, Run, Sweep, as_json
from jobs.bench.speed.rounds import one_line
from jobs.bench.speed.sweep import Settings, check, measure, missing_cells
from pipeline.errors import UserError

PLOT = "speed.png"


class Session:
    """Measures models, and keeps and writes the results."""

    def __init__(
        self,
        settings: Settings,
        folder: pathlib.Path,
        price_per_hour: float | None,
        out: Console,
        *,
        resumes: bool,
    ) -> None:
        """
        Args:
            settings: what to measure of every model.
            folder: for speed.json and speed.png. Without `resumes`, an existing speed.json is
                renamed before the first results are written.
            price_per_hour: price of the device; None prints no prices.
            out: where tables are printed.
            resumes: whether to keep the cells in speed.json, and measure only the others.

        Raises:
            UserError: speed.json has other settings, or cannot be read; no matplotlib.
            CheckpointError: there is no such device.
        """
        require_matplotlib()
        self._settings = settings
        self._folder = folder
        self._price_per_hour = price_per_hour
        self._out = out
        self._machine = this_machine(choose_device(settings.device))
        self._sweeps = read_report(folder, self._machine, settings) if resumes else {}
        self._is_new = not resumes

    def measure(self, name: str) -> bool:
        """Measures and prints one model. Returns False if the gate failed, or an arm.

        Raises:
            CheckpointError, ParameterError: the model or the settings cannot be used.
        """
        earlier = self._sweeps.get(name)
        passed = not missing_cells(self._settings, earlier) or self._measure_missing(name)
        sweep = self._sweeps.get(name)
        if sweep:
            self._print(sweep)
        return passed and sweep is not None and not sweep.failed

    def print_aims(self, targets: Sequence[Target]) -> None:
        """Prints the aims for the models that were measured, and where the files are."""
        for line in tables.target_lines(targets, list(self._sweeps.values())):
            self._out.print(line, markup=False)
        if self._sweeps:
            self._out.print(f"{self._folder}/{FILE}, {PLOT}")

    def _measure_missing(self, name: str) -> bool:
        try:
            checked = check(name, self._settings)
        except (RuntimeError, RowsOutOfMemoryError) as error:  # other models may still fit
            self._out.print(f"{name} is left out: {one_line(error)}", markup=False)
            return False
        self._out.print(tables.gate_table(name, checked.gate))
        if not checked.ok:
            self._out.print(f"{name} did not pass the gate: nothing was timed.")
            return False
        for sweep in measure(checked, self._settings, self._sweeps.get(name)):
            self._sweeps[name] = sweep
            self._write()
        del checked
        gc.collect()
        return True

    def _write(self) -> None:
        if self._is_new and (kept := set_aside(self._folder)):
            self._out.print(f"an earlier {FILE} is kept as {kept}")
        self._is_new = False
        sweeps = list(self._sweeps.values())
        write_report(self._folder, self._machine, self._settings, sweeps, self._price_per_hour)
        speed_plot(sweeps, self._folder / PLOT)

    def _print(self, sweep: Sweep) -> None:
        self._out.print(tables.speed_table(sweep, self._price_per_hour))
        self._out.print(tables.phase_table(sweep))
        if sweep.profiles:
            self._out.print(tables.profile_table(sweep))
        for line in tables.notes(sweep, self._machine):
            self._out.print(line, markup=False)


FILE = "speed.json"
_T = TypeVar("_T")


def write_report(
    folder: pathlib.Path,
    machine: Machine,
    settings: Settings,
    sweeps: Sequence[Sweep],
    price_per_hour: float | None,
) -> None:
    """Writes speed.json by replacing it at once: if the process is killed, the old file remains."""
    folder.mkdir(parents=True, exist_ok=True)
    report = as_json(machine, settings.comparable(), sweeps, price_per_hour)
    unfinished = folder / f".{FILE}"
    unfinished.write_text(json.dumps(report, indent=1), encoding="utf-8")
    unfinished.replace(folder / FILE)


def read_report(folder: pathlib.Path, machine: Machine, settings: Settings) -> dict[str, Sweep]:
    """The results of an earlier run by model; empty if there is no file.

    Raises:
        UserError: the file cannot be read, or has other settings or another machine.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        _require_the_same(path, _identity(report["machine"], report["settings"]), machine, settings)
        return {each["model"]: _sweep(each) for each in report["models"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be resumed ({type(error).__name__}: {error}): it is damaged or from "
            "another version of this program; give another --out, or leave out --resume"
        ) from error


def set_aside(folder: pathlib.Path) -> pathlib.Path | None:
    """Renames an existing speed.json, which would be overwritten; returns the new path, or None."""
    path, number = folder / FILE, 1
    if not path.exists():
        return None
    while (kept := path.with_stem(f"{path.stem}-{number}")).exists():
        number += 1
    path.rename(kept)
    return kept


def _require_the_same(
    path: pathlib.Path, found: dict[str, Any], machine: Machine, settings: Settings
) -> None:
    wanted = _identity(vars(machine), settings.comparable())
    for name, own in wanted.items():
        if found[name] != own:
            raise UserError(
                f"{path} has {name} {found[name]}, this run has {own}: give the same, or another "
                "--out, or leave out --resume"
            )


def _identity(machine: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What must be the same to resume. The device is compared by its name, not as requested."""
    return {**settings, **{name: machine[name] for name in ("device", "threads", "torch")}}


def _sweep(read: dict[str, Any]) -> Sweep:
    return Sweep(
        model=read["model"],
        parameters=read["parameters"],
        gate=tuple(_made(GateComparison, each) for each in read["gate"]),
        cells=tuple((sources, edits) for sources, edits in read["cells"]),
        measured=tuple(
            _made(Measured, {**each, "runs": tuple(_made(Run, run) for run in each["runs"])})
            for each in read["measured"]
        ),
        failed=tuple(_made(Failed, each) for each in read["failed"]),
        profiles=tuple(_made(DeviceTime, each) for each in read["profiles"]),
        minimal_flops={int(n): own for n, own in read["minimal_flops_per_edit"].items()},
        product_flops_per_s=read["product_flops_per_s"],
    )


def _made(kind: type[_T], read: dict[str, Any]) -> _T:
    """A dataclass from the JSON of its fields; other entries, which are derived, are ignored."""
    return kind(**{field.name: read[field.name] for field in fields(kind)})  # type: ignore[arg-type]
