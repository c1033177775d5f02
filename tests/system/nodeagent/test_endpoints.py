"""Pods' devices are found, late or early, and let go."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from nodeagent.datapath.abi import AddressKey, EndpointValue, Map
from nodeagent.datapath.errors import DatapathError
from nodeagent.endpoints import Endpoints
from nodeagent.reconciler import Reconciler
from tests.system.nodeagent.conftest import NodeNamespace, run
from tests.unit.nodeagent.memory_map import MemoryMap, memory_maps

PATIENCE = 10.0


class Programs:
    """Stands for the datapath: remembers where programs are."""

    def __init__(self) -> None:
        self.attached: set[int] = set()
        self.calls: list[tuple[str, int]] = []
        self.refuses: set[int] = set()

    def attach_pod(self, ifindex: int) -> None:
        self.calls.append(("attach", ifindex))
        if ifindex in self.refuses:
            raise DatapathError("no")
        self.attached.add(ifindex)

    def detach_pod(self, ifindex: int) -> None:
        self.calls.append(("detach", ifindex))
        self.attached.discard(ifindex)

    def attached_pods(self) -> set[int]:
        return set(self.attached)


class Running:
    """Endpoints at work."""

    def __init__(self, programs: Programs) -> None:
        self.programs = programs
        self.maps: dict[str, MemoryMap] = memory_maps()
        self.reconciler = Reconciler(self.maps)
        self.endpoints = Endpoints(programs, self.reconciler)

    def entry(self, ip: str) -> EndpointValue | None:
        raw = self.maps[Map.ENDPOINTS].content.get(AddressKey(ip).pack())
        return None if raw is None else EndpointValue.unpack(raw)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():  # noqa: ASYNC110 - what is waited for is the kernel's state
                await asyncio.sleep(0.02)


@asynccontextmanager
async def running(programs: Programs | None = None) -> AsyncIterator[Running]:
    parts = Running(programs or Programs())
    tasks = [asyncio.create_task(parts.reconciler.run()), asyncio.create_task(parts.endpoints.run())]
    try:
        yield parts
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def test_a_pod_is_found_by_its_route_with_the_mac_address_of_its_own_side(node: NodeNamespace) -> None:
    mac = node.pod("10.1.1.5", "lxc1")
    async with running() as parts:
        parts.endpoints.change([("10.1.1.5", 65543)])
        await parts.until(lambda: len(parts.programs.attached) == 1)
        index = node.ifindex("lxc1")
        assert parts.programs.calls == [("attach", index)]
        assert parts.entry("10.1.1.5") == EndpointValue(index, 65543, mac=bytes.fromhex(mac.replace(":", "")))


async def test_a_pod_whose_device_or_route_comes_later_is_attached_then(node: NodeNamespace) -> None:
    async with running() as parts:
        parts.endpoints.change([("10.1.1.5", 65543)])
        parts.endpoints.complete()
        await asyncio.wait_for(parts.endpoints.settled.wait(), PATIENCE)
        assert parts.endpoints.missing == ["10.1.1.5"]
        node.pod("10.1.1.5", "lxc1")
        await parts.until(lambda: parts.programs.attached == {node.ifindex("lxc1")})


async def test_a_pod_that_goes_is_detached_and_its_entry_removed(node: NodeNamespace) -> None:
    node.pod("10.1.1.5", "lxc1")
    async with running() as parts:
        parts.endpoints.change([("10.1.1.5", 65543)])
        await parts.until(lambda: bool(parts.programs.attached))
        parts.endpoints.change([("10.1.1.5", None)])
        await parts.until(lambda: not parts.programs.attached and parts.entry("10.1.1.5") is None)


async def test_an_address_that_moves_to_another_device_follows(node: NodeNamespace) -> None:
    node.pod("10.1.1.5", "lxc1")
    async with running() as parts:
        parts.endpoints.change([("10.1.1.5", 65543)])
        await parts.until(lambda: bool(parts.programs.attached))
        node.ip("link del lxc1")
        await parts.until(lambda: not parts.programs.attached)
        node.pod("10.1.1.5", "lxc2")
        await parts.until(lambda: parts.programs.attached == {node.ifindex("lxc2")})
        entry = parts.entry("10.1.1.5")
        assert entry is not None
        assert entry.ifindex == node.ifindex("lxc2")


async def test_two_addresses_of_one_pod_attach_once_and_detach_with_the_last(node: NodeNamespace) -> None:
    node.pod("10.1.1.5", "lxc1")
    node.ip("route add 10.1.1.6/32 dev lxc1")
    async with running() as parts:
        parts.endpoints.change([("10.1.1.5", 65543), ("10.1.1.6", 65543)])
        await parts.until(lambda: len(parts.endpoints) == 2 and bool(parts.programs.attached))
        parts.endpoints.change([("10.1.1.5", None)])
        await parts.until(lambda: parts.entry("10.1.1.5") is None)
        index = node.ifindex("lxc1")
        assert parts.programs.calls == [("attach", index)]
        parts.endpoints.change([("10.1.1.6", None)])
        await parts.until(lambda: parts.programs.calls[-1] == ("detach", index))


async def test_a_pod_behind_a_bridge_is_found_by_its_port(node: NodeNamespace) -> None:
    node.ip("link add cni0 type bridge")
    node.ip("addr add 10.1.1.1/24 dev cni0")
    node.ip("link set cni0 up")
    mac = node.pod("10.1.1.5", "veth1", route=False)
    node.ip("link set veth1 master cni0")
    run(f"ip -n {node.pods[0]} route add 10.1.1.0/24 dev eth0")
    async with running() as parts:
        parts.endpoints.change([("10.1.1.5", 65543)])
        await parts.until(lambda: parts.programs.attached == {node.ifindex("veth1")})
        entry = parts.entry("10.1.1.5")
        assert entry is not None
        assert entry.mac.hex(":") == mac


async def test_an_address_behind_a_gateway_is_no_pod_of_this_node(node: NodeNamespace) -> None:
    node.pod("192.0.2.1", "uplink")
    node.ip("addr add 192.0.2.9/24 dev uplink")
    node.ip("route add default via 192.0.2.1")
    async with running() as parts:
        parts.endpoints.change([("10.1.1.5", 65543)])
        parts.endpoints.complete()
        await asyncio.wait_for(parts.endpoints.settled.wait(), PATIENCE)
        assert not parts.programs.attached


async def test_programs_of_pods_that_went_while_no_agent_ran_are_detached_once_all_pods_are_known(
    node: NodeNamespace,
) -> None:
    node.pod("10.1.1.5", "lxc1")
    node.pod("10.1.1.6", "lxc2")
    programs = Programs()
    programs.attached = {node.ifindex("lxc1"), node.ifindex("lxc2")}
    async with running(programs) as parts:
        parts.endpoints.change([("10.1.1.5", 65543)])
        await parts.until(lambda: len(parts.endpoints) == 1)
        assert len(programs.attached) == 2
        parts.endpoints.complete()
        await asyncio.wait_for(parts.endpoints.settled.wait(), PATIENCE)
        assert programs.attached == {node.ifindex("lxc1")}
