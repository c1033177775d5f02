"""What a mirror goes through in its life: peers that change, vanish and are replaced, an own etcd in trouble."""

import asyncio
from pathlib import Path

import pytest

from clustermesh.kvstore.auth import AuthAdmin, Permission
from clustermesh.kvstore.connection import Change, Connection
from clustermesh.wire import keys, records
from clustermesh.wire.keys import DATAPATH_KINDS, Kind
from clustermesh.wire.records import Capabilities, ClusterConfig, ServiceExport
from tests.integration.apiserver.exports import CLUSTER_ID, FIRST_IDENTITY, address, config, export, identity, node
from tests.integration.apiserver.history import recording
from tests.integration.apiserver.test_mirror import (
    cache,
    mirroring,
    restricted,
    until_cached,
    until_synced,
)
from tests.integration.etcd_process import EtcdProcess, free_ports
from tests.integration.waiting import despite_outages, eventually

pytestmark = pytest.mark.integration

POD = "cilium/cache/ip/v1/red/10.5.1.7"
EXPORT = records.encode(
    ServiceExport(
        cluster="red",
        name="echo",
        namespace="default",
        export_creation_timestamp="2026-01-01T00:00:00Z",
        type="ClusterSetIP",
        session_affinity="None",
    )
)
ECHO = "cilium/cache/services/v1/red/default/echo"


async def test_a_copy_that_another_mirror_made_is_mirrored_like_the_original(
    etcd: EtcdProcess, own: EtcdProcess, tmp_path: Path
) -> None:
    """The peer's etcd is a cache: its records stand below cilium/cache/, its canaries are those of a mirror."""
    kv, mine = etcd.connection(), own.connection()
    await export(kv)
    middle = EtcdProcess(tmp_path)
    try:
        await middle.start()
        async with mirroring(etcd, middle.connection()) as first:
            await until_synced(first)
            async with mirroring(middle, mine) as second:
                await kv.put(keys.HEARTBEAT, b"now")
                await middle.connection().put(keys.HEARTBEAT, b"now")
                await until_synced(second)
                assert await cache(mine) == await cache(middle.connection())
                assert await mine.get(keys.cluster_config("red")) is not None
                await kv.delete(keys.service("red", "default", "echo"))
                await until_cached(mine, ECHO, None)
    finally:
        await middle.close()


