"""`clustermesh connect`: read both sides, check, show the plan, act, wait until every agent is done, or undo it all.

The command writes ClusterMeshPeer objects and nothing else; the API servers act on them. Between them it carries
signing requests, certificates and CA certificates; no private key leaves its cluster. A cluster that runs Cilium has no
such objects: what stands for them there is `joining`'s affair.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, cast

import click
import msgspec

from clustermesh import pki
from clustermesh.cli.checks import Check, Result, check_all, failed, may_be_starting, pairs_with_cilium
from clustermesh.cli.joining import Join, JoinPlan
from clustermesh.cli.mesh import Cluster, ClusterView, Watched, open_clusters, watching
from clustermesh.cli.options import Settings, cilium_option, global_options, timeout_option
from clustermesh.cli.readiness import is_ready, why_not_ready
from clustermesh.cli.server_names import check_server_names
from clustermesh.kube.errors import Conflict, CredentialError, KubeError
from clustermesh.kube.objects import CILIUM, CLUSTER_MESH_PEERS, ClusterMeshPeer, ClusterMeshPeerSpec, ObjectMeta
from clustermesh.output import Failure, Output
from clustermesh.pki import PkiError

_DISPLAYED = {"clustermesh": "mesh", CILIUM: "Cilium"}
# Seconds for which a cluster counts as starting, and between two looks at it.
STARTING = 15.0
_AGAIN = 0.5


class Action(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    KEEP = "keep"


class Step(msgspec.Struct, frozen=True):
    """One ClusterMeshPeer object: in the cluster of `context`, about `peer`."""

    context: str
    cluster: str
    peer: str
    action: Action
    spec: ClusterMeshPeerSpec
    changes: tuple[str, ...] = ()


class Outcome(msgspec.Struct, frozen=True):
    """The document of `--output json`."""

    result: str  # refused, planned, unchanged, connected or failed
    checks: list[Check]
    plan: list[Step]
    cilium: list[JoinPlan] = []  # what changes in clusters that run Cilium
    seconds: float = 0.0
    error: str = ""
    rolled_back: list[str] = []


_PLANNED = ("cluster_id", "endpoints", "ca_bundle", "implementation")


def make_plan(source: ClusterView, destinations: Sequence[ClusterView]) -> list[Step]:
    """What has to be written where, each object once; both sides of each pair that run clustermesh."""
    return [
        _step(cluster, peer)
        for other in destinations
        for cluster, peer in ((source, other), (other, source))
        if cluster.cilium is None
    ]


def _step(cluster: ClusterView, peer: ClusterView) -> Step:
    present = cluster.peers.get(peer.name)
    before = present.spec if present is not None else ClusterMeshPeerSpec()
    spec = msgspec.structs.replace(
        before,
        cluster_id=peer.cluster_id,
        endpoints=peer.endpoints,
        ca_bundle=peer.authority,
        implementation=peer.implementation,
    )
    changes = tuple(field for field in _PLANNED if getattr(spec, field) != getattr(before, field))
    if present is None:
        return Step(cluster.context, cluster.name, peer.name, Action.CREATE, spec)
    return Step(cluster.context, cluster.name, peer.name, Action.UPDATE if changes else Action.KEEP, spec, changes)


def already_connected(plan: Iterable[Step], views: Iterable[ClusterView], joins: Iterable[Join] = ()) -> bool:
    """Whether every object of the plan is there and ready, and clusters with Cilium have what they need."""
    by_name = {view.name: view for view in views}
    kept = all(step.action is Action.KEEP and is_ready(by_name[step.cluster].peers[step.peer]) for step in plan)
    return kept and all(join.settled(by_name[join.cluster].peers[join.peer]) for join in joins)


def to_carry(own: ClusterMeshPeer, other: ClusterMeshPeer) -> dict[str, str]:
    """What the other side's status has for our spec: its request, and the certificate it signed for our request."""
    patch = {}
    request = other.status.certificate_request
    if request and request != own.spec.certificate_request:
        patch["certificateRequest"] = request
    issued = other.status.issued_certificate
    if issued and issued != own.spec.client_certificate and _answers(issued, own.status.certificate_request):
        patch["clientCertificate"] = issued
    return patch


def _answers(issued: str, request: str) -> bool:
    """A certificate of an earlier connection, for a key that is gone, is of no use."""
    try:
        return bool(request) and pki.answers(issued.encode(), request.encode())
    except PkiError:
        return False


class _Undo(NamedTuple):
    """How an object was before it was touched; `spec` None: it was not there."""

    cluster: Cluster
    peer: str
    uid: str
    spec: ClusterMeshPeerSpec | None

    def __str__(self) -> str:
        verb = "deleted" if self.spec is None else "restored"
        return f"{self.cluster.context}: ClusterMeshPeer {self.peer} {verb}"


