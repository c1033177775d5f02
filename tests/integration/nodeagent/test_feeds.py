"""From a real etcd to the maps' content: peers come, go, and the store fails."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from clustermesh.kvstore.connection import Connection
from clustermesh.tasks import end
from clustermesh.wire import endpoint_slices, keys, private, records
from clustermesh.wire.keys import DATAPATH_KINDS, Kind
from clustermesh.wire.private import PeerList, PeerSettings
from clustermesh.wire.records import SERVICES_AND_SLICES, SLICES_ONLY, Capabilities, ClusterConfig
from nodeagent.datapath.abi import IpcacheKey, Map
from nodeagent.feeds import Feeds
from nodeagent.mesh import Mesh
from nodeagent.reconciler import Reconciler
from tests.integration.etcd_process import EtcdProcess
from tests.unit.nodeagent.memory_map import MemoryMap, memory_maps
from tests.unit.nodeagent.records_of import HERE, address, local, node, ports, remote, slice_of

pytestmark = pytest.mark.integration

PATIENCE = 30.0
POD = IpcacheKey.host("10.2.1.5").pack()


class Node:
    """Feeds, tables and reconciler of one agent over maps in memory."""

    def __init__(self, connection: Connection, maps: dict[str, MemoryMap] | None = None) -> None:
        self.log: list[tuple[str, str, bytes]] = []
        self.maps = maps or memory_maps(self.log)
        self.reconciler = Reconciler(self.maps)
        self.mesh = Mesh(HERE, self.reconciler)
        self.mesh.adopt(self.reconciler.adopt())
        self.feeds = Feeds(connection, self.mesh)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.reconciler.run())
            tasks.create_task(self.feeds.run())

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for rounds of the reconciler until `holds`."""
        async with asyncio.timeout(PATIENCE):
            while not holds():  # noqa: ASYNC110 - etcd, feeds and reconciler announce themselves to different listeners
                await asyncio.sleep(0.02)

    def knows(self, ip_key: bytes) -> bool:
        return ip_key in self.maps[Map.IPCACHE].content

    def ready(self, peer: str) -> bool:
        cluster = self.mesh.clusters.get(peer)
        return cluster is not None and self.mesh.complete(cluster)


@asynccontextmanager
async def running(node_: Node) -> AsyncIterator[Node]:
    task = asyncio.create_task(node_.run())
    try:
        yield node_
    finally:
        await end(task)


@pytest.fixture
async def agent(etcd: EtcdProcess) -> AsyncIterator[Node]:
    async with running(Node(etcd.connection())) as node_:
        yield node_


async def list_peers(connection: Connection, **peers: int) -> None:
    await connection.put(keys.PEER_LIST, private.encode(PeerList(peers=peers)))


async def write_own(connection: Connection, *, pod: bool = True) -> None:
    """What the API server of the own cluster exports, and that green is its peer."""
    await list_peers(connection, green=2)
    await connection.put(keys.cluster_config("red"), records.encode(ClusterConfig(1)))
    await connection.put(keys.node("red", "red-1"), records.encode(node("red", 1, "red-1", "192.0.2.1", "10.1.1.0/24")))
    await connection.put(keys.identity(65543), b"k8s:app=web;")
    if pod:
        await connection.put(keys.address("10.1.1.5"), records.encode(address("10.1.1.5", "192.0.2.1", 65543)))
    await connection.put(keys.local_service("shop", "web"), private.encode(local("web", ports(a1=80))))
    for kind in DATAPATH_KINDS:
        await connection.put(keys.state_canary(kind, "red"), b"now")


