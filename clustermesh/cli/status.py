"""`clustermesh status`: what is applied of each peer, from nothing but the Kubernetes API."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime

import click
import msgspec

from clustermesh.cli.mesh import AgentsView, Cluster, open_clusters, watching
from clustermesh.cli.options import Settings, global_options, timeout_option
from clustermesh.cli.readiness import why_not_ready
from clustermesh.kube.errors import CredentialError, KubeError, NotFound
from clustermesh.kube.objects import (
    CILIUM,
    ClusterMeshPeer,
    PeerAgents,
    PeerConnection,
    PeerProbe,
    PeerQuarantine,
    PeerQuota,
    PeerUsage,
)
from clustermesh.output import Failure, Output

_AGAIN = 0.5  # seconds between two attempts at an API that does not answer

KINDS = ("nodes", "identities", "addresses", "services")


class Records(msgspec.Struct, frozen=True):
    """Of one kind: what the mirror let in, and what the agent that is furthest behind has in its kernel maps."""

    mirrored: int
    applied: int


class PeerLine(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    implementation: str
    ready: bool
    reason: str  # why it is not ready
    connection: PeerConnection
    event_age: float | None  # seconds
    records: Mapping[str, Records]
    agents: PeerAgents
    probe: PeerProbe
    quarantined: PeerQuarantine
    policy: str  # that its records are judged by
    usage: PeerUsage
    quota: PeerQuota


class Report(msgspec.Struct, frozen=True, rename="camel"):
    """The document of `--output json`."""

    cluster: str
    ready: bool
    alive: bool  # the API server gave a sign of life lately
    agents_ready: int
    agents_total: int
    peers: list[PeerLine]
    undecodable: Mapping[str, tuple[str, ...]] = {}  # node → keys of the own etcd that its agent cannot read


def make_report(cluster: str, peers: Mapping[str, ClusterMeshPeer], agents: AgentsView, now: float) -> Report:
    """Sum up what objects say. With an API server that is silent nothing counts as ready: what it said is old.

    `now` is Unix time by the cluster's own clock.
    """
    alive = agents.alive(now)
    lines = [_line(peers[name], agents, alive, now) for name in sorted(peers)]
    return Report(
        cluster=cluster,
        ready=alive and all(line.ready for line in lines),
        alive=alive,
        agents_ready=sum(agent.ready for agent in agents.agents.values()),
        agents_total=len(agents.agents),
        peers=lines,
        undecodable={node: agent.undecodable for node, agent in agents.agents.items() if agent.undecodable},
    )


def _line(peer: ClusterMeshPeer, agents: AgentsView, alive: bool, now: float) -> PeerLine:
    reason = why_not_ready(peer) if alive else "the API server is silent, this is what it said last"
    status = peer.status
    parts = [agent.peers.get(peer.name) for agent in agents.agents.values()]
    return PeerLine(
        name=peer.name,
        implementation=peer.spec.implementation,
        ready=reason is None,
        reason=reason or "",
        connection=status.connection,
        event_age=_age(status.connection.last_event, now),
        records={
            kind: Records(
                mirrored=getattr(status.records, kind),
                applied=min((part.records.get(kind, 0) if part else 0 for part in parts), default=0),
            )
            for kind in KINDS
        },
        agents=status.agents,
        probe=status.probe,
        quarantined=status.quarantined,
        policy=status.policy,
        usage=status.usage,
        quota=peer.spec.quota,
    )


def _age(event: str, now: float) -> float | None:
    try:
        return max(0.0, now - datetime.fromisoformat(event).timestamp()) if event else None
    except ValueError:
        return None


@click.command()
@click.option("--wait", is_flag=True, help="Wait until every peer is ready.")
@timeout_option(120, "How long to wait.")
@global_options
def status(settings: Settings, wait: bool, timeout: float) -> None:
    """Show what is applied of each peer.

    Exit status 1 unless every peer is ready: connected, its records complete and in every node's kernel maps, and a
    probe of each node answered; nodes that run Cilium answer none.
    """
    output = settings.output()
    report = asyncio.run(_status(settings, output, timeout if wait else None))
    _show(output, report)
    output.document(report)
    if not report.ready:
        late = f" after {timeout:.0f} s" if wait else ""
        raise Failure(f"not ready{late}: {_first_reason(report)}")


async def _status(settings: Settings, output: Output, timeout: float | None) -> Report:
    async with open_clusters(settings.kubeconfig, [settings.context]) as (cluster,):
        try:
            if timeout is None:
                name, *_ = await cluster.identity()
                return make_report(name, await cluster.peers(), await cluster.agents(), cluster.client.now())
            deadline = time.monotonic() + timeout
            name = await _name(cluster, output, deadline)
            return await _wait(name, cluster, output, max(1.0, deadline - time.monotonic()))
        except NotFound as error:
            raise Failure(
                f"context {cluster.context}: the CustomResourceDefinitions of clustermesh are missing: {error}"
            ) from None
        except (KubeError, CredentialError) as error:
            raise Failure(f"context {cluster.context}: {error}") from None


async def _name(cluster: Cluster, output: Output, deadline: float) -> str:
    """The cluster's name, as soon as its Kubernetes API tells. One who waits also waits for that."""
    while True:
        try:
            name, *_ = await cluster.identity()
        except KubeError as error:
            if not error.transient or time.monotonic() > deadline:
                raise
            output.progress(str(error))
            await asyncio.sleep(_AGAIN)
        else:
            return name


