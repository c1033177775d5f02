"""This cluster's side of the mesh: what Kubernetes has, written to etcd as peers and agents expect it.

One task follows each kind. Nobody may see a reference to what is not there yet, so an identity is in etcd before an
address that has it, an address before a service that leads to it, and the other way round when they go. Each kind has a
writer of its own, and a task waits for the other kind's writer, and only for what is still on its way there.

A restart adopts what is in etcd: equal records are not written again, and what is stale goes only after everything
that Kubernetes has is in etcd. Then, and not before, the canaries tell readers that the lists are complete.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Any, TypeVar

from apiserver.cluster import ClusterIdentity
from apiserver.health import Health
from apiserver.identities import GRACE, IdentityAllocator
from apiserver.metrics import Metrics
from apiserver.nodes import compile_node
from apiserver.pods import PodChanges, PodTable
from apiserver.services import ServiceName, ServiceTable
from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import CredentialError, KubeError, NotFound
from clustermesh.kube.objects import (
    CLUSTER_MESH_IDENTITIES,
    CLUSTER_MESH_PEERS,
    ENDPOINT_SLICES,
    NAMESPACES,
    NODES,
    PODS,
    SERVICES,
    ClusterMeshIdentity,
    EndpointSlice,
    KubeObject,
    Namespace,
    Node,
    Pod,
    Resource,
    Service,
)
from clustermesh.kube.reflector import Backoff, KubeBatch, Phase, Reflector, ReflectorState
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.errors import KvError
from clustermesh.kvstore.lease import Lease
from clustermesh.kvstore.writer import Writer
from clustermesh.wire import keys, private, records
from clustermesh.wire.keys import Kind

log = logging.getLogger(__name__)

T = TypeVar("T", bound=KubeObject)

HEARTBEAT = 60.0  # seconds between two heartbeats
_CONFIG_CHECK = 300.0  # seconds between two looks whether the cluster-config still says what it should
_LEASE_PATIENCE = 2.0  # seconds after which a lease that is not granted yet is called a problem
_FOLLOWED: tuple[Resource[Any], ...] = (
    NODES,
    NAMESPACES,
    CLUSTER_MESH_IDENTITIES,
    PODS,
    SERVICES,
    ENDPOINT_SLICES,
)
_OWN_KINDS: tuple[Resource[Any], ...] = (CLUSTER_MESH_IDENTITIES, CLUSTER_MESH_PEERS)

# What is pruned, and in which order: nothing goes while something may still point to it.
_PRUNED = (
    Kind.SERVICE_EXPORTS,
    Kind.ENDPOINT_SLICES,
    Kind.SERVICES,
    Kind.ADDRESSES,
    Kind.IDENTITIES,
    Kind.NODES,
)


class Exporter:
    """Runs until it is cancelled. What it wrote stays in etcd for the lease's time to live."""

    def __init__(
        self,
        *,
        cluster: ClusterIdentity,
        client: KubeClient,
        connection: Connection,
        lease: Lease,
        health: Health,
        metrics: Metrics,
        heartbeat: float = HEARTBEAT,
        grace: float = GRACE,
    ) -> None:
        """`heartbeat` and `grace` (how long an unused identity is kept) in seconds. The lease is run by its owner."""
        self._cluster = cluster
        self._client = client
        self._connection = connection
        self._lease = lease
        self._health = health
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._writers = {kind: Writer(connection, lease) for kind in Kind}
        self._control = Writer(connection, lease)
        # Registered after the writers' own listeners: when it wakes us they have queued everything again.
        self._lost = asyncio.Event()
        lease.on_loss(self._lost.set)
        self._allocator = IdentityAllocator(
            cluster,
            client,
            self._writers[Kind.IDENTITIES],
            flush=lambda: self._flush(Kind.IDENTITIES),
            numbered=self._numbered,
            in_use=lambda number: self._pods.uses(number),
            trouble=self._identity_trouble,
            grace=grace,
        )
        self._pods = PodTable(cluster, self._allocator.table.lookup)
        self._services = ServiceTable()
        self._touched: set[ServiceName] = set()  # by services and slices before both are listed
        self._exported: dict[Kind, set[str]] = {Kind.NODES: set(), Kind.SERVICES: set()}
        self._listed = {resource.plural: asyncio.Event() for resource in _FOLLOWED}
        self._handed_on = {resource.plural: asyncio.Event() for resource in _FOLLOWED}  # to the writers
        self._watch_figures()
        for resource in _FOLLOWED:
            health.set(f"kubernetes {resource}", False, "not listed yet")
        health.set("etcd", False, "not connected yet")
        health.set("identities", True)
        health.set("export", False, "not everything that Kubernetes has is in etcd yet")

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for writer in (*self._writers.values(), self._control):
                tasks.create_task(writer.run())
            await self._wait_for_kinds()
            await self._adopt()
            self._put_cluster_config()
            tasks.create_task(self._allocator.run())
            tasks.create_task(self._follow(CLUSTER_MESH_IDENTITIES, self._on_identities))
            tasks.create_task(self._follow(NODES, self._on_nodes))
            tasks.create_task(self._follow(NAMESPACES, self._on_namespaces))
            tasks.create_task(self._follow(SERVICES, self._on_services))
            tasks.create_task(self._follow(ENDPOINT_SLICES, self._on_slices))
            # A pod needs its namespace's labels and the numbers that are dealt out already.
            tasks.create_task(
                self._follow(PODS, self._on_pods, after=(NAMESPACES.plural, CLUSTER_MESH_IDENTITIES.plural))
            )
            tasks.create_task(self._beat())
            tasks.create_task(self._guard_cluster_config())
            tasks.create_task(self._announce())

    # Following Kubernetes

    async def _wait_for_kinds(self) -> None:
        """Our own kinds must be known to Kubernetes. Wait for them, saying what is missing."""
        backoff = Backoff(cap=5.0)
        said = ""
        while True:
            try:
                for resource in _OWN_KINDS:
                    await self._client.page(resource, limit=1)
            except NotFound:
                problem = f"{resource} is not installed: kubectl apply -f deploy/crds/{resource.plural}.yaml"
            except (KubeError, CredentialError) as error:
                problem = str(error)
            else:
                self._health.set("kinds", True)
                return
            self._health.set("kinds", False, problem)
            if problem != said:
                log.error("%s", problem)
                said = problem
            await asyncio.sleep(backoff.pause())

    async def _follow(
        self,
        resource: Resource[T],
        handle: Callable[[KubeBatch[T]], Awaitable[None]],
        *,
        after: Iterable[str] = (),
    ) -> None:
        for plural in after:
            await self._listed[plural].wait()
        reflector = Reflector(self._client, resource, on_state=lambda state: self._feed_state(resource, state))
        async with contextlib.aclosing(reflector.batches()) as batches:
            async for batch in batches:
                await handle(batch)
                if batch.synced and not self._listed[resource.plural].is_set():
                    self._listed[resource.plural].set()
                    self._health.set(f"kubernetes {resource}", True)
                    await self._export_touched()
                    self._handed_on[resource.plural].set()

    async def _on_nodes(self, batch: KubeBatch[Node]) -> None:
        for ref in batch.deletes:
            self._drop(Kind.NODES, keys.node(self._cluster.name, ref.name))
        for node in batch.upserts:
            key = keys.node(self._cluster.name, node.name)
            record = compile_node(self._cluster, node)
            if record is None:
                self._drop(Kind.NODES, key)
            else:
                self._keep(Kind.NODES, key, records.encode(record))

    async def _on_identities(self, batch: KubeBatch[ClusterMeshIdentity]) -> None:
        for ref in batch.deletes:
            self._allocator.forget(ref)
        for identity in batch.upserts:
            self._allocator.learn(identity)

    async def _on_namespaces(self, batch: KubeBatch[Namespace]) -> None:
        for ref in batch.deletes:
            self._pods.remove_namespace(ref)
        for namespace in batch.upserts:
            self._apply(self._pods.set_namespace(namespace))

    async def _on_pods(self, batch: KubeBatch[Pod]) -> None:
        # An address must not go before the services that lead to it.
        await self._flush(Kind.SERVICES)
        for ref in batch.deletes:
            self._apply(self._pods.remove_pod(ref))
        for pod in batch.upserts:
            self._apply(self._pods.set_pod(pod))

    async def _on_services(self, batch: KubeBatch[Service]) -> None:
        for ref in batch.deletes:
            self._touched |= self._services.remove_service(ref)
        for service in batch.upserts:
            self._touched |= self._services.set_service(service)
        await self._export_touched()

    async def _on_slices(self, batch: KubeBatch[EndpointSlice]) -> None:
        for ref in batch.deletes:
            self._touched |= self._services.remove_slice(ref)
        for piece in batch.upserts:
            self._touched |= self._services.set_slice(piece)
        await self._export_touched()

    # Writing

    def _apply(self, changes: PodChanges) -> None:
        if changes.wanted:
            self._allocator.want(changes.wanted)
        writer = self._writers[Kind.ADDRESSES]
        for ip, record in changes.addresses:
            if record is None:
                writer.delete(keys.address(ip))
                self._metrics.delete(Kind.ADDRESSES)
            else:
                writer.put(keys.address(ip), records.encode(record))
                self._metrics.put(Kind.ADDRESSES)

    def _numbered(self, text: str) -> None:
        self._apply(self._pods.numbered(text))

    async def _export_touched(self) -> None:
        """Compile what has changed, once Services and slices are both complete: half of one looks like a deletion."""
        if not (self._listed[SERVICES.plural].is_set() and self._listed[ENDPOINT_SLICES.plural].is_set()):
            return
        if self._touched:
            await self._flush(Kind.ADDRESSES)
        # Nothing is awaited from here on, so that the latest state is what is written last.
        touched, self._touched = self._touched, set()
        for name in touched:
            record, local = self._services.compile(self._cluster, name)
            key, local_key = keys.service(self._cluster.name, *name), keys.local_service(*name)
            if record is None:
                self._drop(Kind.SERVICES, key)
            else:
                self._keep(Kind.SERVICES, key, records.encode(record))
            if local is None:
                self._drop(Kind.SERVICES, local_key)
            else:
                self._keep(Kind.SERVICES, local_key, private.encode(local))

    def _keep(self, kind: Kind, key: str, value: bytes) -> None:
        self._exported[kind].add(key)
        self._writers[kind].put(key, value)
        self._metrics.put(kind)

    def _drop(self, kind: Kind, key: str) -> None:
        if key in self._exported[kind]:
            self._exported[kind].discard(key)
            self._writers[kind].delete(key)
            self._metrics.delete(kind)

    async def _flush(self, kind: Kind) -> None:
        """Wait until what was put is in etcd; a value that etcd will never take holds nobody up."""
        writer = self._writers[kind]
        backoff = Backoff(cap=5.0)
        while True:
            try:
                await writer.flush(despite_rejections=True)
            except KvError as error:
                if error.hopeless:
                    continue
                self._health.set("etcd", False, str(error))
                await asyncio.sleep(backoff.pause())
            else:
                self._health.set("etcd", True)
                return

    # Start, canaries and signs of life

    async def _adopt(self) -> None:
        """Learn what an earlier run left in etcd."""
        while True:
            try:
                async with asyncio.timeout(_LEASE_PATIENCE):
                    await self._lease.granted()
                break
            except TimeoutError:
                self._health.set("etcd", False, str(self._lease.error or "no lease yet"))
        backoff = Backoff(cap=5.0)
        prefixes = [(kind, keys.state_prefix(kind, self._cluster.name)) for kind in Kind]
        for kind, prefix in (*prefixes, (Kind.SERVICES, keys.LOCAL_SERVICES)):
            while True:
                try:
                    found = await self._writers[kind].adopt(prefix)
                    break
                except KvError as error:
                    self._health.set("etcd", False, str(error))
                    log.warning("cannot read %s yet: %s", prefix, error)
                    await asyncio.sleep(backoff.pause())
            self._health.set("etcd", True)
            if found:
                log.info("adopted %d %s", found, kind)

    async def _announce(self) -> None:
        """Canaries once everything is in etcd, and again each time that etcd has lost it."""
        for handed_on in self._handed_on.values():
            await handed_on.wait()
        await self._allocator.settled()
        for kind in Kind:
            await self._flush(kind)
        for kind in _PRUNED:
            self._writers[kind].prune(keys.state_prefix(kind, self._cluster.name))
            if kind is Kind.SERVICES:
                self._writers[kind].prune(keys.LOCAL_SERVICES)
            await self._flush(kind)
        self._allocator.start_collecting()
        while True:
            for kind in Kind:
                await self._flush(kind)
            if await self._put_canaries():
                self._health.set("export", True)
                self._metrics.synced.set(1)
                log.info("everything that Kubernetes has is in etcd")
                await self._lost.wait()
            self._lost.clear()
            self._health.set("export", False, "etcd lost its content, everything is written again")
            self._metrics.synced.set(0)

    async def _put_canaries(self) -> bool:
        """False when etcd lost its content meanwhile. Not by a writer: that would repeat them before the records."""
        canaries = [keys.state_canary(kind, self._cluster.name) for kind in self._config().kinds()]
        backoff = Backoff(cap=5.0)
        for key in canaries:
            while not self._lost.is_set():
                try:
                    await self._connection.put(key, _now(), await self._lease.granted())
                    break
                except KvError as error:
                    log.warning("cannot write %s yet: %s", key, error)
                    await asyncio.sleep(backoff.pause())
        return not self._lost.is_set()

    def _config(self) -> records.ClusterConfig:
        # False, not absent: ServiceExports are known, but this cluster has none.
        capabilities = records.Capabilities(
            synced_canaries=True, max_connected_clusters=self._cluster.max_clusters, service_exports_enabled=False
        )
        return records.ClusterConfig(self._cluster.id, capabilities)

    def _cluster_config(self) -> bytes:
        return records.encode(self._config())

    def _put_cluster_config(self) -> None:
        self._control.put(keys.cluster_config(self._cluster.name), self._cluster_config())

    async def _guard_cluster_config(self) -> None:
        """Put the cluster-config back when somebody else has changed or deleted it."""
        key = keys.cluster_config(self._cluster.name)
        while True:
            await asyncio.sleep(_CONFIG_CHECK)
            try:
                found = await self._connection.get(key)
                if found is None or found.value != self._cluster_config():
                    log.warning("%s was changed by somebody else: restoring it", key)
                    await self._connection.put(key, self._cluster_config(), await self._lease.granted())
            except KvError as error:
                log.warning("cannot look at %s: %s", key, error)

    async def _beat(self) -> None:
        while True:
            self._control.put(keys.HEARTBEAT, _now())
            await asyncio.sleep(self._heartbeat)

    # Telling

    def _feed_state(self, resource: Resource[T], state: ReflectorState) -> None:
        self._metrics.feed_state(str(resource), state)
        if not self._listed[resource.plural].is_set() and state.phase is Phase.RETRYING:
            self._health.set(f"kubernetes {resource}", False, state.error)

    def _identity_trouble(self, problem: str) -> None:
        self._health.set("identities", not problem, problem)

    def _watch_figures(self) -> None:
        for kind, writer in self._writers.items():
            self._metrics.watch_queue(kind, writer.__len__)
        self._metrics.watch_objects(Kind.IDENTITIES, self._allocator.table.__len__)
        self._metrics.watch_objects(Kind.ADDRESSES, self._pods.__len__)
        for kind, exported in self._exported.items():
            self._metrics.watch_objects(kind, exported.__len__)


def _now() -> bytes:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
