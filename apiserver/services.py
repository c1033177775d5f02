"""Kubernetes Service and EndpointSlices → the record peers read, and the one this cluster's agents read. No effects.

A Service is compiled from what each of its slices gives, and that is worked out once a slice: a change of one endpoint
costs its own slice and a merge, however large the Service is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import msgspec

from apiserver.cluster import ClusterIdentity
from apiserver.endpoint_slices import compile_endpoint_slice
from clustermesh.kube.objects import Endpoint, EndpointSlice, ObjectRef, Service
from clustermesh.wire.addresses import canonical
from clustermesh.wire.endpoint_slices import ClusterEndpointSlice
from clustermesh.wire.private import LocalService
from clustermesh.wire.records import BackendZone, ForZone, Port, PortMaps, ServiceRecord

# Each annotation and its old spelling. Where the new one is present, even if senseless, the old one does not count.
GLOBAL = ("service.cilium.io/global", "io.cilium/global-service")
SHARED = ("service.cilium.io/shared", "io.cilium/shared-service")
AFFINITY = ("service.cilium.io/affinity", "io.cilium/service-affinity")

_SERVICE_NAME = "kubernetes.io/service-name"
_MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
_MESH_CONTROLLER = "endpointslice-mesh-controller.cilium.io"  # its slices hold what comes from peers
_OTHER_PROXY = "service.kubernetes.io/service-proxy-name"  # whoever it names, it is none that follows Cilium's rules
_ZONE = "topology.kubernetes.io/zone"

_TYPES = ("ClusterIP", "NodePort", "LoadBalancer")
_PROTOCOLS = ("TCP", "UDP", "SCTP")


class ServiceName(NamedTuple):
    namespace: str
    name: str


class SliceName(NamedTuple):
    namespace: str
    name: str


def is_global(service: Service) -> bool:
    """Whether a Service takes part in the mesh at all."""
    if service.spec.type not in _TYPES or _OTHER_PROXY in (service.metadata.labels or {}):
        return False
    return _is_true(_annotation(service, GLOBAL, "false"))


def is_shared(service: Service) -> bool:
    """Whether peers may use its backends."""
    return is_global(service) and _is_true(_annotation(service, SHARED, "true"))


def affinity(service: Service) -> str:
    """local, remote or none."""
    value = _annotation(service, AFFINITY, "none").lower()
    return value if value in ("local", "remote") else "none"


@dataclass(frozen=True, slots=True)
class ReadyBackends:
    """What slices give to their Service: addresses that take traffic, with ports, and host name and zone if any."""

    ports: PortMaps
    hostnames: Mapping[str, str]
    zones: Mapping[str, BackendZone]


def compile_backends(piece: EndpointSlice) -> ReadyBackends:
    """Of several endpoints with one address the first decides."""
    hostnames: dict[str, str] = {}
    zones: dict[str, BackendZone] = {}
    addresses: dict[str, None] = {}
    for endpoint in _ready(piece):
        zone = _zone(endpoint)
        for text in endpoint.addresses or ():
            address = canonical(text)
            if address is None or address in addresses:
                continue
            addresses[address] = None
            if endpoint.hostname:
                hostnames[address] = endpoint.hostname
            if zone is not None:
                zones[address] = zone
    return ReadyBackends(dict.fromkeys(addresses, _ports(piece)), hostnames, zones)


def merge(pieces: Sequence[ReadyBackends]) -> ReadyBackends:
    """All slices of a Service as one. An address in several has the ports of each; else the first slice decides."""
    ports: dict[str, Mapping[str, Port]] = {}
    hostnames: dict[str, str] = {}
    zones: dict[str, BackendZone] = {}
    for piece in reversed(pieces):
        both = {address: {**ports[address], **piece.ports[address]} for address in ports.keys() & piece.ports.keys()}
        ports.update(piece.ports)
        ports.update(both)
        hostnames.update(piece.hostnames)
        zones.update(piece.zones)
    return ReadyBackends(ports, hostnames, zones)


def compile_service(cluster: ClusterIdentity, service: Service, backends: ReadyBackends | None) -> ServiceRecord | None:
    """The record for peers. None unless the Service is shared, has its cluster IP or none for good, and any slice."""
    if backends is None or not is_shared(service) or not (service.spec.cluster_ip or service.spec.cluster_ips):
        return None
    return ServiceRecord(
        cluster=cluster.name,
        namespace=service.namespace,
        name=service.name,
        frontends=_frontends(service),
        backends=backends.ports,
        hostnames=backends.hostnames or msgspec.UNSET,
        zones=backends.zones or msgspec.UNSET,
        labels=service.metadata.labels or {},
        selector=service.spec.selector or {},
        cluster_id=cluster.id,
    )


def compile_local(service: Service, backends: ReadyBackends | None) -> LocalService | None:
    """The record for this cluster's agents. A Service without backends here may have some at a peer."""
    if not is_global(service):
        return None
    return LocalService(
        namespace=service.namespace,
        name=service.name,
        frontends=_frontends(service),
        backends={} if backends is None else backends.ports,
        is_global=True,
        shared=is_shared(service),
        affinity=affinity(service),
    )


def _frontends(service: Service) -> PortMaps:
    """Every cluster IP with every port. Node ports, external IPs and those of load balancers stay at home."""
    ports: dict[str, Port] = {}
    for port in service.spec.ports or ():
        if 0 < port.port < 65536:
            ports.setdefault(port.name, Port(port.protocol, port.port))
    listed = service.spec.cluster_ips or (service.spec.cluster_ip,)
    return {address: ports for text in listed if (address := canonical(text)) is not None}


