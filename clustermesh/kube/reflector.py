"""List and watch of one kind: an endless stream of changes that survives whatever the API server does.

A reflector lists page by page, then watches from the list's resource version. Streams that end are resumed where they
stopped; only when the server no longer has that history (410) it lists again, and what vanished meanwhile becomes a
deletion. It remembers uid and resource version of each object and nothing else.
"""

import asyncio
import contextlib
import enum
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import msgspec

from clustermesh.kube.client import PAGE, KubeClient
from clustermesh.kube.errors import CredentialError, Expired, KubeError, NotFound, Status
from clustermesh.kube.objects import KubeObject, ObjectMeta, ObjectRef, Resource

log = logging.getLogger(__name__)

T = TypeVar("T", bound=KubeObject)

_WATCH_SECONDS = (240, 360)  # how long a watch is asked to last, chosen at random so that watchers spread out
_FAILURES_BEFORE_LIST = 3  # a watch that fails so often in a row is not resumed but started from a new list


@dataclass(frozen=True, slots=True)
class KubeBatch(Generic[T]):
    """Changes that belong together; apply `deletes` before `upserts`. An object stands in `upserts` at most once.

    `synced` is True exactly on the batch that completes a list.
    """

    upserts: Sequence[T] = ()
    deletes: Sequence[ObjectRef] = ()
    synced: bool = False


class Phase(enum.StrEnum):
    LISTING = "listing"
    WATCHING = "watching"
    RETRYING = "retrying"


@dataclass(frozen=True, slots=True)
class ReflectorState:
    phase: Phase
    error: str = ""  # why the last attempt failed


@dataclass(slots=True)
class Backoff:
    """Growing pauses with jitter: `first` seconds doubling up to `cap`."""

    first: float = 0.2
    cap: float = 10.0
    _next: float = 0.0

    def reset(self) -> None:
        self._next = 0.0

    def pause(self, at_least: float = 0.0) -> float:
        """Seconds to wait now."""
        self._next = min(self.cap, self._next * 2 or self.first)
        return max(at_least, self._next * random.uniform(0.5, 1.0))


