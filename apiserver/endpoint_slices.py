"""Kubernetes EndpointSlice → the record that Cilium reads from 1.20 on. A pure function.

Other than in a Service's record the endpoints keep everything that Kubernetes says of them, also those that take no
traffic: it is for the reader to judge. Labels and annotations travel as they are; the label that names the Service is
how a reader finds where a slice belongs.
"""

from collections.abc import Iterable

from apiserver.cluster import ClusterIdentity
from clustermesh.kube.objects import Endpoint, EndpointConditions, EndpointPort, EndpointSlice
from clustermesh.wire import addresses
from clustermesh.wire.endpoint_slices import ClusterEndpointSlice, SliceEndpoint, SlicePort

_VERSIONS = {"IPv4": 4, "IPv6": 6}


def compile_endpoint_slice(cluster: ClusterIdentity, piece: EndpointSlice) -> ClusterEndpointSlice | None:
    """The record; None for a slice of domain names.

    A reader refuses a whole slice for one address that is not of its family: such an address is left out.
    """
    version = _VERSIONS.get(piece.address_type)
    if version is None:
        return None
    return ClusterEndpointSlice(
        cluster=cluster.name,
        cluster_id=cluster.id,
        namespace=piece.namespace,
        name=piece.name,
        address_type=piece.address_type,
        labels=piece.metadata.labels or {},
        annotations=piece.metadata.annotations or {},
        endpoints=tuple(_endpoints(piece.endpoints or (), version)),
        ports=tuple(_port(port) for port in piece.ports or () if port.port is None or 0 < port.port < 65536),
    )


def _endpoints(endpoints: Iterable[Endpoint], version: int) -> Iterable[SliceEndpoint]:
    for endpoint in endpoints:
        usable = tuple(text for text in endpoint.addresses or () if _version(text) == version)
        if not usable:
            continue
        conditions = endpoint.conditions or EndpointConditions()
        hints = endpoint.hints.for_zones if endpoint.hints is not None else None
        yield SliceEndpoint(
            addresses=usable,
            ready=conditions.ready,
            serving=conditions.serving,
            terminating=conditions.terminating,
            hostname=endpoint.hostname,
            node_name=endpoint.node_name,
            zone=endpoint.zone,
            for_zones=tuple(zone.name for zone in hints or ()),
            deprecated_topology=endpoint.deprecated_topology or {},
        )


def _port(port: EndpointPort) -> SlicePort:
    # Cilium leaves out the application's protocol, so do we.
    return SlicePort(name=port.name, protocol=port.protocol, port=port.port)


def _version(text: str) -> int | None:
    address = addresses.parse(text)
    return None if address is None else address.version
