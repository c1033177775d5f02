"""`clustermesh disconnect`: delete the objects on both sides and wait until no agent knows of the other.

In a cluster that runs Cilium our entries go; what its agents still hold only Cilium's own status tells.
"""

import asyncio
import time
from collections.abc import Container, Mapping, Sequence

import click
import msgspec

from clustermesh.cilium.installation import Installation
from clustermesh.cli.joining import Remote, known_peers
from clustermesh.cli.mesh import AgentsView, Cluster, NotInstalled, Watched, not_recognised, open_clusters, watching
from clustermesh.cli.options import Settings, cilium_option, global_options, timeout_option
from clustermesh.kube.errors import CredentialError, KubeError
from clustermesh.kube.objects import CILIUM, CLUSTER_MESH_PEERS
from clustermesh.output import Failure, Output


class Removal(msgspec.Struct, frozen=True):
    """One ClusterMeshPeer object that goes: in `cluster`, about `peer`; where Cilium runs, what stands for it."""

    context: str
    cluster: str
    peer: str
    implementation: str = "clustermesh"


class Outcome(msgspec.Struct, frozen=True):
    """The document of `--output json`."""

    result: str  # disconnected, unchanged or failed
    removed: list[Removal]
    skipped: list[str] = []  # sides that were left alone, with the reason
    seconds: float = 0.0
    error: str = ""


class Side(msgspec.Struct, frozen=True):
    """A cluster that answers: its name, its peers' names and the Cilium that runs there, if so."""

    context: str
    name: str
    peers: frozenset[str]
    cilium: Installation | None = None

    @property
    def implementation(self) -> str:
        return "clustermesh" if self.cilium is None else CILIUM


def make_plan(source: Side, destinations: Sequence[Side], named: Sequence[str]) -> list[Removal]:
    """The objects that are there and have to go. `named` are peers that are removed on this side alone."""
    plan = [
        Removal(side.context, side.name, peer.name, side.implementation)
        for destination in destinations
        for side, peer in ((source, destination), (destination, source))
        if peer.name in side.peers and not (side.cilium and peer.cilium)
    ]
    plan += [Removal(source.context, source.name, peer) for peer in named if peer in source.peers]
    return list(dict.fromkeys(plan))


def remaining(removal: Removal, objects: Container[str], agents: AgentsView, before: str) -> str | None:
    """What still has to go on one side; None when nothing is left.

    `before` is the version of the agents' reports at the time of deletion: they may be older than the connection.
    """
    if removal.peer in objects:
        return "its ClusterMeshPeer is still there"
    mentioned = agents.mention(removal.peer)
    if mentioned:
        return f"{len(mentioned)} agents still hold its data ({', '.join(mentioned[:3])})"
    if removal.peer in agents.peers:
        return "its records are being removed"
    if agents.version == before:
        return "the API server has not said yet that it is gone"
    return None


@click.command()
@click.option(
    "--destination-context",
    "destinations",
    multiple=True,
    metavar="NAME",
    help="Context of a cluster to disconnect from; may be given several times.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="CLUSTER",
    help="Name of a cluster to forget on this side alone, e.g. because it is gone; may be given several times.",
)
@cilium_option
@click.option(
    "--one-sided",
    is_flag=True,
    help="Go on with this side if a destination cannot be reached; its context must have the cluster's name.",
)
@timeout_option(60, "How long to wait until no agent holds the other side's data.")
@global_options
def disconnect(
    settings: Settings,
    destinations: tuple[str, ...],
    peers: tuple[str, ...],
    one_sided: bool,
    cilium_namespace: str,
    timeout: float,
) -> None:
    """Undo connect, on both sides, and wait until no agent holds the other side's data."""
    if not destinations and not peers:
        raise click.UsageError("give --destination-context NAME, or --peer CLUSTER for this side alone")
    output = settings.output()
    outcome = asyncio.run(_disconnect(settings, output, destinations, peers, one_sided, cilium_namespace, timeout))
    output.document(outcome)
    if outcome.error:
        raise Failure(outcome.error)


