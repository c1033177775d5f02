"""The tunnel device and the routes through it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from pyroute2 import AsyncIPRoute

from nodeagent.devices import DeviceError, Routes, Tunnel, ensure_tunnel, remove_tunnel, underlay_mtu
from tests.system.nodeagent.conftest import NodeNamespace

PATIENCE = 10.0


async def test_the_tunnel_is_made_once_and_found_again(node: NodeNamespace) -> None:
    async with AsyncIPRoute() as netlink:
        tunnel = await ensure_tunnel(netlink)
        shown = node.ip("-d link show cm_vxlan")
        assert "external" in shown
        assert "dstport 8472" in shown
        assert "nolearning" in shown
        assert "NOARP" in shown
        assert "mtu 65485" in shown
        assert await ensure_tunnel(netlink) == tunnel
        assert await remove_tunnel(netlink)
        assert not await remove_tunnel(netlink)


async def test_a_device_of_that_name_that_is_not_as_it_must_be_is_replaced(node: NodeNamespace) -> None:
    node.ip("link add cm_vxlan type vxlan id 5 dstport 4789")
    async with AsyncIPRoute() as netlink:
        await ensure_tunnel(netlink)
    assert "external" in node.ip("-d link show cm_vxlan")


async def test_a_taken_port_is_named_with_who_has_it(node: NodeNamespace) -> None:
    node.ip("link add flannel.1 type vxlan external dstport 8472")
    node.ip("link set flannel.1 up")
    async with AsyncIPRoute() as netlink:
        with pytest.raises(DeviceError, match=r"8472.*flannel\.1.*--tunnel-port"):
            await ensure_tunnel(netlink)


async def test_the_underlays_mtu_is_that_of_the_device_with_the_nodes_address(node: NodeNamespace) -> None:
    node.ip("link add eth0 type veth peer name eth1")
    node.ip("addr add 192.0.2.1/24 dev eth0")
    node.ip("link set eth0 mtu 1400")
    async with AsyncIPRoute() as netlink:
        assert await underlay_mtu(netlink, "192.0.2.1") == 1400


@asynccontextmanager
async def running(node: NodeNamespace) -> AsyncIterator[Routes]:
    async with AsyncIPRoute() as netlink:
        tunnel: Tunnel = await ensure_tunnel(netlink)
    routes = Routes()
    task = asyncio.create_task(routes.run(tunnel))
    try:
        yield routes
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 - what is waited for is the kernel's state
            await asyncio.sleep(0.02)


def shown(node: NodeNamespace) -> list[str]:
    return [line.strip() for line in node.ip("route show dev cm_vxlan").splitlines()]


async def test_routes_follow_the_pod_cidrs_and_the_nodes_address(node: NodeNamespace) -> None:
    node.ip("link add eth0 type veth peer name eth1")
    node.ip("addr add 192.0.2.1/24 dev eth0")
    async with running(node) as routes:
        routes.change([("10.2.1.0/24", "192.0.2.2")])
        await asyncio.sleep(0)
        assert shown(node) == []  # this node's address is not known yet
        routes.configure("192.0.2.1", 1450)
        await until(lambda: shown(node) == ["10.2.1.0/24 proto 131 scope link src 192.0.2.1 mtu 1450"])
        routes.configure("192.0.2.1", 1400)
        await until(lambda: shown(node) == ["10.2.1.0/24 proto 131 scope link src 192.0.2.1 mtu 1400"])
        routes.change([("10.2.1.0/24", None), ("10.2.2.0/24", "192.0.2.3")])
        await until(lambda: shown(node) == ["10.2.2.0/24 proto 131 scope link src 192.0.2.1 mtu 1400"])


async def test_routes_outlive_the_agent_and_stale_ones_go_once_all_are_known(node: NodeNamespace) -> None:
    node.ip("link add eth0 type veth peer name eth1")
    node.ip("addr add 192.0.2.1/24 dev eth0")
    async with running(node) as routes:
        routes.configure("192.0.2.1", 1450)
        routes.change([("10.2.1.0/24", "192.0.2.2"), ("10.2.2.0/24", "192.0.2.2")])
        await until(lambda: len(shown(node)) == 2)
    async with running(node) as routes:
        routes.configure("192.0.2.1", 1450)
        routes.change([("10.2.1.0/24", "192.0.2.2"), ("10.2.3.0/24", "192.0.2.2")])
        await until(lambda: len(shown(node)) == 3)
        routes.complete()
        await until(lambda: [line.split()[0] for line in shown(node)] == ["10.2.1.0/24", "10.2.3.0/24"])
