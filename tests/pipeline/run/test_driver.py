"""The whole job on a local Ray: a manifest goes in, an edited dataset comes out, once."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from fpe_core.scores.files import SCORER_DIR
from pipeline.cluster.graph import WorkerError
from pipeline.errors import Interrupted, JobError, LeaseError, ResourceError, TooManyFailuresError
from pipeline.job.job import Job
from pipeline.job.judge import JudgeSection
from pipeline.job.prompts import PromptsSection
from pipeline.ledger.lease import Lease, hold_lease, lease_state, take_lease
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import OUTCOME_SCHEMA, FailureCode
from pipeline.run.driver import retry_failed, run_job
from pipeline.run.stats import RunSummary
from pipeline.storage.folder import Folder
from pipeline.storage.requests import request_counts
from pipeline.verify.verify import verify_run
from tests.builders.tiny_checkpoint import SIZE_PX, build_tiny_checkpoint, write_defaults
from tests.servers.s3_server import CREDENTIALS, S3Server, write_profile

STEPS, REPLACED, GUIDED = 4, 2, 8
EDIT_ROWS = GUIDED - 1
SOURCE_ROWS, SYNTHETIC_ROWS = STEPS + REPLACED + 1, GUIDED + 1
"""UNet rows of the tiny checkpoint's recommendation: per source, real or synthetic, and EDIT_ROWS
per edit. The first step's unconditional row, which all edits of a source share, is the 1."""

WriteManifest = Callable[..., str]
MakeJob = Callable[..., Job]

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Recorder:
    """A progress sink that keeps what it is told."""

    def __init__(self) -> None:
        self.started: list[tuple[int, int]] = []
        self.tables: list[pa.Table] = []
        self.finished = 0

    def start(self, total: int, done: int) -> None:
        self.started.append((total, done))

    def advance(self, outcomes_table: pa.Table) -> None:
        self.tables.append(outcomes_table)

    def finish(self) -> None:
        self.finished += 1


class InterruptedBy(Recorder):
    """One that sends this process a signal when the first outcomes arrive."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def advance(self, outcomes_table: pa.Table) -> None:
        super().advance(outcomes_table)
        if len(self.tables) == 1:
            os.kill(os.getpid(), self._number)


class TakenOver(Recorder):
    """One that lets another run take the folder over when the first outcomes arrive.

    As if this process had slept for an hour just then.
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._folder = Folder.open(job.output)
        self.taken: Lease | None = None

    def advance(self, outcomes_table: pa.Table) -> None:
        super().advance(outcomes_table)
        if self.taken is None:
            self.taken = take_lease(self._folder, expiry_s=60.0, silence_s=lambda *_: 3600.0)


class WorkerKiller(Recorder):
    """One that kills the editing workers once, in the middle of their work."""

    def __init__(self) -> None:
        super().__init__()
        self.killed: list[int] = []

    def advance(self, outcomes_table: pa.Table) -> None:
        super().advance(outcomes_table)
        if not self.killed:
            processes = psutil.Process().children(recursive=True)  # Ray's are ours
            self.killed = [p.pid for p in processes if "RayEditActor" in " ".join(p.cmdline())]
            for pid in self.killed:
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def write_manifest(
    tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., Image.Image]
) -> WriteManifest:
    """write_manifest(n, columns...): n pictures and a manifest that names them."""

    def write(count: int, **columns: Sequence[Any] | pa.Array) -> str:
        folder = tmp_path_factory.mktemp("manifest")
        (folder / "pictures").mkdir()
        for number in range(count):
            picture(number).save(folder / "pictures" / f"{number}.png")
        defaults: dict[str, Any] = {
            "image": [f"pictures/{number}.png" for number in range(count)],
            "target_prompt": ["a red cat"] * count,
        }
        pq.write_table(pa.table(defaults | columns), folder / "manifest.parquet")
        return str(folder / "manifest.parquet")

    return write


