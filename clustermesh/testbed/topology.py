"""Who is called what and lives where: names, addresses and subnets of a testbed, computed from a few numbers.

A testbed takes a slot (0..15), a cluster an ordinal c (1..27, also its cluster id), a node a number n. With t = 128 +
slot:

    10.t.0.0/24       the host (.2) and the router (.1)
    10.t.c.0/24       the cluster's nodes (.10+n) and the router (.1)
    10.c.0.0/16       the cluster's pods, 10.c.n.0/24 those of its node n
    10.(100+c).0.0/16 the cluster's services
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import msgspec

from clustermesh.testbed.errors import TestbedError

STATE_ROOT = Path("/run/clustermesh/testbed")
SLOTS = 16
MAX_CLUSTERS = 27
MAX_NODES = 200
POD_MTU = 1500
NAMESPACE_PREFIX = "cm-"
# The next hop of every pod: an address that no interface has, with a link-layer address that every node's side has.
POD_GATEWAY = "169.254.1.1"
POD_GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"

_CLUSTER_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?")
# No dash, so that names of one testbed never start with another's; 12 letters, so that `cm-<name>` is a device name.
_TESTBED_NAME = re.compile(r"[a-z][a-z0-9]{0,11}")


class Node(msgspec.Struct, frozen=True):
    """A machine of a cluster: a network namespace with an address on the cluster's subnet."""

    name: str
    cluster: str
    number: int
    address: str
    pod_cidr: str
    namespace: str
    port: str  # the router's end of its cable


class Cluster(msgspec.Struct, frozen=True):
    name: str
    id: int
    subnet: str
    router: str
    bridge: str
    pod_cidr: str
    service_cidr: str
    nodes: tuple[Node, ...]

    @property
    def first(self) -> Node:
        """The node in whose namespace the cluster's own processes run."""
        return self.nodes[0]

    @property
    def kubernetes_url(self) -> str:
        return f"https://{self.first.address}:6443"

    @property
    def etcd_url(self) -> str:
        return f"https://{self.first.address}:2379"


class Topology(msgspec.Struct, frozen=True):
    name: str
    slot: int
    clusters: tuple[Cluster, ...]

    @property
    def prefix(self) -> str:
        return namespace_prefix(self.name)

    @property
    def router(self) -> str:
        return f"{self.prefix}router"

    @property
    def network(self) -> str:
        """All node subnets of the testbed, as the host routes them."""
        return slot_network(self.slot)

    @property
    def host_address(self) -> str:
        return f"10.{128 + self.slot}.0.2"

    @property
    def router_address(self) -> str:
        return f"10.{128 + self.slot}.0.1"

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(node for cluster in self.clusters for node in cluster.nodes)

    def cluster(self, name: str) -> Cluster:
        for cluster in self.clusters:
            if cluster.name == name:
                return cluster
        known = ", ".join(cluster.name for cluster in self.clusters)
        raise TestbedError(f"testbed {self.name!r} has no cluster {name!r}; it has {known}")

    def node(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise TestbedError(f"testbed {self.name!r} has no node {name!r}; it has {known}")


def plan(name: str, slot: int, clusters: Sequence[str], nodes: int) -> Topology:
    """Lay out a testbed; TestbedError names what is invalid."""
    check(name, clusters, nodes)
    if not 0 <= slot < SLOTS:
        raise TestbedError(f"slot {slot} is outside 0..{SLOTS - 1}")
    return Topology(name, slot, tuple(_cluster(name, slot, number, c, nodes) for number, c in enumerate(clusters, 1)))


def is_testbed_name(name: str) -> bool:
    return _TESTBED_NAME.fullmatch(name) is not None


def check_testbed_name(name: str) -> None:
    """TestbedError unless a testbed may bear this name. It stands in paths: by no other may anything be removed."""
    if not is_testbed_name(name):
        raise TestbedError(
            f"testbed name {name[:40]!r} is invalid: 1 to 12 lower-case letters and digits, a letter first (--name)"
        )


def check(name: str, clusters: Sequence[str], nodes: int, api_servers: int = 1) -> None:
    """TestbedError unless the names and counts make a testbed."""
    check_testbed_name(name)
    if not 1 <= len(clusters) <= MAX_CLUSTERS:
        raise TestbedError(f"{len(clusters)} clusters asked for: a testbed has 1 to {MAX_CLUSTERS} (--clusters)")
    for cluster in clusters:
        if cluster == "default" or not _CLUSTER_NAME.fullmatch(cluster):
            raise TestbedError(
                f"cluster name {cluster!r} is invalid: 1 to 32 lower-case letters, digits and inner '-', "
                "and not 'default' (--clusters)"
            )
        if clusters.count(cluster) > 1:
            raise TestbedError(f"cluster name {cluster!r} is given twice: clusters of a mesh need different names")
    if not 1 <= nodes <= MAX_NODES:
        raise TestbedError(f"{nodes} nodes asked for: a cluster has 1 to {MAX_NODES} (--nodes)")
    if not 1 <= api_servers <= nodes:
        raise TestbedError(f"{api_servers} API servers asked for: one to as many as there are nodes (--apiservers)")


def free_slot(taken: Sequence[int], routes: Sequence[str]) -> int:
    """The first slot that no other testbed has and whose network meets no route (CIDR) of the host."""
    present = [IPv4Network(route) for route in routes]
    for slot in range(SLOTS):
        network = IPv4Network(slot_network(slot))
        if slot not in taken and not any(network.overlaps(route) for route in present):
            return slot
    raise TestbedError(
        f"no free subnet: all of 10.128.0.0/16 to 10.{127 + SLOTS}.0.0/16 are used by testbeds or routes of this host; "
        "end one with 'clustermesh testbed down --name NAME'"
    )


def slot_network(slot: int) -> str:
    return f"10.{128 + slot}.0.0/16"


def namespace_prefix(testbed: str) -> str:
    return f"{NAMESPACE_PREFIX}{testbed}-"


def host_device(testbed: str) -> str:
    """The host's end of its cable into the testbed."""
    return f"cm-{testbed}"


def pod_namespace(node: Node, uid: str) -> str:
    return f"{node.namespace}-{uid.replace('-', '')[:6]}"


def pod_device(uid: str) -> str:
    """The node's end of a pod's cable."""
    return f"lxc{uid.replace('-', '')[:8]}"


def pod_mac(address: str) -> str:
    """A link-layer address that follows from the pod's address, so that reuse needs no relearning."""
    return "0a:58:" + ":".join(f"{byte:02x}" for byte in IPv4Address(address).packed)


def _cluster(testbed: str, slot: int, number: int, name: str, nodes: int) -> Cluster:
    subnet = f"10.{128 + slot}.{number}"
    return Cluster(
        name=name,
        id=number,
        subnet=f"{subnet}.0/24",
        router=f"{subnet}.1",
        bridge=f"cluster{number}",
        pod_cidr=f"10.{number}.0.0/16",
        service_cidr=f"10.{100 + number}.0.0/16",
        nodes=tuple(
            Node(
                name=f"{name}-{n}",
                cluster=name,
                number=n,
                address=f"{subnet}.{10 + n}",
                pod_cidr=f"10.{number}.{n}.0/24",
                namespace=f"{namespace_prefix(testbed)}{name}-{n}",
                port=f"c{number}n{n}",
            )
            for n in range(1, nodes + 1)
        ),
    )
