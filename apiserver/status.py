"""What a peer's status says: trust, mirror and agents summed up. Pure; who writes it is elsewhere.

"Ready" is a claim about kernel maps: every node's agent has applied exactly the records that are mirrored, and a probe
of each came back from the peer. A peer that runs Cilium answers no probes, so nobody waits for one.
"""

import statistics
from collections.abc import Collection, Mapping
from datetime import UTC, datetime

import msgspec

from apiserver.quarantine import QuarantineView
from clustermesh.kube.objects import (
    ClusterMeshPeerStatus,
    Condition,
    PeerAgents,
    PeerConfig,
    PeerConnection,
    PeerProbe,
    PeerQuarantine,
    PeerRecords,
    PeerUsage,
    WaitingAgent,
)
from clustermesh.wire.keys import DATAPATH_KINDS, Kind
from clustermesh.wire.private import AgentReport
from clustermesh.wire.records import ClusterConfig

# How long agents may lag behind records that just changed before a ready peer counts as not applied, in seconds.
SETTLE = 10.0
WAITING_SHOWN = 20


class TrustView(msgspec.Struct, frozen=True):
    """How far the exchange of certificates is."""

    certificate_request: str = ""
    issued_certificate: str = ""
    complete: bool = False
    reason: str = "Pending"
    message: str = ""


class MirrorView(msgspec.Struct, frozen=True):
    """What a mirror knows of its peer.

    last_event: the last proof of life of the peer's etcd, which a quiet one gives as well; Unix seconds to be shown, 0
    for never. quiet: seconds since its records changed last, by a clock that does not jump.
    """

    state: str = "pending"  # pending, connecting, connected or failed
    stage: str = ""
    message: str = ""
    last_event: float = 0.0
    quiet: float = float("inf")
    config: ClusterConfig | None = None
    kinds: tuple[Kind, ...] = DATAPATH_KINDS  # that the peer exports
    synced: frozenset[Kind] = frozenset()
    records: Mapping[Kind, int] = {}
    quarantined: QuarantineView = QuarantineView()
    strict: bool | None = None  # None: no record is judged yet
    used_records: int = 0
    used_bytes: int = 0
    throttled: bool = False  # it changes faster than its quota lets it


def summarise(
    peer: str,
    *,
    generation: int,
    trust: TrustView,
    mirror: MirrorView,
    nodes: Collection[str],
    reports: Mapping[str, AgentReport],
    probed: bool = True,
    previous: ClusterMeshPeerStatus,
    now: float,
) -> ClusterMeshPeerStatus:
    """The status of one peer. `nodes` are this cluster's nodes: each should have an agent.

    `probed`: whether the peer answers path probes.
    """
    was_applied = any(c.type == "Applied" and c.status == "True" for c in previous.conditions)
    settling = was_applied and mirror.quiet < SETTLE
    expected = {kind.value: mirror.records.get(kind, 0) for kind in Kind}
    applied_kinds = mirror.config.datapath_kinds() if mirror.config is not None else DATAPATH_KINDS
    applicable = {kind.value: mirror.records.get(kind, 0) for kind in applied_kinds}
    waiting = {
        node: reason
        for node in sorted(nodes)
        if (reason := why_waiting(reports.get(node), peer, applicable, settling=settling)) is not None
    }
    probe = _sum_probes([report for node, report in reports.items() if node in nodes], peer)
    unprobed = [node for node in sorted(nodes) if probed and node not in waiting and not _answered(reports[node], peer)]
    agents = PeerAgents(
        ready=len(nodes) - len(waiting) - len(unprobed),
        total=len(nodes),
        waiting=tuple(
            WaitingAgent(node=node, reason=reason)
            for node, reason in sorted((waiting | dict.fromkeys(unprobed, "no probe came back")).items())
        )[:WAITING_SHOWN],
    )
    return ClusterMeshPeerStatus(
        observed_generation=generation,
        certificate_request=trust.certificate_request,
        issued_certificate=trust.issued_certificate,
        connection=_connection(mirror, previous.connection, now),
        config=_config(mirror.config),
        records=PeerRecords(**expected),
        quarantined=PeerQuarantine(
            total=mirror.quarantined.total,
            by_reason=mirror.quarantined.by_reason,
            examples=mirror.quarantined.examples,
        ),
        policy=_policy(mirror.strict),
        usage=PeerUsage(records=mirror.used_records, bytes=mirror.used_bytes, throttled=mirror.throttled),
        agents=agents,
        probe=probe,
        conditions=_conditions(trust, mirror, nodes, waiting, unprobed, previous.conditions, now),
    )


def why_waiting(
    report: AgentReport | None, peer: str, expected: Mapping[str, int], *, settling: bool = False
) -> str | None:
    """Why an agent has not applied the peer's data yet; None when it has."""
    if report is None:
        return "no report from its agent"
    if not report.ready:
        return "agent is not ready"
    part = report.peers.get(peer)
    if part is None:
        return "agent does not know the peer yet"
    if not part.ready:
        return part.reason or "agent is applying the peer's data"
    if not settling:
        for kind, count in expected.items():
            if part.records.get(kind, 0) != count:
                return f"{part.records.get(kind, 0)} of {count} {kind} applied"
    return None


