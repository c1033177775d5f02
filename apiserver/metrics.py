"""What the API server counts, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from clustermesh.kube.reflector import Phase, ReflectorState

_PREFIX = "clustermesh_apiserver"


class Metrics:
    """One registry for the process; pass it on, so that tests can have several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._changes = Counter(
            f"{_PREFIX}_export_changes",
            "Changes handed to the writer of etcd",
            ("kind", "action"),
            registry=self.registry,
        )
        self._queue = Gauge(
            f"{_PREFIX}_export_queue_size",
            "Changes that are not in etcd yet",
            ("kind",),
            registry=self.registry,
        )
        self._objects = Gauge(
            f"{_PREFIX}_exported_objects", "Objects of this cluster held for export", ("kind",), registry=self.registry
        )
        self._feed = Gauge(
            f"{_PREFIX}_kubernetes_feed_state",
            "1 for the state that the list and watch of a kind is in",
            ("resource", "state"),
            registry=self.registry,
        )
        self._failures = Counter(
            f"{_PREFIX}_kubernetes_feed_failures",
            "Failed attempts to list or watch a kind",
            ("resource",),
            registry=self.registry,
        )
        self.synced = Gauge(
            f"{_PREFIX}_initial_export_completed",
            "1 once everything found at the start is in etcd",
            registry=self.registry,
        )

    def put(self, kind: str) -> None:
        self._changes.labels(kind, "put").inc()

    def delete(self, kind: str) -> None:
        self._changes.labels(kind, "delete").inc()

    def watch_queue(self, kind: str, size: Callable[[], int]) -> None:
        self._queue.labels(kind).set_function(size)

    def watch_objects(self, kind: str, count: Callable[[], int]) -> None:
        self._objects.labels(kind).set_function(count)

    def feed_state(self, resource: str, state: ReflectorState) -> None:
        for phase in Phase:
            self._feed.labels(resource, phase).set(phase is state.phase)
        if state.phase is Phase.RETRYING:
            self._failures.labels(resource).inc()
