"""The one writer of the kernel maps: brings them to what is desired, in batches and in an order that packets survive.

`applied` is what the kernel holds as far as we know, `pending` what it should hold differently; together they are the
desired content, so no entry is kept twice. A round takes all that is pending. Within a round, what others refer to is
written first and removed last: nodes, addresses, endpoints, backends, slots of services, services.

Everything but a large batch's system call runs on the event loop, one round at a time.
"""

import asyncio
import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, NoReturn, Protocol, TypeVar

from nodeagent.compile.slots import is_master
from nodeagent.datapath.abi import BackendValue, IpcacheValue, Map, NodeValue
from nodeagent.datapath.errors import DatapathError

log = logging.getLogger(__name__)

BATCH = 8192  # entries a system call
_THREAD_FROM = 1024  # smaller batches take less time than the way to a thread and back
_RETRY_SECONDS = 5.0

T = TypeVar("T")
V = TypeVar("V", bytes, None)
Entries = list[tuple[bytes, bytes]]


class KernelMap(Protocol):
    """A map in the kernel, raw bytes in and out; DatapathError when the kernel refuses."""

    def update_batch(self, entries: Entries) -> object: ...

    def delete_batch(self, keys: list[bytes]) -> object:
        """Keys that are not there are passed over."""

    def items(self) -> Iterable[tuple[bytes, bytes]]: ...


class Stage(NamedTuple):
    """Entries that are written together."""

    map_name: str
    holds: Callable[[bytes], bool]


class Difference(NamedTuple):
    """An entry that is not as it was written; None: it is not there, or shall not be."""

    wanted: bytes | None
    real: bytes | None


class Refusal(NamedTuple):
    """What the kernel would not take (value None: a removal) and why."""

    value: bytes | None
    reason: str


def _any(_: bytes) -> bool:
    return True


def _slot(key: bytes) -> bool:
    return not is_master(key)


STAGES: Sequence[Stage] = (
    Stage(Map.NODES, _any),
    Stage(Map.IPCACHE, _any),
    Stage(Map.ENDPOINTS, _any),
    Stage(Map.BACKENDS, _any),
    Stage(Map.SERVICES, _slot),
    Stage(Map.SERVICES, is_master),
)

_OWNERS: Mapping[str, Callable[[bytes], int]] = {
    Map.IPCACHE: lambda value: IpcacheValue.unpack(value).cluster_id,
    Map.NODES: lambda value: NodeValue.unpack(value).cluster_id,
    Map.BACKENDS: lambda value: BackendValue.unpack(value).cluster_id,
}


