"""speed.json: written after every cell, and read again by a run that goes on."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from jobs.speed.device_time import DeviceTime
from jobs.speed.gate import Comparison
from jobs.speed.measured import Failed, Measured, Run
from jobs.speed.report import Machine, Sweep, as_json
from jobs.speed.sweep import Settings
from pipeline.errors import UserError

FILE = "speed.json"
_T = TypeVar("_T")


def write_report(
    folder: pathlib.Path,
    machine: Machine,
    settings: Settings,
    sweeps: Sequence[Sweep],
    price_per_hour: float | None,
) -> None:
    """Replaces the file in one move: who is killed while writing leaves the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    report = as_json(machine, settings.comparable(), sweeps, price_per_hour)
    unfinished = folder / f".{FILE}"
    unfinished.write_text(json.dumps(report, indent=1), encoding="utf-8")
    unfinished.replace(folder / FILE)


def read_report(folder: pathlib.Path, machine: Machine, settings: Settings) -> dict[str, Sweep]:
    """What an earlier run measured, by model; nothing where there is no file.

    Raises:
        UserError: the file is none, or of other settings or another machine.
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
            f"{path} cannot be gone on from ({type(error).__name__}: {error}): it is damaged or of "
            "another version of this program; give another --out, or leave out --resume"
        ) from error


def set_aside(folder: pathlib.Path) -> pathlib.Path | None:
    """Renames an earlier run's file, which a new one would overwrite; None where there is none."""
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
    """The machine's device, by name, stands for the one that was asked for."""
    return {**settings, **{name: machine[name] for name in ("device", "threads", "torch")}}


def _sweep(read: dict[str, Any]) -> Sweep:
    return Sweep(
        model=read["model"],
        parameters=read["parameters"],
        gate=tuple(_made(Comparison, each) for each in read["gate"]),
        cells=tuple((sources, edits) for sources, edits in read["cells"]),
        measured=tuple(
            _made(Measured, {**each, "runs": tuple(_made(Run, run) for run in each["runs"])})
            for each in read["measured"]
        ),
        failed=tuple(_made(Failed, each) for each in read["failed"]),
        profiles=tuple(_made(DeviceTime, each) for each in read["profiles"]),
        minimal_flops={int(n): own for n, own in read["minimal_flops_per_edit"].items()},
        product_flops_per_s=read["product_flops_per_s"],
        compile_error=read["compile_error"],
    )


def _made(kind: type[_T], read: dict[str, Any]) -> _T:
    """A dataclass from its fields; what was worked out from them is left."""
    return kind(**{field.name: read[field.name] for field in fields(kind)})  # type: ignore[arg-type]