class LineSplitter:
    """Cuts chunks of any size into lines; the unfinished rest waits for the next chunk."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        first, *others = chunk.split(b"\n")
        self._rest.append(first)
        if not others:
            return []
        lines = [b"".join(self._rest), *others[:-1]]
        self._rest = [others[-1]]
        return [line for line in lines if line]


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _Bookmark(msgspec.Struct, frozen=True):
    metadata: ObjectMeta


class _Key(NamedTuple):
    namespace: str
    name: str


class _Version(NamedTuple):
    uid: str
    resource_version: str


@dataclass(slots=True)
class _Known(Generic[T]):
    """What the consumer was told: enough to say later what has gone."""

    versions: dict[_Key, _Version] = field(default_factory=dict)

    def upsert(self, batch: "_Building[T]", item: T) -> None:
        key = _Key(item.metadata.namespace, item.metadata.name)
        version = _Version(item.metadata.uid, item.metadata.resource_version)
        before = self.versions.get(key)
        if before == version:
            return
        if before is not None and before.uid != version.uid:
            # Same name, another object: its deletion was missed, or stands in a gap between two lists.
            batch.delete(key, before.uid)
        self.versions[key] = version
        batch.upserts[key] = item

    def delete(self, batch: "_Building[T]", key: _Key) -> None:
        before = self.versions.pop(key, None)
        if before is not None:
            batch.delete(key, before.uid)


@dataclass(slots=True)
class _Building(Generic[T]):
    upserts: dict[_Key, T] = field(default_factory=dict)
    deletes: dict[ObjectRef, None] = field(default_factory=dict)

    def delete(self, key: _Key, uid: str) -> None:
        self.upserts.pop(key, None)
        self.deletes[ObjectRef(key.namespace, key.name, uid)] = None

    def done(self, synced: bool = False) -> KubeBatch[T]:
        return KubeBatch(tuple(self.upserts.values()), tuple(self.deletes), synced)


class Reflector(Generic[T]):
    """Follows all objects of a kind, in one namespace or in all."""

    def __init__(
        self,
        client: KubeClient,
        resource: Resource[T],
        namespace: str | None = None,
        *,
        on_state: Callable[[ReflectorState], None] | None = None,
        optional: bool = False,
    ) -> None:
        """`on_state` is told whenever the state changes. `optional`: end with NotFound when the kind is not served."""
        self.resource = resource
        self.state = ReflectorState(Phase.LISTING)
        self._on_state = on_state
        self.last_contact = float("-inf")  # time.monotonic() of the latest answer
        self._client = client
        self._namespace = namespace
        self._optional = optional
        self._decoder = msgspec.json.Decoder(resource.type)
        self._events = msgspec.json.Decoder(_Event)

    async def batches(self) -> AsyncGenerator[KubeBatch[T], None]:
        """Endless; each iteration starts with a list of everything.

        Close it (`contextlib.aclosing`) when you leave it early.
        """
        known: _Known[T] = _Known()
        backoff = Backoff()
        version: str | None = None
        failures = 0
        while True:
            opened = time.monotonic()
            try:
                if version is None:
                    self._enter(Phase.LISTING)
                    async for batch, listed in self._list(known):
                        version = listed
                        yield batch
                    backoff.reset()
                assert version is not None
                async with contextlib.aclosing(self._watch(known, version)) as watching:
                    async for changes, reached in watching:
                        version = reached
                        failures = 0
                        backoff.reset()
                        if changes is not None:
                            yield changes
                if time.monotonic() - opened > 1.0:
                    failures = 0
                    continue  # the ordinary end of a watch
                error: Exception = KubeError(0, "", f"watch {self.resource} ended at once")
            except Expired as expiry:
                log.info("%s: history is gone, listing again: %s", self.resource, expiry)
                # A list that expires between its pages would do so again at once.
                pause = backoff.pause() if version is None else 0.0
                version = None
                await asyncio.sleep(pause)
                continue
            except (KubeError, CredentialError) as failure:
                if self._optional and isinstance(failure, NotFound):
                    raise
                error = failure
            failures += 1
            if failures >= _FAILURES_BEFORE_LIST:
                version = None
                failures = 0
            await self._pause(backoff, error)

    def _enter(self, phase: Phase, error: str = "") -> None:
        # A new attempt keeps the error of the last one until it has succeeded.
        if phase is Phase.LISTING:
            error = self.state.error
        before, self.state = self.state, ReflectorState(phase, error)
        if self._on_state is not None and before != self.state:
            self._on_state(self.state)

    async def _pause(self, backoff: Backoff, error: Exception) -> None:
        text = str(error)
        if self.state.error != text:
            log.warning("%s: %s; retrying", self.resource, text)
        self._enter(Phase.RETRYING, text)
        await asyncio.sleep(backoff.pause(getattr(error, "retry_after", None) or 0.0))

    async def _list(self, known: _Known[T]) -> AsyncIterator[tuple[KubeBatch[T], str | None]]:
        """Batches and, with the last one, the resource version to watch from."""
        listed: set[_Key] = set()
        token, limit = "", PAGE
        while True:
            try:
                page = await self._client.page(self.resource, self._namespace, token=token, limit=limit)
            except Expired:
                if not token:
                    raise
                # The pages took longer than the server keeps history: all at once, then.
                token, limit = "", 0
                listed.clear()
                continue
            self.last_contact = time.monotonic()
            building: _Building[T] = _Building()
            for raw in page.items:
                self._take(known, building, raw, listed)
            token = page.token
            if token:
                yield building.done(), None
                continue
            for key in known.versions.keys() - listed:
                known.delete(building, key)
            yield building.done(synced=True), page.resource_version
            return

    async def _watch(self, known: _Known[T], version: str) -> AsyncGenerator[tuple[KubeBatch[T] | None, str], None]:
        """Batches (None when there was only a bookmark), each with the resource version it reaches."""
        seconds = random.randint(*_WATCH_SECONDS)
        splitter = LineSplitter()
        async with self._client.watch(
            self.resource, self._namespace, resource_version=version, seconds=seconds
        ) as chunks:
            self._enter(Phase.WATCHING)
            async for chunk in chunks:
                self.last_contact = time.monotonic()
                building: _Building[T] = _Building()
                refusal: KubeError | None = None
                lines = splitter.feed(chunk)
                for line in lines:
                    try:
                        version = self._event(known, building, line) or version
                    except KubeError as error:
                        refusal = error
                        break
                if building.upserts or building.deletes:
                    yield building.done(), version
                elif lines and refusal is None:
                    yield None, version
                if refusal is not None:
                    raise refusal

    def _event(self, known: _Known[T], building: _Building[T], line: bytes) -> str | None:
        """Take one event in; its resource version, if it has one. KubeError for an ERROR event."""
        try:
            event = self._events.decode(line)
        except msgspec.MsgspecError as error:
            # The stream was cut, or this is no event stream: resume from what is known.
            raise KubeError(200, "Undecodable", f"watch {self.resource}: event cannot be read: {error}") from None
        match event.type:
            case "ADDED" | "MODIFIED":
                return self._take(known, building, event.object, None)
            case "DELETED":
                meta = msgspec.json.decode(event.object, type=_Bookmark).metadata
                known.delete(building, _Key(meta.namespace, meta.name))
                return meta.resource_version
            case "BOOKMARK":
                return msgspec.json.decode(event.object, type=_Bookmark).metadata.resource_version
            case "ERROR":
                raise _refusal(self.resource, msgspec.json.decode(event.object, type=Status))
            case other:
                log.warning("%s: ignoring an event of unknown type %r", self.resource, other)
                return None

    def _take(self, known: _Known[T], building: _Building[T], raw: msgspec.Raw, listed: set[_Key] | None) -> str | None:
        """Take one object in. One that does not decode is named and kept out; what was known of it stays."""
        try:
            item = self._decoder.decode(raw)
        except msgspec.MsgspecError as error:
            try:
                meta = msgspec.json.decode(raw, type=_Bookmark).metadata
            except msgspec.MsgspecError:
                log.error("%s: an object without usable metadata is ignored: %s", self.resource, error)
                return None
            log.error("%s %s/%s is ignored: %s", self.resource, meta.namespace, meta.name, error)
            if listed is not None:
                listed.add(_Key(meta.namespace, meta.name))
            return meta.resource_version
        if listed is not None:
            listed.add(_Key(item.metadata.namespace, item.metadata.name))
        known.upsert(building, item)
        return item.metadata.resource_version


def _refusal(resource: Resource[T], status: Status) -> KubeError:
    message = f"watch {resource}: {status.message or status.reason or 'ended by the server'}"
    if status.code == 410 or status.reason in ("Expired", "Gone"):
        return Expired(status.code, status.reason, message)
    return KubeError(status.code, status.reason, message)
