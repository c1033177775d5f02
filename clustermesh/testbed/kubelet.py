"""One process a cluster that does what kubelets, controllers and scheduler do in a real one.

For each pod of its nodes there is one worker: it makes the pod's network, runs its containers, reports its status,
and takes it down when it is deleted. A kubelet that starts adopts the pods that run already and removes those that
were deleted meanwhile.
"""

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from clustermesh.kube import config
from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import Conflict, KubeError, NotFound
from clustermesh.kube.objects import NODES
from clustermesh.testbed import containers, namespaces, podnetwork, processes, scheduling
from clustermesh.testbed.containers import ContainerRunner, Phase, Place
from clustermesh.testbed.controllers import Controllers, key_of, now
from clustermesh.testbed.errors import TestbedError
from clustermesh.testbed.objects import EVENTS, PODS, Pod
from clustermesh.testbed.state import StateDirectory
from clustermesh.testbed.topology import Cluster, Node, pod_namespace

log = logging.getLogger(__name__)

_RETRY = 1.0  # seconds
_ENDPOINTS_PATIENCE = 2.0  # seconds a dying pod waits for its endpoint to be withdrawn


class Kubelet:
    """The pods of one node."""

    def __init__(
        self,
        testbed: str,
        node: Node,
        directory: StateDirectory,
        client: KubeClient,
        withdrawn: Callable[[], Any],
    ) -> None:
        self.testbed = testbed
        self.node = node
        self.directory = directory
        self.client = client
        self.withdrawn = withdrawn
        self.pool = podnetwork.AddressPool(node.pod_cidr)
        self.sockets = namespaces.SocketFactory(node.namespace)
        self._workers: dict[str, PodWorker] = {}
        self._tasks: asyncio.TaskGroup | None = None

    def pod_changed(self, pod: Pod, gone: bool) -> None:
        """A pod of this node as it is now, or as it was when it went. What comes before `run` is found by `run`."""
        if self._tasks is None:
            return
        uid = pod.metadata.uid
        worker = self._workers.get(uid)
        if worker is not None:
            worker.update(pod, gone)
            # Kept until the object is gone: late news of a pod that has ended must not start it again.
            if gone:
                del self._workers[uid]
        elif not gone and not pod.finished:
            worker = self._workers[uid] = PodWorker(self, pod)
            self._tasks.create_task(worker.run(), name=f"pod {pod.namespace}/{pod.name}")

    async def run(self, present: Callable[[], Sequence[Pod]]) -> None:
        """`present` tells the pods that are known to be on this node."""
        await self._register()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            pods = [pod for pod in present() if not pod.finished]
            self._sweep({pod.metadata.uid for pod in pods})
            self.pool.reserve(pod.status.pod_ip for pod in pods if pod.status.pod_ip)
            for pod in pods:
                self.pod_changed(pod, gone=False)
            # A group without tasks would end.
            await asyncio.Event().wait()

    def _sweep(self, known: set[str]) -> None:
        """End the processes and remove the namespaces of pods that ended or were deleted while no kubelet ran."""
        mark = {processes.TESTBED_VARIABLE: self.testbed, containers.NODE_VARIABLE: self.node.name}
        running = list(processes.carrying(mark))
        processes.end(pid for pid, variables in running if variables.get(containers.UID_VARIABLE) not in known)
        kept = {pod_namespace(self.node, uid) for uid in known}
        for namespace in namespaces.named(f"{self.node.namespace}-"):
            suffix = namespace.removeprefix(f"{self.node.namespace}-")
            if namespace not in kept and len(suffix) == 6:
                namespaces.remove(namespace)

    async def _register(self) -> None:
        node = self.node
        spec = {"podCIDR": node.pod_cidr, "podCIDRs": [node.pod_cidr]}
        metadata = {"name": node.name, "labels": scheduling.labels(node)}
        while True:
            try:
                await self.client.apply(NODES, {"metadata": metadata, "spec": spec})
                await self.client.merge_patch_status(NODES, node.name, _node_status(node))
                return
            except KubeError as error:
                log.info("node %s cannot be registered: %s; trying again", node.name, error)
                await asyncio.sleep(_RETRY)


class Ending(NamedTuple):
    """How a pod goes: `gone` when its object is there no more."""

    grace: float
    gone: bool


