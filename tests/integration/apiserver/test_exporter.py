"""The exporter between a Kubernetes API and a real etcd."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from clustermesh.kube.objects import CLUSTER_MESH_IDENTITIES
from clustermesh.wire import keys, labels
from tests.integration.apiserver.exporting import RED, Kubernetes, Store, exporting, ready
from tests.integration.etcd_process import EtcdProcess, free_ports
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration


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
            for path in ("nodes/v1", "identities/v1", "ip/v1", "services/v1", "serviceexports/v1", "endpointslices/v1")
        }

        await kubernetes.pod("web-1", "10.1.1.6")
        await eventually(lambda: store.has(keys.address("10.1.1.6")))
        assert await store.identity_of("10.1.1.6") == number
        await kubernetes.delete_pod("web-1")

        async def gone() -> bool:
            return not await store.has(keys.address("10.1.1.6"))

        await eventually(gone)
        await kubernetes.annotate(shared="false")

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
    options = (f"--listen=127.0.0.1:{port}", "--no-endpoint-slices")
    async with process(kubernetes, etcd, *options) as running, aiohttp.ClientSession() as session:

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
    canaries = {kind for kind in keys.Kind if await store.has(keys.state_canary(kind, "red"))}
    assert canaries == set(keys.Kind) - {keys.Kind.ENDPOINT_SLICES}


async def test_a_port_in_use_ends_the_process_with_one_error(kubernetes: Kubernetes, etcd: EtcdProcess) -> None:
    async with process(kubernetes, etcd, f"--listen=127.0.0.1:{etcd.port}") as running:
        output, _ = await asyncio.wait_for(running.communicate(), 20)
    assert running.returncode == 1
    assert output.count(b"ERROR") == 1
    assert f"cannot listen on 127.0.0.1:{etcd.port}" in output.decode()