class Connecting:
    """Carries a plan out, and back."""

    def __init__(
        self, clusters: Mapping[str, Cluster], plan: Sequence[Step], output: Output, joins: Sequence[Join] = ()
    ) -> None:
        self._clusters = clusters  # by name
        self._plan = plan
        self._joins = {(join.cluster, join.peer): join for join in joins}
        self._output = output
        self._journal: list[_Undo] = []

    async def run(self, timeout: float) -> None:
        """Until every peer is ready; Failure names what is not, after `timeout` seconds."""
        names = list(dict.fromkeys(step.cluster for step in self._plan))
        async with watching([self._clusters[name] for name in names]) as (watched, changed):
            sides = dict(zip(names, watched, strict=True))
            for step in self._plan:
                await self._write(step, sides[step.cluster])
            waiting: dict[str, str] = {}
            try:
                async with asyncio.timeout(timeout):
                    while waiting := await self._round(sides):
                        self._output.progress("; ".join(f"{who}: {why}" for who, why in waiting.items()))
                        await changed.wait()
                        changed.clear()
            except TimeoutError:
                lines = "".join(f"\n  {who}: {why}" for who, why in waiting.items())
                raise Failure(f"not ready after {timeout:.0f} s:{lines}") from None

    async def roll_back(self) -> list[str]:
        """Put every touched object back, the last one first; what could not be is named with its error."""
        done = [line for join in self._joins.values() for line in await join.roll_back()]
        for undo in reversed(self._journal):
            try:
                await self._undo(undo)
                done.append(str(undo))
            except (KubeError, CredentialError) as error:
                done.append(f"{undo.cluster.context}: ClusterMeshPeer {undo.peer} could NOT be put back: {error}")
        return done

    async def _write(self, step: Step, side: Watched) -> None:
        client = side.cluster.client
        if step.action is Action.CREATE:
            body = ClusterMeshPeer(metadata=ObjectMeta(name=step.peer), spec=step.spec)
            made = await client.create(CLUSTER_MESH_PEERS, body)
            self._journal.append(_Undo(side.cluster, step.peer, made.metadata.uid, None))
            side.take(made)
            self._output.good(f"{step.cluster}: ClusterMeshPeer {step.peer} created")
        elif step.action is Action.UPDATE:
            present = await client.get(CLUSTER_MESH_PEERS, step.peer)
            self._journal.append(_Undo(side.cluster, step.peer, present.metadata.uid, present.spec))
            changed = await client.replace(CLUSTER_MESH_PEERS, msgspec.structs.replace(present, spec=step.spec))
            side.take(changed)
            self._output.good(f"{step.cluster}: ClusterMeshPeer {step.peer} updated ({', '.join(step.changes)})")

    async def _round(self, sides: Mapping[str, Watched]) -> dict[str, str]:
        """Carry over what has appeared; what is still missing, by object."""
        waiting = {}
        for step in self._plan:
            label = f"{step.cluster} → {step.peer}"
            join = self._joins.get((step.cluster, step.peer))
            own = sides[step.cluster].peers.get(step.peer)
            other = sides[step.peer].peers.get(step.cluster) if join is None else None
            if own is None or (join is None and other is None):
                waiting[label] = "its ClusterMeshPeer was deleted"
                continue
            patch = await join.carry(own) if join is not None else to_carry(own, cast(ClusterMeshPeer, other))
            if patch:
                own = await self._patch(sides[step.cluster], step, own, patch)
            reason = why_not_ready(own) or (join.missing() if join is not None else None)
            if reason is not None:
                waiting[label] = reason
        return waiting

    async def _patch(
        self, side: Watched, step: Step, own: ClusterMeshPeer, patch: Mapping[str, str]
    ) -> ClusterMeshPeer:
        if step.action is Action.KEEP and not any(undo.uid == own.metadata.uid for undo in self._journal):
            self._journal.append(_Undo(side.cluster, step.peer, own.metadata.uid, own.spec))
        changed = await side.cluster.client.merge_patch(CLUSTER_MESH_PEERS, step.peer, {"spec": dict(patch)})
        side.take(changed)
        said = {"certificateRequest": "request carried over", "clientCertificate": "certificate carried over"}
        for field in patch:
            self._output.good(f"{step.peer} ⇒ {step.cluster}: {said[field]}")
        return changed

    async def _undo(self, undo: _Undo) -> None:
        client = undo.cluster.client
        if undo.spec is None:
            await client.delete(CLUSTER_MESH_PEERS, undo.peer, missing_ok=True, uid=undo.uid)
            return
        while True:
            present = await client.get(CLUSTER_MESH_PEERS, undo.peer)
            try:
                await client.replace(CLUSTER_MESH_PEERS, msgspec.structs.replace(present, spec=undo.spec))
            except Conflict:
                continue  # its status was written in between
            return


