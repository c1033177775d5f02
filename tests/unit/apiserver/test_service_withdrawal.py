"""Services wait for their pods, and addresses that go for the services that lead to them."""

import asyncio
from typing import Any

import msgspec
import pytest

from apiserver.cluster import ClusterIdentity
from apiserver.service_exporter import ServiceExporter
from clustermesh.kube.objects import EndpointSlice, Service
from clustermesh.kube.reflector import KubeBatch
from clustermesh.wire import keys
from clustermesh.wire.keys import Kind

RED = ClusterIdentity("red", 1)
KEY = keys.service("red", "demo", "web")


class Outbox:
    """What was handed to the writers, in order."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.flushed: list[Kind] = []

    def set(self, kind: Kind, key: str, value: bytes | None) -> None:
        if value is None:
            self.records.pop(key, None)
        else:
            self.records[key] = value

    async def flush(self, *kinds: Kind) -> None:
        self.flushed += kinds


class World:
    def __init__(self) -> None:
        self.outbox = Outbox()
        self.pods = asyncio.Event()
        self.pods.set()
        self.services = ServiceExporter(
            RED,
            self.outbox,  # type: ignore[arg-type]
            ready=lambda: True,
            pods_first=self.pods_first,
            is_global=lambda _: True,
            slices=False,
        )

    async def pods_first(self) -> None:
        await self.pods.wait()

    async def web(self) -> None:
        metadata = {"name": "web", "namespace": "demo", "annotations": {"service.cilium.io/global": "true"}}
        spec = {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}
        given = msgspec.convert({"metadata": metadata, "spec": spec}, Service)
        await self.services.on_services(KubeBatch((given,)))

    async def lead_to(self, *addresses: str) -> None:
        labels = {"kubernetes.io/service-name": "web"}
        document: dict[str, Any] = {
            "metadata": {"name": "web-1", "namespace": "demo", "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address]} for address in addresses],
            "ports": [{"port": 8080}],
        }
        await self.services.on_slices(KubeBatch((msgspec.convert(document, EndpointSlice),)))

    @property
    def led(self) -> list[str] | None:
        raw = self.outbox.records.get(KEY)
        return None if raw is None else sorted(msgspec.json.decode(raw)["backends"])


@pytest.fixture
async def world() -> World:
    world = World()
    await world.web()
    return world


async def runs(*coroutines: Any) -> list[asyncio.Task[None]]:
    """Tasks, each as far as it gets by itself."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_a_service_waits_for_its_pods_and_is_told_as_it_is_then(world: World) -> None:
    world.pods.clear()
    first, second = await runs(world.lead_to("10.1.1.5"), world.lead_to("10.1.1.6"))
    assert world.led is None
    world.pods.set()
    await asyncio.gather(first, second)
    assert world.led == ["10.1.1.6"]


async def test_an_address_waits_until_no_service_leads_to_it(world: World) -> None:
    await world.lead_to("10.1.1.5", "10.1.1.6")
    world.outbox.flushed.clear()
    (going,) = await runs(world.services.withdraw({"10.1.1.5"}))
    assert not going.done()
    await world.lead_to("10.1.1.6")
    await going
    assert Kind.SERVICES in world.outbox.flushed
    await world.services.withdraw({"10.1.1.5"})


async def test_an_address_waits_for_a_service_that_is_about_to_lead_to_it(world: World) -> None:
    world.pods.clear()
    telling, going = await runs(world.lead_to("10.1.1.5"), world.services.withdraw({"10.1.1.5"}))
    assert not going.done()
    world.pods.set()
    await telling
    await asyncio.sleep(0)
    assert not going.done(), "now it does lead there"
    await world.lead_to()
    await going


async def test_who_keeps_an_address_in_a_slice_is_not_waited_for_for_ever(world: World) -> None:
    await world.lead_to("10.1.1.5")
    await world.services.withdraw({"10.1.1.5"})
    assert world.led == ["10.1.1.5"]
