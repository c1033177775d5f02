"""A mirror copies what a peer exports, after checking it, and keeps it through whatever happens to the peer."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from apiserver.claims import Claims
from apiserver.cluster import ClusterIdentity
from apiserver.mirror import Mirror, PeerSpec, forget_peer
from apiserver.users import EtcdUsers
from clustermesh.kvstore.connection import Connection, TlsPem
from clustermesh.kvstore.lease import Lease
from clustermesh.pki import CertificateAuthority
from clustermesh.wire import keys, records
from clustermesh.wire.keys import DATAPATH_KINDS, Kind
from clustermesh.wire.records import ClusterConfig
from tests.integration.apiserver.exports import (
    CLUSTER_ID,
    FIRST_IDENTITY,
    address,
    config,
    export,
    identity,
    node,
    service,
)
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually
from tests.unit.apiserver.ranges import cidr

pytestmark = pytest.mark.integration

GREEN = ClusterIdentity("green", 7)
LEASE_ID = 0x7EE
# What `export` writes: a peer without service exports and endpoint slices.
ONE_EACH = {kind: int(kind in DATAPATH_KINDS) for kind in Kind}


@asynccontextmanager
async def mirroring(
    peer: EtcdProcess,
    own: Connection,
    *,
    tls: TlsPem | None = None,
    cluster_id: int = CLUSTER_ID,
    strict: bool = True,
    spec: PeerSpec | None = None,
    claims: Claims | None = None,
) -> AsyncIterator[Mirror]:
    claims = claims or Claims()
    claims.hold("green", "green-1", [cidr("10.7.1.0/24"), cidr("192.0.2.71/32")])
    lease = Lease(own, 60, LEASE_ID)
    mirror = Mirror(
        spec or PeerSpec("red", cluster_id, (peer.endpoint,), strict),
        tls or peer.client_pem("remote-green"),
        cluster=GREEN,
        own=own,
        lease=lease,
        claims=claims,
        owner_of_id=lambda _: None,
        changed=lambda: None,
    )
    async with asyncio.TaskGroup() as tasks:
        background = [tasks.create_task(lease.run()), tasks.create_task(mirror.run())]
        try:
            async with asyncio.timeout(60):
                yield mirror
        finally:
            for task in background:
                task.cancel()


async def restricted(peer: EtcdProcess) -> Connection:
    """The peer's etcd as its own API server sets it up, with the user of green; a connection that may write."""
    users = EtcdUsers(peer.connection(), "red")
    await users.ensure()
    await users.set_peers(frozenset({"green"}))
    return peer.connection("admin-red")


async def cache(own: Connection) -> dict[str, bytes]:
    return {kv.key.decode(): kv.value async for page in own.list("cilium/cache/") for kv in page}


async def until_synced(mirror: Mirror) -> None:
    await eventually(lambda: mirror.view().synced == frozenset(DATAPATH_KINDS))


async def until_cached(own: Connection, key: str, value: bytes | None) -> None:
    async def as_wanted() -> bool:
        found = await own.get(key)
        return (found.value if found else None) == value

    await eventually(as_wanted)


