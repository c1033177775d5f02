"""Services and their endpoint slices on the way from Kubernetes to etcd."""

import asyncio
import json
import logging
from contextlib import aclosing
from typing import Any

import pytest

from clustermesh.kube.objects import ENDPOINT_SLICES, NAMESPACES, SERVICES
from clustermesh.kvstore.feed import Feed
from clustermesh.tasks import end
from clustermesh.wire import endpoint_slices, keys
from clustermesh.wire.endpoint_slices import ClusterEndpointSlice, SliceEndpoint, SlicePort
from clustermesh.wire.keys import Kind
from tests.integration.apiserver.exporting import Kubernetes, Store, exporting, ready
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

SERVICE = keys.service("red", "demo", "web")
LOCAL = keys.local_service("demo", "web")
FIRST, SECOND = (keys.endpoint_slice("red", "demo", f"web-{number}") for number in (1, 2))


async def a_global_service(kubernetes: Kubernetes) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    await kubernetes.service("10.1.1.5", **{"global": "true"})


def endpoint(address: str, *, is_ready: bool = True, **fields: Any) -> dict[str, Any]:
    return {"addresses": [address], "conditions": {"ready": is_ready, "serving": is_ready}, **fields}


async def slice_record(store: Store, key: str) -> ClusterEndpointSlice | None:
    found = await store.connection.get(key)
    return None if found is None else endpoint_slices.decode(found.value)


async def backends(store: Store) -> set[str]:
    found = await store.connection.get(SERVICE)
    return set() if found is None else set(json.loads(found.value)["backends"])


async def exported_keys(store: Store) -> set[str]:
    """Services and slices, what peers read and what the own agents do."""
    prefixes = (keys.state_prefix(Kind.SERVICES, "red"), keys.state_prefix(Kind.ENDPOINT_SLICES, "red"))
    return {key for prefix in (*prefixes, keys.LOCAL_SERVICES) for key in await store.revisions(prefix)}


