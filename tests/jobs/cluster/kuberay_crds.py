"""KubeRay's own CRDs as schemas, closed: an unknown key is an error, as under strict validation.

They are not part of this project. The environment variable `KUBERAY_CRDS` names a folder that has
them: `ray-operator/config/crd/bases` of a KubeRay release, or the `crds` of its Helm chart.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jsonschema
import yaml

VARIABLE = "KUBERAY_CRDS"
Schema = dict[str, Any]


def closed(schema: Schema) -> Schema:
    """A structural schema in which objects have the properties they name, and no others."""
    inner = dict(schema)
    if "properties" in schema:
        inner["properties"] = {name: closed(each) for name, each in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        inner["items"] = closed(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        inner["additionalProperties"] = closed(schema["additionalProperties"])
    elif schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        inner["additionalProperties"] = False
    return inner


def crd_schema(folder: pathlib.Path, kind: str, api_version: str) -> Schema:
    """The closed openAPIV3Schema of one kind and version.

    `metadata` stays open: the API server has its own schema for it, and a CRD none.
    """
    group, _, version = api_version.partition("/")
    for file in sorted(folder.glob("*.y*ml")):
        for crd in filter(None, yaml.safe_load_all(file.read_text(encoding="utf-8"))):
            spec = crd.get("spec", {})
            if (spec.get("group"), spec.get("names", {}).get("kind")) != (group, kind):
                continue
            for each in spec["versions"]:
                if each["name"] == version:
                    schema = closed(each["schema"]["openAPIV3Schema"])
                    schema["properties"]["metadata"] = {"type": "object"}
                    return schema
    raise LookupError(f"no CRD of {kind} {api_version} in {folder}")


def refused_by_crd(manifest: dict[str, Any], folder: pathlib.Path) -> list[str]:
    """Everything in a manifest that its CRD does not take."""
    schema = crd_schema(folder, manifest["kind"], manifest["apiVersion"])
    errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in errors]
