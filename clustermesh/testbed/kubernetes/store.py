"""Objects in etcd: JSON values, guarded by mod_revision."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.keyspace import prefix_range, successor

from .cache import WatchCache, decode
from .errors import Object, expired


@dataclass(frozen=True)
class Page:
    """A part of a list at one revision.

    last: the key it ended with, "" when nothing follows; remaining: how many objects follow.
    """

    items: list[Object]
    revision: int
    last: str
    remaining: int


class Store:
    """Reads and guarded writes; every failure of etcd is a KvError."""

    def __init__(self, connection: Connection, cache: WatchCache) -> None:
        self._connection = connection
        self._cache = cache  # told of every write, so that readers can wait for it

    async def get(self, key: str) -> Object | None:
        found = await self._connection.get(key)
        return None if found is None else decode(found.value, found.mod_revision)

    async def page(self, prefix: str, *, after: str = "", limit: int = 0, revision: int = 0) -> Page:
        """Up to `limit` (0: all) objects behind the key `after`, as they were at `revision` (0: now).

        Raises 410 if etcd no longer has that revision.
        """
        start, end = prefix_range(prefix)
        if after:
            start = successor(after.encode())
        try:
            answer = await self._connection.range(start, end, limit=limit, revision=revision)
        except KvError as error:
            if error.stage in (Stage.COMPACTED, Stage.FUTURE):
                raise expired(
                    "the provided continue parameter or resourceVersion is too old to display a consistent list"
                ) from error
            raise
        items = [decode(kv.value, kv.mod_revision) for kv in answer.kvs]
        last = answer.kvs[-1].key.decode() if answer.more else ""
        return Page(items, revision or answer.revision, last, answer.count - len(items))

    async def create(self, key: str, item: Object) -> Object | None:
        """The object as stored, or None if the key exists."""
        return await self.update(key, item, 0)

    async def update(self, key: str, item: Object, revision: int) -> Object | None:
        """The object as stored, or None if it is no longer at `revision`."""
        metadata = {field: value for field, value in item["metadata"].items() if field != "resourceVersion"}
        value = msgspec.json.encode(item | {"metadata": metadata})
        outcome = await self._connection.guarded_put(key, value, revision)
        if not outcome.succeeded:
            return None
        self._cache.expect(outcome.revision)
        return item | {"metadata": metadata | {"resourceVersion": str(outcome.revision)}}

    async def delete(self, key: str, revision: int) -> bool:
        """False if it is no longer at `revision`."""
        outcome = await self._connection.guarded_delete(key, revision)
        if outcome.succeeded:
            self._cache.expect(outcome.revision)
        return outcome.succeeded

    async def current_revision(self) -> int:
        return await self._connection.current_revision()
