"""Bringing a testbed up: in steps, each waited for, all clusters side by side; what was done is undone if one fails."""

import asyncio
import contextlib
import fcntl
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from clustermesh.kube.errors import KubeError
from clustermesh.testbed import (
    credentials,
    install,
    machine,
    namespaces,
    netns,
    readiness,
    supervisor,
    topology,
)
from clustermesh.testbed.down import destroy
from clustermesh.testbed.errors import TestbedError
from clustermesh.testbed.programs import AGENT_PORT, API_SERVER_PORT, Programs, environment
from clustermesh.testbed.state import Record, StateDirectory, all_directories
from clustermesh.testbed.supervisor import Request, Spec, State, Verb
from clustermesh.testbed.topology import STATE_ROOT, Cluster, Topology

_DEATHS = 3  # of a process that is waited for, until it is given up

Say = Callable[[str], None]


async def up(name: str, clusters: Sequence[str], nodes: int, say: Say, *, api_servers: int = 1) -> bool:
    """False when this very testbed is up already. TestbedError when it cannot be; then nothing of the attempt is left.

    `say` is told of each step that is done.
    """
    topology.check(name, clusters, nodes, api_servers)
    machine.check_rights()
    record = _claim(name, tuple(clusters), nodes, api_servers)
    if record is None:
        return False
    try:
        machine.check(name)
        await Builder(record.topology, StateDirectory(name), say, api_servers=api_servers).build()
        StateDirectory(name).save(msgspec.structs.replace(record, ready=True))
    except (KubeError, OSError) as error:
        destroy(name)
        raise TestbedError(f"testbed {name!r} could not be built: {error}") from error
    except BaseException:
        destroy(name)
        raise
    return True


