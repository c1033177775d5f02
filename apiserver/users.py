"""Who may do what in this cluster's etcd. A user is the common name of a client certificate.

Peers read only what this cluster exports; what it mirrors from third clusters and what is private stays closed to them.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress

from apiserver import revocation
from apiserver.health import Health
from clustermesh import pki
from clustermesh.kvstore.auth import AuthAdmin, Permission
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.errors import KvError
from clustermesh.wire import keys

log = logging.getLogger(__name__)

LOCAL = "local"
REMOTE = "remote"
_REMOTE_PREFIX = pki.remote_user("")
_SHARED = "remote"  # a store that Cilium filled before may have it; every peer has a user of its own here

# Seconds between looks whether users, roles and access control are still as they should be. Roles are few and compared
# every time; of the peers' users so many at a time, which bounds what a look costs etcd.
CHECK_EVERY = 5.0
_COMPARED_AT_ONCE = 16
_RETRY = 2.0
_CLAIM = "etcd users"


def roles(cluster: str) -> Mapping[str, tuple[Permission, ...]]:
    """The restricted roles of `cluster`'s etcd."""
    return {
        LOCAL: (
            Permission("read", keys.HEARTBEAT),
            Permission("read", keys.CACHE),
            Permission("read", keys.STATE),
            Permission("read", keys.CLUSTER_CONFIGS),
            Permission("read", keys.SYNCED),
            Permission("read", keys.PRIVATE),
            Permission("readwrite", keys.AGENTS),
        ),
        REMOTE: (
            Permission("read", keys.HEARTBEAT),
            Permission("read", keys.STATE),
            Permission("read", keys.synced_prefix(cluster)),
            Permission("read", keys.cluster_config(cluster), exact=True),
        ),
    }


def own_users(cluster: str) -> Mapping[str, tuple[str, ...]]:
    """The users that exist whether or not there are peers, with their roles."""
    return {"root": ("root",), f"admin-{cluster}": ("root",), f"local-{cluster}": (LOCAL,)}


def surplus(users: list[str], peers: frozenset[str]) -> list[str]:
    """Users of peers that there are no more, and the one that all peers of older Cilium share."""
    wanted = {pki.remote_user(peer) for peer in peers}
    return sorted(user for user in users if user == _SHARED or (user.startswith(_REMOTE_PREFIX) and user not in wanted))


def foreign(cluster: str, users: Iterable[str], roles_found: Iterable[str]) -> list[str]:
    """Users and roles that are nobody's here. Who made them may need them, so they are named and left alone."""
    own = own_users(cluster).keys() | {_SHARED}
    strangers = {user for user in users if user not in own and not user.startswith(_REMOTE_PREFIX)}
    others = set(roles_found) - roles(cluster).keys() - {"root"}
    return [*(f"user {name}" for name in sorted(strangers)), *(f"role {name}" for name in sorted(others))]


