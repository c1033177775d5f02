"""connect, status and disconnect between two clusters, as an operator types them."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from clustermesh.kube.objects import CLUSTER_MESH_PEERS
from clustermesh.kvstore.auth import AuthAdmin
from clustermesh.wire import keys, records
from clustermesh.wire.records import AddressRecord
from tests.integration.apiserver.commands import Ended, merged_kubeconfig, run, serve_as, start
from tests.integration.apiserver.meshes import MeshCluster, end
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration


class Mesh(NamedTuple):
    red: MeshCluster
    green: MeshCluster
    kubeconfig: Path
    tasks: dict[str, asyncio.Task[None]]  # by cluster

    async def command(self, *arguments: str) -> Ended:
        return await run(self.kubeconfig, *arguments)

    async def connect(self, *arguments: str) -> Ended:
        return await self.command("connect", "--context", "red", "--destination-context", "green", *arguments)


@pytest.fixture
async def mesh(etcd: EtcdProcess, own: EtcdProcess, tmp_path: Path) -> AsyncIterator[Mesh]:
    await serve_as(own, "green")
    clusters = []
    for name, number, store in (("red", 1, etcd), ("green", 2, own)):
        directory = tmp_path / name
        directory.mkdir()
        clusters.append(MeshCluster(name, number, store, directory))
    tasks: dict[str, asyncio.Task[None]] = {}
    try:
        await asyncio.gather(*(cluster.install() for cluster in clusters))
        tasks |= {cluster.name: asyncio.create_task(cluster.run()) for cluster in clusters}
        contexts = {cluster.name: cluster.kubernetes.kubeconfig for cluster in clusters}
        mesh = Mesh(clusters[0], clusters[1], merged_kubeconfig(contexts, tmp_path / "kubeconfig"), tasks)
        await eventually(lambda: alive(mesh))
        yield mesh
    finally:
        for task in tasks.values():
            await end(task)
        for cluster in clusters:
            await cluster.close()


async def alive(mesh: Mesh) -> bool:
    for name in ("red", "green"):
        ended = await mesh.command("status", "--context", name, "--output", "json")
        if ended.status or ended.document["agentsTotal"] != 1:
            return False
    return True


async def objects(cluster: MeshCluster) -> list[str]:
    async with cluster.client() as client:
        return [peer.name for peer in await client.list(CLUSTER_MESH_PEERS)]


async def test_two_clusters_become_one_and_two_again(mesh: Mesh) -> None:
    ended = await mesh.connect("--dry-run", "--output", "json")
    assert (ended.status, ended.document["result"]) == (0, "planned")
    assert await objects(mesh.red) == []

    ended = await mesh.connect()
    assert ended.status == 0, ended.out + ended.err
    assert "every agent is ready" in ended.out

    ended = await mesh.command("status", "--context", "green", "--output", "json")
    assert ended.status == 0, ended.out + ended.err
    (line,) = ended.document["peers"]
    assert (line["name"], line["ready"], line["agents"]["ready"]) == ("red", True, 1)
    assert line["records"]["identities"] == {"mirrored": 1, "applied": 1}
    users = await AuthAdmin(mesh.red.etcd.connection()).users()
    assert "remote-green" in users
    async with mesh.red.client() as client:
        peer = await client.get(CLUSTER_MESH_PEERS, "green")
        assert "PRIVATE" not in msgspec.json.encode(peer).decode()

    again = await mesh.connect("--output", "json")
    assert (again.status, again.document["result"]) == (0, "unchanged")

    ended = await mesh.command("disconnect", "--context", "red", "--destination-context", "green")
    assert ended.status == 0, ended.out + ended.err
    assert await objects(mesh.red) == await objects(mesh.green) == []
    root = mesh.red.etcd.connection()
    await eventually(lambda: nothing_of(root, "green"))
    assert "remote-green" not in await AuthAdmin(root).users()
    secrets = await mesh.red.kubernetes.kubectl("get", "secrets", "-n", "clustermesh-system", "-o", "name")
    assert "clustermesh-peer-green" not in secrets

    ended = await mesh.command("disconnect", "--context", "red", "--destination-context", "green", "-o", "json")
    assert (ended.status, ended.document["result"]) == (0, "unchanged")


async def nothing_of(connection: Any, peer: str) -> bool:
    for prefix in (keys.CACHE, keys.synced_prefix(peer), keys.cluster_config(peer)):
        if await connection.count(prefix):
            return False
    return True


async def test_agents_that_never_finish_make_connect_roll_back(mesh: Mesh) -> None:
    mesh.green.agents_work = False
    ended = await mesh.connect("--timeout", "6", "--output", "json")
    assert ended.status == 1
    document = ended.document
    assert document["result"] == "failed"
    assert "green → red" in document["error"] and "agent" in document["error"]
    assert len(document["rolled_back"]) == 2
    assert await objects(mesh.red) == await objects(mesh.green) == []
    root = mesh.green.etcd.connection()
    await eventually(lambda: nothing_of(root, "red"))

    # So does an operator who loses patience.
    process = await start(mesh.kubeconfig, "connect", "--context", "red", "--destination-context", "green")
    await eventually(lambda: has_objects(mesh.green))
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 20) != 0
    assert await objects(mesh.red) == await objects(mesh.green) == []


async def has_objects(cluster: MeshCluster) -> bool:
    return bool(await objects(cluster))


async def test_a_destination_that_does_not_answer_changes_nothing(mesh: Mesh) -> None:
    await mesh.green.kubernetes.stop()
    ended = await mesh.connect()
    assert ended.status == 1
    assert "context green" in ended.err and "does not answer" in ended.err
    assert await objects(mesh.red) == []


async def test_what_was_deleted_while_the_api_server_was_away_is_cleaned_up(mesh: Mesh) -> None:
    ended = await mesh.connect()
    assert ended.status == 0, ended.out + ended.err
    await end(mesh.tasks["red"])
    await mesh.green.kubernetes.stop()
    ended = await mesh.command("disconnect", "--context", "red", "--destination-context", "green")
    assert ended.status == 1
    assert "--one-sided" in ended.err
    one_sided = ("disconnect", "--context", "red", "--destination-context", "green", "--one-sided", "--timeout", "2")
    ended = await mesh.command(*one_sided, "--output", "json")
    assert ended.status == 1
    assert "clustermesh-apiserver" in ended.document["error"]
    assert await objects(mesh.red) == []
    root = mesh.red.etcd.connection()
    assert not await nothing_of(root, "green")
    mesh.tasks["red"] = asyncio.create_task(mesh.red.run())
    await eventually(lambda: nothing_of(root, "green"))
    await eventually(lambda: without_user(mesh.red, "remote-green"))


async def without_user(cluster: MeshCluster, name: str) -> bool:
    return name not in await AuthAdmin(cluster.etcd.connection()).users()


async def test_policy_and_quota_of_a_connected_peer_are_changed_by_its_object(mesh: Mesh) -> None:
    assert (await mesh.connect()).status == 0
    red, green = mesh.red.etcd.connection(), mesh.green.etcd.connection()

    def pod(ip: str) -> bytes:
        return records.encode(AddressRecord(ip, host_ip="192.0.2.1", identity=1 << 16 | 1))

    # One outside of red's ranges, and one that a pod of green has, outside of green's.
    await green.put(keys.address("10.66.0.2"), b"{}")
    for ip in ("10.66.0.1", "10.66.0.2"):
        await red.put(keys.address(ip), pod(ip))

    async def shows(policy: str, reasons: dict[str, int]) -> bool:
        async with mesh.green.client() as client:
            status = (await client.get(CLUSTER_MESH_PEERS, "red")).status
        return status.policy == policy and status.quarantined.by_reason == reasons

    outside, taken = "address outside the peer's pod CIDRs", "address belongs to cluster green"
    await eventually(lambda: shows("strict", {outside: 1, taken: 1}), within=20)
    for change, policy, reasons in (
        ('{"spec":{"policy":"lenient"}}', "lenient", {taken: 1}),
        ('{"spec":{"quota":{"records":2}}}', "lenient", {taken: 1, "over the quota of records": 1}),
        ('{"spec":{"policy":null,"quota":null}}', "strict", {outside: 1, taken: 1}),
    ):
        await mesh.green.kubernetes.kubectl("patch", "clustermeshpeer", "red", "--type=merge", "-p", change)
        await eventually(lambda policy=policy, reasons=reasons: shows(policy, reasons), within=20)  # type: ignore[misc]
    ended = await mesh.command("status", "--context", "green")
    assert f"kept out: addresses/10.66.0.2: {taken}" in ended.out
