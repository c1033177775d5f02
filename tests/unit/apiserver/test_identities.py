"""How numbers are dealt out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiserver.cluster import ClusterIdentity
from apiserver.identities import IdentityAllocator, IdentityTable, RangeExhausted
from apiserver.places import Places
from clustermesh.kube.errors import AlreadyExists, NotFound
from clustermesh.kube.objects import ClusterMeshIdentity, ClusterMeshIdentitySpec, ObjectMeta, Resource
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.writer import Writer
from clustermesh.tasks import end
from clustermesh.wire import keys, labels
from clustermesh.wire.identity import MINIMAL_ALLOCATION, Numbering
from tests.integration.waiting import eventually

FIRST = 65536 + 256


def table(size: int = 4) -> IdentityTable:
    return IdentityTable(65536, FIRST + size - 1)


def test_numbers_are_dealt_out_in_order_and_not_twice() -> None:
    numbers = table()
    assert [numbers.reserve(), numbers.reserve()] == [FIRST, FIRST + 1]


def test_a_number_that_was_given_back_returns_last() -> None:
    numbers = table(3)
    numbers.set(numbers.reserve(), "a")
    numbers.remove(FIRST)
    assert [numbers.reserve() for _ in range(3)] == [FIRST + 1, FIRST + 2, FIRST]


def test_a_full_range_says_so() -> None:
    numbers = table(2)
    numbers.set(FIRST, "a")
    numbers.reserve()
    with pytest.raises(RangeExhausted, match="all 2 identity numbers from 65792 to 65793 are taken"):
        numbers.reserve()


def test_after_a_start_numbers_go_on_behind_the_highest() -> None:
    numbers = table()
    numbers.set(FIRST + 1, "a")
    assert numbers.reserve() == FIRST + 2


def test_of_two_numbers_for_the_same_labels_the_lowest_counts() -> None:
    numbers = table()
    for number in (FIRST + 2, FIRST):
        numbers.set(number, "a")
    assert numbers.lookup("a") == FIRST
    numbers.remove(FIRST)
    assert numbers.lookup("a") == FIRST + 2
    numbers.remove(FIRST + 2)
    assert numbers.lookup("a") is None


@given(st.lists(st.tuples(st.integers(FIRST, FIRST + 5), st.sampled_from(["", "a", "b", "c"]))))
def test_lookup_agrees_with_what_was_set(steps: list[tuple[int, str]]) -> None:
    numbers, model = table(6), dict[int, str]()
    for number, text in steps:
        if text:
            numbers.set(number, text)
            model[number] = text
        else:
            numbers.remove(number)
            model.pop(number, None)
    assert numbers.of_namespace("") == model
    for text in "abc":
        assert numbers.lookup(text) == min((n for n, its in model.items() if its == text), default=None)
    assert len(numbers) == len(model)


@pytest.mark.parametrize(
    ("max_clusters", "cluster_id", "first", "last", "count"),
    [
        (255, 1, 65792, 131071, 65280),
        (255, 255, 16711936, 16777215, 65280),
        (511, 1, 33024, 65535, 32512),
        (511, 256, 8388864, 8421375, 32512),
        (511, 511, 16744704, 16777215, 32512),
    ],
)
def test_a_cluster_deals_out_its_whole_range_and_nothing_else(
    max_clusters: int, cluster_id: int, first: int, last: int, count: int
) -> None:
    numbering = Numbering(max_clusters)
    numbers = IdentityTable(*numbering.range(cluster_id))
    dealt = [numbers.reserve() for _ in range(count)]
    assert (dealt[0], dealt[-1], len(set(dealt))) == (first, last, count)
    with pytest.raises(RangeExhausted, match=f"all {count} identity numbers from {first} to {last} are taken"):
        numbers.reserve()
    assert {numbering.cluster_of(number) for number in dealt} == {cluster_id}
    assert last < 1 << 24, "it travels in 24 bits"


@given(st.sampled_from([255, 511]), st.data())
def test_no_cluster_deals_out_what_is_reserved_or_anothers(max_clusters: int, data: st.DataObject) -> None:
    numbering = Numbering(max_clusters)
    one, other = data.draw(st.lists(st.integers(1, max_clusters), min_size=2, max_size=2, unique=True))
    first, last = numbering.range(one)
    number = data.draw(st.integers(first, last))
    assert number >= MINIMAL_ALLOCATION, "below are reserved, well-known and user-reserved numbers"
    assert not numbering.range(other)[0] <= number <= numbering.range(other)[1]
    assert numbering.cluster_of(number) == one


RED = ClusterIdentity("red", 1)


class Objects:
    """ClusterMeshIdentity objects as Kubernetes keeps them."""

    def __init__(self) -> None:
        self.labels: dict[str, dict[str, str]] = {}

    async def create(self, _: Resource[ClusterMeshIdentity], item: ClusterMeshIdentity) -> ClusterMeshIdentity:
        await asyncio.sleep(0)
        if item.name in self.labels:
            raise AlreadyExists(409, "AlreadyExists", f"{item.name} is there")
        self.labels[item.name] = dict(item.spec.labels)
        return item

    async def get(self, _: Resource[ClusterMeshIdentity], name: str) -> ClusterMeshIdentity:
        if name not in self.labels:
            raise NotFound(404, "NotFound", f"no {name}")
        return ClusterMeshIdentity(metadata=ObjectMeta(name=name), spec=ClusterMeshIdentitySpec(self.labels[name]))

    async def delete(self, _: Resource[ClusterMeshIdentity], name: str, *, missing_ok: bool = False) -> None:
        self.labels.pop(name, None)


class World:
    """An allocator with a few numbers, and what it tells."""

    def __init__(self, size: int) -> None:
        self.objects = Objects()
        self.writer = Writer(Connection(("http://127.0.0.1:1",), None), None)
        self.written = asyncio.Event()
        self.written.set()
        self.numbered: list[str] = []
        self.used: set[int] = set()
        self.trouble = ""
        self.allocator = IdentityAllocator(
            RED,
            self.objects,  # type: ignore[arg-type]
            Places(self.writer, keys.identity, keys.local_identity),
            flush=self._flush,
            released=self._flush,
            numbered=self.numbered.append,
            in_use=self.used.__contains__,
            is_global=lambda namespace: namespace == "demo",
            trouble=self._trouble,
            grace=0.04,
        )
        self.allocator.table = table(size)

    async def _flush(self) -> None:
        await self.written.wait()

    def _trouble(self, problem: str) -> None:
        self.trouble = problem


@asynccontextmanager
async def working(size: int = 4) -> AsyncIterator[World]:
    world = World(size)
    task = asyncio.create_task(world.allocator.run())
    try:
        yield world
    finally:
        await end(task)


def text(app: str, namespace: str = "demo") -> str:
    return labels.encode({labels.CLUSTER: "red", labels.NAMESPACE: namespace, "k8s:app": app})


async def test_a_number_counts_once_readers_can_know_what_it_means() -> None:
    async with working() as world:
        world.written.clear()
        world.allocator.want([text("a")])
        await eventually(lambda: bool(world.objects.labels))
        assert world.allocator.table.lookup(text("a")) == FIRST
        assert world.allocator.lookup(text("a")) is None, "it is not in etcd yet"
        world.written.set()
        await eventually(lambda: world.numbered == [text("a")])
        assert world.allocator.lookup(text("a")) == FIRST


async def test_the_same_labels_in_another_order_have_the_same_number() -> None:
    async with working() as world:
        given = labels.decode(text("a"))
        world.allocator.want([labels.encode(given), labels.encode(dict(reversed(given.items())))])
        await world.allocator.settled()
        assert len(world.objects.labels) == 1


async def test_identities_of_a_namespace_that_is_not_global_are_private() -> None:
    async with working() as world:
        world.allocator.want([text("a"), text("a", "quiet")])
        await world.allocator.settled()
        kept = [world.allocator.table.lookup(text("a")), world.allocator.table.lookup(text("a", "quiet"))]
        assert None not in kept
        public, private = kept
        assert world.writer.known(keys.identity(public or 0)) and world.writer.known(keys.local_identity(private or 0))
        assert world.writer.known(keys.identity(private or 0)) is None
        assert world.allocator.stage("quiet", public=True)
        assert not world.allocator.stage("quiet", public=True)
        assert world.writer.known(keys.identity(private or 0)) is not None


async def test_when_all_numbers_are_taken_others_do_not_wait_and_a_free_one_is_used() -> None:
    async with working(2) as world:
        world.allocator.want([text("a"), text("b")])
        await world.allocator.settled()
        world.used |= {FIRST, FIRST + 1}
        world.allocator.want([text("c")])
        await eventually(lambda: "all 2 identity numbers from 65792 to 65793 are taken" in world.trouble)
        async with asyncio.timeout(10):
            await world.allocator.settled()
        assert len(world.objects.labels) == 2
        world.used.discard(FIRST)
        world.allocator.start_collecting()
        await eventually(lambda: text("c") in world.numbered)
        await eventually(lambda: not world.trouble)
        assert world.allocator.lookup(text("c")) == FIRST
