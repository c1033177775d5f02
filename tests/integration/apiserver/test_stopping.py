"""SIGTERM ends the process soon and cleanly, whatever it is waiting for at that moment."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from apiserver.users import EtcdUsers
from clustermesh.kube import config
from clustermesh.kube.client import KubeClient
from clustermesh.kube.objects import SYSTEM_NAMESPACE
from clustermesh.kvstore.connection import Connection
from tests.integration.apiserver.exports import CLUSTER_ID, export
from tests.integration.apiserver.introduction import introduce
from tests.integration.etcd_process import EtcdProcess, free_ports
from tests.integration.kubernetes.cluster import Cluster
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

CRDS = Path(__file__).parents[3] / "deploy" / "crds"
LIMIT = 5.0  # seconds


class World(NamedTuple):
    """The cluster green with its mesh etcd `own`, Kubernetes on an etcd of its own, and the peer red."""

    own: EtcdProcess
    kubernetes: Cluster
    peer: EtcdProcess

    @property
    def client(self) -> KubeClient:
        return KubeClient(config.load(self.kubernetes.kubeconfig))


@pytest.fixture
async def world(etcd: EtcdProcess, own: EtcdProcess, tmp_path: Path) -> AsyncIterator[World]:
    directory = tmp_path / "kubernetes-etcd"
    directory.mkdir()
    store = EtcdProcess(directory)
    kubernetes = Cluster(store, directory)
    try:
        await store.start()
        await kubernetes.start()
        for crd in sorted(CRDS.glob("*.yaml")):
            await kubernetes.kubectl("apply", "-f", str(crd))
        await kubernetes.kubectl("create", "namespace", SYSTEM_NAMESPACE)
        yield World(own, kubernetes, etcd)
    finally:
        store.thaw()
        await kubernetes.stop()
        await store.close()


async def connect(world: World) -> None:
    """Give green what `connect` would: the peer's answer to its request."""
    await export(await restricted(world.peer))
    async with world.client as client:
        await introduce(
            client,
            world.own.ca,
            "green",
            peer=world.peer.ca,
            peer_name="red",
            peer_id=CLUSTER_ID,
            endpoints=[world.peer.endpoint],
        )


async def restricted(etcd: EtcdProcess) -> Connection:
    users = EtcdUsers(etcd.connection(), "red")
    await users.set_peers(frozenset({"green"}))
    return etcd.connection("admin-red")


@pytest.fixture
async def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
async def start(world: World, port: int) -> AsyncIterator[Callable[[], Awaitable[asyncio.subprocess.Process]]]:
    started: list[asyncio.subprocess.Process] = []

    async def begin() -> asyncio.subprocess.Process:
        tls = world.own.client_files()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "apiserver.main",
            "--cluster-name=green",
            "--cluster-id=7",
            f"--kubeconfig={world.kubernetes.kubeconfig}",
            f"--etcd-endpoints={world.own.endpoint}",
            f"--etcd-ca={tls.ca}",
            f"--etcd-cert={tls.cert}",
            f"--etcd-key={tls.key}",
            f"--listen=127.0.0.1:{port}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        started.append(process)
        await eventually(lambda: answers(port))
        return process

    yield begin
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def answers(port: int, path: str = "healthz") -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/{path}") as response:
            return response.status == 200
    except aiohttp.ClientConnectionError:
        return False


async def stops_cleanly(process: asyncio.subprocess.Process) -> None:
    begin = time.monotonic()
    process.terminate()
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    took = time.monotonic() - begin
    assert process.returncode == 0, output.decode()
    assert took < LIMIT, f"{took:.1f} s\n{output.decode()}"
    assert b"Traceback" not in output
    assert b"never retrieved" not in output


async def etcd_down(world: World) -> None:
    await world.own.kill()


async def etcd_frozen(world: World) -> None:
    world.own.freeze()


async def kubernetes_down(world: World) -> None:
    await world.kubernetes.stop()


async def kubernetes_frozen(world: World) -> None:
    world.kubernetes.etcd.freeze()


async def peer_frozen(world: World) -> None:
    world.peer.freeze()


Trouble = Callable[[World], Awaitable[None]]
Start = Callable[[], Awaitable[asyncio.subprocess.Process]]


@pytest.mark.parametrize("trouble", [etcd_down, etcd_frozen, kubernetes_down, kubernetes_frozen])
async def test_it_stops_while_it_waits_to_begin(world: World, start: Start, trouble: Trouble) -> None:
    await trouble(world)
    process = await start()
    await asyncio.sleep(0.5)  # inside its first attempts
    await stops_cleanly(process)


@pytest.mark.parametrize(
    ("trouble", "after"),
    [
        *((each, 0.0) for each in (etcd_down, etcd_frozen, kubernetes_down, kubernetes_frozen, peer_frozen)),
        (etcd_frozen, 6.0),  # seconds, until it has noticed
        (peer_frozen, 6.0),
    ],
)
async def test_it_stops_when_what_it_had_is_lost(
    world: World, start: Start, port: int, trouble: Trouble, after: float
) -> None:
    process = await start()
    await connect(world)
    await eventually(lambda: answers(port, "readyz"))
    await trouble(world)
    await asyncio.sleep(after)
    await stops_cleanly(process)
