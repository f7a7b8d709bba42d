"""`fpe plan` as it is typed: what it prints, keeps, and says where there is no probe."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.jobs.test_cli import figures, fpe


@pytest.fixture
def job_file(
    tmp_path: pathlib.Path,
    tiny_checkpoint: pathlib.Path,
    picture: Callable[..., Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Two pictures with two edits each; probes are kept in a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    columns = {"image": ["0.png", "1.png"], "target_prompt": [["a red cat", "a blue cat"]] * 2}
    pq.write_table(pa.table(columns), tmp_path / "manifest.parquet")
    job = {
        "manifest": str(tmp_path / "manifest.parquet"),
        "output": str(tmp_path / "run"),
        "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
        "resources": {"groups_per_block": 2, "threads_per_actor": 1},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    return str(tmp_path / "job.yaml")


def test_a_plan_is_priced_by_a_probe_that_is_kept(job_file: str, tmp_path: pathlib.Path) -> None:
    code, printed, errors = fpe("plan", job_file, "--probe-seconds", "1", "--price-per-hour", "36")
    assert (code, errors) == (0, "")
    row = figures(printed)
    # two sources of 4 + 2 rows and one that their two edits, of 7 rows each, share
    assert row["UNet rows to do"] == "42"
    assert float(row["seconds per UNet row"]) > 0
    assert float(row["device-hours"]) > 0
    assert {"cost", "time with 1 worker", "UNet"} <= set(row)
    assert "judge" not in row
    assert "measured just now; 64 x 64 px, float32" in printed
    for effect in (
        "edit.steps 4 → 2",
        "images.format png → webp",
        "images.keep_source true → false",
    ):
        assert effect in printed
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "cache/fpe/probes.json").exists()

    code, printed, _ = fpe("plan", job_file)
    assert code == 0
    assert "probe of 20" in printed
    assert "cost" not in figures(printed)


def test_json_has_the_counts_the_price_and_the_probe(job_file: str, tmp_path: pathlib.Path) -> None:
    file = str(tmp_path / "probes.json")
    options = ("--probes", file, "--probe-seconds", "1", "--price-per-hour", "3600", "--json")
    code, printed, errors = fpe("plan", job_file, *options)
    assert (code, errors) == (0, "")
    said = json.loads(printed)
    assert (said["edits_pending"], said["sources"], said["unet_rows"]) == (4, 2, 42)
    assert said["price"]["unet_rows"] == 42
    assert said["price"]["money"] == pytest.approx(said["price"]["device_s"])
    assert said["output_bytes"] == round(said["price"]["output_bytes"])
    assert said["probe"]["is_measured_now"] is True
    assert {effect["key"] for effect in said["key_effects"]} >= {"edit.steps", "images.format"}

    code, printed, _ = fpe("plan", job_file, "--no-probe", "--json")
    counted = json.loads(printed)
    assert (counted["unet_rows"], counted["price"], counted["why_not"]) == (42, None, "")

    name = said["probe"]["device"]
    code, printed, _ = fpe("plan", job_file, "--device-name", name, "--probes", file, "--json")
    assert json.loads(printed)["probe"] == said["probe"] | {"is_measured_now": False}


def test_without_a_probe_the_plan_is_counted_and_what_was_asked_for_is_an_error(
    job_file: str, tmp_path: pathlib.Path
) -> None:
    code, printed, errors = fpe("plan", job_file, "model.device=cuda:99")
    assert (code, errors) == (0, "")
    assert figures(printed)["UNet rows to do"] == "42"
    assert "No price: torch sees no device 'cuda:99'" in printed
    assert fpe("plan", job_file, "model.device=cuda:99", "--probe")[0] == 2

    code, printed, errors = fpe("plan", job_file, "--device-name", "H100")
    assert (code, printed) == (2, "")
    assert "error: no probe of a device 'H100' for checkpoint" in errors
    assert "probes.json has none" in errors
    code, _, errors = fpe("plan", job_file, "--device-name", "H100", "--no-probe")
    assert code == 2
    assert "do not give --probe or --no-probe with it" in errors
    assert not (tmp_path / "cache").exists()
