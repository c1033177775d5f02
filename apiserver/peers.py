"""Peers as ClusterMeshPeer objects: what each of them makes this cluster do, and what is reported back.

One task a peer reconciles its object (trust, etcd user, mirror) and cleans up behind it when it is deleted; one task
sums everything up into statuses, at most once a second.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import aclosing, suppress

import msgspec

from apiserver import trust
from apiserver.claims import Claims
from apiserver.cluster import ClusterIdentity
from apiserver.health import Health
from apiserver.metrics import PeerFigures
from apiserver.mirror import Mirror, PeerSpec, forget_peer
from apiserver.own_cluster import OwnCluster
from apiserver.status import MirrorView, TrustView, agents_document, is_ready, summarise, timestamp, worth_writing
from apiserver.users import EtcdUsers
from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import Conflict, CredentialError, KubeError, NotFound
from clustermesh.kube.objects import (
    CILIUM,
    CLUSTER_MESH_PEERS,
    CONFIG_MAPS,
    SYSTEM_NAMESPACE,
    ClusterMeshPeer,
    ClusterMeshPeerStatus,
    ConfigMap,
    ObjectMeta,
)
from clustermesh.kube.reflector import Backoff, Reflector
from clustermesh.kvstore.connection import Connection, TlsPem
from clustermesh.kvstore.errors import KvError
from clustermesh.kvstore.feed import Feed
from clustermesh.kvstore.lease import Lease
from clustermesh.kvstore.writer import Writer
from clustermesh.pki import PkiError, Request
from clustermesh.tasks import end
from clustermesh.wire import keys, private, records
from clustermesh.wire.errors import RecordError
from clustermesh.wire.keys import Kind
from clustermesh.wire.names import check_cluster_name
from clustermesh.wire.private import AgentReport, PeerList

log = logging.getLogger(__name__)

AGENTS_CONFIG_MAP = "clustermesh-agents"

# Seconds: between two status writes, two writes of a status in which only ages and round trips moved, two
# writes of the ConfigMap, and signs of life in it when nothing changes.
STATUS_EVERY = 1.0
FIGURES_EVERY = 5.0
AGENTS_EVERY = 2.0
AGENTS_ALIVE = 15.0
# Certificates are looked at again after this time even if no object changes; sooner while something is wrong with them.
_RECHECK = 3600.0
_RECHECK_REFUSED = 15.0


def spec_problem(peer: ClusterMeshPeer, others: Mapping[str, ClusterMeshPeer], own: ClusterIdentity) -> str | None:
    """Why a peer's object cannot be acted on; None when it can. Of two peers with one id the older one keeps it."""
    name, cluster_id = peer.name, peer.spec.cluster_id
    try:
        check_cluster_name(name)
        own.numbering.check_cluster_id(cluster_id)
    except ValueError as error:
        return str(error)
    if name == own.name:
        return f"{name} is this cluster's own name"
    if cluster_id == own.id:
        return f"cluster id {cluster_id} is this cluster's own id"
    for other in others.values():
        if other.spec.cluster_id == cluster_id and other.name != name and _age(other) < _age(peer):
            return f"cluster id {cluster_id} is the id of peer {other.name} already"
    if not peer.spec.endpoints:
        return "spec.endpoints is empty: name at least one https://host:port"
    quota = peer.spec.quota
    for field, limit in (
        ("records", quota.records),
        ("bytes", quota.bytes),
        ("changesPerSecond", quota.changes_per_second),
    ):
        if limit < 1:
            return f"spec.quota.{field} must be at least 1, not {limit}"
    return None


def asks_anew(before: ClusterMeshPeer | None, now: ClusterMeshPeer) -> bool:
    """Whether an object asks for something else than before; a new status does not."""
    if before is None:
        return True
    return (before.metadata.uid, before.metadata.generation) != (now.metadata.uid, now.metadata.generation)


def _age(peer: ClusterMeshPeer) -> tuple[str, str]:
    return peer.metadata.creation_timestamp or "", peer.name


