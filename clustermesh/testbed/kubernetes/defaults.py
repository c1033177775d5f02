"""What the real server fills in and refuses for the built-in kinds: what kubectl, controllers and the mesh rely on."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

from . import selectors
from .errors import Cause, Object, invalid
from .resources import Resource

_SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_PATH_SEGMENT = re.compile(r"^(?!\.{1,2}$)[^/%]+$")
_SERVICE = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_LABEL_KEY = re.compile(r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
_LABEL_VALUE = re.compile(r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")

CLEANUP = "customresourcecleanup.apiextensions.k8s.io"  # holds a definition until its objects are gone


def apply(resource: Resource, item: Object) -> None:
    """Fill in defaults, in place."""
    default = _DEFAULTS.get(resource.kind)
    if default is not None and not resource.custom:
        default(item)


def check(resource: Resource, item: Object) -> None:
    """Raise 422 Invalid naming every field that is wrong."""
    causes = list(_metadata_causes(resource, item["metadata"]))
    validate = _CHECKS.get(resource.kind)
    if validate is not None and not resource.custom:
        causes += validate(item)
    if causes:
        raise invalid(resource.group, resource.kind, item["metadata"].get("name", ""), causes)


def _required(field: str, message: str = "Required value") -> Cause:
    return Cause("FieldValueRequired", message, field)


def _bad(field: str, value: object, why: str) -> Cause:
    return Cause("FieldValueInvalid", f'Invalid value: "{value}": {why}', field)


def _metadata_causes(resource: Resource, metadata: Object) -> list[Cause]:
    causes = []
    name = str(metadata.get("name") or "")
    pattern, rule = _SUBDOMAIN, "must be a lowercase RFC 1123 subdomain"
    if resource.group == "rbac.authorization.k8s.io":
        pattern, rule = _PATH_SEGMENT, "must be usable as a path segment"
    elif resource.kind == "Namespace":
        pattern, rule = _LABEL, "must be a lowercase RFC 1123 label"
    elif resource.kind == "Service":
        pattern, rule = _SERVICE, "must be a DNS-1035 label"
    longest = 63 if pattern in (_LABEL, _SERVICE) else 253
    if not pattern.match(name) or len(name) > longest:
        causes.append(_bad("metadata.name", name, rule))
    for key, value in (metadata.get("labels") or {}).items():
        if not _LABEL_KEY.match(key) or not isinstance(value, str) or not _LABEL_VALUE.match(value):
            causes.append(_bad("metadata.labels", f"{key}={value}", "must be a valid label"))
    for key, value in (metadata.get("annotations") or {}).items():
        if not isinstance(value, str):
            causes.append(_bad(f"metadata.annotations[{key}]", value, "must be a string"))
    return causes


def _fill(item: Object, **values: Any) -> None:
    for key, value in values.items():
        if item.get(key) is None:
            item[key] = value


def _namespace(item: Object) -> None:
    labels = item["metadata"].setdefault("labels", {})
    labels["kubernetes.io/metadata.name"] = item["metadata"]["name"]
    item.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    item.setdefault("status", {}).setdefault("phase", "Active")


def _pod_spec(spec: Object) -> None:
    _fill(
        spec,
        restartPolicy="Always",
        terminationGracePeriodSeconds=30,
        dnsPolicy="ClusterFirst",
        schedulerName="default-scheduler",
        securityContext={},
    )
    for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        _fill(container, imagePullPolicy="IfNotPresent", resources={})
        for port in container.get("ports") or []:
            _fill(port, protocol="TCP")
        for variable in container.get("env") or []:
            field = (variable.get("valueFrom") or {}).get("fieldRef")
            if field:
                _fill(field, apiVersion="v1")
        for probe in (container.get(f"{kind}Probe") for kind in ("readiness", "liveness", "startup")):
            if probe:
                _fill(probe, timeoutSeconds=1, periodSeconds=10, successThreshold=1, failureThreshold=3)
                if probe.get("httpGet"):
                    _fill(probe["httpGet"], path="/", scheme="HTTP")


def _pod(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _pod_spec(spec)
    _fill(spec, serviceAccountName="default", enableServiceLinks=True)
    status = item.setdefault("status", {})
    _fill(status, phase="Pending", qosClass="BestEffort")


def _service(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _fill(spec, type="ClusterIP", sessionAffinity="None")
    for port in spec.get("ports") or []:
        _fill(port, protocol="TCP", targetPort=port.get("port"))
    item.setdefault("status", {}).setdefault("loadBalancer", {})
    if spec["type"] != "ExternalName":
        _fill(spec, ipFamilies=["IPv4"], ipFamilyPolicy="SingleStack", internalTrafficPolicy="Cluster")


def _workload(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _fill(spec, replicas=1)
    _pod_spec(spec.setdefault("template", {}).setdefault("spec", {}))


def _deployment(item: Object) -> None:
    _workload(item)
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}}
    _fill(item["spec"], strategy=rolling, revisionHistoryLimit=10, progressDeadlineSeconds=600)


def _secret(item: Object) -> None:
    _fill(item, type="Opaque")
    plain = item.pop("stringData", None)
    if plain:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}
        item["data"] = (item.get("data") or {}) | encoded


def _slice(item: Object) -> None:
    for port in item.get("ports") or []:
        _fill(port, name="", protocol="TCP")


def _policy(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _fill(spec, podSelector={}, policyTypes=["Ingress", "Egress"] if "egress" in spec else ["Ingress"])


def _crd(item: Object) -> None:
    names = item["spec"].setdefault("names", {})
    kind = names.get("kind", "")
    _fill(names, singular=kind.lower(), listKind=kind + "List")
    _fill(item["spec"], conversion={"strategy": "None"})
    if "deletionTimestamp" not in item["metadata"]:
        finalizers = item["metadata"].setdefault("finalizers", [])
        if CLEANUP not in finalizers:
            finalizers.append(CLEANUP)


_DEFAULTS: dict[str, Callable[[Object], None]] = {
    "Namespace": _namespace,
    "Pod": _pod,
    "Service": _service,
    "Deployment": _deployment,
    "ReplicaSet": _workload,
    "Secret": _secret,
    "EndpointSlice": _slice,
    "NetworkPolicy": _policy,
    "CustomResourceDefinition": _crd,
}


def _check_pod_spec(spec: Object, path: str) -> list[Cause]:
    causes = []
    if not spec.get("containers"):
        causes.append(_required(f"{path}.containers"))
    for i, container in enumerate(spec.get("containers") or []):
        causes += [
            _required(f"{path}.containers[{i}].{field}") for field in ("name", "image") if not container.get(field)
        ]
    return causes


def _check_pod(item: Object) -> list[Cause]:
    return _check_pod_spec(item["spec"], "spec")


def _check_service(item: Object) -> list[Cause]:
    spec = item["spec"]
    causes = []
    if spec["type"] not in ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"):
        causes.append(Cause("FieldValueNotSupported", f'Unsupported value: "{spec["type"]}"', "spec.type"))
    ports = spec.get("ports") or []
    if not ports and spec["type"] != "ExternalName" and spec.get("clusterIP") != "None":
        causes.append(_required("spec.ports"))
    for i, port in enumerate(ports):
        if not isinstance(port.get("port"), int) or not 0 < port["port"] < 65536:
            causes.append(_bad(f"spec.ports[{i}].port", port.get("port"), "must be between 1 and 65535, inclusive"))
        if len(ports) > 1 and not port.get("name"):
            causes.append(_required(f"spec.ports[{i}].name"))
    return causes


def _check_workload(item: Object) -> list[Cause]:
    spec = item["spec"]
    causes = _check_pod_spec(spec["template"]["spec"], "spec.template.spec")
    if not isinstance(spec["replicas"], int) or spec["replicas"] < 0:
        causes.append(_bad("spec.replicas", spec["replicas"], "must be greater than or equal to 0"))
    text = selectors.of_object(spec.get("selector"))
    if not text:
        return [*causes, _required("spec.selector")]
    selects = selectors.labels(text)
    if selects is not None and not selects({"metadata": spec["template"].get("metadata") or {}}):
        why = "`selector` does not match template `labels`"
        causes.append(_bad("spec.template.metadata.labels", spec["template"].get("metadata", {}).get("labels"), why))
    return causes


def _check_slice(item: Object) -> list[Cause]:
    causes = []
    if item.get("addressType") not in ("IPv4", "IPv6", "FQDN"):
        causes.append(_required("addressType"))
    for i, endpoint in enumerate(item.get("endpoints") or []):
        if not endpoint.get("addresses"):
            causes.append(_required(f"endpoints[{i}].addresses"))
    return causes


def _check_crd(item: Object) -> list[Cause]:
    spec = item["spec"]
    causes = []
    expected = f"{spec['names'].get('plural')}.{spec.get('group')}"
    if item["metadata"]["name"] != expected:
        causes.append(
            _bad("metadata.name", item["metadata"]["name"], f'must be spec.names.plural+"."+spec.group: {expected}')
        )
    if sum(bool(version.get("storage")) for version in spec.get("versions") or []) != 1:
        causes.append(_bad("spec.versions", "", "must have exactly one version marked as storage version"))
    for i, version in enumerate(spec.get("versions") or []):
        if not (version.get("schema") or {}).get("openAPIV3Schema"):
            causes.append(_required(f"spec.versions[{i}].schema.openAPIV3Schema"))
    if not spec["names"].get("kind"):
        causes.append(_required("spec.names.kind"))
    if spec.get("scope") not in ("Namespaced", "Cluster"):
        causes.append(_required("spec.scope"))
    return causes


_CHECKS: dict[str, Callable[[Object], list[Cause]]] = {
    "Pod": _check_pod,
    "Service": _check_service,
    "Deployment": _check_workload,
    "ReplicaSet": _check_workload,
    "EndpointSlice": _check_slice,
    "CustomResourceDefinition": _check_crd,
}
