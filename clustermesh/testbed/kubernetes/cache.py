"""The watch cache: every object as etcd's watch last told it, and a bounded window of changes per resource.

One task runs `WatchCache.run`; readers are synchronous (one event loop); they wait with `Window.changed` or
`WatchCache.caught_up`.
A relist breaks the order of changes, so it closes all windows: their watchers end with 410 and list again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from contextlib import aclosing
from dataclasses import dataclass

import msgspec

from clustermesh.kvstore.feed import Batch, Event, Feed, FeedState

from .errors import Object, expired, unavailable

log = logging.getLogger(__name__)

ROOT = "/registry/"
WINDOW = 4096  # changes kept per resource
PATIENCE = 5.0  # seconds until a write must be back by the watch


@dataclass(frozen=True, slots=True)
class Change:
    """`item` is the new object, or None when it was deleted; `previous` the one before, or None when it is new."""

    revision: int
    key: str
    item: Object | None
    previous: Object | None


class Window:
    """The latest changes of one resource (or of all), numbered by a cursor that only grows."""

    def __init__(self, oldest: int, size: int = WINDOW) -> None:
        self._oldest = oldest  # changes up to this revision may be missing
        self._changes: deque[Change] = deque(maxlen=size)
        self._end = 0
        self._closed = False
        self._wake = asyncio.Event()

    def append(self, change: Change) -> None:
        if len(self._changes) == self._changes.maxlen:
            self._oldest = self._changes[0].revision
        self._changes.append(change)
        self._end += 1
        self.wake()

    def close(self) -> None:
        self._closed = True
        self.wake()

    def wake(self) -> None:
        """Let all who wait look again."""
        self._wake.set()
        self._wake = asyncio.Event()

    @property
    def end(self) -> int:
        return self._end

    def seek(self, revision: int) -> int:
        """The cursor of the first change after `revision`; raises 410 if changes after it are gone."""
        if revision < self._oldest:
            raise expired(f"too old resource version: {revision} ({self._oldest})")
        later = 0
        for change in reversed(self._changes):
            if change.revision <= revision:
                break
            later += 1
        return self._end - later

    def read(self, cursor: int, limit: int = 500) -> list[Change]:
        """Up to `limit` changes from `cursor` on; raises 410 if the window has moved past it."""
        first = self._end - len(self._changes)
        if self._closed or cursor < first:
            raise expired("the watch fell behind the window of kept changes")
        return [self._changes[i - first] for i in range(cursor, min(self._end, cursor + limit))]

    async def changed(self) -> None:
        await self._wake.wait()


class WatchCache:
    """All objects under /registry/, with indices of owners."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._objects: defaultdict[str, dict[str, Object]] = defaultdict(dict)
        self._windows: dict[str, Window] = {}
        self._oldest = 0
        self._progress = asyncio.Event()
        self._expected = 0
        self.revision = 0
        self.synced = asyncio.Event()
        self.stopping = False
        self.all = Window(0)
        self.uids: dict[str, str] = {}  # uid → key
        self.dependents: defaultdict[str, set[str]] = defaultdict(set)  # owner's uid → keys

    async def run(self) -> None:
        async with aclosing(self._feed.batches()) as batches:
            async for batch in batches:
                self._take(batch)

    def _take(self, batch: Batch) -> None:
        if self._feed.state is not FeedState.WATCHING and self.synced.is_set():
            log.warning("etcd has to be listed again: ending all watches")
            self.synced.clear()
            self._close_windows()
        for event in batch.events:
            self._apply(event)
        if batch.synced:
            self._oldest = batch.revision
            self._expected = min(self._expected, batch.revision)  # etcd may have been restored to an older state
            self._close_windows()
            self.synced.set()
        self.revision = batch.revision
        self._progress.set()
        self._progress = asyncio.Event()

    def stop(self) -> None:
        """End all watches in good order: their clients may go on elsewhere where they were."""
        self.stopping = True
        for window in self._windows.values():
            window.wake()

    def _close_windows(self) -> None:
        for window in (*self._windows.values(), self.all):
            window.close()
        self._windows, self.all = {}, Window(self._oldest)

    def _apply(self, event: Event) -> None:
        key = event.key.decode()
        prefix = _prefix(key)
        objects = self._objects[prefix]
        previous = objects.get(key)
        item = None if event.value is None else decode(event.value, event.mod_revision)
        if previous is not None:
            self.uids.pop(previous["metadata"]["uid"], None)
            for owner in _owners(previous):
                self.dependents[owner].discard(key)
        if item is None:
            if objects.pop(key, None) is None:
                return
        else:
            objects[key] = item
            self.uids[item["metadata"]["uid"]] = key
            for owner in _owners(item):
                self.dependents[owner].add(key)
        if self.synced.is_set():
            change = Change(event.mod_revision, key, item, previous)
            self.window(prefix).append(change)
            self.all.append(change)

    def expect(self, revision: int) -> None:
        """This server has written `revision`."""
        self._expected = max(self._expected, revision)

    async def caught_up(self) -> None:
        """Wait until everything that this server has written is here; raises 503 if that takes too long."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.synced.wait()
                while self.revision < self._expected:
                    await self._progress.wait()
        except TimeoutError as error:
            raise unavailable("the watch of etcd lags behind; try again") from error

    def objects(self, prefix: str) -> dict[str, Object]:
        """The objects of one resource by key; read-only."""
        return self._objects[prefix]

    def find(self, key: str) -> Object | None:
        return self._objects[_prefix(key)].get(key)

    def all_keys(self) -> list[str]:
        """The keys of all objects."""
        return [key for objects in self._objects.values() for key in objects]

    def window(self, prefix: str) -> Window:
        if prefix not in self._windows:
            self._windows[prefix] = Window(self._oldest)
        return self._windows[prefix]


def decode(value: bytes, revision: int) -> Object:
    """The stored JSON as an object that knows its resourceVersion."""
    item: Object = msgspec.json.decode(value)
    item["metadata"]["resourceVersion"] = str(revision)
    return item


def _owners(item: Object) -> list[str]:
    return [owner["uid"] for owner in item["metadata"].get("ownerReferences") or []]


def _prefix(key: str) -> str:
    return "/".join(key.split("/", 4)[:4]) + "/"
