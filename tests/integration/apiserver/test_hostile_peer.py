"""A peer that announces what is not its own, is malformed, or is too much: kept out, shown, let in once it is right."""

from functools import partial

import pytest
import zstandard

from apiserver import admission, mirror
from apiserver.claims import Claims
from apiserver.mirror import PeerSpec
from apiserver.quarantine import Quarantine
from clustermesh.kube.objects import PeerQuota
from clustermesh.kvstore.connection import Change, Connection
from clustermesh.wire import endpoint_slices, keys, records
from clustermesh.wire.endpoint_slices import ClusterEndpointSlice, SliceEndpoint
from clustermesh.wire.keys import DATAPATH_KINDS, Kind
from clustermesh.wire.records import (
    SERVICES_AND_SLICES,
    AddressRecord,
    Capabilities,
    ClusterConfig,
    ExportedPort,
    Port,
    ServiceExport,
    ServiceRecord,
)
from tests.integration.apiserver.exports import CLUSTER_ID, FIRST_IDENTITY, address, export, identity, node, service
from tests.integration.apiserver.history import recording
from tests.integration.apiserver.test_mirror import cache, mirroring, restricted, until_cached, until_synced
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually
from tests.unit.apiserver.ranges import cidr

pytestmark = pytest.mark.integration

POD = "cilium/cache/ip/v1/red/10.5.1.7"
OUTSIDE = "cilium/cache/ip/v1/red/10.5.99.1"
DATA = {
    "cilium/cache/nodes/v1/red/red-1",
    f"cilium/cache/identities/v1/red/id/{FIRST_IDENTITY + 1}",
    POD,
    "cilium/cache/services/v1/red/default/echo",
}


async def export_all_kinds(kv: Connection) -> None:
    await export(kv)
    capabilities = Capabilities(
        synced_canaries=True,
        max_connected_clusters=255,
        service_exports_enabled=True,
        endpoint_slices_export_mode=SERVICES_AND_SLICES,
    )
    await kv.put(keys.cluster_config("red"), records.encode(ClusterConfig(CLUSTER_ID, capabilities)))
    for kind in Kind:
        await kv.put(keys.state_canary(kind, "red"), b"now")


def backend(ip: str) -> bytes:
    return records.encode(
        ServiceRecord(
            cluster="red",
            namespace="default",
            name="echo",
            cluster_id=CLUSTER_ID,
            backends={ip: {"http": Port("TCP", 80)}},
        )
    )


def slice_of(ip: str, name: str = "echo-x") -> bytes:
    return endpoint_slices.encode(
        ClusterEndpointSlice(
            cluster="red",
            cluster_id=CLUSTER_ID,
            namespace="default",
            name=name,
            address_type="IPv4",
            endpoints=(SliceEndpoint(addresses=(ip,)),),
        )
    )


def service_export(name: str, cluster: str = "red") -> bytes:
    return records.encode(
        ServiceExport(
            cluster=cluster,
            namespace="default",
            name=name,
            export_creation_timestamp="2026-01-05T09:00:00Z",
            ports=(ExportedPort(port=80),),
            type="ClusterSetIP",
        )
    )