async def test_everything_is_copied_byte_for_byte_below_the_peers_name(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
        assert await cache(mine) == {
            "cilium/cache/nodes/v1/red/red-1": node("red-1"),
            f"cilium/cache/identities/v1/red/id/{FIRST_IDENTITY + 1}": identity(),
            "cilium/cache/ip/v1/red/10.5.1.7": address("10.5.1.7"),
            "cilium/cache/services/v1/red/default/echo": service("echo"),
        }
        said = await mine.get(keys.cluster_config("red"))
        assert said is not None
        capabilities = records.decode(ClusterConfig, said.value).capabilities
        assert capabilities.cached and capabilities.synced_canaries
        view = mirror.view()
        assert view.state == "connected"
        assert dict(view.records) == ONE_EACH
        # The agents may rely on this order: config, records, canary.
        canary = await mine.get(keys.cache_canary(Kind.ADDRESSES, "red"))
        pod = await mine.get("cilium/cache/ip/v1/red/10.5.1.7")
        assert canary is not None and pod is not None
        assert said.mod_revision < pod.mod_revision < canary.mod_revision

        await kv.put(keys.address("10.5.1.8"), address("10.5.1.8"))
        await kv.delete(keys.address("10.5.1.7"))
        await until_cached(mine, "cilium/cache/ip/v1/red/10.5.1.8", address("10.5.1.8"))
        await until_cached(mine, "cilium/cache/ip/v1/red/10.5.1.7", None)


async def test_nothing_is_trusted_before_the_peer_says_that_it_is_complete(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv, canaries=False)
    async with mirroring(etcd, mine) as mirror:
        await eventually(lambda: mirror.view().state == "connected")
        await kv.put(keys.state_canary(Kind.NODES, "red"), b"now")
        await eventually(lambda: mirror.view().synced == {Kind.NODES})
        assert set(await cache(mine)) == {"cilium/cache/nodes/v1/red/red-1"}


async def test_bad_records_are_kept_out_and_the_last_good_value_stays(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    pod = "cilium/cache/ip/v1/red/10.5.1.7"
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
        await kv.put(keys.address("10.5.1.7"), b"{malformed")
        await kv.put(keys.identity(7 << 16 | 1), identity())
        await kv.put(keys.node("red", "red-9"), node("red-9", "10.7.0.0/16", "192.0.2.29"))
        await kv.put(keys.node("red", "red-8"), node("red-8", "10.5.8.0/24", "192.0.2.71"))
        await kv.put(keys.address("10.5.99.1"), address("10.5.99.1"))
        await eventually(lambda: mirror.view().quarantined.total == 5)
        assert mirror.view().quarantined.by_reason == {
            "address outside the peer's pod CIDRs": 1,
            "identity outside the peer's range": 1,
            "node address belongs to cluster green": 1,
            "pod CIDR overlaps addresses of cluster green": 1,
            "undecodable addresses record": 1,
        }
        assert (await cache(mine))[pod] == address("10.5.1.7")
        assert len(await cache(mine)) == 4

        # A node that gives that address to pods lets it in; a good value ends the quarantine of another.
        await kv.put(keys.node("red", "red-2"), node("red-2", "10.5.99.0/24", "192.0.2.22"))
        await until_cached(mine, "cilium/cache/ip/v1/red/10.5.99.1", address("10.5.99.1"))
        await kv.put(keys.address("10.5.1.7"), address("10.5.1.7", FIRST_IDENTITY + 2))
        await until_cached(mine, pod, address("10.5.1.7", FIRST_IDENTITY + 2))
        await eventually(lambda: mirror.view().quarantined.total == 3)
        await kv.put(keys.address("10.5.1.7"), b"{malformed again")
        await eventually(lambda: mirror.view().quarantined.total == 4)

    # Also a mirror that starts anew keeps the last good value, and drops it when the peer deletes the record.
    async with mirroring(etcd, mine) as again:
        await eventually(lambda: again.view().quarantined.total == 4)
        assert (await cache(mine))[pod] == address("10.5.1.7", FIRST_IDENTITY + 2)
        await kv.delete(keys.address("10.5.1.7"))
        await until_cached(mine, pod, None)


async def test_a_peer_that_is_down_loses_nothing_and_catches_up(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
        before = await cache(mine)
        await etcd.kill()
        await eventually(lambda: mirror.view().stage == "tcp")
        assert mirror.view().state == "failed"
        assert await cache(mine) == before
        await etcd.start()
        await kv.delete(keys.service("red", "default", "echo"))
        await until_cached(mine, "cilium/cache/services/v1/red/default/echo", None)
        await eventually(lambda: mirror.view().state == "connected")


async def test_a_quiet_peer_proves_that_it_lives(etcd: EtcdProcess, own: EtcdProcess) -> None:
    await export(await restricted(etcd))
    async with mirroring(etcd, own.connection()) as mirror:
        await until_synced(mirror)
        quiet, proved = mirror.view().quiet, mirror.view().last_event
        await eventually(lambda: mirror.view().last_event > proved + 1, within=5)
        assert mirror.view().quiet > quiet + 1


async def test_a_frozen_peer_is_named_within_seconds_and_loses_nothing(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
        before = await cache(mine)
        etcd.freeze()
        await eventually(lambda: mirror.view().state == "failed", within=10)
        view = mirror.view()
        assert view.stage == "timeout"
        assert view.synced == frozenset(DATAPATH_KINDS)
        assert 3 < time.time() - view.last_event < 10
        assert await cache(mine) == before
        etcd.thaw()
        await eventually(lambda: mirror.view().state == "connected", within=15)
        figures = mirror.figures()
        assert (figures.state, figures.reconnects, figures.queue) == ("connected", 1, 0)
        assert dict(figures.events) == ONE_EACH
        assert figures.silence is not None and figures.silence < 5
        assert time.time() - mirror.view().last_event < 5


async def test_an_etcd_that_comes_back_empty_is_believed_only_once_it_is_filled(
    etcd: EtcdProcess, own: EtcdProcess
) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
        before = await cache(mine)
        await etcd.stop()
        etcd.wipe()
        await etcd.start()
        await export(await restricted(etcd), canaries=False)
        refilled = etcd.connection("admin-red")
        await refilled.delete(keys.service("red", "default", "echo"))
        await eventually(lambda: mirror.view().state == "connected")
        assert await cache(mine) == before
        for kind in DATAPATH_KINDS:
            await refilled.put(keys.state_canary(kind, "red"), b"now")
        await until_cached(mine, "cilium/cache/services/v1/red/default/echo", None)
        assert len(await cache(mine)) == 3


async def test_a_restart_while_the_peer_is_away_keeps_its_records(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
    before, revision = await cache(mine), await mine.current_revision()
    await etcd.kill()
    async with mirroring(etcd, mine) as again:
        await eventually(lambda: again.view().state == "failed")
        assert dict(again.view().records) == ONE_EACH
        assert await cache(mine) == before
        assert await mine.current_revision() == revision


async def test_a_foreign_ca_fails_at_tls(etcd: EtcdProcess, own: EtcdProcess) -> None:
    await export(await restricted(etcd))
    pem = etcd.client_pem("remote-green")
    foreign = TlsPem(CertificateAuthority.create("red").cert, pem.cert, pem.key)
    async with mirroring(etcd, own.connection(), tls=foreign) as mirror:
        await eventually(lambda: mirror.view().stage == "tls")
        assert "not signed by the CA" in mirror.view().message


async def test_a_server_in_another_clusters_name_fails_at_tls(etcd: EtcdProcess, own: EtcdProcess) -> None:
    await export(await restricted(etcd))
    await etcd.stop()
    pair = etcd.ca.issue_server("etcd", ["blue.mesh.cilium.io", "127.0.0.1"])
    etcd.server.cert.write_bytes(pair.cert)
    etcd.server.key.write_bytes(pair.key)
    await etcd.start()
    async with mirroring(etcd, own.connection()) as mirror:
        await eventually(lambda: mirror.view().stage == "tls")
        assert "red.mesh.cilium.io" in mirror.view().message


async def test_a_user_without_rights_fails_at_permission_and_recovers(etcd: EtcdProcess, own: EtcdProcess) -> None:
    users = EtcdUsers(etcd.connection(), "red")
    await users.ensure()
    await export(etcd.connection("admin-red"))
    async with mirroring(etcd, own.connection()) as mirror:
        await eventually(lambda: mirror.view().stage in ("permission", "authentication"))
        await users.set_peers(frozenset({"green"}))
        await until_synced(mirror)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (config(cluster_id=6), "has cluster id 6, but spec.clusterID says 5"),
        (config(cluster_id=GREEN.id), "as this cluster"),
        (config(max_clusters=511), "numbers identities for 511 clusters"),
        (b"{", "does not decode"),
    ],
)
async def test_a_peer_that_does_not_fit_is_not_mirrored(
    etcd: EtcdProcess, own: EtcdProcess, written: bytes, said: str
) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    await kv.put(keys.cluster_config("red"), written)
    async with mirroring(etcd, mine) as mirror:
        await eventually(lambda: mirror.view().stage == "config")
        assert said in mirror.view().message
        assert await cache(mine) == {}
        assert await mine.get(keys.cluster_config("red")) is None


async def test_a_forgotten_peer_goes_config_first_and_leaves_nothing(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
    seen: list[bool] = []

    async def detached() -> None:
        seen.append(await mine.get(keys.cluster_config("red")) is None and bool(await cache(mine)))

    await forget_peer(mine, "red", detached=detached, grace=5)
    assert seen == [True]
    assert [kv.key async for page in mine.list("cilium/") for kv in page] == []
    assert await mine.get(keys.peer_settings("red")) is None


async def test_agents_learn_what_runs_at_a_peer_before_they_learn_of_the_peer(
    etcd: EtcdProcess, own: EtcdProcess
) -> None:
    mine = own.connection()
    spec = PeerSpec("red", CLUSTER_ID, (etcd.endpoint,), strict=False, implementation="cilium")
    async with mirroring(etcd, mine, spec=spec):
        # Also while the peer has nothing to say.
        settings = keys.peer_settings("red")
        await until_cached(mine, settings, b'{"implementation":"cilium","strict":false}')
        await export(await restricted(etcd))
        await eventually(lambda: mine.get(keys.cluster_config("red")))
        written = [await mine.get(key) for key in (settings, keys.cluster_config("red"))]
        assert all(written)
        revisions = [found.mod_revision for found in written if found is not None]
        assert revisions == sorted(revisions)
