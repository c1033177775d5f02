"""A cluster of ours and one with Cilium become peers, each in its own terms, and are strangers again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from clustermesh.cilium.objects import AGENTS_SECRET, MIRROR_SECRET
from clustermesh.kube.objects import CLUSTER_MESH_PEERS, HANDED_KEY, SECRETS, SYSTEM_NAMESPACE, peer_secret
from clustermesh.kvstore.auth import AuthAdmin
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.wire import keys
from tests.integration.apiserver.cilium import NAME, OTHERS, USERS, CiliumCluster, reader
from tests.integration.apiserver.commands import Ended, merged_kubeconfig, run, serve_as
from tests.integration.apiserver.meshes import MeshCluster, end
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration


class Pair(NamedTuple):
    green: MeshCluster
    cilium: CiliumCluster
    kubeconfig: Path

    async def command(self, verb: str, *arguments: str, context: str = "green", destination: str = NAME) -> Ended:
        between = ("--context", context, "--destination-context", destination)
        return await run(self.kubeconfig, verb, *between, *arguments)

    async def peer(self) -> str:
        """Our object, as text."""
        async with self.green.client() as client:
            return msgspec.json.encode(await client.get(CLUSTER_MESH_PEERS, NAME)).decode()

    async def objects(self) -> list[str]:
        async with self.green.client() as client:
            return [peer.name for peer in await client.list(CLUSTER_MESH_PEERS)]


@asynccontextmanager
async def running(etcd: EtcdProcess, own: EtcdProcess, directory: Path, *, legacy: bool) -> AsyncIterator[Pair]:
    await serve_as(own, "green")
    for name in ("green", NAME):
        (directory / name).mkdir()
    green = MeshCluster("green", 2, own, directory / "green")
    green.silent.add(NAME)
    cilium = CiliumCluster(etcd, directory / NAME, legacy=legacy)
    tasks: list[asyncio.Task[None]] = []
    try:
        await asyncio.gather(green.install(), cilium.install())
        tasks += [asyncio.create_task(green.run()), asyncio.create_task(cilium.run())]
        contexts = {"green": green.kubernetes.kubeconfig, NAME: cilium.kubernetes.kubeconfig}
        yield Pair(green, cilium, merged_kubeconfig(contexts, directory / "kubeconfig"))
    finally:
        for task in tasks:
            await end(task)
        await asyncio.gather(green.close(), cilium.close())


def recorded_copies() -> dict[str, bytes]:
    """What Cilium's own mirror makes of the same records, but for what its agents refuse: no cluster label."""
    lines = Path("tests/golden/mirrored-by-cilium.txt").read_text().splitlines()
    copies = dict(zip(lines[::2], (line.encode() for line in lines[1::2]), strict=True))
    records = (keys.CACHE, keys.CLUSTER_CONFIGS)
    return {key: value for key, value in copies.items() if key.startswith(records) and not key.endswith("/65603")}


async def value(kv: Connection, key: str) -> bytes | None:
    found = await kv.get(key)
    return found.value if found is not None else None


async def refused(what: object) -> bool:
    try:
        await what  # type: ignore[misc]
    except KvError as error:
        return error.stage is Stage.PERMISSION
    return False


