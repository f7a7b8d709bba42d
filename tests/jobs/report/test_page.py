"""The report is one page that needs nothing else, is small, and says what the run says."""

from __future__ import annotations

import dataclasses
import fnmatch
import io
import json
import math
import pathlib
import tomllib
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from fpe_core.scores.edit_scores import EditScores
from jobs.cli import app
from jobs.report.page import render_report, write_comparison, write_report
from jobs.report.words import MEANINGS, percent_text, score_text, signed_text
from pipeline.errors import JobError
from pipeline.job.job import Job
from pipeline.ledger.outcome import SCORE_COLUMNS, AttemptRecord, EditKey, EditOutcome
from pipeline.plan.quotas import QuotaRow
from pipeline.report.facts import read_report
from pipeline.run.stats import STATS_FILE
from pipeline.storage.folder import Folder
from tests.builders.judged_run import accepted, labelled_job, write_run
from tests.builders.report_pages import HOSTILE, Parsed, one_of_each, write_large_run
from tests.servers.stores import Store, store_on_disk

ROOT = pathlib.Path(__file__).parent.parent.parent.parent


@pytest.fixture
def image(picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]) -> bytes:
    return png(picture())


@pytest.fixture
def job(tmp_path: pathlib.Path, tiny_checkpoint: pathlib.Path, image: bytes) -> Job:
    """A finished run."""
    job = labelled_job(store_on_disk(tmp_path / "store"), str(tiny_checkpoint))
    write_run(job, image, one_of_each)
    return job


def page_of(job: Job, **options: float) -> Parsed:
    return Parsed(render_report(read_report(Folder.open(job.output)), **options))  # type: ignore[arg-type]


def test_the_page_needs_nothing_else(job: Job) -> None:
    page = page_of(job)
    assert page.outside() == []
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert all(str(i["src"]).startswith("data:image/webp;base64,") for i in page.all("img"))


def test_the_page_is_usable_without_eyes_and_mouse(job: Job) -> None:
    page = page_of(job)
    assert page.accessibility() == []
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("a")[0] == {"class": "skip", "href": "#main"}
    assert len(page.all("svg")) == len([s for s in page.all("svg") if s.get("aria-label")]) == 2
    assert "prefers-color-scheme: dark" in page.texts["style"]


def test_the_tiles_carry_what_filters_ask_for(job: Job) -> None:
    tiles = page_of(job).tiles()
    assert len(tiles) == 6
    (rejected,) = [tile for tile in tiles if tile["data-verdict"] == "rejected"]
    assert (rejected["data-type"], rejected["data-reason"]) == ("colour", "no_change")
    assert "rejected" in str(rejected["data-groups"]).split("|")
    assert rejected["data-score-changed_share"] == "0.01"
    assert {tile["data-label-0"] for tile in tiles} == {"red", "blue"}
    assert all(
        "a red cat" in str(t["data-text"]) for t in tiles if "red cat" in str(t["data-text"])
    )


def test_quotas_are_a_table_of_candidates_and_accepted_edits(job: Job) -> None:
    row = QuotaRow({"colour": "mauve"}, 1_234, 40, 17, 20, 3, quota=19, short_by=2, to_do=2)
    folder = Folder.open(job.output)
    assert "mauve" not in page_of(job).texts["td"]
    stats = json.loads(folder.read(STATS_FILE)) | {"quotas": [dataclasses.asdict(row)]}
    folder.replace(STATS_FILE, json.dumps(stats).encode())
    page = page_of(job)
    for figure in ("colour mauve", "1,234", "17", "19"):
        assert figure in page.texts["td"]
    for heading in ("candidates", "accepted", "quota", "short by"):
        assert heading in page.texts["th"]
    assert page.accessibility() == []


def test_quotas_past_the_limit_are_counted(job: Job) -> None:
    rows = [
        QuotaRow({"colour": f"colour {n}"}, 9, 0, 0, 0, 0, quota=9, short_by=n, to_do=0)
        for n in range(1_205)
    ]
    folder = Folder.open(job.output)
    stats = json.loads(folder.read(STATS_FILE)) | {"quotas": [*map(dataclasses.asdict, rows)]}
    folder.replace(STATS_FILE, json.dumps(stats).encode())
    page = page_of(job)
    cells = page.texts["td"]
    assert "colour 1,204" not in cells
    assert cells.index("colour 1204") < cells.index("colour 1005")
    assert "colour 1004" not in cells
    assert "and 1,005 more cells" in cells
    assert "200 of 1,205 cells" in page.texts["p"]


def test_tiles_carry_scores_as_scripts_read_numbers(
    job: Job, tmp_path: pathlib.Path, image: bytes
) -> None:
    values = [math.inf, 12_345.678, 1.23e-05, -0.5, -math.inf, math.nan]
    run = job.model_copy(update={"output": str(tmp_path / "numbers")})
    write_run(run, image, lambda number, key: accepted(number, key, psnr_db=values[number]))
    found = {tile["data-score-psnr_db"] for tile in page_of(run).tiles()}
    assert found == {"Infinity", "12345.678", "1.23e-05", "-0.5", "-Infinity", "NaN"}