async def write_peer(connection: Connection, *, canaries: bool = True) -> None:
    """What the mirror keeps of a peer, and what the API server says of it."""
    await connection.put(keys.peer_settings("green"), private.encode(PeerSettings()))
    await connection.put(keys.cluster_config("green"), records.encode(ClusterConfig(2)))
    green_1 = node("green", 2, "green-1", "192.0.2.2", "10.2.1.0/24")
    await connection.put(keys.cache_prefix(Kind.NODES, "green") + "green-1", records.encode(green_1))
    await connection.put(keys.cache_prefix(Kind.IDENTITIES, "green") + "131079", b"k8s:app=web;")
    pod = address("10.2.1.5", "192.0.2.2", 131079)
    await connection.put(keys.cache_prefix(Kind.ADDRESSES, "green") + "10.2.1.5", records.encode(pod))
    web = remote("web", "green", 2, ports(a2=80))
    await connection.put(keys.cache_prefix(Kind.SERVICES, "green") + "shop/web", records.encode(web))
    if canaries:
        for kind in DATAPATH_KINDS:
            await connection.put(keys.cache_canary(kind, "green"), b"now")


async def test_a_peer_appears_is_read_once_complete_and_vanishes(etcd: EtcdProcess, agent: Node) -> None:
    connection = etcd.connection()
    await write_own(connection)
    await agent.until(lambda: agent.ready("red"))
    alone = {name: dict(one.content) for name, one in agent.maps.items()}

    await write_peer(connection, canaries=False)
    await agent.until(lambda: "green" in agent.mesh.clusters)
    assert not agent.knows(POD)
    for kind in DATAPATH_KINDS:
        await connection.put(keys.cache_canary(kind, "green"), b"now")
    await agent.until(lambda: agent.ready("green"))
    assert agent.knows(POD)
    assert len(agent.maps[Map.BACKENDS].content) == 2

    await list_peers(connection)
    await connection.delete(keys.cluster_config("green"))
    await agent.until(lambda: {name: one.content for name, one in agent.maps.items()} == alone)
    assert "green" not in agent.mesh.clusters


async def test_a_listed_peer_without_a_configuration_is_kept_until_the_list_says_otherwise(
    etcd: EtcdProcess, agent: Node
) -> None:
    connection = etcd.connection()
    await write_own(connection)
    await write_peer(connection)
    await agent.until(lambda: agent.ready("green"))
    await connection.delete(keys.cluster_config("green"))
    # Comes behind the deletion.
    await connection.put(keys.cluster_config("grey"), b"[]")
    await agent.until(lambda: keys.cluster_config("grey") in agent.mesh.rejected)
    assert agent.knows(POD)
    await connection.put(keys.PEER_LIST, b"{malformed")
    await agent.until(lambda: keys.PEER_LIST in agent.mesh.rejected)
    assert agent.knows(POD)
    await list_peers(connection, blue=3)
    await agent.until(lambda: not agent.knows(POD))
    assert keys.PEER_LIST not in agent.mesh.rejected


async def test_an_agent_that_starts_while_a_lost_store_is_filled_keeps_the_peers_that_are_to_return(
    etcd: EtcdProcess,
) -> None:
    connection = etcd.connection()
    await write_own(connection)
    await write_peer(connection)
    maps = memory_maps()
    async with running(Node(etcd.connection(), maps)) as first:
        await first.until(lambda: first.ready("red") and first.ready("green"))
    before = {name: dict(one.content) for name, one in maps.items()}

    await etcd.stop()
    etcd.wipe()
    await etcd.start()
    await write_own(connection)
    async with running(Node(etcd.connection(), maps)) as second:
        await second.until(lambda: second.ready("red") and second.mesh.peers_known)
        assert {name: one.content for name, one in maps.items()} == before
        assert not second.mesh.routes_complete()
        await list_peers(connection)
        await second.until(lambda: not second.knows(POD))
        assert second.mesh.routes_complete()


async def test_changes_follow_and_survive_a_restart_of_etcd(etcd: EtcdProcess, agent: Node) -> None:
    connection = etcd.connection()
    await write_own(connection)
    await write_peer(connection)
    await agent.until(lambda: agent.ready("green"))
    await etcd.kill()
    assert agent.knows(POD)
    await etcd.start()
    key = keys.cache_prefix(Kind.ADDRESSES, "green")
    await connection.delete(key + "10.2.1.5")
    await connection.put(key + "10.2.1.6", records.encode(address("10.2.1.6", "192.0.2.2", 131079)))
    await agent.until(lambda: agent.knows(IpcacheKey.host("10.2.1.6").pack()) and not agent.knows(POD))


