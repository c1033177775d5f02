"""Tables for kubectl get: the columns of the kinds people look at most, and those a custom resource declares."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from . import selectors
from .errors import Object
from .resources import Column, Resource
from .selectors import lookup

NONE = "<none>"


class _Cell(NamedTuple):
    """One column: priority 1 shows only in `-o wide`."""

    name: str
    value: Callable[[Object], Any]
    priority: int = 0
    type: str = "string"


def render(resource: Resource, items: Sequence[Object], metadata: Object, include: str) -> Object:
    """A meta.k8s.io/v1 Table; `include` is None, Metadata or Object."""
    cells = _cells(resource)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": [
            {
                "name": cell.name,
                "type": cell.type,
                "format": "name" if cell.name == "Name" else "",
                "description": "",
                "priority": cell.priority,
            }
            for cell in cells
        ],
        "rows": [{"cells": [cell.value(item) for cell in cells], "object": _inner(item, include)} for item in items],
    }


def partial(item: Object) -> Object:
    """Only the metadata of an object."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}


def _inner(item: Object, include: str) -> Object | None:
    if include == "None":
        return None
    return item if include == "Object" else partial(item)


def age(stamp: Any) -> str:
    """How long ago, as kubectl writes it."""
    try:
        then = datetime.fromisoformat(str(stamp).replace("Z", "+00:00"))
    except ValueError:
        return "<unknown>"
    seconds = max(0, int((datetime.now(UTC) - then).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m" + (f"{seconds % 60}s" if seconds % 60 else "")
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h" + (f"{minutes % 60}m" if minutes % 60 else "")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return f"{days}d" + (f"{hours % 24}h" if hours % 24 else "")
    return f"{days}d" if days < 730 else f"{days // 365}y"


def _at(path: str, absent: Any = NONE) -> Callable[[Object], Any]:
    def value(item: Object) -> Any:
        found = lookup(item, path)
        return absent if found is None or found == "" else found

    return value


def _count(path: str) -> Callable[[Object], int]:
    return lambda item: len(lookup(item, path) or ())


def _names(items: Any, field: str) -> str:
    return ",".join(str(item.get(field)) for item in items or []) or NONE


def _pod_ready(pod: Object) -> str:
    statuses = lookup(pod, "status.containerStatuses") or []
    return f"{sum(bool(status.get('ready')) for status in statuses)}/{len(pod['spec'].get('containers') or [])}"


def _pod_status(pod: Object) -> str:
    if "deletionTimestamp" in pod["metadata"]:
        return "Terminating"
    for status in lookup(pod, "status.containerStatuses") or []:
        state = status.get("state") or {}
        reason = (state.get("waiting") or state.get("terminated") or {}).get("reason")
        if reason:
            return str(reason)
    return str(lookup(pod, "status.reason") or lookup(pod, "status.phase") or "Unknown")


def _pod_restarts(pod: Object) -> str:
    return str(sum(status.get("restartCount", 0) for status in lookup(pod, "status.containerStatuses") or []))


def _pod_gates(pod: Object) -> str:
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or []]
    ready = [c["type"] for c in lookup(pod, "status.conditions") or [] if c.get("status") == "True"]
    return f"{len(set(gates) & set(ready))}/{len(gates)}" if gates else NONE


def _node_port(port: Object) -> str:
    return f":{port['nodePort']}" if port.get("nodePort") else ""


def _service_ports(service: Object) -> str:
    ports = service["spec"].get("ports") or []
    return ",".join(f"{p['port']}{_node_port(p)}/{p['protocol']}" for p in ports) or NONE


def _external_ip(service: Object) -> str:
    ingress = lookup(service, "status.loadBalancer.ingress") or []
    addresses = (
        [entry.get("ip") or entry.get("hostname") for entry in ingress] or service["spec"].get("externalIPs") or []
    )
    pending = "<pending>" if service["spec"]["type"] == "LoadBalancer" else NONE
    return ",".join(addresses) or service["spec"].get("externalName") or pending


def _node_status(node: Object) -> str:
    ready = next((c for c in lookup(node, "status.conditions") or [] if c["type"] == "Ready"), None)
    words = ["Unknown" if ready is None else "Ready" if ready["status"] == "True" else "NotReady"]
    return ",".join(words + (["SchedulingDisabled"] if node.get("spec", {}).get("unschedulable") else []))


def _node_roles(node: Object) -> str:
    prefix = "node-role.kubernetes.io/"
    roles = [label[len(prefix) :] for label in node["metadata"].get("labels") or {} if label.startswith(prefix)]
    return ",".join(sorted(roles)) or NONE


def _node_address(kind: str) -> Callable[[Object], str]:
    def value(node: Object) -> str:
        addresses = lookup(node, "status.addresses") or []
        return next((str(entry["address"]) for entry in addresses if entry["type"] == kind), NONE)

    return value


def _replicas(workload: Object) -> str:
    return f"{lookup(workload, 'status.readyReplicas') or 0}/{workload['spec'].get('replicas', 0)}"


def _containers(field: str) -> Callable[[Object], str]:
    return lambda item: _names(lookup(item, "spec.template.spec.containers"), field)


def _selector(item: Object) -> str:
    selector = item["spec"].get("selector")
    if item["kind"] == "Service":
        selector = {"matchLabels": selector}
    return selectors.of_object(selector) or NONE


def _slice_ports(item: Object) -> str:
    return ",".join(str(port.get("port")) for port in item.get("ports") or []) or "<unset>"


def _slice_endpoints(item: Object) -> str:
    addresses = [address for endpoint in item.get("endpoints") or [] for address in endpoint["addresses"]]
    more = f" + {len(addresses) - 3} more..." if len(addresses) > 3 else ""
    return ",".join(addresses[:3]) + more if addresses else "<unset>"


def _event_object(event: Object) -> str:
    involved = event.get("involvedObject") or {}
    return f"{str(involved.get('kind', '')).lower()}/{involved.get('name', '')}"


_NAME = _Cell("Name", lambda item: item["metadata"]["name"])
_AGE = _Cell("Age", lambda item: age(item["metadata"].get("creationTimestamp")))
_WORKLOAD = (
    _Cell("Containers", _containers("name"), 1),
    _Cell("Images", _containers("image"), 1),
    _Cell("Selector", _selector, 1),
)

_TABLES: dict[str, tuple[_Cell, ...]] = {
    "Pod": (
        _NAME,
        _Cell("Ready", _pod_ready),
        _Cell("Status", _pod_status),
        _Cell("Restarts", _pod_restarts),
        _AGE,
        _Cell("IP", _at("status.podIP"), 1),
        _Cell("Node", _at("spec.nodeName"), 1),
        _Cell("Nominated Node", _at("status.nominatedNodeName"), 1),
        _Cell("Readiness Gates", _pod_gates, 1),
    ),
    "Service": (
        _NAME,
        _Cell("Type", _at("spec.type")),
        _Cell("Cluster-IP", _at("spec.clusterIP")),
        _Cell("External-IP", _external_ip),
        _Cell("Port(s)", _service_ports),
        _AGE,
        _Cell("Selector", _selector, 1),
    ),
    "Node": (
        _NAME,
        _Cell("Status", _node_status),
        _Cell("Roles", _node_roles),
        _AGE,
        _Cell("Version", _at("status.nodeInfo.kubeletVersion")),
        _Cell("Internal-IP", _node_address("InternalIP"), 1),
        _Cell("External-IP", _node_address("ExternalIP"), 1),
        _Cell("OS-Image", _at("status.nodeInfo.osImage"), 1),
        _Cell("Kernel-Version", _at("status.nodeInfo.kernelVersion"), 1),
        _Cell("Container-Runtime", _at("status.nodeInfo.containerRuntimeVersion"), 1),
    ),
    "Deployment": (
        _NAME,
        _Cell("Ready", _replicas),
        _Cell("Up-to-date", _at("status.updatedReplicas", 0), type="integer"),
        _Cell("Available", _at("status.availableReplicas", 0), type="integer"),
        _AGE,
        *_WORKLOAD,
    ),
    "ReplicaSet": (
        _NAME,
        _Cell("Desired", _at("spec.replicas", 0), type="integer"),
        _Cell("Current", _at("status.replicas", 0), type="integer"),
        _Cell("Ready", _at("status.readyReplicas", 0), type="integer"),
        _AGE,
        *_WORKLOAD,
    ),
    "EndpointSlice": (
        _NAME,
        _Cell("AddressType", _at("addressType")),
        _Cell("Ports", _slice_ports),
        _Cell("Endpoints", _slice_endpoints),
        _AGE,
    ),
    "Namespace": (_NAME, _Cell("Status", _at("status.phase")), _AGE),
    "ConfigMap": (_NAME, _Cell("Data", _count("data"), type="integer"), _AGE),
    "Secret": (_NAME, _Cell("Type", _at("type")), _Cell("Data", _count("data"), type="integer"), _AGE),
    "Lease": (_NAME, _Cell("Holder", _at("spec.holderIdentity", "")), _AGE),
    "NetworkPolicy": (
        _NAME,
        _Cell("Pod-Selector", lambda p: selectors.of_object(p["spec"]["podSelector"]) or NONE),
        _AGE,
    ),
    "Event": (
        _Cell("Last Seen", lambda event: age(event.get("lastTimestamp") or event.get("eventTime"))),
        _Cell("Type", _at("type", "")),
        _Cell("Reason", _at("reason", "")),
        _Cell("Object", _event_object),
        _Cell("Message", _at("message", "")),
    ),
}
_DEFAULT = (_NAME, _Cell("Created At", _at("metadata.creationTimestamp")))


def _cells(resource: Resource) -> tuple[_Cell, ...]:
    if not resource.custom:
        return _TABLES.get(resource.kind, _DEFAULT)
    return (
        _NAME,
        *(
            _custom_cell(column)
            for column in resource.columns or (Column("Age", "date", ".metadata.creationTimestamp"),)
        ),
    )


def _custom_cell(column: Column) -> _Cell:
    def value(item: Object) -> Any:
        found = json_path(item, column.path)
        if not found:
            return None
        return age(found[0]) if column.type == "date" else found[0]

    return _Cell(column.name, value, column.priority, "string" if column.type == "date" else column.type)


_STEP = re.compile(
    r"""\.?(?P<field>[^.\[\]]+)|\[(?P<index>\d+|\*)\]|\[\?\(@\.(?P<by>[^=\s]+)\s*==\s*["'](?P<is>[^"']*)["']\)\]"""
)


def json_path(item: Any, path: str) -> list[Any]:
    """What a printer column's JSONPath finds: fields, [n], [*] and [?(@.field=="value")]."""
    found = [item]
    for step in _STEP.finditer(path.replace("\\.", "\0")):
        if field := step["field"]:
            name = field.replace("\0", ".")
            found = [value[name] for value in found if isinstance(value, dict) and value.get(name) is not None]
        elif step["by"]:
            entries = [entry for value in found if isinstance(value, list) for entry in value]
            found = [entry for entry in entries if lookup(entry, step["by"]) == step["is"]]
        elif step["index"] == "*":
            found = [entry for value in found if isinstance(value, list) for entry in value]
        else:
            i = int(step["index"])
            found = [value[i] for value in found if isinstance(value, list) and i < len(value)]
    return found
