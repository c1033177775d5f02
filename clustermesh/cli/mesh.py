"""A cluster as the commands see it through its Kubernetes API: who it is, its nodes, its agents, its peers.

It runs clustermesh, or Cilium instead.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import datetime
from pathlib import Path

import msgspec

from clustermesh.cilium import installation as cilium
from clustermesh.cilium.installation import CiliumError, Installation
from clustermesh.cilium.objects import NAMESPACE as CILIUM_NAMESPACE
from clustermesh.kube import config
from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import ConfigError, CredentialError, KubeError, NotFound
from clustermesh.kube.objects import (
    CILIUM,
    CLUSTER_MESH_PEERS,
    CONFIG_MAPS,
    NODES,
    SYSTEM_NAMESPACE,
    ClusterMeshPeer,
    ConfigMap,
    Node,
)
from clustermesh.kube.reflector import Reflector
from clustermesh.output import Failure
from clustermesh.wire.identity import Numbering
from clustermesh.wire.names import check_cluster_name

CONFIG = "clustermesh-config"
AGENTS = "clustermesh-agents"
# An API server that has given no sign of life for so many seconds does not run.
ALIVE = 60.0
LIST_TIMEOUT = 30.0


class AgentPeerView(msgspec.Struct, frozen=True):
    ready: bool = False
    records: Mapping[str, int] = {}


class AgentView(msgspec.Struct, frozen=True):
    """What ConfigMap clustermesh-agents says of one node's agent."""

    ready: bool = False
    version: str = ""
    mtu: int = 0
    attach: str = ""
    peers: Mapping[str, AgentPeerView] = {}
    undecodable: tuple[str, ...] = ()  # keys of the own etcd that it cannot read


class AgentsView(msgspec.Struct, frozen=True):
    """ConfigMap clustermesh-agents, which the API server keeps up: `updated` is its sign of life, in Unix seconds.

    `peers` are those that the API server has not cleaned up behind yet; `version` changes with every write.
    """

    agents: Mapping[str, AgentView] = {}
    ca: str = ""
    updated: float = 0.0
    peers: frozenset[str] = frozenset()
    version: str = ""

    def alive(self, now: float) -> bool:
        """`now` by the clock of the cluster, which may differ from ours."""
        return now - self.updated < ALIVE

    def mention(self, peer: str) -> list[str]:
        """The nodes whose agents still know of a peer."""
        return sorted(node for node, agent in self.agents.items() if peer in agent.peers)


class NodeView(msgspec.Struct, frozen=True):
    name: str
    pod_cidrs: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


class ClusterView(msgspec.Struct, frozen=True):
    """Everything that is read of a cluster before anything is changed."""

    context: str
    name: str
    cluster_id: int
    max_clusters: int = 255
    endpoints: tuple[str, ...] = ()
    nodes: tuple[NodeView, ...] = ()
    agents: AgentsView = AgentsView()
    peers: Mapping[str, ClusterMeshPeer] = {}
    now: float = 0.0  # Unix time by the cluster's own clock, when all this was read
    cilium: Installation | None = None  # what runs there instead of clustermesh

    @property
    def implementation(self) -> str:
        return "clustermesh" if self.cilium is None else CILIUM

    @property
    def authority(self) -> str:
        """PEM of what its peers have to trust."""
        return self.agents.ca if self.cilium is None else self.cilium.ca


class NotInstalled(Failure):
    """Neither clustermesh nor, where that would do, Cilium."""


class ClusterConfigError(ValueError):
    """ConfigMap clustermesh-config is not what it must be; the text names the entry and the remedy."""