class Builder:
    """Builds one testbed in its empty state directory."""

    def __init__(self, plan: Topology, directory: StateDirectory, say: Say, *, api_servers: int = 1) -> None:
        self._plan = plan
        self._directory = directory
        self._say = say
        self._api_servers = api_servers
        self._driver = netns.NetnsDriver(plan)
        self._programs = Programs(plan.name, directory, self._driver)

    async def build(self) -> None:
        with self._step(f"network: {len(self._plan.nodes)} nodes in {self._plan.network}"):
            self._driver.create()
            self._prepare()
            self._start_supervisor()
        await self._side_by_side("etcd", self._etcd)
        await self._side_by_side("Kubernetes API", self._kubernetes)
        await self._side_by_side("nodes and installation", self._nodes)
        await self._side_by_side("clustermesh API server and agents", self._clustermesh)

    async def _side_by_side(self, title: str, start: Callable[[Cluster], Awaitable[None]]) -> None:
        async def one(cluster: Cluster) -> None:
            await start(cluster)

        with self._step(title):
            tasks = [asyncio.create_task(one(cluster)) for cluster in self._plan.clusters]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.contextmanager
    def _step(self, title: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self._say(f"{title} ({time.monotonic() - begin:.1f} s)")

    def _prepare(self) -> None:
        """Directories, certificates, kubeconfig, BPF file system."""
        for cluster in self._plan.clusters:
            credentials.issue(self._directory, cluster)
            self._directory.etcd(cluster.name).mkdir(parents=True, mode=0o700)
            for node in cluster.nodes:
                self._directory.log(f"{node.name}/agent").parent.mkdir(parents=True, exist_ok=True)
            self._directory.log(f"{cluster.name}/etcd").parent.mkdir(parents=True, exist_ok=True)
        credentials.write_kubeconfig(self._directory, self._plan.clusters)
        self._directory.bpf.mkdir()
        namespaces.mount("bpf", self._directory.bpf, 0, "bpf")

    def _start_supervisor(self) -> None:
        """Returns once it listens, which it says in one line."""
        with self._directory.log("supervisor").open("wb") as log:
            daemon = subprocess.Popen(
                [sys.executable, "-m", supervisor.__name__, str(self._directory.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(self._plan.name),
                start_new_session=True,
            )
        assert daemon.stdout is not None
        with daemon.stdout as output:
            if not output.readline():
                raise TestbedError(
                    f"the supervisor did not start:\n{readiness.tail(self._directory.log('supervisor'))}"
                )

    async def _etcd(self, cluster: Cluster) -> None:
        tls = self._tls(cluster, credentials.ETCD_ROOT)
        await self._start(self._programs.etcd(cluster), f"{cluster.etcd_url}/health", tls)

    async def _kubernetes(self, cluster: Cluster) -> None:
        tls = self._tls(cluster, credentials.ADMIN)
        await self._start(self._programs.kubernetes(cluster), f"{cluster.kubernetes_url}/readyz", tls)

    async def _nodes(self, cluster: Cluster) -> None:
        await self._ask(Request(Verb.START, spec=self._programs.kubelet(cluster)))
        await install.install(self._directory, cluster)
        await install.nodes_registered(self._directory, cluster)

    async def _clustermesh(self, cluster: Cluster) -> None:
        agents = [
            self._start(self._programs.agent(cluster, node), f"http://{node.address}:{AGENT_PORT}/readyz", None)
            for node in cluster.nodes
        ]
        servers = [
            self._start(
                self._programs.api_server(cluster, node), f"http://{node.address}:{API_SERVER_PORT}/readyz", None
            )
            for node in cluster.nodes[: self._api_servers]
        ]
        await asyncio.gather(*servers, *agents)

    async def _start(self, spec: Spec, url: str, tls: ssl.SSLContext | None) -> None:
        await self._ask(Request(Verb.START, spec=spec))

        def broken() -> str:
            for status in supervisor.ask(self._directory.path, Request(Verb.STATUS)):
                if status.name == spec.name and status.restarts >= _DEATHS and status.state is not State.STOPPED:
                    return f"ended {status.restarts} times, the last time with {status.last_exit}"
            return ""

        await readiness.answers(url, tls, name=spec.name, log=Path(spec.log), broken=broken)

    async def _ask(self, request: Request) -> None:
        await asyncio.to_thread(supervisor.ask, self._directory.path, request)

    def _tls(self, cluster: Cluster, user: str) -> ssl.SSLContext:
        authority = credentials.pair(self._directory, cluster, credentials.AUTHORITY)
        client = credentials.pair(self._directory, cluster, user)
        context = ssl.create_default_context(cafile=authority.cert)
        context.load_cert_chain(client.cert, client.key)
        return context


def _claim(name: str, clusters: tuple[str, ...], nodes: int, api_servers: int) -> Record | None:
    """Take the name and a slot; None when the very same testbed is up."""
    remedy = f"end it with 'clustermesh testbed down --name {name}' first, or give another --name"
    directory = StateDirectory(name)
    with _lock():
        present = directory.load()
        if present is not None:
            if not supervisor.running(directory.path):
                raise TestbedError(f"testbed {name!r} is there but does not run: {remedy}")
            if (present.clusters, present.nodes, present.api_servers) != (clusters, nodes, api_servers):
                raise TestbedError(
                    f"testbed {name!r} is up with clusters {','.join(present.clusters)}, "
                    f"{present.nodes} nodes and {present.api_servers} API servers each: {remedy}"
                )
            if not present.ready:
                raise TestbedError(f"testbed {name!r} is being started: {remedy}")
            return None
        if namespaces.named(topology.namespace_prefix(name)):
            raise TestbedError(f"network namespaces of a former testbed {name!r} are left: {remedy}")
        taken = [record.slot for other in all_directories() if (record := other.load()) is not None]
        slot = topology.free_slot(taken, _host_routes())
        record = Record(name, slot, clusters, nodes, api_servers=api_servers)
        directory.path.mkdir(parents=True, exist_ok=True)
        directory.save(record)
        return record


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One testbed at a time chooses its slot."""
    STATE_ROOT.mkdir(parents=True, exist_ok=True)
    with (STATE_ROOT / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _host_routes() -> list[str]:
    routes = json.loads(namespaces.run(None, ["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]")
    return [route["dst"] for route in routes if route.get("dst") not in (None, "default") and route["dst"][0].isdigit()]
