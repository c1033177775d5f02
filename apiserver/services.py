"""Kubernetes Service and EndpointSlices → the record peers read, and the one this cluster's agents read. No effects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from apiserver.cluster import ClusterIdentity
from clustermesh.kube.objects import Endpoint, EndpointSlice, ObjectRef, Service
from clustermesh.wire.private import LocalService
from clustermesh.wire.records import Port, PortMaps, ServiceRecord

# Each annotation and its old spelling. Where the new one is present, even if senseless, the old one does not count.
GLOBAL = ("service.cilium.io/global", "io.cilium/global-service")
SHARED = ("service.cilium.io/shared", "io.cilium/shared-service")
AFFINITY = ("service.cilium.io/affinity", "io.cilium/service-affinity")

_SERVICE_NAME = "kubernetes.io/service-name"
_MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
_MESH_CONTROLLER = "endpointslice-mesh-controller.cilium.io"  # its slices hold what comes from peers


class ServiceName(NamedTuple):
    namespace: str
    name: str


def is_global(service: Service) -> bool:
    """Whether a Service takes part in the mesh at all."""
    if service.spec.type == "ExternalName":
        return False
    return _is_true(_annotation(service, GLOBAL, "false"))


def is_shared(service: Service) -> bool:
    """Whether peers may use its backends."""
    return is_global(service) and _is_true(_annotation(service, SHARED, "true"))


def affinity(service: Service) -> str:
    """local, remote or none."""
    value = _annotation(service, AFFINITY, "none").lower()
    return value if value in ("local", "remote") else "none"


def compile_service(
    cluster: ClusterIdentity, service: Service, slices: Sequence[EndpointSlice]
) -> ServiceRecord | None:
    """The record for peers. None unless the Service is global, shared and has at least one slice, even an empty one."""
    if not slices or not is_shared(service):
        return None
    hostnames = {
        address: endpoint.hostname
        for piece in slices
        for endpoint in _ready(piece)
        for address in endpoint.addresses or ()
        if endpoint.hostname
    }
    return ServiceRecord(
        cluster=cluster.name,
        namespace=service.namespace,
        name=service.name,
        frontends=_frontends(service),
        backends=_backends(slices),
        hostnames=hostnames or msgspec.UNSET,
        labels=service.metadata.labels or {},
        selector=service.spec.selector or {},
        cluster_id=cluster.id,
    )


def compile_local(service: Service, slices: Sequence[EndpointSlice]) -> LocalService | None:
    """The record for this cluster's agents. A Service without backends here may have some at a peer."""
    if not is_global(service):
        return None
    return LocalService(
        namespace=service.namespace,
        name=service.name,
        frontends=_frontends(service),
        backends=_backends(slices),
        is_global=True,
        shared=is_shared(service),
        affinity=affinity(service),
    )


def _frontends(service: Service) -> PortMaps:
    listed = service.spec.cluster_ips or (service.spec.cluster_ip,)
    ports = {port.name: Port(port.protocol, port.port) for port in service.spec.ports or ()}
    return {ip: ports for ip in listed if ip not in ("", "None")}


def _backends(slices: Iterable[EndpointSlice]) -> PortMaps:
    backends: dict[str, dict[str, Port]] = {}
    for piece in slices:
        # A port without number means "any"; there is no way to say that on the wire.
        ports = {
            port.name or "": Port(port.protocol or "TCP", port.port)
            for port in piece.ports or ()
            if port.port is not None
        }
        for endpoint in _ready(piece):
            for address in endpoint.addresses or ():
                backends.setdefault(address, {}).update(ports)
    return backends


def _ready(piece: EndpointSlice) -> Iterable[Endpoint]:
    """Endpoints that take traffic; readiness that is not known counts as ready, as Kubernetes says."""
    for endpoint in piece.endpoints or ():
        if endpoint.conditions is None or endpoint.conditions.ready is not False:
            yield endpoint


def _annotation(service: Service, spellings: tuple[str, str], default: str) -> str:
    annotations = service.metadata.annotations or {}
    return next((annotations[spelling] for spelling in spellings if spelling in annotations), default)


def _is_true(text: str) -> bool:
    return text.lower() == "true"


@dataclass(slots=True)
class ServiceTable:
    """Services with their slices, found by either; every change names the Services it touches."""

    _services: dict[ServiceName, Service] = field(default_factory=dict)
    _slices: dict[ServiceName, dict[str, EndpointSlice]] = field(default_factory=dict)  # by Service, then slice name
    _owner_of_slice: dict[ServiceName, ServiceName] = field(default_factory=dict)  # (namespace, slice name) → Service

    def set_service(self, service: Service) -> set[ServiceName]:
        name = ServiceName(service.namespace, service.name)
        self._services[name] = service
        return {name}

    def remove_service(self, ref: ObjectRef) -> set[ServiceName]:
        name = ServiceName(ref.namespace, ref.name)
        return {name} if self._services.pop(name, None) is not None else set()

    def set_slice(self, piece: EndpointSlice) -> set[ServiceName]:
        labels = piece.metadata.labels or {}
        key = ServiceName(piece.namespace, piece.name)
        service_name = labels.get(_SERVICE_NAME)
        follows = (
            service_name and labels.get(_MANAGED_BY) != _MESH_CONTROLLER and piece.address_type in ("IPv4", "IPv6")
        )
        owner = ServiceName(piece.namespace, service_name) if follows and service_name else None
        touched = self._forget_slice(key) if self._owner_of_slice.get(key) != owner else set()
        if owner is not None:
            self._owner_of_slice[key] = owner
            self._slices.setdefault(owner, {})[piece.name] = piece
            touched.add(owner)
        return touched

    def remove_slice(self, ref: ObjectRef) -> set[ServiceName]:
        return self._forget_slice(ServiceName(ref.namespace, ref.name))

    def service(self, name: ServiceName) -> Service | None:
        return self._services.get(name)

    def of_namespace(self, namespace: str) -> set[ServiceName]:
        return {name for name in self._services if name.namespace == namespace}

    def compile(self, cluster: ClusterIdentity, name: ServiceName) -> tuple[ServiceRecord | None, LocalService | None]:
        """Both records of a Service as it stands; None for what must not be in etcd."""
        service = self._services.get(name)
        if service is None:
            return None, None
        slices: Mapping[str, EndpointSlice] = self._slices.get(name, {})
        # In order of names, so that the same state always gives the same bytes.
        ordered = [slices[key] for key in sorted(slices)]
        return compile_service(cluster, service, ordered), compile_local(service, ordered)

    def _forget_slice(self, key: ServiceName) -> set[ServiceName]:
        owner = self._owner_of_slice.pop(key, None)
        if owner is None:
            return set()
        pieces = self._slices[owner]
        del pieces[key.name]
        if not pieces:
            del self._slices[owner]
        return {owner}
