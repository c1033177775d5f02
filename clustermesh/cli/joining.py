"""A cluster with clustermesh and one with Cilium: what stands in the Cilium cluster for a ClusterMeshPeer there.

That is a peer's files in one or two Secrets, written by server-side apply so that other entries stay, and a user in
ConfigMap clustermesh-remote-users. In our own cluster the ClusterMeshPeer says everything, as for any peer.

The Cilium cluster's key for us is made here and goes nowhere but into its Secret. Its authority's key, where it may be
read, signs our API server's request in this process's memory.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from clustermesh import pki
from clustermesh.cilium import access, layout, users
from clustermesh.cilium.installation import Installation, release
from clustermesh.cilium.objects import REMOTE_USERS
from clustermesh.cilium.users import UsersError
from clustermesh.cli.mesh import Cluster, ClusterView
from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import AlreadyExists, Conflict, CredentialError, KubeError, NotFound
from clustermesh.kube.objects import (
    CONFIG_MAPS,
    HANDED_KEY,
    SECRETS,
    SYSTEM_NAMESPACE,
    ClusterMeshPeer,
    ObjectMeta,
    Secret,
    peer_secret,
)
from clustermesh.output import Failure, Output
from clustermesh.pki import KeyPair, PkiError, Request

_MADE = {"app.kubernetes.io/managed-by": "clustermesh"}  # a Secret that goes with its last entry
_HANDED = "clustermesh-connect"
_ATTEMPTS = 5


def manager(cluster: str) -> str:
    """Under which name a cluster's entries in a Cilium cluster's Secrets are owned."""
    return f"clustermesh-{cluster}"


class JoinPlan(msgspec.Struct, frozen=True):
    """What happens in the cluster of `context`, which runs Cilium, so that it reads `cluster` and is read by it."""

    context: str
    cluster: str
    peer: str
    namespace: str
    version: str
    kvstoremesh: bool
    secrets: dict[str, list[str]]  # entries by Secret
    user: str  # to be listed in clustermesh-remote-users; "" when it need not
    credentials: str

    def __str__(self) -> str:
        mirror = "with" if self.kvstoremesh else "without"
        lines = [f"{self.context}: Cilium {self.version or 'of unknown version'} {mirror} KVStoreMesh"]
        lines += [f"Secret {self.namespace}/{name} gets {', '.join(entries)}" for name, entries in self.secrets.items()]
        if self.user:
            lines.append(f"ConfigMap {self.namespace}/{REMOTE_USERS} lists {self.user}")
        lines.append(f"{self.cluster} reads it by {self.credentials}")
        return "\n    ".join(lines)


class _Undo(NamedTuple):
    what: str
    act: Callable[[], Awaitable[None]]


class Join:
    """One such pair. `carry` goes on as far as the ClusterMeshPeer's status allows; `roll_back` undoes it."""

    def __init__(
        self, own: ClusterView, peer: ClusterView, own_cluster: Cluster, peer_cluster: Cluster, output: Output
    ) -> None:
        """CiliumError as `access.choose`; the checks have asked it before."""
        assert peer.cilium is not None
        self.cluster = own.name
        self.peer = peer.name
        self._installation = peer.cilium
        self._endpoints = own.endpoints
        self._ca = own.authority
        self._way = access.choose(peer.cilium, own.name, _now())
        self._own = own_cluster.client
        self._there = Remote(peer_cluster.client, peer.cilium, own.name)
        self._output = output
        present = own.peers.get(peer.name)
        self._request = _request(peer.cilium, own.name, peer.name, present.spec.certificate_request if present else "")
        self._introduced = self._listed = False
        self._undo: list[_Undo] = []
        self.plan = JoinPlan(
            context=peer.context,
            cluster=own.name,
            peer=peer.name,
            namespace=peer.cilium.namespace,
            version=peer.cilium.version,
            kvstoremesh=peer.cilium.kvstoremesh,
            secrets={name: sorted(entries) for name, entries in self._entries(b"").items()},
            user=self._user,
            credentials=str(self._way),
        )

    @property
    def _user(self) -> str:
        return self._way.user if self._way.user != access.SHARED_USER else ""

    def settled(self, own: ClusterMeshPeer) -> bool:
        """Whether all is as it should be before anything is done."""
        listed = not self._user or self._user in users.names(self._installation.users or "")
        wanted = self._entries(own.status.issued_certificate.encode())
        written = all(
            entries.items() <= self._installation.secrets.get(name, {}).items() for name, entries in wanted.items()
        )
        return listed and written and self._served(own) and self._asked(own)

    def missing(self) -> str | None:
        """What keeps the Cilium cluster from reading ours."""
        return None if self._introduced else f"{self.cluster} has not issued a certificate for {self.peer} yet"

    async def carry(self, own: ClusterMeshPeer) -> dict[str, str]:
        """Bring over what `own`'s status has for them; what they have for its spec. Failure, KubeError."""
        patch = {}
        if self._user and not self._listed:
            await self._list_user()
        if not self._asked(own):
            patch["certificateRequest"] = self._request.csr.decode()
        if own.status.certificate_request and not self._served(own):
            patch["clientCertificate"] = await self._certificate(own.status.certificate_request)
        issued = own.status.issued_certificate
        if not self._introduced and issued and self._answers(issued):
            await self._introduce(issued.encode())
        return patch

    async def roll_back(self) -> list[str]:
        """Put back what was changed, the last first; what could not be is named with its error."""
        done = []
        for undo in reversed(self._undo):
            try:
                await undo.act()
                done.append(f"{undo.what} restored")
            except (KubeError, CredentialError, UsersError) as error:
                done.append(f"{undo.what} could NOT be put back: {error}")
        return done

    def lasting(self) -> str:
        """What makes the connection outlive the next change of Cilium's Helm values."""
        if (release(self._installation.version) or (1, 20)) < (1, 20):
            names = layout.peer_files(self.cluster)
            how = (
                f"add {self.cluster} to its values clustermesh.config.clusters (name, address, port, and tls.caCert, "
                f"tls.cert, tls.key as in the entries {names.ca}, {names.cert}, {names.key})"
            )
        else:
            how = "set clustermesh.config.enabled=false there and keep these objects in hand, as its chart advises"
        return (
            f"{self.plan.context}: Cilium's Helm values do not know of {self.cluster} yet, so `helm upgrade` or GitOps "
            f"may undo what was written there: {how}; see docs/cilium-interop.md"
        )

    def _entries(self, issued: bytes) -> dict[str, dict[str, bytes]]:
        return layout.entries(
            self.cluster,
            self._endpoints,
            self._ca,
            KeyPair(self._request.key, issued),
            namespace=self._installation.namespace,
            kvstoremesh=self._installation.kvstoremesh,
        )

    def _asked(self, own: ClusterMeshPeer) -> bool:
        return own.spec.certificate_request == self._request.csr.decode()

    def _answers(self, issued: str) -> bool:
        try:
            return pki.answers(issued.encode(), self._request.csr)
        except PkiError:
            return False

    def _served(self, own: ClusterMeshPeer) -> bool:
        request = own.status.certificate_request
        return access.serves(own.spec.client_certificate, self._way, self._installation, request, _now())

    async def _certificate(self, request: str) -> str:
        try:
            made = access.certificate(self._way, self._installation, self.cluster, request)
        except PkiError as error:
            raise Failure(f"{self.cluster}: {error}") from None
        if self._way.authority is None:
            assert self._installation.shared is not None
            await self._hand_over(self._installation.shared.key)
        self._output.good(f"{self.peer} ⇒ {self.cluster}: {self._way}")
        return made

    async def _list_user(self) -> None:
        if await self._there.edit_users(users.add, self._user):
            self._undo.append(_Undo(self._there.says(REMOTE_USERS), self._unlist_user))
            self._output.good(f"{self.plan.context}: user {self._user} listed in {REMOTE_USERS}")
        self._listed = True

    async def _unlist_user(self) -> None:
        await self._there.edit_users(users.remove, self._user)

    async def _hand_over(self, key: bytes) -> None:
        """The API server's Secret is there: its request came from it."""
        name = peer_secret(self.peer)
        present = (await self._own.get(SECRETS, name, SYSTEM_NAMESPACE)).data.get(HANDED_KEY)

        async def put(value: bytes | None) -> None:
            meta = ObjectMeta(name=name, namespace=SYSTEM_NAMESPACE)
            body = Secret(metadata=meta, data={HANDED_KEY: value} if value else {})
            await self._own.apply_fields(SECRETS, body, _HANDED)

        if present != key:
            await put(key)
            self._undo.append(_Undo(f"{self.cluster}: Secret {name}", lambda: put(present)))

    async def _introduce(self, issued: bytes) -> None:
        for name, wanted in self._entries(issued).items():
            before = await self._there.entries(name)
            if before == wanted:
                continue
            self._undo.append(_Undo(self._there.says(name), self._putting_back(name, before)))
            await self._there.write(name, wanted)
            self._output.good(f"{self.plan.context}: {self.cluster} written into Secret {name}")
        self._introduced = True

    def _putting_back(self, name: str, before: Mapping[str, bytes]) -> Callable[[], Awaitable[None]]:
        return lambda: self._there.write(name, before)