async def _disconnect(
    settings: Settings,
    output: Output,
    destinations: Sequence[str],
    peers: Sequence[str],
    one_sided: bool,
    cilium_namespace: str,
    timeout: float,
) -> Outcome:
    started = time.monotonic()
    contexts: list[str | None] = [settings.context, *dict.fromkeys(destinations)]
    async with open_clusters(settings.kubeconfig, contexts) as clusters:
        source = await _side(clusters[0], cilium_namespace)
        reached: list[tuple[Cluster, Side]] = []
        named, skipped = list(peers), []
        for cluster in clusters[1:]:
            try:
                reached.append((cluster, await _side(cluster, cilium_namespace)))
            except Failure as error:
                if not one_sided:
                    raise Failure(f"{error.message}; to forget it on this side alone add --one-sided") from None
                named.append(_name_of(cluster.context, source))
                skipped.append(f"{cluster.context}: {error.message}")
        for reason in skipped:
            output.warn(f"left alone: {reason}")
        plan = make_plan(source, [side for _, side in reached], named)
        if not plan:
            output.good(f"{source.name} is not connected with {', '.join([*destinations, *peers])}: nothing to do")
            return Outcome("unchanged", [], skipped)
        by_name = {source.name: clusters[0]} | {side.name: cluster for cluster, side in reached}
        there = {side.name: side.cilium for side in (source, *(side for _, side in reached)) if side.cilium}
        try:
            skipped += await _forget(plan, by_name, there, output)
            await _remove([r for r in plan if r.cluster not in there], by_name, output, timeout)
        except (Failure, KubeError, CredentialError) as error:
            return Outcome("failed", plan, skipped, time.monotonic() - started, str(error))
        seconds = time.monotonic() - started
        names = ", ".join(dict.fromkeys(r.peer for r in plan if r.cluster == source.name)) or "the other side"
        output.good(f"{source.name} and {names} are disconnected, no agent holds the other's data ({seconds:.1f} s)")
        return Outcome("disconnected", plan, skipped, seconds)


async def _side(cluster: Cluster, cilium_namespace: str) -> Side:
    try:
        name, *_ = await cluster.identity()
        return Side(cluster.context, name, frozenset(await cluster.peers()))
    except NotInstalled as missing:
        found = await cluster.installation(cilium_namespace)
        if found is None:
            raise not_recognised(missing, cilium_namespace) from None
        return Side(cluster.context, found.name, known_peers(found), found)
    except (KubeError, CredentialError) as error:
        raise Failure(f"context {cluster.context}: {error}") from None


def _name_of(context: str, source: Side) -> str:
    """The cluster behind a context that does not answer: the peer of that name."""
    if context in source.peers:
        return context
    known = ", ".join(sorted(source.peers)) or "none"
    raise Failure(f"context {context} cannot be asked for its cluster's name: give --peer CLUSTER, one of {known}")


async def _forget(
    plan: Sequence[Removal], by_name: Mapping[str, Cluster], there: Mapping[str, Installation], output: Output
) -> list[str]:
    """In clusters with Cilium, first: their clients shall end before their user does. Returns what is left there."""
    left = []
    for removal in plan:
        if removal.cluster in there:
            remote = Remote(by_name[removal.cluster].client, there[removal.cluster], removal.peer)
            remains = await remote.forget()
            for line in remains:
                output.warn(line)
            left += remains
            if not remains:
                output.good(f"{removal.cluster}: Cilium's configuration of {removal.peer} deleted")
    return left


async def _remove(plan: Sequence[Removal], by_name: dict[str, Cluster], output: Output, timeout: float) -> None:
    names = list(dict.fromkeys(removal.cluster for removal in plan))
    async with watching([by_name[name] for name in names]) as (watched, changed):
        sides = dict(zip(names, watched, strict=True))
        before = {name: side.agents.version for name, side in sides.items()}
        for removal in plan:
            await by_name[removal.cluster].client.delete(CLUSTER_MESH_PEERS, removal.peer, missing_ok=True)
            output.good(f"{removal.cluster}: ClusterMeshPeer {removal.peer} deleted")
        left: dict[str, str] = {}
        try:
            async with asyncio.timeout(timeout):
                while left := _left(plan, sides, before):
                    output.progress("; ".join(f"{who}: {what}" for who, what in left.items()))
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            lines = "".join(f"\n  {who}: {what}" for who, what in left.items())
            raise Failure(
                f"the objects are deleted, but after {timeout:.0f} s their data is not:{lines}\n"
                "  check that clustermesh-apiserver and the agents run there"
            ) from None


def _left(plan: Sequence[Removal], sides: Mapping[str, Watched], before: Mapping[str, str]) -> dict[str, str]:
    left = {}
    for removal in plan:
        side = sides[removal.cluster]
        what = remaining(removal, side.peers, side.agents, before[removal.cluster])
        if what is not None:
            left[f"{removal.cluster} → {removal.peer}"] = what
    return left
