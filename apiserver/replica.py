"""One replica of the API server: what each does all the time, and what only the one that leads does."""

import asyncio
import logging
import os
import socket
from dataclasses import dataclass

from apiserver.cluster import ClusterIdentity
from apiserver.exporter import Exporter
from apiserver.exposure import ExposureCheck
from apiserver.health import Health
from apiserver.leadership import FENCE, Election, Timing, incarnation
from apiserver.metrics import Metrics
from apiserver.peers import PeerManager
from apiserver.revocation import Cutter
from apiserver.server import ListenAddress, Server
from apiserver.users import EtcdUsers
from clustermesh.kube.client import KubeClient
from clustermesh.kube.config import ClusterAccess
from clustermesh.kvstore.connection import Connection, TlsFiles
from clustermesh.kvstore.errors import KvError
from clustermesh.kvstore.fence import FencedConnection
from clustermesh.kvstore.lease import Lease
from clustermesh.tasks import end
from clustermesh.wire.label_filter import LabelFilter

log = logging.getLogger(__name__)

# The lease has a number of its own, so that a restarted process, or another replica, finds its keys instead of writing
# them again.
_LEASE_ID_BASE = 0x636D_0000_0000
_SUSTAIN_EVERY = 8.0  # seconds; the shortest lease lives for 25


@dataclass(frozen=True, slots=True)
class Options:
    """The checked command line."""

    cluster: ClusterIdentity
    access: ClusterAccess
    etcd_endpoints: tuple[str, ...]
    etcd_tls: TlsFiles | None
    listen: ListenAddress
    lease_ttl: int  # seconds
    heartbeat: float  # seconds
    identity_grace: float  # seconds
    relevant_labels: LabelFilter
    default_global: bool  # whether peers may know of a namespace that does not say
    endpoint_slices: bool  # whether they are exported beside the services
    identity: str  # of this replica among others
    election: Timing | None  # None: there are no others

    @property
    def lease_id(self) -> int:
        return _LEASE_ID_BASE + self.cluster.id


def default_identity(listen: ListenAddress) -> str:
    """The pod's name, or else the host's and the address that only one process there can listen on."""
    return os.environ.get("POD_NAME") or f"{socket.gethostname()}_{listen}"


class Replica:
    """Runs until it is cancelled, or fails: LeadershipLost ends a process like any other failure."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._health = Health()
        self._metrics = Metrics()

    async def run(self) -> None:
        options = self._options
        server = Server(options.listen, self._health, self._metrics.registry)
        async with (
            KubeClient(options.access) as client,
            Connection(options.etcd_endpoints, options.etcd_tls) as connection,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(server.run())
            # The address is taken before anything else: our identity may rest on it.
            await server.listening.wait()
            registry = self._metrics.registry
            tasks.create_task(Cutter(connection, options.etcd_endpoints, registry).run())
            tasks.create_task(ExposureCheck(options.etcd_endpoints, options.etcd_tls, self._health, registry).run())
            if options.election is None:
                await self._lead(client, connection)
            else:
                await self._take_part(client, connection, options.election)

    async def _take_part(self, client: KubeClient, connection: Connection, timing: Timing) -> None:
        options, holder = self._options, incarnation(self._options.identity)
        async with FencedConnection(options.etcd_endpoints, options.etcd_tls, fence=FENCE, token=holder) as fenced:
            election = Election(
                client, fenced, identity=options.identity, holder=holder, timing=timing, health=self._health
            )
            async with asyncio.TaskGroup() as standby:
                sustaining = standby.create_task(self._sustain(connection))
                await election.win()
                await end(sustaining)
            try:
                async with asyncio.TaskGroup() as leading:
                    leading.create_task(election.hold())
                    leading.create_task(self._lead(client, fenced))
            finally:
                await election.release()

    async def _sustain(self, connection: Connection) -> None:
        """What the replicas wrote lives on while any of them does, also if Kubernetes lets none of them lead."""
        lease = Lease(connection, self._options.lease_ttl, self._options.lease_id)
        failed = ""
        while True:
            try:
                await lease.sustain()
                failed = ""
            except KvError as error:
                if str(error) != failed:
                    log.warning("etcd: %s", error)
                failed = str(error)
            self._health.set("etcd", not failed, failed)
            await asyncio.sleep(_SUSTAIN_EVERY if not failed else 1.0)

    async def _lead(self, client: KubeClient, connection: Connection) -> None:
        """Everything that writes."""
        options, health, metrics = self._options, self._health, self._metrics
        users = EtcdUsers(connection, options.cluster.name, health)
        # Without a lease nothing is written, so access control is in place before the first record is.
        lease = Lease(connection, options.lease_ttl, options.lease_id, prepare=users.ensure)
        exporter = Exporter(
            cluster=options.cluster,
            client=client,
            connection=connection,
            lease=lease,
            health=health,
            metrics=metrics,
            heartbeat=options.heartbeat,
            grace=options.identity_grace,
            relevant=options.relevant_labels,
            default_global=options.default_global,
            slices=options.endpoint_slices,
        )
        peers = PeerManager(
            cluster=options.cluster, client=client, connection=connection, lease=lease, users=users, health=health
        )
        metrics.watch_peers(peers.figures)
        metrics.leading.set(1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lease.run())
            tasks.create_task(exporter.run())
            tasks.create_task(peers.run())