async def test_a_changed_cluster_config_is_noticed_at_once(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
        before = await cache(mine)
        # Another text of the same is no change.
        await kv.put(keys.cluster_config("red"), config().replace(b",", b", "))
        wider = Capabilities(synced_canaries=True, max_connected_clusters=255, service_exports_enabled=False)
        await kv.put(keys.cluster_config("red"), records.encode(ClusterConfig(CLUSTER_ID, wider)))
        await eventually(lambda: Kind.SERVICE_EXPORTS in mirror.view().kinds, within=10)
        await kv.put(keys.state_canary(Kind.SERVICE_EXPORTS, "red"), b"now")
        await eventually(lambda: Kind.SERVICE_EXPORTS in mirror.view().synced)
        said = await mine.get(keys.cluster_config("red"))
        assert said is not None
        assert records.decode(ClusterConfig, said.value).capabilities.service_exports_enabled is False

        await kv.put(keys.service_export("red", "default", "echo"), EXPORT)
        exported = keys.cache_prefix(Kind.SERVICE_EXPORTS, "red") + "default/echo"
        await until_cached(mine, exported, EXPORT)
        await kv.put(keys.cluster_config("red"), config())
        await until_cached(mine, exported, None)
        assert await cache(mine) == before

        await kv.put(keys.cluster_config("red"), config(max_clusters=511))
        await eventually(lambda: mirror.view().stage == "config", within=10)
        assert await cache(mine) == before
        await kv.put(keys.cluster_config("red"), config())
        await eventually(lambda: mirror.view().state == "connected")
        assert await cache(mine) == before


async def test_what_a_peer_exports_no_more_loses_its_canary_before_its_records(
    etcd: EtcdProcess, own: EtcdProcess
) -> None:
    """So an agent keeps it until it knows by the new cluster-config what to read instead."""
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    exports = Capabilities(synced_canaries=True, max_connected_clusters=255, service_exports_enabled=True)
    await kv.put(keys.cluster_config("red"), records.encode(ClusterConfig(CLUSTER_ID, exports)))
    await kv.put(keys.service_export("red", "default", "echo"), EXPORT)
    await kv.put(keys.state_canary(Kind.SERVICE_EXPORTS, "red"), b"now")
    exported = keys.cache_prefix(Kind.SERVICE_EXPORTS, "red") + "default/echo"
    async with recording(mine) as history, mirroring(etcd, mine) as mirror:
        await eventually(lambda: Kind.SERVICE_EXPORTS in mirror.view().synced)
        await kv.put(keys.cluster_config("red"), config())
        await until_cached(mine, exported, None)
        await history.caught_up()
        gone = [event.key.decode() for event in history.events if event.value is None and b"cilium/" in event.key]
        assert gone == [keys.cache_canary(Kind.SERVICE_EXPORTS, "red"), exported]


async def test_an_interruption_is_resumed_without_a_list(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
        await eventually(lambda: mirror.view().state == "connected")
        await etcd.restart()
        await kv.put(keys.address("10.5.1.8"), address("10.5.1.8"))
        await until_cached(mine, "cilium/cache/ip/v1/red/10.5.1.8", address("10.5.1.8"))
        await eventually(lambda: mirror.figures().reconnects > 0)
        assert not any(mirror.figures().relists.values())


async def test_what_the_peer_deleted_while_nobody_mirrored_is_pruned(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
    await kv.delete(keys.service("red", "default", "echo"))
    await mine.put("cilium/cache/services/v1/red/default/nobody-knows", b"{")
    await mine.put("cilium/cache/services/v1/redder/default/of-another-peer", b"{")
    await kv.put(keys.address("10.5.1.7"), address("10.5.1.7", CLUSTER_ID << 16 | 2))
    async with mirroring(etcd, mine) as again:
        await eventually(lambda: again.current == frozenset(DATAPATH_KINDS))
        kept = await cache(mine)
        assert kept[POD] == address("10.5.1.7", CLUSTER_ID << 16 | 2)
        assert {key for key in kept if "/services/" in key} == {
            "cilium/cache/services/v1/redder/default/of-another-peer"
        }


@pytest.mark.parametrize("away", [False, True])
async def test_a_restart_with_a_stricter_policy_takes_back_what_the_lenient_one_let_in(
    etcd: EtcdProcess, own: EtcdProcess, away: bool
) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    await kv.put(keys.address("10.99.0.1"), address("10.99.0.1", CLUSTER_ID << 16 | 1))
    outside = "cilium/cache/ip/v1/red/10.99.0.1"
    async with mirroring(etcd, mine, strict=False) as mirror:
        await until_synced(mirror)
    assert {POD, outside} <= (await cache(mine)).keys()
    if away:
        await etcd.kill()
    async with mirroring(etcd, mine, strict=True) as again:
        await until_cached(mine, outside, None)
        await eventually(lambda: not again.unproven)
        assert POD in await cache(mine)


async def test_a_history_that_was_compacted_while_the_peer_was_away_is_made_up_for(
    etcd: EtcdProcess, own: EtcdProcess
) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
        # Where the mirror does not find it, so that it comes back after all that happens now.
        await etcd.stop()
        port = etcd.port
        (etcd.port,) = free_ports(1)
        await etcd.start()
        kv = etcd.connection("admin-red")
        await kv.delete(keys.service("red", "default", "echo"))
        await kv.put(keys.address("10.5.1.8"), address("10.5.1.8"))
        await etcd.compact()
        await etcd.stop()
        etcd.port = port
        await etcd.start()
        await until_cached(mine, ECHO, None)
        assert mirror.figures().relists[Kind.SERVICES] == 1
        await until_cached(mine, "cilium/cache/ip/v1/red/10.5.1.8", address("10.5.1.8"))
        await eventually(lambda: mirror.view().state == "connected")


async def test_another_etcd_cluster_at_the_peers_address_is_believed_once_it_is_filled(
    etcd: EtcdProcess, own: EtcdProcess
) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
        before = await cache(mine)
        await etcd.stop()
        etcd.wipe()
        etcd.options.append("--initial-cluster-token=another")
        await etcd.start()
        await eventually(lambda: mirror.view().state == "failed")
        assert await cache(mine) == before
        kv = await restricted(etcd)
        await export(kv)
        await kv.put(keys.node("red", "red-2"), node("red-2", "10.5.2.0/24", "192.0.2.22"))
        await until_cached(mine, "cilium/cache/nodes/v1/red/red-2", node("red-2", "10.5.2.0/24", "192.0.2.22"))
        await eventually(lambda: mirror.view().state == "connected")
        assert len(await cache(mine)) == len(before) + 1


async def test_an_own_etcd_that_lost_everything_is_filled_again_even_if_the_peer_is_away(
    etcd: EtcdProcess, own: EtcdProcess
) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
        before = await cache(mine)
        await etcd.kill()
        await own.stop()
        own.wipe()
        await own.start()

        async def filled() -> bool:
            return await cache(mine) == before

        await eventually(despite_outages(filled))
        canary = await mine.get(keys.cache_canary(Kind.NODES, "red"))
        assert canary is not None


async def test_after_a_loss_of_the_own_etcd_canaries_come_back_behind_all_records(
    etcd: EtcdProcess, own: EtcdProcess
) -> None:
    """Readers take the canary's word for it that what is not there by then is gone."""
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
        later = [keys.identity(FIRST_IDENTITY + 100 + number) for number in range(1000)]
        for start in range(0, len(later), 100):
            await kv.commit([Change(key.encode(), identity()) for key in later[start : start + 100]])
        await eventually(lambda: mirror.view().records[Kind.IDENTITIES] == 1 + len(later))
        await own.stop()
        own.wipe()
        await own.start()
        prefix, canary = keys.cache_prefix(Kind.IDENTITIES, "red"), keys.cache_canary(Kind.IDENTITIES, "red")

        # A loss may be noticed twice, and all be written twice: then the canary as well.
        async def behind_all() -> bool:
            vouched = await mine.get(canary)
            written = [record.mod_revision async for page in mine.list(prefix) for record in page]
            return vouched is not None and len(written) == 1 + len(later) and max(written) < vouched.mod_revision

        await eventually(despite_outages(behind_all))


async def test_an_own_etcd_that_refuses_is_told_and_served_once_it_takes_writes(
    etcd: EtcdProcess, own: EtcdProcess
) -> None:
    """Nothing that was read of the peer is read again for it."""
    kv = await restricted(etcd)
    await export(kv)
    admin = AuthAdmin(own.connection())
    may_write = [Permission("readwrite", "cilium/"), Permission("readwrite", keys.PRIVATE)]
    await admin.ensure_role("mirror", may_write)
    await admin.ensure_user("mirror", ["mirror"])
    await own.enable_auth()
    async with mirroring(etcd, own.connection("mirror")) as mirror:
        await until_synced(mirror)
        await admin.ensure_role("mirror", [Permission("read", "cilium/")])
        await kv.put(keys.address("10.5.1.8"), address("10.5.1.8"))
        await eventually(lambda: mirror.view().stage == "own-etcd")
        assert "permission" in mirror.view().message
        assert mirror.figures().queue == 1
        await admin.ensure_role("mirror", may_write)
        await until_cached(own.connection(), "cilium/cache/ip/v1/red/10.5.1.8", address("10.5.1.8"))
        await eventually(lambda: mirror.view().state == "connected")
        assert not any(mirror.figures().relists.values())


async def test_a_slow_own_etcd_holds_up_the_reading_and_loses_nothing(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    wanted = {f"10.5.1.{number}": address(f"10.5.1.{number}") for number in range(10, 60)}
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
        own.freeze()
        for ip, value in wanted.items():
            await kv.put(keys.address(ip), value)
        await eventually(lambda: mirror.figures().queue == len(wanted))
        await asyncio.sleep(0)
        assert mirror.view().state == "connected"
        own.thaw()

        async def caught_up() -> bool:
            found: Connection = mine
            kept = await cache(found)
            return all(kept.get(f"cilium/cache/ip/v1/red/{ip}") == value for ip, value in wanted.items())

        await eventually(caught_up)
