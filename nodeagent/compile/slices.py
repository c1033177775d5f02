"""Endpoint slices → backends, as the peer's service record would give them.

Ready alone counts, as in Kubernetes: an endpoint that is about to end says that it is not. Zones, hints and host names
have no use here yet.
"""

from collections.abc import Iterable, Mapping

from clustermesh.wire.endpoint_slices import ClusterEndpointSlice
from clustermesh.wire.records import Port, PortMaps

SERVICE_NAME = "kubernetes.io/service-name"
_DEFAULT_PROTOCOL = "TCP"


def backends_of(record: ClusterEndpointSlice) -> PortMaps:
    """Address → name of a port → port. A slice without a port number offers none."""
    ports = {
        port.name or "": Port(port.protocol or _DEFAULT_PROTOCOL, port.port)
        for port in record.ports
        if port.port is not None
    }
    return {
        address: ports for endpoint in record.endpoints if endpoint.ready is not False for address in endpoint.addresses
    }


def merge(slices: Iterable[PortMaps]) -> PortMaps:
    """The backends of one service; an address may have some ports from one slice and some from another."""
    merged: dict[str, Mapping[str, Port]] = {}
    for backends in slices:
        for address, ports in backends.items():
            known = merged.get(address)
            merged[address] = ports if known is None else {**known, **ports}
    return merged
