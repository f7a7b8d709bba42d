"""Editing workers that are broken on some machines: what stands in the run for RayEditActor.

The environment variable BROKEN_PLACES names a JSON file: `device`, the ids of nodes on which every
edit raises the error of a device that has failed; `model`, those on which no checkpoint can be
loaded; `prompt`, a text that breaks the device on every node. Whatever breaks is noted, a line with
its node each time, in the same folder (`BROKEN`). On nodes that are not broken, edits begin when
`first` lines are there, and blocks when `loaded` workers load, so that who is first does not depend
on how fast the machine is. `slow_s` is what every block takes in addition.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import ray
import torch

import fpe_core
from pipeline.cluster import deputies, graph
from pipeline.cluster.actor_kinds import ActorKind
from pipeline.cluster.deputies import EditDeputy
from pipeline.cluster.workers import RayEditActor, _settings_here
from pipeline.edit import actor
from pipeline.edit.settings import EditSettings

VARIABLE = "BROKEN_PLACES"
BROKEN = "broken.txt"
THREADS = "threads.jsonl"
"""The threads and the share of memory that workers have, by node."""


class BrokenEditActor(RayEditActor):
    """A RayEditActor that finds out where it is, and breaks its own process there."""

    def __init__(self, *arguments: Any) -> None:
        path = Path(os.environ[VARIABLE])
        faults, node = json.loads(path.read_text()), ray.get_runtime_context().get_node_id()
        self._slow_s, self._loaded = faults["slow_s"], faults["loaded"]
        _break(path.parent / BROKEN, faults, node)
        super().__init__(*arguments)

    def _load(self, settings: EditSettings, kinds: Sequence[ActorKind]) -> str:
        here = _settings_here(settings, kinds)
        node = ray.get_runtime_context().get_node_id()
        with Path(os.environ[VARIABLE]).with_name(THREADS).open("a") as file:
            file.write(
                json.dumps([node, here.threads, here.memory_share], separators=(",", ":")) + "\n"
            )
        return super()._load(settings, kinds)

    def __call__(self, packed: pa.Table) -> pa.Table:
        time.sleep(self._slow_s)
        while len(Path(os.environ[VARIABLE]).with_name(THREADS).read_text().split()) < self._loaded:
            time.sleep(0.1)
        return super().__call__(packed)


class BrokenEditDeputy(EditDeputy):
    """An EditDeputy whose editing actor is a `BrokenEditActor`."""

    def __init__(self, *arguments: Any) -> None:
        deputies.RayEditActor = BrokenEditActor  # type: ignore[misc]
        super().__init__(*arguments)


def use_broken_workers() -> None:
    """From now on, runs of this process have these workers."""
    graph.RayEditActor = BrokenEditActor  # type: ignore[misc]
    graph.EditDeputy = BrokenEditDeputy  # type: ignore[misc]


def _break(notes: Path, faults: dict[str, Any], node: str) -> None:
    edit = fpe_core.Editor.edit

    def device_fails(self: Any, start: Any, prompts: Any, *arguments: Any) -> Any:
        if node in faults["device"] or any(faults["prompt"] in p for each in prompts for p in each):
            _note(notes, node)
            raise torch.AcceleratorError(
                "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be ..."
            )
        return edit(self, start, prompts, *arguments)

    def waits(self: Any, *arguments: Any) -> Any:
        while len(notes.read_text().split()) < faults["first"]:
            time.sleep(0.1)
        return edit(self, *arguments)

    def disk_is_full(*_arguments: Any, **_options: Any) -> NoReturn:
        _note(notes, node)
        raise OSError(28, "No space left on device")

    wrong: Callable[..., Any] = waits
    if node in faults["model"]:
        actor.load_checkpoint = disk_is_full  # type: ignore[attr-defined]
    elif node in faults["device"] or faults["prompt"]:
        wrong = device_fails
    fpe_core.Editor.edit = wrong  # type: ignore[method-assign]


def _note(notes: Path, node: str) -> None:
    with notes.open("a") as file:
        file.write(f"{node}\n")
