"""From batches of changes to what the writers are given, without an etcd."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from apiserver.cluster import ClusterIdentity
from apiserver.health import Health
from apiserver.metrics import Metrics
from apiserver.outbox import LEADING_TO_ADDRESSES, Outbox
from apiserver.service_exporter import ServiceExporter
from apiserver.services import ServiceName, ServiceTable
from clustermesh.kube.objects import EndpointSlice, Service
from clustermesh.kube.reflector import KubeBatch
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.lease import Lease
from clustermesh.wire import keys

RED = ClusterIdentity("red", 7)


def service(name: str = "web", **annotations: str) -> Service:
    given = {f"service.cilium.io/{key}": value for key, value in ({"global": "true"} | annotations).items()}
    metadata = {"name": name, "namespace": "demo", "annotations": given}
    return msgspec.convert({"metadata": metadata, "spec": {"clusterIP": "10.96.0.1"}}, Service)


def piece(name: str, address: str = "10.7.0.1", owner: str = "web") -> EndpointSlice:
    metadata = {"name": name, "namespace": "demo", "labels": {"kubernetes.io/service-name": owner}}
    return msgspec.convert({"metadata": metadata, "endpoints": [{"addresses": [address]}]}, EndpointSlice)


class Bench:
    """An exporter of services whose writers are not run: what it wants stands in them."""

    def __init__(self, *, slices: bool = True, ready: Callable[[], bool] = lambda: True) -> None:
        connection = Connection(("http://127.0.0.1:1",), None)
        self.outbox = Outbox("red", connection, Lease(connection, 30, 1), Health(), Metrics())
        self.public = True
        self.waited = 0
        self.exporter = ServiceExporter(
            RED,
            self.outbox,
            ready=ready,
            pods_first=self._pods_first,
            is_global=lambda _: self.public,
            slices=slices,
        )

    async def _pods_first(self) -> None:
        self.waited += 1

    def wanted(self) -> set[str]:
        candidates = [
            keys.service("red", "demo", "web"),
            keys.local_service("demo", "web"),
            *(keys.endpoint_slice("red", "demo", f"web-{number}") for number in range(60)),
        ]
        writers = [self.outbox.writers[kind] for kind in LEADING_TO_ADDRESSES]
        return {key for key in candidates if any(writer.known(key) is not None for writer in writers)}


def of(*names: str) -> set[str]:
    return {keys.service("red", "demo", "web"), keys.local_service("demo", "web")} | {
        keys.endpoint_slice("red", "demo", name) for name in names
    }


async def test_a_burst_of_slices_compiles_each_service_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, compiled = Bench(), []
    await bench.exporter.on_services(KubeBatch((service(), service("api"))))
    compile_both = ServiceTable.compile

    def counted(table: ServiceTable, cluster: ClusterIdentity, name: ServiceName) -> Any:
        compiled.append(name.name)
        return compile_both(table, cluster, name)

    monkeypatch.setattr(ServiceTable, "compile", counted)
    burst = [piece(f"web-{number}", f"10.7.0.{number}") for number in range(50)]
    await bench.exporter.on_slices(KubeBatch((*burst, piece("api-1", owner="api"))))
    assert sorted(compiled) == ["api", "web"]
    assert bench.wanted() == of(*(f"web-{number}" for number in range(50)))


async def test_nothing_is_said_before_everything_is_known_and_then_all_of_it_once() -> None:
    listed: list[str] = []
    bench = Bench(ready=lambda: bool(listed))
    await bench.exporter.on_slices(KubeBatch((piece("web-1"),)))
    await bench.exporter.on_services(KubeBatch((service(),)))
    assert (bench.wanted(), bench.waited) == (set(), 0)
    listed.append("all")
    await bench.exporter.export()
    assert bench.wanted() == of("web-1")
    assert bench.waited == 1
    await bench.exporter.export()
    assert bench.waited == 1, "nothing has changed since"


async def test_a_namespace_that_is_not_global_takes_slices_with_it() -> None:
    bench = Bench()
    await bench.exporter.on_services(KubeBatch((service(),)))
    await bench.exporter.on_slices(KubeBatch((piece("web-1"), piece("web-2"))))
    assert bench.wanted() == of("web-1", "web-2")
    bench.public = False
    bench.exporter.touch("demo")
    await bench.exporter.export()
    assert bench.wanted() == set()
    bench.public = True
    bench.exporter.touch("demo")
    await bench.exporter.export()
    assert bench.wanted() == of("web-1", "web-2")


async def test_slices_that_are_switched_off_are_not_written() -> None:
    bench = Bench(slices=False)
    await bench.exporter.on_services(KubeBatch((service(),)))
    await bench.exporter.on_slices(KubeBatch((piece("web-1"),)))
    assert bench.wanted() == of()


async def test_a_service_that_is_no_longer_shared_stays_with_the_own_agents() -> None:
    bench = Bench()
    await bench.exporter.on_services(KubeBatch((service(),)))
    await bench.exporter.on_slices(KubeBatch((piece("web-1"),)))
    await bench.exporter.on_services(KubeBatch((service(shared="false"),)))
    assert bench.wanted() == {keys.local_service("demo", "web")}
