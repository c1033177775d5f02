"""Numbers for sets of labels, kept as ClusterMeshIdentity objects so that they survive the loss of etcd.

The object's name is the number, so Kubernetes itself arbitrates: whoever creates the object first has the number. A
number goes back when no pod has used it for a grace period, and numbers are dealt out in order, so that none returns
soon and means something else while readers still remember it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice

from apiserver.cluster import ClusterIdentity
from apiserver.places import Places
from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import AlreadyExists, CredentialError, KubeError, NotFound
from clustermesh.kube.objects import (
    CLUSTER_MESH_IDENTITIES,
    ClusterMeshIdentity,
    ClusterMeshIdentitySpec,
    ObjectMeta,
    ObjectRef,
)
from clustermesh.kube.reflector import Backoff
from clustermesh.wire import labels
from clustermesh.wire.errors import RecordError

log = logging.getLogger(__name__)

GRACE = 900.0  # seconds a number is kept that no pod uses
_OFFSET = 256  # numbers at the start of the range that are left free, as Cilium's reserved ones are in cluster 0
_AT_ONCE = 32  # numbers created at a time


class RangeExhausted(Exception):
    """Every number of this cluster is taken."""


class IdentityTable:
    """Which number means which labels. Labels are texts as written on the wire."""

    def __init__(self, first: int, last: int) -> None:
        self._first = first + _OFFSET
        self._last = last
        self._cursor = self._first
        self._labels: dict[int, str] = {}
        self._numbers: dict[str, tuple[int, ...]] = {}  # ascending; more than one only after a race
        self._reserved: set[int] = set()
        self._of_namespace: dict[str, set[int]] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def of_namespace(self, namespace: str) -> dict[int, str]:
        """Its numbers and what they mean."""
        return {number: self._labels[number] for number in self._of_namespace.get(namespace, ())}

    def numbers(self) -> list[int]:
        return list(self._labels)

    def lookup(self, text: str) -> int | None:
        numbers = self._numbers.get(text)
        return numbers[0] if numbers else None

    def labels_of(self, number: int) -> str | None:
        return self._labels.get(number)

    def set(self, number: int, text: str) -> None:
        """When several numbers have the same labels, the lowest is the one that `lookup` gives."""
        self.remove(number)
        self._labels[number] = text
        self._numbers[text] = tuple(sorted((*self._numbers.get(text, ()), number)))
        self._of_namespace.setdefault(labels.namespace_of(text), set()).add(number)
        if number >= self._cursor:
            self._cursor = number + 1

    def remove(self, number: int) -> None:
        self._reserved.discard(number)
        text = self._labels.pop(number, None)
        if text is None:
            return
        namespace = labels.namespace_of(text)
        self._of_namespace[namespace].discard(number)
        if not self._of_namespace[namespace]:
            del self._of_namespace[namespace]
        twins = tuple(other for other in self._numbers[text] if other != number)
        if twins:
            self._numbers[text] = twins
        else:
            del self._numbers[text]

    def reserve(self) -> int:
        """The next number that nobody has; give it back with `release` or keep it with `set`."""
        for _ in range(self._last - self._first + 1):
            if self._cursor > self._last:
                self._cursor = self._first
            number = self._cursor
            self._cursor += 1
            if number not in self._labels and number not in self._reserved:
                self._reserved.add(number)
                return number
        raise RangeExhausted(
            f"all {self._last - self._first + 1} identity numbers from {self._first} to {self._last} are taken:"
            " use fewer distinct sets of pod labels"
        )

    def release(self, number: int) -> None:
        self._reserved.discard(number)


class IdentityAllocator:
    """Creates, heals and collects ClusterMeshIdentity objects and writes them to etcd.

    `flush` waits until identities that were handed in are in etcd, `released` until no address there has one that no
    pod uses. `numbered` is called with labels once their number is there; `in_use` tells whether a pod has a number,
    `is_global` whether peers may know of a namespace; `trouble` is told why numbers cannot be had, and "" when they
    can again.
    """

    def __init__(
        self,
        cluster: ClusterIdentity,
        client: KubeClient,
        places: Places,
        *,
        flush: Callable[[], Awaitable[None]],
        released: Callable[[], Awaitable[None]],
        numbered: Callable[[str], None],
        in_use: Callable[[int], bool],
        is_global: Callable[[str], bool],
        trouble: Callable[[str], None],
        grace: float = GRACE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._places = places
        self._flush = flush
        self._released = released
        self._numbered = numbered
        self._in_use = in_use
        self._is_global = is_global
        self._trouble = trouble
        self._grace = grace
        self._clock = clock
        self._range = cluster.numbering.range(cluster.id)
        self.table = IdentityTable(*self._range)
        self._turn = 0
        self._unwritten: dict[int, int] = {}  # numbers that may not be in etcd yet, by the turn in which they were put
        self._unused_since: dict[int, float] = {}
        self._wanted: dict[str, None] = {}
        self._lost: dict[int, str] = {}
        self._work = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._collecting = asyncio.Event()

    # What other parts ask and tell

    def lookup(self, text: str) -> int | None:
        """The number of labels, once readers can know what it means."""
        number = self.table.lookup(text)
        return None if number in self._unwritten else number

    async def written(self) -> None:
        """Wait until all numbers up to now are in etcd."""
        turn = self._turn
        await self._flush()
        self._unwritten = {number: put for number, put in self._unwritten.items() if put > turn}

    def want(self, texts: Iterable[str]) -> None:
        """Ask for numbers; `numbered` will tell."""
        for text in texts:
            self._wanted[text] = None
        self._wake()

    def learn(self, identity: ClusterMeshIdentity) -> None:
        """An object that is there, whoever made it."""
        known = self._read(identity)
        if known is None:
            return
        number, text = known
        before = self.table.labels_of(number)
        if before == text:
            return
        if before is not None and self._in_use(number):
            log.error(
                "ClusterMeshIdentity %d was changed from %r to %r while pods use it: delete it to have it restored",
                number,
                before,
                text,
            )
            return
        self.table.set(number, text)
        self._export(number, text)
        if text in self._wanted:
            self._wake()

    def forget(self, ref: ObjectRef) -> None:
        """An object that is gone; one that pods use is made again."""
        if not ref.name.isdecimal():
            return
        number = int(ref.name)
        text = self.table.labels_of(number)
        if text is None:
            return
        if self._in_use(number):
            log.warning("ClusterMeshIdentity %d was deleted while pods use it: restoring it", number)
            self._lost[number] = text
            self._wake()
        else:
            self.table.remove(number)
            self._unused_since.pop(number, None)
            self._places.delete(str(number))

    def stage(self, namespace: str, *, public: bool) -> bool:
        """Write a namespace's identities where they will belong; whether there were any that had not been written yet.

        They stay in their old place as well until that is vacated.
        """
        new = [
            number
            for number, text in self.table.of_namespace(namespace).items()
            if self._places.put(str(number), text.encode(), public=public)
        ]
        return bool(new)

    def start_collecting(self) -> None:
        """All pods are known now, so an unused number is really unused."""
        self._collecting.set()

    async def settled(self) -> None:
        """Wait until every wish is granted, but for those that cannot be because all numbers are taken."""
        await self._settled.wait()

    # What it does itself

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._allocate())
            tasks.create_task(self._collect())

    async def _allocate(self) -> None:
        backoff = Backoff(cap=30.0)
        while True:
            await self._work.wait()
            wishes = list(islice(self._wanted, _AT_ONCE))
            losses = list(islice(self._lost.items(), _AT_ONCE))
            results = await asyncio.gather(
                *(self._number(text) for text in wishes),
                *(self._restore(number, text) for number, text in losses),
                return_exceptions=True,
            )
            await self.written()
            failures = [result for result in results if isinstance(result, BaseException)]
            for text, result in zip(wishes, results, strict=False):
                if isinstance(result, int):
                    self._wanted.pop(text, None)
                    self._numbered(text)
            if not self._wanted and not self._lost:
                self._work.clear()
                self._settled.set()
            if failures:
                await self._report(failures, backoff)
            else:
                backoff.reset()
                self._trouble("")

    async def _report(self, failures: list[BaseException], backoff: Backoff) -> None:
        for failure in failures:
            if not isinstance(failure, KubeError | CredentialError | RangeExhausted):
                raise failure
        pause = backoff.pause()
        log.error("%d identities wait, next attempt in %.1f s: %s", len(failures), pause, failures[0])
        self._trouble(f"{len(self._wanted)} sets of labels wait for a number: {failures[0]}")
        if all(isinstance(failure, RangeExhausted) for failure in failures):
            self._settled.set()  # as far as it ever will be: the others do not wait for those that cannot have one
        await asyncio.sleep(pause)

    async def _number(self, text: str) -> int:
        while (known := self.table.lookup(text)) is None:
            number = self.table.reserve()
            try:
                await self._create(number, text)
            except AlreadyExists:
                # Somebody else was faster, perhaps for the same labels.
                self.table.release(number)
                await self._look(number)
            finally:
                self.table.release(number)
        return known

    async def _create(self, number: int, text: str) -> None:
        identity = ClusterMeshIdentity(
            metadata=ObjectMeta(name=str(number)), spec=ClusterMeshIdentitySpec(labels.decode(text))
        )
        try:
            await self._client.create(CLUSTER_MESH_IDENTITIES, identity)
        except NotFound as error:
            raise KubeError(
                error.status, error.reason, f"{error}: kubectl apply -f deploy/crds/clustermeshidentities.yaml"
            ) from None
        log.info("identity %d: %s", number, text)
        self.table.set(number, text)
        self._export(number, text)

    async def _look(self, number: int) -> None:
        try:
            self.learn(await self._client.get(CLUSTER_MESH_IDENTITIES, str(number)))
        except NotFound:
            log.debug("identity %d went away again", number)

    async def _restore(self, number: int, text: str) -> None:
        try:
            if self._in_use(number):
                await self._create(number, text)
        except AlreadyExists:
            log.debug("identity %d is there again", number)
        self._lost.pop(number, None)

    async def _collect(self) -> None:
        await self._collecting.wait()
        while True:
            await asyncio.sleep(min(60.0, self._grace / 4))
            now = self._clock()
            for number in self.table.numbers():
                if self._in_use(number):
                    self._unused_since.pop(number, None)
                elif now - self._unused_since.setdefault(number, now) >= self._grace:
                    await self._give_back(number)

    async def _give_back(self, number: int) -> None:
        await self._released()
        text = self.table.labels_of(number)
        if text is None or self._in_use(number):
            return  # meanwhile
        # From here on a new pod with these labels gets another number.
        self.table.remove(number)
        try:
            await self._client.delete(CLUSTER_MESH_IDENTITIES, str(number), missing_ok=True)
        except (KubeError, CredentialError) as error:
            log.warning("identity %d is not used any more but stays: %s", number, error)
            self.table.set(number, text)
            return
        self._unused_since.pop(number, None)
        self._places.delete(str(number))
        log.info("identity %d is not used any more: given back", number)

    def _export(self, number: int, text: str) -> None:
        self._turn += 1
        self._unwritten[number] = self._turn
        self._places.put(str(number), text.encode(), public=self._is_global(labels.namespace_of(text)))

    def _read(self, identity: ClusterMeshIdentity) -> tuple[int, str] | None:
        """Number and labels; None, with a word in the log, for an object that is none of this cluster's."""
        name = identity.name
        number = int(name) if name.isascii() and name.isdecimal() else -1
        first, last = self._range
        if not first <= number <= last or str(number) != name:
            log.warning("ClusterMeshIdentity %s ignored: its name is no number from %d to %d", name, first, last)
            return None
        text = labels.encode(identity.spec.labels)
        try:
            cluster = labels.decode(text).get(labels.CLUSTER)
        except RecordError as error:
            log.warning("ClusterMeshIdentity %s ignored: %s", name, error)
            return None
        if cluster != self._cluster.name:
            log.warning(
                "ClusterMeshIdentity %s ignored: label %s is not %s: delete the object if the cluster was renamed",
                name,
                labels.CLUSTER,
                self._cluster.name,
            )
            return None
        return number, text

    def _wake(self) -> None:
        if self._wanted or self._lost:
            self._settled.clear()
            self._work.set()