STATE = {kind: keys.state_prefix(kind, "red").encode() for kind in Kind}
HOSTILE: list[tuple[Kind, bytes, bytes, str]] = [
    (Kind.NODES, b"r1", node("r1", "10.7.0.0/16", "192.0.2.29"), "pod CIDR overlaps addresses of cluster green"),
    (Kind.NODES, b"r2", node("r2", "10.8.1.0/28", "192.0.2.29"), "pod CIDR overlaps addresses of cluster blue"),
    (Kind.NODES, b"r3", node("r3", "10.5.3.0/24", "192.0.2.71"), "node address belongs to cluster green"),
    (Kind.NODES, b"r4", node("r4", "10.5.4.0/24", "192.0.2.81"), "node address belongs to cluster blue"),
    (Kind.NODES, b"r5", node("r5", "0.0.0.0/0"), "pod CIDR too wide"),
    (Kind.NODES, b"r6", node("r6", "10.5.6.0/24", "127.0.0.1"), "node address in a special range"),
    (Kind.NODES, b"r7", node("r7", cluster="blue"), "node of another cluster"),
    (Kind.NODES, b"r\xff8", node("r8"), "key is no printable text"),
    (Kind.NODES, b"r9", b'{"Name":' + b"[" * 100_000, "undecodable nodes record"),
    (Kind.IDENTITIES, b"%d" % (7 << 16), identity(), "identity outside the peer's range"),
    (Kind.IDENTITIES, b"%d" % (FIRST_IDENTITY + 2), identity(app="x" * 70_000), "record too large"),
    (
        Kind.IDENTITIES,
        b"%d" % (FIRST_IDENTITY + 3),
        identity(cluster="green"),
        "identity without the peer's cluster label",
    ),
    (Kind.ADDRESSES, b"10.7.1.7", address("10.7.1.7"), "address belongs to cluster green"),
    (Kind.ADDRESSES, b"10.8.1.7", address("10.8.1.7"), "address belongs to cluster blue"),
    (Kind.ADDRESSES, b"10.5.99.1", address("10.5.99.1"), "address outside the peer's pod CIDRs"),
    (Kind.ADDRESSES, b"10.5.1.8", address("10.5.1.8", 1), "identity of a node on another address"),
    (Kind.ADDRESSES, b"10.5.1.9", address("10.5.1.9", 2), "reserved identity that no peer may give"),
    (
        Kind.ADDRESSES,
        b"10.5.1.10",
        records.encode(AddressRecord("10.5.1.10", host_ip="192.0.2.71", identity=FIRST_IDENTITY + 1)),
        "HostIP is no node of the peer",
    ),
    (Kind.ADDRESSES, b"10.5.1.11\n", address("10.5.1.11\n"), "key is no printable text"),
    (Kind.SERVICES, b"default/a", service("b"), "service name differs from key"),
    (Kind.SERVICES, b"default/b/c", service("b"), "malformed key"),
    (Kind.SERVICES, b"default/c", b" " * 1_000_001, "record too large"),
    (Kind.SERVICE_EXPORTS, b"default/a", service_export("a", "blue"), "service export of another cluster"),
    (Kind.ENDPOINT_SLICES, b"default/a", slice_of("10.8.1.7", "a"), "backend belongs to cluster blue"),
    (
        Kind.ENDPOINT_SLICES,
        b"default/bomb",
        zstandard.ZstdCompressor().compress(b"\0" * (64 << 20)),
        "undecodable endpointslices record",
    ),
]


async def test_hostile_records_of_every_sort_are_kept_out_shown_and_let_in_once_they_are_right(
    etcd: EtcdProcess, own: EtcdProcess
) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export_all_kinds(kv)
    claims = Claims()
    claims.hold("blue", "blue-1", [cidr("10.8.1.0/24"), cidr("192.0.2.81/32")])
    for kind, key, value, _ in HOSTILE:
        await kv.put(STATE[kind] + key, value)
    async with mirroring(etcd, mine, claims=claims) as red:
        await eventually(lambda: red.view().synced == frozenset(Kind))
        view = red.view().quarantined
        assert view.total == len(HOSTILE)
        assert view.by_reason == {
            reason: sum(other == reason for *_, other in HOSTILE) for reason in {reason for *_, reason in HOSTILE}
        }
        assert all(example.isprintable() for example in view.examples)
        assert set(await cache(mine)) == DATA
        # The same while it runs.
        for kind, key, value, _ in HOSTILE:
            await kv.put(STATE[kind] + key, value + b" ")
        await kv.put(keys.service_export("red", "default", "echo"), service_export("echo"))
        await until_cached(mine, "cilium/cache/serviceexports/v1/red/default/echo", service_export("echo"))
        # One that is corrected is let in, one that is deleted is forgotten.
        await kv.put(STATE[Kind.NODES] + b"r7", node("r7", "10.5.99.0/24", "192.0.2.27"))
        await until_cached(mine, OUTSIDE, address("10.5.99.1") + b" ")
        for kind, key, *_ in HOSTILE:
            await kv.delete(STATE[kind] + key)
        await eventually(lambda: red.view().quarantined.total == 0)
        assert set(await cache(mine)) == DATA | {"cilium/cache/serviceexports/v1/red/default/echo"}