def worth_writing(old: ClusterMeshPeerStatus, new: ClusterMeshPeerStatus, *, figures_due: bool) -> bool:
    """Whether a reader would miss a change; figures that always move count only when they are due."""
    return new != old if figures_due else _steady(new) != _steady(old)


def is_ready(status: ClusterMeshPeerStatus) -> bool:
    return any(condition.type == "Ready" and condition.status == "True" for condition in status.conditions)


def agents_document(reports: Mapping[str, AgentReport]) -> str:
    """`agents.json` of ConfigMap clustermesh-agents: what `connect` checks and `status` shows of each node."""
    return msgspec.json.encode(
        {
            node: {
                "ready": report.ready,
                "version": report.version,
                "mtu": report.mtu,
                "attach": report.attach,
                "endpoints": report.endpoints,
                "undecodable": report.undecodable,
                "peers": {name: {"ready": part.ready, "records": part.records} for name, part in report.peers.items()},
            }
            for node, report in reports.items()
        },
        order="deterministic",
    ).decode()


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC, whole seconds; "" for never."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else ""


def _steady(status: ClusterMeshPeerStatus) -> ClusterMeshPeerStatus:
    """Without what moves though nothing has happened, and what changes with every record."""
    return msgspec.structs.replace(
        status,
        connection=msgspec.structs.replace(status.connection, last_event=""),
        probe=msgspec.structs.replace(status.probe, rtt_micros=0),
        usage=msgspec.structs.replace(status.usage, bytes=0),
    )


def _connection(mirror: MirrorView, previous: PeerConnection, now: float) -> PeerConnection:
    same = previous.state == mirror.state and previous.since
    return PeerConnection(
        state=mirror.state,
        stage=mirror.stage,
        message=mirror.message,
        since=previous.since if same else timestamp(now),
        last_event=timestamp(mirror.last_event) or previous.last_event,
    )


def _policy(strict: bool | None) -> str:
    if strict is None:
        return ""
    return "strict" if strict else "lenient"


def _config(config: ClusterConfig | None) -> PeerConfig | None:
    if config is None:
        return None
    return PeerConfig(
        cluster_id=config.id,
        max_connected_clusters=config.capabilities.max_connected_clusters,
        synced_canaries=config.capabilities.synced_canaries,
        cached=config.capabilities.cached,
    )


def _answered(report: AgentReport, peer: str) -> bool:
    part = report.peers.get(peer)
    return part is not None and part.probe.reachable > 0


def _sum_probes(reports: Collection[AgentReport], peer: str) -> PeerProbe:
    probes = [part.probe for report in reports if (part := report.peers.get(peer)) is not None]
    answered = [probe.rtt_us for probe in probes if probe.reachable]
    return PeerProbe(
        reachable=sum(probe.reachable for probe in probes),
        total=sum(probe.total for probe in probes),
        rtt_micros=round(statistics.median(answered)) if answered else 0,
    )


def _conditions(
    trust: TrustView,
    mirror: MirrorView,
    nodes: Collection[str],
    waiting: Mapping[str, str],
    unprobed: Collection[str],
    previous: Collection[Condition],
    now: float,
) -> tuple[Condition, ...]:
    missing = [kind.value for kind in mirror.kinds if kind not in mirror.synced]
    connected, synced = mirror.state == "connected", not missing
    applied = bool(nodes) and not waiting and synced
    if not nodes:
        applied_message = "this cluster has exported no node yet"
    elif waiting:
        node, reason = next(iter(waiting.items()))
        applied_message = f"{len(waiting)} of {len(nodes)} agents are not done: {node}: {reason}"
    else:
        applied_message = "" if synced else "the peer's records are not complete"
    blocked = [
        name
        for name, fine in (
            ("Trusted", trust.complete),
            ("Connected", connected),
            ("Synced", synced),
            ("Applied", applied),
            ("Probed", bool(nodes) and not unprobed and not waiting),
        )
        if not fine
    ]
    found = (
        Condition(type="Trusted", status=_truth(trust.complete), reason=trust.reason, message=trust.message),
        Condition(
            type="Connected",
            status=_truth(connected),
            reason="Connected" if connected else _camel(mirror.stage or mirror.state),
            message=mirror.message,
        ),
        Condition(
            type="Synced",
            status=_truth(synced),
            reason="Complete" if synced else "Waiting",
            message="" if synced else f"not complete: {', '.join(missing)}",
        ),
        Condition(
            type="Applied",
            status=_truth(applied),
            reason="Applied" if applied else "Waiting",
            message=applied_message,
        ),
        Condition(
            type="Ready",
            status=_truth(not blocked),
            reason="Not" + blocked[0] if blocked else "Ready",
            message=f"no probe came back on {', '.join(list(unprobed)[:3])}" if blocked == ["Probed"] else "",
        ),
    )
    before = {condition.type: condition for condition in previous}
    return tuple(_dated(condition, before.get(condition.type), now) for condition in found)


def _dated(condition: Condition, before: Condition | None, now: float) -> Condition:
    kept = before.last_transition_time if before is not None and before.status == condition.status else ""
    return msgspec.structs.replace(condition, last_transition_time=kept or timestamp(now))


def _truth(value: bool) -> str:
    return "True" if value else "False"


def _camel(text: str) -> str:
    return "".join(part.capitalize() for part in text.replace("_", "-").split("-"))
