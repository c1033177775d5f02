"""EndpointSlices of a Service, computed from the pods of its namespace."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from clustermesh.testbed.objects import Pod, Service, ServicePort

SERVICE_LABEL = "kubernetes.io/service-name"
MANAGED_BY_LABEL = "endpointslice.kubernetes.io/managed-by"
MANAGER = "endpointslice-controller.testbed"
SLICE_SIZE = 100  # endpoints, as kube-controller-manager's default

_Ports = tuple[tuple[str, str, int], ...]  # name, protocol, number


def selects(service: Service, labels: Mapping[str, str] | None) -> bool:
    """Whether a Service is served by pods with these labels; one without selector never is."""
    selector = service.spec.selector
    return bool(selector) and (selector or {}).items() <= (labels or {}).items()


def slices(service: Service, pods: Iterable[Pod]) -> list[dict[str, Any]]:
    """Complete slices, at least one. A named target port can differ from pod to pod: each set has its own slice."""
    groups: defaultdict[_Ports, list[dict[str, Any]]] = defaultdict(list)
    for pod in sorted(pods, key=lambda pod: pod.name):
        if selects(service, pod.metadata.labels) and pod.status.pod_ip and not pod.finished:
            groups[_resolved(service, pod)].append(_endpoint(service, pod))
    parts = [
        (ports, endpoints[start : start + SLICE_SIZE])
        for ports, endpoints in sorted(groups.items())
        for start in range(0, len(endpoints), SLICE_SIZE)
    ]
    return [_slice(service, index, ports, part) for index, (ports, part) in enumerate(parts or [((), [])])]


def _resolved(service: Service, pod: Pod) -> _Ports:
    found = ((port, _target(port, pod)) for port in service.spec.ports or ())
    return tuple((port.name, port.protocol, target) for port, target in found if target is not None)


def _target(port: ServicePort, pod: Pod) -> int | None:
    """The pod's port; None when it has none of that name."""
    target = port.target_port or port.port
    if isinstance(target, int):
        return target
    for container in pod.spec.containers:
        for candidate in container.ports or ():
            if candidate.name == target and candidate.protocol == port.protocol:
                return candidate.container_port
    return None


def _endpoint(service: Service, pod: Pod) -> dict[str, Any]:
    ready = service.spec.publish_not_ready_addresses or (pod.ready and not pod.terminating)
    return {
        "addresses": [pod.status.pod_ip],
        "conditions": {"ready": ready, "serving": pod.ready, "terminating": pod.terminating},
        "nodeName": pod.spec.node_name,
        "targetRef": {"kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.metadata.uid},
    }


def _slice(service: Service, index: int, ports: _Ports, endpoints: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"{service.name}-{index}",
            "namespace": service.namespace,
            "labels": {SERVICE_LABEL: service.name, MANAGED_BY_LABEL: MANAGER},
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "name": service.name,
                    "uid": service.metadata.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": name, "protocol": protocol, "port": number} for name, protocol, number in ports],
    }