async def test_services_and_slices_appear_change_and_vanish(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await a_global_service(kubernetes)
    zone = {"nodeName": "red-1", "zone": "a", "hints": {"forZones": [{"name": "a"}]}, "hostname": "web-6"}
    await kubernetes.slice("web-2", endpoint("10.1.1.6", **zone), endpoint("10.1.1.7", is_ready=False))
    await kubernetes.slice("lonely-1", endpoint("10.1.1.8"), service="lonely")
    async with exporting(kubernetes, etcd) as health:
        await ready(health)
        assert await exported_keys(store) == {SERVICE, LOCAL, FIRST, SECOND}
        record = json.loads((await store.all(SERVICE))[SERVICE])
        assert set(record["backends"]) == {"10.1.1.5", "10.1.1.6"}
        assert record["zones"] == {"10.1.1.6": {"zone": "a", "forZones": [{"name": "a"}]}}
        assert await slice_record(store, SECOND) == ClusterEndpointSlice(
            cluster="red",
            cluster_id=1,
            namespace="demo",
            name="web-2",
            labels={"kubernetes.io/service-name": "web"},
            address_type="IPv4",
            endpoints=(
                SliceEndpoint(
                    addresses=("10.1.1.6",),
                    ready=True,
                    serving=True,
                    hostname="web-6",
                    node_name="red-1",
                    zone="a",
                    for_zones=("a",),
                ),
                SliceEndpoint(addresses=("10.1.1.7",), ready=False, serving=False),
            ),
            ports=(SlicePort(name="http", protocol="TCP", port=8080),),
        )

        before = await store.revisions("c")
        await kubernetes.slice("web-2", endpoint("10.1.1.6", is_ready=False, **zone), endpoint("10.1.1.7"))

        async def changed() -> bool:
            return await backends(store) == {"10.1.1.5", "10.1.1.7"}

        await eventually(changed)
        after = await store.revisions("c")
        heartbeat = {keys.HEARTBEAT}
        assert {key for key in after if before.get(key) != after[key]} - heartbeat == {SERVICE, LOCAL, SECOND}

        await kubernetes.annotate(shared="false")

        async def private() -> bool:
            return await exported_keys(store) == {LOCAL}

        await eventually(private)
        await kubernetes.annotate(shared=None)

        async def complete() -> bool:
            return await exported_keys(store) == {SERVICE, LOCAL, FIRST, SECOND}

        await eventually(complete)
        await kubernetes.client.delete(ENDPOINT_SLICES, "web-2", "demo")

        async def smaller() -> bool:
            return await backends(store) == {"10.1.1.5"} and not await store.has(SECOND)

        await eventually(smaller)
        await kubernetes.client.delete(SERVICES, "web", "demo")

        async def nothing() -> bool:
            return not await exported_keys(store)

        await eventually(nothing)


async def test_an_address_comes_before_the_slice_that_leads_to_it_and_goes_after_it(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await a_global_service(kubernetes)
    await kubernetes.pod("web-5", "10.1.1.5")
    address = keys.address("10.1.1.5")
    order: list[str] = []

    async def record() -> None:
        async with aclosing(Feed(etcd.connection(), "cilium/state/").batches()) as batches:
            async for batch in batches:
                order.extend(event.key.decode() for event in batch.events)

    recording = asyncio.create_task(record())
    try:
        async with exporting(kubernetes, etcd) as health:
            await ready(health)
            await eventually(lambda: {address, SERVICE, FIRST} <= set(order))
            assert order.index(address) < min(order.index(SERVICE), order.index(FIRST))
            order.clear()
            await asyncio.gather(kubernetes.delete_pod("web-5"), kubernetes.slice("web-1", endpoint("10.1.1.6")))
            await eventually(lambda: {address, SERVICE, FIRST} <= set(order))
            assert order.index(address) > max(order.index(SERVICE), order.index(FIRST))
    finally:
        await end(recording)


async def test_slices_of_a_namespace_that_is_not_global_are_not_exported(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await a_global_service(kubernetes)

    async def annotate(value: str | None) -> None:
        annotation = {"metadata": {"annotations": {"clustermesh.cilium.io/global": value}}}
        await kubernetes.client.merge_patch(NAMESPACES, "demo", annotation)

    async def gone() -> bool:
        return not await exported_keys(store)

    await annotate("false")
    async with exporting(kubernetes, etcd) as health:
        await ready(health)
        assert await exported_keys(store) == set()
        await annotate(None)
        await eventually(lambda: store.has(FIRST))
        await annotate("false")
        await eventually(gone)


async def test_what_went_while_nobody_looked_is_pruned_at_the_start(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await a_global_service(kubernetes)
    await kubernetes.slice("web-2", endpoint("10.1.1.6"))
    async with exporting(kubernetes, etcd) as health:
        await ready(health)
    before = await store.revisions("cilium/state/")
    await kubernetes.client.delete(ENDPOINT_SLICES, "web-2", "demo")
    async with exporting(kubernetes, etcd) as health:
        await ready(health)
        assert await exported_keys(store) == {SERVICE, LOCAL, FIRST}
        assert await backends(store) == {"10.1.1.5"}
        assert (await store.revisions(FIRST))[FIRST] == before[FIRST], "what is equal is not written again"
    await kubernetes.client.delete(SERVICES, "web", "demo")
    async with exporting(kubernetes, etcd) as health:
        await ready(health)
        assert await exported_keys(store) == set()


async def test_slices_that_are_switched_off_are_taken_back(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await a_global_service(kubernetes)
    canary = keys.state_canary(Kind.ENDPOINT_SLICES, "red")
    config = keys.cluster_config("red")

    async def mode() -> str | None:
        found: str | None = json.loads((await store.all(config))[config])["capabilities"].get(
            "endpointSlicesExportMode"
        )
        return found

    async with exporting(kubernetes, etcd) as health:
        await ready(health)
        assert await mode() == "services-and-endpointslices"
        assert await store.has(canary)
        assert await store.has(FIRST)
    async with exporting(kubernetes, etcd, slices=False) as health:
        await ready(health)
        assert await mode() is None
        assert not await store.has(canary)
        assert await exported_keys(store) == {SERVICE, LOCAL}


async def test_a_service_too_large_for_etcd_is_named_and_holds_nothing_up(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await a_global_service(kubernetes)
    async with exporting(kubernetes, etcd) as health:
        await ready(health)
        with caplog.at_level(logging.ERROR, "clustermesh.kvstore.writer"):
            # 100 addresses an endpoint is the most that Kubernetes allows.
            for number in range(2, 6):
                crowd = ([f"10.{number}.{one}.{last}" for last in range(100)] for one in range(100))
                await kubernetes.slice(
                    f"web-{number}", *({"addresses": addresses, "conditions": {"ready": True}} for addresses in crowd)
                )
            await eventually(lambda: f"key {SERVICE}" in caplog.text)
        assert await backends(store) >= {"10.1.1.5"}, "the last value that etcd took stays"
        await kubernetes.slice("web-1", endpoint("10.1.1.6"))

        async def written() -> bool:
            record = await slice_record(store, FIRST)
            return record is not None and record.endpoints[0].addresses == ("10.1.1.6",)

        await eventually(written)
        await kubernetes.pod("later", "10.1.1.9")
        await eventually(lambda: store.has(keys.address("10.1.1.9")))
        assert health.ready
