"""A lease that is kept alive, and the knowledge that it, or the store under it, was lost."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from clustermesh.kvstore.backoff import Backoff
from clustermesh.kvstore.connection import CALL_TIMEOUT, Connection
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.rpc import etcd_pb2 as pb

log = logging.getLogger(__name__)

# Renewing costs etcd next to nothing, and it is also how a lost store is noticed: at least this often, in seconds.
LONGEST_INTERVAL = 10.0

# Nobody here asks for less than so many seconds, but in tests.
SHORTEST_TTL = 25


class Lease:
    """One lease; run() keeps it alive.

    ttl: seconds that the keys outlive us. lease_id: a number of our own choice, under which a restarted process finds
    its keys again: the lease is adopted if it still lives (with the ttl it was granted) and granted under that number
    otherwise. Keys without such a number belong to this process alone. prepare: awaited before a lease is obtained, and
    so before anything is written under it, at the start and in a store that was lost; its KvErrors are tried again.
    """

    def __init__(
        self,
        connection: Connection,
        ttl: int,
        lease_id: int | None = None,
        *,
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._connection = connection
        self._prepare = prepare
        self._ttl = ttl
        self._wanted_id = lease_id or 0
        self._id = 0
        self._granted = asyncio.Event()
        self._suspected = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self._interval = min(ttl / 3, LONGEST_INTERVAL)
        self._had_one = False
        self._distrusted = False
        self._cluster_id = 0
        self._revision = 0
        self.error: KvError | None = None
        connection.on_replaced(self._distrust)

    @property
    def id(self) -> int:
        """The lease's number; 0 until there is one."""
        return self._id

    async def granted(self) -> int:
        """Wait for a living lease and return its number."""
        await self._granted.wait()
        return self._id

    def on_loss(self, listener: Callable[[], None]) -> None:
        """Call listener whenever keys may be gone: the lease was lost (and granted again) or the store went back."""
        self._listeners.append(listener)

    def forget(self, listener: Callable[[], None]) -> None:
        """Call listener no more: a lease outlives many who write under it."""
        self._listeners.remove(listener)

    def suspect(self) -> None:
        """Say that etcd does not know the lease: granted() waits until that is cleared up."""
        self._granted.clear()
        self._suspected.set()

    def _distrust(self) -> None:
        """The store is not the one that it was, or an older copy."""
        self._distrusted = True
        self.suspect()

    async def run(self) -> None:
        """Obtain and renew the lease, for ever. Cancelling leaves it to expire, so that a restart finds its keys."""
        backoff = Backoff(limit=min(self._interval, 5.0))
        while True:
            try:
                if self._id and await self._renew():
                    self._granted.set()
                else:
                    await self._obtain()
                self._recovered()
                backoff.reset()
                wait = self._interval
            except KvError as error:
                self._failed(error)
                wait = backoff.next()
            await self._rest(wait)

    async def sustain(self) -> bool:
        """Renew the lease for whoever writes under it, and never grant it: its keys would be gone unnoticed.

        Instead of run(), for one who waits to take over. False if it does not live. KvError.
        """
        self._id = self._wanted_id
        return await self._renew()

    async def revoke(self) -> None:
        """End the lease and delete all its keys now; only after run() has ended."""
        if self._id:
            lease_id, self._id = self._id, 0
            self._granted.clear()
            await self._end(lease_id)

    async def _end(self, lease_id: int) -> None:
        try:
            await self._connection.unary(lambda session: session.lease.LeaseRevoke, pb.LeaseRevokeRequest(ID=lease_id))
        except KvError as error:
            if error.stage is not Stage.LEASE:
                raise

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._suspected.wait()
        self._suspected.clear()

    def _recovered(self) -> None:
        if self.error is not None:
            log.info("lease %x: renewed again", self._id)
        self.error = None

    def _failed(self, error: KvError) -> None:
        if self.error is None or self.error.stage is not error.stage:
            log.warning("lease %x: %s", self._id or self._wanted_id, error)
        self.error = error

    async def _obtain(self) -> None:
        """Adopt the lease that we asked for if it lives, or have it granted."""
        if self._prepare is not None:
            await self._prepare()
        ttl = await self._adopt() if self._wanted_id else 0
        if not ttl:
            ttl = await self._grant()
        self._interval = min(ttl / 3, LONGEST_INTERVAL)
        self._granted.set()
        if self._had_one:
            log.warning("lease %x: granted anew, its keys have to be written again", self._id)
            self._tell()
        self._had_one = True

    async def _adopt(self) -> int:
        request = pb.LeaseTimeToLiveRequest(ID=self._wanted_id)
        answer = await self._connection.unary(lambda session: session.lease.LeaseTimeToLive, request)
        if answer.TTL <= 0:
            return 0
        if answer.grantedTTL < min(self._ttl, SHORTEST_TTL):
            # etcd lets any client grant leases, and our number is easily guessed.
            log.warning("lease %x: somebody else granted it, for %d s: it is ended", self._wanted_id, answer.grantedTTL)
            await self._end(self._wanted_id)
            return 0
        self._id = self._wanted_id
        if not await self._renew():
            return 0
        log.info("lease %x: adopted", self._id)
        return int(answer.grantedTTL)

    async def _grant(self) -> int:
        request = pb.LeaseGrantRequest(TTL=self._ttl, ID=self._wanted_id)
        answer = await self._connection.unary(lambda session: session.lease.LeaseGrant, request)
        self._id = answer.ID
        self._cluster_id = answer.header.cluster_id
        self._revision = answer.header.revision
        return int(answer.TTL)

    async def _renew(self) -> bool:
        """Ask for more time; False if etcd does not know the lease."""
        async with self._connection.session() as session:
            call = session.lease.LeaseKeepAlive()
            try:
                async with asyncio.timeout(CALL_TIMEOUT):
                    await session.outcome(call.write(pb.LeaseKeepAliveRequest(ID=self._id)))
                    answer = await session.receive(call)
            except TimeoutError as error:
                raise KvError(Stage.TIMEOUT, "no answer to the lease's renewal", str(session.endpoint)) from error
            finally:
                call.cancel()
        if answer.TTL <= 0:
            self._id = 0
            self._granted.clear()
            return False
        self._look_at_store(answer.header.cluster_id, answer.header.revision)
        return True

    def _look_at_store(self, cluster_id: int, revision: int) -> None:
        """A lease may live in a store that was restored from an older copy; its keys are then old as well."""
        went_back = self._cluster_id and (cluster_id != self._cluster_id or revision < self._revision)
        went_back, self._distrusted = went_back or self._distrusted, False
        self._cluster_id, self._revision = cluster_id, revision
        if went_back:
            log.warning(
                "lease %x: the store went back to revision %d, keys have to be written again", self._id, revision
            )
            self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()
