"""A kind that a cluster may have or not: its definition can come, go and change its version while we run."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import CredentialError, Forbidden, KubeError, NotFound
from clustermesh.kube.objects import KubeObject, ObjectRef, Resource
from clustermesh.kube.reflector import KubeBatch, Reflector, ReflectorState

log = logging.getLogger(__name__)

T = TypeVar("T", bound=KubeObject)

LOOK = 30.0  # seconds between two looks for a kind that is not there
# A server that starts may not know its custom kinds yet, so one that was there is not believed to be gone at once.
_CONFIRM = 5.0  # seconds


class OptionalReflector(Generic[T]):
    """Follows all objects of a kind in the first of `versions` that is served. As long as none is, there are none.

    `served` is what is followed now, None while the kind is not there. One line in the log tells of each change.
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
        self._known: dict[tuple[str, str], ObjectRef] = {}
        self._refused = ""

    async def batches(self) -> AsyncGenerator[KubeBatch[T], None]:
        """Endless; close it when you leave it early. Whenever the kind came or went a batch with `synced` says so."""
        while True:
            resource = await self._find()
            if resource is None:
                if self.served is not None:
                    log.info("%s is not served any more", self.served)
                self.served = None
                gone, self._known = tuple(self._known.values()), {}
                yield KubeBatch(deletes=gone, synced=True)
                await asyncio.sleep(self._look)
                continue
            if resource != self.served:
                log.info("%s is served, version %s", resource, resource.version)
            self.served = resource
            async with aclosing(self._follow(resource)) as batches:
                async for batch in batches:
                    yield batch

    async def _find(self) -> Resource[T] | None:
        """The version to follow. One that was there is missed only when it stays away."""
        found = await self._first_served()
        if found is None and self.served is not None:
            await asyncio.sleep(self._confirm)
            found = await self._first_served()
        return found

    async def _first_served(self) -> Resource[T] | None:
        for resource in self._versions:
            try:
                await self._client.page(resource, limit=1)
            except NotFound:
                continue
            except Forbidden as refusal:
                # Whether there is such a kind is not told to those who may not read it.
                if self.served is None:
                    self._say_refused(refusal)
                    continue
            except (KubeError, CredentialError):
                pass  # the reflector says so and goes on trying
            return resource
        return None

    def _say_refused(self, refusal: Forbidden) -> None:
        if self._refused != refusal.message:
            log.warning("taken as not installed: %s", refusal)
        self._refused = refusal.message

    async def _follow(self, resource: Resource[T]) -> AsyncGenerator[KubeBatch[T], None]:
        """Until the kind is not served any more. What a former version had and this one has not is deleted."""
        former: dict[tuple[str, str], ObjectRef] = dict(self._known)
        reflector = Reflector(self._client, resource, on_state=self._on_state, optional=True)
        try:
            async with aclosing(reflector.batches()) as batches:
                async for batch in batches:
                    for ref in batch.deletes:
                        self._known.pop((ref.namespace, ref.name), None)
                    for item in batch.upserts:
                        former.pop((item.namespace, item.name), None)
                        self._known[item.namespace, item.name] = item.ref
                    if batch.synced and former:
                        missed, former = tuple(former.values()), {}
                        for ref in missed:
                            self._known.pop((ref.namespace, ref.name), None)
                        yield KubeBatch(batch.upserts, (*batch.deletes, *missed), synced=True)
                    else:
                        yield batch
        except NotFound:
            return
