"""Pricing: a probe makes real rows, is found by the device's name, and counts as a run does."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import pipeline.cost.measure
from fpe_core import Checkpoint, load_checkpoint
from fpe_core.device import device_name
from fpe_core.speed import SPEEDS
from pipeline.cluster.actor_kinds import ActorKind, Node
from pipeline.cluster.pool import Pool
from pipeline.cost.measure import probe_key
from pipeline.cost.price import Price, leaves_no_core, price
from pipeline.cost.probe import ProbeKey, ProbeStore
from pipeline.errors import ProbeError
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.plan.plan import Plan, make_plan
from pipeline.plan.resolved_job import resolve_job
from pipeline.run.driver import run_job
from pipeline.storage.folder import Folder
from pipeline.write.image_format import ImageFormat
from tests.builders.tiny_checkpoint import SIZE_PX
from tests.faults.nobody import Nobody

MakeJob = Callable[..., Job]
A_LONG_TIME_S = 1e9
HERE = device_name(torch.device("cpu"))


@pytest.fixture
def make_job(tmp_path: Path, tiny_checkpoint: Path, picture: Callable[..., Image.Image]) -> MakeJob:
    """make_job(**sections): four pictures, one of them with a prompt, and two synthetic sources,
    with three edits each."""
    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
    table = pa.table(
        {
            "image": ["0.png", "1.png", "2.png", "3.png", None, None],
            "source_prompt": [None, None, None, "a cat", "a dog", "a car"],
            "seed": [None, None, None, None, 1, 2],
            "target_prompt": [["a red cat", "a blue cat", "a dog in snow"]] * 6,
        }
    )
    pq.write_table(table, tmp_path / "manifest.parquet")

    def make(**sections: Any) -> Job:
        values: dict[str, Any] = {
            "manifest": str(tmp_path / "manifest.parquet"),
            "output": str(tmp_path / "run"),
            "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
            "resources": {"groups_per_block": 3, "threads_per_actor": 1},
        }
        return Job.model_validate(values | sections)

    return make


@pytest.fixture
def store(tmp_path: Path) -> ProbeStore:
    return ProbeStore(tmp_path / "cache" / "probes.json")


def planned(job: Job) -> tuple[Plan, Ledger]:
    ledger = Ledger.open(Folder.open(job.output))
    return make_plan(job, ledger, write=False), ledger


def priced(job: Job, store: ProbeStore, **options: Any) -> Price:
    plan, ledger = planned(job)
    return price(job, plan, ledger, store, seconds=A_LONG_TIME_S, **options)


@pytest.fixture(autouse=True)
def _one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times do not matter here, so one round is enough, whatever it takes."""
    monkeypatch.setattr(pipeline.cost.measure, "_MOST_ROUNDS", 1)


@pytest.fixture
def counted_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """UNet rows that probes evaluate, call by call, as the UNet's first cross-attention sees them:
    rows of one latent are one before it."""
    rows: list[int] = []

    def load(*source: Any, **options: Any) -> Checkpoint:
        checkpoint = load_checkpoint(*source, **options)
        first = checkpoint.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_q
        first.register_forward_pre_hook(lambda _module, inputs: rows.append(len(inputs[0])))
        return checkpoint

    monkeypatch.setattr(pipeline.cost.measure, "load_checkpoint", load)
    return rows


def test_a_probe_makes_the_rows_that_it_says(
    make_job: MakeJob, store: ProbeStore, counted_rows: list[int]
) -> None:
    found = priced(make_job(), store)
    assert found.probe.unet_rows == sum(counted_rows) > 0
    assert [(call.sources, call.edits) for call in found.probe.calls] == [(1, 3), (3, 9)]
    for call in found.probe.calls:
        assert min(call.inversion_row_s, call.edit_row_s) > 0
        assert min(dataclasses.astuple(call)) >= 0
    assert (found.probe.device, found.probe.key.dtype) == (HERE, "float32")


@pytest.mark.parametrize(
    ("actors", "threads", "cpus", "expected"),
    [
        (1, 2, 2.0, True),
        (1, 1, 2.0, False),
        (2, 1, 2.0, False),
        (3, 1, 4.0, False),
        (2, 2, 4.0, True),
    ],
)
def test_workers_with_threads_on_all_cores_leave_none(
    actors: int, threads: int, cpus: float, expected: bool
) -> None:
    pool = Pool((ActorKind(actors, 1.0, 0.0, threads, 1.0),), 1)
    assert leaves_no_core(pool, Node(cpus)) is expected