@dataclass(frozen=True, slots=True)
class Remote:
    """The objects of a Cilium cluster that say something of `cluster`."""

    client: KubeClient
    installation: Installation
    cluster: str

    def says(self, name: str) -> str:
        return f"{self.installation.name}: {self.installation.namespace}/{name}"

    async def entries(self, name: str) -> dict[str, bytes]:
        """Ours in a Secret."""
        try:
            secret = await self.client.get(SECRETS, name, self.installation.namespace)
        except NotFound:
            return {}
        return {entry: secret.data[entry] for entry in layout.names(self.cluster) if entry in secret.data}

    async def write(self, name: str, entries: Mapping[str, bytes]) -> None:
        """Exactly these are ours in a Secret. One that is missing is made, and goes with its last entry."""
        meta = ObjectMeta(name=name, namespace=self.installation.namespace)
        try:
            await self.client.get(SECRETS, name, meta.namespace)
        except NotFound:
            if not entries:
                return
            with suppress(AlreadyExists):
                await self.client.create(SECRETS, Secret(metadata=msgspec.structs.replace(meta, labels=_MADE)))
        body = Secret(metadata=meta, data=entries)
        left = await self.client.apply_fields(SECRETS, body, manager(self.cluster))
        if not left.data and _MADE.items() <= (left.metadata.labels or {}).items():
            seen = left.metadata.resource_version
            with suppress(Conflict):  # somebody else has just written into it
                await self.client.delete(SECRETS, name, meta.namespace, missing_ok=True, resource_version=seen)

    async def edit_users(self, edit: Callable[[str, str], str], user: str) -> bool:
        """Change users.yaml if it exists; whether there was anything to change. KubeError, UsersError."""
        namespace = self.installation.namespace
        for attempt in range(_ATTEMPTS):
            try:
                found = await self.client.get(CONFIG_MAPS, REMOTE_USERS, namespace)
            except NotFound:
                return False
            text = found.data.get(users.FILE, "")
            edited = edit(text, user)
            if edited == text:
                return False
            version = {"resourceVersion": found.metadata.resource_version}
            patch = {"metadata": version, "data": {users.FILE: edited}}
            try:
                await self.client.merge_patch(CONFIG_MAPS, REMOTE_USERS, patch, namespace)
            except Conflict:
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            return True
        return False

    async def forget(self) -> list[str]:
        """Take out all that is ours; what still speaks of us belongs to somebody else and is named. KubeError."""
        left = []
        for name in self.installation.secrets:
            await self.write(name, {})
            if await self.entries(name):
                left.append(f"{self.says(name)} still has {self.cluster}: it is in Cilium's Helm values as well")
        try:
            await self.edit_users(users.remove, pki.remote_user(self.cluster))
        except UsersError as error:
            left.append(f"{self.says(REMOTE_USERS)}: {error}")
        return left


def known_peers(installation: Installation) -> frozenset[str]:
    """Of whom an installation's Secrets and users speak, as it was read."""
    configured = {peer for data in installation.secrets.values() for peer in layout.peers(data)}
    prefix = pki.remote_user("")
    try:
        listed = users.names(installation.users or "")
    except UsersError:
        listed = ()
    return frozenset(configured.union(name.removeprefix(prefix) for name in listed if name.startswith(prefix)))


def _request(installation: Installation, cluster: str, peer: str, asked: str) -> Request:
    """Their key for us and its request: those of an earlier connection, or new ones."""
    entry = layout.peer_files(cluster).key
    for data in installation.secrets.values():
        try:
            if asked and entry in data and pki.asks_for(asked.encode(), data[entry]):
                return Request(data[entry], asked.encode())
        except PkiError:
            continue
    return pki.make_request(pki.remote_user(peer))


def _now() -> datetime:
    return datetime.now(UTC)
