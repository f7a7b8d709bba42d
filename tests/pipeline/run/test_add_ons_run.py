"""A run on Ray with a LoRA, an embedding and an autoencoder of one's own, from a job file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from fpe_core import Editor, Embedding, Lora, load_checkpoint
from fpe_core.checkpoint.files import fingerprint_of, locate
from pipeline import run_job
from pipeline.errors import JobError
from pipeline.job.file import load_job
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.plan.resolved_job import resolve_job
from pipeline.storage.folder import Folder
from pipeline.verify.recompute import recompute_sample
from pipeline.verify.verify import verify_run
from tests.builders.lora_files import kohya_of, written
from tests.builders.tiny_checkpoint import build_tiny_checkpoint

PROMPT = "a <ink> car"


@dataclass(frozen=True)
class Files:
    """What a checkpoint is loaded with, on the disk."""

    checkpoint: Path
    lora: Path
    embedding: Path
    vae: Path

    @property
    def keys(self) -> dict[str, Any]:
        """Those of `model:` in a job file."""
        return {
            "loras": [{"file": str(self.lora), "weight": 0.5}],
            "embeddings": [{"file": str(self.embedding), "token": "<ink>"}],
            "vae": str(self.vae),
        }


@pytest.fixture
def files(tmp_path: Path, tiny_checkpoint: Path) -> Files:
    tiny = load_checkpoint(tiny_checkpoint, device="cpu")
    generator = torch.Generator().manual_seed(3)
    embedding = tmp_path / "ink.safetensors"
    save_file({"emb_params": torch.randn((2, 16), generator=generator)}, embedding)
    other = build_tiny_checkpoint(tmp_path / "other", seed=5)
    return Files(
        tiny_checkpoint,
        written(kohya_of(tiny), tmp_path / "lora.safetensors"),
        embedding,
        Path(shutil.copytree(other / "vae", tmp_path / "vae")),
    )


@pytest.fixture
def job_of(tmp_path: Path, files: Files, picture: Callable[..., Image.Image]) -> Callable[..., Job]:
    """The job file with these keys of `model:`, read as `fpe run` reads it."""
    picture().save(tmp_path / "0.png")
    columns = {"image": ["0.png"], "source_prompt": ["a cat"], "target_prompt": [PROMPT]}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")

    def make(output: str, **model: Any) -> Job:
        values = {
            "manifest": str(tmp_path / "m.parquet"),
            "output": str(tmp_path / output),
            "model": {"checkpoint": str(files.checkpoint), "device": "cpu", **model},
        }
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
        return load_job(tmp_path / "job.yaml")

    return make


def edited(job: Job) -> Image.Image:
    (path,) = Path(job.output).glob("part-*/edited/*.png")
    return Image.open(path)


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_edits_with_what_the_job_loads(
    job_of: Callable[..., Job], files: Files, tmp_path: Path
) -> None:
    job = job_of("run", **files.keys)
    summary = run_job(job)
    assert (summary.accepted, summary.failed) == (1, 0)
    assert verify_run(job).ok
    again = recompute_sample(job, 1)
    assert (again.compared, again.ok) == (1, True)
    checkpoint = load_checkpoint(
        files.checkpoint,
        device="cpu",
        loras=[Lora(files.lora, 0.5)],
        embeddings=[Embedding(files.embedding, "<ink>")],
        vae=files.vae,
    )
    editor = Editor(checkpoint)
    inversion = editor.invert([Image.open(tmp_path / "0.png")], ["a cat"])
    expected = np.asarray(editor.edit(inversion, [[PROMPT]]).edits[0][0].image, np.int16)
    assert np.abs(np.asarray(edited(job), np.int16) - expected).max() <= 1
    (metadata,) = Path(job.output).glob("part-*/metadata.parquet")
    (fingerprint,) = pq.read_table(metadata)["checkpoint_fingerprint"].to_pylist()
    assert fingerprint == checkpoint.fingerprint
    card = (Path(job.output) / "README.md").read_text()
    assert f"LoRA `{files.lora}` (weight 0.5)" in card
    assert f"embedding `{files.embedding}` as `<ink>`, autoencoder `{files.vae}`" in card


def test_each_of_them_is_part_of_the_ids(job_of: Callable[..., Job], files: Files) -> None:
    """And a job without any has the ids that it had before there were such keys."""
    jobs = {"none": {}, "empty": {"loras": [], "embeddings": [], "vae": None}}
    jobs |= {key: {key: value} for key, value in files.keys.items()}
    jobs["weaker"] = {"loras": [{"file": str(files.lora), "weight": 0.4}]}
    resolved = {name: resolve_job(job_of("run", **keys)) for name, keys in jobs.items()}
    ids = {name: tuple(each.edit_ids()) for name, each in resolved.items()}
    assert ids["none"] == ids["empty"]
    assert len(set(ids.values())) == len(jobs) - 1
    before = fingerprint_of(locate(files.checkpoint, False, None), False)
    assert resolved["none"].context.fingerprint == before


@pytest.mark.parametrize("key", ["loras", "embeddings", "vae"])
def test_what_does_not_fit_is_refused_before_anything_starts(
    key: str, job_of: Callable[..., Job], files: Files, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.safetensors"
    save_file({"else.weight": torch.ones((4, 4)), "else.bias": torch.ones(4)}, wrong)
    job = job_of("run", **{key: str(wrong) if key == "vae" else [str(wrong)]})
    with pytest.raises(JobError, match=r"^model: .*wrong\.safetensors"):
        resolve_job(job)
    missing = str(tmp_path / "missing.safetensors")
    job = job_of("run", **{key: missing if key == "vae" else [missing]})
    with pytest.raises(JobError, match=r"^model: no \w+ at .*missing\.safetensors"):
        resolve_job(job)
    assert not (tmp_path / "run").exists()
    assert not list(Ledger.open(Folder.open(job.output)).done_ids())