class PeerManager:
    """Everything this cluster does about its peers, as long as `run` runs."""

    def __init__(
        self,
        *,
        cluster: ClusterIdentity,
        client: KubeClient,
        connection: Connection,
        lease: Lease,
        users: EtcdUsers,
        health: Health,
        grace: float = 10.0,
    ) -> None:
        """`grace`: seconds that agents have to let go of a deleted peer before its records go."""
        self.cluster = cluster
        self.client = client
        self.connection = connection
        self.lease = lease
        self.grace = grace
        self.claims = Claims()
        self.own = OwnCluster(cluster.name, connection, self.claims, changed=self._all_changed)
        self.users = users
        self.objects: dict[str, ClusterMeshPeer] = {}
        self._list = Writer(connection, lease)
        self._health = health
        self._peers: dict[str, _Peer] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._reports: dict[str, AgentReport] = {}
        self._reports_known = False
        self._reports_unwritten = True
        self._agents = ""  # as agents_document has it
        self._published: dict[str, str] = {}  # the ConfigMap's content, and when (monotonic clock) it was written
        self._published_at = 0.0
        self._publishing = asyncio.Lock()
        self._reports_moved = asyncio.Condition()
        self._written: dict[str, tuple[str, ClusterMeshPeerStatus]] = {}  # peer → uid, status
        self._touched: set[str] = set()  # peers whose status may be out of date
        self._changed = asyncio.Event()
        lease.on_loss(self.users.suspect)
        health.set("peers", False, "the ClusterMeshPeer objects are not listed yet")

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.users.run())
            group.create_task(self._list.run())
            group.create_task(self.own.run())
            group.create_task(self._follow_reports())
            group.create_task(self._follow_objects(group))
            group.create_task(self._write_statuses())
            group.create_task(self._write_agents())

    def changed(self, peer: str) -> None:
        """Something that a peer's status shows is different now."""
        self._touched.add(peer)
        self._changed.set()

    def _all_changed(self) -> None:
        self._touched.update(self._peers)
        self._changed.set()

    def figures(self) -> list[PeerFigures]:
        """All peers in numbers."""
        return [peer.figures() for peer in self._peers.values()]

    async def allow_peers(self) -> None:
        """Peers whose request we shall sign have an etcd user, others have none. KvError."""
        await self.users.set_peers(
            frozenset(name for name, peer in self.objects.items() if peer.spec.certificate_request)
        )

    async def detached(self, peer: str) -> None:
        """Returns once no agent reports anything about a peer."""
        async with self._reports_moved:
            await self._reports_moved.wait_for(
                lambda: self._reports_known and all(peer not in report.peers for report in self._reports.values())
            )

    def owner_of_id(self, cluster_id: int) -> str | None:
        """The peer that an id belongs to; the oldest of several."""
        owner = min((p for p in self.objects.values() if p.spec.cluster_id == cluster_id), key=_age, default=None)
        return owner.name if owner is not None else None

    def _peer_list(self) -> PeerList:
        return PeerList(peers={name: peer.spec.cluster_id for name, peer in self.objects.items()})

    # What is observed

    async def _follow_objects(self, group: asyncio.TaskGroup) -> None:
        synced = False
        async with aclosing(Reflector(self.client, CLUSTER_MESH_PEERS).batches()) as batches:
            async for batch in batches:
                touched = [ref.name for ref in batch.deletes]
                touched += [peer.name for peer in batch.upserts if asks_anew(self.objects.get(peer.name), peer)]
                for ref in batch.deletes:
                    self.objects.pop(ref.name, None)
                for peer in batch.upserts:
                    self.objects[peer.name] = peer
                if not synced and not batch.synced:
                    continue  # half a list would make the others look deleted
                self._list.put(keys.PEER_LIST, private.encode(self._peer_list()))
                if not synced:
                    synced = True
                    touched = [*self.objects, *await self._leftovers()]
                    self._health.set("peers", True)
                for name in dict.fromkeys(touched):
                    self._wake(group, name)

    async def _leftovers(self) -> set[str]:
        """Peers that were deleted while no API server ran: their copies and keys are still there."""
        backoff = Backoff()
        while True:
            try:
                names = await trust.stored_keys(self.client)
                async for page in self.connection.list(keys.CLUSTER_CONFIGS):
                    names |= {keys.tail(keys.CLUSTER_CONFIGS, kv.key.decode(errors="replace")) for kv in page}
                for kind in Kind:
                    names |= await self._cached_clusters(kind)
                return names - self.objects.keys() - {self.cluster.name, ""}
            except (KubeError, CredentialError, KvError) as error:
                log.warning("what deleted peers left behind cannot be listed yet: %s", error)
                await asyncio.sleep(backoff.pause())

    async def _cached_clusters(self, kind: Kind) -> set[str]:
        """Clusters that the cache holds records of, found without reading the records."""
        prefix = keys.cache_prefix(kind, "\0").split("\0")[0].encode()
        end = prefix[:-1] + bytes((prefix[-1] + 1,))
        found: set[str] = set()
        start = prefix
        while page := (await self.connection.range(start, end, limit=1, keys_only=True)).kvs:
            name = page[0].key[len(prefix) :].split(b"/")[0]
            found.add(name.decode(errors="replace"))
            start = prefix + name + b"0"  # the first key behind "name/"
        return found

    def _wake(self, group: asyncio.TaskGroup, name: str) -> None:
        peer = self._peers.get(name)
        if peer is None:
            peer = self._peers[name] = _Peer(name, self)
            self._tasks[name] = group.create_task(self._live(peer), name=f"peer {name}")
        peer.wake.set()
        # Ids are unique among all: a change of one may let another one in.
        for other in self._peers.values():
            other.wake.set()

    async def _live(self, peer: "_Peer") -> None:
        await peer.run()
        del self._peers[peer.name], self._tasks[peer.name]
        self._written.pop(peer.name, None)

    async def _follow_reports(self) -> None:
        async with aclosing(Feed(self.connection, keys.AGENTS).batches()) as batches:
            async for batch in batches:
                async with self._reports_moved:
                    for event in batch.events:
                        node = event.key.decode(errors="replace")[len(keys.AGENTS) :]
                        self._reports.pop(node, None)
                        if event.value is not None:
                            try:
                                self._reports[node] = records.decode(AgentReport, event.value)
                            except RecordError as error:
                                log.error("report of node %s: %s", node, error)
                    self._reports_known |= batch.synced
                    self._reports_unwritten = True
                    self._reports_moved.notify_all()
                self._all_changed()

    # What is reported

    async def _write_statuses(self) -> None:
        clock = asyncio.get_running_loop().time
        due, failed = clock() + FIGURES_EVERY, ""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._changed.wait()
            self._changed.clear()
            # Ages and silences grow without any event.
            if figures_due := clock() >= due:
                self._touched.update(self._peers)
                due = clock() + FIGURES_EVERY
            touched, self._touched = self._touched, set()
            problem = ""
            for peer in [self._peers[name] for name in touched if name in self._peers]:
                try:
                    await self._write_status(peer, figures_due=figures_due)
                except (Conflict, NotFound):
                    self.changed(peer.name)  # the object moved on; its newer form is on the way
                except (KubeError, CredentialError) as error:
                    problem = str(error)
                    self.changed(peer.name)
            if problem and problem != failed:
                log.warning("status cannot be written: %s", problem)
            failed = problem
            await asyncio.sleep(STATUS_EVERY)

    async def _write_status(self, peer: "_Peer", *, figures_due: bool) -> None:
        shown = self.objects.get(peer.name)
        if shown is None or peer.generation is None:
            return
        uid, previous = self._written.get(peer.name, ("", shown.status))
        if uid != shown.metadata.uid:
            previous = shown.status
        status = summarise(
            peer.name,
            generation=peer.generation,
            trust=peer.trust,
            mirror=peer.mirror_view(),
            nodes=self.own.nodes,
            reports=self._reports,
            probed=shown.spec.implementation != CILIUM,
            previous=previous,
            now=time.time(),
        )
        if worth_writing(previous, status, figures_due=figures_due):
            if is_ready(status) and not is_ready(previous):
                # Whoever reads "ready" shall find what the agents have applied in the ConfigMap.
                with suppress(PkiError):
                    await self._publish_agents()
            await self.client.replace_status(CLUSTER_MESH_PEERS, msgspec.structs.replace(shown, status=status))
            self._written[peer.name] = (shown.metadata.uid, status)

    async def _write_agents(self) -> None:
        failed = ""
        while True:
            try:
                await self._publish_agents(with_authority=bool(failed))
                failed = ""
            except (KubeError, CredentialError, PkiError) as error:
                if str(error) != failed:
                    log.warning("ConfigMap %s cannot be written: %s", AGENTS_CONFIG_MAP, error)
                failed = str(error)
            await asyncio.sleep(AGENTS_EVERY)

    async def _publish_agents(self, *, with_authority: bool = False) -> None:
        """The ConfigMap by which `connect` and `status` see the nodes, this cluster's CA and that we are alive."""
        async with self._publishing:
            if self._reports_unwritten:
                self._agents, self._reports_unwritten = agents_document(self._reports), False
            published = self._published
            authority = await trust.load_authority(self.client) if not published or with_authority else None
            content = {
                "agents.json": self._agents,
                # Those that something is left of, whether their object is still there or not.
                "peers": ",".join(sorted(self._peers)),
                "ca.crt": authority.cert.decode() if authority else published["ca.crt"],
            }
            if content != published or time.monotonic() - self._published_at > AGENTS_ALIVE:
                meta = ObjectMeta(name=AGENTS_CONFIG_MAP, namespace=SYSTEM_NAMESPACE)
                data = {**content, "updated": timestamp(time.time())}
                await self.client.apply(CONFIG_MAPS, ConfigMap(metadata=meta, data=data))
                self._published, self._published_at = content, time.monotonic()


