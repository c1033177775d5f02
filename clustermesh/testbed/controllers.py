"""What kube-controller-manager and kube-scheduler do in a real cluster, as far as the testbed needs it.

Reflectors fill stores; each change puts the names of what it may affect into queues; a controller takes one name at a
time and brings about what follows from the stores. What a controller itself writes goes into the store at once, so
that it never acts twice on the same lack.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, TypeVar

from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import Conflict, KubeError, NotFound
from clustermesh.kube.objects import KubeObject, Resource
from clustermesh.kube.reflector import KubeBatch, Reflector
from clustermesh.testbed import deployments, endpoints, scheduling
from clustermesh.testbed.objects import DEPLOYMENTS, PODS, SERVICES, SLICES, Deployment, Pod, Service, Slice
from clustermesh.testbed.topology import Node

log = logging.getLogger(__name__)

T = TypeVar("T", bound=KubeObject)

_FIRST_RETRY, _LONGEST_RETRY = 0.2, 5.0  # seconds
_PARALLEL_WRITES = 8


class Key(NamedTuple):
    namespace: str
    name: str


def key_of(item: KubeObject) -> Key:
    return Key(item.namespace, item.name)


def now() -> str:
    """RFC 3339, whole seconds, as Kubernetes writes times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store(Generic[T]):
    """All objects of a kind, as last seen."""

    def __init__(self) -> None:
        self._items: dict[Key, T] = {}
        self.synced = asyncio.Event()

    def get(self, key: Key) -> T | None:
        return self._items.get(key)

    def values(self) -> tuple[T, ...]:
        return tuple(self._items.values())

    def put(self, item: T) -> None:
        """Keep the newer of two; the stand-in's resource versions are numbers that grow."""
        present = self._items.get(key_of(item))
        if present is None or int(item.metadata.resource_version) >= int(present.metadata.resource_version):
            self._items[key_of(item)] = item

    def apply(self, batch: KubeBatch[T]) -> list[T]:
        """Take a batch in; the objects it touched, as they were and as they are."""
        touched: list[T] = []
        for ref in batch.deletes:
            key = Key(ref.namespace, ref.name)
            gone = self._items.get(key)
            # A write of our own may have put a successor of the same name there already.
            if gone is not None and gone.metadata.uid == ref.uid:
                del self._items[key]
                touched.append(gone)
        for item in batch.upserts:
            before = self._items.get(key_of(item))
            touched += [item] if before is None else [before, item]
            self.put(item)
        return touched


class Queue:
    """Names that wait for their controller, each once; failures come back later and later."""

    def __init__(self, name: str, reconcile: Callable[[Key], Awaitable[None]]) -> None:
        self._name = name
        self._reconcile = reconcile
        self._waiting: dict[Key, None] = {}
        self._failures: dict[Key, int] = {}
        self._filled = asyncio.Event()
        self._idle = asyncio.Event()

    def add(self, key: Key) -> None:
        self._waiting[key] = None
        self._filled.set()
        self._idle.clear()

    async def idle(self) -> None:
        """Wait until everything that was put in is done."""
        await self._idle.wait()

    async def run(self) -> None:
        while True:
            while self._waiting:
                key = next(iter(self._waiting))
                del self._waiting[key]
                await self._attempt(key)
            self._idle.set()
            self._filled.clear()
            await self._filled.wait()

    async def _attempt(self, key: Key) -> None:
        try:
            await self._reconcile(key)
        except KubeError as error:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            log.info("%s %s/%s: %s; trying again", self._name, *key, error)
            delay = min(_FIRST_RETRY * 2**failures, _LONGEST_RETRY)
            asyncio.get_running_loop().call_later(delay, self.add, key)
        else:
            self._failures.pop(key, None)


