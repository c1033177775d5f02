"""Services of the own cluster merged with what peers have behind the same names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from zlib import crc32

from clustermesh.wire.private import LocalService
from clustermesh.wire.records import ServiceRecord
from nodeagent.compile.services import Offer, compile_service
from nodeagent.compile.slots import is_master, slot_key
from nodeagent.datapath.abi import BackendKey, BackendValue, ServiceValue
from nodeagent.tables.backends import BackendIds
from nodeagent.tables.ranked import Changes, Ranked
from nodeagent.tables.source import Facet, Source

Frontends = Mapping[bytes, tuple[bytes, ...]]


@dataclass(slots=True)
class ServiceChanges:
    """Entries of cm_services and cm_backends to write (None: to remove), and conflicts that came up."""

    services: Changes[bytes, bytes] = field(default_factory=list)
    backends: Changes[bytes, bytes] = field(default_factory=list)
    conflicts: tuple[str, ...] = ()


class Services:
    """One change recompiles one service, whatever their number."""

    def __init__(self, cluster_id: int) -> None:
        self._cluster_id = cluster_id
        self._local: dict[str, LocalService] = {}
        self._remote: dict[str, dict[int, ServiceRecord]] = {}  # by name, then cluster id
        self._names: dict[int, set[str]] = {}  # of each cluster's records
        self._frontends = Ranked[bytes, tuple[bytes, ...]]()
        self._ids = BackendIds()
        self._remembered: dict[bytes, dict[int, tuple[bytes, ...]]] = {}

    @property
    def frontends(self) -> Frontends:
        """Master entry's key → values of its backends in slot order: what the kernel should hold."""
        return self._frontends.entries

    def backends(self) -> dict[bytes, bytes]:
        """What cm_backends should hold."""
        used = {value for values in self.frontends.values() for value in values}
        return {BackendKey(self._ids.number(value)).pack(): value for value in used}

    def entries(self) -> dict[bytes, bytes]:
        """What cm_services should hold."""
        return {
            key: entry
            for master, values in self.frontends.items()
            for key, entry in service_entries(master, [self._ids.number(value) for value in values])
            if entry is not None
        }

    def count(self, cluster_id: int) -> int:
        """Services known of a cluster."""
        return len(self._local) if cluster_id == self._cluster_id else len(self._names.get(cluster_id, ()))

    def names(self, cluster_id: int) -> frozenset[str]:
        """Names of a peer's services."""
        return frozenset(self._names.get(cluster_id, ()))

    def remember(self, services: Iterable[tuple[bytes, bytes]], backends: Mapping[bytes, bytes]) -> None:
        """Take over peers' backends that an earlier agent left in the kernel.

        They count until `forget` says that the peer's services are read; numbers are kept for good.
        """
        self._ids.adopt((BackendKey.unpack(key).id, value) for key, value in backends.items())
        slots: dict[bytes, dict[int, list[bytes]]] = {}
        for key, entry in services:
            value = backends.get(BackendKey(ServiceValue.unpack(entry).backend_id).pack())
            if is_master(key) or value is None:
                continue
            cluster_id = BackendValue.unpack(value).cluster_id
            if cluster_id != self._cluster_id:
                slots.setdefault(slot_key(key, 0), {}).setdefault(cluster_id, []).append(value)
        self._remembered = {
            master: {cluster_id: tuple(values) for cluster_id, values in by_cluster.items()}
            for master, by_cluster in slots.items()
        }

    def forget(self, cluster_id: int) -> ServiceChanges:
        """The cluster's services are read in full (or it is gone): what was remembered of it no longer counts."""
        affected = [master for master, by_cluster in self._remembered.items() if by_cluster.pop(cluster_id, None)]
        masters = set(affected)
        names = (
            {name for name in self._local if masters & self._frontends.claims(self._source(name)).keys()}
            if masters
            else set()
        )
        return self._compile(names)

    def put_local(self, name: str, service: LocalService | None) -> ServiceChanges:
        """`name` is namespace/name; None when the Service is gone. Only global ones are translated."""
        if service is None or not service.is_global:
            self._local.pop(name, None)
        else:
            self._local[name] = service
        return self._compile({name})

    def put_remote(self, cluster_id: int, name: str, service: ServiceRecord | None) -> ServiceChanges:
        """A peer's record; one that is not shared counts as none."""
        by_cluster = self._remote.setdefault(name, {})
        names = self._names.setdefault(cluster_id, set())
        if service is None or not service.shared:
            by_cluster.pop(cluster_id, None)
            names.discard(name)
            if not by_cluster:
                del self._remote[name]
        else:
            by_cluster[cluster_id] = service
            names.add(name)
        return self._compile({name})

    def drop_cluster(self, cluster_id: int) -> ServiceChanges:
        """Forget all of a peer."""
        names = self._names.pop(cluster_id, set())
        for name in names:
            by_cluster = self._remote[name]
            del by_cluster[cluster_id]
            if not by_cluster:
                del self._remote[name]
        changes = self._compile(names)
        rest = self.forget(cluster_id)
        return ServiceChanges(changes.services + rest.services, changes.backends + rest.backends)

    def _source(self, name: str) -> Source:
        return Source(False, self._cluster_id, Facet.SERVICE, name)

    def _compile(self, names: Iterable[str]) -> ServiceChanges:
        changes = ServiceChanges()
        for name in names:
            service = self._local.get(name)
            frontends: Frontends = {}
            if service is not None:
                remote = sorted(self._remote.get(name, {}).items())
                compiled = compile_service(
                    service,
                    Offer(self._cluster_id, service.backends),
                    (Offer(cluster_id, record.backends) for cluster_id, record in remote),
                    self._recall,
                )
                frontends = compiled.frontends
                changes.conflicts += compiled.conflicts
            before = self._frontends.entries
            claims = self._frontends.claims(self._source(name))
            old = {key: before[key] for key in claims.keys() | frontends.keys() if key in before}
            for key, values in self._frontends.replace(self._source(name), frontends):
                self._write(changes, key, old.get(key), values)
        return changes

    def _recall(self, master: bytes) -> list[bytes]:
        return [value for values in self._remembered.get(master, {}).values() for value in values]

    def _write(
        self, changes: ServiceChanges, master: bytes, old: tuple[bytes, ...] | None, new: tuple[bytes, ...] | None
    ) -> None:
        # Acquire before release: a backend that stays must keep its number.
        numbers = []
        for value in new or ():
            number, first = self._ids.acquire(value)
            numbers.append(number)
            if first:
                changes.backends.append((BackendKey(number).pack(), value))
        for value in old or ():
            released = self._ids.release(value)
            if released is not None:
                changes.backends.append((BackendKey(released).pack(), None))
        changes.services += service_entries(master, numbers if new is not None else None, len(old or ()))


def service_entries(master: bytes, numbers: list[int] | None, slots: int = 0) -> Changes[bytes, bytes]:
    """Entries of one frontend: its slots, then its master. `numbers` None removes it, `slots` is what there was."""
    service_id = crc32(master)
    entries: Changes[bytes, bytes] = [
        (slot_key(master, slot), ServiceValue(backend_id=number, service_id=service_id).pack())
        for slot, number in enumerate(numbers or (), start=1)
    ]
    count = len(numbers or ())
    entries += [(slot_key(master, slot), None) for slot in range(count + 1, slots + 1)]
    entries.append((master, None if numbers is None else ServiceValue(count=count, service_id=service_id).pack()))
    return entries
