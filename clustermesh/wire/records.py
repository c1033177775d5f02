"""Values of the etcd key space, byte for byte as Cilium writes them.

Every record decodes with `decode`, which raises RecordError for anything malformed and ignores fields it does not
know, and encodes with `encode`. Field order is the order of the bytes on the wire.
"""

import ipaddress
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from clustermesh.wire import labels as _labels
from clustermesh.wire.errors import RecordError
from clustermesh.wire.keys import DATAPATH_KINDS, Kind
from clustermesh.wire.ranges import Network, Range, masked_range

SERVICES_AND_SLICES = "services-and-endpointslices"
SLICES_ONLY = "endpointslices-only"
CLUSTER_SET_IP = "ClusterSetIP"
HEADLESS = "Headless"

_GO_ZERO_TIME = datetime(1, 1, 1, tzinfo=UTC)

T = TypeVar("T")


class Capabilities(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    synced_canaries: bool = False
    cached: bool = False
    max_connected_clusters: int = 0
    # Absent: the writer does not know ServiceExports. False: it knows them, but they are switched off.
    service_exports_enabled: bool | msgspec.UnsetType = msgspec.UNSET
    # From Cilium 1.20 on: "" (services alone), "services-and-endpointslices" or "endpointslices-only".
    endpoint_slices_export_mode: str = ""


class ClusterConfig(msgspec.Struct, frozen=True, gc=False):
    """`cilium/cluster-config/<cluster>`: what a reader must know before it reads anything else."""

    id: int
    capabilities: Capabilities = Capabilities()

    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that this cluster exports, each with a canary; RecordError for a mode that nobody knows."""
        mode = self.capabilities.endpoint_slices_export_mode
        if mode not in ("", SERVICES_AND_SLICES, SLICES_ONLY):
            raise RecordError(f"endpointSlicesExportMode {mode!r} is unknown")
        absent = {Kind.SERVICE_EXPORTS} if self.capabilities.service_exports_enabled is msgspec.UNSET else set()
        if not mode:
            absent.add(Kind.ENDPOINT_SLICES)
        elif mode == SLICES_ONLY:
            absent.add(Kind.SERVICES)
        return tuple(kind for kind in Kind if kind not in absent)

    def datapath_kinds(self) -> tuple[Kind, ...]:
        """What a node reads to reach the cluster's pods and services. Slices count where there are no services."""
        if self.capabilities.endpoint_slices_export_mode == SLICES_ONLY:
            return tuple(Kind.ENDPOINT_SLICES if kind is Kind.SERVICES else kind for kind in DATAPATH_KINDS)
        return DATAPATH_KINDS


# A node is asked for its ranges by everyone who judges it, one after another.
@lru_cache(maxsize=64)
def _masked(ip: str, mask: str) -> Range:
    return masked_range(ip, b64decode(mask, validate=True))


class Cidr(msgspec.Struct, frozen=True, gc=False, rename="pascal"):
    ip: str = msgspec.field(name="IP")
    mask: str  # base64 of 4 or 16 bytes

    @classmethod
    def of(cls, network: Network) -> "Cidr":
        return cls(str(network.network_address), msgspec.json.encode(network.netmask.packed)[1:-1].decode())

    def range(self) -> Range:
        """Raise RecordError when address or mask do not make a range."""
        try:
            return _masked(self.ip, self.mask)
        except ValueError as error:
            raise RecordError(f"{self.ip} with mask {self.mask} is no address range: {error}") from None

    def network(self) -> Network:
        """The same as an object."""
        return self.range().network()


class NodeAddress(msgspec.Struct, frozen=True, gc=False, rename="pascal"):
    type: str
    ip: str = msgspec.field(name="IP")


class Node(msgspec.Struct, frozen=True, gc=False, rename="pascal", kw_only=True):
    """`cilium/state/nodes/v1/<cluster>/<name>`. Nothing is ever omitted; unset lists are null, unset texts empty."""

    name: str
    cluster: str
    ip_addresses: tuple[NodeAddress, ...] | None = msgspec.field(name="IPAddresses", default=None)
    ipv4_alloc_cidr: Cidr | None = msgspec.field(name="IPv4AllocCIDR", default=None)
    ipv4_secondary_alloc_cidrs: tuple[Cidr, ...] | None = msgspec.field(name="IPv4SecondaryAllocCIDRs", default=None)
    ipv6_alloc_cidr: Cidr | None = msgspec.field(name="IPv6AllocCIDR", default=None)
    ipv6_secondary_alloc_cidrs: tuple[Cidr, ...] | None = msgspec.field(name="IPv6SecondaryAllocCIDRs", default=None)
    ipv4_health_ip: str = msgspec.field(name="IPv4HealthIP", default="")
    ipv6_health_ip: str = msgspec.field(name="IPv6HealthIP", default="")
    ipv4_ingress_ip: str = msgspec.field(name="IPv4IngressIP", default="")
    ipv6_ingress_ip: str = msgspec.field(name="IPv6IngressIP", default="")
    cluster_id: int = msgspec.field(name="ClusterID", default=0)
    source: str = "custom-resource"
    encryption_key: int = 0
    labels: Mapping[str, str] | None = None
    annotations: Mapping[str, str] | None = None
    node_identity: int = 0
    wireguard_pub_key: str = ""
    boot_id: str = msgspec.field(name="BootID", default="")

    def pod_cidrs(self) -> tuple[Network, ...]:
        """All ranges this node gives to pods; RecordError when one is malformed."""
        return tuple(cidr.network() for cidr in self._cidrs())

    def pod_ranges(self) -> tuple[Range, ...]:
        """The same as plain numbers."""
        return tuple(cidr.range() for cidr in self._cidrs())

    def addresses(self) -> tuple[str, ...]:
        """Every address that readers take for this node or one of its helpers (health, ingress)."""
        helpers = (self.ipv4_health_ip, self.ipv6_health_ip, self.ipv4_ingress_ip, self.ipv6_ingress_ip)
        return tuple(ip for ip in (*(address.ip for address in self.ip_addresses or ()), *helpers) if ip)

    def _cidrs(self) -> list[Cidr]:
        primary = (self.ipv4_alloc_cidr, self.ipv6_alloc_cidr)
        secondary = (self.ipv4_secondary_alloc_cidrs or ()) + (self.ipv6_secondary_alloc_cidrs or ())
        return [cidr for cidr in (*primary, *secondary) if cidr is not None]

    def preferred_ip(self, family: int = 4) -> str | None:
        """The address that other nodes send to: InternalIP, else ExternalIP, else any but the internal pod one."""
        ranks = {"InternalIP": 0, "ExternalIP": 1}
        candidates = [
            (ranks.get(address.type, 2), position, address.ip)
            for position, address in enumerate(self.ip_addresses or ())
            if address.type != "CiliumInternalIP" and _is_ip(address.ip) and (":" in address.ip) == (family == 6)
        ]
        return min(candidates)[2] if candidates else None


class NamedPort(msgspec.Struct, frozen=True, gc=False, rename="pascal"):
    name: str
    port: int
    protocol: str


class AddressRecord(msgspec.Struct, frozen=True, gc=False, rename="pascal"):
    """`cilium/state/ip/v1/default/<ip>`: who owns an address and behind which node it is."""

    ip: str = msgspec.field(name="IP")
    mask: str | None = None  # base64; null for a single address. No API server writes any other.
    host_ip: str = msgspec.field(name="HostIP", default="")
    identity: int = msgspec.field(name="ID", default=0)
    key: int = 0
    metadata: str = ""
    namespace: str | msgspec.UnsetType = msgspec.field(name="K8sNamespace", default=msgspec.UNSET)
    pod_name: str | msgspec.UnsetType = msgspec.field(name="K8sPodName", default=msgspec.UNSET)
    service_account: str | msgspec.UnsetType = msgspec.field(name="K8sServiceAccount", default=msgspec.UNSET)
    # Written by agents that share identities through etcd, never by an API server.
    named_ports: tuple[NamedPort, ...] | msgspec.UnsetType = msgspec.field(name="NamedPorts", default=msgspec.UNSET)

    def range(self) -> str:
        """How the key of a record with a mask ends: `address/length`, or the address where the mask is whole.

        RecordError when the two make no range.
        """
        network = Cidr(self.ip, self.mask or "").network()
        return self.ip if network.prefixlen == network.max_prefixlen else str(network)


class Port(msgspec.Struct, frozen=True, gc=False, rename="pascal"):
    protocol: str
    port: int


# address → port name → port; the name of an unnamed port is "".
PortMaps = Mapping[str, Mapping[str, Port]]


class ForZone(msgspec.Struct, frozen=True, gc=False):
    name: str


class BackendZone(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """The zone a backend is in, and the zones whose clients shall use it."""

    zone: str = ""
    for_zones: tuple[ForZone, ...] | None = None


class ServiceRecord(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    """`cilium/state/services/v1/<cluster>/<namespace>/<name>`: a global service and its ready backends."""

    cluster: str
    namespace: str
    name: str
    frontends: PortMaps = {}
    backends: PortMaps = {}
    hostnames: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET
    zones: Mapping[str, BackendZone] | msgspec.UnsetType = msgspec.UNSET  # by backend address; from Cilium 1.19 on
    labels: Mapping[str, str] = {}
    selector: Mapping[str, str] = {}
    include_external: bool = True
    shared: bool = True
    cluster_id: int = msgspec.field(name="clusterID")


class ExportedPort(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True, omit_defaults=True):
    name: str = ""
    protocol: str = ""
    app_protocol: str | msgspec.UnsetType = msgspec.UNSET
    port: int


class ClientIpConfig(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    timeout_seconds: int | msgspec.UnsetType = msgspec.UNSET


class SessionAffinityConfig(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    client_ip: ClientIpConfig | msgspec.UnsetType = msgspec.field(name="clientIP", default=msgspec.UNSET)


class ServiceExport(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    """`cilium/state/serviceexports/v1/<cluster>/<namespace>/<name>`: a Service exported through MCS-API.

    Written as Cilium 1.20 does; without labels, annotations and what follows the affinity it is what 1.17 wrote.
    Constructing and decoding refuse with ValueError and RecordError what Cilium's reader refuses, but for an empty or
    absent `session_affinity`, which 1.20 writes for headless services.
    """

    cluster: str
    name: str
    namespace: str
    annotations: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET
    labels: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET
    # 1.18 wrote these names, 1.19 both, 1.20 none of them. Read into the fields above, never written.
    legacy_labels: Mapping[str, str] | msgspec.UnsetType = msgspec.field(name="Labels", default=msgspec.UNSET)
    legacy_annotations: Mapping[str, str] | msgspec.UnsetType = msgspec.field(name="Annotations", default=msgspec.UNSET)
    export_creation_timestamp: str  # RFC 3339; the oldest of several exports decides
    ports: tuple[ExportedPort, ...] = ()
    type: str  # ClusterSetIP or Headless
    session_affinity: str = ""  # ClientIP, None or ""
    session_affinity_config: SessionAffinityConfig | msgspec.UnsetType = msgspec.UNSET
    ip_families: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    internal_traffic_policy: str | msgspec.UnsetType = msgspec.UNSET
    traffic_distribution: str | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        for field, legacy in (("annotations", "legacy_annotations"), ("labels", "legacy_labels")):
            value = getattr(self, field) or getattr(self, legacy) or msgspec.UNSET
            msgspec.structs.force_setattr(self, field, value)
            msgspec.structs.force_setattr(self, legacy, msgspec.UNSET)
        msgspec.structs.force_setattr(self, "ip_families", self.ip_families or msgspec.UNSET)
        for field in ("cluster", "name", "namespace"):
            if not getattr(self, field):
                raise ValueError(f"a service export without {field}")
        _check_choice("type", self.type, CLUSTER_SET_IP, HEADLESS)
        _check_choice("sessionAffinity", self.session_affinity, "ClientIP", "None", "")
        _check_choice("internalTrafficPolicy", self.internal_traffic_policy, "Cluster", "Local", msgspec.UNSET)
        self.created()

    def created(self) -> datetime:
        """When the export was made; ValueError when that is no time."""
        created = datetime.fromisoformat(self.export_creation_timestamp)
        if created.tzinfo is None or created <= _GO_ZERO_TIME:
            raise ValueError(f"exportCreationTimestamp {self.export_creation_timestamp!r} is no time with a zone")
        return created


Record = ClusterConfig | Node | AddressRecord | ServiceRecord | ServiceExport

_encoder = msgspec.json.Encoder(order="deterministic")
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}

# Outside of strings none of these occurs in JSON.
_GO_ESCAPES = (
    (b"<", rb"\u003c"),
    (b">", rb"\u003e"),
    (b"&", rb"\u0026"),
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
)


def encode(record: Record) -> bytes:
    """The value's bytes: compact JSON, maps sorted by key, "<", ">" and "&" escaped as Go's encoder does."""
    raw = _encoder.encode(record)
    for character, escape in _GO_ESCAPES:
        if character in raw:
            raw = raw.replace(character, escape)
    return raw


def decode(kind: type[T], raw: bytes) -> T:
    """Decode a value; RecordError names the field that is wrong. A field that is null counts as absent, as in Go."""
    try:
        decoder: msgspec.json.Decoder[T] | None = _decoders.get(kind)
        if decoder is None:
            decoder = _decoders[kind] = msgspec.json.Decoder(kind)
        try:
            return decoder.decode(raw)
        except msgspec.ValidationError:
            if b"null" not in raw:
                raise
            return msgspec.convert(_without_nulls(msgspec.json.decode(raw)), kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"not a valid {kind.__name__}: {error}") from None


def decode_identity(raw: bytes) -> dict[str, str]:
    """Labels of `cilium/state/identities/v1/id/<number>`."""
    try:
        return _labels.decode(raw.decode())
    except UnicodeDecodeError as error:
        raise RecordError(f"labels are not UTF-8: {error}") from None


def encode_identity(labels: Mapping[str, str]) -> bytes:
    return _labels.encode(labels).encode()


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _check_choice(field: str, value: object, *allowed: object) -> None:
    if value not in allowed:
        raise ValueError(f"{field} {value!r} is unknown")


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