class PodWorker:
    """Carries one pod from its first sight to its end."""

    def __init__(self, kubelet: Kubelet, pod: Pod) -> None:
        self._kubelet = kubelet
        self._pod = pod
        self._node = kubelet.node
        self._uid = pod.metadata.uid
        self._namespace = self._node.namespace if pod.spec.host_network else pod_namespace(self._node, self._uid)
        self._address = pod.status.pod_ip
        self._started = pod.status.start_time or now()
        self._runners: list[ContainerRunner] = []
        self._conditions = {c.type: (c.status, c.last_transition_time) for c in pod.status.conditions or ()}
        self._changed = asyncio.Event()
        self._ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.update(pod, gone=False)

    def update(self, pod: Pod, gone: bool) -> None:
        self._pod = pod
        if (gone or pod.terminating) and not self._ending.done():
            self._ending.set_result(Ending(0.0 if gone else _grace(pod), gone))

    async def run(self) -> None:
        try:
            if await self._connected():
                await self._live()
            ending = await asyncio.shield(self._ending)
        finally:
            if self._ending.done():
                await asyncio.to_thread(self._disconnect)
        if not ending.gone:
            await self._delete()

    async def _live(self) -> None:
        """Run the containers from start to end."""
        async with asyncio.TaskGroup() as tasks:
            owned = [tasks.create_task(self._report())]
            self._start(tasks, owned)
            ending = await asyncio.shield(self._ending)
            if not ending.gone:
                await self._withdraw()
            await asyncio.gather(*(runner.stop(ending.grace) for runner in self._runners))
            for task in owned:
                task.cancel()

    async def _connected(self) -> bool:
        """Make the network, again and again if need be: a node that is full may have room later.

        False when the pod is deleted before it had one.
        """
        while not self._ending.done() or namespaces.path(self._namespace).exists():
            try:
                await asyncio.to_thread(self._connect)
                return True
            except TestbedError as error:
                log.warning("pod %s/%s: %s; trying again", self._pod.namespace, self._pod.name, error)
                await self._event("FailedCreatePodSandBox", str(error), kind="Warning")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY):
                        await asyncio.shield(self._ending)
        return False

    def _connect(self) -> None:
        if self._pod.spec.host_network:
            self._address = self._node.address
        elif not (self._address and namespaces.path(self._namespace).exists()):
            podnetwork.detach(self._node, self._namespace, self._uid)
            self._address = self._address or self._kubelet.pool.take()
            podnetwork.attach(self._node, self._namespace, self._uid, self._address)
        link = self._link
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(namespaces.path(self._namespace))

    def _disconnect(self) -> None:
        link = self._link
        # A pod of the same name may have come already.
        if link.is_symlink() and link.readlink() == namespaces.path(self._namespace):
            link.unlink()
        if not self._pod.spec.host_network:
            podnetwork.detach(self._node, self._namespace, self._uid)
            self._kubelet.pool.give_back(self._address)

    @property
    def _link(self) -> Path:
        return self._kubelet.directory.pod(self._node.cluster, self._pod.namespace, self._pod.name)

    def _start(self, tasks: asyncio.TaskGroup, owned: list[asyncio.Task[None]]) -> None:
        place = Place(self._kubelet.testbed, self._node, self._namespace, self._address)
        running = {
            variables[containers.CONTAINER_VARIABLE]: pid
            for pid, variables in processes.carrying({containers.UID_VARIABLE: self._uid})
            if os.getsid(pid) == pid and containers.CONTAINER_VARIABLE in variables
        }
        restarts = {status.name: status.restart_count for status in self._pod.status.container_statuses or ()}
        for container in self._pod.spec.containers:
            name = f"{self._node.cluster}/{self._pod.namespace}/{self._pod.name}/{container.name}"
            runner = ContainerRunner(
                self._pod,
                container,
                place,
                log=self._kubelet.directory.log(name),
                sockets=self._kubelet.sockets,
                clock=now,
                changed=self._changed.set,
                restarts=restarts.get(container.name, 0),
            )
            self._runners.append(runner)
            owned.append(tasks.create_task(runner.run(running.get(container.name))))
            if container.command and not containers.is_echo(container.image) and container.name not in running:
                message = f"image {container.image!r} is not pulled: its command runs on the host's file system"
                owned.append(tasks.create_task(self._event("HostFilesystem", message)))

    async def _report(self) -> None:
        """Write the status whenever it has changed; several changes at once are one write."""
        self._changed.set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._kubelet.client.merge_patch_status(
                    PODS, self._pod.name, self._status(), namespace=self._pod.namespace
                )
            except NotFound:
                return
            except KubeError as error:
                log.info("status of pod %s/%s: %s; trying again", self._pod.namespace, self._pod.name, error)
                await asyncio.sleep(_RETRY)
                self._changed.set()

    def _status(self) -> dict[str, Any]:
        ready = bool(self._runners) and all(runner.ready for runner in self._runners)
        facts = {"PodScheduled": True, "Initialized": True, "ContainersReady": ready, "Ready": ready}
        return {
            "phase": self._phase(),
            "podIP": self._address,
            "podIPs": [{"ip": self._address}],
            "hostIP": self._node.address,
            "hostIPs": [{"ip": self._node.address}],
            "startTime": self._started,
            "conditions": [self._condition(kind, holds) for kind, holds in facts.items()],
            "containerStatuses": [runner.status() for runner in self._runners],
        }

    def _phase(self) -> str:
        states = [runner.state for runner in self._runners]
        if states and all(state.phase is Phase.TERMINATED for state in states):
            return "Failed" if any(state.exit_code for state in states) else "Succeeded"
        creating = any(state.phase is Phase.WAITING and state.reason != "CrashLoopBackOff" for state in states)
        return "Pending" if creating or not states else "Running"

    def _condition(self, kind: str, holds: bool) -> dict[str, Any]:
        status = "True" if holds else "False"
        before, since = self._conditions.get(kind, ("", None))
        if before != status or since is None:
            since = now()
            self._conditions[kind] = (status, since)
        reason = {} if holds else {"reason": "ContainersNotReady"}
        return {"type": kind, "status": status, "lastTransitionTime": since, **reason}

    async def _withdraw(self) -> None:
        """Let the slices forget the pod before its processes end; but not for ever, if the API is down."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDPOINTS_PATIENCE):
                await self._kubelet.withdrawn()

    async def _delete(self) -> None:
        """The object goes last."""
        pod = self._pod
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": self._uid},
        }
        while True:
            try:
                path = PODS.path(pod.namespace, pod.name)
                await self._kubelet.client.request("DELETE", path, f"delete pod {pod.name}", body=options)
                return
            except (NotFound, Conflict):
                return  # gone, or another pod of that name
            except KubeError as error:
                log.info("pod %s/%s: %s; trying again", pod.namespace, pod.name, error)
                await asyncio.sleep(_RETRY)

    async def _event(self, reason: str, message: str, kind: str = "Normal") -> None:
        pod, time = self._pod, now()
        document = {
            "metadata": {"name": f"{pod.name}.{secrets.token_hex(8)}", "namespace": pod.namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": pod.namespace,
                "name": pod.name,
                "uid": self._uid,
            },
            "reason": reason,
            "message": message,
            "type": kind,
            "source": {"component": "kubelet", "host": self._node.name},
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        }
        try:
            await self._kubelet.client.create(EVENTS, document)
        except KubeError as error:
            log.info("event %s of pod %s/%s is lost: %s", reason, pod.namespace, pod.name, error)


async def run(directory: StateDirectory, cluster_name: str) -> None:
    """Controllers and kubelets of one cluster, until cancelled."""
    record = directory.load()
    if record is None:
        raise TestbedError(f"there is no testbed in {directory.path}")
    cluster: Cluster = record.topology.cluster(cluster_name)
    async with KubeClient(config.load(directory.kubeconfig, cluster.name)) as client:
        kubelets: dict[str, Kubelet] = {}

        def on_pod(pod: Pod) -> None:
            if pod.spec.node_name in kubelets:
                present = controllers.pods.get(key_of(pod))
                gone = present is None or present.metadata.uid != pod.metadata.uid
                kubelets[pod.spec.node_name].pod_changed(pod if gone or present is None else present, gone)

        controllers = Controllers(client, cluster.nodes, on_pod)
        for node in cluster.nodes:
            kubelets[node.name] = Kubelet(record.name, node, directory, client, controllers.endpoints_published)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(controllers.run())
            await controllers.pods.synced.wait()
            for name, kubelet in kubelets.items():
                tasks.create_task(kubelet.run(functools.partial(controllers.pods_on, name)))


def _grace(pod: Pod) -> float:
    """Seconds left to a pod that is being deleted: its deletionTimestamp is when they are over."""
    end = datetime.fromisoformat(pod.metadata.deletion_timestamp or now())
    return max(0.0, (end - datetime.now(UTC)).total_seconds())


def _node_status(node: Node) -> dict[str, Any]:
    release = os.uname()
    room = {"pods": "250", "cpu": str(os.cpu_count())}
    return {
        "addresses": [
            {"type": "InternalIP", "address": node.address},
            {"type": "Hostname", "address": node.name},
        ],
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "KubeletReady",
                "message": "the testbed's kubelet runs",
                "lastHeartbeatTime": now(),
                "lastTransitionTime": now(),
            }
        ],
        "capacity": room,
        "allocatable": room,
        "nodeInfo": {
            "architecture": "amd64" if release.machine == "x86_64" else release.machine,
            "bootID": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "containerRuntimeVersion": "netns://1",
            "kernelVersion": release.release,
            "kubeProxyVersion": "",
            "kubeletVersion": "v0-testbed",
            "machineID": node.namespace,
            "operatingSystem": "linux",
            "osImage": "clustermesh testbed",
            "systemUUID": node.namespace,
        },
    }


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    path, cluster = Path(sys.argv[1]), sys.argv[2]
    asyncio.run(run(StateDirectory(path.name, path.parent), cluster))


if __name__ == "__main__":
    main()