class _Peer:
    """One peer: makes the world as its object says, and as if it had never been once the object is gone."""

    def __init__(self, name: str, manager: PeerManager) -> None:
        self.name = name
        self.wake = asyncio.Event()
        self.trust = TrustView()
        self.generation: int | None = None  # of the object that was acted on
        self._manager = manager
        self._problem = ""
        self._request: Request | None = None
        self._mirror: Mirror | None = None
        self._mirrored: tuple[PeerSpec, TlsPem] | None = None
        self._mirroring: asyncio.Task[None] | None = None

    def mirror_view(self) -> MirrorView:
        view = self._mirror.view() if self._mirror is not None else MirrorView()
        if self._problem:
            return msgspec.structs.replace(view, state="failed", stage="spec", message=self._problem)
        return view

    def figures(self) -> PeerFigures:
        figures = self._mirror.figures() if self._mirror is not None else PeerFigures(self.name)
        return msgspec.structs.replace(figures, state="failed") if self._problem else figures

    async def run(self) -> None:
        """Until the object is gone and nothing of it is left."""
        backoff = Backoff()
        try:
            while True:
                self.wake.clear()
                pause = _RECHECK
                try:
                    if not await self._reconcile():
                        return
                    backoff.reset()
                    if self.trust.reason == "Refused":
                        pause = _RECHECK_REFUSED
                except (KubeError, CredentialError, KvError) as error:
                    log.warning("peer %s: %s", self.name, error)
                    pause = backoff.pause()
                self._manager.changed(self.name)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self.wake.wait()
        finally:
            await self._stop_mirror()

    async def _reconcile(self) -> bool:
        """One round; False when the object is gone and cleaned up behind."""
        if self._mirroring is not None and self._mirroring.done():
            await self._mirroring
        peer = self._manager.objects.get(self.name)
        if peer is None:
            await self._clean_up()
            return self.name in self._manager.objects
        self._problem = spec_problem(peer, self._manager.objects, self._manager.cluster) or ""
        tls = None if self._problem else await self._exchange(peer)
        if self._problem:
            await self._stop_mirror()
        elif tls is not None:
            await self._mirror_with(peer, tls)
        self.generation = peer.metadata.generation
        return True

    async def _exchange(self, peer: ClusterMeshPeer) -> TlsPem | None:
        """One step of trust in each direction; what is wrong with it goes to the status."""
        issued, tls, wrong = "", None, ""
        try:
            if self._request is None:
                self._request = await trust.own_request(self._manager.client, self._manager.cluster.name, self.name)
            if peer.spec.certificate_request:
                authority = await trust.load_authority(self._manager.client)
                issued = trust.issue(authority, peer, trust.now())
            await self._manager.allow_peers()
            handed = None
            if peer.spec.implementation == CILIUM:
                handed = await trust.handed_key(self._manager.client, self.name)
            tls = trust.credentials(peer.spec, self._request, trust.now(), handed)
        except PkiError as error:
            log.warning("peer %s: %s", self.name, error)
            wrong = str(error)
        self.trust = trust.view(self._request, issued, tls, wrong)
        return tls

    async def _mirror_with(self, peer: ClusterMeshPeer, tls: TlsPem) -> None:
        asked = peer.spec
        spec = PeerSpec(
            self.name, asked.cluster_id, tuple(asked.endpoints), asked.strict, asked.implementation, asked.quota
        )
        if self._mirror is not None and self._mirrored is not None and self._mirrored[0] == spec:
            await self._mirror.update_tls(tls)
            self._mirrored = (spec, tls)
            return
        await self._stop_mirror()
        manager = self._manager
        try:
            self._mirror = Mirror(
                spec,
                tls,
                cluster=manager.cluster,
                own=manager.connection,
                lease=manager.lease,
                claims=manager.claims,
                owner_of_id=manager.owner_of_id,
                changed=lambda: manager.changed(self.name),
            )
        except ValueError as error:  # an endpoint that is no URL
            self._problem = str(error)
            return
        self._mirrored = (spec, tls)
        self._mirroring = asyncio.create_task(self._run_mirror(self._mirror), name=f"mirror {self.name}")
        # It ends by a defect alone, which `_reconcile` then raises.
        self._mirroring.add_done_callback(lambda _: self.wake.set())

    async def _run_mirror(self, mirror: Mirror) -> None:
        await self._manager.own.nodes_known.wait()
        await mirror.run()

    async def _stop_mirror(self) -> None:
        self._mirror = self._mirrored = None
        if self._mirroring is not None:
            await end(self._mirroring)
            self._mirroring = None

    async def _clean_up(self) -> None:
        manager = self._manager
        self.generation = None
        await self._stop_mirror()
        await manager.allow_peers()
        await forget_peer(
            manager.connection, self.name, detached=lambda: manager.detached(self.name), grace=manager.grace
        )
        manager.claims.release_all(self.name)
        manager.claims.settle()
        if self.name not in manager.objects:
            await trust.delete_key(manager.client, self.name)
        self._request = None
        self.trust = TrustView()
        log.info("peer %s: disconnected, nothing of it is left", self.name)
