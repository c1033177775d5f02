"""A pod's place in the network, as a plain routing CNI makes it.

The pod has one address (/32) on `eth0` and a default route through a link-local gateway that no device has; its node
has a /32 route to the node's end of the cable and forwards.
"""

import contextlib
from collections.abc import Iterable
from ipaddress import IPv4Network

from clustermesh.testbed import namespaces
from clustermesh.testbed.errors import TestbedError
from clustermesh.testbed.topology import POD_GATEWAY, POD_GATEWAY_MAC, POD_MTU, Node, pod_device, pod_mac


class AddressPool:
    """Addresses of a node's pods, given out in turn, so that one that was given back rests for as long as possible."""

    def __init__(self, cidr: str) -> None:
        # The first is left free: other networks put a gateway there.
        self._addresses = [str(address) for address in list(IPv4Network(cidr).hosts())[1:]]
        self._taken: set[str] = set()
        self._next = 0

    def take(self) -> str:
        for offset in range(len(self._addresses)):
            index = (self._next + offset) % len(self._addresses)
            address = self._addresses[index]
            if address not in self._taken:
                self._next = index + 1
                self._taken.add(address)
                return address
        raise TestbedError(f"all {len(self._addresses)} pod addresses of the node are in use: scale down or add nodes")

    def reserve(self, addresses: Iterable[str]) -> None:
        """Take these, which pods already have."""
        self._taken.update(addresses)

    def give_back(self, address: str) -> None:
        self._taken.discard(address)


def attach(node: Node, namespace: str, uid: str, address: str) -> None:
    """Make the pod's namespace and connect it; TestbedError when that fails, with nothing left."""
    device = pod_device(uid)
    namespaces.create(namespace)
    try:
        namespaces.configure(None, [cable(node, namespace, device, address)])
        namespaces.configure(namespace, pod_commands(address))
        namespaces.configure(node.namespace, node_commands(device, address))
    except TestbedError:
        namespaces.remove(namespace)
        raise


def detach(node: Node, namespace: str, uid: str) -> None:
    """Remove the cable and the namespace; nothing happens to what is already gone."""
    # The kernel drops the device with the namespace, but a moment later; the address may be given out again before.
    with contextlib.suppress(TestbedError):
        namespaces.configure(node.namespace, [f"link delete {pod_device(uid)}"])
    namespaces.remove(namespace)


def cable(node: Node, namespace: str, device: str, address: str) -> str:
    return (
        f"link add {device} address {POD_GATEWAY_MAC} mtu {POD_MTU} netns {node.namespace} type veth "
        f"peer name eth0 address {pod_mac(address)} mtu {POD_MTU} netns {namespace}"
    )


def pod_commands(address: str) -> list[str]:
    return [
        f"address add {address}/32 dev eth0",
        "link set eth0 up",
        f"route add {POD_GATEWAY} dev eth0 scope link",
        f"route add default via {POD_GATEWAY}",
        f"neigh add {POD_GATEWAY} lladdr {POD_GATEWAY_MAC} dev eth0 nud permanent",
    ]


def node_commands(device: str, address: str) -> list[str]:
    return [f"link set {device} up", f"route add {address}/32 dev {device} scope link"]
