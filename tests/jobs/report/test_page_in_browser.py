"""The report in a real browser: drawn, filtered, used by keyboard, in light and in dark."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterator

import pytest
import yaml
from PIL import Image

from jobs.report.page import write_comparison, write_report, write_side_by_side
from pipeline.job.job import Job
from pipeline.ledger.outcome import EditKey, EditOutcome
from pipeline.storage.folder import Folder
from tests.builders.judged_run import accepted, failed, labelled_job, write_run
from tests.builders.report_pages import one_of_each
from tests.servers.browser import Page, browser_page, find_chromium
from tests.servers.s3_server import S3Server
from tests.servers.stores import store_on_disk

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium here; apt-get install chromium"
)

SHOWN = "document.querySelectorAll('.tile:not([hidden])').length"
CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = (colour) => {  // WCAG 2.2, relative luminance
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!/, 0\\)|transparent/.test(colour)) return colour;
    }
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility() || element.closest("svg, style, script")) continue;
    const [a, b] = [getComputedStyle(element).color, ground(element)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(element.tagName + "." + element.className + " " + ratio.toFixed(2));
  }
  return poor;
})()"""


@pytest.fixture(scope="module")
def image(picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]) -> bytes:
    return png(picture())


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: pathlib.Path, image: bytes
) -> Folder:
    """A run of six edits with its report, and a comparison with another one."""
    root = tmp_path_factory.mktemp("reported")
    job = labelled_job(store_on_disk(root / "store"), str(tiny_checkpoint))
    write_run(job, image, one_of_each)
    other = job.model_copy(update={"output": str(root / "other")})
    write_run(other, image, lambda number, key: accepted(number, key, changed_share=0.3))
    folder = Folder.open(job.output)
    write_report(folder)
    write_comparison(folder, Folder.open(other.output))
    write_side_by_side([folder, Folder.open(other.output), folder])
    return folder


@pytest.fixture(scope="module")
def tab(folder: Folder) -> Iterator[Page]:
    """One browser for the tests that leave the page as it was."""
    with browser_page(f"file://{folder.url}/report.html") as page:
        yield page


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    """The report with no filter set; what went wrong in it is looked at afterwards."""
    tab.evaluate(
        "document.querySelector('button[type=reset]').click(); document.activeElement.blur()"
    )
    tab.evaluate("new Promise((done) => setTimeout(done))")
    yield tab
    assert tab.evaluate("window.hacked") is None
    assert tab.problems == []


def click(page: Page, selector: str) -> None:
    assert page.evaluate(f"document.querySelector({selector!r}).click() ?? true")


def choose(page: Page, key: str, value: str) -> None:
    """As a person would: the browser then says that it changed."""
    page.evaluate(
        f"(() => {{ const s = document.querySelector('select[data-{key}]'); s.value = {value!r};"
        "s.dispatchEvent(new Event('change')); })()"
    )


def test_the_page_is_drawn(page: Page) -> None:
    assert page.evaluate(SHOWN) == 6
    assert page.evaluate("document.images.length") == 10
    assert (
        page.evaluate(
            "Promise.all([...document.images].map((i) => i.decode())).then(() => 'decoded')"
        )
        == "decoded"
    )
    assert page.evaluate("document.querySelector('svg rect').getBBox().height") > 0
    assert page.evaluate("document.querySelector('[data-filters]').hidden") is False


def test_buttons_choices_and_words_filter_the_tiles(page: Page) -> None:
    click(page, "button[data-group=failed]")
    assert page.evaluate(SHOWN) == 1
    assert page.evaluate("document.querySelector('output').value") == "1 of 6 shown"
    click(page, "button[data-group='']")
    choose(page, "key=verdict", "=accepted")
    assert page.evaluate(SHOWN) == 4
    choose(page, "key=label-0", "=red")
    assert page.evaluate(SHOWN) == 2
    choose(page, "key=reason", "=no_change")
    assert page.evaluate(SHOWN) == 0
    assert page.evaluate("document.querySelector('[data-none]').checkVisibility()")
    click(page, "button[type=reset]")
    page.evaluate("document.querySelector('input[type=search]').focus()")
    page.type("Cat BLUE")
    assert page.evaluate(SHOWN) == 1
    assert page.evaluate(f"{SHOWN[:-7]}[0].dataset.text.startsWith('a blue cat')")


def test_tiles_are_ordered_by_a_score_and_put_back(page: Page) -> None:
    order = "[...document.querySelectorAll('.tile')].map((t) => t.getAttribute('data-score-{}'))"
    name = "directional_similarity"
    before = page.evaluate(order.format(name))
    choose(page, "order", f"{name} up")
    found = page.evaluate(order.format(name))
    assert found[-1] is None, "an edit without the score comes last"
    assert [float(score) for score in found[:-1]] == sorted(float(s) for s in before if s)
    choose(page, "order", f"{name} down")
    assert page.evaluate(order.format(name))[:-1] == found[:-1][::-1]
    choose(page, "order", "")
    assert page.evaluate(order.format(name)) == before


