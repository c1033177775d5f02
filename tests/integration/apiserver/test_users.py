"""What each user of a cluster's etcd may read and write."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from apiserver import revocation
from apiserver.health import Health
from apiserver.users import REMOTE, EtcdUsers
from clustermesh.kvstore.auth import AuthAdmin, Permission
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.feed import Feed
from clustermesh.kvstore.keyspace import prefix_range
from clustermesh.kvstore.lease import Lease
from clustermesh.kvstore.rpc import etcd_pb2 as pb
from clustermesh.kvstore.writer import Writer
from clustermesh.tasks import end
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
    await users.ensure()
    green = etcd.connection("remote-green")
    assert not any([await may(green, key) for key in READABLE_BY_PEERS])
    await users.set_peers(frozenset({"green"}))
    assert all([await may(green, key) for key in READABLE_BY_PEERS])
    assert not any([await may(green, key) for key in CLOSED_TO_PEERS])
    assert not any([await may(green, key, write=True) for key in READABLE_BY_PEERS + CLOSED_TO_PEERS])
    await users.set_peers(frozenset())
    assert not any([await may(green, key) for key in READABLE_BY_PEERS])


async def test_peers_may_make_every_call_of_ciliums_client(etcd: EtcdProcess) -> None:
    """As its KVStoreMesh, agents and operators connect (pkg/kvstore/etcd.go, pkg/clustermesh), 1.17-dev to 1.20."""
    users = EtcdUsers(etcd.connection(), "red")
    await users.set_peers(frozenset({"green"}))
    await etcd.connection().put(keys.HEARTBEAT, b"2026-01-01T00:00:00Z")
    green = etcd.connection("remote-green")
    lease = Lease(green, 25)  # for locks, which a reader of other clusters then never takes
    running = asyncio.create_task(lease.run())
    try:
        await lease.granted()
    finally:
        await end(running)
    assert (await green.status()).version
    assert not await green.get(keys.cluster_config("red"))
    whole = [keys.HEARTBEAT, keys.synced_prefix("red"), "cilium/state/identities/v1/"]
    for prefix in [*whole, *(keys.state_prefix(kind, "red") for kind in Kind)]:
        start, stop = prefix_range(prefix)
        request = pb.RangeRequest(key=start, range_end=stop, limit=256, serializable=True)
        await green.unary(lambda session: session.kv.Range, request)
        async with asyncio.timeout(5), aclosing(Feed(green, prefix).batches()) as batches:
            await anext(batches)
            following = asyncio.ensure_future(anext(batches))
            await etcd.connection().put(prefix + "x", b"")
            assert [event.key.decode() for event in (await following).events] == [prefix + "x"]


async def test_agents_read_everything_of_the_mesh_and_write_their_reports(etcd: EtcdProcess) -> None:
    await EtcdUsers(etcd.connection(), "red").ensure()
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
        found.append([kv.key async for page in connection.list("cilium/") for kv in page])

    lease = Lease(connection, 6, 0x7EF, prepare=prepare)
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


@asynccontextmanager
async def kept_up(users: EtcdUsers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr("apiserver.users.CHECK_EVERY", 0.1)
    running = asyncio.create_task(users.run())
    try:
        yield
    finally:
        await end(running)


async def call(connection: Connection, method: str, request: Any) -> Any:
    return await connection.unary(lambda session: getattr(session.auth, method), request)


async def rights(connection: Connection, role: str) -> set[tuple[int, bytes, bytes]]:
    """As `etcdctl role get` shows them."""
    answer = await call(connection, "RoleGet", pb.AuthRoleGetRequest(role=role))
    return {(perm.permType, perm.key, perm.range_end) for perm in answer.perm}


async def roles_of(connection: Connection, user: str) -> list[str]:
    return list((await call(connection, "UserGet", pb.AuthUserGetRequest(name=user))).roles)


async def test_etcd_has_the_users_and_ranges_of_a_strict_cluster_whatever_it_had_before(etcd: EtcdProcess) -> None:
    root = etcd.connection()
    admin = AuthAdmin(root)
    await admin.ensure_role("remote", [Permission("readwrite", "")])  # as an early Cilium's
    await admin.ensure_user("remote", ["remote"])
    await admin.ensure_user("remote-gone", ["remote"])
    users = EtcdUsers(root, "red")
    await users.set_peers(frozenset({"green"}))
    assert await admin.users() == ["admin-red", "local-red", "remote-green", "root"]
    assert await admin.roles() == ["local", "remote", "root"]
    assert await rights(root, REMOTE) == {
        (pb.Permission.READ, b"cilium/.heartbeat", b"cilium/.heartbeau"),
        (pb.Permission.READ, b"cilium/state/", b"cilium/state0"),
        (pb.Permission.READ, b"cilium/synced/red/", b"cilium/synced/red0"),
        (pb.Permission.READ, b"cilium/cluster-config/red", b""),
    }
    assert await roles_of(root, "remote-green") == [REMOTE]
    assert not await may(etcd.connection("remote"), keys.HEARTBEAT)


async def test_rights_that_somebody_gave_by_hand_are_taken_away_and_what_is_open_by_them_ends(
    etcd: EtcdProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = etcd.connection()
    admin = AuthAdmin(root)
    users = EtcdUsers(etcd.connection("admin-red"), "red")
    peers = [f"p{number:02}" for number in range(20)]  # more than are compared in one look
    await users.set_peers(frozenset(peers))
    proper = await rights(root, REMOTE)
    wide = pb.Permission(permType=pb.Permission.READWRITE, key=b"\0", range_end=b"\0")
    async with kept_up(users, monkeypatch):
        await call(root, "RoleGrantPermission", pb.AuthRoleGrantPermissionRequest(name=REMOTE, perm=wide))
        await eventually(lambda: equal(rights(root, REMOTE), proper))
        await eventually(lambda: exists(root, f"{revocation.REVOCATIONS}role {REMOTE}"))
        await admin.ensure_user("remote-p19", [REMOTE, "root"])
        await eventually(lambda: equal(roles_of(root, "remote-p19"), [REMOTE]))
        await eventually(lambda: exists(root, f"{revocation.REVOCATIONS}user remote-p19"))
        # Users of a role that is deleted lose it, and so get it again.
        await admin.delete_role(REMOTE)
        await eventually(lambda: equal(roles_of(root, "remote-p00"), [REMOTE]))
        await eventually(lambda: equal(roles_of(root, "remote-p19"), [REMOTE]))
        assert await rights(root, REMOTE) == proper


async def test_a_removal_that_was_interrupted_is_finished_unless_the_peer_is_back(etcd: EtcdProcess) -> None:
    root = etcd.connection()
    before = EtcdUsers(root, "red")
    await before.set_peers(frozenset({"green", "gone"}))
    for user in ("remote-green", "remote-gone", "remote-deleted"):
        await root.put(revocation.REVOCATIONS + user, b"begun")
    await EtcdUsers(root, "red").set_peers(frozenset({"green"}))
    assert "remote-gone" not in await AuthAdmin(root).users()
    left = {kv.key.decode(): kv.value async for page in root.list(revocation.REVOCATIONS) for kv in page}
    assert left == {f"{revocation.REVOCATIONS}remote-{peer}": b"deleted" for peer in ("gone", "deleted")}


async def test_access_control_that_somebody_turned_off_is_on_again(
    etcd: EtcdProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = EtcdUsers(etcd.connection("admin-red"), "red")
    await users.set_peers(frozenset({"green"}))
    green = etcd.connection("remote-green")
    async with kept_up(users, monkeypatch):
        await call(etcd.connection(), "AuthDisable", pb.AuthDisableRequest())
        await eventually(lambda: restored(green))


async def test_users_that_nobody_here_made_are_named_and_left_alone(
    etcd: EtcdProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, health = AuthAdmin(etcd.connection()), Health()
    users = EtcdUsers(etcd.connection("admin-red"), "red", health)
    async with kept_up(users, monkeypatch):
        await eventually(lambda: health.ready)
        await admin.ensure_role("audit", [Permission("read", "")])
        await admin.ensure_user("backup", ["audit"])
        await eventually(lambda: any("user backup, role audit" in note for note in health.notes))
        assert await roles_of(etcd.connection(), "backup") == ["audit"]
        await admin.delete_user("backup")
        await admin.delete_role("audit")
        await eventually(lambda: health.notes == [])


async def test_peers_neither_copy_nor_disturb_the_store_as_a_whole(etcd: EtcdProcess) -> None:
    """Of etcd's maintenance, a user needs root for what reads or stops everything. docs/operations.md has the rest."""
    users = EtcdUsers(etcd.connection(), "red")
    await users.set_peers(frozenset({"green"}))
    for user in ("remote-green", "remote-gone"):
        for method in ("Snapshot", "Defragment", "Hash", "HashKV"):
            assert await refused(etcd.connection(user), f"Maintenance/{method}"), (user, method)
        for method in ("AuthDisable", "UserList", "RoleList"):
            assert await refused(etcd.connection(user), f"Auth/{method}"), (user, method)
    assert not await refused(etcd.connection("admin-red"), "Maintenance/HashKV")


async def refused(connection: Connection, method: str) -> bool:
    """Whether an empty request of a service that this project has no stubs for is refused."""
    async with connection.session() as session:
        channel: Any = session._channel
        answer = channel.unary_unary(f"/etcdserverpb.{method}", lambda body: body, lambda body: body)
        try:
            await answer(b"", timeout=5)
        except grpc.aio.AioRpcError as error:
            texts = ("permission denied", "user not found", "user name not found")
            assert error.code() is not StatusCode.UNIMPLEMENTED
            assert any(text in (error.details() or "") for text in texts), error
            return True
        return False


async def equal(answer: Any, wanted: Any) -> bool:
    try:
        return bool(await answer == wanted)
    except KvError:
        return False


async def exists(connection: Connection, key: str) -> bool:
    try:
        return await connection.get(key) is not None
    except KvError:
        return False


async def restored(green: Connection) -> bool:
    """Access control is on again, with the peer's rights."""
    return await may(green, keys.HEARTBEAT) and not await may(green, CLOSED_TO_PEERS[0])
