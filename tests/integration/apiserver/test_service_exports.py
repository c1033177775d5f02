"""ServiceExports on their way to etcd, in clusters that have the kind and in those that have not."""

import json
from typing import Any

import pytest

from clustermesh.kube.objects import SERVICE_EXPORTS, SERVICE_EXPORTS_ALPHA, SERVICES
from clustermesh.wire import keys
from clustermesh.wire.keys import Kind
from tests.integration.apiserver.exporting import Kubernetes, Store, exporting, ready
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

KEY = keys.service_export("red", "demo", "web")


async def enabled(store: Store) -> Any:
    found = await store.connection.get(keys.cluster_config("red"))
    return found and json.loads(found.value)["capabilities"]["serviceExportsEnabled"]


async def test_service_exports_are_known_as_long_as_the_cluster_has_the_kind(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    await kubernetes.service("10.1.1.5")
    async with exporting(kubernetes, etcd, look=0.1) as health:
        await ready(health)
        assert await enabled(store) is False
        assert await store.has(keys.state_canary(Kind.SERVICE_EXPORTS, "red"))

        await kubernetes.install_service_exports("v1alpha1")
        await eventually(lambda: kubernetes.serves(SERVICE_EXPORTS_ALPHA))
        await kubernetes.export("web", SERVICE_EXPORTS_ALPHA)
        await eventually(lambda: store.has(KEY))
        assert await enabled(store) is True
        found = await store.all()
        assert json.loads(found[KEY])["ports"] == [{"name": "http", "protocol": "TCP", "port": 80}]
        assert keys.service("red", "demo", "web") not in found, "an export alone makes no global service"

        await kubernetes.uninstall_service_exports()
        await eventually(lambda: store.lacks(KEY))

        async def off() -> bool:
            return await enabled(store) is False

        await eventually(off)
        await ready(health)


async def test_an_export_follows_its_service(kubernetes: Kubernetes, etcd: EtcdProcess, store: Store) -> None:
    await kubernetes.install()
    await kubernetes.install_service_exports("v1beta1")
    await eventually(lambda: kubernetes.serves(SERVICE_EXPORTS))
    await kubernetes.namespace()
    await kubernetes.export(exportedLabels={"team": "a"})
    async with exporting(kubernetes, etcd) as health:
        await ready(health)
        assert await store.lacks(KEY)
        await kubernetes.service("10.1.1.5", **{"global": "true"})
        await eventually(lambda: store.has(KEY))
        first = (await store.revisions(KEY))[KEY]
        record = json.loads((await store.all(KEY))[KEY])
        assert record["labels"] == {"team": "a"}
        created = (await kubernetes.client.get(SERVICE_EXPORTS, "web", "demo")).metadata.creation_timestamp
        assert record["exportCreationTimestamp"] == created
        assert await store.has(keys.service("red", "demo", "web"))

        # What peers shall not know writes nothing.
        await kubernetes.client.merge_patch(SERVICES, "web", {"metadata": {"annotations": {"a": "b"}}}, "demo")
        await kubernetes.client.merge_patch(SERVICES, "web", {"spec": {"sessionAffinity": "ClientIP"}}, "demo")

        async def sticky() -> bool:
            return json.loads((await store.all(KEY))[KEY])["sessionAffinity"] == "ClientIP"

        await eventually(sticky)
        assert (await store.connection.get(KEY)).mod_revision > first  # type: ignore[union-attr]

        await kubernetes.set_global("false")
        await eventually(lambda: store.lacks(KEY))
        await kubernetes.set_global(None)
        await eventually(lambda: store.has(KEY))
        await kubernetes.client.delete(SERVICES, "web", "demo")
        await eventually(lambda: store.lacks(KEY))


async def test_a_restart_in_a_cluster_that_lost_the_kind_leaves_no_export_behind(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await kubernetes.install()
    await kubernetes.install_service_exports("v1beta1")
    await eventually(lambda: kubernetes.serves(SERVICE_EXPORTS))
    await kubernetes.namespace()
    await kubernetes.service("10.1.1.5")
    await kubernetes.export()
    async with exporting(kubernetes, etcd) as health:
        await ready(health)
        assert await store.has(KEY)
    await kubernetes.uninstall_service_exports()
    async with exporting(kubernetes, etcd) as health:
        await ready(health)
        assert await store.lacks(KEY)
        assert await enabled(store) is False
