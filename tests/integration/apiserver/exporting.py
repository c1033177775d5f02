"""An exporter at work between a Kubernetes API and a real etcd, and how a test reads and changes either side."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from apiserver.cluster import ClusterIdentity
from apiserver.exporter import Exporter
from apiserver.health import Health
from apiserver.metrics import Metrics
from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import KubeError, NotFound
from clustermesh.kube.objects import (
    CLUSTER_MESH_IDENTITIES,
    ENDPOINT_SLICES,
    NAMESPACES,
    NODES,
    PODS,
    SERVICE_EXPORTS,
    SERVICE_EXPORTS_ALPHA,
    SERVICES,
    KubeObject,
    Resource,
)
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.lease import Lease
from clustermesh.wire import keys
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

RED = ClusterIdentity("red", 1)
CRDS = Path(__file__).parents[3] / "deploy" / "crds"
MCS = Path(__file__).parents[3] / "examples" / "mcs" / "serviceexports.yaml"
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

        await eventually(lambda: self.serves(CLUSTER_MESH_IDENTITIES))

    async def serves(self, resource: Resource[Any]) -> bool:
        try:
            await self.client.list(resource)
        except KubeError:
            return False
        return True

    async def install_service_exports(self, *versions: str) -> None:
        definition = yaml.safe_load(MCS.read_text())
        for version in definition["spec"]["versions"]:
            version["served"] = version["name"] in versions
        await self.client.apply(CRD, definition)

    async def uninstall_service_exports(self) -> None:
        await self.client.delete(CRD, "serviceexports.multicluster.x-k8s.io")

        async def gone() -> bool:
            return not await self.serves(SERVICE_EXPORTS) and not await self.serves(SERVICE_EXPORTS_ALPHA)

        await eventually(gone)

    async def export(self, name: str = "web", version: Resource[Any] = SERVICE_EXPORTS, **spec: Any) -> None:
        await self.client.create(version, {"metadata": {"name": name, "namespace": "demo"}, "spec": spec})

    async def namespace(self, name: str = "demo", **annotations: str) -> None:
        given = {f"clustermesh.cilium.io/{key}": value for key, value in annotations.items()}
        metadata = {"name": name, "labels": {"team": "shop"}, "annotations": given}
        await self.client.create(NAMESPACES, {"metadata": metadata})

    async def set_global(self, value: str | None, name: str = "demo") -> None:
        await self.change_namespace({"metadata": {"annotations": {"clustermesh.cilium.io/global": value}}}, name)

    async def label_namespace(self, name: str = "demo", **labels: str) -> None:
        await self.change_namespace({"metadata": {"labels": labels}}, name)

    async def change_namespace(self, patch: dict[str, Any], name: str = "demo") -> None:
        await self.client.merge_patch(NAMESPACES, name, patch)

    async def node(self, name: str = "red-1", ip: str = "10.128.1.11") -> None:
        spec = {"podCIDR": "10.1.1.0/24", "podCIDRs": ["10.1.1.0/24"]}
        await self.client.create(NODES, {"metadata": {"name": name}, "spec": spec})
        await self.client.merge_patch_status(NODES, name, {"addresses": [{"type": "InternalIP", "address": ip}]})

    async def pod(
        self, name: str, ip: str, pod_labels: dict[str, str] | None = None, *, namespace: str = "demo"
    ) -> None:
        spec = {"containers": [{"name": "c", "image": "clustermesh/echo"}], "nodeName": "red-1"}
        metadata = {"name": name, "namespace": namespace, "labels": pod_labels or WEB}
        await self.client.create(PODS, {"metadata": metadata, "spec": spec})
        status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "10.128.1.11"}
        await self.client.merge_patch_status(PODS, name, status, namespace)

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

    async def annotate(self, **annotations: str | None) -> None:
        """The Service made above; None takes an annotation away."""
        given = {f"service.cilium.io/{key}": value for key, value in annotations.items()}
        await self.client.merge_patch(SERVICES, "web", {"metadata": {"annotations": given}}, "demo")

    async def slice(self, name: str, *endpoints: dict[str, Any], service: str = "web", **fields: Any) -> None:
        """Make a slice of a Service, or change its endpoints."""
        body = {"endpoints": list(endpoints), **fields}
        with suppress(NotFound):
            await self.client.merge_patch(ENDPOINT_SLICES, name, body, "demo")
            return
        metadata = {"name": name, "namespace": "demo", "labels": {"kubernetes.io/service-name": service}}
        ports = [{"name": "http", "port": 8080, "protocol": "TCP"}]
        await self.client.create(ENDPOINT_SLICES, {"metadata": metadata, "addressType": "IPv4", "ports": ports, **body})

    async def lead_to(self, *addresses: str) -> None:
        """The service's backends from now on."""
        endpoints = [{"addresses": [address], "conditions": {"ready": True}} for address in addresses]
        await self.client.merge_patch(ENDPOINT_SLICES, "web-1", {"endpoints": endpoints}, "demo")


class Store:
    """What is in the mesh's etcd."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def all(self, prefix: str = "") -> dict[str, str]:
        pages = [page async for page in self.connection.list(prefix or "c")]
        return {kv.key.decode(): kv.value.decode(errors="replace") for page in pages for kv in page}

    async def revisions(self, prefix: str) -> dict[str, int]:
        pages = [page async for page in self.connection.list(prefix)]
        return {kv.key.decode(): kv.mod_revision for page in pages for kv in page}

    async def has(self, key: str) -> bool:
        return await self.connection.get(key) is not None

    async def lacks(self, key: str) -> bool:
        return not await self.has(key)

    async def identity_of(self, ip: str) -> int | None:
        found = await self.connection.get(keys.address(ip))
        return None if found is None else json.loads(found.value)["ID"]


@asynccontextmanager
async def exporting(
    kubernetes: Kubernetes,
    etcd: EtcdProcess,
    *,
    cluster: ClusterIdentity = RED,
    connection: Connection | None = None,
    ttl: int = 30,
    **options: Any,
) -> AsyncIterator[Health]:
    """An exporter at work, as the process runs it; `ttl` of its lease in seconds."""
    health = Health()
    connection = connection or etcd.connection()
    lease = Lease(connection, ttl, 0x636D_0000_0001)
    exporter = Exporter(
        cluster=cluster,
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
