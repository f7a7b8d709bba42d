"""Times the same edits in a run and with the bare editor, to show what the pipeline adds.

The bare editor gets the same blocks and calls as the run's actor, but as images that are already in
memory, and its edits are not written. Both have to evaluate the same number of UNet rows.
"""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fpe_core import Editor, EditParameters
from jobs.demo_scenes import write_scenes
from jobs.job_file.ready_made import BUILTIN_FOLDER
from pipeline.editor_calls import call_by_call, edits_per_call
from pipeline.errors import UserError
from pipeline.job.file import load_job
from pipeline.run.driver import run_job


@dataclass(frozen=True)
class Source:
    """A source image and the prompts of its edits."""

    image: Image.Image
    prompt: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Round:
    """Seconds of one round, and the UNet rows of the run and of the bare editor.

    Attributes:
        bare_s: seconds of the bare editor.
        span_s: seconds of the run, from its first block to its last.
        model_s: the part of `span_s` in which the model computed.
        run_s: seconds of the whole run, including Ray's start and loading the model.
    """

    edits: int
    unet_rows: float
    bare_s: float
    span_s: float
    model_s: float
    run_s: float

    @property
    def share(self) -> float:
        """Edits per second of the run, from first block to last, divided by the bare editor's."""
        return self.bare_s / self.span_s

    def to_dict(self) -> dict[str, float]:
        return asdict(self) | {"share": self.share}


class PipelineBenchmark:
    """Scenes, a job that edits them, and an editor with the job's checkpoint."""

    def __init__(
        self,
        folder: pathlib.Path,
        editor: Editor,
        *,
        scenes: int,
        sources_per_block: int,
        settings: Sequence[str] = (),
    ) -> None:
        """`settings` are keys of the job. Raises UserError where `folder` has runs already."""
        self._folder, self._editor = folder, editor
        if any(folder.glob("run-*")):
            raise UserError(f"{folder} has runs already; give --out a new folder")
        rendered = write_scenes(folder / "scenes", scenes)
        self._block = sources_per_block
        self._settings = [
            f"manifest={rendered.manifest}",
            f"model.checkpoint={editor.checkpoint.name}",
            f"resources.groups_per_block={sources_per_block}",
            "resources.actors=1",
            *settings,
        ]
        self._sources = list(_read(rendered.manifest))

    def round(self, number: int) -> Round:
        """Times the run, then the bare editor. Raises UserError if they did not do the same
        work."""
        output = f"output={self._folder / f'run-{number}'}"
        job = load_job(BUILTIN_FOLDER / "demo.yaml", [*self._settings, output])
        parameters = job.resolve_parameters(self._editor.checkpoint.default_parameters)
        summary = run_job(job, progress=_Silent())
        if summary.edits_made - summary.failed < summary.edits_planned:
            raise UserError(f"edits failed, see stats.json in {summary.output}: nothing to compare")
        if number == 0:  # what a device does only the first time
            self._edit_alone(parameters, sources=min(self._block, len(self._sources)))
        began = time.monotonic()
        rows = self._edit_alone(parameters, len(self._sources))
        bare_s = time.monotonic() - began
        if not math.isclose(rows, summary.unet_rows, rel_tol=1e-6):
            raise UserError(f"the editor took {rows} UNet rows and the run {summary.unet_rows:g}")
        edited = summary.stages["edit"]
        return Round(
            edits=summary.edits_made,
            unet_rows=rows,
            bare_s=bare_s,
            span_s=edited["span_seconds"],
            model_s=edited["seconds"],
            run_s=summary.seconds,
        )

    def _edit_alone(self, parameters: EditParameters, sources: int) -> float:
        """Edits the first sources in the run's blocks and calls; returns the UNet rows."""
        rows, editor = 0.0, self._editor
        for first in range(0, sources, self._block):
            block = self._sources[first : first + self._block]
            prompts = [source.prompt for source in block]
            inversion = editor.invert([source.image for source in block], prompts, parameters)
            rows += inversion.unet_rows
            sizes = [len(source.targets) for source in block]
            most = edits_per_call(parameters.width_px, parameters.height_px)
            for call in call_by_call(sizes, range(len(block)), most):
                targets = [block[index].targets[part.start : part.stop] for index, part in call]
                chosen = inversion.select([index for index, _ in call])
                rows += editor.edit(chosen, targets).unet_rows
        return rows


def _read(manifest: pathlib.Path) -> Iterator[Source]:
    for row in pq.read_table(manifest).to_pylist():
        with Image.open(manifest.parent / row["image"]) as image:
            picture = image.convert("RGB")
        yield Source(picture, row["source_prompt"], tuple(row["target_prompt"]))


class _Silent:
    """Reports no progress: a round is reported when it is over."""

    def start(self, total: int, done: int) -> None:
        pass

    def advance(self, outcomes_table: pa.Table) -> None:
        pass

    def finish(self) -> None:
        pass