@pytest.fixture(scope="module")
def make_job(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    """make_job(manifest, sections...): a job of the tiny checkpoint, one actor, a new folder.

    The actor takes two of the three CPUs, so all these jobs run as on a machine that has room for
    one actor and one reader.
    """

    def make(manifest: str, **sections: Any) -> Job:
        values: dict[str, Any] = {
            "manifest": manifest,
            "output": str(tmp_path_factory.mktemp("job") / "run"),
            "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
            "resources": {"groups_per_block": 2, "cpus_per_actor": 2},
        }
        return Job(**(values | sections))

    return make


@dataclass(frozen=True)
class Finished:
    """A job that has run."""

    job: Job
    summary: RunSummary
    progress: Recorder


@pytest.fixture(scope="module")
def finished(ray_cluster: None, write_manifest: WriteManifest, make_job: MakeJob) -> Finished:
    """Good and bad rows, real and synthetic sources, labels, columns that are all null."""
    pictures = [f"pictures/{number}.png" for number in range(5)]
    manifest = write_manifest(
        5,
        image=[*pictures, "pictures/absent.png", "manifest.parquet", None],
        target_prompt=pa.array([None] * 8, pa.string()),
        source_prompt=[*[None] * 7, "a photo of a dog"],
        seed=pa.array([*[None] * 7, 7], pa.int64()),
        split=["train"] * 6 + ["test"] * 2,
        colour=["red", "blue", "red", "blue", "red", "red", "red", "blue"],
        weather=pa.array([None] * 8, pa.string()),
        cover_file_name=["x"] * 8,
    )
    prompts = {"target": "a {colour} cat", "labels": {"colour": ["red", "green"]}}
    job = make_job(manifest, prompts=prompts)
    progress = Recorder()
    return Finished(job, run_job(job, progress=progress), progress)


def outcomes_of(job: Job) -> list[dict[str, Any]]:
    ledger = Ledger.open(Folder.open(job.output, job.storage_options))
    return sorted(
        (row for table in ledger.outcomes() for row in table.to_pylist()),
        key=lambda row: (row["row"], row["target_prompt"]),
    )


def stats_of(job: Job) -> dict[str, Any]:
    return dict(json.loads(Path(job.output, "stats.json").read_text()))


def files_of(job: Job) -> dict[Path, int]:
    """All files but the lease's, with the time of their last change."""
    files = (p for p in Path(job.output).rglob("*") if p.is_file() and ".lease" not in p.parts)
    return {path: path.stat().st_mtime_ns for path in files}


def test_every_edit_of_a_manifest_has_its_outcome(finished: Finished) -> None:
    # Rows that are red already have one edit, the others two.
    summary = finished.summary
    assert (summary.edits_planned, summary.already_done) == (11, 0)
    assert (summary.accepted, summary.failed) == (9, 2)
    assert summary.failures_by_code == {"decode_failed": 1, "source_missing": 1}
    verification = verify_run(finished.job)
    assert verification.ok, verification.problems
    assert (verification.accepted, verification.failed, verification.pending) == (9, 2, 0)


def test_sources_are_inverted_once(finished: Finished) -> None:
    real, synthetic, edits = 5, 1, 9
    expected = real * SOURCE_ROWS + synthetic * SYNTHETIC_ROWS + edits * EDIT_ROWS
    assert finished.summary.unet_rows == pytest.approx(expected)


def test_every_stage_says_what_it_cost(finished: Finished) -> None:
    stages = stats_of(finished.job)["last_run"]["stages"]
    rows = {name: figures["rows"] for name, figures in stages.items()}
    # 8 sources; the edits of the two bad ones pass through too; images of 9 edits and 6 sources.
    assert rows == {"load": 1, "decode": 8, "edit": 11, "write": 15, "commit": 11}
    assert all(figures["seconds"] > 0 for figures in stages.values())
    pictures = sum(path.stat().st_size for path in Path(finished.job.output).rglob("*.png"))
    assert stages["write"]["bytes_written"] > pictures
    assert stages["decode"]["bytes_read"] > 0
    assert sum(figures.get("retries", 0) for figures in stages.values()) == 0
    assert 0 < finished.summary.busy_share < 1
    assert stages["edit"]["unet_rows"] == pytest.approx(finished.summary.unet_rows)
    assert finished.summary.unet_rows_wasted == pytest.approx(0)
    examples = finished.summary.failure_examples
    assert "absent.png" in examples["source_missing"]


def test_rejected_edits_are_in_the_ledger_and_not_in_the_dataset(
    ray_cluster: None, write_manifest: WriteManifest, make_job: MakeJob, tmp_path: Path
) -> None:
    manifest = write_manifest(4, edit_type=["colour", "style", None, "style"])
    never = {"score": "changed_share", "at_least": 2.0, "reason": "no_change"}
    judge = {"clip": None, "structure": None, "rules": {"style": [never]}}
    job = make_job(manifest, judge=judge)
    summary = run_job(job, progress=Recorder())
    assert (summary.accepted, summary.rejected, summary.failed) == (2, 2, 0)
    assert summary.rejections_by_reason == {"no_change": 2}
    assert summary.stages["judge"]["rows"] == 4
    rejected = [row for row in outcomes_of(job) if row["outcome"] == "rejected"]
    assert {(r["edit_type"], r["reason"]) for r in rejected} == {("style", "no_change")}
    assert all(row["psnr_db"] is not None for row in outcomes_of(job))

    loaded = datasets.load_dataset(job.output, cache_dir=str(tmp_path))["train"]
    assert sorted(loaded["edit_type"], key=str) == [None, "colour"]
    assert loaded["manifest_edit_type"] == loaded["edit_type"]
    assert all(row["edited"].size == (SIZE_PX, SIZE_PX) for row in loaded)
    assert set(loaded["verdict"]) == {"accepted"}
    apart = datasets.load_dataset(job.output, "rejected", cache_dir=str(tmp_path))["train"]
    assert apart["reject_reason"] == ["no_change"] * 2
    assert all(row["edited"].size == row["source"].size for row in apart)

    verification = verify_run(job)
    assert verification.ok, verification.problems
    assert (verification.accepted, verification.rejected) == (2, 2)
    assert run_job(job, progress=Recorder()).edits_made == 0, "a verdict is final"
    config = Path(job.output, "config.yaml").read_bytes()
    others = JudgeSection.model_validate(judge | {"rules": {"style": [{**never, "at_least": 1.0}]}})
    edit = job.edit.model_copy(update={"guidance_scale": 1.5})
    with pytest.raises(JobError, match=r"judge\.rules for edits of style.*a verdict is final"):
        run_job(job.model_copy(update={"edit": edit, "judge": others}), progress=Recorder())
    assert Path(job.output, "config.yaml").read_bytes() == config
    Path(job.output, rejected[0]["edited_file_name"]).unlink()
    assert "an image is missing" in verify_run(job).problems[0]


def test_progress_hears_of_every_edit(finished: Finished) -> None:
    progress = finished.progress
    assert progress.started == [(11, 0)]
    assert sum(map(len, progress.tables)) == 11
    assert all(table.schema.equals(OUTCOME_SCHEMA) for table in progress.tables)
    assert progress.finished == 1


def test_the_run_folder_is_a_dataset(finished: Finished, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(finished.job.output, cache_dir=str(tmp_path))["train"]
    assert len(loaded) == 9
    assert all(row["edited"].size == (SIZE_PX, SIZE_PX) for row in loaded)
    assert all(row["source"].mode == "RGB" for row in loaded)
    assert {(row["source_colour"], row["colour"]) for row in loaded} == {
        ("red", "green"),
        ("blue", "red"),
        ("blue", "green"),
    }
    assert set(loaded["weather"]) == {None}
    assert set(loaded["manifest_cover_file_path"]) == {"x"}
    assert {row["split"] for row in loaded if row["seed"] == 7} == {"test"}
    assert len(set(loaded["group_id"])) == 6


def test_the_configuration_is_kept_resolved(finished: Finished) -> None:
    values = yaml.safe_load(Path(finished.job.output, "config.yaml").read_text())
    job = Job(**values)
    assert (job.edit.steps, job.edit.size_px) == (STEPS, (SIZE_PX, SIZE_PX))
    assert verify_run(job).accepted == 9
    assert stats_of(finished.job)["total"]["edits"] == 11


def test_every_actor_works_on_a_hundred_rows(
    write_manifest: WriteManifest, make_job: MakeJob
) -> None:
    """Blocks of the size that is chosen automatically, and as many actors as fit."""
    job = make_job(write_manifest(100), resources={})
    assert run_job(job, progress=Recorder()).accepted == 100
    stats = stats_of(job)
    assert stats["resources"]["actors"] == 2
    assert len(stats["edits_by_worker"]) == 2
    assert min(stats["edits_by_worker"].values()) >= 20
    assert sum(stats["edits_by_worker"].values()) == 100


def test_a_log_handler_that_is_not_rays_hears_as_much_as_before(finished: Finished) -> None:
    """pytest puts one on Ray Data's logger, and so may a program that runs jobs."""
    by_level = {handler.name: handler.level for handler in logging.getLogger("ray.data").handlers}
    assert by_level.pop("console") == logging.CRITICAL
    assert logging.CRITICAL not in by_level.values()


def test_the_second_run_computes_nothing(finished: Finished) -> None:
    before = files_of(finished.job)
    # Had it any work to do, it would need more than there is.
    resources = finished.job.resources.model_copy(update={"actors": 999})
    progress = Recorder()
    again = run_job(finished.job.model_copy(update={"resources": resources}), progress=progress)
    assert (again.edits_planned, again.already_done, again.edits_made) == (11, 11, 0)
    assert progress.started == []
    assert files_of(finished.job) == before


def test_without_work_ray_is_not_even_imported(finished: Finished, tmp_path: Path) -> None:
    job = finished.job
    script = tmp_path / "again.py"
    script.write_text(
        "import sys\n"
        "from pipeline.job.job import Job\n"
        "from pipeline.run.driver import run_job\n"
        f"summary = run_job(Job.model_validate_json({job.model_dump_json()!r}), progress=None)\n"
        "assert summary.already_done == 11\n"
        "print('ray' in sys.modules)\n"
    )
    root = Path(__file__).parent.parent.parent.parent
    result = subprocess.run(
        [sys.executable, script],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout.strip(), result.returncode) == ("False", 0), result.stderr


def test_a_changed_parameter_adds_edits_beside_the_old(
    finished: Finished, write_manifest: WriteManifest, tmp_path: Path
) -> None:
    old = files_of(finished.job)
    edit = finished.job.edit.model_copy(update={"guidance_scale": 1.5})
    job = finished.job.model_copy(update={"edit": edit})
    summary = run_job(job, progress=Recorder())
    assert (summary.accepted, summary.already_done) == (9, 0)
    derived = {"README.md", "stats.json", "config.yaml"}
    kept = {path: time for path, time in old.items() if path.name not in derived}
    assert kept.items() <= files_of(job).items()
    loaded = datasets.load_dataset(job.output, cache_dir=str(tmp_path))["train"]
    assert sorted(loaded["guidance_scale"]) == [1.5] * 9 + [3.0] * 9
    assert len(set(loaded["edit_id"])) == 18


def test_new_rows_and_new_prompts_compute_only_what_is_new(finished: Finished) -> None:
    """As every night: the manifest has a row more, and the job a colour more."""
    old = files_of(finished.job)
    manifest = pq.read_table(finished.job.manifest)
    row = {"source_prompt": "a photo of a tree", "seed": 8, "split": "test", "colour": "red"}
    row |= {"image": None, "target_prompt": None, "weather": None, "cover_file_name": "x"}
    grown = Path(finished.job.manifest).with_name("grown.parquet")
    more = pa.Table.from_pylist([row], schema=manifest.schema)
    pq.write_table(pa.concat_tables([manifest, more]), grown)
    prompts = PromptsSection(target="a {colour} cat", labels={"colour": ["red", "green", "black"]})
    job = finished.job.model_copy(update={"manifest": str(grown), "prompts": prompts})
    summary = run_job(job, progress=Recorder())
    # Black for all 8 rows of before, two of them bad; green and black for the new one.
    assert (summary.edits_planned, summary.already_done) == (21, 11)
    assert (summary.accepted, summary.failed) == (8, 2)
    real, synthetic = 5 * (SOURCE_ROWS + EDIT_ROWS), 2 * SYNTHETIC_ROWS + 3 * EDIT_ROWS
    assert summary.unet_rows == pytest.approx(real + synthetic)
    derived = {"README.md", "stats.json", "config.yaml"}
    kept = {path: time for path, time in old.items() if path.name not in derived}
    assert kept.items() <= files_of(job).items()
    assert verify_run(job).ok


def test_other_columns_need_another_folder(
    finished: Finished, write_manifest: WriteManifest
) -> None:
    other = finished.job.model_copy(
        update={"manifest": write_manifest(1, taste=["sweet"]), "prompts": None}
    )
    before = files_of(finished.job)
    with pytest.raises(JobError, match=r"missing now: .*weather.*new: taste.*another output"):
        run_job(other, progress=Recorder())
    assert {p: t for p, t in files_of(other).items() if ".plan" not in p.parts} == {
        p: t for p, t in before.items() if ".plan" not in p.parts
    }


def test_labels_with_our_names_are_refused(
    write_manifest: WriteManifest, make_job: MakeJob
) -> None:
    prompts = {"target": "a {layers} cat", "labels": {"layers": ["red"]}}
    job = make_job(write_manifest(1), prompts=prompts)
    with pytest.raises(JobError, match=r"prompts\.labels\.layers"):
        run_job(job, progress=Recorder())
    assert not Path(job.output, ".ledger").exists()


def test_too_many_failures_stop_the_job_and_are_committed(
    write_manifest: WriteManifest, make_job: MakeJob
) -> None:
    manifest = write_manifest(
        2, image=[f"absent-{n}.png" for n in range(40)], target_prompt=["a"] * 40
    )
    job = make_job(manifest, failures={"max_in_a_row": 6})
    progress = Recorder()
    with pytest.raises(TooManyFailuresError, match=r"in a row.*source_missing.*absent"):
        run_job(job, progress=progress)
    arrived = sum(map(len, progress.tables))
    assert 6 <= arrived < 40
    assert len(outcomes_of(job)) == arrived
    assert progress.finished == 1
    assert ray.is_initialized()


def test_a_stopped_job_commits_and_goes_on(
    write_manifest: WriteManifest, make_job: MakeJob
) -> None:
    """SIGTERM, as schedulers send it; Ray has put its own handler on by then."""
    job = make_job(write_manifest(12))
    progress = InterruptedBy(signal.SIGTERM)
    with pytest.raises(Interrupted, match="same command goes on"):
        run_job(job, progress=progress)
    arrived = {row["edit_id"] for row in outcomes_of(job)}
    assert 2 <= len(arrived) < 12
    made = {path.stem.rpartition("__")[2] for path in Path(job.output).glob("part-*/edited/*")}
    assert made == {edit_id.hex() for edit_id in arrived}, "what was in hand was finished"
    summary = run_job(job, progress=Recorder())
    assert summary.accepted == 12 - summary.already_done
    assert summary.already_done >= len(arrived)
    verification = verify_run(job)
    assert verification.ok, verification.problems
    assert verification.accepted == 12


def test_a_run_on_a_folder_that_another_has_is_refused(
    write_manifest: WriteManifest, make_job: MakeJob
) -> None:
    job = make_job(write_manifest(1))
    with hold_lease(Folder.open(job.output), expiry_s=60.0, heartbeat_s=20.0):
        progress = Recorder()
        with pytest.raises(LeaseError, match="is in use by another run: process"):
            run_job(job, progress=progress)
        assert progress.started == []
        assert files_of(job) == {}
    assert run_job(job, progress=Recorder()).accepted == 1
    state = lease_state(Folder.open(job.output))
    assert state is not None
    assert (state.token, state.is_released) == (2, True)


def test_a_run_that_was_taken_over_commits_and_sums_up_nothing_more(
    write_manifest: WriteManifest, make_job: MakeJob
) -> None:
    """Its workers finish no part either; what they had finished is found by the next run."""
    job = make_job(write_manifest(12))
    progress = TakenOver(job)
    with pytest.raises(LeaseError, match="this run has lost the run folder"):
        run_job(job, progress=progress)
    assert progress.finished == 1
    assert outcomes_of(job) == []
    assert not Path(job.output, "stats.json").exists()
    finished_parts = list(Path(job.output).glob("part-*/metadata.parquet"))
    assert 1 <= len(finished_parts) < 6, "blocks of two"
    # The other run holds the folder in this process; now it is gone, an hour later.
    assert progress.taken is not None
    progress.taken.folder.replace(".lease/beat-00000002.json", b'{"beats": 1, "released": true}')
    summary = run_job(job, progress=Recorder())
    assert summary.already_done >= 2 * len(finished_parts) - 2
    assert summary.already_done + summary.accepted == 12
    verification = verify_run(job)
    assert verification.ok, verification.problems
    assert verification.accepted == 12


def test_a_retry_makes_the_failed_edits_again_and_nothing_else(
    write_manifest: WriteManifest, make_job: MakeJob, picture: Callable[..., Image.Image]
) -> None:
    """Two pictures are mended, one stays away; one retry dies between a part and its commit."""
    names = [*(f"pictures/{n}.png" for n in range(3)), *(f"pictures/late-{n}.png" for n in "abc")]
    prompts = [["a red cat", "a blue cat"]] * 6
    manifest = write_manifest(3, image=names, target_prompt=prompts)
    job = make_job(manifest)
    first = run_job(job, progress=Recorder())
    assert (first.accepted, first.failed) == (6, 6)
    before = files_of(job)
    for name in "ab":
        picture(7).save(Path(manifest).parent / "pictures" / f"late-{name}.png")

    nothing = retry_failed(job, [FailureCode.NAN_LATENT], progress=Recorder())
    assert (nothing.edits_made, nothing.already_done) == (0, 12)
    assert files_of(job) == before

    progress = TakenOver(job)
    with pytest.raises(LeaseError):
        retry_failed(job, [FailureCode.SOURCE_MISSING], progress=progress)
    assert Ledger.open(Folder.open(job.output)).counts().failed == 6, "nothing was committed"
    finished_parts = set(Path(job.output).glob("part-*/metadata.parquet")) - before.keys()
    assert progress.taken is not None
    folder, token = progress.taken.folder, progress.taken.token
    folder.replace(f".lease/beat-{token:08d}.json", b'{"beats": 1, "released": true}')

    second = retry_failed(job, progress=Recorder())
    adopted = sum(pq.read_metadata(path).num_rows for path in finished_parts)
    assert (second.accepted, second.failed) == (4 - adopted, 2)
    made_again = (4 - adopted) // 2  # sources, of two edits each
    assert second.unet_rows == made_again * (SOURCE_ROWS + 2 * EDIT_ROWS)
    verification = verify_run(job)
    assert verification.ok, verification.problems
    assert (verification.accepted, verification.failed, verification.pending) == (10, 2, 0)
    history = [row["outcome"] for row in outcomes_of(job)]
    assert (history.count("accepted"), history.count("failed")) == (10, 8)
    derived = {"README.md", "stats.json", "config.yaml"}
    kept = {path: time for path, time in before.items() if path.name not in derived}
    assert kept.items() <= files_of(job).items()
    assert run_job(job, progress=Recorder()).edits_made == 0, "failed again is final again"


def test_a_worker_that_is_killed_costs_nothing(
    write_manifest: WriteManifest, make_job: MakeJob
) -> None:
    job = make_job(write_manifest(16))
    progress = WorkerKiller()
    summary = run_job(job, progress=progress)
    assert len(progress.killed) == 1
    assert (summary.accepted, summary.failed) == (16, 0)
    verification = verify_run(job)
    assert verification.ok, verification.problems
    assert len(stats_of(job)["edits_by_worker"]) == 2
    edit = summary.stages["edit"]
    assert edit["unet_rows"] == pytest.approx(summary.unet_rows + summary.unet_rows_wasted)
    assert summary.unet_rows_wasted <= 2 * (SOURCE_ROWS + EDIT_ROWS) * edit.get("lost_blocks", 0)


def test_a_model_that_cannot_be_loaded_ends_the_job_with_its_reason(
    write_manifest: WriteManifest, make_job: MakeJob, tmp_path: Path
) -> None:
    """The driver does not look into pickles; only the actors find out."""
    folder = build_tiny_checkpoint(tmp_path / "broken")
    write_defaults(folder, steps=2, size_px=SIZE_PX)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = {name: w for name, w in load_file(file).items() if "mid_block" not in name}
    file.unlink()
    torch.save(weights, file.with_suffix(".bin"))
    model = {"checkpoint": str(folder), "device": "cpu", "allow_pickle": True}
    job = make_job(write_manifest(4), model=model)
    with pytest.raises(WorkerError, match="the model cannot be used"):
        run_job(job, progress=Recorder())
    assert outcomes_of(job) == []


def test_a_cluster_that_is_too_small_is_refused(
    write_manifest: WriteManifest, make_job: MakeJob
) -> None:
    job = make_job(write_manifest(1), resources={"actors": 3})
    with pytest.raises(ResourceError, match="3 actors need 3 CPUs"):
        run_job(job, progress=Recorder())


def credentials_in(texts: Iterable[bytes]) -> list[str]:
    """Which of the test server's credentials stand in one of these."""
    everything = b"\n".join(texts)
    assert everything
    return [name for name, value in CREDENTIALS.items() if value.encode() in everything]


def put_input(server: S3Server, picture: Callable[..., Image.Image]) -> str:
    """Three pictures, and a manifest of four rows; returns its URL."""
    for number in range(3):
        sink = io.BytesIO()
        picture(number).save(sink, "PNG")
        server.put(f"input/pictures/{number}.png", sink.getvalue())
    table = pa.table({"image": [f"pictures/{n}.png" for n in range(4)], "target_prompt": ["a"] * 4})
    manifest = io.BytesIO()
    pq.write_table(table, manifest)
    server.put("input/manifest.parquet", manifest.getvalue())
    return server.url("input/manifest.parquet")


def test_a_whole_job_on_an_object_store_with_credentials_from_the_environment(
    make_job: MakeJob,
    s3_process: S3Server,
    picture: Callable[..., Image.Image],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Manifest, sources and output; and no credential is left behind anywhere."""
    for floor in ("fpe_core", "pipeline", "jobs", "stamina"):
        caplog.set_level(logging.DEBUG, floor)
    server = s3_process.with_fresh_prefix()
    manifest, output = put_input(server, picture), server.url("run")
    job = make_job(manifest, output=output, storage_options=server.storage_options)
    before = request_counts()
    summary = run_job(job, progress=Recorder())
    assert (summary.accepted, summary.failures_by_code) == (3, {"source_missing": 1})
    spent = request_counts() - before
    assert spent.requests > 20
    assert spent.bytes_written > 1000, "the driver's part of it"

    def run_files() -> dict[Path, bytes]:
        found = (path for path in server.file("run").rglob("*") if path.is_file())
        return {path.relative_to(server.file("run")): path.read_bytes() for path in found}

    files = run_files()
    assert len([path for path in files if path.match("part-*/edited/*.png")]) == 3
    assert {"README.md", "config.yaml", "stats.json"} <= {path.name for path in files}
    assert server.url("input/pictures/3.png") in outcomes_of(job)[3]["message"]

    again = run_job(job, progress=Recorder())
    assert (again.already_done, again.edits_made, again.unet_rows) == (4, 0, 0)
    later = run_files()
    assert {p: b for p, b in later.items() if ".lease" not in p.parts} == {
        p: b for p, b in files.items() if ".lease" not in p.parts
    }
    verification = verify_run(job)
    assert verification.ok, verification.problems
    assert (verification.accepted, verification.failed, verification.pending) == (3, 1, 0)
    assert credentials_in([*files.values(), *later.values(), caplog.text.encode()]) == []


def test_a_whole_job_whose_models_lie_in_an_object_store(
    make_job: MakeJob,
    write_manifest: WriteManifest,
    s3_process: S3Server,
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    """They are fetched to the node once, and the edits are those of the same models on a disk."""
    server = s3_process.with_fresh_prefix()
    for name, folder in (("tiny", tiny_checkpoint), ("clip", SCORER_DIR)):
        for file in folder.rglob("*"):
            if file.is_file():
                server.put(f"{name}/{file.relative_to(folder)}", file.read_bytes())
    stored = make_job(
        write_manifest(2),
        storage_options=server.storage_options,
        model={"checkpoint": server.url("tiny"), "device": "cpu", "cache": str(tmp_path)},
        judge={"clip": server.url("clip"), "structure": None},
    )
    summary = run_job(stored, progress=Recorder())
    assert (summary.accepted, summary.failed, summary.rejected) == (2, 0, 0)
    copies = sorted(path.name.rpartition("-")[0] for path in tmp_path.iterdir() if path.is_dir())
    assert copies == ["clip", "tiny"]
    (part,) = Path(stored.output).glob("part-*/metadata.parquet")
    rows = pq.read_table(part).to_pylist()
    assert {row["checkpoint"] for row in rows} == {server.url("tiny")}
    assert all(row["text_score"] is not None for row in rows)
    verification = verify_run(stored)
    assert verification.ok, verification.problems
    on_disk = stored.model_copy(
        update={
            "model": stored.model.model_copy(update={"checkpoint": str(tiny_checkpoint)}),
            "judge": stored.judge and stored.judge.model_copy(update={"clip": str(SCORER_DIR)}),
        }
    )
    again = run_job(on_disk, progress=Recorder())
    assert (again.already_done, again.edits_made) == (2, 0)


def test_a_whole_job_with_credentials_from_a_file(
    make_job: MakeJob,
    s3_process: S3Server,
    picture: Callable[..., Image.Image],
    tmp_path: Path,
    fork_server: None,
) -> None:
    """In processes of its own, which have no others: a profile of the standard file, and a Ray."""
    server = s3_process.with_fresh_prefix()
    manifest, output = put_input(server, picture), server.url("run")
    options = {**server.storage_options, "profile": "work"}
    job = make_job(manifest, output=output, storage_options=options, resources={})
    script = tmp_path / "job.py"
    script.write_text(
        "import logging\n"
        "from jobs.terminal.progress import LogProgress\n"
        "from pipeline.job.job import Job\n"
        "from pipeline.run.driver import run_job\n"
        "from pipeline.verify.verify import verify_run\n"
        "from tests.servers.forked_workers import forked_workers\n"
        "logging.basicConfig()\n"
        "for floor in ('fpe_core', 'pipeline', 'jobs', 'stamina'):\n"
        "    logging.getLogger(floor).setLevel(logging.DEBUG)\n"
        f"job = Job.model_validate_json({job.model_dump_json()!r})\n"
        "with forked_workers(), LogProgress() as progress:\n"
        "    print(run_job(job, progress=progress).accepted)\n"
        "print(verify_run(job).ok)\n"
    )
    root = Path(__file__).parent.parent.parent.parent
    environment = {name: value for name, value in os.environ.items() if name not in CREDENTIALS}
    result = subprocess.run(
        [sys.executable, script],
        cwd=root,
        env=environment | write_profile(tmp_path, "work") | {"PYTHONPATH": str(root)},
        capture_output=True,
        check=False,
    )
    assert result.stdout.split() == [b"3", b"True"], result.stderr.decode()
    files = [path.read_bytes() for path in server.file("run").rglob("*") if path.is_file()]
    assert credentials_in([*files, result.stdout, result.stderr]) == []
