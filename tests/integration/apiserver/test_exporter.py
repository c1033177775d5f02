"""The exporter between a Kubernetes API and a real etcd. Kubernetes keeps its objects in an etcd of its own, so that
the mesh's may be lost."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from apiserver.cluster import ClusterIdentity
from apiserver.exporter import Exporter
from apiserver.health import Health
from apiserver.metrics import Metrics
from clustermesh.kube import config
from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import KubeError
from clustermesh.kube.objects import (
    CLUSTER_MESH_IDENTITIES,
    ENDPOINT_SLICES,
    NAMESPACES,
    NODES,
    PODS,
    SERVICES,
    KubeObject,
    Resource,
)
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.lease import Lease
from clustermesh.wire import keys, labels
from tests.integration.etcd_process import EtcdProcess, free_ports, running_etcd
from tests.integration.kubernetes.cluster import Cluster
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

RED = ClusterIdentity("red", 1)
CRDS = Path(__file__).parents[3] / "deploy" / "crds"
CRD = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False, KubeObject)
WEB = {"app": "web"}


class Kubernetes:
    """Objects as a test wants them."""

    def __init__(self, client: KubeClient, kubeconfig: Path) -> None:
        self.client = client
        self.kubeconfig = kubeconfig

    async def install(self) -> None:
        for path in sorted(CRDS.glob("*.yaml")):
            await self.client.create(CRD, yaml.safe_load(path.read_text()))

        async def served() -> bool:
            try:
                await self.client.list(CLUSTER_MESH_IDENTITIES)
            except KubeError:
                return False
            return True

        await eventually(served)

    async def namespace(self, name: str = "demo") -> None:
        await self.client.create(NAMESPACES, {"metadata": {"name": name, "labels": {"team": "shop"}}})

    async def node(self, name: str = "red-1", ip: str = "10.128.1.11") -> None:
        spec = {"podCIDR": "10.1.1.0/24", "podCIDRs": ["10.1.1.0/24"]}
        await self.client.create(NODES, {"metadata": {"name": name}, "spec": spec})
        await self.client.merge_patch_status(NODES, name, {"addresses": [{"type": "InternalIP", "address": ip}]})

    async def pod(self, name: str, ip: str, pod_labels: dict[str, str] | None = None) -> None:
        spec = {"containers": [{"name": "c", "image": "clustermesh/echo"}], "nodeName": "red-1"}
        metadata = {"name": name, "namespace": "demo", "labels": pod_labels or WEB}
        await self.client.create(PODS, {"metadata": metadata, "spec": spec})
        status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "10.128.1.11"}
        await self.client.merge_patch_status(PODS, name, status, "demo")

    async def delete_pod(self, name: str) -> None:
        path = PODS.path("demo", name)
        await self.client.request("DELETE", path, f"delete pod {name}", query={"gracePeriodSeconds": "0"})

    async def service(self, *addresses: str, **annotations: str) -> None:
        given = {f"service.cilium.io/{key}": value for key, value in annotations.items()}
        metadata = {"name": "web", "namespace": "demo", "annotations": given}
        spec = {"clusterIP": "10.101.0.80", "selector": WEB, "ports": [{"name": "http", "port": 80}]}
        await self.client.create(SERVICES, {"metadata": metadata, "spec": spec})
        slice_meta = {"name": "web-1", "namespace": "demo", "labels": {"kubernetes.io/service-name": "web"}}
        endpoints = [{"addresses": [address], "conditions": {"ready": True}} for address in addresses]
        ports = [{"name": "http", "port": 8080, "protocol": "TCP"}]
        piece = {"metadata": slice_meta, "addressType": "IPv4", "endpoints": endpoints, "ports": ports}
        await self.client.create(ENDPOINT_SLICES, piece)


class Store:
    """What is in the mesh's etcd."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def all(self, prefix: str = "") -> dict[str, str]:
        pages = [page async for page in self.connection.list(prefix or "c")]
        return {kv.key.decode(): kv.value.decode() for page in pages for kv in page}

    async def revisions(self, prefix: str) -> dict[str, int]:
        pages = [page async for page in self.connection.list(prefix)]
        return {kv.key.decode(): kv.mod_revision for page in pages for kv in page}

    async def has(self, key: str) -> bool:
        return await self.connection.get(key) is not None

    async def identity_of(self, ip: str) -> int | None:
        found = await self.connection.get(keys.address(ip))
        return None if found is None else json.loads(found.value)["ID"]


@pytest.fixture
async def kubernetes_etcd(tmp_path: Path) -> AsyncIterator[EtcdProcess]:
    async with running_etcd(tmp_path / "kubernetes-etcd") as process:
        yield process


