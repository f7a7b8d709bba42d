"""What KubeRay 1.7 takes, closed: an unknown key is an error. Pods are Kubernetes' own schema.

Written down from the field reference of KubeRay 1.7.0 (RayJob, RayCronJob and what they hold), and
from what its operator checks beyond types. It stands in for the openAPIV3Schema of the CRDs, which
carries a copy of all of Kubernetes' pods: here those are references into `kubernetes_validate`, and
as strict. Compared field by field with the CRDs that a fork of 1.7 generated and with 1.7's Go
types (2026-11-26): names and types agree. It is stricter where the CRD has a text whose values the
operator knows, a number that may not be negative, or a default. What we never use, such as TLS, is
any object.
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
from referencing import Registry, Resource

KUBERNETES = "1.37.0"
_DEFINITIONS = "https://kubernetes.io/api/_definitions.json"
_DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
Schema = dict[str, Any]


def _closed(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _core(name: str) -> Schema:
    return {"$ref": f"{_DEFINITIONS}#/$defs/io.k8s.api.core.v1.{name}"}


def _many(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _one_of(*values: str) -> Schema:
    return {"enum": list(values)}


_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_UNUSED: Schema = {"type": "object"}
_TEXTS: Schema = {"type": "object", "additionalProperties": _TEXT}
_METADATA: Schema = {
    "$ref": f"{_DEFINITIONS}#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
}
_MANAGER = _one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
_POLICY = _one_of("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone")

_AUTOSCALER = _closed(
    resources=_core("ResourceRequirements"),
    image=_TEXT,
    imagePullPolicy=_one_of("Always", "IfNotPresent", "Never"),
    securityContext=_core("SecurityContext"),
    idleTimeoutSeconds=_COUNT,
    upscalingMode=_one_of("Default", "Aggressive", "Conservative"),
    version=_one_of("v1", "v2"),
    env=_many(_core("EnvVar")),
    envFrom=_many(_core("EnvFromSource")),
    volumeMounts=_many(_core("VolumeMount")),
    command=_many(_TEXT),
    args=_many(_TEXT),
)
_HEAD = _closed(
    ("template",),
    template=_core("PodTemplateSpec"),
    headService=_core("Service"),
    enableIngress=_FLAG,
    ingressOptions=_UNUSED,
    resources=_TEXTS,
    labels=_TEXTS,
    rayStartParams=_TEXTS,
    serviceType=_TEXT,
)
_WORKERS = _closed(
    ("groupName", "template", "minReplicas", "maxReplicas"),
    groupName=_TEXT,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    idleTimeoutSeconds=_COUNT,
    priority={"type": "integer"},
    resources=_TEXTS,
    labels=_TEXTS,
    rayStartParams=_TEXTS,
    template=_core("PodTemplateSpec"),
    numOfHosts=_COUNT,
    suspend=_FLAG,
    scaleStrategy=_UNUSED,
)
_CLUSTER = _closed(
    ("headGroupSpec",),
    authOptions=_closed(
        mode=_one_of("disabled", "token"), secretName=_TEXT, enableK8sTokenAuth=_FLAG
    ),
    autoscalerOptions=_AUTOSCALER,
    headServiceAnnotations=_TEXTS,
    enableInTreeAutoscaling=_FLAG,
    headGroupSpec=_HEAD,
    rayVersion=_TEXT,
    workerGroupSpecs=_many(_WORKERS),
    suspend=_FLAG,
    managedBy=_MANAGER,
    upgradeStrategy=_UNUSED,
    gcsFaultToleranceOptions=_UNUSED,
    historyServerOptions=_UNUSED,
    networkPolicy=_UNUSED,
    tlsOptions=_UNUSED,
)
_CONDITION = _closed(
    jobStatus=_one_of("SUCCEEDED", "FAILED"),
    jobDeploymentStatus=_one_of("Failed"),
    ttlSeconds=_COUNT,
) | {"oneOf": [{"required": ["jobStatus"]}, {"required": ["jobDeploymentStatus"]}]}
_RULE = _closed(("policy", "condition"), policy=_POLICY, condition=_CONDITION)
JOB_SPEC = _closed(
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=_COUNT,
    rayClusterSpec=_CLUSTER,
    submitterPodTemplate=_core("PodTemplateSpec"),
    metadata=_TEXTS,
    clusterSelector=_TEXTS,
    submitterConfig=_closed(backoffLimit=_COUNT),
    managedBy=_MANAGER,
    deletionStrategy=_closed(("deletionRules",), deletionRules=_many(_RULE) | {"minItems": 1}),
    entrypoint=_TEXT,
    runtimeEnvYAML=_TEXT,
    jobId=_TEXT,
    submissionMode=_one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    entrypointResources=_TEXT,
    entrypointNumCpus=_NUMBER,
    entrypointNumGpus=_NUMBER,
    ttlSecondsAfterFinished=_COUNT,
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=_FLAG,
    suspend=_FLAG,
)
CRON_JOB_SPEC = _closed(
    ("jobTemplate", "schedule"),
    jobTemplate=JOB_SPEC,
    schedule=_TEXT,
    timeZone={"type": "string", "minLength": 1},
    suspend=_FLAG,
)


def _kind(kind: str, spec: Schema) -> Schema:
    return _closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion=_one_of("ray.io/v1"),
        kind=_one_of(kind),
        metadata=_METADATA,
        spec=spec,
    )


@functools.cache
def _kubernetes(name: str) -> Schema:
    folder = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema"
    text = (folder / f"v{KUBERNETES}-local-strict" / f"{name}.json").read_text("utf-8")
    schema: Schema = json.loads(text)
    return schema


@functools.cache
def _validator(kind: str, api_version: str) -> jsonschema.Draft202012Validator:
    if kind == "RayJob":
        schema = _kind(kind, JOB_SPEC)
    elif kind == "RayCronJob":
        schema = _kind(kind, CRON_JOB_SPEC)
    else:  # rbac.authorization.k8s.io/v1 -> rbac-v1
        group, _, version = api_version.rpartition("/")
        name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], version)))
        schema = _kubernetes(name)
    definitions = Resource.from_contents(_kubernetes("_definitions"))
    registry: Any = Registry().with_resource(_DEFINITIONS, definitions)
    return jsonschema.Draft202012Validator(schema, registry=registry)


def problems(manifest: dict[str, Any]) -> list[str]:
    """Everything that Kubernetes or KubeRay would not take of one manifest."""
    missing = [f"no {key}" for key in ("kind", "apiVersion") if key not in manifest]
    if missing:
        return missing
    validator = _validator(manifest["kind"], manifest["apiVersion"])
    found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]
    if found or not manifest["kind"].startswith("Ray"):
        return found
    spec = manifest["spec"]
    return list(refused_by_operator(spec.get("jobTemplate", spec)))


def refused_by_operator(job: dict[str, Any]) -> Iterator[str]:
    """What KubeRay's operator refuses although the types are right."""
    rules = job.get("deletionStrategy", {}).get("deletionRules", [])
    shuts_down, cluster = job.get("shutdownAfterJobFinishes"), job.get("rayClusterSpec", {})
    if not cluster and not job.get("clusterSelector"):
        yield "neither rayClusterSpec nor clusterSelector says where it runs"
    if job.get("suspend") and not shuts_down:
        yield "suspend needs shutdownAfterJobFinishes"
    if rules and shuts_down:
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    if job.get("ttlSecondsAfterFinished") and not shuts_down:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    scales = cluster.get("enableInTreeAutoscaling")
    if scales and any(rule["policy"] == "DeleteWorkers" for rule in rules):
        yield "DeleteWorkers does not go with autoscaling"
    yield from _rules_out_of_order(rules)
    yield from _refused_groups(cluster)
    if cluster.get("authOptions", {}).get("mode") == "token" and not cluster.get("rayVersion"):
        yield "a token needs rayVersion"


