"""The tables as a whole: what the kernel holds follows from the records, not from how they came."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustermesh.kvstore.feed import Event
from clustermesh.wire import keys, records
from clustermesh.wire.keys import Kind
from clustermesh.wire.private import PeerSettings
from clustermesh.wire.records import AddressRecord, Port, PortMaps
from nodeagent.datapath.abi import BackendValue, IpcacheKey, IpcacheValue, Map, ServiceValue
from nodeagent.mesh import Cluster, Mesh
from nodeagent.reconciler import Reconciler
from tests.unit.nodeagent.memory_map import MemoryMap, memory_maps
from tests.unit.nodeagent.records_of import HERE, address, event, local, node, ports, remote, slice_of
from tests.unit.wire.strategies import damaged, misshaped

IDS = {"red": 1, "green": 2, "blue": 3}


class World:
    """A mesh over maps in memory, fed by name."""

    def __init__(self, maps: dict[str, MemoryMap] | None = None, peers: Sequence[str] = ("green", "blue")) -> None:
        self.maps = memory_maps() if maps is None else maps
        self.reconciler = Reconciler(self.maps)
        self.mesh = Mesh(HERE, self.reconciler)
        self.mesh.adopt(self.reconciler.adopt())
        self.pods: dict[str, int] = {}
        self.mesh.on_pods = self._on_pods
        for name in peers:
            self.mesh.add_peer(name, IDS[name])

    def _on_pods(self, changes: Sequence[tuple[str, int | None]]) -> None:
        for ip, identity in changes:
            if identity is None:
                self.pods.pop(ip, None)
            else:
                self.pods[ip] = identity

    def cluster(self, name: str) -> Cluster:
        return self.mesh.clusters[name]

    def feed(self, cluster: str, kind: Kind, *events: Event) -> None:
        self.mesh.apply(self.cluster(cluster), kind, prefix(cluster, kind), events, 1.0)

    def sync(self, cluster: str) -> None:
        for kind in Kind:
            self.mesh.set_synced(self.cluster(cluster), kind)

    async def kernel(self) -> dict[str, dict[bytes, bytes]]:
        await self.reconciler.flush()
        return {name: dict(one.content) for name, one in self.maps.items()}


def prefix(cluster: str, kind: Kind) -> str:
    if cluster == "red":
        return keys.LOCAL_SERVICES if kind is Kind.SERVICES else keys.state_prefix(kind, cluster)
    return keys.cache_prefix(kind, cluster)


def of(cluster: str, kind: Kind, tail: str, record: object) -> Event:
    return event(prefix(cluster, kind), tail, record)  # type: ignore[arg-type]


POD = of("green", Kind.ADDRESSES, "10.2.1.5", address("10.2.1.5", "192.0.2.2", 131079))
GREEN_1 = of("green", Kind.NODES, "green-1", node("green", 2, "green-1", "192.0.2.2", "10.2.1.0/24"))
RED_1 = of("red", Kind.NODES, "red-1", node("red", 1, "red-1", "192.0.2.1", "10.1.1.0/24"))
WEB = of("red", Kind.SERVICES, "shop/web", local("web", ports(a1=80)))
GREEN_SERVICE = remote("web", "green", 2, ports(a2=80))
GREEN_WEB = of("green", Kind.SERVICES, "shop/web", GREEN_SERVICE)


async def test_a_peer_that_leaves_leaves_nothing() -> None:
    world = World(peers=["green"])
    world.feed("red", Kind.SERVICES, WEB)
    before = await world.kernel()
    world.feed("green", Kind.NODES, GREEN_1)
    world.feed("green", Kind.ADDRESSES, POD)
    world.feed("green", Kind.SERVICES, GREEN_WEB)
    during = await world.kernel()
    assert during != before
    assert len(during[Map.BACKENDS]) == 2
    world.mesh.remove_peer("green")
    assert await world.kernel() == before
    assert not world.mesh.routes.entries


async def test_local_pods_are_those_on_this_node_whichever_record_came_first() -> None:
    world = World()
    world.feed("red", Kind.ADDRESSES, of("red", Kind.ADDRESSES, "10.1.1.5", address("10.1.1.5", "192.0.2.1", 65543)))
    world.feed("red", Kind.ADDRESSES, of("red", Kind.ADDRESSES, "10.1.2.5", address("10.1.2.5", "192.0.2.8", 65544)))
    assert world.pods == {}
    world.feed("red", Kind.NODES, RED_1)
    assert world.pods == {"10.1.1.5": 65543}
    world.feed("red", Kind.ADDRESSES, of("red", Kind.ADDRESSES, "10.1.1.5", None))
    assert world.pods == {}


async def test_an_address_that_moves_out_of_peers_sight_is_never_missed() -> None:
    world = World()
    world.feed("red", Kind.NODES, RED_1)
    record = address("10.1.1.5", "192.0.2.1", 65543)

    def stands(prefix: str, value: AddressRecord | None) -> None:
        world.mesh.apply(world.mesh.own, Kind.ADDRESSES, prefix, [event(prefix, "10.1.1.5", value)], 1.0)

    public = prefix("red", Kind.ADDRESSES)
    stands(public, record)
    before, pods = await world.kernel(), dict(world.pods)
    assert pods == {"10.1.1.5": 65543}
    for first, second in ((keys.LOCAL_ADDRESSES, public), (public, keys.LOCAL_ADDRESSES)):
        for place, value in ((first, record), (second, None)):
            stands(place, value)
            assert await world.kernel() == before
            assert world.pods == pods
    stands(public, None)
    assert world.pods == {}
    assert IpcacheKey.host("10.1.1.5").pack() not in (await world.kernel())[Map.IPCACHE]


async def test_a_record_that_does_not_decode_is_named_and_the_last_good_one_stays() -> None:
    world = World()
    world.feed("green", Kind.ADDRESSES, POD)
    good = await world.kernel()
    bad = of("green", Kind.ADDRESSES, "10.2.1.5", b"{")
    world.feed("green", Kind.ADDRESSES, bad, of("green", Kind.ADDRESSES, "not-an-ip", b"{}"))
    assert await world.kernel() == good
    assert set(world.mesh.rejected) == {bad.key.decode(), prefix("green", Kind.ADDRESSES) + "not-an-ip"}
    world.feed("green", Kind.ADDRESSES, POD, of("green", Kind.ADDRESSES, "not-an-ip", None))
    assert bad.key.decode() not in world.mesh.rejected


async def test_a_record_under_anothers_key_is_kept_out() -> None:
    world = World()
    world.feed("green", Kind.ADDRESSES, of("green", Kind.ADDRESSES, "10.2.1.6", address("10.2.1.5", "", 131079)))
    world.feed("green", Kind.NODES, of("green", Kind.NODES, "x", node("green", 2, "y", "192.0.2.2")))
    world.feed("green", Kind.SERVICES, of("green", Kind.SERVICES, "shop/x", remote("y", "green", 2, {})))
    assert len(world.mesh.rejected) == 3
    assert not any((await world.kernel()).values())


async def test_a_range_is_an_entry_of_its_length_below_those_of_its_addresses() -> None:
    world = World()
    record = msgspec.structs.replace(address("10.2.64.0", "192.0.2.2", 131080), mask="///AAA==")
    world.feed("green", Kind.ADDRESSES, of("green", Kind.ADDRESSES, "10.2.64.0/18", record), POD)
    ipcache = (await world.kernel())[Map.IPCACHE]
    assert IpcacheValue.unpack(ipcache[IpcacheKey("10.2.64.0", 18).pack()]).identity == 131080
    assert IpcacheValue.unpack(ipcache[IpcacheKey.host("10.2.1.5").pack()]).identity == 131079
    for tail, mask in (("10.2.64.0/19", "///AAA=="), ("10.2.64.0", "///AAA=="), ("10.2.64.0/18", "AAA")):
        bad = msgspec.structs.replace(record, mask=mask)
        world.feed("green", Kind.ADDRESSES, of("green", Kind.ADDRESSES, tail, bad))
    assert len(world.mesh.rejected) == 3
    whole = msgspec.structs.replace(record, mask="/////w==")
    world.feed("green", Kind.ADDRESSES, of("green", Kind.ADDRESSES, "10.2.64.0", whole))
    assert len(world.mesh.rejected) == 2
    assert IpcacheKey.host("10.2.64.0").pack() in (await world.kernel())[Map.IPCACHE]
    world.feed("green", Kind.ADDRESSES, of("green", Kind.ADDRESSES, "10.2.64.0/18", None))
    assert IpcacheKey("10.2.64.0", 18).pack() not in (await world.kernel())[Map.IPCACHE]


async def test_a_pod_whose_node_is_not_known_yet_is_known_by_its_record() -> None:
    """Nodes, addresses and identities of a peer arrive in any order."""
    world, other_way = World(), World()
    world.feed("green", Kind.ADDRESSES, POD)
    value = (await world.kernel())[Map.IPCACHE][IpcacheKey.host("10.2.1.5").pack()]
    assert (IpcacheValue.unpack(value).identity, IpcacheValue.unpack(value).tunnel) == (131079, "192.0.2.2")
    world.feed("green", Kind.NODES, GREEN_1)
    other_way.feed("green", Kind.NODES, GREEN_1)
    other_way.feed("green", Kind.ADDRESSES, POD)
    assert await world.kernel() == await other_way.kernel()


async def test_the_own_cluster_wins_an_address_that_a_peer_claims() -> None:
    world = World()
    world.feed("green", Kind.ADDRESSES, POD)
    own = of("red", Kind.ADDRESSES, "10.2.1.5", address("10.2.1.5", "192.0.2.1", 65543))
    world.feed("red", Kind.ADDRESSES, own)
    key = IpcacheKey.host("10.2.1.5").pack()
    assert IpcacheValue.unpack((await world.kernel())[Map.IPCACHE][key]).cluster_id == 1
    world.feed("red", Kind.ADDRESSES, of("red", Kind.ADDRESSES, "10.2.1.5", None))
    assert IpcacheValue.unpack((await world.kernel())[Map.IPCACHE][key]).cluster_id == 2


async def test_a_restart_keeps_a_silent_peers_backends_and_all_numbers() -> None:
    first = World(peers=["green"])
    first.feed("red", Kind.SERVICES, WEB)
    first.feed("green", Kind.SERVICES, GREEN_WEB)
    first.feed("green", Kind.ADDRESSES, POD)
    before = await first.kernel()

    second = World(first.maps, peers=["green"])
    second.mesh.set_peers_known()
    second.feed("red", Kind.SERVICES, WEB)
    second.sync("red")
    assert await second.kernel() == before  # green has said nothing yet

    second.feed("green", Kind.ADDRESSES, POD)
    second.feed("green", Kind.SERVICES, GREEN_WEB)
    second.sync("green")
    assert await second.kernel() == before
    assert second.reconciler.writes == 0


async def test_a_restart_removes_what_went_meanwhile_once_its_source_is_read() -> None:
    first = World(peers=["green", "blue"])
    other = of("red", Kind.SERVICES, "shop/other", local("other", ports(a1=80), vip="10.96.0.2"))
    first.feed("red", Kind.SERVICES, WEB, other)
    first.feed("green", Kind.SERVICES, GREEN_WEB)
    first.feed("green", Kind.ADDRESSES, POD)
    blue = of("blue", Kind.ADDRESSES, "10.3.0.1", address("10.3.0.1", "192.0.2.3", 196610))
    first.feed("blue", Kind.ADDRESSES, blue)
    await first.kernel()

    second = World(first.maps, peers=["green"])  # blue is a peer no more
    second.mesh.set_peers_known()
    second.feed("red", Kind.SERVICES, WEB)
    second.sync("red")
    second.sync("green")
    fresh = World(peers=["green"])
    fresh.feed("red", Kind.SERVICES, WEB)
    assert await second.kernel() == await fresh.kernel()


async def test_what_arrives_of_a_peer_after_its_removal_is_ignored() -> None:
    world = World(peers=["green"])
    green = world.cluster("green")
    world.mesh.remove_peer("green")
    world.mesh.apply(green, Kind.ADDRESSES, prefix("green", Kind.ADDRESSES), [POD], 1.0)
    world.mesh.set_synced(green, Kind.ADDRESSES)
    assert not any((await world.kernel()).values())


async def test_a_kind_is_applied_when_its_list_is_in_the_kernel() -> None:
    world = World(peers=["green"])
    green = world.cluster("green")
    world.feed("green", Kind.ADDRESSES, POD)
    world.mesh.set_synced(green, Kind.ADDRESSES)
    world.mesh.advance(green, 42)
    assert not world.mesh.applied(green)
    assert world.mesh.applied_revision(green) == 0
    await world.kernel()
    assert world.mesh.applied(green) == {Kind.ADDRESSES}
    assert world.mesh.applied_revision(green) == 42
    assert world.mesh.counts(green)["addresses"] == 1


BY_SLICES = records.ClusterConfig(2, records.Capabilities(endpoint_slices_export_mode=records.SLICES_ONLY))
BY_SERVICES = records.ClusterConfig(2)


def sliced(*ready: str, number: int = 1, service: str = "web") -> Event:
    return of("green", Kind.ENDPOINT_SLICES, f"shop/{service}-{number}", slice_of(service, *ready, number=number))


def backends(kernel: dict[str, dict[bytes, bytes]]) -> set[str]:
    """Addresses behind services."""
    return {BackendValue.unpack(value).address for value in kernel[Map.BACKENDS].values()}


async def test_a_peer_without_service_records_serves_by_its_slices() -> None:
    by_records = World(peers=["green"])
    by_records.feed("red", Kind.SERVICES, WEB)
    by_records.feed("green", Kind.SERVICES, GREEN_WEB)

    world = World(peers=[])
    green = world.mesh.add_peer("green", 2, BY_SLICES.datapath_kinds())
    world.feed("red", Kind.SERVICES, WEB)
    world.feed("green", Kind.ENDPOINT_SLICES, sliced("10.0.0.3", number=2), sliced("10.0.0.2"))
    assert backends(await world.kernel()) == {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
    world.feed("green", Kind.ENDPOINT_SLICES, of("green", Kind.ENDPOINT_SLICES, "shop/web-2", None))
    assert await world.kernel() == await by_records.kernel()

    assert world.mesh.counts(green) == {"nodes": 0, "identities": 0, "addresses": 0, "endpointslices": 1}
    assert not world.mesh.complete(green)
    world.sync("green")
    await world.kernel()
    assert world.mesh.complete(green)
    assert Kind.SERVICES not in world.mesh.applied(green)

    world.mesh.remove_peer("green")
    assert backends(await world.kernel()) == {"10.0.0.1"}


async def test_a_slice_that_is_damaged_or_of_another_is_kept_out_and_the_last_good_one_stays() -> None:
    world = World(peers=[])
    world.mesh.add_peer("green", 2, BY_SLICES.datapath_kinds())
    world.feed("red", Kind.SERVICES, WEB)
    world.feed("green", Kind.ENDPOINT_SLICES, sliced("10.0.0.2"))
    good = await world.kernel()
    foreign = slice_of("web", "10.0.0.9", cluster=("blue", 3))
    for bad in (b"", b"{}", sliced("10.0.0.9", number=7).value, foreign):
        world.feed("green", Kind.ENDPOINT_SLICES, of("green", Kind.ENDPOINT_SLICES, "shop/web-1", bad))
        assert await world.kernel() == good
        assert len(world.mesh.rejected) == 1


async def test_a_peer_that_changes_from_services_to_slices_and_back_loses_no_backend_in_between() -> None:
    world = World(peers=["green"])
    green = world.cluster("green")
    other = of("red", Kind.SERVICES, "shop/other", local("other", {}, vip="10.96.0.2"))
    green_other = of("green", Kind.SERVICES, "shop/other", remote("other", "green", 2, ports(a4=80)))
    world.feed("red", Kind.SERVICES, WEB, other)
    world.feed("green", Kind.SERVICES, GREEN_WEB, green_other)
    world.sync("green")
    before = await world.kernel()
    assert world.mesh.complete(green)

    world.mesh.set_kinds(green, BY_SLICES.datapath_kinds())
    gone = [of("green", Kind.SERVICES, name, None) for name in ("shop/web", "shop/other")]
    world.feed("green", Kind.SERVICES, *gone)  # of the old kind, and too late
    world.feed("green", Kind.ENDPOINT_SLICES, sliced("10.0.0.3", number=1))
    assert await world.kernel() == before
    assert not world.mesh.complete(green)
    world.feed("green", Kind.ENDPOINT_SLICES, sliced("10.0.0.2", number=2), sliced("10.0.0.5", service="none-of-ours"))
    world.mesh.set_synced(green, Kind.ENDPOINT_SLICES)
    assert backends(await world.kernel()) == {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
    assert world.mesh.complete(green)
    assert world.mesh.counts(green)["endpointslices"] == 3

    world.mesh.set_kinds(green, BY_SERVICES.datapath_kinds())
    world.feed("green", Kind.SERVICES, GREEN_WEB)
    assert backends(await world.kernel()) == {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
    world.feed("green", Kind.SERVICES, green_other)
    world.mesh.set_synced(green, Kind.SERVICES)
    assert await world.kernel() == before
    assert world.mesh.counts(green)["services"] == 2


async def test_a_peer_that_answers_no_probes_is_sent_none() -> None:
    world = World(peers=["green"])
    green = world.cluster("green")
    world.feed("green", Kind.NODES, GREEN_1)
    assert world.mesh.probes(green) == ["192.0.2.2"]
    world.mesh.set_settings("green", PeerSettings(implementation="cilium"))
    assert world.mesh.probes(green) == []
    world.mesh.set_settings("green", PeerSettings())
    assert world.mesh.probes(green) == ["192.0.2.2"]


@pytest.mark.parametrize(
    "bad",
    [
        {"10.0.0.2": {"http": Port("TCP", 65536)}},
        {"10.0.0.2": {"http": Port("TCP", -1)}},
        {"10.0.0.2": {"other": Port("TCP", 1 << 70)}},
        {"": {"http": Port("TCP", 80)}},
        {"nowhere": {"http": Port("TCP", 80)}},
        {"fe80::1%eth0": {}},
        {"10.0.0.2\0": {}},
    ],
)
async def test_a_service_that_no_map_can_hold_is_kept_out_and_hinders_nobody(bad: PortMaps) -> None:
    world = World(peers=["green"])
    world.feed("red", Kind.SERVICES, WEB)
    world.feed("green", Kind.SERVICES, GREEN_WEB)
    good = await world.kernel()
    for service in (remote("web", "green", 2, bad), msgspec.structs.replace(GREEN_SERVICE, frontends=bad)):
        world.feed("green", Kind.SERVICES, of("green", Kind.SERVICES, "shop/web", service))
        assert len(world.mesh.rejected) == 1
        world.feed("red", Kind.SERVICES, of("red", Kind.SERVICES, "shop/web", None), WEB)
        assert await world.kernel() == good


GOOD: dict[Kind, Event] = {
    Kind.NODES: GREEN_1,
    Kind.ADDRESSES: POD,
    Kind.SERVICES: GREEN_WEB,
}


@pytest.mark.parametrize("kind", GOOD)
@given(data=st.data())
async def test_a_record_of_any_shape_is_taken_whole_or_not_at_all(kind: Kind, data: st.DataObject) -> None:
    world = World(peers=["green"])
    world.feed("red", Kind.SERVICES, WEB)
    good = GOOD[kind]
    world.feed("green", kind, good)
    before = await world.kernel()
    assert good.value is not None
    raw = data.draw(misshaped(good.value) | damaged(good.value))
    world.feed("green", kind, Event(good.key, raw, 2))
    after = await world.kernel()
    assert_sound(after)
    if world.mesh.rejected:
        assert after == before
    world.feed("red", Kind.SERVICES, WEB)  # nothing of it stands in the way of others
    world.feed("green", kind, good)
    assert await world.kernel() == before
    assert not world.mesh.rejected


# Any sequence of changes leads where a fresh start with the final records leads.

pods = st.integers(1, 4).map(lambda n: f"10.9.0.{n}")
hosts = st.integers(1, 2).map(lambda n: f"192.0.2.{n}")
some_backends = st.dictionaries(st.integers(1, 3).map(lambda n: f"a{n}"), st.sampled_from([80, 81]), max_size=3).map(
    lambda chosen: ports(**chosen)
)


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, Kind, str, object]:
    cluster = draw(st.sampled_from(sorted(IDS)))
    number = IDS[cluster]
    kind = draw(st.sampled_from([Kind.NODES, Kind.ADDRESSES, Kind.SERVICES]))
    gone = draw(st.booleans()) and draw(st.booleans())
    if kind is Kind.ADDRESSES:
        ip = draw(pods)
        return cluster, kind, ip, None if gone else address(ip, draw(hosts), (number << 16) + draw(st.integers(0, 2)))
    if kind is Kind.NODES:
        name = f"{cluster}-{draw(st.integers(1, 2))}"
        cidr = draw(st.sampled_from([None, "10.9.1.0/24", "10.9.2.0/24"]))
        return cluster, kind, name, None if gone else node(cluster, number, name, draw(hosts), cidr)
    name = draw(st.sampled_from(["web", "api"]))
    if gone:
        return cluster, kind, f"shop/{name}", None
    if cluster == "red":
        affinity = draw(st.sampled_from(["none", "local", "remote"]))
        vip = draw(st.sampled_from(["10.96.0.1", "10.96.0.2"]))
        return cluster, kind, f"shop/{name}", local(name, draw(some_backends), affinity=affinity, vip=vip)
    return cluster, kind, f"shop/{name}", remote(name, cluster, number, draw(some_backends), shared=draw(st.booleans()))


@settings(max_examples=150, deadline=None)
@given(st.lists(changes(), max_size=25), st.integers(0, 25))
async def test_changes_one_by_one_lead_where_a_fresh_start_leads(
    steps: list[tuple[str, Kind, str, object]], restart_at: int
) -> None:
    world = World()
    final: dict[tuple[str, Kind, str], object] = {}
    for number, (cluster, kind, tail, record) in enumerate(steps):
        if number == restart_at:
            await world.kernel()
            world = World(world.maps)  # a new agent over the same kernel
            world.mesh.set_peers_known()
            for (name, of_kind, key), known in final.items():
                world.feed(name, of_kind, of(name, of_kind, key, known))
            for name in IDS:
                world.sync(name)
        final[cluster, kind, tail] = record
        world.feed(cluster, kind, of(cluster, kind, tail, record))
        if number % 3 == 0:
            await world.kernel()

    fresh = World()
    for (cluster, kind, tail), record in sorted(final.items(), key=lambda item: item[0]):
        if record is not None:
            fresh.feed(cluster, kind, of(cluster, kind, tail, record))
    assert await world.kernel() == await fresh.kernel()
    # A node whose record went keeps its pods, which go on running; an agent that starts then knows of none.
    if fresh.mesh.own_node is not None and restart_at > len(steps):
        assert world.pods.keys() == fresh.pods.keys()
    assert_sound(await world.kernel())


def assert_sound(kernel: dict[str, dict[bytes, bytes]]) -> None:
    """Every slot leads to a backend, and no backend is unused."""
    numbers = [ServiceValue.unpack(value) for value in kernel[Map.SERVICES].values()]
    used = {value.backend_id for value in numbers if value.backend_id}
    assert used == {int.from_bytes(key, "little") for key in kernel[Map.BACKENDS]}
    assert sum(value.count for value in numbers) == len([value for value in numbers if value.backend_id])
    for value in kernel[Map.BACKENDS].values():
        assert BackendValue.unpack(value).cluster_id in IDS.values()
