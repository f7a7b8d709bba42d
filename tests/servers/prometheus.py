"""What the Prometheus endpoints of Ray's nodes have of a run."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Callable

import ray
from prometheus_client.parser import text_string_to_metric_families

from pipeline.run.metrics import FAMILIES, RAY_PREFIX

LABELS = {label for family in FAMILIES for label in family.labels}
_LOOKS = 600

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Values by name and our labels but `run`."""


def exported(run: str) -> Samples:
    """What all nodes have of a run now."""
    samples: Samples = {}
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        try:
            with without_proxy.open(url) as answer:
                text = answer.read().decode()
        except urllib.error.URLError:  # the agent is not up yet
            continue
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("run") == run:
                    ours = {k: v for k, v in sample.labels.items() if k in LABELS}
                    samples[sample.name, tuple(sorted(ours.items()))] = sample.value
    return samples


def scrape(run: str, until: Callable[[Samples], bool]) -> Samples:
    """`exported` as soon as it is complete: Ray hands figures to the endpoint every so often."""
    pause = threading.Event()
    samples: Samples = {}
    for _ in range(_LOOKS):
        samples = exported(run)
        if until(samples):
            return samples
        pause.wait(0.1)
    raise AssertionError(f"never came: {samples}")


def by_stage(samples: Samples, name: str) -> dict[str, float]:
    """The values of one metric that has a label `stage`, by it."""
    return {
        dict(labels)["stage"]: value
        for (sample, labels), value in samples.items()
        if sample == f"{RAY_PREFIX}{name}"
    }