def test_judging_is_told_in_tables_where_the_run_has_it(
    job: Job, tmp_path: pathlib.Path, image: bytes
) -> None:
    titles = ("Retries", "Boxes and masks of accepted edits", "Reconstruction of sources")
    plain = page_of(job).texts.get("caption", "")
    assert not [title for title in titles if title in plain]

    def tried(number: int, key: EditKey) -> EditOutcome:
        first = AttemptRecord("{}", "off_target", "", 7_001.0, 0.5, EditScores())
        second = dataclasses.replace(first, reason="", unet_rows=3_003.0)
        return dataclasses.replace(
            accepted(number, key),
            tries=(first, second),
            autoencoder_psnr_db=31.5,
        )

    run = job.model_copy(update={"output": str(tmp_path / "judged")})
    write_run(run, image, tried)
    folder = Folder.open(run.output)
    (part,) = [path for path in folder.list() if path.endswith("metadata.parquet")]
    with folder.open_read(part) as file:
        metadata = pq.read_table(file)
    sink = io.BytesIO()
    verdicts = pa.array(["keep", "keep", "keep", "review", "review", "drop"])
    pq.write_table(metadata.append_column("box_verdict", verdicts), sink)
    folder.replace(part, sink.getvalue())
    config = yaml.safe_load(folder.read("config.yaml"))
    config["annotations"] = {"boxes": {"column": "box", "keep_at_least": 0.815}}
    config["judge"]["reconstruction"]["autoencoder_psnr_db_at_least"] = 19.25
    folder.replace("config.yaml", yaml.safe_dump(config).encode())
    page = page_of(run)
    for title in titles:
        assert title in page.texts["caption"]
    assert page.accessibility() == []
    for figure in ("18,018", "31.5", "19.2", "0.815"):
        assert figure in page.texts["td"]
    for name in ("off_target", "boxes: box", "autoencoder"):
        assert name in page.texts["th"]


def test_filters_offer_the_values_there_are(job: Job) -> None:
    page = page_of(job)
    keys = [select["data-key"] for select in page.all("select") if "data-key" in select]
    assert keys == ["verdict", "reason", "label-0"], "all edits have one type: no filter for it"
    values = {option["value"] for option in page.all("option")}
    assert {"=accepted", "=rejected", "=failed", "=no_change", "=red", "=blue"} <= values


def test_texts_of_others_are_text(job: Job) -> None:
    page = page_of(job)
    assert len(page.all("script")) == 1
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert HOSTILE in page.texts["p"]


def test_money_is_counted_where_there_is_a_price(job: Job) -> None:
    without = page_of(job).texts["dt"]
    assert "Cost of the model time" not in without
    said = page_of(job, price_per_hour=3600.0)
    assert "Cost of the model time" in said.texts["dt"]
    assert "2.50" in said.texts["dd"]  # 2.5 s, at one a second
    assert "625.00" in said.texts["dd"]  # of four accepted edits, a thousand of them


def test_equal_runs_have_equal_pages(job: Job) -> None:
    folder = Folder.open(job.output)
    write_report(folder)
    first = folder.read("report.html")
    write_report(folder)
    assert folder.read("report.html") == first


def test_the_report_goes_to_every_store(
    store: Store, tiny_checkpoint: pathlib.Path, image: bytes
) -> None:
    job = labelled_job(store, str(tiny_checkpoint))
    write_run(job, image, one_of_each)
    folder = Folder.open(job.output, job.storage_options)
    written = write_report(folder)
    page = folder.read("report.html")
    assert written.url == folder.url_of("report.html")
    assert written.size_bytes == len(page)
    assert len(Parsed(page).tiles()) == 6
    write_report(folder, out=store.url("elsewhere/page.html"))
    assert Parsed(store.folder("elsewhere").read("page.html")).outside() == []


def test_pictures_are_linked_from_inside_the_run_only(job: Job, tmp_path: pathlib.Path) -> None:
    folder = Folder.open(job.output)
    write_report(folder)
    links = [url for url in Parsed(folder.read("report.html")).values("href") if url[0] == "."]
    assert len(links) == 10
    assert all(folder.exists(link.removeprefix("./")) for link in links)
    write_report(folder, out=str(tmp_path / "page.html"))
    there = Parsed((tmp_path / "page.html").read_bytes())
    assert [url for url in there.values("href") if url[0] == "."] == []


