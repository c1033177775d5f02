"""Identities follow the labels that count: through new filters, new labels of namespaces, and lost stores."""

import json
from collections.abc import Iterable

import pytest

from apiserver.cluster import ClusterIdentity
from clustermesh.kube.objects import CLUSTER_MESH_IDENTITIES
from clustermesh.wire import keys, labels
from clustermesh.wire.keys import Kind
from clustermesh.wire.label_filter import LabelFilter
from tests.integration.apiserver.exporting import Kubernetes, Store, exporting, ready
from tests.integration.apiserver.history import History, recording
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

PREFIX = keys.state_prefix(Kind.IDENTITIES, "red")
WEB, API = "10.1.1.5", "10.1.1.6"


def owners(history: History, ips: Iterable[str]) -> dict[str, set[str]]:
    """Names of all pods that ever had an address."""
    return {
        ip: {json.loads(value)["K8sPodName"] for value in history.of(keys.address(ip)) if value is not None}
        for ip in ips
    }


async def fill(kubernetes: Kubernetes) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    await kubernetes.pod("web", WEB, {"app": "web", "version": "1"})
    await kubernetes.pod("api", API, {"app": "web", "version": "2"})


async def meant(store: Store, ip: str) -> dict[str, str]:
    """The labels of the identity that an address has."""
    number = await store.identity_of(ip)
    return labels.decode((await store.all(f"{PREFIX}{number}"))[f"{PREFIX}{number}"])


async def test_another_filter_after_a_restart_renumbers_what_it_touches_and_nothing_is_loose_meanwhile(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await fill(kubernetes)
    async with recording(store.connection) as history:
        async with exporting(kubernetes, etcd) as health:
            await ready(health)
        before = {await store.identity_of(ip) for ip in (WEB, API)}
        assert len(before) == 2, "by default every label counts"

        without = LabelFilter.parse("k8s:!version")
        async with exporting(kubernetes, etcd, relevant=without, grace=0.4) as health:
            await ready(health)
            shared = await store.identity_of(WEB)
            assert shared == await store.identity_of(API)
            assert shared not in before
            assert "k8s:version" not in await meant(store, WEB)

            async def collected() -> bool:
                objects = await kubernetes.client.list(CLUSTER_MESH_IDENTITIES)
                return [item.name for item in objects] == [str(shared)] and len(await store.all(PREFIX)) == 1

            await eventually(collected)
        async with exporting(kubernetes, etcd, relevant=without) as health:
            await ready(health)
            assert await store.identity_of(WEB) == shared, "the same filter, the same number"
        only = LabelFilter.parse("k8s:version")
        async with exporting(kubernetes, etcd, relevant=only) as health:
            await ready(health)
            assert set(await meant(store, API)) == {
                "k8s:version",
                labels.CLUSTER,
                labels.NAMESPACE,
                f"{labels.NAMESPACE_LABELS}team",
                f"{labels.NAMESPACE_LABELS}kubernetes.io/metadata.name",
            }
        await history.caught_up()
        assert history.loose_ends() == []
        assert owners(history, (WEB, API)) == {WEB: {"web"}, API: {"api"}}


async def test_new_labels_of_a_namespace_give_all_its_pods_new_identities_and_no_wrong_owner(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await fill(kubernetes)
    async with exporting(kubernetes, etcd) as health, recording(store.connection) as history:
        await ready(health)
        before = await store.identity_of(WEB)
        for team in ("bank", "desk", "shop"):
            await kubernetes.label_namespace(team=team)

        async def back() -> bool:
            return await store.identity_of(WEB) == before and "k8s:io.cilium.k8s.namespace.labels.team=desk" in str(
                await store.all(PREFIX)
            )

        # Faster than numbers are dealt out some labels may never be seen; where it ends is where it began.
        await kubernetes.pod("fence", "10.1.1.7", {"app": "fence"})
        await eventually(lambda: store.has(keys.address("10.1.1.7")))
        await kubernetes.label_namespace(team="desk")

        async def desk() -> bool:
            return all([(await meant(store, ip))[f"{labels.NAMESPACE_LABELS}team"] == "desk" for ip in (WEB, API)])

        await eventually(desk)
        await kubernetes.label_namespace(team="shop")
        await eventually(back)
        await history.caught_up()
        assert history.loose_ends() == []
        assert owners(history, (WEB, API)) == {WEB: {"web"}, API: {"api"}}


async def test_numbers_of_a_large_mesh_stay_after_the_loss_of_etcd(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await fill(kubernetes)
    cluster = ClusterIdentity("red", 511, 511)
    async with exporting(kubernetes, etcd, cluster=cluster) as health:
        await ready(health)
        before = await store.all(PREFIX)
        numbers = {int(key.removeprefix(PREFIX)) for key in before}
        assert all(511 << 15 <= number < 1 << 24 for number in numbers)
    await etcd.kill()
    etcd.wipe()
    await etcd.start()
    async with exporting(kubernetes, etcd, cluster=cluster) as health:
        await ready(health)
        assert await store.all(PREFIX) == before
        assert {await store.identity_of(ip) for ip in (WEB, API)} == numbers
