"""Models in an object store: the same model as on a disk, fetched once, and only what is loaded."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from fpe_core import CheckpointError, Lora, checkpoint_defaults, checkpoint_fingerprint
from fpe_core.checkpoint.add_on_files import add_to_fingerprint, located
from fpe_core.checkpoint.add_ons import AddOns
from fpe_core.scores.files import SCORER_DIR, scorer_fingerprint
from pipeline.errors import JobError, StorageError
from pipeline.job.job import Job
from pipeline.plan.resolved_job import resolve_job
from pipeline.storage.model_store import ModelStore, default_cache
from tests.servers.s3_gate import Gate
from tests.servers.stores import Store

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def put_folder(store: Store, path: str, folder: Path) -> str:
    for file in folder.rglob("*"):
        if file.is_file():
            store.put(f"{path}/{file.relative_to(folder)}", file.read_bytes())
    return store.url(path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def models(store: Store, cache: Path) -> ModelStore:
    return ModelStore(store.storage_options, str(cache))


@pytest.mark.parametrize("store", ["s3", "memory"], indirect=True)
def test_a_checkpoint_is_the_one_that_it_is_on_a_disk(
    store: Store, models: ModelStore, tiny_checkpoint: Path
) -> None:
    url = put_folder(store, "models/tiny v1", tiny_checkpoint)
    here = models.checkpoint(url)
    assert checkpoint_fingerprint(here) == checkpoint_fingerprint(tiny_checkpoint)
    assert checkpoint_defaults(here) == checkpoint_defaults(tiny_checkpoint)
    assert models.checkpoint(f"{url}/") == here


@pytest.mark.parametrize("store", ["s3", "memory"], indirect=True)
def test_only_what_is_loaded_is_fetched(
    store: Store, models: ModelStore, tiny_checkpoint: Path
) -> None:
    url = put_folder(store, "tiny", tiny_checkpoint)
    for name in (
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "safety_checker/model.safetensors",
        "v1-5-pruned.safetensors",
        "v1-5-pruned.ckpt",
        "README.md",
        "unet/onnx/model.json",
    ):
        store.put(f"tiny/{name}", b"much")
    here = Path(models.checkpoint(url))
    files = {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()}
    on_disk = (path for path in tiny_checkpoint.rglob("*") if path.is_file())
    assert files == {str(path.relative_to(tiny_checkpoint)) for path in on_disk}
    assert checkpoint_fingerprint(here) == checkpoint_fingerprint(tiny_checkpoint)


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_no_object_is_written_outside_of_the_copy(
    store: Store, models: ModelStore, tiny_checkpoint: Path, cache: Path
) -> None:
    url = put_folder(store, "tiny", tiny_checkpoint)
    for name in ("../evil.json", "/evil.json", "./evil.json"):
        store.put(f"tiny/{name}", b"{}")
    models.checkpoint(url)
    assert not list(cache.rglob("evil.json"))


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_single_files_and_their_configs_and_the_judges_models(
    store: Store, models: ModelStore, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    weights = tiny_checkpoint / WEIGHTS
    single = store.put("models/one.safetensors", weights.read_bytes())
    configs = models.config(put_folder(store, "models/tiny", tiny_checkpoint))
    assert configs is not None
    assert not list(Path(configs).rglob("*.safetensors"))
    expected = checkpoint_fingerprint(weights, config=tiny_checkpoint)
    assert checkpoint_fingerprint(models.checkpoint(single), config=configs) == expected
    scorer = models.scorer(put_folder(store, "models/clip", SCORER_DIR))
    assert scorer is not None
    assert scorer_fingerprint(Path(scorer)) == scorer_fingerprint(SCORER_DIR)
    lpips = models.scorer(single)
    assert lpips is not None
    assert scorer_fingerprint(Path(lpips)) == scorer_fingerprint(weights)


def test_what_is_on_this_machine_or_the_hub_is_left_alone(tiny_checkpoint: Path) -> None:
    models = ModelStore(cache="/proc/nowhere")
    for source in ("builtin:still-life", "owner/name", str(tiny_checkpoint), "./tiny", "~/tiny"):
        assert models.checkpoint(source) == models.scorer(source) == models.config(source) == source
    assert (models.config(None), models.scorer(None)) == (None, None)
    for uri in (tiny_checkpoint.as_uri(), f"file:{tiny_checkpoint}"):
        assert models.checkpoint(uri) == str(tiny_checkpoint)


@pytest.fixture
def gated(gate: Gate, tiny_checkpoint: Path, tmp_path: Path) -> tuple[ModelStore, str]:
    """A store whose requests are counted, with a checkpoint; and its URL."""
    for file in tiny_checkpoint.rglob("*"):
        if file.is_file():
            gate.behind.put(f"run/tiny/{file.relative_to(tiny_checkpoint)}", file.read_bytes())
    options = {"endpoint_url": gate.endpoint_url}
    return ModelStore(options, str(tmp_path / "cache")), gate.behind.url("run/tiny")


def fetched(gate: Gate) -> list[str]:
    """The objects that were read since the last time, in order."""
    asked, gate.read = gate.read, []
    return sorted(key.partition("/run/tiny/")[2] for key in asked if "/run/tiny/" in key)


def test_it_is_fetched_once_and_again_when_it_is_written_again(
    gate: Gate, gated: tuple[ModelStore, str], tiny_checkpoint: Path
) -> None:
    models, url = gated
    first = models.checkpoint(url)
    names = [str(p.relative_to(tiny_checkpoint)) for p in tiny_checkpoint.rglob("*") if p.is_file()]
    assert fetched(gate) == sorted(names)
    assert models.checkpoint(url) == first
    assert fetched(gate) == []
    other = (tiny_checkpoint / WEIGHTS).read_bytes()[:-1] + b"\x01"
    gate.behind.put(f"run/tiny/{WEIGHTS}", other)
    second = models.checkpoint(url)
    assert second != first
    assert (Path(second) / WEIGHTS).read_bytes() == other
    assert checkpoint_fingerprint(second) != checkpoint_fingerprint(first)


def test_processes_of_a_node_share_one_download(
    gate: Gate, gated: tuple[ModelStore, str], tiny_checkpoint: Path
) -> None:
    models, url = gated
    code = (
        "import sys; from pipeline.storage.model_store import ModelStore\n"
        "print(ModelStore({'endpoint_url': sys.argv[1]}, sys.argv[2]).checkpoint(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, gate.endpoint_url, str(models.cache), url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    places = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    (place,) = places
    assert checkpoint_fingerprint(place) == checkpoint_fingerprint(tiny_checkpoint)
    assert fetched(gate).count(WEIGHTS) == 1


def _flip(here: Path) -> None:
    data = bytearray((here / WEIGHTS).read_bytes())
    data[-5] ^= 1
    stat = (here / WEIGHTS).stat()
    (here / WEIGHTS).write_bytes(data)
    os.utime(here / WEIGHTS, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _cut(here: Path) -> None:
    os.truncate(here / WEIGHTS, 100)


def _remove(here: Path) -> None:
    (here / "scheduler/scheduler_config.json").unlink()


def _lose_the_record(here: Path) -> None:
    (here.parent / "fetched.json").write_text("[]")


def _be_killed_before_the_end(here: Path) -> None:
    shutil.move(here.parent, here.parent.with_name(f"{here.parent.name}.partial"))
    _cut(here.parent.with_name(f"{here.parent.name}.partial") / "files")


@pytest.mark.parametrize(
    "damage", [_flip, _cut, _remove, _lose_the_record, _be_killed_before_the_end]
)
def test_a_damaged_copy_is_fetched_again(
    gated: tuple[ModelStore, str],
    tiny_checkpoint: Path,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    models, url = gated
    here = models.checkpoint(url)
    damage(Path(here))
    with caplog.at_level(logging.INFO):
        assert models.checkpoint(url) == here
    assert checkpoint_fingerprint(here) == checkpoint_fingerprint(tiny_checkpoint)
    assert "fetching" in caplog.text
    assert ("is damaged" in caplog.text) == (damage is not _be_killed_before_the_end)
    assert sorted(p.name for p in Path(str(models.cache)).iterdir()) == [
        Path(here).parent.name,
        f"{Path(here).parent.name}.lock",
    ]


def test_a_download_that_breaks_off_is_tried_again_and_leaves_nothing(
    gate: Gate, gated: tuple[ModelStore, str], tiny_checkpoint: Path
) -> None:
    models, url = gated
    gate.faults["READ"] = ["503", "cut", "reset"]
    here = models.checkpoint(url)
    assert checkpoint_fingerprint(here) == checkpoint_fingerprint(tiny_checkpoint)
    shutil.rmtree(str(models.cache))
    gate.faults["READ"] = ["", "", *["503"] * 100]
    with pytest.raises(StorageError, match="SlowDown"):
        models.checkpoint(url)
    assert [p.suffix for p in Path(str(models.cache)).iterdir()] == [".lock"]


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_a_disk_without_room_or_rights_is_told_with_what_to_do(
    store: Store, models: ModelStore, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put_folder(store, "tiny", tiny_checkpoint)
    nowhere = ModelStore(store.storage_options, "/proc/nohome/models")
    with pytest.raises(StorageError, match=r"cannot be copied to /proc/nohome/.*model\.cache"):
        nowhere.checkpoint(url)
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(StorageError, match=r"needs 0\.\d GB, and 0\.0 GB are free.*model\.cache"):
        models.checkpoint(url)


@pytest.mark.parametrize("store", ["s3", "memory"], indirect=True)
def test_what_is_not_there_or_no_checkpoint_refuses_the_job(
    store: Store, models: ModelStore, tiny_checkpoint: Path, tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"nothing at .*models/none"):
        models.checkpoint(store.url("models/none"))
    store.put("models/text/README.md", b"no model")
    with pytest.raises(CheckpointError, match="holds no file of a model"):
        models.checkpoint(store.url("models/text"))
    url = put_folder(store, "models/cut", tiny_checkpoint / "unet")
    manifest = str(tmp_path / "m.parquet")
    pq.write_table(pa.table({"image": ["a.png"], "target_prompt": ["x"]}), manifest)

    def job(checkpoint: str) -> Job:
        return Job(
            manifest=manifest,
            output=str(tmp_path / "run"),
            storage_options=store.storage_options,
            model={"checkpoint": checkpoint, "cache": str(cache)},
        )

    with pytest.raises(JobError, match=r"model\.checkpoint: .*model_index\.json.*models/cut"):
        resolve_job(job(url))
    with pytest.raises(JobError, match=r"model\.checkpoint: nothing at .*models/none"):
        resolve_job(job(store.url("models/none")))
    there = put_folder(store, "models/tiny", tiny_checkpoint)
    on_disk, in_store = resolve_job(job(str(tiny_checkpoint))), resolve_job(job(there))
    assert list(on_disk.edit_ids()) == list(in_store.edit_ids()), "the same edits"
    assert on_disk.parameters == in_store.parameters


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model": {"checkpoint": "https://host/a.safetensors?sig=SECRET"}}, "has a query"),
        ({"model": {"config": "s3://me:SECRET@bucket/a"}}, "holds a password"),
        ({"judge": {"clip": "https://host/clip?X-Amz-Signature=SECRET"}}, "has a query"),
        ({"model": {"cache": "cache"}}, "not an absolute path"),
    ],
)
def test_a_job_holds_no_secret_and_no_place_that_depends_on_the_node(
    section: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        Job.model_validate({"manifest": "m.parquet", "output": "run", **section})
    assert "SECRET" not in str(caught.value.errors()[0]["msg"])


def test_the_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert str(default_cache()) == "/var/cache/me/fpe/models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(default_cache()) == "/home/me/.cache/fpe/models"


@pytest.mark.parametrize("store", ["s3", "memory"], indirect=True)
def test_loras_embeddings_and_autoencoders_are_those_that_they_are_on_a_disk(
    store: Store, models: ModelStore, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Under the names of their files, which may be those of tokens."""
    save_file({"emb_params": torch.ones((1, 16))}, tmp_path / "charcoal.safetensors")
    ink = AddOns.of(
        [Lora(tmp_path / "charcoal.safetensors", 0.5)],
        [tmp_path / "charcoal.safetensors"],
        tiny_checkpoint / "vae",
    )
    store.put("add/charcoal.safetensors", (tmp_path / "charcoal.safetensors").read_bytes())
    store.put("vae/README.md", b"not loaded")
    file = store.url("add/charcoal.safetensors")
    vae = put_folder(store, "vae", tiny_checkpoint / "vae")
    here = models.add_ons(AddOns.of([Lora(file, 0.5)], [file], vae))
    fingerprints = {
        add_to_fingerprint("of the checkpoint", located(each, False), False) for each in (here, ink)
    }
    assert len(fingerprints) == 1
    assert located(here, False).embeddings[0].token == "charcoal"
    assert sorted(path.name for path in Path(str(here.vae)).iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert models.add_ons(ink) == AddOns.of(
        [Lora(str(ink.loras[0].file), 0.5)], [str(ink.embeddings[0].file)], str(ink.vae)
    )
    for missing in (AddOns.of(["none"]), AddOns.of(embeddings=["none"]), AddOns.of(vae="none")):
        url = store.url("add/none.safetensors")
        named = AddOns(
            tuple(replace(each, file=url) for each in missing.loras),
            tuple(replace(each, file=url) for each in missing.embeddings),
            None if missing.vae is None else url,
        )
        with pytest.raises(CheckpointError, match="nothing at"):
            models.add_ons(named)
