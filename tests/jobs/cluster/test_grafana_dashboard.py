"""The dashboard shows every metric that a run exports, and none that it does not."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import pytest

from pipeline.run.metrics import FAMILIES, RAY_PREFIX

ROOT = pathlib.Path(__file__).parent.parent.parent.parent
FILE = ROOT / "jobs" / "cluster" / "grafana-dashboard.json"
EXPORTED = {RAY_PREFIX + family.name: family for family in FAMILIES}
SELECTOR = re.compile(r"(\w+)\{([^}]*)\}")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return dict(json.loads(FILE.read_bytes()))


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_its_metrics_are_those_that_are_exported(dashboard: dict[str, Any]) -> None:
    variable = dashboard["templating"]["list"][1]["query"]["query"]
    named = {
        name
        for text in [*expressions(dashboard), variable]
        for name in re.findall(r"\b(?:ray_)?fpe_\w+", text)
    }
    assert named == EXPORTED.keys()


def test_labels_are_those_of_the_metric(dashboard: dict[str, Any]) -> None:
    for text in expressions(dashboard):
        for name, selectors in SELECTOR.findall(text):
            labels = re.findall(r"(\w+)(?:=~|!=|=)", selectors)
            assert set(labels) <= {"run", *EXPORTED[name].labels}, text
        grouped = re.findall(r"sum by \(([^)]*)\) \((?:rate\()?(\w+)", text)
        for labels, name in grouped:
            assert set(labels.split(", ")) <= {"run", *EXPORTED[name].labels}, text


def test_every_panel_asks_the_chosen_source_for_the_chosen_runs(dashboard: dict[str, Any]) -> None:
    for text in expressions(dashboard):
        selected = SELECTOR.findall(text)
        assert len(selected) == len(re.findall(r"ray_fpe_\w+", text)), text
        assert all('run=~"$run"' in selectors for _, selectors in selected), text
    for panel in dashboard["panels"]:
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert sources == [{"type": "prometheus", "uid": "${datasource}"}] * len(sources)
    names = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert names == ["datasource", "run"]


def test_rates_are_of_counters_and_nothing_else(dashboard: dict[str, Any]) -> None:
    for text in expressions(dashboard):
        for name in re.findall(r"rate\((\w+)\{", text):
            assert EXPORTED[name].is_counter, text


def test_it_can_be_imported(dashboard: dict[str, Any]) -> None:
    """What Grafana's import asks of a file; and panels that do not lie on one another."""
    assert dashboard["id"] is None
    assert dashboard["schemaVersion"] >= 36, "data sources as type and uid"
    assert (dashboard["uid"], dashboard["title"]) == ("fpe-runs", "Free-Prompt-Editing runs")
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    for panel in panels:
        assert panel["title"]
        assert panel["description"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