async def _wait(name: str, cluster: Cluster, output: Output, timeout: float) -> Report:
    """The first report that is ready, or the last one."""
    async with watching([cluster]) as ((side,), changed):
        report = make_report(name, side.peers, side.agents, cluster.client.now())
        try:
            async with asyncio.timeout(timeout):
                while not report.ready:
                    output.progress(_first_reason(report))
                    await changed.wait()
                    changed.clear()
                    report = make_report(name, side.peers, side.agents, cluster.client.now())
        except TimeoutError:
            pass
        return report


def _first_reason(report: Report) -> str:
    if not report.alive:
        return "the API server gives no sign of life: check clustermesh-apiserver and its log"
    return next((f"{line.name}: {line.reason}" for line in report.peers if not line.ready), "")


def _show(output: Output, report: Report) -> None:
    life = "running" if report.alive else "SILENT"
    output.line(
        f"cluster {report.cluster}: API server {life}, {report.agents_ready} of {report.agents_total} agents ready"
    )
    for node, keys in sorted(report.undecodable.items()):
        for key in keys:
            output.warn(
                f"{node}: record {key} of the own etcd does not decode, what it said before stays in force: "
                "restart clustermesh-apiserver, which writes it anew; the agent's log says what is wrong with it"
            )
    if not report.peers:
        output.line("no peers: connect one with `clustermesh connect --destination-context NAME`")
        return
    columns = (
        "PEER",
        "READY",
        "CONNECTION",
        "LAST EVENT",
        *(kind.upper() for kind in KINDS),
        "AGENTS",
        "PROBE",
        "POLICY",
        "KEPT OUT",
    )
    output.table(columns, [_row(line) for line in report.peers])
    for line in report.peers:
        if line.reason:
            output.warn(f"{line.name}: {line.reason}")
        for waiting in line.agents.waiting:
            output.line(f"    {waiting.node}: {waiting.reason}")
        for text in kept_out(line.quarantined):
            output.line(f"    {text}")
        for text in quota_warnings(line):
            output.warn(f"{line.name}: {text}")


def kept_out(quarantined: PeerQuarantine) -> list[str]:
    """What is kept out of a peer's records: examples, and when these are not all, how many there are of each reason."""
    lines = [f"kept out: {example}" for example in quarantined.examples]
    if quarantined.total > len(quarantined.examples):
        lines += [f"kept out in all: {count} x {reason}" for reason, count in sorted(quarantined.by_reason.items())]
    return lines


def quota_warnings(line: PeerLine) -> list[str]:
    """What a peer's quota holds back now."""
    warnings = [
        f"all of spec.quota.{name} ({most}) is used, what the peer announces beyond it waits: raise it if that is right"
        for name, used, most in (
            ("records", line.usage.records, line.quota.records),
            ("bytes", line.usage.bytes, line.quota.bytes),
        )
        if used >= most or any(reason.endswith(f"quota of {name}") for reason in line.quarantined.by_reason)
    ]
    if line.usage.throttled:
        warnings.append(
            f"changes faster than spec.quota.changesPerSecond ({line.quota.changes_per_second}): it comes late"
        )
    return warnings


def _row(line: PeerLine) -> Sequence[str]:
    connection = line.connection
    stage = f"{connection.state} ({connection.stage})" if connection.stage else connection.state
    probe = f"{line.probe.reachable}/{line.probe.total}" if line.implementation != CILIUM else "none (Cilium)"
    if line.probe.reachable:
        probe += f" {line.probe.rtt_micros / 1000:.2f} ms"
    return (
        line.name,
        "yes" if line.ready else "NO",
        stage,
        "never" if line.event_age is None else f"{line.event_age:.0f} s ago",
        *(f"{line.records[kind].mirrored}/{line.records[kind].applied}" for kind in KINDS),
        f"{line.agents.ready}/{line.agents.total}",
        probe,
        line.policy or "-",
        str(line.quarantined.total),
    )
