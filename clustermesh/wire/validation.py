"""Checks of what a peer announces: nothing is believed because a peer says so.

Each check returns the reason for keeping a record out, or None. Reasons are short and few, since they are counted.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clustermesh.wire import labels
from clustermesh.wire.errors import RecordError
from clustermesh.wire.identity import MINIMAL_ALLOCATION, Numbering
from clustermesh.wire.records import AddressRecord, Network, Node, PortMaps, ServiceRecord


@dataclass(frozen=True, slots=True)
class Claimant:
    """The peer whose records are judged, as this cluster knows it."""

    name: str
    cluster_id: int
    numbering: Numbering


def check_node(peer: Claimant, key_tail: str, node: Node) -> str | None:
    if node.cluster != peer.name:
        return "node of another cluster"
    if node.cluster_id != peer.cluster_id:
        return "node with another cluster id"
    if not node.name or node.name != key_tail:
        return "node name differs from key"
    try:
        ranges = node.pod_cidrs()
    except RecordError:
        return "malformed pod CIDR"
    if any(network.prefixlen == 0 for network in ranges):
        return "pod CIDR covers every address"
    if node.preferred_ip() is None and node.preferred_ip(6) is None:
        return "node without address"
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


def check_address(
    peer: Claimant, key_tail: str, record: AddressRecord, pod_cidrs: "CidrSet | None" = None
) -> str | None:
    """`pod_cidrs` are the ranges that the peer's accepted nodes give to pods; None leaves that check out."""
    if record.mask is not None:
        return "address range"
    if record.ip != key_tail:
        return "address differs from key"
    try:
        address = ipaddress.ip_address(record.ip)
        if record.host_ip:
            ipaddress.ip_address(record.host_ip)
    except ValueError:
        return "malformed address"
    first, last = peer.numbering.range(peer.cluster_id)
    if not (first <= record.identity <= last or 0 <= record.identity < MINIMAL_ALLOCATION):
        return "address with an identity outside the peer's range"
    if pod_cidrs is not None and record.identity >= MINIMAL_ALLOCATION and address not in pod_cidrs:
        return "address outside the peer's pod CIDRs"
    return None


def check_service(peer: Claimant, key_tail: str, record: ServiceRecord) -> str | None:
    if record.cluster != peer.name:
        return "service of another cluster"
    if record.cluster_id != peer.cluster_id:
        return "service with another cluster id"
    if not record.namespace or not record.name or f"{record.namespace}/{record.name}" != key_tail:
        return "service name differs from key"
    return _check_ports(record.frontends) or _check_ports(record.backends)


class CidrSet:
    """Ranges to look an address up in, at a cost that does not grow with their number (but with their lengths')."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._members: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            self._members.setdefault((network.version, shift), set()).add(int(network.network_address) >> shift)

    def __contains__(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        number = int(address)
        return any(
            version == address.version and number >> shift in members
            for (version, shift), members in self._members.items()
        )


def _check_ports(ports_by_address: PortMaps) -> str | None:
    for address, ports in ports_by_address.items():
        try:
            ipaddress.ip_address(address)
        except ValueError:
            return "malformed address in a service"
        if any(not 0 < port.port < 65536 for port in ports.values()):
            return "port out of range"
    return None
