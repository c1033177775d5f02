"""Nodes as peers read them."""

import pytest

from apiserver.cluster import ClusterIdentity
from apiserver.nodes import compile_node
from clustermesh.kube.objects import Node, NodeAddress, NodeSpec, NodeStatus, ObjectMeta
from clustermesh.wire import records

RED = ClusterIdentity("red", 1)
ADDRESS = NodeAddress("InternalIP", "10.128.1.11")


def node(addresses: tuple[NodeAddress, ...], cidrs: tuple[str, ...] = ()) -> Node:
    return Node(
        metadata=ObjectMeta(name="red-1"), spec=NodeSpec(pod_cidrs=cidrs), status=NodeStatus(addresses=addresses)
    )


def test_a_node_has_its_addresses_and_ranges() -> None:
    given = node(
        (ADDRESS, NodeAddress("Hostname", "red-1"), NodeAddress("ExternalIP", "203.0.113.9")),
        ("10.1.1.0/24", "fd00:1::/64", "10.9.0.0/25"),
    )
    record = compile_node(RED, given)
    assert record is not None
    assert [(address.type, address.ip) for address in record.ip_addresses or ()] == [
        ("InternalIP", "10.128.1.11"),
        ("ExternalIP", "203.0.113.9"),
    ]
    assert [str(network) for network in record.pod_cidrs()] == ["10.1.1.0/24", "fd00:1::/64", "10.9.0.0/25"]
    assert records.decode(records.Node, records.encode(record)) == record


@pytest.mark.parametrize("addresses", [(), (NodeAddress("Hostname", "red-1"),), (NodeAddress("InternalIP", "?"),)])
def test_a_node_that_nobody_can_send_to_is_not_exported(addresses: tuple[NodeAddress, ...]) -> None:
    assert compile_node(RED, node(addresses)) is None


def test_a_node_without_pod_range_is_exported_without_one() -> None:
    record = compile_node(RED, node((ADDRESS,)))
    assert record is not None
    assert record.pod_cidrs() == ()
