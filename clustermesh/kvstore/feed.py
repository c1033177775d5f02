"""One prefix of an etcd as an endless, gapless stream of changes.

A feed lists the prefix at one revision and watches from the next one on. What breaks the watch (restart, lost
connection, frozen server, new certificates) only makes it resume where it was. It lists again only when it has to:
the history it needs was compacted, or another store answers (an emptied or restored etcd). A new list is compared with
what was known, so the consumer sees changes and deletions alone, and the old state holds until the new one is complete.

A consumer that knows by itself what it has needs no second memory: an unremembering feed gives him lists as they are.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from enum import StrEnum
from heapq import nlargest
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec

from clustermesh.kvstore.backoff import Backoff
from clustermesh.kvstore.connection import PAGE, Connection
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.keyspace import prefix_range
from clustermesh.kvstore.rpc import etcd_pb2 as pb
from clustermesh.kvstore.session import Session
from clustermesh.tasks import end

log = logging.getLogger(__name__)

# Seconds for etcd to confirm a new watch.
CREATE_TIMEOUT = 10.0

# With this, an etcd member that has lost its leader ends the watch instead of keeping silent.
_REQUIRE_LEADER = (("hasleader", "true"),)

# A watch that ends like this and resumes at the first attempt is no news: members restart, connections are cut.
_PASSING = frozenset({Stage.TCP, Stage.TIMEOUT, Stage.UNAVAILABLE})

# Failures that only a new list can mend. Whoever reads the same etcd has the same to do, so chance spreads the lists
# over this many seconds.
_LIST_AGAIN = frozenset({Stage.COMPACTED, Stage.FUTURE, Stage.REPLACED})
_SPREAD = 1.0

# By how many of its latest keys a store is recognised, lest they are all deleted when it comes to that.
_RECENT = 64


class Event(NamedTuple):
    """A change of one key; value None says that it is gone."""

    key: bytes
    value: bytes | None
    mod_revision: int


class Batch(msgspec.Struct, frozen=True):
    """Changes in order, each revision whole. starts and synced are true on the batches that begin and complete a list.

    A list that fails on its way starts anew. revision: the store's revision that these events lead to (for a list: the
    one it is pinned to, reached when synced).
    """

    events: list[Event]
    revision: int
    synced: bool = False
    starts: bool = False


class FeedState(StrEnum):
    LISTING = "listing"
    WATCHING = "watching"
    RETRYING = "retrying"


class Feed:
    """Changes under a prefix. Remembers no values, only {key: revision of its last change}.

    exact: `prefix` is a single key. remember: without it nothing is remembered: a list, also one made again, brings
    every key, and what is gone the consumer finds by its absence. lists: held while a list is made, so that those who
    share it list one after another.
    page: keys per page of a list; progress: seconds between two signs of life that are asked of a quiet server;
    retry: the most seconds (give or take a third) between two attempts at one that is away.
    state and error (while RETRYING) tell how it stands, last_event when (event loop clock) the server last showed
    that this feed is up to date with it, watches how often it has begun to watch.
    """

    def __init__(
        self,
        connection: Connection,
        prefix: str,
        *,
        exact: bool = False,
        remember: bool = True,
        lists: asyncio.Lock | None = None,
        page: int = PAGE,
        progress: float = 5.0,
        retry: float = 5.0,
    ) -> None:
        self.prefix = prefix
        self.state = FeedState.LISTING
        self.error: KvError | None = None
        self._told: Stage | None = None  # of the failure that the log knows
        self.last_event = float("-inf")
        self.watches = 0
        self._connection = connection
        self._start, self._end = (prefix.encode(), b"") if exact else prefix_range(prefix)
        self._remember = remember
        self._lists = lists
        self._page = page
        self._progress = progress
        self._retry = retry
        # By what follows the prefix: with many keys that is what a feed weighs.
        self._skip = len(self._start) if not exact and prefix else 0
        self._known: dict[bytes, int] = {}
        self._recent: dict[bytes, int] = {}  # the keys that were put last, the last one at the end
        self._cluster_id = 0
        self._next = 0  # the first revision not delivered yet; 0: list first

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Endless; survives every KvError. One consumer; wrap it in contextlib.aclosing if you leave it early."""
        backoff = Backoff(limit=self._retry)
        while True:
            try:
                if not self._next:
                    completing = None
                    async with AsyncExitStack() as turn:
                        if self._lists is not None:
                            await turn.enter_async_context(self._lists)
                        pages = await turn.enter_async_context(aclosing(self._list()))
                        async for batch in pages:
                            if batch.synced:
                                completing = batch
                            else:
                                yield batch
                    if completing is not None:
                        yield completing
                async with aclosing(self._watch()) as changes:
                    async for batch in changes:
                        backoff.reset()
                        yield batch
            except KvError as error:
                self._note_failure(error)
                await asyncio.sleep(backoff.next() + (0.0 if self._next else random.uniform(0.0, _SPREAD)))

    def _note_failure(self, error: KvError) -> None:
        if self.state is FeedState.WATCHING and error.stage in _PASSING:
            log.debug("feed %s: %s", self.prefix, error)
        elif self._told is not error.stage:
            log.warning("feed %s: %s", self.prefix, error)
            self._told = error.stage
        self.state = FeedState.RETRYING
        self.error = error
        if error.stage in _LIST_AGAIN:
            self._next = 0
        if error.stage is Stage.REPLACED:
            self._distrust()

    def _distrust(self) -> None:
        """Equal revisions of another store mean nothing: keep the keys, for their deletion, and no revision."""
        self._known = dict.fromkeys(self._known, 0)

    def _alive(self) -> None:
        self.last_event = asyncio.get_running_loop().time()

    async def _list(self) -> AsyncGenerator[Batch, None]:
        if self.error is None:
            self.state = FeedState.LISTING
        revision = 0
        stale = set(self._known)
        events: list[Event] = []
        starts = True
        self._recent.clear()
        async with aclosing(self._connection.pages(self._start, self._end, page=self._page)) as pages:
            async for response in pages:
                self._alive()
                if not revision:
                    revision = response.header.revision
                    if response.header.cluster_id != self._cluster_id:
                        self._cluster_id = response.header.cluster_id
                        self._distrust()
                if events:
                    yield Batch(events, revision, starts=starts)
                    starts = False
                events = self._listed(response.kvs, stale)
        stem = self._start[: self._skip]
        for tail in stale:
            del self._known[tail]
            events.append(Event(stem + tail, None, revision))
        self._next = revision + 1
        yield Batch(events, revision, synced=True, starts=starts)

    def _listed(self, kvs: Any, stale: set[bytes]) -> list[Event]:
        """The new and changed ones of a page; all of them are no longer stale."""
        found = [Event(kv.key, kv.value, kv.mod_revision) for kv in kvs]
        latest = [(key, revision) for key, _, revision in nlargest(_RECENT, found, key=itemgetter(2))]
        self._recent = dict(reversed(nlargest(_RECENT, [*self._recent.items(), *latest], key=itemgetter(1))))
        if not self._remember:
            return found
        known, skip = self._known, self._skip
        shared: dict[int, int] = {}  # one number for all keys of a transaction
        events = []
        for event in found:
            tail, revision = event.key[skip:], event.mod_revision
            if stale:
                stale.discard(tail)
            if known.get(tail) != revision:
                known[tail] = shared.setdefault(revision, revision)
                events.append(event)
        return events

    async def _watch(self) -> AsyncGenerator[Batch, None]:
        """Batches from self._next on, until the session is retired; raises KvError for every other end."""
        async with self._connection.session() as session:
            call = session.watch.Watch(metadata=_REQUIRE_LEADER)
            pulse: asyncio.Task[KvError | None] | None = None
            try:
                await self._create(session, call)
                pulse = asyncio.create_task(self._pulse(session, call))
                async with aclosing(self._read(session, call)) as batches:
                    async for batch in batches:
                        yield batch
            except KvError:
                if session.retired:
                    return
                if pulse is not None and pulse.done() and (reason := pulse.result()) is not None:
                    raise reason from None
                raise
            finally:
                if pulse is not None:
                    await end(pulse)
                call.cancel()

    async def _create(self, session: Session, call: Any) -> None:
        """Open the watch and make sure that it is the store we know that answers."""
        request = pb.WatchCreateRequest(
            key=self._start,
            range_end=self._end,
            start_revision=self._next,
            progress_notify=True,
            fragment=True,
        )
        try:
            async with asyncio.timeout(CREATE_TIMEOUT):
                await session.outcome(call.write(pb.WatchRequest(create_request=request)))
                response = await session.receive(call)
        except TimeoutError as error:
            raise KvError(Stage.TIMEOUT, "etcd does not confirm the watch", str(session.endpoint)) from error
        if response.canceled:
            raise _refusal(response, session)
        await self._check_store(response.header, session)
        self._alive()
        if self._told is not None:
            log.info("feed %s: watching again from revision %d", self.prefix, self._next)
            self._told = None
        self.watches += 1
        self.state = FeedState.WATCHING
        self.error = None

    async def _check_store(self, header: Any, session: Session) -> None:
        """Raise KvError(REPLACED) unless the store's history holds what we have seen of it.

        An etcd whose data were lost or restored keeps its cluster id as long as its URLs and token stay, and its
        revisions may have passed ours by now; so the key that changed last is looked up at the revision we know.
        """
        endpoint = str(session.endpoint)
        self._check_cluster(header, session)
        seen = self._next - 1
        if header.revision < seen:
            raise KvError(Stage.REPLACED, f"the store went back from revision {seen} to {header.revision}", endpoint)
        if not self._recent:
            return
        key, revision = next(reversed(self._recent.items()))
        page = await self._connection.range(key, revision=seen, keys_only=True)
        if not page.kvs or page.kvs[0].mod_revision != revision:
            name = key.decode(errors="backslashreplace")
            raise KvError(Stage.REPLACED, f"the store does not know revision {revision} of {name}", endpoint)

    def _check_cluster(self, header: Any, session: Session) -> None:
        if header.cluster_id != self._cluster_id:
            what = f"another etcd cluster answers ({header.cluster_id:x})"
            raise KvError(Stage.REPLACED, what, str(session.endpoint))

    async def _read(self, session: Session, call: Any) -> AsyncGenerator[Batch, None]:
        held: list[Any] = []
        while True:
            response = await session.receive(call)
            self._alive()
            if response.canceled:
                raise _refusal(response, session)
            self._check_cluster(response.header, session)
            if response.events:
                changes, held = [*held, *response.events], []
                if response.fragment:
                    changes, held = whole_revisions(changes)
                if not changes:
                    continue
                events = self._changed(changes)
                # Not the header's revision: while the watch catches up, that one is far ahead of the events.
                revision = changes[-1].kv.mod_revision
                self._next = revision + 1
                if events:
                    yield Batch(events, revision)
            elif response.watch_id >= 0 and response.header.revision >= self._next:
                # A notice of this very watch is in order with its events. The answer to a request for progress
                # (watch id -1) is not: servers before 3.4.25 and 3.5.8 send it ahead of events still to come.
                self._next = response.header.revision + 1

    def _changed(self, changes: Any) -> list[Event]:
        """What is new to us of etcd's events."""
        known, remember, skip = self._known, self._remember, self._skip
        events = []
        for change in changes:
            kv = change.kv
            key, revision = kv.key, kv.mod_revision
            if change.type:  # DELETE
                self._recent.pop(key, None)
                if not remember or known.pop(key[skip:], None) is not None:
                    events.append(Event(key, None, revision))
            else:
                self._note_recent(key, revision)
                if not remember:
                    events.append(Event(key, kv.value, revision))
                elif known.get(tail := key[skip:]) != revision:
                    known[tail] = revision
                    events.append(Event(key, kv.value, revision))
        return events

    def _note_recent(self, key: bytes, revision: int) -> None:
        recent = self._recent
        recent.pop(key, None)
        recent[key] = revision
        if len(recent) > _RECENT:
            del recent[next(iter(recent))]

    async def _pulse(self, session: Session, call: Any) -> KvError | None:
        """Ask for signs of life; end the call when there are none or when the session is retired.

        Some servers leave a request for progress unanswered while a watch catches up, so silence alone proves
        nothing: only when a plain read fails too, the watch is given up. Returns why.
        """
        clock = asyncio.get_running_loop().time
        progress = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._progress):
                        await session.leave.wait()
                await self._connection.refresh()
                if session.retired:
                    call.cancel()
                    return None
                if clock() - self.last_event < 2 * self._progress:
                    await session.outcome(call.write(progress))
                else:
                    await self._connection.range(self._start, keys_only=True, timeout=self._progress)
                    self._alive()
        except KvError as error:
            call.cancel()
            return error
        except asyncio.InvalidStateError:
            return None  # the call has ended by itself; its reader knows why


def whole_revisions(changes: list[Any]) -> tuple[list[Any], list[Any]]:
    """Split a fragment of a response into the revisions that are whole and the last one, which may go on."""
    last = changes[-1].kv.mod_revision
    cut = len(changes)
    while cut and changes[cut - 1].kv.mod_revision == last:
        cut -= 1
    return changes[:cut], changes[cut:]


def _refusal(response: Any, session: Session) -> KvError:
    """Why etcd cancelled a watch. The stream stays open and silent after that."""
    endpoint = str(session.endpoint)
    if response.compact_revision:
        return KvError(Stage.COMPACTED, f"history before revision {response.compact_revision} is gone", endpoint)
    reason = response.cancel_reason or "watch cancelled without a reason"
    if "PermissionDenied" in reason or "permission denied" in reason:
        return KvError(Stage.PERMISSION, f"{reason}; give this user a role for the key range", endpoint)
    return KvError(Stage.UNAVAILABLE, reason, endpoint)