@click.command()
@click.option(
    "--destination-context",
    "destinations",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Context of a cluster to connect with; may be given several times.",
)
@click.option("--dry-run", is_flag=True, help="Check, show the plan and stop.")
@cilium_option
@timeout_option(240, "How long to wait until every agent on all sides is ready.")
@global_options
def connect(
    settings: Settings, destinations: tuple[str, ...], dry_run: bool, cilium_namespace: str, timeout: float
) -> None:
    """Join clusters to this one and wait until they are one.

    Of two clusters one may run Cilium: it is recognised and joined in its own terms.

    Succeeds once every agent on all sides has applied the peers' data and a probe came back; otherwise puts everything
    back as it was.
    """
    output = settings.output()
    outcome = asyncio.run(_connect(settings, output, destinations, dry_run, cilium_namespace, timeout))
    output.document(outcome)
    if outcome.error:
        raise Failure(outcome.error)


async def _connect(
    settings: Settings,
    output: Output,
    destinations: Sequence[str],
    dry_run: bool,
    cilium_namespace: str,
    timeout: float,
) -> Outcome:
    started = time.monotonic()
    contexts = [settings.context, *dict.fromkeys(destinations)]
    async with open_clusters(settings.kubeconfig, contexts) as clusters:
        patience = time.monotonic() + min(timeout, STARTING)
        while True:
            views = await _read(clusters, output, cilium_namespace)
            if isinstance(views, Outcome):
                return views
            source, others = views[0], views[1:]
            checks = [
                Check(f"{view.name}: reachable, {_DISPLAYED[view.implementation]} installed", Result.OK, view.context)
                for view in views
            ]
            checks += check_all(source, others, time.time())
            if not may_be_starting(checks) or time.monotonic() > patience:
                break
            output.progress("; ".join(f"{check.name}: {check.detail}" for check in failed(checks)))
            await asyncio.sleep(_AGAIN)
        by_name = {view.name: cluster for view, cluster in zip(views, clusters, strict=True)}
        pairs = [] if failed(checks) else list(pairs_with_cilium(source, others))
        joins = [Join(own, peer, by_name[own.name], by_name[peer.name], output) for own, peer in pairs]
        for own in {own.name: own for own, _ in pairs}.values():
            checks += await check_server_names(own)
        _show_checks(output, checks)
        if wrong := failed(checks):
            error = (
                f"{len(wrong)} of {len(checks)} checks failed, nothing was changed: {wrong[0].name}: {wrong[0].detail}"
            )
            return Outcome("refused", checks, [], error=error)
        plan, there = make_plan(source, others), [join.plan for join in joins]
        _show_plan(output, plan, there)
        if dry_run:
            output.line("dry run: nothing was changed")
            return Outcome("planned", checks, plan, there)
        names = ", ".join(view.name for view in others)
        if already_connected(plan, views, joins):
            output.good(f"{source.name} is connected with {names} already")
            return Outcome("unchanged", checks, plan, there)
        connecting = Connecting(by_name, plan, output, joins)
        try:
            await connecting.run(timeout)
        except (Failure, KubeError, CredentialError) as error:
            undone = await _roll_back(connecting, output)
            return Outcome("failed", checks, plan, there, time.monotonic() - started, str(error), undone)
        except asyncio.CancelledError:
            await _roll_back(connecting, output)
            raise
        seconds = time.monotonic() - started
        output.good(f"{source.name} and {names} are connected and every agent is ready ({seconds:.1f} s)")
        for join in joins:
            output.warn(join.lasting())
        return Outcome("connected", checks, plan, there, seconds)


async def _read(clusters: Sequence[Cluster], output: Output, cilium_namespace: str) -> list[ClusterView] | Outcome:
    """All views at once, or the outcome that names every cluster that cannot be read."""
    found = await asyncio.gather(*(cluster.view(cilium_namespace) for cluster in clusters), return_exceptions=True)
    views = []
    checks = []
    for cluster, result in zip(clusters, found, strict=True):
        if isinstance(result, Failure):
            checks.append(Check(f"{cluster.context}: reachable, mesh installed", Result.FAILED, result.message))
        elif isinstance(result, BaseException):
            raise result
        else:
            views.append(result)
    if not checks:
        return views
    _show_checks(output, checks)
    return Outcome("refused", checks, [], error="; ".join(check.detail for check in checks))


async def _roll_back(connecting: Connecting, output: Output) -> list[str]:
    undone = await connecting.roll_back()
    for line in undone:
        output.warn(f"rolled back: {line}")
    return undone


def _show_checks(output: Output, checks: Iterable[Check]) -> None:
    show: dict[Result, Any] = {Result.OK: output.good, Result.WARNING: output.warn, Result.FAILED: output.bad}
    for check in checks:
        show[check.result](f"{check.name}: {check.detail}" if check.detail else check.name)


def _show_plan(output: Output, plan: Iterable[Step], there: Iterable[JoinPlan]) -> None:
    output.table(
        ("CONTEXT", "CLUSTER", "PEER", "ID", "ENDPOINTS", "ACTION"),
        [
            (
                step.context,
                step.cluster,
                step.peer,
                str(step.spec.cluster_id),
                ",".join(step.spec.endpoints),
                f"{step.action} ({', '.join(step.changes)})" if step.changes else step.action.value,
            )
            for step in plan
        ],
    )
    for one in there:
        output.line(str(one))
