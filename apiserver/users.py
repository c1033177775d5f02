"""Who may do what in this cluster's etcd. A user is the common name of a client certificate.

Peers read only what this cluster exports; what it mirrors from third clusters and what is private stays closed to them.
"""

import asyncio
import logging
from collections.abc import Mapping
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

# Seconds between looks whether etcd still knows the users; an etcd that was rebuilt does not.
CHECK_EVERY = 10.0
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


class EtcdUsers:
    """Keeps etcd's users equal to what is wanted, also after etcd was lost and rebuilt."""

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
        # Whether roles and access control are to be compared as well, and interrupted revocations to be finished.
        self._thorough = True
        self._resumed = False
        self._turn = asyncio.Lock()
        self._suspected = asyncio.Event()
        self._health = health or Health()
        self._health.set(_CLAIM, False, "not in place yet")

    async def prepare(self) -> None:
        """Roles, own users and access control are there. KvError names what etcd refused."""
        for role, permissions in roles(self._cluster).items():
            await self._admin.ensure_role(role, permissions)
        for user, user_roles in own_users(self._cluster).items():
            await self._admin.ensure_user(user, user_roles)
        await self._admin.enable()

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
            self._prepared = False
            self._ensured.clear()
        if self._thorough or not self._prepared:
            await self.prepare()
            self._thorough, self._prepared = False, True
            self._health.set(_CLAIM, True)
        if not self._complete:
            return
        self._ensured &= {peer for peer in self._peers if pki.remote_user(peer) in present}
        for peer in sorted(self._peers - self._ensured):
            user = pki.remote_user(peer)
            if user not in present:
                await revocation.reinstate(self._connection, user)
            await self._admin.ensure_user(user, (REMOTE,))
            self._ensured.add(peer)
            log.info("etcd user %s may read what this cluster exports", user)
        for user in surplus([*present, *await self._interrupted()], self._peers):
            await revocation.revoke(self._connection, user)
            log.info("etcd user %s is gone", user)

    async def _interrupted(self) -> set[str]:
        """What an earlier process began to revoke; once."""
        if self._resumed:
            return set()
        found = await revocation.unfinished(self._connection)
        self._resumed = True
        return found
