"""Watches: from a resourceVersion or from the present objects on, with bookmarks, as lines of JSON."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

import msgspec

from .cache import Change, WatchCache
from .errors import ApiError, Object, bad_request, expired, unavailable
from .listing import Selection, flag, number
from .store import Store

BOOKMARK_EVERY = 10.0  # seconds
_DEFAULT_TIMEOUT = (1800, 3600)  # seconds, drawn at random so that clients do not come back together
_INITIAL_END = "k8s.io/initial-events-end"

Render = Callable[[Object], Object]


@dataclass(frozen=True)
class WatchOptions:
    """`initial` begins with the present objects as ADDED, else with the changes after `revision`; `timeout` in s."""

    revision: int
    initial: bool
    bookmarks: bool
    timeout: float

    @classmethod
    def of(cls, query: Mapping[str, str]) -> WatchOptions:
        wanted = flag(query, "sendInitialEvents")
        bookmarks = flag(query, "allowWatchBookmarks")
        if wanted and not (bookmarks and query.get("resourceVersionMatch") == "NotOlderThan"):
            raise bad_request("sendInitialEvents needs allowWatchBookmarks=true and resourceVersionMatch=NotOlderThan")
        revision = number(query, "resourceVersion")
        initial = wanted or (revision == 0 and "sendInitialEvents" not in query)
        timeout = number(query, "timeoutSeconds") or random.uniform(*_DEFAULT_TIMEOUT)
        return cls(revision, initial, bookmarks, timeout)


class Watch:
    """One client's watch. `lines` ends at the timeout, and with an ERROR line when changes were lost."""

    def __init__(
        self, cache: WatchCache, store: Store, selection: Selection, options: WatchOptions, render: Render
    ) -> None:
        self._cache = cache
        self._store = store
        self._selection = selection
        self._options = options
        self._render = render
        self._present: list[Object] = []
        self._cursor = 0
        self._sent = options.revision  # changes up to this revision are known to the client

    async def start(self) -> None:
        """Find where to begin; raises 410 or 503 before anything is sent."""
        if self._options.initial:
            await self._cache.caught_up()
        elif self._options.revision > self._cache.revision:
            newest = await self._store.current_revision()
            if self._options.revision > newest:
                raise expired(f"resource version {self._options.revision} is not known; the newest is {newest}")
        if not self._cache.synced.is_set():
            raise unavailable("storage is (re)initializing")
        prefix = self._selection.resource.prefix
        self._window = self._cache.window(prefix)
        if not self._options.initial:
            self._cursor = self._window.seek(self._options.revision)
            return
        self._cursor, self._sent = self._window.end, self._cache.revision
        objects = self._cache.objects(prefix)
        self._present = [item for key, item in sorted(objects.items()) if self._chosen(key, item)]

    async def lines(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._options.timeout
        if self._options.initial:
            out = b"".join(self._line("ADDED", item) for item in self._present)
            self._present = []
            if self._options.bookmarks:
                out += self._bookmark(self._sent, {_INITIAL_END: "true"})
            if out:
                yield out
        bookmark_at = loop.time() + BOOKMARK_EVERY
        while not self._cache.stopping and (now := loop.time()) < end:
            revision = self._cache.revision
            try:
                changes = self._window.read(self._cursor)
            except ApiError as error:
                yield self._line("ERROR", error.status(), rendered=True)
                return
            self._cursor += len(changes)
            out = b"".join(line for change in changes if change.revision > self._sent and (line := self._event(change)))
            if out:
                yield out
            if changes:
                continue
            if self._options.bookmarks and now >= bookmark_at:
                bookmark_at = now + BOOKMARK_EVERY
                if revision >= self._sent:
                    yield self._bookmark(revision)
            try:
                async with asyncio.timeout_at(min(end, bookmark_at)):
                    await self._window.changed()
            except TimeoutError:
                continue

    def _chosen(self, key: str, item: Object | None) -> bool:
        return item is not None and key.startswith(self._selection.prefix) and self._selection.matches(item)

    def _event(self, change: Change) -> bytes | None:
        now, before = self._chosen(change.key, change.item), self._chosen(change.key, change.previous)
        if now and change.item is not None:
            return self._line("MODIFIED" if before else "ADDED", change.item)
        if before and change.previous is not None:
            last = change.item or change.previous
            metadata = last["metadata"] | {"resourceVersion": str(change.revision)}
            return self._line("DELETED", last | {"metadata": metadata})
        return None

    def _bookmark(self, revision: int, annotations: Object | None = None) -> bytes:
        resource = self._selection.resource
        metadata: Object = {"resourceVersion": str(revision), "creationTimestamp": None}
        if annotations:
            metadata["annotations"] = annotations
        return self._line("BOOKMARK", {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata})

    def _line(self, type_: str, item: Object, *, rendered: bool = False) -> bytes:
        return msgspec.json.encode({"type": type_, "object": item if rendered else self._render(item)}) + b"\n"
