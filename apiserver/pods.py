"""Pods, the namespaces whose labels they inherit, and the identity each of them needs. No effects.

A pod's addresses can be exported once its namespace is known and its labels have a number; until then it waits here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from apiserver.addresses import AddressChange, AddressTable, compile_pod, pod_addresses
from apiserver.cluster import ClusterIdentity
from clustermesh.kube.objects import Namespace, ObjectRef, Pod
from clustermesh.wire import label_filter, labels
from clustermesh.wire.label_filter import LabelFilter


class PodName(NamedTuple):
    namespace: str
    name: str


@dataclass(slots=True)
class _Entry:
    pod: Pod
    labels: str = ""  # of its identity, as written on the wire; "" while it needs none
    number: int | None = None


@dataclass(frozen=True, slots=True)
class PodChanges:
    """What one change of the cluster comes down to."""

    addresses: tuple[AddressChange, ...] = ()
    wanted: frozenset[str] = frozenset()  # labels, as written on the wire, that need a number


class _Inherited(NamedTuple):
    """What pods have of their namespace."""

    labels: Mapping[str, str]
    public: bool


class PodTable:
    """`lookup` tells the number of labels, or None when there is none yet; `relevant` which labels of a pod count."""

    def __init__(
        self,
        cluster: ClusterIdentity,
        lookup: Callable[[str], int | None],
        relevant: LabelFilter = label_filter.DEFAULT,
    ) -> None:
        self._cluster = cluster
        self._lookup = lookup
        self._relevant = relevant
        self._addresses = AddressTable()
        self._namespaces: dict[str, _Inherited] = {}
        self._pods: dict[PodName, _Entry] = {}
        self._by_namespace: dict[str, set[PodName]] = {}
        self._waiting: dict[str, set[PodName]] = {}
        self._users: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._addresses)

    @property
    def waiting(self) -> frozenset[str]:
        """Labels that pods wait for."""
        return frozenset(self._waiting)

    def uses(self, number: int) -> bool:
        """Whether a pod has this identity."""
        return number in self._users

    def addresses(self, ref: ObjectRef) -> tuple[str, ...]:
        """What is exported of a pod, or would be if no other pod had it."""
        return self._addresses.of_pod(ref.uid)

    def set_namespace(self, namespace: Namespace, *, public: bool = True) -> PodChanges:
        """Touches all pods of the namespace, but only if what they have of it differs from before."""
        given = _Inherited(namespace.metadata.labels or {}, public)
        if self._namespaces.get(namespace.name) == given:
            return PodChanges()
        self._namespaces[namespace.name] = given
        return self._update(list(self._by_namespace.get(namespace.name, ())))

    def remove_namespace(self, ref: ObjectRef) -> None:
        """Its pods go one by one, each with its own event."""
        self._namespaces.pop(ref.name, None)

    def set_pod(self, pod: Pod) -> PodChanges:
        name = PodName(pod.namespace, pod.name)
        entry = self._pods.get(name)
        if entry is not None and entry.pod.metadata.uid != pod.metadata.uid:
            gone = self._remove(name, entry)
            rest = self.set_pod(pod)
            return PodChanges((*gone, *rest.addresses), rest.wanted)
        if entry is None:
            if not pod_addresses(pod):
                return PodChanges()
            self._pods[name] = _Entry(pod)
            self._by_namespace.setdefault(pod.namespace, set()).add(name)
        else:
            entry.pod = pod
        return self._update((name,))

    def remove_pod(self, ref: ObjectRef) -> PodChanges:
        name = PodName(ref.namespace, ref.name)
        entry = self._pods.get(name)
        if entry is None or entry.pod.metadata.uid != ref.uid:
            return PodChanges()
        return PodChanges(tuple(self._remove(name, entry)))

    def numbered(self, text: str) -> PodChanges:
        """The labels have got a number: pods that waited for it go on."""
        return self._update(list(self._waiting.get(text, ())))

    def _update(self, names: Iterable[PodName]) -> PodChanges:
        changes: list[AddressChange] = []
        wanted: set[str] = set()
        for name in names:
            entry = self._pods[name]
            changes += self._update_one(name, entry, wanted)
        return PodChanges(tuple(changes), frozenset(wanted))

    def _update_one(self, name: PodName, entry: _Entry, wanted: set[str]) -> list[AddressChange]:
        pod = entry.pod
        if not pod_addresses(pod):
            return self._remove(name, entry)
        inherited = self._namespaces.get(name.namespace)
        if inherited is None:
            return []
        self._need(
            name,
            entry,
            labels.encode(
                labels.of_pod(
                    self._cluster.name,
                    pod.namespace,
                    inherited.labels,
                    pod.spec.service_account_name,
                    pod.metadata.labels or {},
                    self._relevant,
                )
            ),
        )
        number = self._lookup(entry.labels)
        if number is None:
            # The pod is exported with its former identity until the new one has a number.
            self._waiting.setdefault(entry.labels, set()).add(name)
            wanted.add(entry.labels)
            if entry.number is None:
                return []
        else:
            self._stop_waiting(name, entry)
            self._assign(entry, number)
        assert entry.number is not None
        return self._addresses.set(pod.metadata.uid, compile_pod(pod, entry.number), public=inherited.public)

    def _need(self, name: PodName, entry: _Entry, text: str) -> None:
        if entry.labels != text:
            self._stop_waiting(name, entry)
            entry.labels = text

    def _assign(self, entry: _Entry, number: int | None) -> None:
        if number == entry.number:
            return
        if entry.number is not None:
            self._users[entry.number] -= 1
            if not self._users[entry.number]:
                del self._users[entry.number]
        if number is not None:
            self._users[number] = self._users.get(number, 0) + 1
        entry.number = number

    def _stop_waiting(self, name: PodName, entry: _Entry) -> None:
        names = self._waiting.get(entry.labels)
        if names is not None:
            names.discard(name)
            if not names:
                del self._waiting[entry.labels]

    def _remove(self, name: PodName, entry: _Entry) -> list[AddressChange]:
        self._stop_waiting(name, entry)
        self._assign(entry, None)
        del self._pods[name]
        self._by_namespace[name.namespace].discard(name)
        if not self._by_namespace[name.namespace]:
            del self._by_namespace[name.namespace]
        return self._addresses.set(entry.pod.metadata.uid, {})
