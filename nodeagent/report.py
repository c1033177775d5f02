"""What this agent tells its API server: what it has applied of each peer, under a short lease in the own etcd."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.lease import Lease
from clustermesh.kvstore.writer import Writer
from clustermesh.wire import keys, private
from clustermesh.wire.keys import Kind
from clustermesh.wire.private import AgentReport, PeerReport, ProbeReport
from nodeagent.endpoints import Endpoints
from nodeagent.mesh import Cluster, Mesh
from nodeagent.probes import Prober
from nodeagent.reconciler import Reconciler

_TTL = 30  # seconds after which the report of a dead agent vanishes
_LOOK = 0.25  # seconds between two looks at whether anything changed
_SHORTEST = 1.0
_LONGEST = 10.0
_MOST_KEYS = 20


@dataclass(frozen=True, slots=True)
class Identity:
    """What does not change while an agent runs."""

    node: str
    version: str
    started: float  # Unix time
    attach: str  # tcx or clsact


class Reporter:
    """Sums up the agent's parts: on demand, and by `run` to etcd, on change and at most once a second."""

    def __init__(
        self,
        me: Identity,
        mesh: Mesh,
        reconciler: Reconciler,
        endpoints: Endpoints,
        prober: Prober,
        mtu: Callable[[], int],
    ) -> None:
        self._me = me
        self._mesh = mesh
        self._reconciler = reconciler
        self._endpoints = endpoints
        self._prober = prober
        self._mtu = mtu

    def report(self, now: float) -> AgentReport:
        """`now` is Unix time."""
        return AgentReport(
            node=self._me.node,
            version=self._me.version,
            started=self._me.started,
            updated=now,
            ready=not self.waiting_for(),
            mtu=self._mtu(),
            attach=self._me.attach,
            endpoints=len(self._endpoints),
            peers={peer.name: self._peer(peer) for peer in self._mesh.peers()},
            undecodable=tuple(sorted(self._mesh.rejected)[:_MOST_KEYS]),
        )

    def waiting_for(self) -> str:
        """Why this node is not ready to serve its own pods; empty when it is."""
        own = self._mesh.own
        missing = sorted(set(own.kinds) - self._mesh.applied(own))
        if missing:
            return f"the own cluster's {', '.join(missing)} are not complete"
        if self._mesh.own_node is None:
            return f"node {self._me.node} is not among the own cluster's nodes"
        if not self._mesh.peers_known:
            return "the list of peers is not complete"
        if not self._endpoints.settled.is_set():
            return "local pods are being attached"
        if self._endpoints.failures:
            return f"cannot attach to a pod: {next(iter(self._endpoints.failures.values()))}"
        return self._refusal()

    def _refusal(self) -> str:
        for name, refused in self._reconciler.refused.items():
            for refusal in refused.values():
                return f"{len(refused)} entries of {name} are refused: {refusal.reason}"
        return ""

    def _peer(self, peer: Cluster) -> PeerReport:
        applied = self._mesh.applied(peer)
        probe = self._prober.report(self._mesh.probes(peer))
        reason = self._peer_waits_for(peer, applied, probe)
        return PeerReport(
            ready=not reason,
            reason=reason,
            synced=tuple(sorted(applied)),
            records=self._mesh.counts(peer),
            revision=self._mesh.applied_revision(peer),
            last_event=peer.last_event,
            probe=probe,
        )

    def _peer_waits_for(self, peer: Cluster, applied: frozenset[Kind], probe: ProbeReport) -> str:
        missing = sorted(set(peer.kinds) - applied)
        if missing:
            return f"{', '.join(missing)} not complete"
        if refusal := self._refusal():
            return refusal
        if probe.total and not probe.reachable:
            return f"no probe came back from any of {probe.total} nodes"
        return self.waiting_for()

    async def run(self, connection: Connection) -> None:
        """Write the report for ever. It outlives this agent by its lease's time."""
        lease = Lease(connection, _TTL)
        writer = Writer(connection, lease)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lease.run())
            tasks.create_task(writer.run())
            tasks.create_task(self._write(writer))

    async def _write(self, writer: Writer) -> None:
        written: AgentReport | None = None
        written_at = float("-inf")
        while True:
            report, age = self.report(time.time()), time.monotonic() - written_at
            if age >= _LONGEST or (age >= _SHORTEST and _rest_of(report) != _rest_of(written)):
                writer.put(keys.agent(self._me.node), private.encode(report))
                written, written_at = report, time.monotonic()
            # Probes and rounds of the reconciler change what we say without telling.
            await asyncio.sleep(_LOOK)


def _rest_of(report: AgentReport | None) -> object:
    """What counts as a change."""
    if report is None:
        return None
    # Neither the time nor the round trips, nor how far the store has moved on without a change for us.
    peers = {
        name: (peer.ready, peer.reason, peer.synced, peer.records, peer.last_event, peer.probe.reachable)
        for name, peer in report.peers.items()
    }
    return report.ready, report.mtu, report.endpoints, report.undecodable, peers
