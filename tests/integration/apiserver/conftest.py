"""Two etcds: `etcd` is the peer's (red), `own` this cluster's (green).

For exporters `etcd` is the mesh's. Kubernetes keeps its objects in an etcd of its own, so that the mesh's may be lost.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clustermesh.kube import config
from clustermesh.kube.client import KubeClient
from tests.integration.apiserver.exporting import Kubernetes, Store
from tests.integration.etcd_process import EtcdProcess, running_etcd
from tests.integration.kubernetes.cluster import Cluster


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[EtcdProcess]:
    async with running_etcd(tmp_path / "own") as process:
        yield process


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
