"""Names, addresses and subnets of a testbed."""

import itertools
from ipaddress import IPv4Address, IPv4Network

import pytest

from clustermesh.testbed import netns, topology
from clustermesh.testbed.errors import TestbedError


def test_names_and_addresses_follow_from_slot_and_ordinals() -> None:
    plan = topology.plan("demo", 3, ["red", "green"], 2)
    green = plan.cluster("green")
    assert (green.id, green.subnet, green.pod_cidr, green.service_cidr) == (
        2,
        "10.131.2.0/24",
        "10.2.0.0/16",
        "10.102.0.0/16",
    )
    node = plan.node("green-2")
    assert (node.address, node.pod_cidr, node.namespace) == ("10.131.2.12", "10.2.2.0/24", "cm-demo-green-2")
    assert plan.router == "cm-demo-router"
    assert topology.pod_namespace(node, "0a1b2c3d-4e5f-6071") == "cm-demo-green-2-0a1b2c"
    assert topology.pod_device("0a1b2c3d-4e5f-6071") == "lxc0a1b2c3d"


def test_the_largest_testbed_has_no_overlapping_networks() -> None:
    names = [f"c{number}" for number in range(1, topology.MAX_CLUSTERS + 1)]
    plan = topology.plan("big", topology.SLOTS - 1, names, topology.MAX_NODES)
    networks = [IPv4Network(plan.network)]
    for cluster in plan.clusters:
        networks += [IPv4Network(cluster.pod_cidr), IPv4Network(cluster.service_cidr)]
        assert all(IPv4Address(node.address) in IPv4Network(cluster.subnet) for node in cluster.nodes)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(networks, 2))


def test_device_names_fit_the_kernel() -> None:
    plan = topology.plan("abcdefghijkl", 15, [f"c{n}" for n in range(topology.MAX_CLUSTERS)], topology.MAX_NODES)
    devices = [topology.host_device(plan.name), *(node.port for node in plan.nodes)]
    devices += [cluster.bridge for cluster in plan.clusters]
    assert max(map(len, devices)) <= 15
    assert len(set(devices)) == len(devices)


@pytest.mark.parametrize("name", ["", "default", "Red", "a_b", "-a", "a-", "a" * 33, "red.blue"])
def test_an_invalid_cluster_name_is_named(name: str) -> None:
    with pytest.raises(TestbedError, match=f"cluster name '{name}' is invalid"):
        topology.check("x", [name], 1)


def test_cluster_names_are_unique() -> None:
    with pytest.raises(TestbedError, match="'red' is given twice"):
        topology.check("x", ["red", "green", "red"], 1)


@pytest.mark.parametrize("name", ["", "a-b", "1a", "Demo", "a" * 13, "../x"])
def test_an_invalid_testbed_name_is_named(name: str) -> None:
    with pytest.raises(TestbedError, match="testbed name"):
        topology.check(name, ["red"], 1)


@pytest.mark.parametrize("api_servers", [0, 3])
def test_every_api_server_needs_a_node(api_servers: int) -> None:
    with pytest.raises(TestbedError, match="--apiservers"):
        topology.check("x", ["red"], 2, api_servers)


def test_a_slot_is_free_when_neither_testbed_nor_route_of_the_host_has_its_network() -> None:
    assert topology.free_slot([0, 2], ["10.129.7.0/24", "192.0.2.0/24"]) == 3


def test_no_free_slot_is_an_error_with_a_remedy() -> None:
    with pytest.raises(TestbedError, match="testbed down"):
        topology.free_slot([], ["10.0.0.0/8"])


def test_an_unknown_cluster_or_node_is_answered_with_those_that_exist() -> None:
    plan = topology.plan("x", 0, ["red"], 2)
    with pytest.raises(TestbedError, match="no cluster 'blue'; it has red"):
        plan.cluster("blue")
    with pytest.raises(TestbedError, match="no node 'red-3'; it has red-1, red-2"):
        plan.node("red-3")


def test_pods_of_the_own_cluster_are_routed_and_no_others() -> None:
    plan = topology.plan("x", 0, ["red", "green"], 2)
    commands = netns.node_commands(plan.cluster("red"), plan.node("red-1"))
    assert "route add 10.1.2.0/24 via 10.128.1.12" in commands
    assert not any("10.2." in command for command in [*commands, *netns.router_commands(plan)])
