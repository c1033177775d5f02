"""The cluster green with real API servers as processes of their own, one or several."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp

from clustermesh.kube import config
from clustermesh.kube.client import KubeClient
from clustermesh.kube.objects import SYSTEM_NAMESPACE
from tests.integration.etcd_process import EtcdProcess, free_ports
from tests.integration.kubernetes.cluster import Cluster
from tests.integration.waiting import eventually

CRDS = Path(__file__).parents[3] / "deploy" / "crds"
NAME, CLUSTER_ID = "green", 7


class World(NamedTuple):
    """The cluster's mesh etcd `own`, and Kubernetes on an etcd of its own."""

    own: EtcdProcess
    kubernetes: Cluster

    @property
    def client(self) -> KubeClient:
        return KubeClient(config.load(self.kubernetes.kubeconfig))


@asynccontextmanager
async def running_kubernetes(directory: Path) -> AsyncIterator[Cluster]:
    """A stand-in API over an etcd of its own, with our namespace."""
    directory.mkdir()
    store = EtcdProcess(directory)
    kubernetes = Cluster(store, directory)
    try:
        await store.start()
        await kubernetes.start()
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}}
        answer = await kubernetes.post("/api/v1/namespaces", namespace)
        assert answer.status == 201, answer.body
        yield kubernetes
    finally:
        store.thaw()
        await kubernetes.stop()
        await store.close()


@asynccontextmanager
async def running_world(own: EtcdProcess, directory: Path) -> AsyncIterator[World]:
    async with running_kubernetes(directory / "kubernetes-etcd") as kubernetes:
        await kubernetes.kubectl("apply", *(f"--filename={crd}" for crd in sorted(CRDS.glob("*.yaml"))))
        yield World(own, kubernetes)


class ApiServer:
    """One replica. The same object started again is the same replica after a restart."""

    def __init__(self, world: World, identity: str, *options: str) -> None:
        self.identity = identity
        self.port = free_ports(1)[0]
        self.process: asyncio.subprocess.Process | None = None
        self._log = world.own.directory / f"apiserver-{identity}-{self.port}.log"
        tls = world.own.client_files(f"admin-{NAME}")
        self._argv = (
            sys.executable,
            "-m",
            "apiserver.main",
            f"--cluster-name={NAME}",
            f"--cluster-id={CLUSTER_ID}",
            f"--kubeconfig={world.kubernetes.kubeconfig}",
            f"--etcd-endpoints={world.own.endpoint}",
            f"--etcd-ca={tls.ca}",
            f"--etcd-cert={tls.cert}",
            f"--etcd-key={tls.key}",
            f"--listen=127.0.0.1:{self.port}",
            f"--identity={identity}",
            *options,
        )

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def start(self) -> None:
        """Returns once it lives, which is not yet ready."""
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(*self._argv, stdout=log, stderr=log)
        await eventually(self.alive)

    async def alive(self) -> bool:
        return (await self.get("healthz"))[0] == 200

    async def ready(self) -> bool:
        return (await self.get("readyz"))[0] == 200

    async def leads(self) -> bool:
        status, text = await self.get("readyz")
        return status == 200 and f"leader as {self.identity}_" in text

    async def stands_by(self, leader: str) -> bool:
        status, text = await self.get("readyz")
        return status == 200 and f"standby: leader is {leader}_" in text

    async def get(self, path: str) -> tuple[int, str]:
        """Status (0: nobody listens) and text."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as session,
                session.get(f"http://127.0.0.1:{self.port}/{path}") as response,
            ):
                return response.status, await response.text()
        except (aiohttp.ClientConnectionError, TimeoutError):
            return 0, ""

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit status, once it has one."""
        assert self.process is not None
        async with asyncio.timeout(30):
            return await self.process.wait()

    async def close(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