class Reconciler:
    """Owns the content of `maps`. Nobody else may write to them.

    `repairs`: entries that audits found changed behind our back. `refused`: entries that the kernel does not take,
    with its reason; they are tried again every few seconds.
    """

    def __init__(self, maps: Mapping[str, KernelMap], *, audit_seconds: float = 60.0) -> None:
        self._maps = {stage.map_name: maps[stage.map_name] for stage in STAGES}
        self._audit_seconds = audit_seconds
        self.applied: dict[str, dict[bytes, bytes]] = {name: {} for name in self._maps}
        self._pending: dict[str, dict[bytes, bytes | None]] = {name: {} for name in self._maps}
        self._left: dict[str, dict[int, list[bytes]]] = {name: {} for name in self._maps}
        self._round = 1  # the round that takes what is submitted now
        self._done = 0
        # Keys that rounds have written or are about to, since the audit under way began.
        self._moved: dict[str, set[bytes]] | None = None
        self._work = asyncio.Event()
        self._progress = asyncio.Condition()
        self.repairs = 0
        self.writes = 0
        self.refused: dict[str, dict[bytes, Refusal]] = {name: {} for name in self._maps}

    def adopt(self) -> Mapping[str, Mapping[bytes, bytes]]:
        """Read what an earlier agent left. All of it stays until `prune` is called for its source."""
        for name, kernel in self._maps.items():
            self.applied[name] = dict(kernel.items())
            owner_of = _OWNERS.get(name)
            left: dict[int, list[bytes]] = {}
            for key, value in self.applied[name].items():
                left.setdefault(owner_of(value) if owner_of else 0, []).append(key)
            self._left[name] = left
        return self.applied

    # For the tables

    def submit(self, map_name: str, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Desired entries; None removes. The last word on a key counts."""
        pending = self._pending[map_name]
        pending.update(changes)
        if pending:
            self._work.set()

    def prune(self, map_name: str, cluster_id: int | None, wanted: Container[bytes]) -> None:
        """Remove adopted entries of a cluster (None: of all) that are not `wanted`."""
        left = self._left[map_name]
        sources = list(left) if cluster_id is None else [cluster_id]
        stale = [key for source in sources for key in left.pop(source, ()) if key not in wanted]
        if stale:
            log.info("removing %d entries of %s that an earlier agent left", len(stale), map_name)
            self.submit(map_name, ((key, None) for key in stale))

    def mark(self) -> int:
        """What `flushed` reaches once everything submitted so far has been brought to the kernel."""
        return self._round if self._dirty() else self._round - 1

    @property
    def flushed(self) -> int:
        return self._done

    async def wait(self, mark: int) -> None:
        """Return once `flushed` has reached `mark`."""
        async with self._progress:
            await self._progress.wait_for(lambda: self._done >= mark)

    # For reports

    @property
    def refusals(self) -> int:
        return sum(map(len, self.refused.values()))

    def desired(self, map_name: str) -> dict[bytes, bytes]:
        """What the map should hold."""
        wanted: dict[bytes, bytes | None] = {**self.applied[map_name], **self._pending[map_name]}
        return {key: value for key, value in wanted.items() if value is not None}

    # Work

    async def run(self) -> None:
        """Flush what is submitted, try again what was refused, audit now and then, for ever."""
        async with asyncio.TaskGroup() as tasks:
            await self._run(tasks)

    async def _run(self, tasks: asyncio.TaskGroup) -> NoReturn:
        loop = asyncio.get_running_loop()
        audit_at = loop.time() + self._audit_seconds
        while True:
            due = min(audit_at, loop.time() + _RETRY_SECONDS) if self.refusals else audit_at
            try:
                async with asyncio.timeout_at(due):
                    await self._work.wait()
            except TimeoutError:
                self._resubmit_refused()
            await self.flush()
            if loop.time() >= audit_at:
                audit_at = loop.time() + self._audit_seconds
                if self._moved is None:
                    tasks.create_task(self._compare(self._begin_audit()))

    async def flush(self) -> None:
        """One round: all that is pending goes to the kernel."""
        self._work.clear()
        taken, self._pending = self._pending, {name: {} for name in self._maps}
        this, self._round = self._round, self._round + 1
        if self._moved is not None:
            for name, changes in taken.items():
                self._moved[name].update(changes)
        for stage in STAGES:
            await self._write(stage, taken[stage.map_name])
        for stage in reversed(STAGES):
            await self._remove(stage, taken[stage.map_name])
        self._done = this
        async with self._progress:
            self._progress.notify_all()

    async def audit(self) -> None:
        """Compare with the kernel and repair what differs. Not while a round is under way."""
        await self._compare(self._begin_audit())
        if self._dirty():
            await self.flush()

    def _begin_audit(self) -> dict[str, dict[bytes, bytes]]:
        """What the kernel should hold now. Between two rounds, so that it is all or nothing of each."""
        self._moved = {name: set() for name in self._maps}
        return {name: dict(applied) for name, applied in self.applied.items()}

    async def _compare(self, believed: dict[str, dict[bytes, bytes]]) -> None:
        """Rounds go on meanwhile: a large map takes seconds to read. What they touch is not judged this time."""
        moved = self._moved
        assert moved is not None
        try:
            for name, kernel in self._maps.items():
                found = await asyncio.to_thread(_differences, kernel, believed.pop(name))
                wrong = {key: difference for key, difference in found.items() if key not in moved[name]}
                if wrong:
                    self._repair(name, wrong)
        finally:
            self._moved = None

    def _repair(self, name: str, wrong: Mapping[bytes, Difference]) -> None:
        self.repairs += len(wrong)
        log.warning("%s: repairing %d entries that are not as they were written", name, len(wrong))
        applied, pending = self.applied[name], self._pending[name]
        for key, (_, real) in wrong.items():
            if real is None:
                applied.pop(key, None)
            else:
                applied[key] = real
        # A newer word that waits already counts more than the repair.
        self.submit(name, [(key, wanted) for key, (wanted, _) in wrong.items() if key not in pending])

    def _dirty(self) -> bool:
        return any(self._pending.values())

    def _resubmit_refused(self) -> None:
        for name, refused in self.refused.items():
            again = [(key, refusal.value) for key, refusal in refused.items() if key not in self._pending[name]]
            self.submit(name, again)

    async def _write(self, stage: Stage, taken: Mapping[bytes, bytes | None]) -> None:
        applied, refused = self.applied[stage.map_name], self.refused[stage.map_name]
        kernel, holds = self._maps[stage.map_name], stage.holds
        changed = (
            (key, value)
            for key, value in taken.items()
            if value is not None and holds(key) and (applied.get(key) != value or key in refused)
        )
        while batch := list(islice(changed, BATCH)):
            for key, value in await self._call(stage.map_name, kernel.update_batch, batch, batch):
                applied[key] = value

    async def _remove(self, stage: Stage, taken: Mapping[bytes, bytes | None]) -> None:
        applied, refused = self.applied[stage.map_name], self.refused[stage.map_name]
        kernel, holds = self._maps[stage.map_name], stage.holds
        gone = [key for key, value in taken.items() if value is None and holds(key)]
        for key in gone:
            refused.pop(key, None)
        there = iter([key for key in gone if key in applied])
        while batch := list(islice(there, BATCH)):
            changes: list[tuple[bytes, None]] = [(key, None) for key in batch]
            for key, _ in await self._call(stage.map_name, kernel.delete_batch, batch, changes):
                del applied[key]

    async def _call(
        self, map_name: str, call: Callable[[list[T]], object], arguments: list[T], changes: list[tuple[bytes, V]]
    ) -> list[tuple[bytes, V]]:
        """Make a batch call, one by one if the kernel refuses it as a whole; returns the changes that took effect."""
        refused = self.refused[map_name]
        try:
            if len(arguments) < _THREAD_FROM:
                call(arguments)
            else:
                await asyncio.to_thread(call, arguments)
        except DatapathError as error:
            log.warning("%s: the kernel refused a batch of %d: %s", map_name, len(arguments), error)
        else:
            self.writes += len(arguments)
            for key, _ in changes if refused else ():
                refused.pop(key, None)
            return changes

        done: list[tuple[bytes, V]] = []
        for number, (argument, change) in enumerate(zip(arguments, changes, strict=True)):
            key, value = change
            try:
                call([argument])
            except DatapathError as error:
                refused[key] = Refusal(value, str(error))
                continue
            refused.pop(key, None)
            done.append(change)
            if number % 100 == 99:
                await asyncio.sleep(0)
        self.writes += len(done)
        if len(done) < len(changes):
            log.error("%s: the kernel refuses %d entries; they are tried again", map_name, len(changes) - len(done))
        return done


def _differences(kernel: KernelMap, wanted: Mapping[bytes, bytes]) -> dict[bytes, Difference]:
    real = dict(kernel.items())
    wrong = {key: Difference(value, real.get(key)) for key, value in wanted.items() if real.get(key) != value}
    wrong.update((key, Difference(None, value)) for key, value in real.items() if key not in wanted)
    return wrong
