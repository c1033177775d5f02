"""A kind that a cluster may have or not: its definition can come, go and change its version while we run."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import CredentialError, Forbidden, KubeError, NotFound
from clustermesh.kube.objects import KubeObject, ObjectRef, Resource
from clustermesh.kube.reflector import KubeBatch, Reflector, ReflectorState
from clustermesh.tasks import end

log = logging.getLogger(__name__)

T = TypeVar("T", bound=KubeObject)
_Name = tuple[str, str]

LOOK = 30.0  # seconds between two looks whether the kind is there
# A server that starts may not know its custom kinds yet, so one that was there is not believed to be gone at once.
_CONFIRM = 5.0  # seconds


class OptionalReflector(Generic[T]):
    """Follows all objects of a kind in the first of `versions` that is served. As long as none is, there are none.

    `served` is what is followed now, None while the kind is not there. A line in the log tells of each change.
    """

    def __init__(
        self,
        client: KubeClient,
        versions: Sequence[Resource[T]],
        *,
        on_state: Callable[[ReflectorState], None] | None = None,
        look: float = LOOK,
        confirm: float = _CONFIRM,
    ) -> None:
        self.served: Resource[T] | None = None
        self._client = client
        self._versions = tuple(versions)
        self._on_state = on_state
        self._look = look
        self._confirm = confirm
        self._known: dict[_Name, ObjectRef] = {}
        self._refused = ""

    async def run(self, handle: Callable[[KubeBatch[T]], Awaitable[None]]) -> None:
        """For ever. Whenever it is clear what there is, be it nothing, `handle` gets a batch with `synced`."""
        while True:
            resource = await self._find()
            self._note(resource)
            if resource is None:
                gone, self._known = tuple(self._known.values()), {}
                await handle(KubeBatch(deletes=gone, synced=True))
                await asyncio.sleep(self._look)
                continue
            following = asyncio.create_task(self._follow(resource, handle))
            try:
                await self._until_gone(resource, following)
            finally:
                await end(following)

    async def _find(self) -> Resource[T] | None:
        """The version to follow. A kind that was there is missed only when it stays away."""
        found = await self._first_served()
        if found is None and self.served is not None:
            await asyncio.sleep(self._confirm)
            found = await self._first_served()
        return found

    async def _first_served(self) -> Resource[T] | None:
        for resource in self._versions:
            if await self._is_served(resource):
                return resource
        return None

    async def _is_served(self, resource: Resource[T]) -> bool:
        try:
            await self._client.page(resource, limit=1)
        except NotFound:
            return False
        except Forbidden as refusal:
            # Whether there is such a kind is not told to those who may not read it.
            if self.served is None:
                if self._refused != refusal.message:
                    log.warning("taken as not installed: %s", refusal)
                self._refused = refusal.message
                return False
        except (KubeError, CredentialError) as error:
            log.debug("%s: %s", resource, error)  # the reflector says so, and goes on trying
        return True

    def _note(self, resource: Resource[T] | None) -> None:
        if resource is None and self.served is not None:
            log.info("%s is not served any more", self.served)
        elif resource is not None and resource != self.served:
            log.info("%s is served, version %s", resource, resource.version)
        self.served = resource

    async def _until_gone(self, resource: Resource[T], following: asyncio.Task[None]) -> None:
        """Not every server ends the watches of a kind that it does not serve any more."""
        while True:
            await asyncio.wait((following,), timeout=self._look)
            if following.done():
                following.result()
                return
            if not await self._is_served(resource):
                return

    async def _follow(self, resource: Resource[T], handle: Callable[[KubeBatch[T]], Awaitable[None]]) -> None:
        """Until the server says that it has no such kind. What the former version had and this one has not is gone."""
        former, self._known = self._known, {}
        reflector = Reflector(self._client, resource, on_state=self._on_state, optional=True)
        try:
            async with aclosing(reflector.batches()) as batches:
                async for batch in batches:
                    gone = self._take(batch, former)
                    if batch.synced:
                        gone, former = [*gone, *former.values()], {}
                    await handle(KubeBatch(batch.upserts, (*batch.deletes, *gone), batch.synced))
        except NotFound:
            pass
        finally:
            self._known = {**former, **self._known}

    def _take(self, batch: KubeBatch[T], former: dict[_Name, ObjectRef]) -> list[ObjectRef]:
        """Note what there is; what was there under the same name before and is another object."""
        for ref in batch.deletes:
            self._known.pop((ref.namespace, ref.name), None)
        replaced = []
        for item in batch.upserts:
            name = item.namespace, item.name
            self._known[name] = item.ref
            before = former.pop(name, item.ref)
            if before != item.ref:
                replaced.append(before)
        return replaced