async def test_this_clusters_own_new_node_takes_its_addresses_back(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export_all_kinds(kv)
    await kv.put(keys.service("red", "default", "echo"), backend("10.5.1.7"))
    await kv.put(keys.endpoint_slice("red", "default", "echo-x"), slice_of("10.5.1.7"))
    claims = Claims()
    async with mirroring(etcd, mine, claims=claims) as red:
        await eventually(lambda: red.view().synced == frozenset(Kind))
        before = await cache(mine)
        assert set(before) == DATA | {"cilium/cache/endpointslices/v1/red/default/echo-x"}
        claims.hold("green", "green-2", [cidr("10.5.0.0/16")])
        claims.settle()
        assert red.view().quarantined.by_reason == {
            "address belongs to cluster green": 1,
            "backend belongs to cluster green": 2,
            "pod CIDR overlaps addresses of cluster green": 1,
        }

        async def only_the_identity() -> bool:
            return len(await cache(mine)) == 1

        await eventually(only_the_identity)
        claims.release("green", "green-2")
        claims.settle()

        async def as_before() -> bool:
            return await cache(mine) == before

        await eventually(as_before)
        assert red.view().quarantined.total == 0


async def test_beyond_the_quota_records_wait_until_there_is_room(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    for number in range(8, 12):
        await kv.put(keys.address(f"10.5.1.{number}"), address(f"10.5.1.{number}"))
    spec = PeerSpec("red", CLUSTER_ID, (etcd.endpoint,), quota=PeerQuota(records=6))
    async with mirroring(etcd, mine, spec=spec) as red:
        await until_synced(red)
        view = red.view()
        assert view.quarantined.by_reason == {"over the quota of records": 2}
        assert (view.used_records, len(await cache(mine))) == (6, 6)
        assert view.used_bytes == sum(
            len(value) + len(key.partition("/v1/red/")[2].removeprefix("id/"))
            for key, value in (await cache(mine)).items()
        )
        # Two that are there make room for the two that wait.
        gone = sorted(key for key in await cache(mine) if key.startswith(POD[: POD.rindex("/")]))[:2]
        for key in gone:
            await kv.delete(keys.address(key.rpartition("/")[2]))
        await eventually(lambda: red.view().quarantined.total == 0)

        async def all_of_them() -> bool:
            return len(await cache(mine)) == 6 and not set(gone) & set(await cache(mine))

        await eventually(all_of_them)


async def test_policy_decides_for_records_that_are_there(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    await kv.put(keys.address("10.5.99.1"), address("10.5.99.1"))
    claims = Claims()
    for strict in (True, False, True):
        async with mirroring(etcd, mine, claims=claims, strict=strict) as red:
            await until_cached(mine, OUTSIDE, None if strict else address("10.5.99.1"))
            await eventually(lambda red=red, strict=strict: red.view().quarantined.total == int(strict))  # type: ignore[misc]
            assert red.view().strict is strict
            await until_cached(mine, POD, address("10.5.1.7"))


async def test_what_was_refused_and_forgotten_is_listed_again_when_it_may_be_right(
    etcd: EtcdProcess, own: EtcdProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "Quarantine", partial(Quarantine, most=3))
    monkeypatch.setattr(mirror, "LIST_AGAIN", 0.2)
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    late = [f"10.5.99.{number}" for number in range(1, 9)]
    for ip in late:
        await kv.put(keys.address(ip), address(ip))
    async with mirroring(etcd, mine) as red:
        await until_synced(red)
        assert red.view().quarantined.total == len(late)
        await kv.put(keys.node("red", "red-2"), node("red-2", "10.5.99.0/24", "192.0.2.22"))
        for ip in late:
            await until_cached(mine, f"cilium/cache/ip/v1/red/{ip}", address(ip))
        await eventually(lambda: red.view().quarantined.total == 0)
        assert set(await cache(mine)) == {
            *DATA,
            "cilium/cache/nodes/v1/red/red-2",
            *(f"cilium/cache/ip/v1/red/{ip}" for ip in late),
        }
        # Also what was let in that way is followed.
        await kv.delete(keys.address(late[0]))
        await until_cached(mine, f"cilium/cache/ip/v1/red/{late[0]}", None)


async def test_a_list_made_again_is_believed_only_if_the_peer_is_complete_by_then(
    etcd: EtcdProcess, own: EtcdProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admission, "Quarantine", partial(Quarantine, most=1))
    monkeypatch.setattr(mirror, "LIST_AGAIN", 0.1)
    caplog.set_level("INFO")
    kv, mine, claims = await restricted(etcd), own.connection(), Claims()
    await export(kv)
    for ip in ("10.5.99.1", "10.5.99.2"):
        await kv.put(keys.address(ip), address(ip))
    async with mirroring(etcd, mine, claims=claims) as red:
        await until_synced(red)
        await etcd.stop()
        claims.hold("blue", "blue-1", [cidr("10.9.1.0/24")])
        claims.settle()
        await eventually(lambda: f"listing its {Kind.ADDRESSES} again" in caplog.text)
        etcd.wipe()
        async with recording(mine) as history:
            await etcd.start()
            refilled = await restricted(etcd)
            await export(refilled, canaries=False)
            await refilled.delete(keys.address("10.5.1.7"))
            await eventually(lambda: "filling its etcd again" in caplog.text)
            await history.caught_up()
            assert history.of(POD)[1:] == []
        for kind in DATAPATH_KINDS:
            await refilled.put(keys.state_canary(kind, "red"), b"now")
        await until_cached(mine, POD, None)


async def test_a_flood_is_slowed_down_and_nothing_of_it_is_lost(etcd: EtcdProcess, own: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    spec = PeerSpec("red", CLUSTER_ID, (etcd.endpoint,), quota=PeerQuota(changes_per_second=100))
    pods = [f"10.5.1.{number}" for number in range(8, 108)]
    async with mirroring(etcd, mine, spec=spec) as red:
        await until_synced(red)
        for round_ in range(17):
            await kv.commit([Change(keys.address(ip).encode(), address(ip, FIRST_IDENTITY + round_), 0) for ip in pods])
        await eventually(lambda: red.view().throttled)
        for ip in pods:
            await until_cached(mine, f"cilium/cache/ip/v1/red/{ip}", address(ip, FIRST_IDENTITY + 16))
        await eventually(lambda: not red.view().throttled)
        assert red.figures().throttled > 0
        assert red.figures().events[Kind.ADDRESSES] == 1 + 17 * len(pods)


async def test_a_node_that_comes_and_goes_counts_with_all_that_is_judged_for_its_sake(
    etcd: EtcdProcess, own: EtcdProcess
) -> None:
    kv, mine = await restricted(etcd), own.connection()
    await export(kv)
    pods = [f"10.5.2.{number}" for number in range(1, 251)]
    for start in range(0, len(pods), 50):
        await kv.commit([Change(keys.address(ip).encode(), address(ip), 0) for ip in pods[start : start + 50]])
    spec = PeerSpec("red", CLUSTER_ID, (etcd.endpoint,), quota=PeerQuota(changes_per_second=50))
    behind = f"cilium/cache/ip/v1/red/{pods[-1]}"
    async with mirroring(etcd, mine, spec=spec) as red:
        await until_synced(red)
        await kv.put(keys.node("red", "red-2"), node("red-2", "10.5.2.0/24", "192.0.2.22"))
        await until_cached(mine, behind, address(pods[-1]))
        await kv.delete(keys.node("red", "red-2"))
        await until_cached(mine, behind, None)
        await kv.put(keys.node("red", "red-2"), node("red-2", "10.5.2.0/24", "192.0.2.22"))
        await eventually(lambda: red.view().throttled or red.figures().throttled > 0)
