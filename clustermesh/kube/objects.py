"""Kubernetes objects as far as this project reads or writes them.

Core objects are partial: fields that nobody here needs are not decoded, so never send a decoded core object back with
`replace`. ConfigMap, Secret and our own kinds are complete. Lists that Kubernetes may write as null are `… | None`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec


class ObjectMeta(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: Mapping[str, str] | None = None
    annotations: Mapping[str, str] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    finalizers: tuple[str, ...] | None = None
    owner_references: tuple[Any, ...] | None = None


class ObjectRef(NamedTuple):
    """An object that is gone. `namespace` is "" for kinds of the whole cluster."""

    namespace: str
    name: str
    uid: str


class KubeObject(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef(self.metadata.namespace, self.metadata.name, self.metadata.uid)


T = TypeVar("T", bound=KubeObject)


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """A kind and where the API serves it. `group` is "" for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    type: type[T]

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path; without namespace the collection spans all namespaces."""
        parts = ["/apis" if self.group else "/api", self.api_version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


# core/v1


class NodeAddress(msgspec.Struct, frozen=True, gc=False):
    type: str
    address: str


class NodeSpec(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    pod_cidr: str = msgspec.field(name="podCIDR", default="")
    pod_cidrs: tuple[str, ...] | None = msgspec.field(name="podCIDRs", default=None)


class NodeInfo(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    boot_id: str = msgspec.field(name="bootID", default="")


class NodeStatus(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    addresses: tuple[NodeAddress, ...] | None = None
    node_info: NodeInfo = NodeInfo()


class Node(KubeObject, frozen=True, gc=False, rename="camel", omit_defaults=True):
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class PodSpec(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    node_name: str = ""
    service_account_name: str = ""
    host_network: bool = False


class PodIP(msgspec.Struct, frozen=True, gc=False):
    ip: str = ""


class PodStatus(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    pod_ips: tuple[PodIP, ...] | None = msgspec.field(name="podIPs", default=None)
    host_ip: str = msgspec.field(name="hostIP", default="")


class Pod(KubeObject, frozen=True, gc=False, rename="camel", omit_defaults=True):
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class Namespace(KubeObject, frozen=True, gc=False, rename="camel", omit_defaults=True):
    pass


class ServicePort(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    name: str = ""
    protocol: str = "TCP"
    port: int = 0
    app_protocol: str | None = None


class ClientIP(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    timeout_seconds: int | None = None


class SessionAffinity(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    client_ip: ClientIP | None = msgspec.field(name="clientIP", default=None)


class ServiceSpec(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(name="clusterIP", default="")
    cluster_ips: tuple[str, ...] | None = msgspec.field(name="clusterIPs", default=None)
    ports: tuple[ServicePort, ...] | None = None
    selector: Mapping[str, str] | None = None
    session_affinity: str = msgspec.field(name="sessionAffinity", default="")
    session_affinity_config: SessionAffinity | None = msgspec.field(name="sessionAffinityConfig", default=None)
    ip_families: tuple[str, ...] | None = msgspec.field(name="ipFamilies", default=None)
    internal_traffic_policy: str | None = msgspec.field(name="internalTrafficPolicy", default=None)
    traffic_distribution: str | None = msgspec.field(name="trafficDistribution", default=None)


class Service(KubeObject, frozen=True, gc=False, rename="camel", omit_defaults=True):
    spec: ServiceSpec = ServiceSpec()


class ConfigMap(KubeObject, frozen=True, gc=False, rename="camel", omit_defaults=True):
    data: Mapping[str, str] = {}
    binary_data: Mapping[str, str] = {}
    immutable: bool = False


class Secret(KubeObject, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """`data` holds the decoded bytes: base64 is the wire's affair."""

    data: Mapping[str, bytes] = {}
    type: str = "Opaque"
    immutable: bool = False


# discovery.k8s.io/v1