@pytest.fixture
async def kubernetes(kubernetes_etcd: EtcdProcess) -> AsyncIterator[Kubernetes]:
    cluster = Cluster(kubernetes_etcd, kubernetes_etcd.directory)
    try:
        await cluster.start()
        async with KubeClient(config.load(cluster.kubeconfig)) as client:
            yield Kubernetes(client, cluster.kubeconfig)
    finally:
        await cluster.stop()


@pytest.fixture
async def store(etcd: EtcdProcess) -> Store:
    return Store(etcd.connection())


@asynccontextmanager
async def exporting(kubernetes: Kubernetes, etcd: EtcdProcess, **options: Any) -> AsyncIterator[Health]:
    """An exporter at work, as the process runs it."""
    health = Health()
    connection = etcd.connection()
    lease = Lease(connection, 30, 0x636D_0000_0001)
    exporter = Exporter(
        cluster=RED,
        client=kubernetes.client,
        connection=connection,
        lease=lease,
        health=health,
        metrics=Metrics(),
        **options,
    )

    async def both() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lease.run())
            tasks.create_task(exporter.run())

    running = asyncio.create_task(both())
    try:
        yield health
        if running.done():
            running.result()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def ready(health: Health) -> None:
    try:
        await eventually(lambda: health.ready, within=20)
    except TimeoutError:
        raise AssertionError(f"not ready: {health.missing}") from None


async def test_a_cluster_is_exported_and_followed(kubernetes: Kubernetes, etcd: EtcdProcess, store: Store) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    await kubernetes.node()
    await kubernetes.pod("web-0", "10.1.1.5")
    await kubernetes.service("10.1.1.5", **{"global": "true"})
    async with exporting(kubernetes, etcd) as health:
        await ready(health)
        found = await store.all()
        number = await store.identity_of("10.1.1.5")
        assert number is not None
        first, last = RED.numbering.range(RED.id)
        assert first < number <= last
        assert labels.decode(found[keys.identity(number)])[labels.CLUSTER] == "red"
        assert json.loads(found["cilium/state/ip/v1/default/10.1.1.5"])["HostIP"] == "10.128.1.11"
        assert json.loads(found["cilium/state/nodes/v1/red/red-1"])["ClusterID"] == 1
        service = json.loads(found["cilium/state/services/v1/red/demo/web"])
        assert service["backends"] == {"10.1.1.5": {"http": {"Protocol": "TCP", "Port": 8080}}}
        assert json.loads(found["clustermesh/services/v1/demo/web"])["shared"] is True
        assert json.loads(found["cilium/cluster-config/red"])["capabilities"]["syncedCanaries"] is True
        assert "cilium/.heartbeat" in found
        assert {key for key in found if key.startswith("cilium/synced/red/")} == {
            f"cilium/synced/red/cilium/state/{path}"
            for path in ("nodes/v1", "identities/v1", "ip/v1", "services/v1", "serviceexports/v1")
        }

        await kubernetes.pod("web-1", "10.1.1.6")
        await eventually(lambda: store.has(keys.address("10.1.1.6")))
        assert await store.identity_of("10.1.1.6") == number
        await kubernetes.delete_pod("web-1")

        async def gone() -> bool:
            return not await store.has(keys.address("10.1.1.6"))

        await eventually(gone)
        unshared = {"metadata": {"annotations": {"service.cilium.io/shared": "false"}}}
        await kubernetes.client.merge_patch(SERVICES, "web", unshared, "demo")

        async def private() -> bool:
            return not await store.has(keys.service("red", "demo", "web"))

        await eventually(private)
        assert await store.has(keys.local_service("demo", "web"))


async def test_a_restart_writes_only_what_has_changed(kubernetes: Kubernetes, etcd: EtcdProcess, store: Store) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    await kubernetes.node()
    await kubernetes.service("10.1.1.5", **{"global": "true"})
    for number in range(5, 8):
        await kubernetes.pod(f"web-{number}", f"10.1.1.{number}")
    async with exporting(kubernetes, etcd) as health:
        await ready(health)
    before = await store.revisions("cilium/state/")
    await kubernetes.delete_pod("web-7")
    await kubernetes.pod("web-8", "10.1.1.8")
    async with exporting(kubernetes, etcd) as health:
        await ready(health)
        after = await store.revisions("cilium/state/")
    assert before.keys() - after.keys() == {keys.address("10.1.1.7")}
    assert after.keys() - before.keys() == {keys.address("10.1.1.8")}
    assert {key: after[key] for key in before if key in after} == {key: before[key] for key in before if key in after}


