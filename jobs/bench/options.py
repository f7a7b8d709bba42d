"""Options and helper functions that the bench commands share."""

from __future__ import annotations

import enum
import logging
import pathlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from fpe_core import Editor


_log = logging.getLogger(__name__)
_LOG_EVERY = 40
STILL_LIFE_RULES = pathlib.Path(__file__).parent.parent / "rules" / "still_life.yaml"
"""Chosen for the built-in models by `fpe calibrate --benchmark`."""

T = TypeVar("T")


class SplitName(enum.StrEnum):
    """The held-out scenes: test scenes to report on, validation scenes to choose settings by."""

    TEST = "test"
    VALIDATION = "validation"


Checkpoint = Annotated[
    str, typer.Option(help="Built-in model, diffusers folder, file or hub id.", metavar="SOURCE")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]
Split = Annotated[
    SplitName, typer.Option(help="Held-out scenes: test to report on, validation to choose by.")
]
Out = Annotated[pathlib.Path, typer.Option(help="Folder for tables and pictures.")]
Rows = Annotated[int, typer.Option(min=1, help="Most UNet rows in one call.")]


def _silence_loading_bars() -> None:
    """transformers draws a loading bar for every network, however small."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def load_editor(checkpoint: str, device: str, max_rows: int, dtype: str = "auto") -> Editor:
    from fpe_core import Editor, load_checkpoint

    _silence_loading_bars()
    return Editor(load_checkpoint(checkpoint, device=device, dtype=dtype), max_rows=max_rows)


def held_out_seeds(split: SplitName, scenes: int) -> range:
    from fpe_core.still_life.benchmark.edits import seeds_of

    return seeds_of(split.value, scenes)


def whole_numbers(option: str, text: str, example: str) -> tuple[int, ...]:
    """The numbers in a text such as "1,4,16". Raises ParameterError for anything but numbers from
    1."""
    from fpe_core import ParameterError

    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = (0,)
    if min(counts) < 1:
        raise ParameterError(
            f"{option} must be whole numbers from 1, such as {example}; got {text!r}"
        )
    return counts


def require_matplotlib() -> None:
    """Raises UserError if matplotlib is not installed; called before anything is measured."""
    from pipeline.errors import UserError

    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError(
            "the plot needs matplotlib: pip install 'free-prompt-editing-batch[bench]'"
        ) from error


def collect(results: Iterable[T], total: int, what: str) -> list[T]:
    """Collects all results, and logs now and then how many there are."""
    return list(_counted(results, total, what))


def _counted(results: Iterable[T], total: int, what: str) -> Iterator[T]:
    for number, result in enumerate(results, start=1):
        yield result
        if number % _LOG_EVERY == 0 or number == total:
            _log.info("%d of %d %s", number, total, what)