class EndpointConditions(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """None: not known. `ready` and `serving` then count as true, `terminating` as false."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class ForZone(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    name: str = ""


class EndpointHints(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    for_zones: tuple[ForZone, ...] | None = None


class Endpoint(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    addresses: tuple[str, ...] | None = None
    conditions: EndpointConditions | None = None
    hostname: str | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: EndpointHints | None = None
    deprecated_topology: Mapping[str, str] | None = None  # of slices that were written as v1beta1


class EndpointPort(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class EndpointSlice(KubeObject, frozen=True, gc=False, rename="camel", omit_defaults=True):
    address_type: str = "IPv4"
    endpoints: tuple[Endpoint, ...] | None = None
    ports: tuple[EndpointPort, ...] | None = None


# multicluster.x-k8s.io, v1alpha1 and v1beta1 alike


class ServiceExportSpec(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Older definitions of the kind have none of these."""

    exported_labels: Mapping[str, str] | None = None
    exported_annotations: Mapping[str, str] | None = None


class ServiceExport(KubeObject, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Asks for the Service of the same name to be exported."""

    spec: ServiceExportSpec | None = None


# clustermesh.io/v1alpha1


class ClusterMeshIdentitySpec(msgspec.Struct, frozen=True, gc=False):
    labels: Mapping[str, str] = {}


class ClusterMeshIdentity(KubeObject, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """The name is the number in decimal; the labels are written `source:key`."""

    spec: ClusterMeshIdentitySpec = ClusterMeshIdentitySpec()


CILIUM = "cilium"


class PeerQuota(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    """The most that is taken of a peer."""

    records: int = 1_000_000
    bytes: int = 1 << 30
    changes_per_second: int = 20_000


class ClusterMeshPeerSpec(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    cluster_id: int = msgspec.field(name="clusterID", default=0)
    endpoints: tuple[str, ...] = ()
    ca_bundle: str = ""  # PEM, trusted for this peer alone
    client_certificate: str = ""  # PEM, signed by the peer for us; "" until it is there
    certificate_request: str = ""  # PEM, the peer's request that we shall sign; "" until it is there
    implementation: str = "clustermesh"  # or cilium: what runs there
    policy: str | msgspec.UnsetType = msgspec.UNSET  # strict or lenient; unset: strict, but lenient for cilium
    quota: PeerQuota = PeerQuota()

    @property
    def strict(self) -> bool:
        """Whether the peer is held to its own pod CIDRs and node addresses."""
        if self.policy is msgspec.UNSET:
            return self.implementation != CILIUM
        return self.policy != "lenient"


class PeerConnection(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    state: str = "pending"  # pending, connecting, connected or failed
    stage: str = ""  # what failed: dns, tcp, tls, …
    message: str = ""
    since: str = ""  # RFC 3339
    last_event: str = ""  # RFC 3339: the last proof of life of the peer's etcd


class PeerConfig(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    """What the peer says of itself in its cluster-config."""

    cluster_id: int = msgspec.field(name="clusterID", default=0)
    max_connected_clusters: int = 0
    synced_canaries: bool = False
    cached: bool = False


class PeerRecords(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    nodes: int = 0
    identities: int = 0
    addresses: int = 0
    services: int = 0
    serviceexports: int = 0
    endpointslices: int = 0


class PeerQuarantine(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    """Records that were kept out."""

    total: int = 0
    by_reason: Mapping[str, int] = {}
    examples: tuple[str, ...] = ()


class PeerUsage(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    """What of its quota a peer uses. Throttled: it changes faster than it may, and is read more slowly."""

    records: int = 0
    bytes: int = 0
    throttled: bool = False


class WaitingAgent(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    node: str
    reason: str = ""


class PeerAgents(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    ready: int = 0
    total: int = 0
    waiting: tuple[WaitingAgent, ...] = ()


class PeerProbe(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    reachable: int = 0
    total: int = 0
    rtt_micros: int = 0


class Condition(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    type: str
    status: str  # True, False or Unknown
    reason: str = ""
    message: str = ""
    last_transition_time: str = ""


class ClusterMeshPeerStatus(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    observed_generation: int = 0
    certificate_request: str = ""  # PEM, our request that the peer shall sign
    issued_certificate: str = ""  # PEM, what we signed for the peer
    connection: PeerConnection = PeerConnection()
    config: PeerConfig | None = None
    records: PeerRecords = PeerRecords()
    quarantined: PeerQuarantine = PeerQuarantine()
    policy: str = ""  # in force: strict or lenient; "" until records are judged
    usage: PeerUsage = PeerUsage()
    agents: PeerAgents = PeerAgents()
    probe: PeerProbe = PeerProbe()
    conditions: tuple[Condition, ...] = ()


class ClusterMeshPeer(KubeObject, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """A cluster to be connected with; the name is the peer's cluster name."""

    spec: ClusterMeshPeerSpec = ClusterMeshPeerSpec()
    status: ClusterMeshPeerStatus = ClusterMeshPeerStatus()


SYSTEM_NAMESPACE = "clustermesh-system"
GROUP = "clustermesh.io"
# In the Secret of a peer: a key that a Cilium cluster made for all its peers. It stands beside the API server's own.
HANDED_KEY = "handed.key"


def peer_secret(peer: str) -> str:
    """The Secret with what this cluster shows to a peer."""
    return f"clustermesh-peer-{peer}"


NODES = Resource("", "v1", "nodes", "Node", False, Node)
PODS = Resource("", "v1", "pods", "Pod", True, Pod)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", False, Namespace)
SERVICES = Resource("", "v1", "services", "Service", True, Service)
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap", True, ConfigMap)
SECRETS = Resource("", "v1", "secrets", "Secret", True, Secret)
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", True, EndpointSlice)
SERVICE_EXPORTS = Resource("multicluster.x-k8s.io", "v1beta1", "serviceexports", "ServiceExport", True, ServiceExport)
SERVICE_EXPORTS_ALPHA = replace(SERVICE_EXPORTS, version="v1alpha1")
CLUSTER_MESH_PEERS = Resource(GROUP, "v1alpha1", "clustermeshpeers", "ClusterMeshPeer", False, ClusterMeshPeer)
CLUSTER_MESH_IDENTITIES = Resource(
    GROUP, "v1alpha1", "clustermeshidentities", "ClusterMeshIdentity", False, ClusterMeshIdentity
)
