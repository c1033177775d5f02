"""What each user of a cluster's etcd may read and write."""

import asyncio

import pytest

from apiserver.health import Health
from apiserver.users import EtcdUsers
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.lease import Lease
from clustermesh.kvstore.writer import Writer
from clustermesh.wire import keys
from clustermesh.wire.keys import Kind
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

READABLE_BY_PEERS = (
    keys.HEARTBEAT,
    keys.node("red", "red-1"),
    keys.address("10.1.1.1"),
    keys.state_canary(Kind.NODES, "red"),
    keys.cluster_config("red"),
)
CLOSED_TO_PEERS = (
    keys.cluster_config("blue"),
    keys.cluster_config("red-2"),
    keys.state_canary(Kind.NODES, "blue"),
    keys.cache_prefix(Kind.NODES, "blue") + "blue-1",
    keys.local_service("default", "echo"),
    keys.agent("red-1"),
    "/registry/core/secrets/clustermesh-system/clustermesh-ca",
)


async def may(connection: Connection, key: str, *, write: bool = False) -> bool:
    try:
        await (connection.put(key, b"x") if write else connection.get(key))
    except KvError as error:
        assert error.stage in (Stage.PERMISSION, Stage.AUTHENTICATION), error
        return False
    return True


async def test_peers_read_what_is_exported_and_nothing_else(etcd: EtcdProcess) -> None:
    users = EtcdUsers(etcd.connection(), "red")
    await users.prepare()
    green = etcd.connection("remote-green")
    assert not any([await may(green, key) for key in READABLE_BY_PEERS])
    await users.set_peers(frozenset({"green"}))
    assert all([await may(green, key) for key in READABLE_BY_PEERS])
    assert not any([await may(green, key) for key in CLOSED_TO_PEERS])
    assert not any([await may(green, key, write=True) for key in READABLE_BY_PEERS + CLOSED_TO_PEERS])
    await users.set_peers(frozenset())
    assert not any([await may(green, key) for key in READABLE_BY_PEERS])


async def test_agents_read_everything_of_the_mesh_and_write_their_reports(etcd: EtcdProcess) -> None:
    await EtcdUsers(etcd.connection(), "red").prepare()
    local = etcd.connection("local-red")
    closed = CLOSED_TO_PEERS[-1]
    assert all([await may(local, key) for key in READABLE_BY_PEERS + CLOSED_TO_PEERS if key != closed])
    assert not await may(local, closed)
    writable = [key for key in READABLE_BY_PEERS + CLOSED_TO_PEERS if await may(local, key, write=True)]
    assert writable == [keys.agent("red-1")]


async def test_an_etcd_that_was_rebuilt_gets_its_users_back(etcd: EtcdProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apiserver.users.CHECK_EVERY", 0.2)
    users = EtcdUsers(etcd.connection("admin-red"), "red")
    await users.set_peers(frozenset({"green"}))
    green = etcd.connection("remote-green")
    running = asyncio.create_task(users.run())
    try:
        assert await may(green, keys.HEARTBEAT)
        await etcd.stop()
        etcd.wipe()
        await etcd.start()
        await eventually(lambda: restored(green))
    finally:
        running.cancel()


async def test_users_come_before_any_record_also_in_an_etcd_that_was_rebuilt(etcd: EtcdProcess) -> None:
    connection, health, found = etcd.connection("admin-red"), Health(), []
    users = EtcdUsers(connection, "red", health)

    async def prepare() -> None:
        await users.ensure()
        found.append([kv.key async for page in connection.list("c") for kv in page])

    lease = Lease(connection, 30, 0x7EF, prepare=prepare)
    writer = Writer(connection, lease)
    writer.put(keys.HEARTBEAT, b"now")
    await etcd.stop()
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(each) for each in (lease.run(), writer.run())]
        try:
            await eventually(lambda: lease.error is not None)
            (missing,) = health.missing
            assert missing.startswith("etcd users: tcp: ")
            for _ in range(2):
                etcd.wipe()
                await etcd.start()
                await eventually(lambda: exists(connection, keys.HEARTBEAT))
                assert not await may(etcd.connection("remote-green"), keys.HEARTBEAT)
                assert health.ready
                await etcd.stop()
        finally:
            for task in running:
                task.cancel()
    assert found == [[], []]


async def exists(connection: Connection, key: str) -> bool:
    try:
        return await connection.get(key) is not None
    except KvError:
        return False


async def restored(green: Connection) -> bool:
    """Access control is on again, with the peer's rights."""
    return await may(green, keys.HEARTBEAT) and not await may(green, CLOSED_TO_PEERS[0])
