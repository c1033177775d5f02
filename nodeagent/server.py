"""Health, readiness and metrics over HTTP."""

import asyncio
import os
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from nodeagent.datapath.abi import Direction, code_label
from nodeagent.datapath.abi import Metric as Count
from nodeagent.mesh import Mesh
from nodeagent.reconciler import Reconciler
from nodeagent.report import Reporter

_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Counters(Protocol):
    """The datapath's counters."""

    def counters(self) -> Mapping[tuple[int, Direction], Count]: ...


class AgentMetrics:
    """What Prometheus is told, read at the moment it asks."""

    def __init__(self, mesh: Mesh, reconciler: Reconciler, reporter: Reporter, datapath: Counters) -> None:
        self._mesh = mesh
        self._reconciler = reconciler
        self._reporter = reporter
        self._datapath = datapath

    def collect(self) -> Iterable[Metric]:
        report = self._reporter.report(time.time())
        ready = GaugeMetricFamily("clustermesh_agent_peer_ready", "Peer applied and probed", labels=["peer"])
        records = GaugeMetricFamily("clustermesh_agent_records", "Records applied", labels=["peer", "kind"])
        nodes = GaugeMetricFamily("clustermesh_agent_peer_nodes", "Nodes by probe", labels=["peer", "state"])
        trip = GaugeMetricFamily("clustermesh_agent_probe_rtt_seconds", "Median round trip of probes", labels=["peer"])
        age = GaugeMetricFamily("clustermesh_agent_last_event_timestamp_seconds", "Latest record", labels=["peer"])
        for name, peer in report.peers.items():
            ready.add_metric([name], float(peer.ready))
            for kind, count in peer.records.items():
                records.add_metric([name, kind], count)
            nodes.add_metric([name, "reachable"], peer.probe.reachable)
            nodes.add_metric([name, "unreachable"], peer.probe.total - peer.probe.reachable)
            trip.add_metric([name], peer.probe.rtt_us / 1e6)
            age.add_metric([name], peer.last_event)
        yield from (ready, records, nodes, trip, age)
        yield from self._own()

    def _own(self) -> Iterable[Metric]:
        entries = GaugeMetricFamily("clustermesh_agent_map_entries", "Entries written to a map", labels=["map"])
        refused = GaugeMetricFamily("clustermesh_agent_map_refused", "Entries the kernel refuses", labels=["map"])
        for name, applied in self._reconciler.applied.items():
            entries.add_metric([name], len(applied))
            refused.add_metric([name], len(self._reconciler.refused[name]))
        yield from (entries, refused)
        yield GaugeMetricFamily(
            "clustermesh_agent_rejected_records", "Records that do not decode", value=len(self._mesh.rejected)
        )
        yield CounterMetricFamily(
            "clustermesh_agent_map_repairs", "Entries repaired by audits", value=self._reconciler.repairs
        )
        yield CounterMetricFamily("clustermesh_agent_map_writes", "Entries written", value=self._reconciler.writes)
        packets = CounterMetricFamily("clustermesh_packets", "Packets by fate", labels=["fate", "direction"])
        octets = CounterMetricFamily("clustermesh_bytes", "Bytes by fate", labels=["fate", "direction"])
        for (code, direction), count in self._datapath.counters().items():
            labels = [code_label(code), direction.name.lower()]
            packets.add_metric(labels, count.packets)
            octets.add_metric(labels, count.bytes)
        yield from (packets, octets)


def listen(host: str, port: int) -> socket.socket:
    """The socket to serve from. OSError names the address and the remedy when it cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(f"cannot listen on {host}:{port}: {reason}: give another --listen HOST:PORT") from error


class Server:
    """GET /healthz (the process works), /readyz (this node's pods are served), /metrics, /report (JSON)."""

    def __init__(self, listener: socket.socket, reporter: Reporter, metrics: AgentMetrics) -> None:
        self._listener = listener
        self._reporter = reporter
        self._registry = CollectorRegistry()
        self._registry.register(metrics)

    async def run(self) -> None:
        """Serve for ever."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/report", self._report),
            ]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.SockSite(runner, self._listener).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        reason = self._reporter.waiting_for()
        return web.Response(text=f"not ready: {reason}\n", status=503) if reason else web.Response(text="ok\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": _TEXT})

    async def _report(self, _: web.Request) -> web.Response:
        return web.json_response(body=msgspec.json.encode(self._reporter.report(time.time())))
