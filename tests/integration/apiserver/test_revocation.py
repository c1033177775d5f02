"""A removed peer's open watches end; everybody else's go on without loss."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from apiserver import revocation
from apiserver.revocation import REVOCATIONS, Cutter
from clustermesh import pki
from clustermesh.kube.objects import CLUSTER_MESH_PEERS, SECRETS, SYSTEM_NAMESPACE, ObjectMeta, Secret
from clustermesh.kvstore.auth import AuthAdmin
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.feed import Feed, FeedState
from clustermesh.tasks import end
from clustermesh.wire import keys
from tests.integration.apiserver.replicas import NAME, ApiServer, World, running_world
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

log = logging.getLogger(__name__)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may reset connections"),
]

PREFIX = keys.STATE + "test/"


class Watcher:
    """A peer that follows `PREFIX`; `seen` are the numbers that it was told, in order."""

    def __init__(self, connection: Connection) -> None:
        self.seen: list[int] = []
        self.feed = Feed(connection, PREFIX)
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with aclosing(self.feed.batches()) as batches:
            async for batch in batches:
                self.seen += [int(event.value or b"-1") for event in batch.events]

    @property
    def refused(self) -> bool:
        error = self.feed.error
        return error is not None and error.stage in (Stage.PERMISSION, Stage.AUTHENTICATION)

    async def close(self) -> None:
        await end(self._running)


@asynccontextmanager
async def watching(connections: Iterable[Connection]) -> AsyncIterator[list[Watcher]]:
    watchers = [Watcher(connection) for connection in connections]
    try:
        yield watchers
    finally:
        for watcher in watchers:
            await watcher.close()


@pytest.fixture
async def server(own: EtcdProcess, tmp_path: Path) -> AsyncIterator[tuple[World, ApiServer]]:
    async with running_world(own, tmp_path) as world:
        server = ApiServer(world, "only")
        try:
            await server.start()
            yield world, server
        finally:
            await server.close()


async def invite(world: World, *peers: str) -> None:
    """What `connect` would write of peers: their requests, and who signs them."""
    async with world.client as client:
        meta = ObjectMeta(name="clustermesh-ca", namespace=SYSTEM_NAMESPACE)
        data = {"ca.crt": world.own.ca.cert, "ca.key": world.own.ca.key}
        await client.create(SECRETS, Secret(metadata=meta, data=data))
        for number, peer in enumerate(peers, 20):
            request = pki.make_request(pki.remote_user(peer)).csr.decode()
            spec = {"clusterID": number, "endpoints": ["https://127.0.0.1:1"], "certificateRequest": request}
            await client.create(CLUSTER_MESH_PEERS, {"metadata": {"name": peer}, "spec": spec})


async def test_a_removed_peers_watch_ends_and_nobody_else_loses_anything(server: tuple[World, ApiServer]) -> None:
    world, replica = server
    root = world.own.connection(f"admin-{NAME}")
    await eventually(replica.ready)
    await invite(world, "red", "blue")
    await eventually(lambda: has_users(root, "remote-red", "remote-blue"))
    users = [f"remote-{peer}" for peer in ("red", "blue")]
    async with watching(world.own.connection(user) for user in users) as (red, blue):
        await eventually(lambda: red.feed.state is blue.feed.state is FeedState.WATCHING)
        writing = asyncio.create_task(write_numbers(root))
        await eventually(lambda: bool(red.seen) and bool(blue.seen))
        async with world.client as client:
            await client.delete(CLUSTER_MESH_PEERS, "red")
        await eventually(lambda: red.refused)
        last, count = red.seen[-1], len(blue.seen)
        await eventually(lambda: blue.seen[-1] > last and len(blue.seen) > count + 20)
        await end(writing)
        final = await root.get(PREFIX + "n")
        assert final is not None
        await eventually(lambda: blue.seen[-1] == int(final.value))
        assert list(dict.fromkeys(blue.seen)) == list(range(blue.seen[0], blue.seen[-1] + 1))
        assert blue.feed.watches >= 2
        assert red.seen[-1] == last and red.refused
    assert await root.count(REVOCATIONS) == 0
    assert 'clustermesh_apiserver_revocations_total{result="cut"} 1.0' in (await replica.get("metrics"))[1]
    assert await replica.ready()


async def has_users(root: Connection, *users: str) -> bool:
    return set(users) <= set(await AuthAdmin(root).users())


async def write_numbers(root: Connection) -> None:
    """The same number again after a failure: it may have arrived or not."""
    number = 0
    while True:
        try:
            await root.put(PREFIX + "n", str(number).encode())
            number += 1
        except KvError:
            log.info("cut as well, going on")
        await asyncio.sleep(0.005)


@asynccontextmanager
async def cutting(etcd: EtcdProcess, endpoint: str) -> AsyncIterator[CollectorRegistry]:
    registry = CollectorRegistry()
    task = asyncio.create_task(Cutter(etcd.connection(), [endpoint], registry, patience=0.3).run())
    try:
        yield registry
    finally:
        await end(task)


def counted(registry: CollectorRegistry, result: str) -> float | None:
    return registry.get_sample_value("clustermesh_apiserver_revocations_total", {"result": result})


async def test_who_cannot_reach_etcds_connections_says_so_unless_another_replica_could(
    etcd: EtcdProcess, caplog: pytest.LogCaptureFixture
) -> None:
    root = etcd.connection()
    elsewhere = "https://192.0.2.9:2379"
    async with cutting(etcd, elsewhere) as far:
        await revocation.revoke(root, "remote-gone")
        await eventually(lambda: counted(far, "failed") == 1.0)
        assert "remote-gone: watches opened before stay open" in caplog.text
        assert f"{elsewhere} is not in the network namespace of this process" in caplog.text
        assert "restart etcd" in caplog.text
        assert await root.get(REVOCATIONS + "remote-gone") is not None

        async with cutting(etcd, etcd.endpoint) as near:  # a replica that comes later does what is left
            await eventually(lambda: counted(near, "cut") == 1.0)
            await revocation.revoke(root, "remote-other")
            await eventually(lambda: counted(near, "cut") == 2.0)
            await asyncio.sleep(0.5)  # longer than the patience of the other
    assert counted(far, "failed") == 1.0
    assert await root.count(REVOCATIONS) == 0


async def test_what_was_interrupted_is_finished_and_a_peer_that_came_back_is_left_alone(etcd: EtcdProcess) -> None:
    root = etcd.connection()
    await root.put(REVOCATIONS + "remote-red", b"begun")
    await revocation.revoke(root, "remote-blue")
    assert await revocation.unfinished(root) == {"remote-red"}
    await revocation.reinstate(root, "remote-red")
    assert await revocation.unfinished(root) == set()


async def test_without_the_right_to_it_the_remedy_is_named(etcd: EtcdProcess) -> None:
    async with etcd.connection() as somebody:
        await somebody.status()  # something to cut
        program = (
            "import sys\n"
            "from apiserver.revocation import CutError, cut\n"
            "from clustermesh.kvstore.endpoint import Endpoint\n"
            "try: cut([Endpoint.parse(sys.argv[1])])\n"
            "except CutError as error: print(error)\n"
        )
        unprivileged = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
        command = (*unprivileged, sys.executable, "-c", program, etcd.endpoint)
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
    assert "CAP_NET_ADMIN" in out.decode()
