"""What a controller manager does for all kinds: empty namespaces, collect garbage, make service accounts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from clustermesh.kvstore.errors import KvError

from .cache import WatchCache
from .crds import Catalog
from .errors import ApiError, Object
from .registry import DeleteOptions, Registry, WriteOptions
from .resources import CRDS, NAMESPACES, SERVICE_ACCOUNTS, Resource

log = logging.getLogger(__name__)

_DEFAULT_NAMESPACES = ("default", "kube-system")
_LEISURE = 0.2  # seconds: no controller is immediate, and `kubectl delete -f` must still find what a namespace holds
_RETRY = 1.0  # seconds after a failure of etcd


class Lifecycle:
    """Follows every change in the cache; after a failure or a relist it looks at everything again."""

    def __init__(self, cache: WatchCache, registry: Registry, catalog: Catalog) -> None:
        self._cache = cache
        self._registry = registry
        self._catalog = catalog

    async def run(self) -> None:
        while True:
            try:
                await self._cache.synced.wait()
                await self._follow()
            except (KvError, ApiError) as error:
                log.info("looking at all objects again: %s", error)
                await asyncio.sleep(_RETRY)

    async def _follow(self) -> None:
        window = self._cache.all
        cursor = window.end
        await self._look_at_everything()
        while True:
            await asyncio.sleep(_LEISURE)
            for change in (changes := window.read(cursor)):
                await self._look_at(change.key, change.previous)
            cursor += len(changes)
            if not changes:
                await window.changed()

    async def _look_at_everything(self) -> None:
        for name in _DEFAULT_NAMESPACES:
            if self._cache.find(NAMESPACES.key("", name)) is None:
                await self._create(NAMESPACES, "", name)
        for key in self._cache.all_keys():
            await self._look_at(key)

    async def _look_at(self, key: str, previous: Object | None = None) -> None:
        """Bring about what follows from the present state of one object."""
        item = self._cache.find(key)
        if item is None:
            for dependent in list(self._cache.dependents.get(previous["metadata"]["uid"], ())) if previous else ():
                await self._look_at(dependent)
            await self._release(self._home(key))
            return
        if key.startswith(NAMESPACES.prefix) and not _leaving(item):
            name = item["metadata"]["name"]
            if self._cache.find(SERVICE_ACCOUNTS.key(name, "default")) is None:
                await self._create(SERVICE_ACCOUNTS, name, "default")
        elif _leaving(item):
            for inside in self._inside(key):
                await self._look_at(inside)
            await self._release(key)
        elif self._abandoned(key, item):
            await self._delete(key, item)

    def _home(self, key: str) -> str:
        """The key of the namespace that an object is in."""
        parts = key.split("/")
        return NAMESPACES.key("", parts[4]) if len(parts) == 6 else ""

    def _definition(self, key: str) -> str:
        """The key of the definition of a custom object."""
        group, plural = key.split("/")[2:4]
        return CRDS.key("", f"{plural}.{group}")

    def _inside(self, key: str) -> list[str]:
        """The keys of everything that goes with a namespace or a definition."""
        if key.startswith(NAMESPACES.prefix):
            return [other for other in self._cache.all_keys() if self._home(other) == key]
        if key.startswith(CRDS.prefix):
            return [other for other in self._cache.all_keys() if self._definition(other) == key]
        return []

    def _abandoned(self, key: str, item: Object) -> bool:
        """Is its namespace or definition going, or is none of its owners left?"""
        home, definition = self._home(key), self._cache.find(self._definition(key))
        if home and ((namespace := self._cache.find(home)) is None or _leaving(namespace)):
            return True
        if definition is not None and _leaving(definition):
            return True
        owners = item["metadata"].get("ownerReferences") or []
        return bool(owners) and not any(owner["uid"] in self._cache.uids for owner in owners)

    async def _release(self, key: str) -> None:
        """Let a namespace or definition go that is being deleted and has nothing left inside."""
        item = self._cache.find(key) if key else None
        if item is None or not _leaving(item) or self._inside(key):
            return
        resource = NAMESPACES if key.startswith(NAMESPACES.prefix) else CRDS
        await self._attempt(self._registry.release(resource, item["metadata"]["name"]))

    async def _delete(self, key: str, item: Object) -> None:
        group, plural = key.split("/")[2:4]
        resource = self._catalog.of_prefix(group, plural)
        if resource is not None:
            metadata = item["metadata"]
            options = DeleteOptions(uid=metadata["uid"])
            await self._attempt(
                self._registry.delete(resource, metadata.get("namespace", ""), metadata["name"], options)
            )

    async def _create(self, resource: Resource, namespace: str, name: str) -> None:
        await self._attempt(self._registry.create(resource, namespace, {"metadata": {"name": name}}, WriteOptions()))

    async def _attempt(self, action: Awaitable[object]) -> None:
        """Others may have been faster: then the cache will tell."""
        try:
            await action
        except ApiError as error:
            if error.code not in (403, 404, 409):
                raise
            log.debug("%s", error)


def _leaving(item: Object) -> bool:
    return "deletionTimestamp" in item["metadata"]
