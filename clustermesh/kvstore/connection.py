"""A connection to one etcd cluster: its key-value operations with typed errors.

gRPC reconnects by itself; the Connection adds what it does not: other endpoints when one fails, new credentials
when files change, and an answer to the question why it does not work.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

from clustermesh.kvstore.endpoint import Endpoint
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.keyspace import Key, prefix_range, successor, to_bytes
from clustermesh.kvstore.rpc import etcd_pb2 as pb
from clustermesh.kvstore.session import Session
from clustermesh.kvstore.tls import Stamp, TlsFiles, TlsPem

__all__ = ["Change", "Connection", "KeyValue", "Outcome", "Page", "ServerStatus", "TlsFiles", "TlsPem"]

log = logging.getLogger(__name__)

# Seconds an operation may take, a page of a list, and between two looks at the certificate files.
CALL_TIMEOUT = 10.0
PAGE_TIMEOUT = 30.0
FILES_CHECK = 1.0

# Keys per page of a list: etcd walks the index behind each page to its end, so that small pages cost it much more.
PAGE = 10_000

# Stages that speak of one endpoint, so that another one may do better.
_ENDPOINT_STAGES = frozenset({Stage.DNS, Stage.TCP, Stage.TLS, Stage.UNAVAILABLE, Stage.TIMEOUT})

# Operations whose answers tell at least the revision that any earlier one told.
_IN_ORDER = (pb.RangeRequest, pb.PutRequest, pb.DeleteRangeRequest, pb.TxnRequest)


class KeyValue(NamedTuple):
    """One key of the store; lease is 0 for a key without one."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class Page:
    """One answer to a range: more says that keys are left, count how many there are in the whole range."""

    kvs: list[KeyValue]
    more: bool
    count: int
    revision: int


class Change(NamedTuple):
    """A write: value None deletes the key."""

    key: bytes
    value: bytes | None
    lease: int = 0


class Outcome(NamedTuple):
    """The end of a guarded write: the store's revision after it and, if it was refused, the key as it stands."""

    succeeded: bool
    revision: int
    current: KeyValue | None


class ServerStatus(NamedTuple):
    """What a member says of itself: sizes in bytes, alarms as etcd's texts."""

    version: str
    revision: int
    db_size: int
    db_size_in_use: int
    leader: int
    alarms: tuple[str, ...]