def test_scores_that_are_shown_with_signs_are_ordered_as_numbers(
    folder: Folder, tmp_path: pathlib.Path, image: bytes
) -> None:
    """An infinite one and one of thousands: what is shown of them is no number to a script."""
    values = [math.inf, 12_345.6, -5.5, 40.0, 7.25]
    config = yaml.safe_load(folder.read("config.yaml"))
    job = Job.model_validate(config).model_copy(update={"output": str(tmp_path / "run")})

    def scored(number: int, key: EditKey) -> EditOutcome:
        return failed(key) if number == 5 else accepted(number, key, psnr_db=values[number])

    write_run(job, image, scored)
    write_report(Folder.open(job.output))
    order = (
        "[...document.querySelectorAll('.tile')].map((t) => t.getAttribute('data-score-psnr_db'))"
    )
    with browser_page(f"file://{job.output}/report.html") as page:
        choose(page, "order", "psnr_db up")
        found = page.evaluate(order)
        assert found == ["-5.5", "7.25", "40.0", "12345.6", "Infinity", None]
        assert page.problems == []


def test_everything_can_be_reached_and_used_with_the_keyboard(page: Page) -> None:
    page.evaluate("document.querySelector('.skip').focus()")
    page.press("Enter")
    assert page.evaluate("location.hash") == "#main"
    wanted = page.evaluate(
        "[...document.querySelectorAll('[data-filters] button, [data-filters] select, "
        "[data-filters] input, .tile a, .tile summary')].length"
    )
    reached = 0
    for _ in range(200):
        page.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        reached += page.evaluate("!!document.activeElement.closest('[data-filters], .tile')")
    assert reached == wanted > 20
    page.evaluate("document.querySelector('select[data-key=verdict]').focus()")
    before = page.evaluate("document.activeElement.value")
    page.press("ArrowDown")
    assert (before, page.evaluate("document.activeElement.value")) == ("", "=accepted")
    assert page.evaluate(SHOWN) == 4
    assert page.evaluate("document.querySelector('output').value") == "4 of 6 shown"
    page.press("ArrowUp")
    assert page.evaluate(SHOWN) == 6
    page.evaluate("document.querySelector('button[data-group=rejected]').focus()")
    page.press(" ")
    assert page.evaluate(SHOWN) == 1
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.press("Tab", shift=True)
    page.press("Enter")
    assert page.evaluate(SHOWN) > 1


@pytest.mark.parametrize("name", ["report.html", "comparison.html", "side_by_side.html"])
@pytest.mark.parametrize("is_dark", [False, True])
def test_both_colour_schemes_are_legible(folder: Folder, name: str, is_dark: bool) -> None:
    with browser_page(f"file://{folder.url}/{name}", dark=is_dark) as page:
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shade = int(ground.split("(")[1].split(",")[0])
        assert (shade < 64) == is_dark
        assert page.evaluate(CONTRAST) == []
        assert page.problems == []


def test_a_report_opens_from_an_object_store(folder: Folder, s3_server: S3Server) -> None:
    """By a link to one object: it is shown and not saved, asks for nothing else, and works."""
    there = Folder.open(s3_server.url("run"), s3_server.storage_options)
    there.replace("report.html", folder.read("report.html"))
    assert s3_server.content_type("run/report.html") == "text/html; charset=utf-8"
    with browser_page(s3_server.presigned_url("run/report.html")) as page:
        click(page, "button[data-group=rejected]")
        assert page.evaluate(SHOWN) == 1
        assert page.evaluate("[...document.images].every((i) => i.naturalWidth > 0)")
        linked = page.evaluate("document.querySelector('.tile:not([hidden]) a').href")
        assert "/run/" in linked
        assert "X-Amz-" not in linked, "a picture needs a link or rights of its own"
        assert page.problems == []


def test_a_narrow_window_does_not_scroll_sideways(folder: Folder) -> None:
    with browser_page(f"file://{folder.url}/report.html", width=360, height=740) as page:
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
        assert page.evaluate(SHOWN) == 6


def test_pairs_are_filtered_too(folder: Folder) -> None:
    with browser_page(f"file://{folder.url}/comparison.html") as page:
        assert page.evaluate(SHOWN) == 6
        click(page, "button[data-group=flipped]")
        assert page.evaluate(SHOWN) == 2
        choose(page, "key=a", "=failed")
        assert page.evaluate(SHOWN) == 1
        assert page.problems == []


def test_the_policy_of_the_page_lets_nothing_else_in(folder: Folder) -> None:
    with browser_page(f"file://{folder.url}/report.html") as page:
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=\"x.png\">')")
        page.evaluate(
            "document.head.append(Object.assign(document.createElement('script'), "
            "{textContent: 'window.hacked = 1'}))"
        )
        assert page.evaluate("window.hacked") is None
        assert any("Content Security Policy" in problem for problem in page.problems)
