"""Records below `clustermesh/`: what the API server and the agents of one cluster tell each other.

No peer may read them, so their form is ours alone. Both sides tolerate fields they do not know, since an agent and an
API server may be one version apart.
"""

from collections.abc import Mapping

import msgspec

from clustermesh.wire.records import PortMaps


class LocalService(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    """A Service of this cluster that its agents shall translate, whether or not peers may use its backends."""

    namespace: str
    name: str
    frontends: PortMaps = {}
    backends: PortMaps = {}
    is_global: bool = msgspec.field(name="global", default=True)
    shared: bool = True
    affinity: str = "none"


class ProbeReport(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """How many of a peer's nodes answered lately, and the median time of their answers in microseconds."""

    reachable: int = 0
    total: int = 0
    rtt_us: int = 0


class PeerReport(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    """What one agent has applied of one peer."""

    ready: bool
    reason: str = ""  # why it is not ready
    synced: tuple[str, ...] = ()  # kinds whose list is complete in the kernel's maps
    records: Mapping[str, int] = {}  # kind → records applied
    revision: int = 0  # of the own etcd: everything up to it is applied
    last_event: float = 0.0  # Unix time of the latest record
    probe: ProbeReport = ProbeReport()


class AgentReport(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    """`clustermesh/agents/v1/<node>`, under a short lease: it vanishes with its agent."""

    node: str
    version: str
    started: float  # Unix time
    updated: float  # Unix time
    ready: bool
    mtu: int = 0  # of the device that carries the tunnel
    attach: str = ""  # tcx or clsact
    endpoints: int = 0
    peers: Mapping[str, PeerReport] = {}
    undecodable: tuple[str, ...] = ()  # keys that were kept out, at most 20


class PeerSettings(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    """`clustermesh/peers/v1/<peer>`: what this cluster's ClusterMeshPeer says and the peer's cluster-config does not.

    Written before the peer's cluster-config. A peer that runs Cilium answers no path probes.
    """

    implementation: str = "clustermesh"  # or cilium
    strict: bool = True

    @property
    def answers_probes(self) -> bool:
        return self.implementation == "clustermesh"


class PeerList(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    """`clustermesh/peer-list/v1`: the peers that this cluster has, name → cluster id, reachable or not.

    A store that was lost is without it until the API server knows its peers again. So where it stands, a peer that is
    not in it is a peer no more, and one that is in it will have its cluster-config again.
    """

    peers: Mapping[str, int] = {}


PrivateRecord = LocalService | AgentReport | PeerSettings | PeerList

_encoder = msgspec.json.Encoder(order="deterministic")


def encode(record: PrivateRecord) -> bytes:
    return _encoder.encode(record)
