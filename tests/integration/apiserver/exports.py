"""A peer's exporter in miniature: records as a cluster writes them of itself."""

from ipaddress import ip_network

from clustermesh.kvstore.connection import Connection
from clustermesh.wire import keys, labels, records
from clustermesh.wire.keys import DATAPATH_KINDS
from clustermesh.wire.records import AddressRecord, Capabilities, Cidr, ClusterConfig, Node, NodeAddress, ServiceRecord

CLUSTER_ID = 5
FIRST_IDENTITY = CLUSTER_ID << 16


def node(name: str, pod_cidr: str = "10.5.1.0/24", ip: str = "192.0.2.21", *, cluster: str = "red") -> bytes:
    return records.encode(
        Node(
            name=name,
            cluster=cluster,
            cluster_id=CLUSTER_ID,
            ip_addresses=(NodeAddress("InternalIP", ip),),
            ipv4_alloc_cidr=Cidr.of(ip_network(pod_cidr)),
        )
    )


def identity(*, cluster: str = "red", app: str = "web") -> bytes:
    return records.encode_identity({labels.CLUSTER: cluster, "k8s:app": app})


def address(ip: str, number: int = FIRST_IDENTITY + 1) -> bytes:
    return records.encode(AddressRecord(ip, host_ip="192.0.2.21", identity=number))


def service(name: str) -> bytes:
    return records.encode(ServiceRecord(cluster="red", namespace="default", name=name, cluster_id=CLUSTER_ID))


def config(*, cluster_id: int = CLUSTER_ID, max_clusters: int = 255) -> bytes:
    return records.encode(
        ClusterConfig(cluster_id, Capabilities(synced_canaries=True, max_connected_clusters=max_clusters))
    )


async def export(kv: Connection, *, canaries: bool = True, max_clusters: int = 255) -> None:
    """A small cluster: one node, one identity, one pod, one service."""
    await kv.put(keys.HEARTBEAT, b"2026-01-01T00:00:00Z")
    await kv.put(keys.cluster_config("red"), config(max_clusters=max_clusters))
    await kv.put(keys.node("red", "red-1"), node("red-1"))
    await kv.put(keys.identity(FIRST_IDENTITY + 1), identity())
    await kv.put(keys.address("10.5.1.7"), address("10.5.1.7"))
    await kv.put(keys.service("red", "default", "echo"), service("echo"))
    if canaries:
        for kind in DATAPATH_KINDS:
            await kv.put(keys.state_canary(kind, "red"), b"2026-01-01T00:00:00Z")
