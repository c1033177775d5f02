"""A whole cluster but for nodes and exporter: etcd, stand-in Kubernetes API, the peers' side of the API server.

Agents are played: each reports what it finds in its cluster's etcd, as if that were in its kernel maps.
"""

import asyncio
import time
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

from apiserver.cluster import ClusterIdentity
from apiserver.health import Health
from apiserver.peers import PeerManager
from apiserver.users import EtcdUsers
from clustermesh.kube import config
from clustermesh.kube.client import KubeClient
from clustermesh.kube.objects import CONFIG_MAPS, SECRETS, SYSTEM_NAMESPACE, ConfigMap, ObjectMeta, Secret
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.feed import Feed
from clustermesh.kvstore.lease import Lease
from clustermesh.wire import keys, labels, private, records
from clustermesh.wire.keys import DATAPATH_KINDS
from clustermesh.wire.private import AgentReport, PeerReport, ProbeReport
from clustermesh.wire.records import Capabilities, Cidr, ClusterConfig, Node, NodeAddress
from tests.integration.etcd_process import EtcdProcess
from tests.integration.kubernetes.cluster import Cluster

CRDS = Path("deploy/crds")
LEASE_ID = 0x7EF


class MeshCluster:
    """`run` plays the cluster until cancelled; `agents_work` switches the agents' diligence off."""

    def __init__(self, name: str, cluster_id: int, etcd: EtcdProcess, directory: Path) -> None:
        self.name = name
        self.id = cluster_id
        self.etcd = etcd
        self.kubernetes = Cluster(etcd, directory)
        self.agents_work = True
        self.silent: set[str] = set()  # peers that answer no probes
        self.node = f"{name}-1"
        self.pod_cidr = f"10.{cluster_id}.1.0/24"

    @property
    def identity(self) -> ClusterIdentity:
        return ClusterIdentity(self.name, self.id)

    def client(self) -> KubeClient:
        return KubeClient(config.load(self.kubernetes.kubeconfig))

    async def install(self) -> None:
        """What a Helm chart would bring, and a node."""
        await self.kubernetes.start()
        for crd in sorted(CRDS.glob("*.yaml")):
            await self.kubernetes.kubectl("apply", "-f", str(crd))
        await self.kubernetes.kubectl("create", "namespace", SYSTEM_NAMESPACE)
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.node},
            "spec": {"podCIDRs": [self.pod_cidr]},
            "status": {"addresses": [{"type": "InternalIP", "address": f"192.0.2.{self.id}"}]},
        }
        answer = await self.kubernetes.post("/api/v1/nodes", node)
        assert answer.status == 201, answer.body
        async with self.client() as client:
            data = {
                "cluster-name": self.name,
                "cluster-id": str(self.id),
                "max-connected-clusters": "255",
                "endpoints": self.etcd.endpoint,
            }
            meta = ObjectMeta(name="clustermesh-config", namespace=SYSTEM_NAMESPACE)
            await client.create(CONFIG_MAPS, ConfigMap(metadata=meta, data=data))
            meta = ObjectMeta(name="clustermesh-ca", namespace=SYSTEM_NAMESPACE)
            secret = {"ca.crt": self.etcd.ca.cert, "ca.key": self.etcd.ca.key}
            await client.create(SECRETS, Secret(metadata=meta, data=secret))

    async def run(self) -> None:
        own = self.etcd.connection(f"admin-{self.name}")
        users = EtcdUsers(own, self.name)
        lease = Lease(own, 60, LEASE_ID, prepare=users.ensure)
        async with self.client() as client, asyncio.TaskGroup() as group:
            manager = PeerManager(
                cluster=self.identity, client=client, connection=own, lease=lease, users=users, health=Health(), grace=5
            )
            group.create_task(lease.run())
            group.create_task(manager.run())
            await self._export(own)
            group.create_task(self._play_agent(own))

    async def close(self) -> None:
        await self.kubernetes.stop()

    async def _export(self, kv: Connection) -> None:
        await kv.put(keys.HEARTBEAT, b"now")
        capabilities = Capabilities(synced_canaries=True, max_connected_clusters=255)
        await kv.put(keys.cluster_config(self.name), records.encode(ClusterConfig(self.id, capabilities)))
        node = Node(
            name=self.node,
            cluster=self.name,
            cluster_id=self.id,
            ip_addresses=(NodeAddress("InternalIP", f"192.0.2.{self.id}"),),
            ipv4_alloc_cidr=Cidr.of(ip_network(self.pod_cidr)),
        )
        await kv.put(keys.node(self.name, self.node), records.encode(node))
        number = self.id << 16 | 1
        await kv.put(keys.identity(number), records.encode_identity({labels.CLUSTER: self.name}))
        for kind in DATAPATH_KINDS:
            await kv.put(keys.state_canary(kind, self.name), b"now")

    async def _play_agent(self, kv: Connection) -> None:
        held: set[str] = set()
        await self._report(kv, held)
        async for batch in Feed(kv, "cilium/").batches():
            for event in batch.events:
                (held.discard if event.value is None else held.add)(event.key.decode())
            await self._report(kv, held)

    async def _report(self, kv: Connection, held: set[str]) -> None:
        prefix = keys.CLUSTER_CONFIGS
        peers = {key.removeprefix(prefix) for key in held if key.startswith(prefix)} - {self.name}
        reports = {peer: self._peer_report(peer, held) for peer in peers} if self.agents_work else {}
        report = AgentReport(
            node=self.node,
            version="0",
            started=0.0,
            updated=time.time(),
            ready=True,
            mtu=1500,
            attach="tcx",
            peers=reports,
        )
        await kv.put(keys.agent(self.node), private.encode(report))

    def _peer_report(self, peer: str, held: set[str]) -> PeerReport:
        prefixes = {kind: keys.cache_prefix(kind, peer) for kind in DATAPATH_KINDS}
        counts = {kind.value: sum(key.startswith(prefix) for key in held) for kind, prefix in prefixes.items()}
        synced = tuple(kind.value for kind in DATAPATH_KINDS if keys.cache_canary(kind, peer) in held)
        return PeerReport(
            ready=len(synced) == len(DATAPATH_KINDS),
            reason="waiting for canaries",
            synced=synced,
            records=counts,
            probe=ProbeReport() if peer in self.silent else ProbeReport(1, 1, 42),
        )


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