async def test_both_read_each_other_and_only_what_they_may(etcd: EtcdProcess, own: EtcdProcess, tmp_path: Path) -> None:
    async with running(etcd, own, tmp_path, legacy=False) as pair:
        ended = await pair.command("connect", "--dry-run", "--output", "json")
        assert ended.status == 0, ended.out + ended.err
        (plan,) = ended.document["cilium"]
        assert (plan["version"], plan["kvstoremesh"], plan["user"]) == ("1.20.1", True, "remote-green")
        assert "signed by cilium-ca" in plan["credentials"]
        assert await pair.objects() == []
        assert await pair.cilium.users_file() == USERS

        ended = await pair.command("connect")
        assert ended.status == 0, ended.out + ended.err
        assert "clustermesh.config.enabled=false" in ended.out + ended.err

        # We read theirs, under a user of our own.
        ended = await run(pair.kubeconfig, "status", "--context", "green", "--output", "json")
        (line,) = ended.document["peers"]
        assert (line["name"], line["implementation"], line["ready"]) == (NAME, "cilium", True)
        mine = own.connection()
        recorded = recorded_copies()
        assert len(recorded) > 10
        assert recorded == {key: await value(mine, key) for key in recorded}
        settings = await mine.get(keys.peer_settings(NAME))
        assert settings is not None and settings.value == b'{"implementation":"cilium","strict":false}'
        assert "remote-green" in await AuthAdmin(etcd.connection()).users()
        assert (await pair.cilium.users_file()).startswith(USERS)

        # KVStoreMesh reads ours: heartbeat, who we are, that we are complete, and the lists (spec A.6).
        files = await pair.cilium.secret(MIRROR_SECRET)
        assert files is not None and OTHERS.items() < files.items()
        async with reader(files, "green", tmp_path / "kvstoremesh") as theirs:
            assert await theirs.get(keys.HEARTBEAT)
            assert await theirs.get(keys.cluster_config("green"))
            assert len([kv async for page in theirs.list("cilium/synced/green/") for kv in page]) >= 4
            assert len([kv async for page in theirs.list("cilium/state/") for kv in page]) == 2
            for hidden in (keys.CACHE, "cilium/synced/other/", keys.PRIVATE):
                assert await refused(theirs.count(hidden))
            assert await refused(theirs.get(keys.cluster_config(NAME)))
            assert await refused(theirs.put("cilium/state/x", b""))
        # Its agents read what KVStoreMesh has fetched.
        files = await pair.cilium.secret(AGENTS_SECRET)
        assert files is not None and files.keys() == {"other", "green"}
        assert b"https://clustermesh-apiserver.kube-system.svc:2379" in files["green"]
        assert b"/var/lib/cilium/clustermesh/local-etcd-client.key" in files["green"]

        assert "PRIVATE" not in await pair.peer()
        async with pair.green.client() as client:
            kept = await client.get(SECRETS, peer_secret(NAME), SYSTEM_NAMESPACE)
        assert set(kept.data) == {"tls.key", "tls.csr"}

        again = await pair.command("connect", "--output", "json", context=NAME, destination="green")
        assert (again.status, again.document["result"]) == (0, "unchanged"), again.out + again.err

        ended = await pair.command("disconnect")
        assert ended.status == 0, ended.out + ended.err
        assert await pair.objects() == []
        assert await pair.cilium.secret(MIRROR_SECRET) == await pair.cilium.secret(AGENTS_SECRET) == OTHERS
        assert await pair.cilium.users_file() == USERS
        assert [kv async for page in mine.list("cilium/cache/") for kv in page] == []
        assert await mine.get(keys.peer_settings(NAME)) is None
        assert f"remote-{NAME}" not in await AuthAdmin(mine).users()
        ended = await pair.command("disconnect", "--output", "json")
        assert (ended.status, ended.document["result"]) == (0, "unchanged")


async def test_without_its_authority_the_certificate_for_all_peers_serves(
    etcd: EtcdProcess, own: EtcdProcess, tmp_path: Path
) -> None:
    async with running(etcd, own, tmp_path, legacy=True) as pair:
        # Agents that never finish: what was done is undone, on both sides.
        pair.green.agents_work = False
        ended = await pair.command("connect", "--timeout", "3", "--output", "json", context=NAME, destination="green")
        assert ended.status == 1
        assert ended.document["result"] == "failed", ended.out + ended.err
        assert any(AGENTS_SECRET in line for line in ended.document["rolled_back"])
        assert await pair.objects() == []
        assert await pair.cilium.secret(AGENTS_SECRET) is None
        await eventually(lambda: nothing_left(own))

        pair.green.agents_work = True
        ended = await pair.command("connect", context=NAME, destination="green")
        assert ended.status == 0, ended.out + ended.err
        assert "clustermesh.config.clusters" in ended.out + ended.err
        async with pair.green.client() as client:
            kept = await client.get(SECRETS, peer_secret(NAME), SYSTEM_NAMESPACE)
        assert set(kept.data) == {"tls.key", "tls.csr", HANDED_KEY}
        assert await pair.cilium.users_file() == USERS
        # Without KVStoreMesh its agents come themselves.
        assert await pair.cilium.secret(MIRROR_SECRET) is None
        files = await pair.cilium.secret(AGENTS_SECRET)
        assert files is not None
        async with reader(files, "green", tmp_path / "agent") as theirs:
            assert await theirs.get(keys.cluster_config("green"))

        ended = await pair.command("disconnect")
        assert ended.status == 0, ended.out + ended.err
        assert await pair.cilium.secret(AGENTS_SECRET) is None


async def nothing_left(own: EtcdProcess) -> bool:
    kv = own.connection()
    return not await kv.count("cilium/cache/") and await kv.get(keys.peer_settings(NAME)) is None