async def test_a_store_that_is_lost_and_filled_again_cuts_nothing(
    etcd: EtcdProcess, agent: Node, caplog: pytest.LogCaptureFixture
) -> None:
    connection = etcd.connection()
    await write_own(connection)
    await write_peer(connection)
    await agent.until(lambda: agent.ready("red") and agent.ready("green"))
    before = {name: dict(one.content) for name, one in agent.maps.items()}

    await etcd.stop()
    etcd.wipe()
    await etcd.start()
    feeds = 2 * len(DATAPATH_KINDS)
    await agent.until(lambda: len([line for line in caplog.messages if "is lost: what vanished" in line]) == feeds)
    assert {name: one.content for name, one in agent.maps.items()} == before

    await write_own(connection, pod=False)
    own_pod = IpcacheKey.host("10.1.1.5").pack()
    await agent.until(lambda: not agent.knows(own_pod))  # it did not come back
    await write_peer(connection)
    await agent.until(lambda: agent.ready("green"))
    expected = {key: value for key, value in before[Map.IPCACHE].items() if key != own_pod}
    assert agent.maps[Map.IPCACHE].content == expected
    assert agent.maps[Map.BACKENDS].content == before[Map.BACKENDS]


async def test_two_peers_with_one_id_and_bad_configurations_are_named(etcd: EtcdProcess, agent: Node) -> None:
    connection = etcd.connection()
    await write_own(connection)
    await write_peer(connection)
    await agent.until(lambda: agent.ready("green"))
    await connection.put(keys.cluster_config("blue"), records.encode(ClusterConfig(2)))
    await connection.put(keys.cluster_config("grey"), b"[]")
    await agent.until(lambda: len(agent.mesh.rejected) == 2)
    assert set(agent.mesh.rejected) == {keys.cluster_config("blue"), keys.cluster_config("grey")}
    await connection.delete(keys.cluster_config("green"))
    await list_peers(connection, blue=2)
    await agent.until(lambda: "blue" in agent.mesh.clusters)


async def test_a_peer_with_another_id_is_read_anew(etcd: EtcdProcess, agent: Node) -> None:
    connection = etcd.connection()
    await write_own(connection)
    await write_peer(connection)
    await agent.until(lambda: agent.ready("green"))
    await connection.put(keys.cluster_config("green"), records.encode(ClusterConfig(4)))
    await agent.until(lambda: agent.ready("green") and agent.mesh.clusters["green"].cluster_id == 4)
    assert agent.knows(POD)


async def test_a_peers_settings_are_followed_while_it_is_read(etcd: EtcdProcess, agent: Node) -> None:
    connection = etcd.connection()
    await write_own(connection)
    cilium = private.encode(PeerSettings(implementation="cilium"))
    await write_peer(connection)
    await connection.put(keys.peer_settings("green"), cilium)
    await agent.until(lambda: agent.ready("green"))
    green = agent.mesh.clusters["green"]
    await agent.until(lambda: agent.mesh.probes(green) == [])
    await connection.put(keys.peer_settings("green"), private.encode(PeerSettings()))
    await agent.until(lambda: agent.mesh.probes(green) == ["192.0.2.2"])
    await connection.put(keys.peer_settings("green"), b"{")  # the last good value stays
    await connection.put(keys.peer_settings("blue"), cilium)
    await agent.until(lambda: "blue" in agent.mesh.settings)
    assert set(agent.mesh.rejected) == {keys.peer_settings("green")}
    assert agent.mesh.probes(green) == ["192.0.2.2"]
    await connection.delete(keys.peer_settings("blue"))
    await connection.delete(keys.peer_settings("green"))
    await agent.until(lambda: not agent.mesh.rejected)
    assert agent.mesh.settings["blue"].implementation == "cilium"


