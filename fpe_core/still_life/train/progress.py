"""What a training stage keeps between starts: budget, snapshots, curve."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fpe_core.still_life.train import workers

log = logging.getLogger(__name__)

_WARMUP_STEPS = 100


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long a stage trains: until `seconds` are spent or `steps` are done."""

    seconds: float = math.inf
    steps: float = math.inf

    def spent(self, step: int, seconds: float) -> float:
        """The part of the budget that is used up, 0 to 1 or beyond."""
        return max(seconds / self.seconds, step / self.steps)


@dataclasses.dataclass
class Run:
    """One stage's training loop, resumed from its snapshot if there is one.

    `state` names everything with `state_dict` and `load_state_dict` that must survive a kill. Time
    spent before the kill counts against the budget; the work since the last snapshot is lost.
    """

    name: str
    folder: Path
    budget: Budget
    optimizer: torch.optim.Optimizer
    peak_lr: float
    state: dict[str, Any]
    snapshot_every_s: float = 90.0
    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = dataclasses.field(default_factory=list)

    @property
    def snapshot_path(self) -> Path:
        return self.folder / f"{self.name}.pt"

    @property
    def spent(self) -> float:
        return self.budget.spent(self.step, self.seconds)

    def steps(self) -> Iterator[int]:
        """Yields step numbers until the budget is spent; sets learning rates, takes snapshots."""
        self._resume()
        started, before = time.monotonic(), self.seconds
        saved_at = started
        while self.spent < 1.0:
            self._set_lr()
            yield self.step
            self.step += 1
            now = time.monotonic()
            self.seconds = workers.agree(before + now - started)
            if now - saved_at > self.snapshot_every_s:
                self.save()
                saved_at = now
        self.save()

    def record(self, **figures: float) -> None:
        """Adds a point to the curve and to the log, in process 0."""
        if workers.rank():
            return
        point = {"step": float(self.step), "seconds": round(self.seconds, 1), **figures}
        self.curve.append(point)
        log.info("%s %s", self.name, " ".join(f"{k}={v:.5g}" for k, v in point.items()))

    def save(self) -> None:
        """Writes the snapshot and the curve, each by one rename, in process 0."""
        if workers.rank():
            return
        snapshot = {
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
            "optimizer": self.optimizer.state_dict(),
            "state": {name: part.state_dict() for name, part in self.state.items()},
        }
        partial = self.snapshot_path.with_suffix(".partial")
        torch.save(snapshot, partial)
        partial.replace(self.snapshot_path)
        write_json(self.folder / f"{self.name}_curve.json", self.curve)

    def _resume(self) -> None:
        if not self.snapshot_path.exists():
            return
        snapshot = torch.load(self.snapshot_path, map_location="cpu", weights_only=True)
        self.step, self.seconds = snapshot["step"], snapshot["seconds"]
        self.curve = snapshot["curve"]
        self.optimizer.load_state_dict(snapshot["optimizer"])
        for name, part in self.state.items():
            part.load_state_dict(snapshot["state"][name])
        log.info("%s continues at step %d, %.0f s spent", self.name, self.step, self.seconds)

    def _set_lr(self) -> None:
        warmup = min(1.0, (self.step + 1) / _WARMUP_STEPS)
        decay = 0.5 * (1.0 + math.cos(math.pi * min(1.0, self.spent)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_lr * group.get("lr_scale", 1.0) * warmup * max(decay, 0.005)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON by one rename."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def log_into(folder: Path) -> None:
    """Logs to the terminal and to `folder`/train.log, in process 0."""
    if workers.rank():
        return
    folder.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [
        logging.StreamHandler(),
        logging.FileHandler(folder / "train.log"),
    ]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
