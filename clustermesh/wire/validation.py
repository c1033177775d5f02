"""Checks of what a peer announces, of one record by itself: nothing is believed because a peer says so.

This is what Cilium's readers check of name, key, cluster, id and form, and what bounds a record's cost. What a record
claims beside others' is judged elsewhere. Each check returns the reason for keeping a record out, or None. Reasons are
short and few, since they are counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from clustermesh.wire import labels
from clustermesh.wire.endpoint_slices import ClusterEndpointSlice
from clustermesh.wire.errors import RecordError
from clustermesh.wire.identity import MINIMAL_ALLOCATION, Numbering
from clustermesh.wire.keys import Kind
from clustermesh.wire.ranges import Range, number_of, range_of, text_of
from clustermesh.wire.records import AddressRecord, Node, PortMaps, ServiceExport, ServiceRecord

# Bytes of a key below its prefix. The longest names of Kubernetes, a namespace's and a slice's, make 317.
LONGEST_KEY = 512
# Bytes of a value. Kubernetes lets an object have 256 KiB of annotations. An etcd takes requests of 1.5 MiB; a peer's
# may be set to take more.
LARGEST: Mapping[Kind, int] = {
    Kind.NODES: 512 * 1024,
    Kind.IDENTITIES: 64 * 1024,
    Kind.ADDRESSES: 16 * 1024,
    Kind.SERVICES: 1_000_000,
    Kind.SERVICE_EXPORTS: 512 * 1024,
    Kind.ENDPOINT_SLICES: 1_000_000,
}
MOST_PORTS = 1000  # of one address of a service
MOST_RANGES = 64  # of one node: pod CIDRs, and as many addresses
# Bits of a pod CIDR's prefix: nobody is believed that half the Internet is behind one node.
SHORTEST_PREFIX = {4: 8, 6: 16}

_SLASHES = {Kind.SERVICES: 1, Kind.SERVICE_EXPORTS: 1, Kind.ENDPOINT_SLICES: 1}


@dataclass(frozen=True, slots=True)
class Claimant:
    """The peer whose records are judged, as this cluster knows it."""

    name: str
    cluster_id: int
    numbering: Numbering


def check_key(kind: Kind, tail: str) -> str | None:
    """`tail` is the key below its prefix; bytes that are no UTF-8 stand in it as lone surrogates."""
    if len(tail) > LONGEST_KEY:
        return "key too long"
    if not tail.isprintable():
        return "key is no printable text"
    if kind is Kind.ADDRESSES:
        return None  # which must be the address, letter by letter
    parts = tail.split("/")
    if len(parts) != _SLASHES.get(kind, 0) + 1 or not all(parts):
        return "malformed key"
    return None


def check_node(peer: Claimant, key_tail: str, node: Node) -> str | None:
    if node.cluster != peer.name:
        return "node of another cluster"
    if node.cluster_id != peer.cluster_id:
        return "node with another cluster id"
    if not node.name or node.name != key_tail:
        return "node name differs from key"
    if not (0 <= node.encryption_key < 1 << 8 and 0 <= node.node_identity < 1 << 32):
        return "number out of range in a node"
    try:
        ranges = node.pod_ranges()
    except RecordError:
        return "malformed pod CIDR"
    addresses = node.addresses()
    if any(range.prefix_length < SHORTEST_PREFIX[range.version] for range in ranges):
        return "pod CIDR too wide"
    if len(ranges) > MOST_RANGES or len(addresses) > MOST_RANGES:
        return "too many addresses in a node"
    if any(number_of(address) is None for address in addresses):
        return "malformed address in a node"
    return None


def check_identity(peer: Claimant, key_tail: str, identity_labels: Mapping[str, str]) -> str | None:
    # str.isdigit() accepts other scripts' digits, and "007" would alias 7.
    if not (key_tail.isascii() and key_tail.isdigit()) or str(int(key_tail[:20])) != key_tail:
        return "identity key is no number"
    first, last = peer.numbering.range(peer.cluster_id)
    if not first <= int(key_tail) <= last:
        return "identity outside the peer's range"
    if identity_labels.get(labels.CLUSTER) != peer.name:
        return "identity without the peer's cluster label"
    return None


def check_address(peer: Claimant, key_tail: str, record: AddressRecord) -> str | None:
    if record.mask is not None:
        return "address range"
    if record.ip != key_tail:
        return "address differs from key"
    found = number_of(key_tail)
    if found is None or (record.host_ip and number_of(record.host_ip) is None):
        return "malformed address"
    # Two keys for one address would contradict each other; of IPv4 the parser knows one spelling alone.
    if found[0] == 6 and text_of(*found) != key_tail:
        return "address differs from key"
    identity, numbering = record.identity, peer.numbering
    if not (identity >> numbering.shift == peer.cluster_id or 0 <= identity < MINIMAL_ALLOCATION):
        return "address with an identity outside the peer's range"
    if not 0 <= record.key < 256:
        return "number out of range in an address"
    return None


def check_service(peer: Claimant, key_tail: str, record: ServiceRecord) -> str | None:
    if record.cluster != peer.name:
        return "service of another cluster"
    if record.cluster_id != peer.cluster_id:
        return "service with another cluster id"
    if not record.namespace or not record.name or f"{record.namespace}/{record.name}" != key_tail:
        return "service name differs from key"
    return _check_ports(record.frontends) or _check_ports(record.backends)


def check_service_export(peer: Claimant, key_tail: str, record: ServiceExport) -> str | None:
    if record.cluster != peer.name:
        return "service export of another cluster"
    if f"{record.namespace}/{record.name}" != key_tail:
        return "service export name differs from key"
    if len(record.ports) > MOST_PORTS:
        return "too many ports"
    if any(not 0 <= port.port < 65536 for port in record.ports):
        return "port out of range"
    return None


def check_endpoint_slice(peer: Claimant, key_tail: str, record: ClusterEndpointSlice) -> str | None:
    if record.cluster != peer.name:
        return "endpoint slice of another cluster"
    if record.cluster_id != peer.cluster_id:
        return "endpoint slice with another cluster id"
    if f"{record.namespace}/{record.name}" != key_tail:
        return "endpoint slice name differs from key"
    if len(record.ports) > MOST_PORTS:
        return "too many ports"
    return None


def node_ranges(node: Node) -> tuple[Range, ...]:
    """What a node that passed its check claims: its pod CIDRs and every address of its own, each once."""
    addresses = (found for address in node.addresses() if (found := range_of(address)) is not None)
    return tuple(dict.fromkeys((*node.pod_ranges(), *addresses)))


def _check_ports(ports_by_address: PortMaps) -> str | None:
    for address, ports in ports_by_address.items():
        if number_of(address) is None:
            return "malformed address in a service"
        if len(ports) > MOST_PORTS:
            return "too many ports"
        if any(not 0 <= port.port < 65536 for port in ports.values()):
            return "port out of range"
    return None
