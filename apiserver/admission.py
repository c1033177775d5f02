"""What of a peer's records is let in: what decodes, stays in the peer's numbers and claims nobody else's addresses."""

import contextlib
import ipaddress
from collections import Counter
from collections.abc import Mapping

import msgspec

from apiserver.claims import Claims
from clustermesh.wire import records, validation
from clustermesh.wire.errors import RecordError
from clustermesh.wire.identity import MINIMAL_ALLOCATION
from clustermesh.wire.keys import Kind
from clustermesh.wire.records import AddressRecord, Node, ServiceRecord
from clustermesh.wire.validation import Claimant

OUTSIDE_POD_CIDRS = "address outside the peer's pod CIDRs"
EXAMPLES = 10
# Bytes of a value. An etcd takes requests of 1.5 MiB; a peer's may be set to take more.
LARGEST = 1_000_000


class Admission:
    """Judges the records of one peer. Accepted nodes claim their ranges; addresses must lie in them."""

    def __init__(self, peer: Claimant, claims: Claims, *, strict: bool) -> None:
        self._peer = peer
        self._claims = claims
        self._strict = strict

    def judge(self, kind: Kind, key_tail: str, raw: bytes) -> str | None:
        """The reason for keeping a record out, or None. An accepted node's ranges are the peer's from now on."""
        if len(raw) > LARGEST:
            return "record too large"
        try:
            match kind:
                case Kind.NODES:
                    return self._judge_node(key_tail, records.decode(Node, raw))
                case Kind.IDENTITIES:
                    return validation.check_identity(self._peer, key_tail, records.decode_identity(raw))
                case Kind.ADDRESSES:
                    return self._judge_address(key_tail, records.decode(AddressRecord, raw))
                case Kind.SERVICES:
                    return validation.check_service(self._peer, key_tail, records.decode(ServiceRecord, raw))
                case Kind.SERVICE_EXPORTS | Kind.ENDPOINT_SLICES:
                    return "kind is not taken yet"
        except RecordError:
            return f"undecodable {kind.value} record"

    def forget(self, kind: Kind, key_tail: str) -> None:
        """The peer deleted a record."""
        if kind is Kind.NODES:
            self._claims.release(self._peer.name, key_tail)

    def _judge_node(self, key_tail: str, node: Node) -> str | None:
        if reason := validation.check_node(self._peer, key_tail, node):
            return reason
        ranges = node.pod_cidrs()
        addresses = node_addresses(node)
        for network in ranges:
            if other := self._claims.others(self._peer.name, network):
                return f"pod CIDR overlaps addresses of cluster {other}"
        for address in addresses:
            if other := self._claims.others(self._peer.name, ipaddress.ip_network(address)):
                return f"node address belongs to cluster {other}"
        self._claims.hold(self._peer.name, key_tail, ranges, addresses)
        return None

    def _judge_address(self, key_tail: str, record: AddressRecord) -> str | None:
        if reason := validation.check_address(self._peer, key_tail, record):
            return reason
        address = ipaddress.ip_address(record.ip)
        if self._strict and record.identity >= MINIMAL_ALLOCATION and not self._claims.holds(self._peer.name, address):
            return OUTSIDE_POD_CIDRS
        if other := self._claims.others(self._peer.name, ipaddress.ip_network(address)):
            return f"address belongs to cluster {other}"
        return None


class QuarantineView(msgspec.Struct, frozen=True):
    total: int = 0
    by_reason: Mapping[str, int] = {}
    examples: tuple[str, ...] = ()  # "key: reason"


class Quarantine:
    """Which records of a peer are kept out now, and why."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def put(self, key: str, reason: str) -> bool:
        """Note a refused record; False when it was refused for the same reason before."""
        if self._reasons.get(key) == reason:
            return False
        self.release(key)
        self._reasons[key] = reason
        self._counts[reason] += 1
        return True

    def release(self, key: str) -> None:
        """The record was corrected or deleted."""
        reason = self._reasons.pop(key, None)
        if reason is not None:
            self._counts[reason] -= 1
            if not self._counts[reason]:
                del self._counts[reason]

    def keep_only(self, prefix: str, keys: set[str]) -> None:
        """After a complete list: forget records below `prefix` that are not among `keys`."""
        for key in [key for key in self._reasons if key.startswith(prefix) and key not in keys]:
            self.release(key)

    def reason(self, key: str) -> str | None:
        return self._reasons.get(key)

    def view(self) -> QuarantineView:
        first = [f"{key}: {reason}" for _, (key, reason) in zip(range(EXAMPLES), self._reasons.items(), strict=False)]
        return QuarantineView(len(self._reasons), dict(sorted(self._counts.items())), tuple(first))


def node_addresses(node: Node) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """A node's own addresses; host names among them are left out."""
    found = []
    for entry in node.ip_addresses or ():
        with contextlib.suppress(ValueError):
            found.append(ipaddress.ip_address(entry.ip))
    return found
