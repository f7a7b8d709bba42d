"""One run of `fpe bench speed`: model after model, each printed and written as far as it is."""

from __future__ import annotations

import gc
import pathlib
from collections.abc import Sequence

import torch
from rich.console import Console

from fpe_core.checkpoint import choose_device
from fpe_core.errors import RowsOutOfMemoryError
from jobs.speed import tables
from jobs.speed.plot import speed_plot
from jobs.speed.presets import Target
from jobs.speed.report import Sweep, this_machine
from jobs.speed.rounds import one_line
from jobs.speed.saved import FILE, read_report, set_aside, write_report
from jobs.speed.sweep import Settings, check, measure, missing_cells

PLOT = "speed.png"


class Session:
    """What was measured so far, and where it is written."""

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
            settings: what is measured of every model.
            folder: for speed.json and speed.png. Without `resumes` a speed.json that is there is
                renamed when there is something to write.
            price_per_hour: of the device; None prints no prices.
            out: where tables are printed.
            resumes: whether cells that speed.json has are taken from there.

        Raises:
            UserError: speed.json has other settings, or cannot be read.
            CheckpointError: there is no such device.
        """
        self._settings = settings
        self._folder = folder
        self._price_per_hour = price_per_hour
        self._out = out
        self._machine = this_machine(choose_device(settings.device))
        self._sweeps = read_report(folder, self._machine, settings) if resumes else {}
        self._is_new = not resumes

    def measure(self, name: str) -> bool:
        """One model. False where it did not pass the gate, or an arm of it failed.

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
        """What was aimed for in the models that were measured, and where the files are."""
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
        torch._dynamo.reset()  # compiled graphs hold the model
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
