"""Records for tests, as short as they can be told."""

import ipaddress

from clustermesh.kvstore.feed import Event
from clustermesh.wire import endpoint_slices, private, records
from clustermesh.wire.endpoint_slices import ClusterEndpointSlice, SliceEndpoint, SlicePort
from clustermesh.wire.private import LocalService
from clustermesh.wire.records import AddressRecord, Cidr, Node, NodeAddress, Port, PortMaps, ServiceRecord
from nodeagent.place import Place

HERE = Place(node="red-1", cluster="red", cluster_id=1)


def node(cluster: str, cluster_id: int, name: str, ip: str, cidr: str | None = None) -> Node:
    return Node(
        name=name,
        cluster=cluster,
        cluster_id=cluster_id,
        ip_addresses=(NodeAddress("InternalIP", ip),),
        ipv4_alloc_cidr=Cidr.of(ipaddress.ip_network(cidr)) if cidr else None,
    )


def address(ip: str, host: str, identity: int) -> AddressRecord:
    return AddressRecord(ip=ip, host_ip=host, identity=identity)


def ports(**by_address: int) -> PortMaps:
    """`ports(a1=8080)` is 10.0.0.1:8080 named http."""
    return {f"10.0.0.{name[1:]}": {"http": Port("TCP", port)} for name, port in by_address.items()}


def local(name: str, backends: PortMaps, *, affinity: str = "none", vip: str = "10.96.0.1") -> LocalService:
    return LocalService(
        namespace="shop", name=name, frontends={vip: {"http": Port("TCP", 80)}}, backends=backends, affinity=affinity
    )


def remote(name: str, cluster: str, cluster_id: int, backends: PortMaps, *, shared: bool = True) -> ServiceRecord:
    return ServiceRecord(
        namespace="shop", name=name, cluster=cluster, cluster_id=cluster_id, backends=backends, shared=shared
    )


def slice_of(
    service: str,
    *ready: str,
    number: int = 1,
    port: int = 80,
    not_ready: tuple[str, ...] = (),
    cluster: tuple[str, int] = ("green", 2),
) -> ClusterEndpointSlice:
    """The slice `shop/<service>-<number>` with a port named http; `ready` are addresses."""
    endpoints = [*((address, True) for address in ready), *((address, False) for address in not_ready)]
    return ClusterEndpointSlice(
        cluster=cluster[0],
        cluster_id=cluster[1],
        namespace="shop",
        name=f"{service}-{number}",
        address_type="IPv6" if ":" in "".join(ready) else "IPv4",
        labels={"kubernetes.io/service-name": service},
        endpoints=tuple(SliceEndpoint(addresses=(address,), ready=is_ready) for address, is_ready in endpoints),
        ports=(SlicePort(name="http", protocol="TCP", port=port),),
    )


def event(
    prefix: str, tail: str, record: records.Record | private.PrivateRecord | ClusterEndpointSlice | bytes | None
) -> Event:
    if record is None or isinstance(record, bytes):
        value = record
    elif isinstance(record, ClusterEndpointSlice):
        value = endpoint_slices.encode(record)
    elif isinstance(record, private.PrivateRecord):
        value = private.encode(record)
    else:
        value = records.encode(record)
    return Event((prefix + tail).encode(), value, 1)