async def test_settings_that_are_there_first_count_from_the_first_moment(etcd: EtcdProcess, agent: Node) -> None:
    connection = etcd.connection()
    targets: list[list[str]] = []
    agent.mesh.on_change = lambda: targets.append([p for peer in agent.mesh.peers() for p in agent.mesh.probes(peer)])
    await connection.put(keys.peer_settings("green"), private.encode(PeerSettings(implementation="cilium")))
    await connection.put(keys.cluster_config("green"), records.encode(ClusterConfig(2)))
    green_1 = node("green", 2, "green-1", "192.0.2.2")
    await connection.put(keys.cache_prefix(Kind.NODES, "green") + "green-1", records.encode(green_1))
    await connection.put(keys.cache_canary(Kind.NODES, "green"), b"now")
    await write_own(connection)
    await agent.until(lambda: "green" in agent.mesh.clusters and bool(agent.mesh.clusters["green"].nodes))
    assert not any(targets)


def config(mode: str) -> bytes:
    return records.encode(ClusterConfig(2, Capabilities(endpoint_slices_export_mode=mode)))


async def test_a_peer_that_takes_to_slices_alone_and_back_loses_no_backend(etcd: EtcdProcess, agent: Node) -> None:
    connection = etcd.connection()
    await write_own(connection)
    await write_peer(connection)
    await connection.put(keys.cluster_config("green"), config(SERVICES_AND_SLICES))
    slices, services = (keys.cache_prefix(kind, "green") for kind in (Kind.ENDPOINT_SLICES, Kind.SERVICES))
    await agent.until(lambda: agent.ready("green"))
    green = agent.mesh.clusters["green"]
    behind = dict(agent.maps[Map.BACKENDS].content)
    assert len(behind) == 2

    # The services go before the slices are there.
    await connection.put(keys.cluster_config("green"), config(SLICES_ONLY))
    await agent.until(lambda: Kind.ENDPOINT_SLICES in green.kinds)
    assert not agent.ready("green")
    await connection.delete(keys.cache_canary(Kind.SERVICES, "green"))
    await connection.delete(services + "shop/web")
    await connection.put(slices + "shop/web-1", endpoint_slices.encode(slice_of("web", "10.0.0.2")))
    await connection.put(keys.cache_canary(Kind.ENDPOINT_SLICES, "green"), b"now")
    await agent.until(lambda: agent.ready("green"))
    assert agent.maps[Map.BACKENDS].content == behind
    assert agent.mesh.counts(green)["endpointslices"] == 1

    # One slice changed is one backend changed.
    more = slice_of("web", "10.0.0.2", "10.0.0.3")
    await connection.put(slices + "shop/web-1", endpoint_slices.encode(more))
    await agent.until(lambda: len(agent.maps[Map.BACKENDS].content) == 3)

    await connection.put(keys.cluster_config("green"), config(""))
    web = remote("web", "green", 2, ports(a2=80))
    await connection.put(services + "shop/web", records.encode(web))
    await connection.put(keys.cache_canary(Kind.SERVICES, "green"), b"now")
    await agent.until(lambda: agent.ready("green") and Kind.SERVICES in green.kinds)
    assert agent.maps[Map.BACKENDS].content == behind
    removed = [key for what, name, key in agent.log if what == "remove" and name == Map.BACKENDS]
    assert not set(removed) & set(behind)


async def test_a_mode_that_nobody_knows_is_named_and_the_old_one_stays(etcd: EtcdProcess, agent: Node) -> None:
    connection = etcd.connection()
    await write_own(connection)
    await write_peer(connection)
    await agent.until(lambda: agent.ready("green"))
    await connection.put(keys.cluster_config("green"), config("everything-and-more"))
    await connection.put(keys.cluster_config("grey"), records.encode(ClusterConfig(512)))
    await agent.until(lambda: len(agent.mesh.rejected) == 2)
    assert "everything-and-more" in agent.mesh.rejected[keys.cluster_config("green")]
    assert "between 1 and 511" in agent.mesh.rejected[keys.cluster_config("grey")]
    assert agent.ready("green")
