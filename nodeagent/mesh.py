"""What this node knows of all clusters: takes the feeds' records, keeps the tables, hands on what must change.

Everything here runs on one event loop and never waits, so a change is either wholly applied to the tables or not at
all. What the kernel must hold differently goes to a `Sink`, what the node's devices must do to a `Node`.
"""

import logging
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from clustermesh.kvstore.feed import Event
from clustermesh.wire import endpoint_slices, records
from clustermesh.wire.errors import RecordError
from clustermesh.wire.keys import DATAPATH_KINDS, PRIVATE, Kind, cache_prefix
from clustermesh.wire.private import LocalService, PeerSettings
from clustermesh.wire.records import AddressRecord, Node, PortMaps, ServiceRecord
from nodeagent.compile.ipcache import Addresses, address_key
from nodeagent.compile.nodes import NodeEntries, compile_node
from nodeagent.compile.services import check_ports
from nodeagent.datapath.abi import BackendValue, IpcacheValue, Map, NodeValue
from nodeagent.place import Place
from nodeagent.tables.pods import LocalPods
from nodeagent.tables.ranked import Changes, Ranked
from nodeagent.tables.services import ServiceChanges, Services
from nodeagent.tables.slices import Slices
from nodeagent.tables.source import Facet, Source

log = logging.getLogger(__name__)

_REMEMBERED_REJECTS = 1000
_LOCAL = "local"  # the source of the own cluster's addresses that peers do not know


