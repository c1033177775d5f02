"""A peer's etcd, this cluster's mirror and a node's agent in one line, while the peer changes its ways."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from apiserver.mirror import Mirror
from clustermesh.kvstore.connection import Connection
from clustermesh.tasks import end
from clustermesh.wire import endpoint_slices, keys, private, records
from clustermesh.wire.keys import DATAPATH_KINDS, Kind
from clustermesh.wire.private import LocalService, PeerList
from clustermesh.wire.records import (
    SERVICES_AND_SLICES,
    SLICES_ONLY,
    Capabilities,
    ClusterConfig,
    Port,
    ServiceRecord,
)
from nodeagent.datapath.abi import BackendValue, Map
from nodeagent.feeds import Feeds
from nodeagent.mesh import Mesh
from nodeagent.place import Place
from nodeagent.reconciler import Reconciler
from tests.integration.apiserver.exports import CLUSTER_ID, export
from tests.integration.apiserver.test_mirror import mirroring, restricted
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually
from tests.unit.nodeagent.memory_map import memory_maps
from tests.unit.nodeagent.records_of import slice_of

pytestmark = pytest.mark.integration

HTTP = {"http": Port("TCP", 80)}
BACKEND = "10.5.1.7"
WEB = ServiceRecord(cluster="red", namespace="shop", name="web", backends={BACKEND: HTTP}, cluster_id=CLUSTER_ID)


class Agent:
    """A node of green over maps in memory."""

    def __init__(self, connection: Connection) -> None:
        self.log: list[tuple[str, str, bytes]] = []
        self.maps = memory_maps(self.log)
        self.reconciler = Reconciler(self.maps)
        self.mesh = Mesh(Place("green-1", "green", 7), self.reconciler)
        self._feeds = Feeds(connection, self.mesh)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.reconciler.run())
            tasks.create_task(self._feeds.run())

    def backends(self) -> set[str]:
        return {BackendValue.unpack(value).address for value in self.maps[Map.BACKENDS].content.values()}

    def holds_what(self, mirror: Mirror) -> bool:
        """As the status asks: the peer's kinds are complete, with as many records as are mirrored."""
        peer, view = self.mesh.clusters.get("red"), mirror.view()
        if peer is None or view.config is None or peer.kinds != view.config.datapath_kinds():
            return False
        counts = self.mesh.counts(peer)
        return self.mesh.complete(peer) and counts == {kind: view.records.get(kind, 0) for kind in peer.kinds}


@asynccontextmanager
async def running(connection: Connection) -> AsyncIterator[Agent]:
    agent = Agent(connection)
    task = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        await end(task)


async def prepare(own: Connection) -> None:
    """What green's API server writes for its agents."""
    await own.put(keys.cluster_config("green"), records.encode(ClusterConfig(7)))
    await own.put(keys.PEER_LIST, private.encode(PeerList(peers={"red": CLUSTER_ID})))
    service = LocalService(namespace="shop", name="web", frontends={"10.96.0.1": HTTP})
    await own.put(keys.local_service("shop", "web"), private.encode(service))
    for kind in DATAPATH_KINDS:
        await own.put(keys.state_canary(kind, "green"), b"now")


def config(mode: str) -> bytes:
    capabilities = Capabilities(True, max_connected_clusters=255, endpoint_slices_export_mode=mode)
    return records.encode(ClusterConfig(CLUSTER_ID, capabilities))


async def test_a_peer_that_changes_how_it_exports_its_backends_keeps_them(etcd: EtcdProcess, own: EtcdProcess) -> None:
    peer, mine = await restricted(etcd), own.connection()
    await prepare(mine)
    await export(peer)
    web = keys.service("red", "shop", "web")
    await peer.put(web, records.encode(WEB))
    async with mirroring(etcd, mine) as mirror, running(mine) as agent:
        await eventually(lambda: agent.holds_what(mirror) and agent.backends() == {BACKEND})

        # Both forms: nothing changes for an agent.
        first = endpoint_slices.encode(slice_of("web", BACKEND, cluster=("red", CLUSTER_ID)))
        await peer.put(keys.endpoint_slice("red", "shop", "web-1"), first)
        await peer.put(keys.state_canary(Kind.ENDPOINT_SLICES, "red"), b"now")
        await peer.put(keys.cluster_config("red"), config(SERVICES_AND_SLICES))
        await eventually(lambda: mirror.view().records[Kind.ENDPOINT_SLICES] == 1 and agent.holds_what(mirror))

        # Slices alone: the services go, as they do when Cilium's API server starts with that setting.
        await peer.put(keys.cluster_config("red"), config(SLICES_ONLY))
        await peer.delete(keys.state_canary(Kind.SERVICES, "red"))
        await peer.delete(web)
        await peer.delete(keys.service("red", "default", "echo"))
        await eventually(lambda: "red" in agent.mesh.clusters and agent.mesh.complete(agent.mesh.clusters["red"]))
        await eventually(lambda: Kind.ENDPOINT_SLICES in agent.mesh.clusters["red"].kinds and agent.holds_what(mirror))
        more = endpoint_slices.encode(slice_of("web", BACKEND, "10.5.1.8", cluster=("red", CLUSTER_ID)))
        await peer.put(keys.endpoint_slice("red", "shop", "web-1"), more)
        await eventually(lambda: agent.backends() == {BACKEND, "10.5.1.8"})

        # And back to services alone.
        await peer.put(web, records.encode(WEB))
        await peer.put(keys.state_canary(Kind.SERVICES, "red"), b"now")
        await peer.put(keys.cluster_config("red"), config(""))
        await eventually(lambda: agent.backends() == {BACKEND} and agent.holds_what(mirror))

        first_backend = next(key for what, name, key in agent.log if (what, name) == ("write", Map.BACKENDS))
        assert ("remove", Map.BACKENDS, first_backend) not in agent.log