async def test_numbers_survive_the_loss_of_etcd_and_canaries_come_last(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    await kubernetes.node()
    for number in range(5, 8):
        await kubernetes.pod(f"web-{number}", f"10.1.1.{number}", {"app": f"web-{number}"})
    async with exporting(kubernetes, etcd) as health:
        await ready(health)
        before = await store.all("cilium/state/")
        await etcd.kill()
        etcd.wipe()
        await etcd.start()
        canary = keys.state_canary(keys.Kind.ADDRESSES, "red")
        await eventually(lambda: store.has(canary))
        found = await store.connection.get(canary)
        assert found is not None
        assert await store.all("cilium/state/") == before
        revisions = await store.revisions("cilium/state/")
        assert found.mod_revision > max(revisions.values())
        await ready(health)


async def test_an_identity_is_given_back_only_when_nobody_uses_it(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    await kubernetes.pod("kept", "10.1.1.5", {"app": "kept"})
    await kubernetes.pod("gone", "10.1.1.6", {"app": "gone"})
    async with exporting(kubernetes, etcd, grace=0.4) as health:
        await ready(health)
        kept, gone = await store.identity_of("10.1.1.5"), await store.identity_of("10.1.1.6")
        assert kept is not None
        assert gone is not None
        await kubernetes.delete_pod("gone")

        async def only_kept() -> bool:
            objects = await kubernetes.client.list(CLUSTER_MESH_IDENTITIES)
            return [item.name for item in objects] == [str(kept)] and not await store.has(keys.identity(gone))

        await eventually(only_kept)
        assert await store.has(keys.identity(kept))

        await kubernetes.pod("new", "10.1.1.7", {"app": "gone"})
        await eventually(lambda: store.has(keys.address("10.1.1.7")))
        assert await store.identity_of("10.1.1.7") not in (kept, gone), "a number does not return at once"


async def test_an_identity_in_use_that_somebody_deletes_is_restored(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    await kubernetes.pod("web", "10.1.1.5")
    async with exporting(kubernetes, etcd) as health:
        await ready(health)
        (before,) = await kubernetes.client.list(CLUSTER_MESH_IDENTITIES)
        await kubernetes.client.delete(CLUSTER_MESH_IDENTITIES, before.name)

        async def restored() -> bool:
            objects = await kubernetes.client.list(CLUSTER_MESH_IDENTITIES)
            return [(item.name, item.spec) for item in objects] == [(before.name, before.spec)]

        await eventually(restored)
        assert await store.has(keys.identity(int(before.name)))


async def test_a_number_that_another_took_meanwhile_is_left_to_it(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    async with exporting(kubernetes, etcd) as health:
        await ready(health)
        first = RED.numbering.range(RED.id)[0] + 256
        foreign = {labels.CLUSTER: "red", "k8s:app": "other"}
        taken = {"metadata": {"name": str(first)}, "spec": {"labels": foreign}}
        await asyncio.gather(
            kubernetes.client.create(CLUSTER_MESH_IDENTITIES, taken), kubernetes.pod("web", "10.1.1.5")
        )
        await eventually(lambda: store.has(keys.address("10.1.1.5")))
        assert await store.identity_of("10.1.1.5") != first


async def test_missing_kinds_are_named_with_the_file_that_brings_them(
    kubernetes: Kubernetes, etcd: EtcdProcess
) -> None:
    async with exporting(kubernetes, etcd) as health:
        await eventually(lambda: any("kubectl apply -f deploy/crds/" in line for line in health.missing))
        await kubernetes.install()
        await ready(health)


@asynccontextmanager
async def process(
    kubernetes: Kubernetes, etcd: EtcdProcess, *options: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    tls = etcd.client_files()
    arguments = (
        "--cluster-name=red",
        "--cluster-id=1",
        f"--kubeconfig={kubernetes.kubeconfig}",
        f"--etcd-endpoints={etcd.endpoint}",
        f"--etcd-ca={tls.ca}",
        f"--etcd-cert={tls.cert}",
        f"--etcd-key={tls.key}",
        *options,
    )
    pipe = asyncio.subprocess.PIPE
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "apiserver.main", *arguments, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()


async def test_the_process_gets_ready_and_stops_when_told(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    await kubernetes.namespace("clustermesh-system")
    await kubernetes.pod("web", "10.1.1.5")
    (port,) = free_ports(1)
    async with process(kubernetes, etcd, f"--listen=127.0.0.1:{port}") as running, aiohttp.ClientSession() as session:

        async def is_ready() -> bool:
            try:
                async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
                    return response.status == 200
            except aiohttp.ClientConnectionError:
                return False

        await eventually(is_ready)
        running.terminate()
        output, _ = await asyncio.wait_for(running.communicate(), 10)
    assert running.returncode == 0, output.decode()
    assert b"Traceback" not in output
    assert await store.has(keys.address("10.1.1.5")), "what was exported outlives the process"


async def test_a_port_in_use_ends_the_process_with_one_error(kubernetes: Kubernetes, etcd: EtcdProcess) -> None:
    async with process(kubernetes, etcd, f"--listen=127.0.0.1:{etcd.port}") as running:
        output, _ = await asyncio.wait_for(running.communicate(), 20)
    assert running.returncode == 1
    assert output.count(b"ERROR") == 1
    assert f"cannot listen on 127.0.0.1:{etcd.port}" in output.decode()