class Connection:
    """Operations on one etcd cluster. Safe for any number of tasks of one event loop.

    endpoints: "https://host:port", tried in turn. server_name: the name that the server's certificate must carry
    instead of the endpoint's host. All operations raise KvError.
    """

    def __init__(
        self, endpoints: Sequence[str], tls: TlsFiles | TlsPem | None, *, server_name: str | None = None
    ) -> None:
        """Raises ValueError for an endpoint that is not a URL of etcd; connects on the first operation."""
        if not endpoints:
            raise ValueError("no etcd endpoints given")
        self._endpoints = [Endpoint.parse(url) for url in endpoints]
        self._tls = tls
        self._server_name = server_name
        self._at = 0
        self._session: Session | None = None
        self._stamp: Stamp | None = None
        self._stamp_checked = float("-inf")
        self._closed = False
        self.cluster_id: int | None = None
        self.revision = 0  # the newest that was seen
        self._listeners: list[Callable[[], None]] = []
        self.last_error: KvError | None = None

    @property
    def endpoint(self) -> str:
        """URL of the member that operations go to now."""
        return str(self._endpoints[self._at])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; operations under way and later ones fail."""
        self._closed = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def update_tls(self, tls: TlsPem) -> None:
        """Use other credentials from now on; feeds move over at their next sign of life."""
        if tls != self._tls:
            self._tls = tls
            await self._drop_session()

    async def redial(self) -> None:
        """Connect anew for the next operation, at once: gRPC itself would let up to two seconds pass."""
        await self._drop_session()

    async def get(self, key: Key) -> KeyValue | None:
        """The key as it stands, or None."""
        page = await self.range(key)
        return page.kvs[0] if page.kvs else None

    async def range(
        self,
        key: Key,
        end: bytes | None = None,
        *,
        limit: int = 0,
        revision: int = 0,
        keys_only: bool = False,
        timeout: float = PAGE_TIMEOUT,
    ) -> Page:
        """Keys from key on, before end (None: that key alone), in order; limit 0 means all, revision 0 means now.

        Raises KvError(COMPACTED) or KvError(FUTURE) for a revision that etcd does not have.
        """
        response = await self.range_raw(
            to_bytes(key), end, limit=limit, revision=revision, keys_only=keys_only, timeout=timeout
        )
        kvs = [_key_value(kv) for kv in response.kvs]
        return Page(kvs, response.more, response.count, response.header.revision)

    async def range_raw(
        self,
        key: bytes,
        end: bytes | None,
        *,
        limit: int,
        revision: int,
        keys_only: bool = False,
        timeout: float = PAGE_TIMEOUT,
    ) -> Any:
        """The same as etcd's own message, for those who read hundreds of thousands of keys."""
        # No sort order: etcd answers in key order anyway, and asked to sort it would read the whole rest per page.
        request = pb.RangeRequest(key=key, range_end=end, limit=limit, revision=revision, keys_only=keys_only)
        return await self.unary(lambda session: session.kv.Range, request, timeout=timeout)

    async def list(self, prefix: Key, *, page: int = PAGE) -> AsyncGenerator[list[KeyValue], None]:
        """All keys under a prefix, in order, in pages, as they stood when the first page was read.

        Raises KvError(COMPACTED) if that revision goes away between pages: start again.
        """
        start, end = prefix_range(prefix)
        async with aclosing(self.pages(start, end, page=page)) as answers:
            async for answer in answers:
                if answer.kvs:
                    yield [_key_value(kv) for kv in answer.kvs]

    async def pages(self, start: bytes, end: bytes | None, *, page: int) -> AsyncGenerator[Any, None]:
        """A range as etcd's own messages, pinned to the first one's revision; the next is under way while one is used.

        Raises KvError(REPLACED) if another store answers between pages.
        """
        answer, asked = await self._page(start, end, page, 0)
        header = answer.header
        while answer.more:
            following, limit = successor(answer.kvs[-1].key), min(page, 2 * asked)
            ahead = asyncio.create_task(self._page(following, end, limit, header.revision))
            try:
                yield answer
            except GeneratorExit:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)
                raise
            answer, asked = await ahead
            if answer.header.cluster_id != header.cluster_id:
                raise KvError(Stage.REPLACED, "another etcd cluster answers within a list", self.endpoint)
        yield answer

    async def _page(self, start: bytes, end: bytes | None, limit: int, revision: int) -> tuple[Any, int]:
        """A range of at most `limit` keys, or of fewer if they make too large an answer, and how many it was then."""
        while True:
            try:
                return await self.range_raw(start, end, limit=limit, revision=revision), limit
            except KvError as error:
                if error.stage is not Stage.TOO_LARGE or limit == 1:
                    raise
                limit = max(1, limit // 8)

    async def count(self, prefix: Key) -> int:
        """How many keys there are under a prefix."""
        start, end = prefix_range(prefix)
        request = pb.RangeRequest(key=start, range_end=end, count_only=True)
        response = await self.unary(lambda session: session.kv.Range, request)
        return int(response.count)

    async def current_revision(self, key: Key = b"\0") -> int:
        """The store's revision now; costs the right to read key, which need not exist."""
        return (await self.range(key, keys_only=True)).revision

    async def put(self, key: Key, value: bytes, lease: int = 0) -> int:
        """Write a key; returns the new revision. Raises KvError(LEASE) if the lease does not live."""
        request = pb.PutRequest(key=to_bytes(key), value=value, lease=lease)
        response = await self.unary(lambda session: session.kv.Put, request)
        return int(response.header.revision)

    async def delete(self, key: Key) -> bool:
        """Delete a key; returns whether it was there."""
        request = pb.DeleteRangeRequest(key=to_bytes(key))
        response = await self.unary(lambda session: session.kv.DeleteRange, request)
        return bool(response.deleted)

    async def delete_prefix(self, prefix: Key) -> int:
        """Delete all keys under a prefix in one revision; returns how many there were."""
        start, end = prefix_range(prefix)
        request = pb.DeleteRangeRequest(key=start, range_end=end)
        response = await self.unary(lambda session: session.kv.DeleteRange, request, timeout=PAGE_TIMEOUT)
        return int(response.deleted)

    async def commit(self, changes: Sequence[Change]) -> int:
        """Apply changes in one revision, which is returned. Each key at most once; etcd takes 128 by default.

        Raises KvError(TOO_MANY) beyond what this etcd takes.
        """
        request = pb.TxnRequest()
        for change in changes:
            _add(request, change)
        response = await self.unary(lambda session: session.kv.Txn, request)
        return int(response.header.revision)

    async def compare_and_put(self, key: Key, value: bytes, mod_revision: int, lease: int = 0) -> bool:
        """Write a key only if it was last changed at mod_revision (0: only if it does not exist)."""
        return (await self.guarded_put(key, value, mod_revision, lease)).succeeded

    async def guarded_put(self, key: Key, value: bytes, mod_revision: int, lease: int = 0) -> Outcome:
        """Like compare_and_put, and tells how the key stands if it was refused."""
        return await self._guarded(Change(to_bytes(key), value, lease), mod_revision)

    async def guarded_delete(self, key: Key, mod_revision: int) -> Outcome:
        """Delete a key only if it was last changed at mod_revision."""
        return await self._guarded(Change(to_bytes(key), None), mod_revision)

    async def _guarded(self, change: Change, mod_revision: int) -> Outcome:
        guard = pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=change.key, mod_revision=mod_revision)
        look = pb.RequestOp(request_range=pb.RangeRequest(key=change.key))
        request = pb.TxnRequest(compare=[guard], failure=[look])
        _add(request, change)
        response = await self.unary(lambda session: session.kv.Txn, request)
        current = None
        if not response.succeeded:
            found = response.responses[0].response_range.kvs
            current = _key_value(found[0]) if found else None
        return Outcome(response.succeeded, response.header.revision, current)

    async def compact(self, revision: int, *, physical: bool = False) -> None:
        """Forget the history before revision; physical waits until it is gone from the disk."""
        request = pb.CompactionRequest(revision=revision, physical=physical)
        await self.unary(lambda session: session.kv.Compact, request, timeout=PAGE_TIMEOUT)

    async def status(self) -> ServerStatus:
        """What the member we are connected to says of itself; needs no rights."""
        answer = await self.unary(lambda session: session.maintenance.Status, pb.StatusRequest())
        return ServerStatus(
            version=answer.version,
            revision=answer.header.revision,
            db_size=answer.dbSize,
            db_size_in_use=answer.dbSizeInUse,
            leader=answer.leader,
            alarms=tuple(answer.errors),
        )

    async def unary(self, method: Callable[[Session], Any], request: Any, *, timeout: float = CALL_TIMEOUT) -> Any:
        """One call of a stub's method and its answer; the way for this package's other modules."""
        seen = self.revision
        async with self.session() as session:
            response = await session.outcome(method(session)(request, timeout=timeout))
        header = response.header
        known, self.cluster_id = self.cluster_id, header.cluster_id
        self.last_error = None
        if known not in (None, header.cluster_id):
            self.revision = header.revision
            await self._replaced(session, known)
            self._tell()
        elif isinstance(request, _IN_ORDER):
            # Other answers come from a member that may lag. One to a call made later than the newest answer does not.
            went_back = header.revision < seen
            self.revision = header.revision if went_back else max(self.revision, header.revision)
            if went_back:
                log.warning("%s: the store went back from revision %d to %d", self.endpoint, seen, header.revision)
                self._tell()
        return response

    def on_replaced(self, listener: Callable[[], None]) -> None:
        """Call listener when another store answers, or an older copy of the one that answered before."""
        self._listeners.append(listener)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    async def _replaced(self, session: Session, known: int | None) -> None:
        """Another store answers: streams that were opened on the old one have to look again, at once."""
        log.warning("%s: etcd cluster %x answers instead of %x", self.endpoint, self.cluster_id, known)
        if session is self._session:
            await self._drop_session()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """The session for a new call; a failure of its endpoint inside moves the next calls to another endpoint."""
        try:
            session = await self._current()
        except KvError as error:
            self.last_error = error
            raise
        async with session:
            try:
                yield session
            except KvError as error:
                await self._failed(session, error)
                raise

    async def refresh(self) -> None:
        """Notice changed certificate files; every operation does, long-lived streams have to ask."""
        await self._current()

    async def _current(self) -> Session:
        if self._closed:
            raise KvError(Stage.UNAVAILABLE, "the connection is closed", self.endpoint)
        stamp = self._changed_files()
        if self._session is not None and stamp is None:
            return self._session
        try:
            fresh = self._open()
        except KvError as error:
            if self._session is None:
                raise
            # Half of the files are replaced: the old credentials serve until the set is whole.
            log.warning("%s: changed certificate files are not usable yet: %s", self.endpoint, error)
            return self._session
        old, self._session = self._session, fresh
        if stamp is not None:
            self._stamp = stamp
        if old is not None:
            log.info("%s: certificate files changed, new connection", self.endpoint)
            await old.retire()
        return fresh

    def _open(self) -> Session:
        pem = self._tls.read() if isinstance(self._tls, TlsFiles) else self._tls
        return Session(self._endpoints[self._at], pem, self._server_name)

    def _changed_files(self) -> Stamp | None:
        """The stamp of the certificate files if they are not those that the session was made with."""
        if not isinstance(self._tls, TlsFiles):
            return None
        now = asyncio.get_running_loop().time()
        if self._session is not None and now - self._stamp_checked < FILES_CHECK:
            return None
        self._stamp_checked = now
        stamp = self._tls.stamp()
        return stamp if stamp != self._stamp else None

    async def _failed(self, session: Session, error: KvError) -> None:
        self.last_error = error
        if session is self._session and len(self._endpoints) > 1 and error.stage in _ENDPOINT_STAGES:
            self._at = (self._at + 1) % len(self._endpoints)
            log.warning("%s; trying %s next", error, self.endpoint)
            await self._drop_session()

    async def _drop_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.retire()


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def _add(request: Any, change: Change) -> None:
    """Filled in place: built and then copied into the transaction, an operation costs twice as much."""
    operation = request.success.add()
    if change.value is None:
        operation.request_delete_range.key = change.key
        return
    put = operation.request_put
    put.key, put.value = change.key, change.value
    if change.lease:
        put.lease = change.lease