class Controllers:
    """Runs the controllers of one cluster; `on_pod` hears of every pod that changed or went."""

    def __init__(self, client: KubeClient, nodes: Sequence[Node], on_pod: Callable[[Pod], None]) -> None:
        self._client = client
        self._nodes = nodes
        self._on_pod = on_pod
        self.pods: Store[Pod] = Store()
        self._deployments: Store[Deployment] = Store()
        self._services: Store[Service] = Store()
        self._slices: Store[Slice] = Store()
        self._deleted: set[str] = set()  # uids of pods that a deletion was asked for
        self._rollouts = Queue("deployment", self._roll_out)
        self._endpoints = Queue("endpoints of", self._publish)
        self._schedule = Queue("scheduling of", self._place)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(DEPLOYMENTS, self._deployments, self._deployment_changed))
            tasks.create_task(self._follow(SERVICES, self._services, self._service_changed))
            tasks.create_task(self._follow(SLICES, self._slices, self._slice_changed))
            tasks.create_task(self._follow(PODS, self.pods, self._pod_changed))
            for store in (self._deployments, self._services, self._slices, self.pods):
                await store.synced.wait()
            for queue in (self._schedule, self._rollouts, self._endpoints):
                tasks.create_task(queue.run())

    def pods_on(self, node: str) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.spec.node_name == node]

    async def endpoints_published(self) -> None:
        """Wait until the slices say what the pods seen so far ask for."""
        await self._endpoints.idle()

    async def _follow(self, resource: Resource[T], store: Store[T], changed: Callable[[T], None]) -> None:
        async for batch in Reflector(self._client, resource).batches():
            for item in store.apply(batch):
                changed(item)
            if batch.synced:
                store.synced.set()

    def _deployment_changed(self, deployment: Deployment) -> None:
        self._rollouts.add(key_of(deployment))

    def _service_changed(self, service: Service) -> None:
        self._endpoints.add(key_of(service))

    def _slice_changed(self, item: Slice) -> None:
        labels = item.metadata.labels or {}
        if labels.get(endpoints.MANAGED_BY_LABEL) == endpoints.MANAGER:
            self._endpoints.add(Key(item.namespace, labels.get(endpoints.SERVICE_LABEL, "")))

    def _pod_changed(self, pod: Pod) -> None:
        if not pod.spec.node_name:
            self._schedule.add(key_of(pod))
        owner = deployments.owner_uid(pod)
        for deployment in self._deployments.values():
            if deployment.metadata.uid == owner:
                self._rollouts.add(key_of(deployment))
        for service in self._services.values():
            if service.namespace == pod.namespace and endpoints.selects(service, pod.metadata.labels):
                self._endpoints.add(key_of(service))
        if self.pods.get(key_of(pod)) is None:
            self._deleted.discard(pod.metadata.uid)
        self._on_pod(pod)

    async def _roll_out(self, key: Key) -> None:
        deployment = self._deployments.get(key)
        if deployment is None or deployment.metadata.deletion_timestamp:
            return
        owned = self._owned(deployment)
        step = deployments.plan(deployment, owned)
        limit = asyncio.Semaphore(_PARALLEL_WRITES)
        results = await asyncio.gather(
            *(self._create_pod(deployment, limit) for _ in range(step.create)),
            *(self._delete_pod(pod, limit) for pod in owned if pod.name in step.delete),
            return_exceptions=True,
        )
        for failure in filter(None, results):
            raise failure
        status = deployments.status(deployment, self._owned(deployment), now())
        if status != deployment.status:
            self._deployments.put(
                await self._client.merge_patch_status(DEPLOYMENTS, key.name, status, namespace=key.namespace)
            )

    def _owned(self, deployment: Deployment) -> list[Pod]:
        return [
            pod
            for pod in self.pods.values()
            if deployments.owner_uid(pod) == deployment.metadata.uid and pod.metadata.uid not in self._deleted
        ]

    async def _create_pod(self, deployment: Deployment, limit: asyncio.Semaphore) -> None:
        async with limit:
            self.pods.put(await self._client.create(PODS, deployments.pod_document(deployment)))

    async def _delete_pod(self, pod: Pod, limit: asyncio.Semaphore) -> None:
        async with limit:
            await self._client.delete(PODS, pod.name, pod.namespace, missing_ok=True)
            self._deleted.add(pod.metadata.uid)

    async def _place(self, key: Key) -> None:
        pod = self.pods.get(key)
        if pod is None or pod.spec.node_name or pod.terminating:
            return
        node = scheduling.choose(pod, self._nodes, self.pods.values())
        if node is None:
            await self._client.merge_patch_status(PODS, key.name, _unschedulable(pod), namespace=key.namespace)
            return
        try:
            patch = {"metadata": {"uid": pod.metadata.uid}, "spec": {"nodeName": node}}
            placed = await self._client.merge_patch(PODS, key.name, patch, namespace=key.namespace)
        except (NotFound, Conflict):
            return  # deleted meanwhile
        self.pods.put(placed)
        self._on_pod(placed)

    async def _publish(self, key: Key) -> None:
        service = self._services.get(key)
        if service is None or service.metadata.deletion_timestamp or not service.spec.selector:
            return
        pods = [pod for pod in self.pods.values() if pod.namespace == key.namespace]
        wanted = {item["metadata"]["name"]: item for item in endpoints.slices(service, pods)}
        present = {item.name: item for item in self._slices.values() if _belongs(item, service)}
        for name, document in wanted.items():
            if name not in present:
                self._slices.put(await self._client.create(SLICES, document))
            elif _content(document) != _content_of(present[name]):
                self._slices.put(await self._client.replace(SLICES, document))
        for name in present.keys() - wanted.keys():
            await self._client.delete(SLICES, name, key.namespace, missing_ok=True)


def _belongs(item: Slice, service: Service) -> bool:
    labels = item.metadata.labels or {}
    return (
        item.namespace == service.namespace
        and labels.get(endpoints.SERVICE_LABEL) == service.name
        and labels.get(endpoints.MANAGED_BY_LABEL) == endpoints.MANAGER
    )


def _content(document: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(document["endpoints"]), tuple(document["ports"])


def _content_of(item: Slice) -> tuple[Any, ...]:
    return tuple(item.endpoints or ()), tuple(item.ports or ())


def _unschedulable(pod: Pod) -> dict[str, Any]:
    message = f"no node of the testbed has the labels {dict(pod.spec.node_selector or {})}"
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"conditions": [{**condition, "lastTransitionTime": now()}]}
