"""This cluster's side of the mesh: what Kubernetes has, written to etcd as peers and agents expect it.

One task follows each kind. Nobody may see a reference to what is not there yet, so an identity is in etcd before an
address that has it, an address before a service that leads to it, and the other way round when they go. Each kind has a
writer of its own, and a task waits for the other kind's writer, and only for what is still on its way there.

A namespace that is not global has its identities and addresses below `clustermesh/`, for the own agents alone, and no
services. One that changes moves in the same order: identities, addresses, services, and only then the old places go.

A restart adopts what is in etcd: equal records are not written again, and what is stale goes only after everything
that Kubernetes has is in etcd. Then, and not before, the canaries tell readers that the lists are complete.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from apiserver.addresses import pod_addresses
from apiserver.cluster import ClusterIdentity
from apiserver.control import HEARTBEAT, ControlKeys
from apiserver.health import Health
from apiserver.identities import GRACE, IdentityAllocator
from apiserver.metrics import Metrics
from apiserver.namespaces import Namespaces
from apiserver.nodes import compile_node
from apiserver.outbox import LEADING_TO_ADDRESSES, Outbox
from apiserver.places import Places
from apiserver.pods import PodChanges, PodTable
from apiserver.service_exporter import ServiceExporter
from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import CredentialError, KubeError, NotFound
from clustermesh.kube.objects import (
    CLUSTER_MESH_IDENTITIES,
    CLUSTER_MESH_PEERS,
    ENDPOINT_SLICES,
    NAMESPACES,
    NODES,
    PODS,
    SERVICE_EXPORTS,
    SERVICE_EXPORTS_ALPHA,
    SERVICES,
    ClusterMeshIdentity,
    KubeObject,
    Namespace,
    Node,
    Pod,
    Resource,
    ServiceExport,
)
from clustermesh.kube.optional import LOOK, OptionalReflector
from clustermesh.kube.reflector import Backoff, KubeBatch, Phase, Reflector, ReflectorState
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.lease import Lease
from clustermesh.wire import keys, label_filter, records
from clustermesh.wire.keys import Kind
from clustermesh.wire.label_filter import LabelFilter

log = logging.getLogger(__name__)

T = TypeVar("T", bound=KubeObject)

_PATIENCE = 1.0  # seconds that services wait for the numbers of new pods, which may never come
_OVERLAP = 1.0  # seconds that a record stands in its new place before it leaves the old one
_FOLLOWED: tuple[Resource[Any], ...] = (
    NODES,
    NAMESPACES,
    CLUSTER_MESH_IDENTITIES,
    PODS,
    SERVICES,
    ENDPOINT_SLICES,
    SERVICE_EXPORTS,
)
# What services consist of, and the pods that go ahead of them.
_OF_SERVICES = (NAMESPACES, PODS, SERVICES, ENDPOINT_SLICES, SERVICE_EXPORTS)
_OWN_KINDS: tuple[Resource[Any], ...] = (CLUSTER_MESH_IDENTITIES, CLUSTER_MESH_PEERS)


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
        relevant: LabelFilter = label_filter.DEFAULT,
        default_global: bool = True,
        slices: bool = True,
        look: float = LOOK,
    ) -> None:
        """`heartbeat`, `grace` (how long an unused identity is kept) and `look` (between two looks for kinds that are
        not installed) in seconds. `relevant`: labels that make an identity. `default_global`: whether peers may know of
        a namespace that does not say. `slices`: whether endpoint slices are written beside the services. The lease is
        run by its owner.
        """
        self._cluster = cluster
        self._client = client
        self._health = health
        self._metrics = metrics
        self._look = look
        self._outbox = Outbox(cluster.name, connection, lease, health, metrics)
        self._control = ControlKeys(cluster, connection, lease, heartbeat=heartbeat, slices=slices)
        # Registered after the writers' own listeners: when it wakes us they have queued everything again.
        self._lost = asyncio.Event()
        lease.on_loss(self._lost.set)
        self._namespaces = Namespaces(default=default_global)
        self._moving = asyncio.Lock()  # held while a namespace is between two states
        self._moved = asyncio.Event()
        self._pruned = asyncio.Event()
        self._vacated = asyncio.Event()  # while no address stands in two places
        self._vacated.set()
        writers = self._outbox.writers
        self._identity_places = Places(writers[Kind.IDENTITIES], keys.identity, keys.local_identity)
        self._address_places = Places(writers[Kind.ADDRESSES], keys.address, keys.local_address)
        self._allocator = IdentityAllocator(
            cluster,
            client,
            self._identity_places,
            flush=lambda: self._outbox.flush(Kind.IDENTITIES),
            released=self._released,
            numbered=self._numbered,
            in_use=lambda number: self._pods.uses(number),
            is_global=self._namespaces.is_global,
            trouble=self._identity_trouble,
            grace=grace,
        )
        self._pods = PodTable(cluster, self._allocator.lookup, relevant)
        self._listed = {resource.plural: asyncio.Event() for resource in _FOLLOWED}
        self._handed_on = {resource.plural: asyncio.Event() for resource in _FOLLOWED}  # to the writers
        self._services = ServiceExporter(
            cluster,
            self._outbox,
            ready=lambda: all(self._listed[resource.plural].is_set() for resource in _OF_SERVICES),
            pods_first=self._pods_first,
            is_global=self._namespaces.is_global,
            slices=slices,
        )
        metrics.watch_objects(Kind.IDENTITIES, self._allocator.table.__len__)
        metrics.watch_objects(Kind.ADDRESSES, self._pods.__len__)
        for resource in _FOLLOWED:
            health.set(f"kubernetes {resource}", False, "not listed yet")
        health.set("identities", True)
        health.set("export", False, "not everything that Kubernetes has is in etcd yet")

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._outbox.run())
            await self._wait_for_kinds()
            await self._outbox.adopt()
            await self._control.adopt()
            tasks.create_task(self._control.run())
            tasks.create_task(self._allocator.run())
            # Where an identity stands depends on its namespace.
            tasks.create_task(self._follow(CLUSTER_MESH_IDENTITIES, self._on_identities, after=(NAMESPACES,)))
            tasks.create_task(self._follow(NODES, self._on_nodes))
            tasks.create_task(self._follow(NAMESPACES, self._on_namespaces))
            tasks.create_task(self._follow(SERVICES, self._services.on_services))
            tasks.create_task(self._follow(ENDPOINT_SLICES, self._services.on_slices))
            tasks.create_task(self._follow_exports())
            # A pod needs its namespace's labels and the numbers that are dealt out already.
            tasks.create_task(self._follow(PODS, self._on_pods, after=(NAMESPACES, CLUSTER_MESH_IDENTITIES)))
            tasks.create_task(self._vacate())
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
        after: Iterable[Resource[Any]] = (),
    ) -> None:
        for other in after:
            await self._listed[other.plural].wait()
        reflector = Reflector(self._client, resource, on_state=lambda state: self._feed_state(resource, state))
        async with contextlib.aclosing(reflector.batches()) as batches:
            async for batch in batches:
                await handle(batch)
                if batch.synced:
                    await self._note_listed(resource)

    async def _follow_exports(self) -> None:
        """ServiceExports, as long as the cluster has the kind; peers are told whether it has."""
        reflector = OptionalReflector(
            self._client,
            (SERVICE_EXPORTS, SERVICE_EXPORTS_ALPHA),
            on_state=lambda state: self._feed_state(SERVICE_EXPORTS, state),
            look=self._look,
        )

        async def handle(batch: KubeBatch[ServiceExport]) -> None:
            await self._services.on_exports(batch)
            if batch.synced:
                self._control.set_config(service_exports=reflector.served is not None)
                await self._note_listed(SERVICE_EXPORTS)

        await reflector.run(handle)

    async def _note_listed(self, resource: Resource[Any]) -> None:
        if self._listed[resource.plural].is_set():
            return
        self._listed[resource.plural].set()
        self._health.set(f"kubernetes {resource}", True)
        await self._services.export()
        self._handed_on[resource.plural].set()

    async def _on_nodes(self, batch: KubeBatch[Node]) -> None:
        for ref in batch.deletes:
            self._outbox.set(Kind.NODES, keys.node(self._cluster.name, ref.name), None)
        for node in batch.upserts:
            record = compile_node(self._cluster, node)
            value = None if record is None else records.encode(record)
            self._outbox.set(Kind.NODES, keys.node(self._cluster.name, node.name), value)

    async def _on_identities(self, batch: KubeBatch[ClusterMeshIdentity]) -> None:
        if batch.deletes:
            await self._outbox.flush(Kind.ADDRESSES)
        for ref in batch.deletes:
            self._allocator.forget(ref)
        for identity in batch.upserts:
            self._allocator.learn(identity)
        await self._allocator.written()

    async def _on_namespaces(self, batch: KubeBatch[Namespace]) -> None:
        for ref in batch.deletes:
            self._namespaces.remove(ref)
            self._pods.remove_namespace(ref)
        for namespace in batch.upserts:
            await self._set_namespace(namespace)
        await self._services.export()

    async def _on_pods(self, batch: KubeBatch[Pod]) -> None:
        going = {ip for ref in batch.deletes for ip in self._pods.addresses(ref)}
        for pod in batch.upserts:
            going |= {*self._pods.addresses(pod.ref)} - {*pod_addresses(pod)}
        if going:
            await self._services.withdraw(going)
        for ref in batch.deletes:
            self._apply(self._pods.remove_pod(ref))
        for pod in batch.upserts:
            self._apply(self._pods.set_pod(pod))

    # Pods and their namespaces

    def _apply(self, changes: PodChanges) -> None:
        if changes.wanted:
            self._allocator.want(changes.wanted)
        for ip, record, public, inherited in changes.addresses:
            if record is None:
                self._address_places.delete(ip)
                self._metrics.delete(Kind.ADDRESSES)
            else:
                self._address_places.put(ip, records.encode(record), public=public, replaces=inherited)
                self._metrics.put(Kind.ADDRESSES)

    def _numbered(self, text: str) -> None:
        self._apply(self._pods.numbered(text))

    async def _pods_first(self) -> None:
        """Wait until the pods that are known have their addresses in etcd, but not for numbers that cannot be had."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._allocator.settled()
        await self._outbox.flush(Kind.ADDRESSES)

    async def _set_namespace(self, namespace: Namespace) -> None:
        name, public = namespace.name, self._namespaces.says(namespace)
        async with self._moving:
            # Its identities go ahead. New ones may come up meanwhile, in the old place.
            await self._outbox.flush(Kind.IDENTITIES)
            while self._allocator.stage(name, public=public):
                await self._outbox.flush(Kind.IDENTITIES)
            # Nothing is awaited from here on.
            if self._namespaces.set(namespace) and self._listed[NAMESPACES.plural].is_set():
                self._services.touch(name)  # before that no service was compiled
            self._apply(self._pods.set_namespace(namespace, public=public))
            if self._address_places.turn:
                self._vacated.clear()
        self._moved.set()

    async def _released(self) -> None:
        """Wait until no address in etcd has an identity that its pod has no more."""
        await self._vacated.wait()
        await self._outbox.flush(Kind.ADDRESSES)

    async def _vacate(self) -> None:
        """Empty the places that records have left, once the new ones have been in etcd for a moment."""
        await self._pruned.wait()
        while True:
            await self._moved.wait()
            self._moved.clear()
            async with self._moving:
                addresses, identities = self._address_places.turn, self._identity_places.turn
            if not (addresses or identities):
                continue
            await self._outbox.flush(Kind.ADDRESSES)
            await asyncio.sleep(_OVERLAP)
            await self._services.export()
            await self._outbox.flush(*LEADING_TO_ADDRESSES)
            async with self._moving:
                self._address_places.vacate(addresses)
                await self._outbox.flush(Kind.ADDRESSES)
                if not self._address_places.turn:
                    self._vacated.set()
                self._identity_places.vacate(identities)
                await self._outbox.flush(Kind.IDENTITIES)

    # Canaries

    async def _announce(self) -> None:
        """Canaries once everything is in etcd, and again each time that etcd has lost it."""
        for handed_on in self._handed_on.values():
            await handed_on.wait()
        await self._allocator.settled()
        await self._outbox.flush(*Kind)
        if self._address_places.turn or self._identity_places.turn:
            await asyncio.sleep(_OVERLAP)
        await self._outbox.prune()
        self._pruned.set()
        self._allocator.start_collecting()
        while True:
            await self._outbox.flush(*Kind)
            if await self._control.put_canaries(self._lost):
                self._health.set("export", True)
                self._metrics.synced.set(1)
                log.info("everything that Kubernetes has is in etcd")
                await self._lost.wait()
            self._lost.clear()
            self._health.set("export", False, "etcd lost its content, everything is written again")
            self._metrics.synced.set(0)

    # Telling

    def _feed_state(self, resource: Resource[T], state: ReflectorState) -> None:
        self._metrics.feed_state(str(resource), state)
        if not self._listed[resource.plural].is_set() and state.phase is Phase.RETRYING:
            self._health.set(f"kubernetes {resource}", False, state.error)

    def _identity_trouble(self, problem: str) -> None:
        self._health.set("identities", not problem, problem)