def _ports(piece: EndpointSlice) -> dict[str, Port]:
    # A port without number means "any"; there is no way to say that on the wire.
    return {
        port.name or "": Port(port.protocol or "TCP", port.port)
        for port in piece.ports or ()
        if port.port is not None and 0 < port.port < 65536 and (port.protocol or "TCP") in _PROTOCOLS
    }


def _ready(piece: EndpointSlice) -> Iterable[Endpoint]:
    """Endpoints that take traffic; readiness that is not known counts as ready, as Kubernetes says."""
    if piece.address_type not in ("IPv4", "IPv6"):
        return
    for endpoint in piece.endpoints or ():
        if endpoint.conditions is None or endpoint.conditions.ready is not False:
            yield endpoint


def _zone(endpoint: Endpoint) -> BackendZone | None:
    """Hints without a zone say nothing to a reader."""
    zone = endpoint.zone if endpoint.zone is not None else (endpoint.deprecated_topology or {}).get(_ZONE)
    if not zone:
        return None
    hints = (endpoint.hints.for_zones if endpoint.hints is not None else None) or ()
    return BackendZone(zone, tuple(ForZone(hint.name) for hint in hints))


def _annotation(service: Service, spellings: tuple[str, str], default: str) -> str:
    annotations = service.metadata.annotations or {}
    return next((annotations[spelling] for spelling in spellings if spelling in annotations), default)


def _is_true(text: str) -> bool:
    return text.lower() == "true"


@dataclass(frozen=True, slots=True)
class Touched:
    """What a change may have changed in etcd."""

    services: set[ServiceName] = field(default_factory=set)
    slices: set[SliceName] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.services or self.slices)

    def __ior__(self, other: "Touched") -> "Touched":
        self.services.update(other.services)
        self.slices.update(other.slices)
        return self


@dataclass
class _Slice:
    object: EndpointSlice

    @cached_property
    def backends(self) -> ReadyBackends:
        return compile_backends(self.object)


@dataclass(slots=True)
class ServiceTable:
    """Services with their slices, found by either; every change names what it touches.

    Slices of Services that are not global are kept, but touch nothing: most clusters have many of those.
    """

    _services: dict[ServiceName, Service] = field(default_factory=dict)
    _slices: dict[ServiceName, dict[SliceName, _Slice]] = field(default_factory=dict)  # by Service
    _owner_of_slice: dict[SliceName, ServiceName] = field(default_factory=dict)

    def set_service(self, service: Service) -> Touched:
        name = ServiceName(service.namespace, service.name)
        before, self._services[name] = self._services.get(name), service
        if is_shared(service) == (before is not None and is_shared(before)):
            return Touched({name})
        return Touched({name}, self._slices_of(name))

    def remove_service(self, ref: ObjectRef) -> Touched:
        name = ServiceName(ref.namespace, ref.name)
        if self._services.pop(name, None) is None:
            return Touched()
        return Touched({name}, self._slices_of(name))

    def set_slice(self, piece: EndpointSlice) -> Touched:
        key = SliceName(piece.namespace, piece.name)
        labels = piece.metadata.labels or {}
        service_name = labels.get(_SERVICE_NAME)
        follows = bool(service_name) and labels.get(_MANAGED_BY) != _MESH_CONTROLLER
        owner = ServiceName(piece.namespace, service_name) if follows and service_name else None
        touched = self._forget_slice(key) if self._owner_of_slice.get(key) != owner else Touched()
        if owner is not None:
            self._owner_of_slice[key] = owner
            self._slices.setdefault(owner, {})[key] = _Slice(piece)
            touched |= self._touched_by_slice(owner, key)
        return touched

    def remove_slice(self, ref: ObjectRef) -> Touched:
        return self._forget_slice(SliceName(ref.namespace, ref.name))

    def service(self, name: ServiceName) -> Service | None:
        return self._services.get(name)

    def of_namespace(self, namespace: str) -> Touched:
        names = {name for name in self._services if name.namespace == namespace}
        return Touched(names, {key for name in names for key in self._slices_of(name)})

    def addresses(self, name: ServiceName) -> Iterable[str]:
        """Of all endpoints, ready or not."""
        for piece in self._slices.get(name, {}).values():
            for endpoint in piece.object.endpoints or ():
                yield from endpoint.addresses or ()

    def compile(self, cluster: ClusterIdentity, name: ServiceName) -> tuple[ServiceRecord | None, LocalService | None]:
        """Both records of a Service as it stands; None for what must not be in etcd."""
        service = self._services.get(name)
        if service is None or not is_global(service):
            return None, None
        slices = self._slices.get(name, {})
        # In order of names, so that the same state always gives the same bytes.
        backends = merge([slices[key].backends for key in sorted(slices)]) if slices else None
        return compile_service(cluster, service, backends), compile_local(service, backends)

    def compile_slice(self, cluster: ClusterIdentity, key: SliceName) -> ClusterEndpointSlice | None:
        """The record of a slice as it stands; None unless it belongs to a shared Service."""
        owner = self._owner_of_slice.get(key)
        service = self._services.get(owner) if owner is not None else None
        if owner is None or service is None or not is_shared(service):
            return None
        return compile_endpoint_slice(cluster, self._slices[owner][key].object)

    def _slices_of(self, name: ServiceName) -> set[SliceName]:
        return set(self._slices.get(name, ()))

    def _forget_slice(self, key: SliceName) -> Touched:
        owner = self._owner_of_slice.pop(key, None)
        if owner is None:
            return Touched()
        pieces = self._slices[owner]
        del pieces[key]
        if not pieces:
            del self._slices[owner]
        return self._touched_by_slice(owner, key)

    def _touched_by_slice(self, owner: ServiceName, key: SliceName) -> Touched:
        service = self._services.get(owner)
        return Touched({owner}, {key}) if service is not None and is_global(service) else Touched()
