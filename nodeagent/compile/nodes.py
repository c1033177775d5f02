"""Nodes → outer addresses, ipcache entries, routes and probe targets."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from clustermesh.wire.identity import Reserved
from clustermesh.wire.records import Node
from nodeagent.datapath.abi import (
    AddressKey,
    EndpointFlag,
    EndpointValue,
    IpcacheFlag,
    IpcacheKey,
    IpcacheValue,
    NodeValue,
)
from nodeagent.place import Place

_OUTER = ("InternalIP", "ExternalIP")
_INNER = "CiliumInternalIP"  # a node's own address among its pods', behind the tunnel


@dataclass(frozen=True, slots=True)
class NodeEntries:
    """All that follows from one node's record."""

    ipcache: Mapping[bytes, bytes] = field(default_factory=dict)
    outer: Mapping[bytes, bytes] = field(default_factory=dict)  # cm_nodes
    endpoints: Mapping[bytes, bytes] = field(default_factory=dict)  # this node's own addresses
    routes: Mapping[str, str] = field(
        default_factory=dict
    )  # pod CIDR → the node's address, for CIDRs behind the tunnel
    probe: str | None = None  # where to send path probes


def compile_node(place: Place, cluster_id: int, node: Node) -> NodeEntries:
    """RecordError or OSError when an address or range in the record is malformed."""
    if cluster_id != place.cluster_id:
        return _of_peer(cluster_id, node)
    here = node.name == place.node
    identity = Reserved.HOST if here else Reserved.REMOTE_NODE
    outer = _addresses(node, *_OUTER)
    return NodeEntries(
        ipcache={
            IpcacheKey.host(ip).pack(): IpcacheValue(identity, "", cluster_id, IpcacheFlag.NODE).pack() for ip in outer
        },
        endpoints={
            AddressKey(ip).pack(): EndpointValue(0, Reserved.HOST, EndpointFlag.HOST).pack()
            for ip in (outer if here else ())
        },
    )


def _of_peer(cluster_id: int, node: Node) -> NodeEntries:
    tunnel = node.preferred_ip(4)
    ranges = node.pod_cidrs() if tunnel else ()
    outer = _addresses(node, *_OUTER)
    remote = IpcacheFlag.REMOTE_CLUSTER

    ipcache: dict[bytes, bytes] = {}
    # Pods that no record announces yet are reachable, but nobody in particular: the world's identity.
    for network in ranges:
        key = IpcacheKey(str(network.network_address), network.prefixlen)
        ipcache[key.pack()] = IpcacheValue(Reserved.WORLD, tunnel or "", cluster_id, remote | IpcacheFlag.CIDR).pack()
    for ip, identity in _inner(node):
        ipcache[IpcacheKey.host(ip).pack()] = IpcacheValue(identity, tunnel or "", cluster_id, remote).pack()
    for ip in outer:
        value = IpcacheValue(Reserved.REMOTE_NODE, "", cluster_id, remote | IpcacheFlag.NODE)
        ipcache[IpcacheKey.host(ip).pack()] = value.pack()
    return NodeEntries(
        ipcache=ipcache,
        outer={AddressKey(ip).pack(): NodeValue(cluster_id).pack() for ip in outer},
        routes={str(network): tunnel or "" for network in ranges},
        probe=tunnel,
    )


def _inner(node: Node) -> list[tuple[str, Reserved]]:
    """Addresses among the pods' that are the node's and its helpers'."""
    return [
        *((ip, Reserved.REMOTE_NODE) for ip in _addresses(node, _INNER)),
        *((ip, Reserved.HEALTH) for ip in (node.ipv4_health_ip, node.ipv6_health_ip) if ip),
        *((ip, Reserved.INGRESS) for ip in (node.ipv4_ingress_ip, node.ipv6_ingress_ip) if ip),
    ]


def _addresses(node: Node, *types: str) -> list[str]:
    return [address.ip for address in node.ip_addresses or () if address.type in types and address.ip]
