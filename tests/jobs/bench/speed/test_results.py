"""`fpe bench speed`: aims, and the file that a run goes on from."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest
import torch

from jobs.bench.machine import this_machine
from jobs.bench.speed.device_time import KINDS, DeviceTime
from jobs.bench.speed.gate import TOLERANCE, GateComparison
from jobs.bench.speed.instruments import NETWORK_PHASES
from jobs.bench.speed.presets import PER_HOUR, PRESETS, ROWS_PER_S, UTILISATION, Target
from jobs.bench.speed.results import REST, Failed, Measured, Run, Sweep
from jobs.bench.speed.session import read_report, set_aside, write_report
from jobs.bench.speed.sweep import Settings
from jobs.bench.speed.tables import target_lines
from pipeline.errors import UserError


def cell_of(wall_s: dict[str, float], cell: tuple[int, int] = (1, 1)) -> list[Measured]:
    """Two edits by each arm in these seconds."""
    return [
        Measured(
            arm=name,
            title="",
            dtype="float32",
            sources=cell[0],
            edits_per_source=cell[1],
            edits=2,
            runs=(Run(own, dict.fromkeys((*NETWORK_PHASES, REST), own / 5), 1),) * 3,
            first_s=1.0,
            flops=3.0,
            peak_bytes=1,
            from_authors=0.0,
            from_ours=0.0,
        )
        for name, own in wall_s.items()
    ]


def sweep_of(*measured: Measured, **others: Any) -> Sweep:
    known: dict[str, Any] = {
        "cells": tuple(dict.fromkeys((each.sources, each.edits_per_source) for each in measured)),
        "minimal_flops": {1: 2.0},
        "product_flops_per_s": {"float32": 10.0},
        "parameters": {},
    }
    empty = dict.fromkeys(("gate", "failed", "profiles"), ())
    return Sweep(model="m", measured=measured, **{**empty, **known, **others})


def test_aims_are_held_against_the_fastest_of_our_arms() -> None:
    sweep = sweep_of(*cell_of({"A": 12.0, "B": 4.0, "C": 2.0, "D": 1.0}))
    for unit, reached in (
        ("A", 12.0),
        ("B", 4.0),
        (PER_HOUR, 7200.0),
        (UTILISATION, 0.4),
        (ROWS_PER_S, 1.0),
    ):
        assert Target("m", 1, unit, 6.0).reached(sweep) == pytest.approx(reached)
    for target in (Target("n", 1, "A", 6.0), Target("m", 4, "A", 6.0)):
        assert target.reached(sweep) is None
    assert Target("m", 1, "A", 6.0).reached(sweep_of(*cell_of({"D": 1.0}))) is None
    aims = [Target("m", 1, "A", 6.0), Target("m", 1, UTILISATION, 0.5)]
    assert target_lines(aims, [sweep]) == [
        "aim reached: m, one edit per source: 6 times A; measured: 12 times A",
        "aim MISSED: m, one edit per source: algorithmic utilisation 50%; "
        "measured: algorithmic utilisation 40%",
    ]
    assert Target("m", 1, ROWS_PER_S, 60.0).in_words(60.0) == "60 UNet rows per second"
    assert {target.model for target in PRESETS["cpu"].targets} == {"cpu-512"}
    assert [t.least for t in PRESETS["gpu"].targets if t.unit == UTILISATION] == [0.5, 0.5]


def test_what_was_written_is_read_again(tmp_path: pathlib.Path) -> None:
    machine, settings = this_machine(torch.device("cpu")), settings_of()
    profile = DeviceTime("D", 1, 1, 1.0, dict.fromkeys(KINDS, 1 / 7), {"aten::mm": 0.5})
    sweep = sweep_of(
        *cell_of({"A": 12.0, "C": 2.0}),
        gate=(GateComparison("B", "b", 1e-4, 2e-3, False),),
        failed=(Failed("D", 1, 1, "RuntimeError: out of memory"),),
        profiles=(profile,),
    )
    write_report(tmp_path, machine, settings, [sweep], 2.5)
    assert read_report(tmp_path, machine, settings) == {"m": sweep}
    assert read_report(tmp_path / "new", machine, settings) == {}
    wider = dataclasses.replace(settings, cells=((1, 1), (2, 2)))
    assert read_report(tmp_path, machine, wider) == {"m": sweep}
    with pytest.raises(UserError, match="has steps 3, this run has 4: give the same"):
        read_report(tmp_path, machine, dataclasses.replace(settings, steps=4))
    with pytest.raises(UserError, match=r"has device .*, this run has H100: give the same"):
        read_report(tmp_path, dataclasses.replace(machine, device="H100"), settings)
    (tmp_path / "speed.json").write_text("{")
    with pytest.raises(UserError, match="cannot be resumed"):
        read_report(tmp_path, machine, settings)


def settings_of(**others: Any) -> Settings:
    known: dict[str, Any] = {
        "device": "cpu",
        "dtype": "float32",
        "steps": 3,
        "size_px": None,
        "gate_size_px": None,
        "cells": ((1, 1),),
        "rounds": 1,
        "baseline_edits": 1,
        "arms": "A,B,B+,C,D",
        "tolerance": TOLERANCE,
        "authors": "",
        "profiles": False,
    }
    return Settings(**{**known, **others})


def test_an_earlier_report_is_not_overwritten(tmp_path: pathlib.Path) -> None:
    for text in ("one", "two"):
        (tmp_path / "speed.json").write_text(text)
        set_aside(tmp_path)
    assert set_aside(tmp_path) is None
    assert [(tmp_path / f"speed-{n}.json").read_text() for n in (1, 2)] == ["one", "two"]
