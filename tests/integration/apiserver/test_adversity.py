"""A mirror whose peer's etcd is slow, silent, replaced, restored, refusing or badly certified keeps what it has, says
what is wrong, and goes on by itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from apiserver.mirror import Mirror, PeerSpec
from apiserver.users import roles
from clustermesh.kvstore.auth import AuthAdmin
from clustermesh.kvstore.connection import Change, Connection
from clustermesh.wire import keys
from clustermesh.wire.keys import Kind
from tests.integration.apiserver.exports import CLUSTER_ID, address, export
from tests.integration.apiserver.test_mirror import mirroring, restricted, until_cached, until_synced
from tests.integration.etcd_process import EtcdProcess, running_etcd
from tests.integration.tcp_proxy import TcpProxy, proxied
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

POD = "cilium/cache/ip/v1/red/10.5.1.7"


@asynccontextmanager
async def mirroring_through(proxy: TcpProxy, etcd: EtcdProcess, mine: Connection) -> AsyncIterator[Mirror]:
    spec = PeerSpec("red", CLUSTER_ID, (proxy.endpoint,))
    async with mirroring(etcd, mine, spec=spec) as mirror:
        await until_synced(mirror)
        yield mirror


async def write_pods(kv: Connection, first: int, count: int) -> None:
    ips = [f"10.5.1.{number}" for number in range(first, first + count)]
    await kv.commit([Change(keys.address(ip).encode(), address(ip)) for ip in ips])


async def holds(mine: Connection, count: int) -> bool:
    return await mine.count("cilium/cache/ip/v1/red/") == count


async def test_a_peer_that_answers_slowly_and_in_pulses_is_followed_without_listing_again(
    etcd: EtcdProcess, own: EtcdProcess
) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with proxied(etcd) as proxy, mirroring_through(proxy, etcd, mine) as mirror:
        proxy.delay, proxy.rate = 0.05, 100_000.0
        for number in range(5):
            etcd.freeze()
            await asyncio.sleep(0.3)
            etcd.thaw()
            await write_pods(kv, 10 + 20 * number, 20)
        await eventually(lambda: holds(mine, 101))
        figures = mirror.figures()
        assert sum(figures.relists.values()) == 0
        assert (figures.reconnects, figures.queue, mirror.view().state) == (0, 0, "connected")


async def test_a_connection_that_is_half_open_is_given_up_within_seconds(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with proxied(etcd) as proxy, mirroring_through(proxy, etcd, mine) as mirror:
        proxy.silence()
        await kv.delete(keys.address("10.5.1.7"))
        await write_pods(kv, 10, 20)
        await eventually(lambda: mirror.view().state == "failed", within=20)
        assert mirror.view().stage in ("timeout", "tcp", "unavailable", "tls")
        assert await holds(mine, 1)
        proxy.speak()
        await eventually(lambda: holds(mine, 20))
        await eventually(lambda: mirror.view().state == "connected")


async def test_another_store_behind_the_same_address_is_noticed_at_once(
    etcd: EtcdProcess, own: EtcdProcess, tmp_path: Path
) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with (
        proxied(etcd) as proxy,
        mirroring_through(proxy, etcd, mine) as mirror,
        running_etcd(tmp_path / "other", ca=etcd.ca) as other,
    ):
        fresh = await restricted(other)
        await export(fresh, canaries=False)
        await fresh.delete(keys.address("10.5.1.7"))
        await write_pods(fresh, 10, 20)
        proxy.target = other.port
        proxy.cut()
        # It may be a store that is being filled: nothing of it counts before its canaries stand.
        await eventually(lambda: "filling its etcd again" in mirror.view().message, within=10)
        assert await holds(mine, 1)
        for kind in Kind:
            await fresh.put(keys.state_canary(kind, "red"), b"now")
        await eventually(lambda: holds(mine, 20))
        await until_cached(mine, POD, None)


async def test_a_peer_restored_from_a_backup_is_followed_back_and_on(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    await etcd.stop()
    saved = etcd.save()
    await etcd.start()
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
        await kv.delete(keys.address("10.5.1.7"))
        await write_pods(kv, 10, 20)
        await eventually(lambda: holds(mine, 20))
        await etcd.kill()
        etcd.restore(saved)
        await etcd.start()
        await eventually(lambda: holds(mine, 1))
        await until_cached(mine, POD, address("10.5.1.7"))
        await write_pods(kv, 40, 3)
        await eventually(lambda: holds(mine, 4))


async def test_rights_that_are_taken_away_and_given_back_cost_nothing(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    admin = AuthAdmin(etcd.connection())
    async with proxied(etcd) as proxy, mirroring_through(proxy, etcd, mine) as mirror:
        await admin.ensure_role("remote", [])
        proxy.cut()  # an open watch goes on without rights
        await eventually(lambda: mirror.view().stage == "permission")
        assert "give this user a role" in mirror.view().message
        await write_pods(kv, 10, 20)
        assert await holds(mine, 1)
        await admin.ensure_role("remote", list(roles("red")["remote"]))
        await eventually(lambda: holds(mine, 21))
        await eventually(lambda: mirror.view().state == "connected")


async def test_a_server_certificate_that_expires_is_named_until_it_is_replaced(
    etcd: EtcdProcess, own: EtcdProcess
) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with proxied(etcd) as proxy, mirroring_through(proxy, etcd, mine) as mirror:
        good = etcd.server.cert.read_bytes()
        etcd.server.cert.write_bytes(etcd.expired(good))  # etcd reads it for each connection
        proxy.cut()
        await write_pods(kv, 10, 20)
        await eventually(lambda: mirror.view().stage == "tls")
        assert "the server's certificate has expired" in mirror.view().message
        assert await holds(mine, 1)
        etcd.server.cert.write_bytes(good)
        await eventually(lambda: holds(mine, 21))
