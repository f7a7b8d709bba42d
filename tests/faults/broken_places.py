"""Breaks what workers of some machines do, from outside: a hook that Ray calls in each new worker.

    ray.init(runtime_env={"worker_process_setup_hook": "tests.faults.broken_places.break_here"})

The environment variable BROKEN_PLACES names a JSON file: `device`, the ids of nodes on which every
edit raises the error of a device that has failed; `model`, those on which no checkpoint can be
loaded; `prompt`, a text that breaks the device on every node. Whatever breaks is noted, a line with
its node each time, in the same folder (`BROKEN`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

import ray

VARIABLE = "BROKEN_PLACES"
BROKEN = "broken.txt"


def break_here() -> None:
    """The hook: in a worker of a node that is named, and in all of them if a prompt is."""
    path = Path(os.environ[VARIABLE])
    faults, node = json.loads(path.read_text()), ray.get_runtime_context().get_node_id()
    if node in faults["device"] or faults["prompt"]:
        _break_device(
            path.parent / BROKEN, node, "" if node in faults["device"] else faults["prompt"]
        )
    if node in faults["model"]:
        _break_loading(path.parent / BROKEN, node)


def _break_device(notes: Path, node: str, prompt: str) -> None:
    import torch

    import fpe_core

    edit = fpe_core.Editor.edit

    def broken(self: Any, start: Any, prompts: Any, *arguments: Any) -> Any:
        if not prompt or any(prompt in each for each in prompts):
            _note(notes, node)
            raise torch.AcceleratorError(
                "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be ..."
            )
        return edit(self, start, prompts, *arguments)

    fpe_core.Editor.edit = broken  # type: ignore[method-assign]


def _break_loading(notes: Path, node: str) -> None:
    from pipeline.edit import actor

    def broken(*_arguments: Any, **_options: Any) -> NoReturn:
        _note(notes, node)
        raise OSError(28, "No space left on device")

    actor.load_checkpoint = broken  # type: ignore[attr-defined]


def _note(notes: Path, node: str) -> None:
    with notes.open("a") as file:
        file.write(f"{node}\n")