def test_a_probe_is_taken_once_and_found_again(
    make_job: MakeJob, store: ProbeStore, counted_rows: list[int]
) -> None:
    first = priced(make_job(), store)
    made = len(counted_rows)
    again = priced(make_job(), store)
    assert (first.is_measured_now, again.is_measured_now) == (True, False)
    assert again.probe == first.probe
    by_name = priced(make_job(resources={"actors": 4, "groups_per_block": 1}), store, device=HERE)
    assert by_name.probe == first.probe
    assert len(counted_rows) == made
    assert priced(make_job(), store, measure=True).is_measured_now
    assert len(store.probes()) == 1, "a newer one takes the place of the older"
    judged = {"rules": {}}
    assert priced(make_job(judge=judged), store).probe.judge_s > 0
    assert {probe.key.judge for probe in store.probes()} != {""}
    assert len(store.probes()) == 2


def test_another_speed_costs_what_a_job_with_it_is_planned_with(
    make_job: MakeJob, store: ProbeStore
) -> None:
    def rows_by_speed(**edit: Any) -> dict[str, float]:
        found = priced(make_job(edit=edit), store).key_effects
        return {k.then: k.estimate.unet_rows for k in found if k.key == "edit.speed"}

    rows = {s: planned(make_job(edit={"speed": s}))[0].unet_rows for s in SPEEDS}
    assert rows["exact"] > rows["fast"]
    for now in SPEEDS:
        others = {speed: count for speed, count in rows.items() if count != rows[now]}
        assert rows_by_speed(speed=now) == others
    assert rows_by_speed(steps=4) == {}, "the job says how many steps there are"


def test_a_device_without_a_probe_is_told_which_there_are(
    make_job: MakeJob, store: ProbeStore
) -> None:
    job = make_job()
    with pytest.raises(ProbeError, match=r"no probe of a device 'H100' .* has none"):
        priced(job, store, device="H100")
    probe = priced(job, store).probe
    store.add(dataclasses.replace(probe, device="NVIDIA A10G", device_type="cuda"))
    with pytest.raises(ProbeError) as caught:
        priced(job, store, device="H100")
    message = str(caught.value)
    assert f"{store.file} has:" in message
    for name in (HERE, "NVIDIA A10G"):
        assert f"  {name}: checkpoint {probe.key.fingerprint[:8]}, 64 x 64 px" in message


def test_auto_is_the_type_that_is_usual_on_the_device_of_the_probe(
    make_job: MakeJob, store: ProbeStore
) -> None:
    """A laptop prices a job for a GPU by the probe that was taken there."""
    job = make_job()
    here = priced(job, store).probe
    key = dataclasses.replace(here.key, dtype="float16")
    there = dataclasses.replace(here, key=key, device="NVIDIA H100", device_type="cuda")
    store.add(there)
    found = priced(job, store, device="NVIDIA H100")
    assert (found.probe, found.work.gpus_per_actor, found.work.actors) == (there, 1, 1)
    model = job.model.model_copy(update={"dtype": "float32"})
    with pytest.raises(ProbeError, match="dtype float32"):
        priced(job.model_copy(update={"model": model}), store, device="NVIDIA H100")


def test_what_cannot_be_read_is_no_sample(
    make_job: MakeJob, store: ProbeStore, tmp_path: Path
) -> None:
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").write_bytes(b"no picture")
    assert priced(make_job(), store).probe.calls[0].sources == 1
    for number in range(2, 4):
        (tmp_path / f"{number}.png").unlink()
    manifest = pq.read_table(tmp_path / "manifest.parquet").slice(0, 4)
    pq.write_table(manifest, tmp_path / "manifest.parquet")
    with pytest.raises(ProbeError, match=r"no source to measure with: .* none can be used"):
        priced(make_job(), store, measure=True)


