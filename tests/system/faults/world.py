"""The mesh that is hurt: a played source, and the local cluster with its real processes."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from clustermesh.kube import config
from clustermesh.kube.client import KubeClient
from clustermesh.kube.objects import SYSTEM_NAMESPACE
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.errors import KvError
from clustermesh.tasks import end
from clustermesh.testbed import namespaces
from tests.integration.apiserver.introduction import introduce
from tests.integration.etcd_process import EtcdProcess, running_etcd
from tests.integration.kubernetes.cluster import Cluster
from tests.integration.waiting import eventually
from tests.system.datapath.lab import bpf_file_system
from tests.system.faults import comparison
from tests.system.faults.comparison import KernelMaps, differences, kernel_maps
from tests.system.faults.exporter import PlayedExporter
from tests.system.faults.model import CLUSTER, CLUSTER_ID, LASTING_SERVICES, SERVICES, Model
from tests.system.faults.network import AGENTS, Network, address, aside, network
from tests.system.faults.processes import Kept

CRDS = Path(__file__).parents[3] / "deploy" / "crds"
OWN, OWN_ID = "green", 7
LOCAL_SERVICES = [f"service-{number}" for number in range(SERVICES - LASTING_SERVICES)]


def _node(agent: str) -> str:
    return f"{OWN}-{agent}"


NODES = {_node(agent): address(agent) for agent in AGENTS}


@dataclass
class World:
    """Everything that may be hurt, and how it should be."""

    net: Network
    model: Model
    exporter: PlayedExporter
    source: EtcdProcess
    local: EtcdProcess
    mirror: Kept
    agents: Mapping[str, Kept]
    frontends: Mapping[str, str]  # service → cluster IP
    directory: Path
    maps: Mapping[str, KernelMaps]

    async def wrong(self) -> list[str]:
        """Everything that is not as the source says: in the source's etcd, in the local one and in the kernel."""
        try:
            async with (
                Connection([self.source.endpoint], self.source.client_pem()) as source,
                Connection([self.local.endpoint], self.local.client_pem()) as local,
            ):
                exported = await comparison.held(source, "cilium/state/")
                copied = await comparison.held(local, "cilium/cache/")
        except KvError as error:
            return [str(error)]
        said = differences("source", self.model.wanted, exported)
        said += differences("cache", comparison.cache(self.model), copied)
        for agent, maps in self.maps.items():
            wanted = comparison.kernel(self.model, OWN_ID, NODES, _node(agent), self.frontends)
            said += differences(agent, wanted, maps.entries())
        return said

    def lost(self) -> list[str]:
        """What never changes, and is not in a kernel just now."""
        pods = [(ip, self.model.pods[ip]) for ip in self.model.lasting_pods]
        lasting = [(ip, pod.identity, self.model.nodes[pod.node].ip) for ip, pod in pods]
        return [f"{agent}: {pod}" for agent, maps in self.maps.items() for pod in maps.lost(lasting)]

    async def verify(self, agent: str) -> str:
        """What the agent's own comparison says; empty if nothing differs."""
        command = [*_agent_command(self.local, agent, "verify"), f"--pin-dir={_pins(self.directory, agent)}"]
        process = await asyncio.create_subprocess_exec(
            *namespaces.entering(self.net.namespace(agent), command),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return output.decode() if process.returncode else ""


@asynccontextmanager
async def running_world(directory: Path, seed: int) -> AsyncIterator[World]:
    """All of it, up and converged; ended whatever happens."""
    model = Model(Random(f"load {seed}"))
    async with AsyncExitStack() as stack:
        net = stack.enter_context(network())
        stack.enter_context(bpf_file_system(directory / "bpf"))
        source, local = [await stack.enter_async_context(_etcd(net, directory, name)) for name in ("source", "local")]
        writing = source.connection("root")
        exporter = PlayedExporter(writing, model, reader=OWN)
        stack.push_async_callback(end, asyncio.create_task(exporter.run()))
        kubernetes = await stack.enter_async_context(_kubernetes(directory))
        frontends = await _furnish(kubernetes)
        mirror = Kept("mirror", _api_server(local, kubernetes), directory / "mirror.log")
        agents = {agent: _agent(net, directory, local, agent) for agent in AGENTS}
        for process in (mirror, *agents.values()):
            stack.push_async_callback(process.close)
            process.start()
        async with KubeClient(config.load(kubernetes.kubeconfig)) as client:
            await introduce(
                client,
                local.ca,
                OWN,
                peer=source.ca,
                peer_name=CLUSTER,
                peer_id=CLUSTER_ID,
                endpoints=[source.endpoints[1]],
            )
        await eventually(lambda: all((_pins(directory, agent) / "maps" / "cm_probes").exists() for agent in AGENTS))
        maps = {agent: stack.enter_context(kernel_maps(_pins(directory, agent))) for agent in AGENTS}
        yield World(net, model, exporter, source, local, mirror, agents, frontends, directory, maps)


@asynccontextmanager
async def _etcd(net: Network, directory: Path, name: str) -> AsyncIterator[EtcdProcess]:
    (directory / name).mkdir()
    hosts = [aside(name), address(name)]
    process = EtcdProcess(directory / name, hosts=hosts, namespace=net.namespace(name))
    try:
        await process.start()
        yield process
    finally:
        process.thaw()
        await process.close()


@asynccontextmanager
async def _kubernetes(directory: Path) -> AsyncIterator[Cluster]:
    async with running_etcd(directory / "kubernetes") as store:
        cluster = Cluster(store, directory)
        try:
            await cluster.start()
            yield cluster
        finally:
            await cluster.stop()


async def _furnish(kubernetes: Cluster) -> dict[str, str]:
    """What is in the local cluster: its nodes, and Services that have all their backends in the source."""
    for crd in sorted(CRDS.glob("*.yaml")):
        await kubernetes.kubectl("apply", "-f", str(crd))
    await kubernetes.kubectl("create", "namespace", SYSTEM_NAMESPACE)
    for number, (name, ip) in enumerate(NODES.items(), 1):
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name},
            "spec": {"podCIDRs": [f"10.7.{number}.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": ip}]},
        }
        assert (await kubernetes.post("/api/v1/nodes", node)).status == 201
    frontends = {}
    for name in LOCAL_SERVICES:
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "annotations": {"service.cilium.io/global": "true"}},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }
        answer = await kubernetes.post("/api/v1/namespaces/default/services", service)
        assert answer.status == 201, answer.body
        frontends[name] = answer.body["spec"]["clusterIP"]
    return frontends


