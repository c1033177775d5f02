"""SIGTERM ends the process soon and cleanly, whatever it is waiting for at that moment."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from apiserver.users import EtcdUsers
from clustermesh.kvstore.connection import Connection
from tests.integration.apiserver.exports import CLUSTER_ID, export
from tests.integration.apiserver.introduction import introduce
from tests.integration.apiserver.replicas import ApiServer, World, running_world
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

LIMIT = 5.0  # seconds


@pytest.fixture
async def world(own: EtcdProcess, tmp_path: Path) -> AsyncIterator[World]:
    async with running_world(own, tmp_path) as world:
        yield world


@pytest.fixture
async def server(world: World) -> AsyncIterator[ApiServer]:
    server = ApiServer(world, "only")
    yield server
    await server.close()


async def connect(world: World, peer: EtcdProcess) -> None:
    """Give green what `connect` would: the peer's answer to its request."""
    await export(await restricted(peer))
    async with world.client as client:
        await introduce(
            client,
            world.own.ca,
            "green",
            peer=peer.ca,
            peer_name="red",
            peer_id=CLUSTER_ID,
            endpoints=[peer.endpoint],
        )


async def restricted(etcd: EtcdProcess) -> Connection:
    users = EtcdUsers(etcd.connection(), "red")
    await users.set_peers(frozenset({"green"}))
    return etcd.connection("admin-red")


async def stops_cleanly(server: ApiServer) -> None:
    assert server.process is not None
    begin = time.monotonic()
    server.process.terminate()
    status = await server.ended()
    took = time.monotonic() - begin
    assert status == 0, server.log
    assert took < LIMIT, f"{took:.1f} s\n{server.log}"
    assert "Traceback" not in server.log
    assert "never retrieved" not in server.log


async def etcd_down(world: World, _: EtcdProcess) -> None:
    await world.own.kill()


async def etcd_frozen(world: World, _: EtcdProcess) -> None:
    world.own.freeze()


async def kubernetes_down(world: World, _: EtcdProcess) -> None:
    await world.kubernetes.stop()


async def kubernetes_frozen(world: World, _: EtcdProcess) -> None:
    world.kubernetes.etcd.freeze()


async def peer_frozen(_: World, peer: EtcdProcess) -> None:
    peer.freeze()


Trouble = Callable[[World, EtcdProcess], Awaitable[None]]


@pytest.mark.parametrize("trouble", [etcd_down, etcd_frozen, kubernetes_down, kubernetes_frozen])
async def test_it_stops_while_it_waits_to_begin(
    world: World, etcd: EtcdProcess, server: ApiServer, trouble: Trouble
) -> None:
    await trouble(world, etcd)
    await server.start()
    await asyncio.sleep(0.5)  # inside its first attempts
    await stops_cleanly(server)


@pytest.mark.parametrize(
    ("trouble", "after"),
    [
        *((each, 0.0) for each in (etcd_down, etcd_frozen, kubernetes_down, kubernetes_frozen, peer_frozen)),
        (etcd_frozen, 6.0),  # seconds, until it has noticed
        (peer_frozen, 6.0),
    ],
)
async def test_it_stops_when_what_it_had_is_lost(
    world: World, etcd: EtcdProcess, server: ApiServer, trouble: Trouble, after: float
) -> None:
    await server.start()
    await connect(world, etcd)
    await eventually(server.ready)
    await trouble(world, etcd)
    await asyncio.sleep(after)
    await stops_cleanly(server)
