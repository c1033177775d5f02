"""What the API server counts, for Prometheus. docs/metrics.md names it all."""

from collections.abc import Callable, Iterable, Mapping

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from clustermesh.kube.reflector import Phase, ReflectorState

_PREFIX = "clustermesh_apiserver"
_CONNECTION_STATES = ("pending", "connecting", "connected", "failed")


class PeerFigures(msgspec.Struct, frozen=True):
    """One peer's mirror in numbers. The three counts start with the mirror; keys of the mappings are kinds."""

    peer: str
    state: str = "pending"
    silence: float | None = None  # seconds since the peer's etcd last answered; None: it never did
    records: Mapping[str, int] = {}
    quarantined: Mapping[str, int] = {}  # by reason
    events: Mapping[str, int] = {}
    relists: Mapping[str, int] = {}
    reconnects: int = 0
    queue: int = 0
    throttled: float = 0.0  # seconds that reading waited for the quota's rate
    quota: Mapping[str, tuple[int, int]] = {}  # resource → used, limit


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
        self.leading = Gauge(f"{_PREFIX}_leader", "1 while this replica leads", registry=self.registry)
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

    def watch_peers(self, figures: Callable[[], Iterable[PeerFigures]]) -> None:
        """Ask for the peers' figures at each scrape."""
        self.registry.register(_Peers(figures))

    def feed_state(self, resource: str, state: ReflectorState) -> None:
        for phase in Phase:
            self._feed.labels(resource, phase).set(phase is state.phase)
        if state.phase is Phase.RETRYING:
            self._failures.labels(resource).inc()


class _Peers(Collector):
    """Made at each scrape, so that a peer that is gone leaves no figures behind."""

    def __init__(self, figures: Callable[[], Iterable[PeerFigures]]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        prefix = f"{_PREFIX}_peer"
        state = GaugeMetricFamily(
            f"{prefix}_connection_state", "1 for the state of the connection to the peer", labels=("peer", "state")
        )
        silence = GaugeMetricFamily(
            f"{prefix}_proof_of_life_age_seconds", "Seconds since the peer's etcd last answered", labels=("peer",)
        )
        records = GaugeMetricFamily(f"{prefix}_records", "Mirrored records of the peer", labels=("peer", "kind"))
        quarantined = GaugeMetricFamily(
            f"{prefix}_quarantined_records", "Records of the peer that are kept out", labels=("peer", "reason")
        )
        events = CounterMetricFamily(f"{prefix}_events", "Changes taken from the peer", labels=("peer", "kind"))
        relists = CounterMetricFamily(
            f"{prefix}_relists", "Times that a kind was listed again", labels=("peer", "kind")
        )
        reconnects = CounterMetricFamily(
            f"{prefix}_reconnects", "Times that the peer was watched again", labels=("peer",)
        )
        queue = GaugeMetricFamily(
            f"{prefix}_write_queue_size", "Changes of the peer that are not in our etcd yet", labels=("peer",)
        )
        throttled = CounterMetricFamily(
            f"{prefix}_throttled_seconds", "Seconds that the peer was not read because of its quota", labels=("peer",)
        )
        used = GaugeMetricFamily(f"{prefix}_quota_used", "What of its quota the peer uses", labels=("peer", "resource"))
        limit = GaugeMetricFamily(f"{prefix}_quota_limit", "The peer's quota", labels=("peer", "resource"))
        for one in self._figures():
            for name in _CONNECTION_STATES:
                state.add_metric((one.peer, name), name == one.state)
            if one.silence is not None:
                silence.add_metric((one.peer,), one.silence)
            for family, values in ((records, one.records), (quarantined, one.quarantined)):
                for label, value in values.items():
                    family.add_metric((one.peer, label), value)
            for counter, counts in ((events, one.events), (relists, one.relists)):
                for label, value in counts.items():
                    counter.add_metric((one.peer, label), value)
            reconnects.add_metric((one.peer,), one.reconnects)
            queue.add_metric((one.peer,), one.queue)
            throttled.add_metric((one.peer,), one.throttled)
            for resource, (amount, most) in one.quota.items():
                used.add_metric((one.peer, resource), amount)
                limit.add_metric((one.peer, resource), most)
        return (
            *(state, silence, records, quarantined, events),
            *(relists, reconnects, queue, throttled, used, limit),
        )
