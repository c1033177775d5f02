"""What of a peer's records is let in: what decodes, stays in the peer's numbers and claims nobody else's addresses.

A record is judged when it comes, and again when something it depends on has changed: its node arrives or shrinks,
another cluster claims or gives up its addresses, the quota has room. So what is in force is always what would be let
in if everything were read anew. A new value that is refused leaves the last good one in force; a value in force that
has become wrong is taken back. Nothing here waits or does I/O; what changes goes to a `Sink`.

What an earlier process let in is adopted: in force at once, and judged like all else a little later, by `prove`.

A lenient peer is held to what Cilium's readers check and to what protects other clusters. A strict one must also keep
its pods, backends and nodes within what its own nodes announce.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import chain, islice
from typing import Protocol

from apiserver.claims import NOBODY, Claims
from apiserver.quarantine import Quarantine
from apiserver.quota import OVER_BYTES, OVER_RECORDS, Usage
from apiserver.range_index import RangeIndex
from clustermesh.kube.objects import PeerQuota
from clustermesh.wire import endpoint_slices, records, validation
from clustermesh.wire.endpoint_slices import ClusterEndpointSlice
from clustermesh.wire.errors import RecordError
from clustermesh.wire.identity import MINIMAL_ALLOCATION, Reserved
from clustermesh.wire.keys import Kind
from clustermesh.wire.ranges import Range, number_of, text_of
from clustermesh.wire.records import AddressRecord, Node, ServiceExport, ServiceRecord
from clustermesh.wire.validation import Claimant

OUTSIDE_POD_CIDRS = "address outside the peer's pod CIDRs"
OUTSIDE_NODES = "HostIP is no node of the peer"
OUTSIDE_PEER = "backend outside the peer's addresses"
NO_NODE = "identity of a node on another address"
NO_SUCH_IDENTITY = "reserved identity that no peer may give"

# Of the numbers below 256, which mean the same in every cluster: what a pod may have that has no identity yet, and what
# belongs to a node and its helpers. All others a cluster's policy understands as its own (world, its API server, its
# well-known pods such as kube-dns), so a strict peer may give them to nobody.
_POD_IDENTITIES = frozenset({Reserved.UNKNOWN, Reserved.UNMANAGED, Reserved.INIT})
_NODE_IDENTITIES = frozenset({Reserved.HOST, Reserved.HEALTH, Reserved.REMOTE_NODE, Reserved.INGRESS})

_Labels = dict[str, str]
_Record = Node | AddressRecord | ServiceRecord | ServiceExport | ClusterEndpointSlice | _Labels
_Ref = tuple[Kind, str]


class Sink(Protocol):
    """Who brings what is let in to its readers. Names are keys below their kind's prefix."""

    def put(self, kind: Kind, name: str, value: bytes) -> None:
        """This value is in force from now on."""

    def delete(self, kind: Kind, name: str) -> None:
        """Nothing is in force for this key any more."""

    def read_again(self, kind: Kind) -> None:
        """Records of the kind were refused and forgotten that may be right by now: list it again, not too often."""

    def settled(self) -> None:
        """Something is different from before: that was all of it for now."""


