"""Requests against a Kubernetes API over TLS with a client certificate."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

import clustermesh.kube.client
from clustermesh.kube import config
from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import AlreadyExists, Conflict, CredentialError, NotFound, Unreachable
from clustermesh.kube.objects import CLUSTER_MESH_PEERS, CONFIG_MAPS, NODES, SECRETS, ConfigMap, ObjectMeta, Secret
from clustermesh.kube.reflector import Reflector
from tests.integration.etcd_process import EtcdProcess
from tests.integration.kubernetes.cluster import Cluster

pytestmark = pytest.mark.integration


@pytest.fixture
async def cluster(etcd: EtcdProcess, tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(etcd, tmp_path)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[KubeClient]:
    async with KubeClient(config.load(cluster.kubeconfig)) as client:
        yield client


def settings(name: str = "settings", **data: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace="default"), data=data)


async def test_what_is_created_is_read_back(client: KubeClient) -> None:
    made = await client.create(CONFIG_MAPS, settings(a="1"))
    assert made.metadata.uid
    assert await client.get(CONFIG_MAPS, "settings", "default") == made
    with pytest.raises(AlreadyExists, match=r"create configmaps default/settings at https://127.0.0.1"):
        await client.create(CONFIG_MAPS, settings(a="2"))
    await client.delete(CONFIG_MAPS, "settings", "default")
    with pytest.raises(NotFound):
        await client.get(CONFIG_MAPS, "settings", "default")
    await client.delete(CONFIG_MAPS, "settings", "default", missing_ok=True)


async def test_bytes_of_a_secret_pass_unchanged(client: KubeClient) -> None:
    secret = Secret(metadata=ObjectMeta(name="key", namespace="default"), data={"tls.key": b"\0\xff\n"})
    assert (await client.create(SECRETS, secret)).data == {"tls.key": b"\0\xff\n"}


async def test_a_stale_replacement_is_refused(client: KubeClient) -> None:
    first = await client.create(CONFIG_MAPS, settings(a="1"))
    second = await client.replace(CONFIG_MAPS, msgspec.structs.replace(first, data={"a": "2"}))
    assert second.data == {"a": "2"}
    with pytest.raises(Conflict):
        await client.replace(CONFIG_MAPS, msgspec.structs.replace(first, data={"a": "3"}))


async def test_apply_creates_changes_and_otherwise_writes_nothing(client: KubeClient) -> None:
    await client.apply(CONFIG_MAPS, settings(a="1", b="2"))
    await client.merge_patch(CONFIG_MAPS, "settings", {"metadata": {"labels": {"theirs": "kept"}}}, "default")
    changed = await client.apply(CONFIG_MAPS, settings(a="3"))
    assert (changed.data, changed.metadata.labels) == ({"a": "3"}, {"theirs": "kept"})
    again = await client.apply(CONFIG_MAPS, settings(a="3"))
    assert again.metadata.resource_version == changed.metadata.resource_version


async def test_each_manager_owns_its_fields_and_takes_back_no_others(client: KubeClient) -> None:
    await client.create(CONFIG_MAPS, settings(helm="kept"))
    await client.apply_fields(CONFIG_MAPS, settings(a="1", b="2"), "red")
    both = await client.apply_fields(CONFIG_MAPS, settings(c="3"), "green")
    assert both.data == {"helm": "kept", "a": "1", "b": "2", "c": "3"}
    less = await client.apply_fields(CONFIG_MAPS, settings(b="4"), "red")
    assert less.data == {"helm": "kept", "b": "4", "c": "3"}
    assert (await client.apply_fields(CONFIG_MAPS, settings(), "red")).data == {"helm": "kept", "c": "3"}


async def test_a_status_is_patched_apart_from_the_object(client: KubeClient) -> None:
    await client.create(NODES, {"metadata": {"name": "red-1"}, "spec": {"podCIDR": "10.1.1.0/24"}})
    status = {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}
    node = await client.merge_patch_status(NODES, "red-1", status)
    assert [address.address for address in node.status.addresses or ()] == ["10.0.0.1"]
    assert node.spec.pod_cidr == "10.1.1.0/24"


async def test_lists_obey_selectors(client: KubeClient) -> None:
    for number in range(3):
        body = {"metadata": {"name": f"n{number}", "labels": {"odd": str(number % 2)}}}
        await client.create(NODES, body)
    assert [node.name for node in await client.list(NODES, label_selector="odd=0")] == ["n0", "n2"]


async def test_a_kind_that_is_not_installed_is_not_found(client: KubeClient) -> None:
    with pytest.raises(NotFound, match=r"list clustermeshpeers.clustermesh.io at https://"):
        await client.list(CLUSTER_MESH_PEERS)


async def test_an_api_that_is_down_is_named(client: KubeClient, cluster: Cluster) -> None:
    await cluster.stop()
    with pytest.raises(Unreachable, match=rf"list nodes: the Kubernetes API at {cluster.url} does not answer"):
        await client.list(NODES)


async def test_an_api_with_a_foreign_certificate_is_not_trusted(client: KubeClient, etcd: EtcdProcess) -> None:
    access = dataclasses.replace(client.access, ca=None)
    async with KubeClient(access) as distrustful:
        with pytest.raises(Unreachable, match="not signed by the CA of context 'red'"):
            await distrustful.list(NODES)
    async with KubeClient(dataclasses.replace(client.access, client_key=b"nonsense")) as keyless:
        with pytest.raises(CredentialError, match="certificates of context 'red' cannot be used"):
            await keyless.list(NODES)


async def test_a_reflector_outlives_the_restart_of_the_api(client: KubeClient, cluster: Cluster) -> None:
    await client.create(CONFIG_MAPS, settings("before"))
    async with aclosing(Reflector(client, CONFIG_MAPS, "default").batches()) as batches, asyncio.timeout(60):
        seen: set[str] = set()
        async for batch in batches:
            seen |= {item.name for item in batch.upserts}
            if batch.synced:
                break
        await cluster.stop()
        await cluster.start()
        await client.create(CONFIG_MAPS, settings("after"))
        await client.delete(CONFIG_MAPS, "before", "default")
        async for batch in batches:
            seen |= {item.name for item in batch.upserts}
            seen -= {ref.name for ref in batch.deletes}
            if "after" in seen and "before" not in seen:
                break


async def test_the_clusters_clock_is_told_by_its_answers_whatever_ours_says(
    client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr(clustermesh.kube.client, "time", SimpleNamespace(time=lambda: 5.0, monotonic=time.monotonic))
    assert client.now() == 5.0
    await client.list(NODES)
    assert abs(client.now() - real()) < 60
