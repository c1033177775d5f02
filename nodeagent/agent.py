"""The agent: its parts, how they hang together, and in which order they start.

    feeds → mesh (tables, compilers) → reconciler → kernel maps
                  └→ endpoints (pods' devices), routes, probes → report

Whatever an earlier agent left in the kernel stays in force until the part that it came from has been read again; and
when this agent ends, it leaves everything in place.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from pyroute2 import AsyncIPRoute

from clustermesh.kvstore.connection import Connection, TlsFiles
from clustermesh.wire.identity import Numbering
from clustermesh.wire.records import Node
from nodeagent.datapath.abi import Config, Map
from nodeagent.datapath.attach import Attachment
from nodeagent.datapath.datapath import Datapath, Options
from nodeagent.devices import OVERHEAD, TUNNEL_PORT, Routes, Tunnel, ensure_tunnel, underlay_mtu
from nodeagent.endpoints import Endpoints
from nodeagent.feeds import Feeds
from nodeagent.mesh import Mesh
from nodeagent.place import Place
from nodeagent.probes import Prober
from nodeagent.reconciler import Reconciler
from nodeagent.report import Identity, Reporter
from nodeagent.server import AgentMetrics, Server, listen

log = logging.getLogger(__name__)

_FILL_SECONDS = 30.0  # how long programs of another ABI wait for their maps to be filled before they take over


@dataclass(frozen=True, slots=True)
class Settings:
    """What an agent is told at its start."""

    place: Place
    etcd_endpoints: tuple[str, ...]
    etcd_tls: TlsFiles
    pin_dir: Path
    listen: tuple[str, int]
    numbering: Numbering = field(default_factory=Numbering)
    tunnel_port: int = TUNNEL_PORT
    attachment: Attachment = Attachment.AUTO
    max_entries: Mapping[str, int] | None = None


class Agent:
    """One node's agent. `run` raises DatapathError or DeviceError when the node cannot be served at all."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def run(self) -> None:
        """Serve the node until cancelled."""
        settings = self._settings
        options = Options(attachment=settings.attachment, max_entries=settings.max_entries or {})
        # The port first: an agent that cannot have it leaves the kernel as it was.
        with listen(*settings.listen) as listener, Datapath(settings.pin_dir, options) as datapath:
            async with AsyncIPRoute() as netlink:
                tunnel = await ensure_tunnel(netlink, settings.tunnel_port)
                async with Connection(settings.etcd_endpoints, settings.etcd_tls) as connection:
                    await _Node(settings, datapath, tunnel, netlink, connection, listener).run()


class _Node:
    """The parts of a running agent."""

    def __init__(
        self,
        settings: Settings,
        datapath: Datapath,
        tunnel: Tunnel,
        netlink: AsyncIPRoute,
        connection: Connection,
        listener: socket.socket,
    ) -> None:
        self._listener = listener
        self._settings = settings
        self._datapath = datapath
        self._tunnel = tunnel
        self._netlink = netlink
        self._connection = connection
        self._mtu = 0
        self._own_node = asyncio.Event()
        self._changed = asyncio.Event()

        self._reconciler = Reconciler({name: datapath.maps[name] for name in Map if name in datapath.maps})
        self._mesh = Mesh(settings.place, self._reconciler)
        self._endpoints = Endpoints(datapath, self._reconciler)
        self._routes = Routes()
        self._prober = Prober(datapath.maps[Map.PROBES])
        self._reporter = Reporter(
            Identity(settings.place.node, version("clustermesh"), time.time(), str(datapath.attachment)),
            self._mesh,
            self._reconciler,
            self._endpoints,
            self._prober,
            lambda: self._mtu,
        )
        self._mesh.on_pods = self._endpoints.change
        self._mesh.on_routes = self._routes.change
        self._mesh.on_own_node = lambda _: self._own_node.set()
        self._mesh.on_change = self._changed.set

    async def run(self) -> None:
        self._mesh.adopt(self._reconciler.adopt())
        metrics = AgentMetrics(self._mesh, self._reconciler, self._reporter, self._datapath)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reconciler.run(), name="reconciler")
            tasks.create_task(Feeds(self._connection, self._mesh).run(), name="feeds")
            tasks.create_task(self._configure(), name="configure")
            tasks.create_task(self._attach(tasks), name="attach")
            tasks.create_task(self._complete(), name="complete")
            tasks.create_task(self._routes.run(self._tunnel), name="routes")
            tasks.create_task(self._prober.run(), name="probes")
            tasks.create_task(self._reporter.run(self._connection), name="report")
            tasks.create_task(Server(self._listener, self._reporter, metrics).run(), name="server")

    async def _configure(self) -> None:
        """Tell programs, routes and probes about this node, whenever its record changes."""
        while True:
            await self._own_node.wait()
            self._own_node.clear()
            node = self._mesh.own_node
            if node is not None:
                await self._configure_for(node)

    async def _configure_for(self, node: Node) -> None:
        address = node.preferred_ip(4)
        if address is None:
            log.error("this node's record has no IPv4 address: the tunnel cannot be used")
            return
        self._mtu = await underlay_mtu(self._netlink, address)
        inner = self._mtu - OVERHEAD
        self._datapath.configure(
            Config(
                cluster_id=self._settings.place.cluster_id,
                tunnel_ifindex=self._tunnel.ifindex,
                tunnel_mtu=inner,
                node_ip=address,
                identity_shift=self._settings.numbering.shift,
            )
        )
        self._routes.configure(address, inner)
        self._prober.configure(address)
        log.info("this node is %s, inner packets up to %d bytes", address, inner)

    async def _attach(self, tasks: asyncio.TaskGroup) -> None:
        """Put the programs in place: at once, unless they would replace working ones while their maps are empty."""
        if self._datapath.renewed and self._datapath.attached_tunnels():
            log.info("maps of another shape are replaced: filling them before their programs take over")
            with suppress(TimeoutError):
                async with asyncio.timeout(_FILL_SECONDS):
                    await self._until(self._filled)
        self._datapath.attach_tunnel(self._tunnel.ifindex)
        tasks.create_task(self._endpoints.run(), name="endpoints")

    def _filled(self) -> bool:
        if not (self._mesh.peers_known and self._mesh.own_node):
            return False
        return all(self._mesh.complete(cluster) for cluster in self._mesh.clusters.values())

    async def _complete(self) -> None:
        """Follow the tables: probe targets always; what is left over goes once all that should be is known."""
        pruned = False
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._prober.retarget(self._targets())
            if self._mesh.routes_complete():
                self._routes.complete()
            if not pruned and self._mesh.pods_complete():
                pruned = True
                self._endpoints.complete()
                await self._endpoints.settled.wait()
                self._reconciler.prune(Map.ENDPOINTS, None, self._endpoints.keys() | self._mesh.hosts.entries.keys())

    def _targets(self) -> Iterable[str]:
        return (probe for peer in self._mesh.peers() for probe in self._mesh.probes(peer))

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Return once `holds` says so; it is asked again after every round of the reconciler."""
        while not holds():
            await self._reconciler.wait(self._reconciler.flushed + 1)
