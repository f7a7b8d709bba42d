"""KubeRay's files against the CRDs themselves, where somebody has them; and how that is checked."""

from __future__ import annotations

import copy
import os
import pathlib
from typing import Any

import pytest
import yaml

from tests.jobs.cluster.kuberay_crds import VARIABLE, refused_by_crd

FOLDER = pathlib.Path(__file__).parent.parent.parent.parent / "jobs" / "cluster"
TEXT = {"type": "string"}
SPEC = {
    "type": "object",
    "required": ["entrypoint"],
    "properties": {
        "entrypoint": TEXT,
        "backoffLimit": {"type": "integer", "format": "int32"},
        "labels": {"type": "object", "additionalProperties": TEXT},
        "rules": {
            "type": "array",
            "items": {"type": "object", "properties": {"policy": TEXT}},
        },
        "anything": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}
CRD = {
    "kind": "CustomResourceDefinition",
    "spec": {
        "group": "ray.io",
        "names": {"kind": "RayJob"},
        "versions": [
            {"name": "v1alpha1", "schema": {"openAPIV3Schema": {"type": "object"}}},
            {
                "name": "v1",
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "apiVersion": TEXT,
                            "kind": TEXT,
                            "metadata": {"type": "object"},
                            "spec": SPEC,
                        },
                    }
                },
            },
        ],
    },
}
JOB: dict[str, Any] = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"generateName": "fpe-"},
    "spec": {
        "entrypoint": "fpe run",
        "labels": {"ours": "a"},
        "rules": [{"policy": "DeleteSelf"}],
        "anything": {"at": {"all": 1}},
    },
}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "ray.io_rayjobs.yaml").write_text(yaml.safe_dump(CRD), encoding="utf-8")
    return tmp_path


def test_what_a_crd_has_is_taken(folder: pathlib.Path) -> None:
    assert refused_by_crd(JOB, folder) == []


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"entrypont": "fpe run"}, "entrypont"),
        ({"rules": [{"polcy": "DeleteSelf"}]}, "polcy"),
        ({"labels": {"ours": 3}}, "ours"),
        ({"backoffLimit": "1"}, "backoffLimit"),
    ],
)
def test_keys_and_types_that_it_has_not_are_refused(
    folder: pathlib.Path, change: dict[str, Any], where: str
) -> None:
    broken = copy.deepcopy(JOB)
    broken["spec"] |= change
    (said,) = refused_by_crd(broken, folder)
    assert where in said


def test_a_kind_without_a_crd_is_told(folder: pathlib.Path) -> None:
    with pytest.raises(LookupError, match=r"no CRD of RayCronJob ray\.io/v1"):
        refused_by_crd(JOB | {"kind": "RayCronJob"}, folder)


@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no folder with CRDs")
@pytest.mark.parametrize("name", ["rayjob.yaml", "raycronjob.yaml"])
def test_the_crds_take_our_files(name: str) -> None:
    manifest = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    assert refused_by_crd(manifest, pathlib.Path(os.environ[VARIABLE])) == []