class Sink(Protocol):
    """Who brings entries into the kernel."""

    def submit(self, map_name: str, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Entries to write, or with None to remove, in due course."""

    def prune(self, map_name: str, cluster_id: int | None, wanted: Container[bytes]) -> None:
        """Of what an earlier agent left (of a cluster, or None: at all), remove what is not `wanted`."""

    def mark(self) -> int:
        """A number that `flushed` reaches once everything submitted so far is in the kernel."""

    @property
    def flushed(self) -> int: ...


@dataclass(slots=True)
class Cluster:
    """One cluster as far as it is read."""

    name: str
    cluster_id: int
    foreign: bool
    addresses: Addresses
    kinds: tuple[Kind, ...] = DATAPATH_KINDS  # that are read of it
    nodes: dict[str, NodeEntries] = field(default_factory=dict)
    identities: dict[int, Mapping[str, str]] = field(default_factory=dict)
    local_identities: dict[int, Mapping[str, str]] = field(default_factory=dict)  # of the own cluster, unknown to peers
    slices: Slices = field(default_factory=Slices)
    # After a change of kinds: the services by the new kind, until its list is complete. Till then the old ones count.
    staged: dict[str, ServiceRecord] | None = None
    synced: dict[Kind, int] = field(default_factory=dict)  # kind → mark of its complete list
    last_event: float = 0.0  # Unix time
    revisions: deque[tuple[int, int]] = field(default_factory=deque)  # (mark, etcd revision) not flushed yet
    gone: bool = False  # removed: whatever still arrives of it is too late
    revision: int = 0  # of etcd: everything up to it is in the kernel

    def source(self, facet: Facet, name: str = "") -> Source:
        return Source(self.foreign, self.cluster_id, facet, name)


class Mesh:
    """The one owner of all tables."""

    def __init__(self, place: Place, sink: Sink) -> None:
        self.place = place
        self._sink = sink
        self.clusters: dict[str, Cluster] = {}
        self.ipcache = Ranked[bytes, bytes]()
        self.outer = Ranked[bytes, bytes]()
        self.hosts = Ranked[bytes, bytes]()  # this node's own addresses in cm_endpoints
        self.routes = Ranked[str, str]()  # pod CIDR → tunnel endpoint
        self.services = Services(place.cluster_id)
        self.pods = LocalPods()
        self.own_node: Node | None = None
        self.settings: dict[str, PeerSettings] = {}  # by peer, whether or not it is one yet
        self.rejected: dict[str, str] = {}  # key → why it was kept out
        self.peers_known = False
        self._adopted: set[int] = set()
        # Set by whoever cares; called from within `apply`.
        self.on_pods: Callable[[Changes[str, int]], None] = lambda _: None
        self.on_routes: Callable[[Changes[str, str]], None] = lambda _: None
        self.on_own_node: Callable[[Node], None] = lambda _: None
        self.on_change: Callable[[], None] = lambda: None
        self.own = self._add(place.cluster, place.cluster_id)

    # Life of clusters

    def adopt(self, maps: Mapping[str, Mapping[bytes, bytes]]) -> None:
        """Learn what the kernel holds from before. Nothing of it goes before its source is read in full."""
        for value in maps[Map.IPCACHE].values():
            self._adopted.add(IpcacheValue.unpack(value).cluster_id)
        for value in maps[Map.NODES].values():
            self._adopted.add(NodeValue.unpack(value).cluster_id)
        for value in maps[Map.BACKENDS].values():
            self._adopted.add(BackendValue.unpack(value).cluster_id)
        self.services.remember(maps[Map.SERVICES].items(), maps[Map.BACKENDS])

    def add_peer(self, name: str, cluster_id: int, kinds: tuple[Kind, ...] = DATAPATH_KINDS) -> Cluster:
        """A peer's records of these kinds are going to be read."""
        log.info("peer %s appeared (cluster id %d)", name, cluster_id)
        self.on_change()
        peer = self._add(name, cluster_id)
        peer.kinds = kinds
        return peer

    def set_kinds(self, cluster: Cluster, kinds: tuple[Kind, ...]) -> None:
        """The peer tells of its backends by another kind from now on.

        What was known of them stays in force until that kind's list is complete.
        """
        log.info("peer %s is read by other kinds: %s", cluster.name, ", ".join(kinds))
        for kind in set(cluster.kinds) - set(kinds):
            cluster.synced.pop(kind, None)
            self._forgive_below(cache_prefix(kind, cluster.name))
        cluster.kinds, cluster.slices, cluster.staged = kinds, Slices(), {}
        self.on_change()

    def set_settings(self, peer: str, settings: PeerSettings) -> None:
        """What the API server says of a peer besides its records."""
        self.settings[peer] = settings
        self.on_change()

    def remove_peer(self, name: str) -> None:
        """The peer is gone for good: its services first, then its pods, then its nodes."""
        cluster = self.clusters.pop(name)
        cluster.gone = True
        self._adopted.discard(cluster.cluster_id)
        self._write_services(self.services.drop_cluster(cluster.cluster_id))
        self._sink.submit(Map.IPCACHE, self.ipcache.drop(cluster.source(Facet.ADDRESSES)))
        for node in cluster.nodes:
            self._write_node(cluster.source(Facet.NODE, node), NodeEntries())
        self._prune(cluster.cluster_id)
        self._forgive_below(*(cache_prefix(kind, name) for kind in Kind))
        log.info("peer %s is gone: its records are removed", name)
        self.on_change()

    def set_peers_known(self, expected: Iterable[int] = ()) -> None:
        """All current peers have been added, but for those whose cluster ids are `expected`.

        What the kernel has of other clusters is of former peers.
        """
        self.peers_known = True
        known = {cluster.cluster_id for cluster in self.clusters.values()}.union(expected)
        for cluster_id in self._adopted - known:
            self._write_services(self.services.forget(cluster_id))
            self._prune(cluster_id)
        self._adopted &= known
        self.on_change()

    # Records

    def apply(self, cluster: Cluster, kind: Kind, prefix: str, batch: Sequence[Event], now: float) -> None:
        """Records of one kind from below `prefix`, in order. `now` is Unix time."""
        if cluster.gone or kind not in cluster.kinds:
            return
        skip = len(prefix.encode())
        local = prefix.startswith(PRIVATE)
        if kind is Kind.ADDRESSES:
            self._addresses(cluster, skip, batch, local=local)
        else:
            identity = self._local_identity if local else self._identity
            read = {
                Kind.NODES: self._node,
                Kind.IDENTITIES: identity,
                Kind.SERVICES: self._service,
                Kind.ENDPOINT_SLICES: self._slice,
            }[kind]
            for event in batch:
                try:
                    read(cluster, event.key[skip:].decode(), event.value)
                except (RecordError, UnicodeDecodeError, ValueError, OSError) as error:
                    self._reject(cluster, event.key, error)
                else:
                    self._accept(event.key)
        if batch:
            cluster.last_event = now
            self.on_change()

    def advance(self, cluster: Cluster, revision: int) -> None:
        """All that the own etcd had up to `revision` (of the prefix that was read) has been applied to the tables."""
        mark = self._sink.mark()
        if cluster.revisions and cluster.revisions[-1][0] == mark:
            cluster.revisions[-1] = (mark, max(revision, cluster.revisions[-1][1]))
        else:
            cluster.revisions.append((mark, revision))

    def set_synced(self, cluster: Cluster, kind: Kind) -> None:
        """The cluster's list of a kind is complete: what an earlier agent left beyond it may go."""
        if cluster.gone or kind not in cluster.kinds or kind in cluster.synced:
            return
        if kind in (Kind.SERVICES, Kind.ENDPOINT_SLICES):
            if cluster.foreign:
                self._unstage(cluster)
                self._write_services(self.services.forget(cluster.cluster_id))
            else:
                self._sink.prune(Map.SERVICES, None, self.services.entries().keys())
                self._sink.prune(Map.BACKENDS, None, self.services.backends().keys())
        elif {kind, *cluster.synced} >= {Kind.NODES, Kind.ADDRESSES}:
            self._prune(cluster.cluster_id)
        cluster.synced[kind] = self._sink.mark()
        log.info("%s: %s complete", cluster.name, kind)
        self.on_change()

    def reject(self, cluster_name: str, key: str, why: str) -> None:
        """A key's value makes no sense. What the key said before stays in force."""
        if self.rejected.get(key) == why:
            return
        log.warning("kept out record %s of %s: %s", key, cluster_name, why)
        if len(self.rejected) < _REMEMBERED_REJECTS or key in self.rejected:
            self.rejected[key] = why
        self.on_change()

    def forgive(self, key: str) -> None:
        """The key makes sense again, or is gone."""
        self.rejected.pop(key, None)

    # What others ask

    def applied(self, cluster: Cluster) -> frozenset[Kind]:
        """Kinds whose complete list is in the kernel."""
        flushed = self._sink.flushed
        return frozenset(kind for kind, mark in cluster.synced.items() if mark <= flushed)

    def applied_revision(self, cluster: Cluster) -> int:
        flushed = self._sink.flushed
        while cluster.revisions and cluster.revisions[0][0] <= flushed:
            cluster.revision = max(cluster.revision, cluster.revisions.popleft()[1])
        return cluster.revision

    def counts(self, cluster: Cluster) -> dict[str, int]:
        """Records held of a cluster, by kind."""
        counts = {
            Kind.NODES: len(cluster.nodes),
            Kind.IDENTITIES: len(cluster.identities) + len(cluster.local_identities),
            Kind.ADDRESSES: sum(
                len(self.ipcache.claims(cluster.source(Facet.ADDRESSES, place))) for place in ("", _LOCAL)
            ),
            Kind.SERVICES: self.services.count(cluster.cluster_id),
            Kind.ENDPOINT_SLICES: len(cluster.slices),
        }
        return {kind: counts[kind] for kind in cluster.kinds}

    def probes(self, cluster: Cluster) -> list[str]:
        """Where path probes of a peer go; nowhere when it does not answer any."""
        if not self.settings.get(cluster.name, PeerSettings()).answers_probes:
            return []
        return [entry.probe for entry in cluster.nodes.values() if entry.probe is not None]

    def peers(self) -> list[Cluster]:
        return [cluster for cluster in self.clusters.values() if cluster.foreign]

    def routes_complete(self) -> bool:
        """Every route that should be is known, also of the peers that an earlier agent knew and that are expected."""
        if not self.peers_known or self._adopted - {cluster.cluster_id for cluster in self.clusters.values()}:
            return False
        return all(Kind.NODES in cluster.synced for cluster in self.clusters.values())

    def pods_complete(self) -> bool:
        """Every pod of this node is known."""
        return self.own_node is not None and Kind.ADDRESSES in self.own.synced

    def complete(self, cluster: Cluster) -> bool:
        """Everything of a cluster is in the kernel."""
        return self.applied(cluster) >= set(cluster.kinds)

    # Kinds

    def _addresses(self, cluster: Cluster, skip: int, batch: Sequence[Event], *, local: bool) -> None:
        """`local`: of the own cluster, unknown to peers. A namespace that changes moves its addresses there or back:
        for a moment they stand in both places, and leave one without being gone.
        """
        place, other = (_LOCAL, "") if local else ("", _LOCAL)
        elsewhere = self.ipcache.claims(cluster.source(Facet.ADDRESSES, other))
        changes: list[tuple[bytes, bytes | None]] = []
        pods: Changes[str, int] = []
        value_of, foreign, rejected = cluster.addresses.value, cluster.foreign, self.rejected
        decode, append = records.decode, changes.append
        for event_key, raw, _ in batch:
            try:
                tail = event_key[skip:].decode()
                key = address_key(tail)
                if raw is None:
                    append((key, None))
                    if not foreign and key not in elsewhere:
                        pods += self.pods.put(tail, "", None)
                else:
                    record = decode(AddressRecord, raw)
                    if tail != (record.ip if record.mask is None else record.range()):
                        raise RecordError(f"the record's address {record.ip!r} differs from its key")
                    append((key, value_of(record)))
                    if not foreign:
                        pods += self.pods.put(tail, record.host_ip, record.identity or None)
            except (RecordError, UnicodeDecodeError) as error:
                self._reject(cluster, event_key, error)
            else:
                if rejected:
                    self._accept(event_key)
        self._sink.submit(Map.IPCACHE, self.ipcache.apply(cluster.source(Facet.ADDRESSES, place), changes))
        if pods:
            self.on_pods(pods)

    def _node(self, cluster: Cluster, name: str, raw: bytes | None) -> None:
        source = cluster.source(Facet.NODE, name)
        if raw is None:
            cluster.nodes.pop(name, None)
            self._write_node(source, NodeEntries())
            return
        node = records.decode(Node, raw)
        if node.name != name or node.cluster != cluster.name:
            raise RecordError(f"the record is of {node.cluster}/{node.name}")
        entries = compile_node(self.place, cluster.cluster_id, node)
        cluster.nodes[name] = entries
        self._write_node(source, entries)
        if not cluster.foreign and name == self.place.node:
            self.own_node = node
            self.on_pods(self.pods.move(frozenset(address.ip for address in node.ip_addresses or ())))
            self.on_own_node(node)

    def _identity(self, cluster: Cluster, tail: str, raw: bytes | None) -> None:
        _set_identity(cluster.identities, tail, raw)

    def _local_identity(self, cluster: Cluster, tail: str, raw: bytes | None) -> None:
        _set_identity(cluster.local_identities, tail, raw)

    def _service(self, cluster: Cluster, name: str, raw: bytes | None) -> None:
        kind: type[LocalService | ServiceRecord] = ServiceRecord if cluster.foreign else LocalService
        service = None if raw is None else records.decode(kind, raw)
        if service is not None and f"{service.namespace}/{service.name}" != name:
            raise RecordError(f"the record is of {service.namespace}/{service.name}")
        if service is not None:
            check_ports(service.frontends)
            check_ports(service.backends)
        if isinstance(service, ServiceRecord) or (service is None and cluster.foreign):
            self._put_remote(cluster, name, service)
        else:
            self._write_service(cluster, name, self.services.put_local(name, service))

    def _slice(self, cluster: Cluster, name: str, raw: bytes | None) -> None:
        record = None if raw is None else endpoint_slices.decode(raw)
        if record is not None and (record.cluster != cluster.name or f"{record.namespace}/{record.name}" != name):
            raise RecordError(f"the record is of {record.cluster}/{record.namespace}/{record.name}")
        for service, backends in cluster.slices.put(name, record).items():
            self._put_remote(cluster, service, None if backends is None else _service_of(cluster, service, backends))

    def _put_remote(self, cluster: Cluster, name: str, service: ServiceRecord | None) -> None:
        if cluster.staged is None:
            self._write_service(cluster, name, self.services.put_remote(cluster.cluster_id, name, service))
        elif service is None:
            cluster.staged.pop(name, None)
        else:
            cluster.staged[name] = service

    def _unstage(self, cluster: Cluster) -> None:
        """What was staged counts now, and nothing else."""
        staged, cluster.staged = cluster.staged, None
        if staged is not None:
            for name in self.services.names(cluster.cluster_id) | staged.keys():
                self._put_remote(cluster, name, staged.get(name))

    # Ends

    def _add(self, name: str, cluster_id: int) -> Cluster:
        foreign = cluster_id != self.place.cluster_id
        cluster = self.clusters[name] = Cluster(name, cluster_id, foreign, Addresses(cluster_id, foreign=foreign))
        return cluster

    def _write_node(self, source: Source, entries: NodeEntries) -> None:
        self._sink.submit(Map.NODES, self.outer.replace(source, entries.outer))
        self._sink.submit(Map.IPCACHE, self.ipcache.replace(source, entries.ipcache))
        self._sink.submit(Map.ENDPOINTS, self.hosts.replace(source, entries.endpoints))
        routes = self.routes.replace(source, entries.routes)
        if routes:
            self.on_routes(routes)

    def _write_service(self, cluster: Cluster, name: str, changes: ServiceChanges) -> None:
        self._write_services(changes)
        for address in changes.conflicts:
            log.warning("service %s: %s announces the backend %s of another cluster", name, cluster.name, address)

    def _write_services(self, changes: ServiceChanges) -> None:
        self._sink.submit(Map.BACKENDS, changes.backends)
        self._sink.submit(Map.SERVICES, changes.services)

    def _prune(self, cluster_id: int) -> None:
        self._sink.prune(Map.IPCACHE, cluster_id, self.ipcache.entries)
        self._sink.prune(Map.NODES, cluster_id, self.outer.entries)

    def _forgive_below(self, *prefixes: str) -> None:
        self.rejected = {key: why for key, why in self.rejected.items() if not key.startswith(prefixes)}

    def _reject(self, cluster: Cluster, raw_key: bytes, error: Exception) -> None:
        self.reject(cluster.name, raw_key.decode(errors="backslashreplace"), str(error))

    def _accept(self, raw_key: bytes) -> None:
        if self.rejected:
            self.forgive(raw_key.decode(errors="backslashreplace"))


def _service_of(cluster: Cluster, name: str, backends: PortMaps) -> ServiceRecord:
    namespace, _, of = name.partition("/")
    return ServiceRecord(
        cluster=cluster.name, namespace=namespace, name=of, backends=backends, cluster_id=cluster.cluster_id
    )


def _set_identity(identities: dict[int, Mapping[str, str]], tail: str, raw: bytes | None) -> None:
    if raw is None:
        identities.pop(int(tail), None)
    else:
        identities[int(tail)] = records.decode_identity(raw)