def test_a_run_without_a_judge_has_a_report(
    tmp_path: pathlib.Path, tiny_checkpoint: pathlib.Path, image: bytes
) -> None:
    job = labelled_job(store_on_disk(tmp_path / "store"), str(tiny_checkpoint), judge=None)
    write_run(job, image, lambda number, key: accepted(number, key))
    page = page_of(job)
    assert page.accessibility() == []
    assert page.all("svg") == []
    assert len(page.tiles()) == 6
    assert {tile["data-groups"] for tile in page.tiles()} == {"accepted"}


def test_a_hundred_thousand_edits_stay_small(tmp_path: pathlib.Path) -> None:
    """At most 20 MB, with a gallery as full as it gets of pictures that compress badly."""
    folder = Folder.open(str(tmp_path / "run"))
    write_large_run(folder, edits=100_000, pictures=48)
    facts = read_report(folder)
    page = render_report(facts)
    assert facts.counts.total == 100_000
    assert facts.counts.accepted == 70_000
    assert sum(each.edits for each in facts.histograms if each.score == "ssim") == 100_000 * 12 / 40
    assert len(facts.tiles) == 360
    assert 10_000_000 < len(page) < 20_000_000
    for tile in facts.tiles:
        for picture in (tile.source_picture, tile.edited_picture):
            if picture.data:
                with Image.open(io.BytesIO(picture.data)) as opened:
                    assert max(opened.size) <= 144
    parsed = Parsed(page)
    assert parsed.outside() == []
    assert "Only the 12 most common types; 28 more are not shown." in parsed.texts["p"]
    assert {tile["data-verdict"] for tile in parsed.tiles()} == {"accepted", "rejected", "failed"}


def test_two_runs_make_one_page(
    tmp_path: pathlib.Path, tiny_checkpoint: pathlib.Path, image: bytes, job: Job
) -> None:
    other = job.model_copy(update={"output": str(tmp_path / "other")})
    write_run(other, image, lambda number, key: accepted(number, key, changed_share=0.3))
    a, b = Folder.open(job.output), Folder.open(other.output)
    written = write_comparison(a, b)
    page = Parsed(a.read("comparison.html"))
    assert written.url == a.url_of("comparison.html")
    assert page.outside() == []
    assert page.accessibility() == []
    pairs = {(tile["data-a"], tile["data-b"]) for tile in page.tiles()}
    assert pairs == {("accepted", "accepted"), ("rejected", "accepted"), ("failed", "accepted")}
    assert {tile["data-groups"] for tile in page.tiles()} == {"flipped", "most changed"}
    legend = [i["class"] for i in page.all("i")]
    assert legend == ["accepted-fill", "rejected-fill"], "the charts of differences have colours"


def test_the_command_writes_names_and_refuses(job: Job, tmp_path: pathlib.Path) -> None:
    def fpe(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})
        return result.exit_code, result.stdout.strip(), result.stderr

    assert fpe("report", job.output)[:2] == (0, f"{job.output}/report.html")
    out = str(tmp_path / "both.html")
    assert fpe("report", job.output, job.output, "--out", out)[:2] == (0, out)
    assert b"comparison" in pathlib.Path(out).read_bytes()
    assert fpe("report", *[job.output] * 3)[:2] == (0, f"{job.output}/side_by_side.html")
    page = Parsed(Folder.open(job.output).read("side_by_side.html"))
    assert page.outside() == []
    assert page.accessibility() == []
    assert len(page.tiles()) == 6
    code, _, errors = fpe("report", job.output, "--out", f"{job.output}/stats.json")
    assert code == 2
    assert "ends in .html" in errors
    code, _, errors = fpe("report", str(tmp_path))
    assert code == 1
    assert "give the output of a job" in errors


def test_only_html_is_written_over(job: Job) -> None:
    with pytest.raises(JobError, match=r"ends in \.html"):
        write_report(Folder.open(job.output), out="manifest.parquet")


def test_templates_lie_in_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["jobs"]
    files = list((ROOT / "jobs" / "report" / "templates").iterdir())
    assert len(files) >= 5
    for file in files:
        name = file.relative_to(ROOT / "jobs").as_posix()
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


def test_every_score_is_explained() -> None:
    assert set(MEANINGS) == set(SCORE_COLUMNS)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (0.5, "0.5"),
        (0.03812, "0.0381"),
        (0.0000123, "1.23e-05"),
        (25.349, "25.3"),
        (100.0, "100"),
        (12345.6, "12,345.6"),
        (float("inf"), "∞"),
        (float("nan"), "–"),
    ],
)
def test_scores_are_short_and_true(value: float, said: str) -> None:
    assert score_text(value) == said


def test_shares_near_the_ends_are_not_rounded_to_them() -> None:
    assert [percent_text(share) for share in (0, 0.0001, 0.5, 0.9999, 1)] == [
        "0 %",
        "< 0.1 %",
        "50 %",
        "> 99.9 %",
        "100 %",
    ]
    assert [signed_text(value) for value in (0.5, -0.5, 0)] == ["+0.5", "−0.5", "0"]