def _refused_groups(cluster: dict[str, Any]) -> Iterator[str]:
    scales = cluster.get("enableInTreeAutoscaling")
    scaler = cluster.get("autoscalerOptions", {}).get("version")
    for group in cluster.get("workerGroupSpecs", []):
        if group.get("minReplicas", 0) > group.get("maxReplicas", 2**31 - 1):
            yield "minReplicas is above maxReplicas"
        if "idleTimeoutSeconds" in group and scaler != "v2":
            yield "idleTimeoutSeconds of a group needs autoscaler v2"
    groups = [cluster.get("headGroupSpec"), *cluster.get("workerGroupSpecs", [])]
    for group in filter(None, groups):
        never = group["template"]["spec"].get("restartPolicy", "Never") == "Never"
        if scales and scaler == "v2" and not never:
            yield "autoscaler v2 needs restartPolicy Never"
        if "labels" in group.get("rayStartParams", {}):
            yield "labels are no start parameter"


def _rules_out_of_order(rules: list[dict[str, Any]]) -> Iterator[str]:
    def trigger(rule: dict[str, Any]) -> str:
        condition = rule["condition"]
        return str(condition.get("jobStatus") or condition.get("jobDeploymentStatus"))

    for what, group in itertools.groupby(sorted(rules, key=trigger), trigger):
        waits = [(rule["policy"], rule["condition"].get("ttlSeconds", 0)) for rule in group]
        if len({policy for policy, _ in waits}) < len(waits):
            yield f"{what}: a policy comes twice"
        in_order = [w for policy in _DELETION_ORDER for p, w in waits if p == policy]
        if in_order != sorted(in_order):
            yield f"{what}: what holds the other goes first"
