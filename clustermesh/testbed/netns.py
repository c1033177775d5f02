"""The driver that makes nodes of network namespaces.

A router namespace has one bridge a cluster, with a cable to each of the cluster's nodes, and a cable to the host. It
routes between the subnets of nodes and knows no pod addresses; the nodes of one cluster route each other's pods
directly.
"""

import json
from collections.abc import Sequence

from clustermesh.testbed import namespaces
from clustermesh.testbed.topology import Cluster, Node, Topology, host_device, namespace_prefix

# rp_filter is what systemd gives to devices: loose. `all` counts as the least strict a device can have.
_FORWARDING = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "2",
}
_CUT_PRIORITY = 100


class NetnsDriver:
    """See driver.Driver."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def create(self) -> None:
        topology = self._topology
        namespaces.create(topology.router, _FORWARDING)
        for node in topology.nodes:
            namespaces.create(node.namespace, _FORWARDING)
        namespaces.configure(None, host_commands(topology))
        namespaces.configure(topology.router, router_commands(topology))
        for cluster in topology.clusters:
            for node in cluster.nodes:
                namespaces.configure(node.namespace, node_commands(cluster, node))

    def destroy(self) -> None:
        destroy(self._topology.name)

    def command(self, node: Node, argv: Sequence[str]) -> list[str]:
        return namespaces.entering(node.namespace, argv)

    def cut(self, one: str, other: str) -> None:
        if _pair(one, other) not in self.cuts():
            self._rules("add", one, other)

    def heal(self, one: str, other: str) -> None:
        if _pair(one, other) in self.cuts():
            self._rules("del", one, other)

    def cuts(self) -> frozenset[tuple[str, str]]:
        rules = json.loads(namespaces.run(self._topology.router, ["ip", "-json", "rule"]))
        bridges = {cluster.bridge: cluster.name for cluster in self._topology.clusters}
        subnets = {cluster.subnet: cluster.name for cluster in self._topology.clusters}
        return frozenset(
            _pair(bridges[rule["iif"]], subnets[f"{rule['dst']}/{rule['dstlen']}"])
            for rule in rules
            if rule["priority"] == _CUT_PRIORITY
        )

    def _rules(self, verb: str, one: str, other: str) -> None:
        a, b = self._topology.cluster(one), self._topology.cluster(other)
        namespaces.configure(
            self._topology.router,
            [
                f"rule {verb} iif {source.bridge} to {target.subnet} blackhole priority {_CUT_PRIORITY}"
                for source, target in ((a, b), (b, a))
            ],
        )


def destroy(testbed: str) -> bool:
    """Remove all namespaces and the host's cable of a testbed, by their names; False when there was none."""
    names = namespaces.named(namespace_prefix(testbed))
    device = host_device(testbed)
    # Going down with the router's namespace takes the kernel a moment; deleted here it is gone at once.
    links = json.loads(namespaces.run(None, ["ip", "-json", "link", "show", "type", "veth"]) or "[]")
    if any(link.get("ifname") == device for link in links):
        namespaces.configure(None, [f"link delete {device}"])
    for name in names:
        namespaces.remove(name)
    namespaces.release_registry()
    return bool(names)


def host_commands(topology: Topology) -> list[str]:
    """Lay all cables, and the host's way in."""
    device = host_device(topology.name)
    return [
        f"link add {device} type veth peer name host netns {topology.router}",
        *(
            f"link add eth0 netns {node.namespace} type veth peer name {node.port} netns {topology.router}"
            for node in topology.nodes
        ),
        f"address add {topology.host_address}/24 dev {device}",
        f"link set {device} up",
        f"route add {topology.network} via {topology.router_address}",
    ]


def router_commands(topology: Topology) -> list[str]:
    commands = [f"address add {topology.router_address}/24 dev host", "link set host up"]
    for cluster in topology.clusters:
        commands += [
            f"link add name {cluster.bridge} type bridge forward_delay 0",
            f"address add {cluster.router}/24 dev {cluster.bridge}",
            f"link set {cluster.bridge} up",
            *(f"link set {node.port} master {cluster.bridge} up" for node in cluster.nodes),
        ]
    return commands


def node_commands(cluster: Cluster, node: Node) -> list[str]:
    return [
        f"address add {node.address}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {cluster.router}",
        *(f"route add {other.pod_cidr} via {other.address}" for other in cluster.nodes if other != node),
        # An address of this node that no pod has must not travel to the router and back.
        f"route add unreachable {node.pod_cidr}",
    ]


def _pair(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one < other else (other, one)