def parse_config(data: Mapping[str, str]) -> tuple[str, int, int, tuple[str, ...]]:
    """Name, id, size of the mesh and etcd endpoints out of ConfigMap clustermesh-config; ClusterConfigError."""
    where = f"ConfigMap {SYSTEM_NAMESPACE}/{CONFIG}"
    try:
        name = data.get("cluster-name", "")
        check_cluster_name(name)
        numbering = Numbering(_number(data, "max-connected-clusters", "255"))
        cluster_id = _number(data, "cluster-id", "")
        numbering.check_cluster_id(cluster_id)
    except ValueError as error:
        raise ClusterConfigError(f"{where}: {error}") from None
    endpoints = tuple(part.strip() for part in data.get("endpoints", "").split(",") if part.strip())
    if not endpoints:
        raise ClusterConfigError(f"{where}: endpoints is empty: list the https://host:port at which peers reach etcd")
    for endpoint in endpoints:
        if not endpoint.startswith("https://"):
            raise ClusterConfigError(f"{where}: endpoint {endpoint!r} is not https://host:port")
    return name, cluster_id, numbering.max_clusters, endpoints


def _number(data: Mapping[str, str], entry: str, default: str) -> int:
    text = data.get(entry, default)
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ValueError(f"{entry} is {text!r}, not a number")
    return int(text)


def parse_agents(config_map: ConfigMap | None) -> AgentsView:
    """What an API server wrote of its agents; nothing when it wrote nothing that can be read."""
    if config_map is None:
        return AgentsView()
    try:
        agents = msgspec.json.decode(config_map.data.get("agents.json", "{}"), type=dict[str, AgentView])
        updated = datetime.fromisoformat(config_map.data.get("updated", "")).timestamp()
    except (msgspec.MsgspecError, ValueError):
        return AgentsView()
    peers = frozenset(filter(None, config_map.data.get("peers", "").split(",")))
    return AgentsView(agents, config_map.data.get("ca.crt", ""), updated, peers, config_map.metadata.resource_version)


def view_node(node: Node) -> NodeView:
    cidrs = node.spec.pod_cidrs or ((node.spec.pod_cidr,) if node.spec.pod_cidr else ())
    addresses = (a.address for a in node.status.addresses or () if a.type in ("InternalIP", "ExternalIP"))
    return NodeView(node.name, tuple(cidrs), tuple(addresses))


class Cluster:
    """A cluster and the way to it."""

    def __init__(self, context: str, client: KubeClient) -> None:
        self.context = context
        self.client = client

    async def agents(self) -> AgentsView:
        try:
            return parse_agents(await self.client.get(CONFIG_MAPS, AGENTS, SYSTEM_NAMESPACE))
        except NotFound:
            return AgentsView()

    async def peers(self) -> dict[str, ClusterMeshPeer]:
        return {peer.name: peer for peer in await self.client.list(CLUSTER_MESH_PEERS)}

    async def identity(self) -> tuple[str, int, int, tuple[str, ...]]:
        """As `parse_config`; NotInstalled or another Failure when that cannot be said."""
        try:
            config_map = await self.client.get(CONFIG_MAPS, CONFIG, SYSTEM_NAMESPACE)
        except NotFound:
            raise NotInstalled(
                f"context {self.context}: clustermesh is not installed there (ConfigMap {SYSTEM_NAMESPACE}/{CONFIG} "
                "is missing): install it first"
            ) from None
        try:
            return parse_config(config_map.data)
        except ClusterConfigError as error:
            raise Failure(f"context {self.context}: {error}") from None

    async def installation(self, namespace: str = CILIUM_NAMESPACE) -> Installation | None:
        """The Cilium that runs there, None without one; Failure when it cannot be read or is not made for a mesh."""
        try:
            return await cilium.read(self.client, namespace)
        except* (CiliumError, KubeError, CredentialError) as errors:
            raise Failure(f"context {self.context}: {_first(errors)}") from None

    async def view(self, cilium_namespace: str = CILIUM_NAMESPACE) -> ClusterView:
        """Read everything; Failure names the context and what is wrong."""
        try:
            return await self._own_view()
        except NotInstalled as missing:
            found = await self.installation(cilium_namespace)
            if found is None:
                raise not_recognised(missing, cilium_namespace) from None
        return ClusterView(
            context=self.context,
            name=found.name,
            cluster_id=found.cluster_id,
            max_clusters=found.max_clusters,
            endpoints=found.endpoints,
            nodes=tuple(NodeView(*node) for node in found.nodes),
            cilium=found,
        )

    async def _own_view(self) -> ClusterView:
        try:
            name, cluster_id, max_clusters, endpoints = await self.identity()
            async with asyncio.TaskGroup() as group:
                nodes = group.create_task(self.client.list(NODES))
                agents = group.create_task(self.agents())
                peers = group.create_task(self.peers())
        except* NotFound as errors:
            raise Failure(
                f"context {self.context}: the CustomResourceDefinitions of clustermesh are missing: install them first "
                f"({errors.exceptions[0]})"
            ) from None
        except* (KubeError, CredentialError) as errors:
            raise Failure(f"context {self.context}: {errors.exceptions[0]}") from None
        return ClusterView(
            context=self.context,
            name=name,
            cluster_id=cluster_id,
            max_clusters=max_clusters,
            endpoints=endpoints,
            nodes=tuple(view_node(node) for node in nodes.result()),
            agents=agents.result(),
            peers=peers.result(),
            now=self.client.now(),
        )