def _api_server(local: EtcdProcess, kubernetes: Cluster) -> list[str]:
    tls = local.client_files(f"admin-{OWN}")
    return [
        sys.executable,
        "-m",
        "apiserver.main",
        f"--cluster-name={OWN}",
        f"--cluster-id={OWN_ID}",
        f"--kubeconfig={kubernetes.kubeconfig}",
        f"--etcd-endpoints={local.endpoints[1]}",
        f"--etcd-ca={tls.ca}",
        f"--etcd-cert={tls.cert}",
        f"--etcd-key={tls.key}",
        f"--listen=127.0.0.1:{kubernetes.port + 1}",
        "--identity=only",
    ]


def _agent(net: Network, directory: Path, local: EtcdProcess, agent: str) -> Kept:
    command = [*_agent_command(local, agent, "run"), f"--pin-dir={_pins(directory, agent)}"]
    return Kept(agent, namespaces.entering(net.namespace(agent), command), directory / f"{agent}.log")


def _agent_command(local: EtcdProcess, agent: str, verb: str) -> list[str]:
    tls = local.client_files(f"local-{OWN}")
    return [
        sys.executable,
        "-m",
        "nodeagent.main",
        verb,
        f"--node-name={_node(agent)}",
        f"--cluster-name={OWN}",
        f"--cluster-id={OWN_ID}",
        f"--etcd-endpoints={local.endpoints[1]}",
        f"--etcd-ca={tls.ca}",
        f"--etcd-cert={tls.cert}",
        f"--etcd-key={tls.key}",
    ]


def _pins(directory: Path, agent: str) -> Path:
    return directory / "bpf" / agent