class EtcdUsers:
    """Keeps etcd's users equal to what is wanted, also after etcd was lost and rebuilt or somebody changed them."""

    def __init__(self, connection: Connection, cluster: str, health: Health | None = None) -> None:
        self._connection = connection
        self._admin = AuthAdmin(connection)
        self._cluster = cluster
        self._peers: frozenset[str] = frozenset()
        # Until all peers are known no user is deleted.
        self._complete = False
        # What this etcd was brought up to since we started, or since it was rebuilt.
        self._prepared = False
        self._ensured: set[str] = set()
        self._compared: deque[str] = deque()  # the peers' users in the order in which they are compared again
        # Whether everything is to be compared as well, and interrupted revocations to be finished.
        self._thorough = True
        self._resumed = False
        self._unguarded = False  # clients may have opened what nobody had to allow them
        self._foreign: list[str] = []
        self._turn = asyncio.Lock()
        self._suspected = asyncio.Event()
        self._health = health or Health()
        self._health.set(_CLAIM, False, "not in place yet")

    async def set_peers(self, peers: frozenset[str]) -> None:
        """Exactly these peers may read. They are remembered even if etcd cannot be reached now (KvError)."""
        self._peers = peers
        self._complete = True
        await self.ensure()

    def suspect(self) -> None:
        """The store may be another one: look now. Until its users are back, every client of our CA may do anything."""
        self._suspected.set()

    async def run(self) -> None:
        """Look again and again; an etcd without our users gets them back."""
        failed = ""
        while True:
            try:
                self._thorough = True
                await self.ensure()
                failed = ""
            except KvError as error:
                if str(error) != failed:
                    log.warning("etcd users cannot be kept up: %s", error)
                failed = str(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY if failed else CHECK_EVERY):
                    await self._suspected.wait()
            self._suspected.clear()

    async def ensure(self) -> None:
        """Look, and bring back what is missing. To be awaited before anything is written to an etcd. KvError."""
        async with self._turn:
            try:
                await self._reconcile()
            except KvError as error:
                if not self._prepared:
                    self._health.set(_CLAIM, False, str(error))
                raise

    async def _reconcile(self) -> None:
        present = await self._admin.users()
        if not own_users(self._cluster).keys() <= set(present):
            self._unguarded |= self._prepared
            self._prepared = False
            self._ensured.clear()
        if self._thorough or not self._prepared:
            await self._prepare(present)
            await self._compare_some()
            self._thorough, self._prepared = False, True
            self._health.set(_CLAIM, True)
        if not self._complete:
            return
        await self._admit(set(present))
        interrupted = await self._interrupted()
        gone = surplus([*present, *interrupted], self._peers)
        for user in gone:
            await revocation.revoke(self._connection, user)
            log.info("etcd user %s is gone", user)
        for user in interrupted.difference(gone):
            await revocation.reinstate(self._connection, user)

    async def _prepare(self, users: list[str]) -> None:
        """Roles, own users and access control are there."""
        found = await self._admin.roles()
        if not roles(self._cluster).keys() <= set(found):
            self._ensured.clear()  # a role that was deleted left its users without it
        for role, permissions in roles(self._cluster).items():
            if await self._admin.ensure_role(role, permissions):
                await self._narrowed(f"role {role}")
        for user, user_roles in own_users(self._cluster).items():
            if await self._admin.ensure_user(user, user_roles):
                await self._narrowed(f"user {user}")
        if await self._admin.enable() and users:
            log.error("etcd's access control was off: it is on again")
            self._unguarded = True
        if self._unguarded:
            await revocation.cut_off(self._connection, "everybody")
            self._unguarded = False
        self._tell_foreign(foreign(self._cluster, users, found))

    async def _compare_some(self) -> None:
        """That the next few of the peers' users have no other roles than theirs."""
        for _ in range(min(_COMPARED_AT_ONCE, len(self._compared))):
            peer = self._compared.popleft()
            if peer in self._ensured and peer not in self._compared:
                await self._ensure_peer(peer)

    async def _admit(self, present: set[str]) -> None:
        """Every peer has its user."""
        self._ensured &= {peer for peer in self._peers if pki.remote_user(peer) in present}
        for peer in sorted(self._peers - self._ensured):
            user = pki.remote_user(peer)
            if user not in present:
                await revocation.reinstate(self._connection, user)
            await self._ensure_peer(peer)
            log.info("etcd user %s may read what this cluster exports", user)

    async def _ensure_peer(self, peer: str) -> None:
        user = pki.remote_user(peer)
        if await self._admin.ensure_user(user, (REMOTE,)):
            await self._narrowed(f"user {user}")
        self._ensured.add(peer)
        self._compared.append(peer)

    async def _narrowed(self, whom: str) -> None:
        """Somebody had more rights than we gave; what is open by them ends."""
        log.error("etcd: %s had rights that are not its own: they are taken away", whom)
        await revocation.cut_off(self._connection, whom)

    def _tell_foreign(self, found: list[str]) -> None:
        if found != self._foreign:
            self._foreign = found
            text = f"etcd has {', '.join(found)}, which nobody here made: remove what is not needed" if found else ""
            self._health.note(_CLAIM, text)
            if text:
                log.warning("%s", text)

    async def _interrupted(self) -> set[str]:
        """What an earlier process began to revoke; once."""
        if self._resumed:
            return set()
        found = await revocation.unfinished(self._connection)
        self._resumed = True
        return found