def not_recognised(missing: NotInstalled, cilium_namespace: str) -> Failure:
    """Cilium is not there either."""
    return Failure(f"{missing.message}; nor is Cilium in namespace {cilium_namespace} (--cilium-namespace)")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@asynccontextmanager
async def open_clusters(kubeconfig: Path | None, contexts: list[str | None]) -> AsyncIterator[list[Cluster]]:
    """Clients for contexts (None: the current one); Failure when the kubeconfig does not know one."""
    async with AsyncExitStack() as stack:
        clusters = []
        for context in contexts:
            try:
                access = config.load(kubeconfig, context)
            except ConfigError as error:
                raise Failure(str(error)) from None
            clusters.append(Cluster(access.context, await stack.enter_async_context(KubeClient(access))))
        yield clusters


class Watched:
    """The peers and agents of one cluster as they are now, kept up by `run`."""

    def __init__(self, cluster: Cluster, changed: Callable[[], None]) -> None:
        self.cluster = cluster
        self.peers: dict[str, ClusterMeshPeer] = {}
        self.agents = AgentsView()
        self.listed = False
        self._peers_listed = self._agents_listed = False
        self._changed = changed

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_peers())
            group.create_task(self._follow_agents())

    def take(self, peer: ClusterMeshPeer) -> None:
        """What a write of ours returned is newer than what was watched."""
        self.peers[peer.name] = peer

    async def _follow_peers(self) -> None:
        async with aclosing(Reflector(self.cluster.client, CLUSTER_MESH_PEERS).batches()) as batches:
            async for batch in batches:
                for ref in batch.deletes:
                    self.peers.pop(ref.name, None)
                for peer in batch.upserts:
                    self.peers[peer.name] = peer
                self._peers_listed |= batch.synced
                self._note()

    async def _follow_agents(self) -> None:
        async with aclosing(Reflector(self.cluster.client, CONFIG_MAPS, SYSTEM_NAMESPACE).batches()) as batches:
            async for batch in batches:
                for config_map in batch.upserts:
                    if config_map.name == AGENTS:
                        self.agents = parse_agents(config_map)
                self._agents_listed |= batch.synced
                self._note()

    def _note(self) -> None:
        self.listed = self._peers_listed and self._agents_listed
        self._changed()


@asynccontextmanager
async def watching(clusters: list[Cluster]) -> AsyncIterator[tuple[list[Watched], asyncio.Event]]:
    """Watch clusters for the length of the block; the event is set at every change."""
    changed = asyncio.Event()
    watched = [Watched(cluster, changed.set) for cluster in clusters]
    tasks = [asyncio.create_task(one.run()) for one in watched]
    try:
        try:
            async with asyncio.timeout(LIST_TIMEOUT):
                while not all(one.listed for one in watched):
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            silent = ", ".join(one.cluster.context for one in watched if not one.listed)
            raise Failure(f"context {silent}: the Kubernetes API stopped answering") from None
        yield watched, changed
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end