class Admission:
    """The records of one peer: those in force, and those kept out."""

    def __init__(
        self,
        peer: Claimant,
        claims: Claims,
        sink: Sink,
        *,
        strict: bool,
        quota: PeerQuota | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.peer = peer
        self.strict = strict
        self.usage = Usage(quota or PeerQuota())
        self.quarantine = quarantine or Quarantine(peer.name)
        self._claims = claims
        self._sink = sink
        self._in_force: dict[Kind, dict[str, bytes]] = {kind: {} for kind in Kind}
        self._stale: dict[Kind, set[str]] = {}
        # Adopted and not judged yet. No index knows of these: they will be judged by the claims of then.
        self._unproven: dict[Kind, dict[str, None]] = {kind: {} for kind in Kind}
        # Who is concerned when an address changes hands: addresses by HostIP, services and slices by backend.
        self._by_host: dict[str, set[str]] = {}
        self._by_backend: dict[str, set[_Ref]] = {}
        self._mentioned = RangeIndex(self._mentions)
        # Nodes that wait for another cluster to give up a range: node → range, and by (version, host bits) and number.
        self._blocked: dict[str, Range] = {}
        self._blocking: dict[tuple[int, int], dict[int, set[str]]] = {}
        self._line: dict[_Ref, None] = {}  # who waits for room in the quota
        self._dirty: dict[_Ref, None] = {}
        self._eased = False
        self._moved = False
        claims.watch(peer.name, self)

    # What the mirror hands in

    def take(self, kind: Kind, key: bytes, value: bytes | None) -> None:
        """A record of the peer, or None for its deletion. `key` is what stands below the kind's prefix."""
        name = key.decode(errors="surrogateescape")
        if self._stale and (stale := self._stale.get(kind)) is not None:
            stale.discard(name)
        if value is None:
            self._drop(kind, name)
        elif self._in_force[kind].get(name) == value:
            self._forgive(kind, name)
        else:
            if name in self._unproven[kind]:
                self._prove(kind, name)
            self._decide(kind, name, value)

    def adopt(self, kind: Kind, key: bytes, value: bytes) -> None:
        """A record that an earlier process let in, as it stands in the own etcd. Nodes come first: they are judged."""
        name = key.decode(errors="surrogateescape")
        in_force = self._in_force[kind]
        if kind is Kind.NODES or name in in_force or self.quarantine.get(kind, name) is not None:
            self.take(kind, key, value)
            return
        size = len(name) + len(value)
        if self.usage.refusal(None, size) is not None:
            self._decide(kind, name, value)
            return
        in_force[name] = value
        self._unproven[kind][name] = None
        self.usage.replace(None, size)
        self._sink.put(kind, name, value)
        self._moved = True

    def prove(self, most: int) -> None:
        """Judge up to so many of the adopted records, and what follows from that."""
        for kind, names in self._unproven.items():
            for name in list(islice(names, most)):
                self._prove(kind, name)
                most -= 1
        self.finish()

    def begin(self, kind: Kind) -> None:
        """The kind is going to be read from its beginning."""
        self._stale[kind] = {*self._in_force[kind], *self.quarantine.tails(kind)}
        self.quarantine.recount(kind)

    def complete(self, kind: Kind) -> None:
        """The kind was read in full: what has not come again is gone."""
        for name in self._stale.pop(kind, ()):
            self._drop(kind, name)
        if kind is Kind.NODES:
            # What an earlier mirror of this peer held.
            for name in self._claims.nodes(self.peer.name).keys() - self._in_force[kind].keys():
                self._claims.release(self.peer.name, name)

    def finish(self) -> int:
        """A batch is in: let follow from it what does, for all peers; returns how many records were judged again."""
        if self._moved or self._dirty or self._line or self._eased:
            self._claims.wake(self.peer.name)
        return self._claims.settle()

    def close(self) -> None:
        """Judge no more. What is in force keeps its claims."""
        self._claims.unwatch(self.peer.name, self)

    # What others ask

    def count(self, kind: Kind) -> int:
        """How many records of a kind are in force."""
        return len(self._in_force[kind])

    @property
    def unproven(self) -> int:
        """How many adopted records have not been judged yet."""
        return sum(map(len, self._unproven.values()))

    def in_force(self, kind: Kind, name: str) -> bytes | None:
        return self._in_force[kind].get(name)

    # What the claims tell

    def touched(self, owner: str, gained: Sequence[Range], lost: Sequence[Range]) -> bool:
        """See `Watcher`."""
        for changed in chain(gained, lost):
            for address in self._mentioned.inside(changed):
                self._note(address)
        if owner != self.peer.name:
            for free in lost:
                self._note_blocked(free)
            for taken in gained:
                if self._claims.holds_some(self.peer.name, taken):
                    self._note_overlapping(taken)
        self._ease()
        return bool(self._dirty) or self._eased

    def settle(self) -> int:
        """See `Watcher`."""
        judged = 0
        while True:
            while self._dirty:
                dirty, self._dirty = self._dirty, {}
                judged += len(dirty)
                for kind, name in dirty:
                    self._judge_again(kind, name)
            head = next(iter(self._line), None)
            if head is None or not self._has_room(head):
                break
            del self._line[head]
            judged += 1
            self._judge_again(*head)
        if self._eased:
            self._eased = False
            for kind in self.quarantine.forgotten:
                self._sink.read_again(kind)
        if self._moved:
            self._moved = False
            self._sink.settled()
        return judged

    # Judging: without effects

    def _judge(self, kind: Kind, name: str, value: bytes) -> tuple[str, _Record | None]:
        """Why a record is kept out ("": it is not), and the record; without one it never becomes right by itself."""
        if reason := validation.check_key(kind, name):
            return reason, None
        if len(value) > validation.LARGEST[kind]:
            return "record too large", None
        peer = self.peer
        try:
            match kind:
                case Kind.ADDRESSES:
                    address = records.decode(AddressRecord, value)
                    if reason := validation.check_address(peer, name, address):
                        return reason, None
                    return self._place_address(name, address), address
                case Kind.NODES:
                    node = records.decode(Node, value)
                    if reason := validation.check_node(peer, name, node):
                        return reason, None
                    return self._place_node(node), node
                case Kind.IDENTITIES:
                    labels = records.decode_identity(value)
                    if reason := validation.check_identity(peer, name, labels):
                        return reason, None
                    return "", labels
                case Kind.SERVICES:
                    service = records.decode(ServiceRecord, value)
                    if reason := validation.check_service(peer, name, service):
                        return reason, None
                    return self._place_backends(service.backends), service
                case Kind.SERVICE_EXPORTS:
                    export = records.decode(ServiceExport, value)
                    if reason := validation.check_service_export(peer, name, export):
                        return reason, None
                    return "", export
                case Kind.ENDPOINT_SLICES:
                    part = endpoint_slices.decode(value)
                    if reason := validation.check_endpoint_slice(peer, name, part):
                        return reason, None
                    return self._place_backends(_slice_addresses(part)), part
        except RecordError:
            return f"undecodable {kind.value} record", None

    def _place_node(self, node: Node) -> str:
        for claimed in validation.node_ranges(node):
            if conflict := self._claims.conflict(self.peer.name, claimed):
                what = "pod CIDR" if claimed.host_bits else "node address"
                if conflict.owner == NOBODY:
                    return f"{what} in a special range"
                if claimed.host_bits:
                    return f"pod CIDR overlaps addresses of cluster {conflict.owner}"
                return f"node address belongs to cluster {conflict.owner}"
        return ""

    def _place_address(self, name: str, record: AddressRecord) -> str:
        found = number_of(name)
        if found is None:
            return "malformed address"
        me, claims = self.peer.name, self._claims
        mine, other = claims.at(me, *found)
        if other is not None:
            return _belongs("address", other)
        host = number_of(record.host_ip) if record.host_ip else None
        if self.strict:
            if record.identity >= MINIMAL_ALLOCATION or record.identity in _POD_IDENTITIES:
                if not mine:
                    return OUTSIDE_POD_CIDRS
            elif record.identity not in _NODE_IDENTITIES:
                return NO_SUCH_IDENTITY
            elif not claims.is_node(me, *found):
                return NO_NODE
            if host is None or not claims.is_node(me, *host):
                return OUTSIDE_NODES
        elif host is not None:
            mine, other = claims.at(me, *host)
            if other is not None:
                return _belongs("HostIP", other)
        return ""

    def _place_backends(self, addresses: Iterable[str]) -> str:
        me, claims = self.peer.name, self._claims
        for address in addresses:
            found = number_of(address)
            if found is None:
                return "malformed address in a service"
            mine, other = claims.at(me, *found)
            if other is not None:
                return _belongs("backend", other)
            if self.strict and not mine:
                return OUTSIDE_PEER
        return ""

    def _over_quota(self, kind: Kind, name: str, value: bytes) -> str:
        before = self._in_force[kind].get(name)
        size = len(name)
        return self.usage.refusal(None if before is None else size + len(before), size + len(value)) or ""

    def _has_room(self, ref: _Ref) -> bool:
        refused = self.quarantine.get(*ref)
        return refused is None or refused.value is None or not self._over_quota(*ref, refused.value)

    # Judged: the effects

    def _decide(self, kind: Kind, name: str, value: bytes) -> None:
        """Let a new value in or keep it out."""
        reason, record = self._judge(kind, name, value)
        reason = reason or self._over_quota(kind, name, value)
        if reason or record is None:
            self._refuse(kind, name, value, record, reason)
        else:
            self._admit(kind, name, value, record)

    def _prove(self, kind: Kind, name: str) -> None:
        """Judge an adopted record, as if it came now."""
        del self._unproven[kind][name]
        value = self._in_force[kind][name]
        reason, record = self._judge(kind, name, value)
        if record is None:  # which was let in by other rules than ours
            self._take_out(kind, name)
            if kind is Kind.ADDRESSES:
                self._forget(name)
        else:
            self._mention(kind, name, (), _mentions(name, record))
            if not reason:
                self._settle_stray(kind, name)
                return
            self._withdraw(kind, name)
        self._refuse(kind, name, value, record, reason)

    def _judge_again(self, kind: Kind, name: str) -> None:
        if name in self._unproven[kind]:
            self._prove(kind, name)
            return
        refused = self.quarantine.get(kind, name)
        if refused is not None and refused.value is not None:
            self._decide(kind, name, refused.value)
        value = self._in_force[kind].get(name)
        if value is None or (refused is not None and value == refused.value):
            return
        reason, record = self._judge(kind, name, value)
        if not reason:
            self._settle_stray(kind, name)
            return
        known = self.quarantine.get(kind, name) is not None
        self._withdraw(kind, name)
        if not known:  # else the peer says something else by now
            self._refuse(kind, name, value, record, reason)

    def _admit(self, kind: Kind, name: str, value: bytes, record: _Record) -> None:
        in_force = self._in_force[kind]
        before = in_force.get(name)
        mentioned: Collection[str] = ()
        if before is not None or self.quarantine.get(kind, name) is not None:
            mentioned = self._texts(kind, name)
            self._release(kind, name)
        in_force[name] = value
        size = len(name)
        self.usage.replace(None if before is None else size + len(before), size + len(value))
        if before is not None and len(before) > len(value):
            self._ease()
        self._mention(kind, name, mentioned, _mentions(name, record))
        if kind is Kind.ADDRESSES:
            self._settle_stray(kind, name)
        elif isinstance(record, Node):
            self._claims.hold(self.peer.name, name, validation.node_ranges(record))
        self._sink.put(kind, name, value)
        self._moved = True

    def _refuse(self, kind: Kind, name: str, value: bytes, record: _Record | None, reason: str) -> None:
        """Keep a value out. Without a record it need not be judged again."""
        mentioned = self._texts(kind, name)
        self._unblock(name, kind)
        remembered = self.quarantine.put(kind, name, reason, value if record is not None else None)
        self._mention(kind, name, mentioned, self._texts(kind, name))
        if remembered and isinstance(record, Node):
            self._block(name, record)
        if remembered and reason in (OVER_RECORDS, OVER_BYTES):
            self._line[kind, name] = None
        else:
            self._line.pop((kind, name), None)
        self._moved = True

    def _release(self, kind: Kind, name: str) -> None:
        """Out of quarantine."""
        if self.quarantine.release(kind, name) is not None:
            self._unblock(name, kind)
            self._line.pop((kind, name), None)
            self._ease()
            self._moved = True

    def _forgive(self, kind: Kind, name: str) -> None:
        """The peer says again what is in force, whatever it said in between."""
        if self.quarantine.get(kind, name) is not None:
            mentioned = self._texts(kind, name)
            self._release(kind, name)
            self._mention(kind, name, mentioned, self._texts(kind, name))

    def _withdraw(self, kind: Kind, name: str) -> None:
        mentioned = self._texts(kind, name)
        self._take_out(kind, name)
        self._mention(kind, name, mentioned, self._texts(kind, name))
        if kind is Kind.NODES:
            self._claims.release(self.peer.name, name)
        elif kind is Kind.ADDRESSES:
            self._release_stray(name)

    def _take_out(self, kind: Kind, name: str) -> None:
        value = self._in_force[kind].pop(name)
        self.usage.replace(len(name) + len(value), None)
        self._ease()
        self._sink.delete(kind, name)
        self._moved = True

    def _drop(self, kind: Kind, name: str) -> None:
        """The peer deleted the record."""
        if name in self._unproven[kind]:
            self._prove(kind, name)
        mentioned = self._texts(kind, name)
        self._release(kind, name)
        self._mention(kind, name, mentioned, self._texts(kind, name))
        if name in self._in_force[kind]:
            self._withdraw(kind, name)

    def _ease(self) -> None:
        """What was refused and forgotten may be right by now."""
        self._eased = self._eased or bool(self.quarantine.forgotten)

    def _settle_stray(self, kind: Kind, name: str) -> None:
        """A lenient peer's address outside of its ranges is a claim of its own."""
        if not self.strict and kind is Kind.ADDRESSES and (found := number_of(name)) is not None:
            mine, _ = self._claims.at(self.peer.name, *found)
            if mine:
                self._claims.release_stray(self.peer.name, *found)
            else:
                self._claims.hold_stray(self.peer.name, *found)

    def _release_stray(self, name: str) -> None:
        if not self.strict and (found := number_of(name)) is not None:
            self._claims.release_stray(self.peer.name, *found)

    # Who is concerned by what

    def _note(self, address: str) -> None:
        if address in self._in_force[Kind.ADDRESSES] or self.quarantine.waits(Kind.ADDRESSES, address):
            self._dirty[Kind.ADDRESSES, address] = None
        for name in self._by_host.get(address, ()):
            self._dirty[Kind.ADDRESSES, name] = None
        for ref in self._by_backend.get(address, ()):
            self._dirty[ref] = None

    def _note_blocked(self, free: Range) -> None:
        for (version, bits), level in self._blocking.items():
            if version == free.version and bits >= free.host_bits:
                for name in level.get(free.first >> bits, ()):
                    self._dirty[Kind.NODES, name] = None

    def _note_overlapping(self, taken: Range) -> None:
        """This cluster's own node took what a node of the peer holds: rare, so all its nodes are looked at."""
        for name, ranges in self._claims.nodes(self.peer.name).items():
            if any(taken.overlaps(mine) for mine in ranges):
                self._dirty[Kind.NODES, name] = None

    def _block(self, name: str, node: Node) -> None:
        for claimed in validation.node_ranges(node):
            if conflict := self._claims.conflict(self.peer.name, claimed):
                version, first, bits = self._blocked[name] = conflict.within
                self._blocking.setdefault((version, bits), {}).setdefault(first >> bits, set()).add(name)
                return

    def _unblock(self, name: str, kind: Kind) -> None:
        if kind is Kind.NODES and (within := self._blocked.pop(name, None)) is not None:
            version, first, bits = within
            level = self._blocking[version, bits]
            level[first >> bits].discard(name)
            if not level[first >> bits]:
                del level[first >> bits]
            if not level:
                del self._blocking[version, bits]

    def _mentions(self) -> Iterable[str]:
        """All addresses that some record depends on."""
        unproven = self._unproven[Kind.ADDRESSES]
        proven = (name for name in self._in_force[Kind.ADDRESSES] if name not in unproven)
        return chain(proven, self.quarantine.waiting(Kind.ADDRESSES), self._by_host, self._by_backend)

    def _texts(self, kind: Kind, name: str) -> Collection[str]:
        """The addresses that a record depends on: those of the value in force and of the one that is kept out."""
        if kind not in _DEPENDENT:
            return ()
        refused = self.quarantine.get(kind, name)
        found: set[str] = set()
        for value in (self._in_force[kind].get(name), refused.value if refused is not None else None):
            if value is not None:
                found.update(_mentions(name, _decode(kind, value)))
        return found

    def _mention(self, kind: Kind, name: str, before: Collection[str], after: Collection[str]) -> None:
        for text in before:
            if text not in after:
                self._unlink(kind, name, text)
        for text in after:
            if text not in before:
                self._link(kind, name, text)

    def _link(self, kind: Kind, name: str, text: str) -> None:
        if kind is not Kind.ADDRESSES:
            self._by_backend.setdefault(text, set()).add((kind, name))
        elif text != name:
            hosted = self._by_host.get(text)
            if hosted is not None:  # and is indexed: most pods share their node
                hosted.add(name)
                return
            self._by_host[text] = {name}
        self._mentioned.add(text)

    def _unlink(self, kind: Kind, name: str, text: str) -> None:
        if kind is not Kind.ADDRESSES:
            users: set[_Ref] = self._by_backend[text]
            users.discard((kind, name))
            if not users:
                del self._by_backend[text]
        elif text != name:
            hosted = self._by_host[text]
            hosted.discard(name)
            if not hosted:
                del self._by_host[text]
        self._forget(text)

    def _forget(self, text: str) -> None:
        """Unless some record still depends on the address."""
        if not (
            text in self._by_host
            or text in self._by_backend
            or text in self._in_force[Kind.ADDRESSES]
            or self.quarantine.waits(Kind.ADDRESSES, text)
        ):
            self._mentioned.discard(text)


_DEPENDENT = frozenset({Kind.ADDRESSES, Kind.SERVICES, Kind.ENDPOINT_SLICES})


def _mentions(name: str, record: _Record) -> Collection[str]:
    """Addresses whose owner decides about a record, each in the one spelling that counts."""
    if isinstance(record, AddressRecord):
        return (name, _spelling(record.host_ip)) if record.host_ip else (name,)
    if isinstance(record, ServiceRecord):
        return {_spelling(address) for address in record.backends}
    if isinstance(record, ClusterEndpointSlice):
        return {_spelling(address) for address in _slice_addresses(record)}
    return ()


def _decode(kind: Kind, value: bytes) -> _Record:
    """A value that has passed its checks before."""
    if kind is Kind.ADDRESSES:
        return records.decode(AddressRecord, value)
    if kind is Kind.SERVICES:
        return records.decode(ServiceRecord, value)
    return endpoint_slices.decode(value)


def _slice_addresses(record: ClusterEndpointSlice) -> Iterable[str]:
    return chain.from_iterable(endpoint.addresses for endpoint in record.endpoints)


def _spelling(address: str) -> str:
    if ":" not in address:
        return address
    found = number_of(address)
    return text_of(*found) if found is not None else address


def _belongs(what: str, other: str) -> str:
    return f"{what} of a special range" if other == NOBODY else f"{what} belongs to cluster {other}"
