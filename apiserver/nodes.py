"""Kubernetes Node → the record peers read. A pure function."""

import ipaddress
from collections.abc import Iterable

from apiserver.cluster import ClusterIdentity
from clustermesh.kube import objects
from clustermesh.wire import records
from clustermesh.wire.addresses import canonical
from clustermesh.wire.ranges import Network

# The other types of node addresses are host names.
_ADDRESS_TYPES = ("InternalIP", "ExternalIP")


def compile_node(cluster: ClusterIdentity, node: objects.Node) -> records.Node | None:
    """The node's record; None while it has no address that anybody could send to."""
    addresses = tuple(
        records.NodeAddress(address.type, ip)
        for address in node.status.addresses or ()
        if address.type in _ADDRESS_TYPES and (ip := canonical(address.address)) is not None
    )
    if not addresses:
        return None
    ranges = list(_ranges(node.spec.pod_cidrs or (node.spec.pod_cidr,)))
    four = tuple(records.Cidr.of(network) for network in ranges if network.version == 4)
    six = tuple(records.Cidr.of(network) for network in ranges if network.version == 6)
    return records.Node(
        name=node.name,
        cluster=cluster.name,
        ip_addresses=addresses,
        ipv4_alloc_cidr=four[0] if four else None,
        ipv4_secondary_alloc_cidrs=four[1:] or None,
        ipv6_alloc_cidr=six[0] if six else None,
        ipv6_secondary_alloc_cidrs=six[1:] or None,
        cluster_id=cluster.id,
        labels=node.metadata.labels or None,
        boot_id=node.status.node_info.boot_id,
    )


def _ranges(texts: Iterable[str]) -> Iterable[Network]:
    for text in texts:
        try:
            yield ipaddress.ip_network(text, strict=False)
        except ValueError:
            continue  # "" of a node that the controller has not given a range yet