def test_sizes_of_pictures_are_those_of_more_sources_than_are_edited(
    make_job: MakeJob, store: ProbeStore, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, SIZE_PX, SIZE_PX, 3), np.uint8)
    noise[0] = 128  # the one that is edited is flat
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    table = pa.table(
        {"image": [f"{n}.png" for n in range(5)], "target_prompt": [["a red cat"]] * 5}
    )
    job = make_job(resources={"groups_per_block": 1, "threads_per_actor": 1})
    found = []
    for rows in (1, 5):
        pq.write_table(table.slice(0, rows), tmp_path / "manifest.parquet")
        found.append(priced(job, store, measure=True).probe.formats)
    for name, few in found[0].items():
        format_of = ImageFormat(name, job.images.quality)  # type: ignore[arg-type]
        sizes = [len(format_of.encode(Image.fromarray(pixels))) for pixels in noise]
        many = found[1][name]
        assert (few.source_bytes, many.source_bytes) == (sizes[0], fmean(sizes))
        larger = many.source_bytes - few.source_bytes
        assert larger > 0
        assert many.edited_bytes == pytest.approx(few.edited_bytes + larger)


@pytest.mark.parametrize("text", ["", "[]", '{"probes": [{"device": "x"}]}', '{"probes": 3}'])
def test_a_damaged_file_of_probes_is_told(make_job: MakeJob, store: ProbeStore, text: str) -> None:
    store.file.parent.mkdir()
    store.file.write_text(text)
    with pytest.raises(ProbeError, match=r"is not a file of probes .*name another with --probes"):
        priced(make_job(), store)
    assert store.file.read_text() == text


def test_probes_survive_the_file(make_job: MakeJob, store: ProbeStore) -> None:
    probe = priced(make_job(), store).probe
    assert store.probes() == (probe,)
    assert json.loads(store.file.read_text())["probes"][0]["device"] == HERE


def test_a_run_takes_the_rows_and_writes_the_pictures_that_were_planned(
    make_job: MakeJob, store: ProbeStore, tmp_path: Path, ray_cluster: None
) -> None:
    job = make_job()
    found = priced(job, store)
    summary = run_job(job, progress=Nobody())
    assert summary.accepted == found.estimate.edits == 18
    assert summary.unet_rows == pytest.approx(found.estimate.unet_rows, abs=1e-6)
    plan, _ = planned(job)
    assert (plan.unet_rows, plan.edits_pending) == (0, 0)
    run = tmp_path / "run"
    assert [len([*run.rglob(f"part-*/{of}/*.png")]) for of in ("edited", "source")] == [18, 6]
    # The probe made these very edits: of the first three sources, with the job's own steps.
    picture = found.probe.formats["png"]
    for of, expected in (("edited", picture.edited_bytes), ("source", picture.source_bytes)):
        files = [path for number in range(3) for path in run.rglob(f"part-*/{of}/{number}__*")]
        assert fmean(path.stat().st_size for path in files) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("editor", ["fpe", "p2p", "diffedit", "blended"])
def test_every_method_has_a_price_that_counts_its_own_rows(
    make_job: MakeJob, store: ProbeStore, editor: str
) -> None:
    """Without the edits that it cannot make: nothing is measured with them."""
    job = make_job(editor=editor, edit={"steps": 4})
    plan, ledger = planned(job)
    if editor == "blended":  # no row has a mask
        assert (plan.edits_not_applicable, plan.shapes) == (plan.edits_total, {})
        return
    found = price(job, plan, ledger, store, seconds=A_LONG_TIME_S)
    assert found.estimate.unet_rows == plan.unet_rows > 0
    assert found.estimate.edits == plan.edits_total - plan.edits_not_applicable
    assert found.estimate.device_s > 0
    effects = {effect.key: effect.estimate for effect in found.key_effects}
    assert effects["edit.steps"].unet_rows < found.estimate.unet_rows
    assert effects["edit.guidance_scale"].unet_rows < found.estimate.unet_rows
    assert ("edit.replaced_fraction" in effects) == (editor == "fpe")
    other = make_job(editor="ddim" if editor == "fpe" else "fpe", edit={"steps": 4})
    assert store.find(HERE, probe_key_of(job), "float32", None) is not None
    assert store.find(HERE, probe_key_of(other), "float32", None) is None


def probe_key_of(job: Job) -> ProbeKey:
    plan, _ = planned(job)
    return probe_key(resolve_job(job), "float32", next(iter(plan.shapes)))
