"""A peer that was removed is cut off: what it had open towards etcd ends.

etcd asks for a user's rights only when a watch begins, so a deleted user's watches would last as long as its
connection. TLS hides whose connection is whose, so every connection to etcd's client port is reset but those of this
process. An honest client, agents among them, resumes at its revision a moment later; the removed one is refused.

Which users are being removed stands in etcd, so that a crash between deletion and cut loses nothing, and so that a
replica cuts that shares etcd's network namespace, be it the leader or not: it clears the key when it has done it.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Collection, Iterable, Sequence
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter

from apiserver import inet_diag
from apiserver.inet_diag import TcpSocket
from clustermesh.kvstore.auth import AuthAdmin
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.endpoint import Endpoint
from clustermesh.kvstore.errors import KvError
from clustermesh.kvstore.feed import Feed
from clustermesh.wire import keys

log = logging.getLogger(__name__)

REVOCATIONS = keys.PRIVATE + "revocations/"  # then the user; the value is one of these:
_BEGUN, _DONE = b"begun", b"deleted"

# Seconds that a replica beside etcd has to cut before one that cannot says that nobody did.
PATIENCE = 5.0
_REMEDY = "restart etcd to end what it has open"


class CutError(Exception):
    """Connections cannot be cut from here; the text says why."""


async def revoke(connection: Connection, user: str) -> None:
    """Delete a user and have its connections cut, by this process or another one. KvError: to be asked for again."""
    await connection.put(REVOCATIONS + user, _BEGUN)
    await AuthAdmin(connection).delete_user(user)
    await connection.put(REVOCATIONS + user, _DONE)


async def cut_off(connection: Connection, whom: str) -> None:
    """Rights were taken from a user or a role that still exists: what is open by them ends as well. KvError."""
    await connection.put(REVOCATIONS + whom, _DONE)


async def unfinished(connection: Connection) -> set[str]:
    """Users whose revocation was interrupted. KvError."""
    found = set()
    async for page in connection.list(REVOCATIONS):
        found |= {kv.key.decode(errors="replace")[len(REVOCATIONS) :] for kv in page if kv.value == _BEGUN}
    return found


async def reinstate(connection: Connection, user: str) -> None:
    """The user is wanted again: what is open under its name may stay. KvError."""
    await connection.delete(REVOCATIONS + user)


class Cutter:
    """Cuts connections whenever a user has been deleted, for ever.

    connection: its deletions need no leadership. endpoints: of etcd; none can be cut in another network namespace.
    """

    def __init__(
        self,
        connection: Connection,
        endpoints: Sequence[str],
        registry: CollectorRegistry,
        *,
        patience: float = PATIENCE,
    ) -> None:
        self._connection = connection
        self._endpoints = [Endpoint.parse(url) for url in endpoints]
        self._patience = patience
        self._results = Counter(
            "clustermesh_apiserver_revocations",
            "Removed users (or rights) whose open connections to etcd were cut, or (failed) still are open",
            ("result",),
            registry=registry,
        )
        for result in ("cut", "failed"):
            self._results.labels(result)

    async def run(self) -> None:
        async with aclosing(Feed(self._connection, REVOCATIONS).batches()) as batches:
            async for batch in batches:
                deleted = {event.key: event.mod_revision for event in batch.events if event.value == _DONE}
                if deleted:
                    await self._enforce(deleted)

    async def _enforce(self, deleted: dict[bytes, int]) -> None:
        users = ", ".join(key.decode(errors="replace")[len(REVOCATIONS) :] for key in deleted)
        try:
            count = await asyncio.to_thread(cut, self._endpoints)
        except CutError as error:
            await self._leave_to_others(deleted, f"{users}: watches opened before stay open: {error}: {_REMEDY}")
            return
        log.info("%s: %d connections to etcd were cut, other users resume", users, count)
        self._results.labels("cut").inc(len(deleted))
        try:
            for key, revision in deleted.items():
                await self._connection.guarded_delete(key, revision)
        except KvError as error:
            log.warning("%s: cut off, but will be again after the next start: %s", users, error)

    async def _leave_to_others(self, deleted: dict[bytes, int], problem: str) -> None:
        await asyncio.sleep(self._patience)
        try:
            left = [key for key, revision in deleted.items() if await self._stands(key, revision)]
        except KvError as error:
            log.warning("%s", error)
            left = list(deleted)
        if left:
            log.error("%s", problem)
            self._results.labels("failed").inc(len(left))

    async def _stands(self, key: bytes, revision: int) -> bool:
        found = await self._connection.get(key)
        return found is not None and found.mod_revision == revision


def cut(endpoints: Iterable[Endpoint]) -> int:
    """Reset the connections to etcd that are not this process' own; how many. Blocks shortly. CutError."""
    try:
        listeners = inet_diag.listening()
        for endpoint in endpoints:
            if not _is_here(endpoint, listeners):
                raise CutError(f"{endpoint} is not in the network namespace of this process")
        ports = {endpoint.port for endpoint in endpoints}
        targets = foreign(inet_diag.established(), listeners, ports, inet_diag.own_inodes())
        for target in targets:
            inet_diag.destroy(target)
        left = {found.key for found in inet_diag.established()}.intersection(target.key for target in targets)
    except PermissionError:
        raise CutError("the kernel wants CAP_NET_ADMIN for it: add it to this container's capabilities") from None
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise CutError("this kernel was built without CONFIG_INET_DIAG_DESTROY") from None
        raise CutError(str(error)) from None
    except ValueError as error:
        raise CutError(f"the kernel's answer cannot be read: {error}") from None
    if left:
        raise CutError(f"{len(left)} of {len(targets)} connections are still there")
    return len(targets)


def foreign(
    connections: Iterable[TcpSocket], listeners: Iterable[TcpSocket], ports: Collection[int], own: Collection[int]
) -> list[TcpSocket]:
    """The servers' ends on `ports` of connections that do not begin in a socket of ours (`own`: inodes)."""
    everything = list(connections)
    serving = {(listener.local, listener.local_port) for listener in listeners if listener.local_port in ports}
    anywhere = {port for address, port in serving if address.is_unspecified}
    ours = {(one.local, one.local_port, one.remote, one.remote_port) for one in everything if one.inode in own}
    return [
        one
        for one in everything
        if ((one.local, one.local_port) in serving or one.local_port in anywhere)
        and (one.remote, one.remote_port, one.local, one.local_port) not in ours
    ]


def _is_here(endpoint: Endpoint, listeners: Iterable[TcpSocket]) -> bool:
    """Whether every address of the endpoint is this namespace's own, and somebody listens there."""
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise CutError(f"{endpoint.host} does not resolve: {error}") from None
    listening = {(str(one.local), one.local_port) for one in listeners}
    return all(
        _is_local(family, str(address[0]))
        and any((host, endpoint.port) in listening for host in (str(address[0]), "0.0.0.0", "::"))
        for family, _, _, _, address in found
    )


def _is_local(family: int, address: str) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
