"""What is installed into a cluster before our processes start: as a Helm chart does it in a real one."""

import asyncio
import contextlib
from pathlib import Path

import yaml

import clustermesh
from clustermesh.kube import config
from clustermesh.kube.client import KubeClient
from clustermesh.kube.objects import (
    CONFIG_MAPS,
    NAMESPACES,
    NODES,
    SECRETS,
    SYSTEM_NAMESPACE,
    ConfigMap,
    ObjectMeta,
    Secret,
)
from clustermesh.kube.reflector import Reflector
from clustermesh.testbed import credentials, readiness
from clustermesh.testbed.errors import TestbedError
from clustermesh.testbed.objects import CUSTOM_RESOURCES
from clustermesh.testbed.state import StateDirectory
from clustermesh.testbed.topology import Cluster

MAX_CONNECTED_CLUSTERS = 255


async def install(directory: StateDirectory, cluster: Cluster) -> None:
    """Custom resources, namespace, configuration and authority."""
    async with KubeClient(config.load(directory.kubeconfig, cluster.name)) as client:
        for document in _custom_resources():
            await client.apply(CUSTOM_RESOURCES, document)
        await client.apply(NAMESPACES, {"metadata": {"name": SYSTEM_NAMESPACE}})
        await client.apply(CONFIG_MAPS, _configuration(cluster))
        await client.apply(SECRETS, _authority(directory, cluster))


async def nodes_registered(directory: StateDirectory, cluster: Cluster) -> None:
    """Wait until every node of the cluster has its object with an address."""
    missing = {node.name for node in cluster.nodes}
    async with (
        KubeClient(config.load(directory.kubeconfig, cluster.name)) as client,
        contextlib.aclosing(Reflector(client, NODES).batches()) as batches,
        asyncio.timeout(readiness.PATIENCE),
    ):
        async for batch in batches:
            missing -= {node.name for node in batch.upserts if node.status.addresses}
            if not missing:
                return


def _custom_resources() -> list[dict[str, object]]:
    home = Path(clustermesh.__file__).parent.parent / "deploy" / "crds"
    files = sorted(home.glob("*.yaml"))
    if not files:
        raise TestbedError(f"no custom resource definitions in {home}: install the project completely")
    return [document for file in files for document in yaml.safe_load_all(file.read_text()) if document]


def _configuration(cluster: Cluster) -> ConfigMap:
    return ConfigMap(
        metadata=ObjectMeta(name="clustermesh-config", namespace=SYSTEM_NAMESPACE),
        data={
            "cluster-name": cluster.name,
            "cluster-id": str(cluster.id),
            "max-connected-clusters": str(MAX_CONNECTED_CLUSTERS),
            "endpoints": cluster.etcd_url,
        },
    )


def _authority(directory: StateDirectory, cluster: Cluster) -> Secret:
    authority = credentials.pair(directory, cluster, credentials.AUTHORITY)
    return Secret(
        metadata=ObjectMeta(name="clustermesh-ca", namespace=SYSTEM_NAMESPACE),
        data={"ca.crt": authority.cert.read_bytes(), "ca.key": authority.key.read_bytes()},
    )
