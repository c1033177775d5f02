"""Two real API servers: one leads, the other takes its place whatever becomes of it, and readers notice nothing."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from apiserver.leadership import FENCE
from clustermesh.kvstore.connection import Connection, KeyValue
from clustermesh.kvstore.feed import Feed
from clustermesh.tasks import end
from clustermesh.wire import keys
from clustermesh.wire.keys import Kind
from tests.integration.apiserver.replicas import NAME, ApiServer, World, running_world
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

OPTIONS = (
    "--heartbeat=1",
    "--leader-elect-lease-duration=4",
    "--leader-elect-renew-deadline=3",
    "--leader-elect-retry-period=0.5",
)
NODE = "green-1"
SAID_ANEW = {keys.HEARTBEAT, *(keys.state_canary(kind, NAME) for kind in Kind)}


class Reader:
    """A peer's eyes: every change under `cilium/`."""

    def __init__(self, connection: Connection) -> None:
        self.deleted: list[bytes] = []
        self.heartbeats = 0
        self._feed = Feed(connection, "cilium/")
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with aclosing(self._feed.batches()) as batches:
            async for batch in batches:
                self.deleted += [event.key for event in batch.events if event.value is None]
                self.heartbeats += sum(event.key.decode() == keys.HEARTBEAT for event in batch.events)

    async def sees_a_heartbeat(self) -> None:
        before = self.heartbeats
        await eventually(lambda: self.heartbeats > before)

    async def close(self) -> None:
        await end(self._running)


@pytest.fixture
async def world(own: EtcdProcess, tmp_path: Path) -> AsyncIterator[World]:
    async with running_world(own, tmp_path) as world:
        yield world


async def exported(connection: Connection) -> dict[bytes, KeyValue]:
    """What is written once and then stands."""
    return {kv.key: kv async for page in connection.list("cilium/") for kv in page if kv.key.decode() not in SAID_ANEW}


async def fence(connection: Connection) -> str:
    found = await connection.get(FENCE)
    return found.value.decode() if found is not None else ""


async def test_a_frozen_and_a_killed_leader_are_replaced_and_readers_see_no_gap(world: World) -> None:
    await make_node(world)
    root = world.own.connection(f"admin-{NAME}")
    one, two = ApiServer(world, "one", *OPTIONS), ApiServer(world, "two", *OPTIONS)
    reader = Reader(root)
    try:
        await one.start()
        await eventually(one.leads)
        await two.start()
        await eventually(lambda: two.stands_by("one"))
        assert "clustermesh_apiserver_leader 0.0" in (await two.get("metrics"))[1]
        before = await exported(root)
        assert keys.node(NAME, NODE).encode() in before

        one.send(signal.SIGSTOP)
        await eventually(two.leads)
        assert "clustermesh_apiserver_leader 1.0" in (await two.get("metrics"))[1]
        await reader.sees_a_heartbeat()
        assert await exported(root) == before  # also their revisions and their lease
        token = await fence(root)
        assert token.startswith("two_")

        one.send(signal.SIGCONT)
        assert await one.ended() == 1
        assert "leads now" in one.log and "Traceback" not in one.log
        assert await fence(root) == token
        await one.start()  # as a supervisor does
        await eventually(lambda: one.stands_by("two"))

        two.send(signal.SIGKILL)
        await eventually(one.leads)
        await reader.sees_a_heartbeat()
        assert await exported(root) == before
        assert reader.deleted == []
        lease = before[keys.cluster_config(NAME).encode()].lease
        canaries = [kv.lease async for page in root.list(keys.synced_prefix(NAME)) for kv in page]
        assert lease and set(canaries) == {lease}
    finally:
        await reader.close()
        await one.close()
        await two.close()


async def make_node(world: World) -> None:
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE},
        "spec": {"podCIDRs": ["10.7.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}]},
    }
    answer = await world.kubernetes.post("/api/v1/nodes", node)
    assert answer.status == 201, answer.body
