"""Clusters as the commands read them."""

from clustermesh.cli.mesh import AgentPeerView, AgentsView, AgentView, ClusterView, NodeView
from clustermesh.kube.objects import (
    ClusterMeshPeer,
    ClusterMeshPeerSpec,
    ClusterMeshPeerStatus,
    Condition,
    ObjectMeta,
    PeerConnection,
)
from clustermesh.pki import CertificateAuthority

NOW = 1_790_000_000.0
CA = CertificateAuthority.create("any").cert.decode()
CONDITIONS = ("Trusted", "Connected", "Synced", "Applied", "Ready")


def cluster(name: str, number: int, *, mtu: int = 1500, peers: tuple[ClusterMeshPeer, ...] = ()) -> ClusterView:
    node = f"{name}-1"
    mentioned = {peer.name: AgentPeerView(True, {"nodes": 1}) for peer in peers}
    return ClusterView(
        context=name,
        name=name,
        cluster_id=number,
        endpoints=(f"https://192.0.2.{number}:2379",),
        nodes=(NodeView(node, (f"10.{number}.1.0/24",), (f"192.0.2.{number}",)),),
        agents=AgentsView({node: AgentView(True, "1", mtu, "tcx", mentioned)}, CA, NOW),
        peers={peer.name: peer for peer in peers},
        now=NOW,
    )


def peer(of: ClusterView, *, generation: int = 1, missing: str = "", failed: str = "") -> ClusterMeshPeer:
    """A ClusterMeshPeer for a cluster, ready unless a condition is `missing` or the connection `failed`."""
    return ClusterMeshPeer(
        metadata=ObjectMeta(name=of.name, generation=generation),
        spec=ClusterMeshPeerSpec(cluster_id=of.cluster_id, endpoints=of.endpoints, ca_bundle=of.agents.ca),
        status=ClusterMeshPeerStatus(
            observed_generation=1,
            connection=PeerConnection(
                state="failed" if failed else "connected", stage=failed, last_event="2026-09-21T14:13:10Z"
            ),
            conditions=tuple(
                Condition(type=kind, status="False" if kind == missing else "True", message=f"about {kind}")
                for kind in CONDITIONS
            ),
        ),
    )
