"""Processes that train together. Few imports: every process starts by importing this file."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fpe_core.still_life.train.workers import agree, average_gradients, rank, run_on_workers


def test_workers_average_gradients_and_follow_the_first(tmp_path: Path) -> None:
    run_on_workers(report_gradient, tmp_path, processes=2)
    reports = [json.loads((tmp_path / f"{n}.json").read_text()) for n in range(2)]
    assert reports == [{"gradient": [1.5, 1.5], "agreed": 0.0}] * 2


def report_gradient(folder: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.full((2,), 1.0 + rank())
    average_gradients([weight])
    report = {"gradient": weight.grad.tolist(), "agreed": agree(float(rank()))}
    (folder / f"{rank()}.json").write_text(json.dumps(report))


def test_one_worker_needs_no_second_process() -> None:
    calls: list[int] = []
    run_on_workers(calls.append, 7, processes=1)
    assert calls == [7]
    assert (rank(), agree(3.0)) == (0, 3.0)
