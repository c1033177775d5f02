"""A connection whose writes count only while nobody else has taken its place.

The fence is a key that holds the token of the one process that may write. Each write is a transaction that compares
it, so etcd itself refuses one who was replaced, however late he notices: no clock and no good will is needed.
Whoever puts his token there must know from elsewhere that it is his turn.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from clustermesh.kvstore.connection import CALL_TIMEOUT, Connection, KeyValue
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.keyspace import Key, to_bytes
from clustermesh.kvstore.rpc import etcd_pb2 as pb
from clustermesh.kvstore.session import Session
from clustermesh.kvstore.tls import TlsFiles, TlsPem

LOOK_TIMEOUT = 4.0  # seconds

# These change nothing, so they need no leave.
_READS = (
    pb.RangeRequest,
    pb.StatusRequest,
    pb.LeaseTimeToLiveRequest,
    pb.AuthStatusRequest,
    pb.AuthUserListRequest,
    pb.AuthUserGetRequest,
    pb.AuthRoleListRequest,
    pb.AuthRoleGetRequest,
)


class FencedConnection(Connection):
    """A Connection that writes only while the key `fence` holds `token`; refused writes are KvError(FENCED).

    Keys are guarded by etcd itself. Users, roles and leases cannot be part of a transaction: before them the fence is
    looked at. `broken` is set whenever somebody else's token, or none, was found. Renewing a lease stays allowed.
    """

    def __init__(self, endpoints: Sequence[str], tls: TlsFiles | TlsPem | None, *, fence: Key, token: str) -> None:
        super().__init__(endpoints, tls)
        self.broken = asyncio.Event()
        self._fence = to_bytes(fence)
        self._token = token.encode()

    def holds(self, found: KeyValue | None) -> bool:
        """Whether the fence, as it was found, lets us write."""
        return found is not None and found.value == self._token

    async def look(self) -> KeyValue | None:
        """The fence as it stands."""
        page = await self.range(self._fence, timeout=LOOK_TIMEOUT)
        return page.kvs[0] if page.kvs else None

    async def take(self, found: KeyValue | None) -> bool:
        """Put our token there, unless it has been changed since it was `found`."""
        seen = 0 if found is None else found.mod_revision
        guard = pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=self._fence, mod_revision=seen)
        put = pb.RequestOp(request_put=pb.PutRequest(key=self._fence, value=self._token))
        answer = await super().unary(lambda session: session.kv.Txn, pb.TxnRequest(compare=[guard], success=[put]))
        if answer.succeeded:
            self.broken.clear()
        return bool(answer.succeeded)

    async def unary(self, method: Callable[[Session], Any], request: Any, *, timeout: float = CALL_TIMEOUT) -> Any:
        """As for any connection, within the fence."""
        if isinstance(request, _READS):
            return await super().unary(method, request, timeout=timeout)
        if isinstance(request, pb.TxnRequest):
            return await self._transact(request, timeout)
        if isinstance(request, pb.PutRequest):
            put = pb.RequestOp(request_put=request)
            return await self._alone(put, lambda response: response.response_put, timeout)
        if isinstance(request, pb.DeleteRangeRequest):
            delete = pb.RequestOp(request_delete_range=request)
            return await self._alone(delete, lambda response: response.response_delete_range, timeout)
        if not self.holds(await self.look()):
            raise self._refused()
        return await super().unary(method, request, timeout=timeout)

    async def _alone(self, operation: Any, part: Callable[[Any], Any], timeout: float) -> Any:
        """One operation as a transaction, with the answer that it would have got outside."""
        whole = await self._transact(pb.TxnRequest(success=[operation]), timeout)
        answer = part(whole.responses[0])
        answer.header.CopyFrom(whole.header)
        return answer

    async def _transact(self, request: Any, timeout: float) -> Any:
        # Into the caller's message, which is used once: a large one is dear to copy.
        request.compare.append(
            pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.VALUE, key=self._fence, value=self._token)
        )
        # Tells a broken fence from another comparison that failed.
        request.failure.append(pb.RequestOp(request_range=pb.RangeRequest(key=self._fence)))
        answer = await super().unary(lambda session: session.kv.Txn, request, timeout=timeout)
        if not answer.succeeded:
            found = answer.responses[-1].response_range.kvs
            if not (found and found[0].value == self._token):
                raise self._refused()
            del answer.responses[-1]
        return answer

    def _refused(self) -> KvError:
        self.broken.set()
        return KvError(Stage.FENCED, "another replica has taken over, or etcd lost the leader's key", self.endpoint)
