"""Keeps keys of an etcd at the values its owner wants.

put() and delete() only note what is wanted; run() brings it to etcd in transactions, a few at a time. A key that
changes again while it waits is written once, with its last value; a key that is there already is not written at all.
When the lease or the store is lost, everything is written again. Keys are sent in the order in which they were first
noted, but several transactions travel at once: whoever needs one write before another calls flush() between them.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from operator import itemgetter

from clustermesh.kvstore.backoff import Backoff
from clustermesh.kvstore.connection import PAGE, Change, Connection
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.keyspace import Key, prefix_range, to_bytes
from clustermesh.kvstore.lease import Lease

log = logging.getLogger(__name__)

# A transaction stays well below etcd's default limit of 1.5 MiB a request.
MAX_BYTES = 1_000_000

# Waiting does not help with these until somebody acts, so flush() tells instead of waiting; the writes go on trying.
_TELL = frozenset({Stage.PERMISSION, Stage.AUTHENTICATION, Stage.FULL})

# Operations a transaction: what we try, as long as an etcd takes it, and what every etcd takes.
MAX_OPS = 1024
SAFE_OPS = 128

# Writes that may wait before room() holds up whoever makes more of them.
ROOM = 16_384

# Where a key stands in the queue: numbers that only grow.
Turn = int


class Writer:
    """Wanted keys and the way to etcd. lease None writes keys that stay.

    max_ops: operations a transaction, fewer once etcd refuses that many; in_flight: transactions at a time.
    rejected: keys whose value etcd will never take, with the reason, until they are put or deleted again.
    error: why writes wait now. changed: called when that begins, ends or is something else.
    """

    def __init__(
        self,
        connection: Connection,
        lease: Lease | None,
        *,
        max_ops: int = MAX_OPS,
        in_flight: int = 4,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.error: KvError | None = None
        self.rejected: dict[bytes, KvError] = {}
        self._connection = connection
        self._lease = lease
        self._max_ops = max_ops
        self._in_flight = in_flight
        self._changed = changed
        self._wanted: dict[bytes, bytes] = {}
        # Found in etcd and not claimed by a put yet; None: there, but not under our lease.
        self._adopted: dict[bytes, bytes | None] = {}
        self._prefixes: set[bytes] = set()  # adopted or pruned
        self._owned: set[bytes] = set()  # pruned
        # In the order of the turns; an OrderedDict because a dict emptied from the front is slow to iterate.
        self._pending: OrderedDict[bytes, Turn] = OrderedDict()
        self._travelling: dict[bytes, Turn] = {}
        self._turn = 0
        self._work = asyncio.Event()
        self._lost = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._waiters: list[tuple[Turn, asyncio.Future[None]]] = []
        if lease is not None:
            lease.on_loss(self._write_again)

    def __len__(self) -> int:
        """How many writes are not in etcd yet."""
        return len(self._pending) + len(self._travelling)

    def put(self, key: Key, value: bytes) -> None:
        """Want key to have this value."""
        name = to_bytes(key)
        if self.rejected:
            if self._wanted.get(name) == value and name not in self.rejected:
                return
            self.rejected.pop(name, None)
        elif self._wanted.get(name) == value:
            return
        self._wanted[name] = value
        # Equal bytes in etcd spare the write, unless another write of the key is still on its way.
        if self._adopted.pop(name, None) != value or name in self._pending or name in self._travelling:
            self._queue(name)

    def delete(self, key: Key) -> None:
        """Want key not to exist."""
        name = to_bytes(key)
        self._wanted.pop(name, None)
        self._adopted.pop(name, None)
        self.rejected.pop(name, None)
        self._queue(name)

    def known(self, key: Key) -> bytes | None:
        """What the key is wanted to be, or was found to be; b"" when that is not known, None when there is no key."""
        name = to_bytes(key)
        if name in self._wanted:
            return self._wanted[name]
        return (self._adopted[name] or b"") if name in self._adopted else None

    async def room(self) -> None:
        """Wait while too many writes wait. Whoever reads what he puts elsewhere stops reading meanwhile."""
        await self._room.wait()

    async def adopt(self, prefix: Key) -> int:
        """Learn what is under a prefix that belongs to this writer, before the first put there; returns how many keys.

        Needs the lease's run() to be running. Raises KvError.
        """
        found = 0
        async for page in self.adopting(prefix):
            found += len(page)
        return found

    async def adopting(self, prefix: Key) -> AsyncGenerator[list[tuple[bytes, bytes]], None]:
        """The same page by page, keys with their values, for who wants to see what is there and puts it as it comes."""
        lease_id = await self._lease.granted() if self._lease is not None else 0
        self._prefixes.add(to_bytes(prefix))
        wanted, pending, adopted = self._wanted, self._pending, self._adopted
        async with aclosing(self._connection.pages(*prefix_range(prefix), page=PAGE)) as pages:
            async for page in pages:
                found = []
                for kv in page.kvs:
                    key, value = kv.key, kv.value
                    found.append((key, value))
                    if key not in wanted and key not in pending:
                        adopted[key] = value if kv.lease == lease_id else None
                yield found

    def prune(self, prefix: Key) -> int:
        """Delete adopted keys under prefix that nobody has put since; returns how many.

        From now on what else turns up there after a loss of the store is deleted as well.
        """
        start = to_bytes(prefix)
        self._prefixes.add(start)
        self._owned.add(start)
        unclaimed = [key for key in self._adopted if key.startswith(start)]
        for key in unclaimed:
            self.delete(key)
        return len(unclaimed)

    async def flush(self, *, despite_rejections: bool = False) -> None:
        """Wait until everything put and deleted so far is in etcd, or (if so asked) rejected before.

        Raises the first KvError that waiting cannot mend: a rejected value, or no permission, or etcd out of space
        (these two are tried again nevertheless).
        """
        if self.rejected and not despite_rejections:
            raise next(iter(self.rejected.values()))
        if not self._pending and not self._travelling:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((self._turn, waiter))
        await waiter

    async def run(self) -> None:
        """Write what is wanted, for ever; once it ended it cannot be run again."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._in_flight):
                    tasks.create_task(self._carry(), name=f"writer-{number}")
                tasks.create_task(self._repair(), name="writer-repair")
        finally:
            if self._lease is not None:
                self._lease.forget(self._write_again)

    def _queue(self, key: bytes) -> None:
        self._turn += 1
        self._pending.setdefault(key, self._turn)
        self._work.set()
        if len(self._pending) >= ROOM:
            self._room.clear()

    async def _carry(self) -> None:
        """One of the transactions in flight."""
        backoff = Backoff()
        while True:
            await self._work.wait()
            lease_id = await self._lease.granted() if self._lease is not None else 0
            load = self._take()
            if not load:
                self._work.clear()
                continue
            try:
                await self._send(load, lease_id)
            except KvError as error:
                self._put_back(load)
                self._failed(error, load)
                await asyncio.sleep(backoff.next())
            except asyncio.CancelledError:
                self._put_back(load)
                raise
            else:
                backoff.reset()

    def _take(self) -> dict[bytes, Turn]:
        """The next keys to send. A key that is on its way waits for the end of that journey."""
        load: dict[bytes, Turn] = {}
        size = 0
        for key, turn in self._pending.items():
            if key in self._travelling:
                continue
            size += len(key) + len(self._wanted.get(key, b""))
            if load and size > MAX_BYTES:
                break
            load[key] = turn
            if len(load) == self._max_ops:
                break
        for key in load:
            del self._pending[key]
        if len(self._pending) <= ROOM // 2:
            self._room.set()
        self._travelling.update(load)
        return load

    async def _send(self, load: dict[bytes, Turn], lease_id: int) -> None:
        """Write a load; if etcd rejects it for good, find out which of its keys are to blame."""
        wanted = self._wanted
        changes = [Change(key, value := wanted.get(key), 0 if value is None else lease_id) for key in load]
        try:
            await self._connection.commit(changes)
        except KvError as error:
            if error.stage is Stage.TOO_MANY and len(load) > 1:
                self._be_content(len(load))
                await self._send_halves(load, lease_id)
                return
            if not error.hopeless:
                raise
            if len(load) > 1:
                await self._send_halves(load, lease_id)
                return
            self._reject(changes[0], error)
        self._arrived(load)

    def _be_content(self, refused: int) -> None:
        if self._max_ops >= refused:
            self._max_ops = SAFE_OPS if refused > SAFE_OPS else refused // 2
            log.info("etcd takes no %d writes in a transaction, so it gets %d from now on", refused, self._max_ops)

    async def _send_halves(self, load: dict[bytes, Turn], lease_id: int) -> None:
        keys = list(load)
        middle = len(keys) // 2
        for half in (keys[:middle], keys[middle:]):
            part = {key: load.pop(key) for key in half}
            try:
                await self._send(part, lease_id)
            except BaseException:
                load.update(part)
                raise

    def _reject(self, change: Change, error: KvError) -> None:
        log.error("key %s: %s", change.key.decode(errors="replace"), error)
        if self._wanted.get(change.key) == change.value:
            self.rejected[change.key] = error
            self._fail_waiters(error, self._travelling[change.key])

    def _arrived(self, load: Iterable[bytes]) -> None:
        for key in load:
            del self._travelling[key]
        if self._pending:
            self._work.set()
        if self.error is not None:
            log.info("writing again")
            self.error = None
            self._changed()
        self._wake_waiters()

    def _put_back(self, load: dict[bytes, Turn]) -> None:
        """Back to their old places in the queue."""
        for key in load:
            del self._travelling[key]
        self._pending = OrderedDict(sorted({**self._pending, **load}.items(), key=itemgetter(1)))
        self._work.set()

    def _failed(self, error: KvError, load: Iterable[bytes]) -> None:
        before, self.error = self.error, error
        if before is None or before.stage is not error.stage:
            log.warning("%d writes wait: %s", len(self), error)
            self._changed()
        if error.stage is Stage.LEASE and self._lease is not None:
            self._lease.suspect()
        if error.stage in _TELL:
            self._fail_waiters(error, min((self._pending[key] for key in load), default=0))

    def _wake_waiters(self) -> None:
        if not self._waiters:
            return
        unfinished = min(self._travelling.values(), default=self._turn + 1)
        for turn in self._pending.values():
            unfinished = min(unfinished, turn)
            break
        for turn, waiter in self._waiters:
            if turn < unfinished and not waiter.done():
                waiter.set_result(None)
        self._waiters = [(turn, waiter) for turn, waiter in self._waiters if not waiter.done()]

    def _fail_waiters(self, error: KvError, since: Turn) -> None:
        for turn, waiter in self._waiters:
            if turn >= since and not waiter.done():
                waiter.set_exception(error)
        self._waiters = [(turn, waiter) for turn, waiter in self._waiters if not waiter.done()]

    def _write_again(self) -> None:
        """After a loss. Nothing is awaited: whoever flushes from now on waits for all of it."""
        self._adopted = dict.fromkeys(self._adopted)
        for key in self._wanted:
            self._queue(key)
        self._lost.set()

    async def _repair(self) -> None:
        """After a loss: delete what a restored store brought back."""
        while True:
            await self._lost.wait()
            self._lost.clear()
            for prefix in self._prefixes.copy():
                await self._sweep(prefix)

    async def _sweep(self, prefix: bytes) -> None:
        """Delete what nobody wants, or, before the prefix was pruned for the first time, adopt it."""
        backoff = Backoff()
        while True:
            try:
                async for page in self._connection.list(prefix):
                    for kv in page:
                        if kv.key in self._wanted:
                            continue
                        if prefix in self._owned:
                            self._queue(kv.key)
                        else:
                            self._adopted.setdefault(kv.key, None)
                return
            except KvError as error:
                log.warning("cannot look for left-over keys under %s yet: %s", prefix.decode(errors="replace"), error)
                await asyncio.sleep(backoff.next())
