"""What must hold before clusters are connected. Pure: views of clusters in, named results out."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import combinations

import msgspec

from clustermesh import pki
from clustermesh.cilium import users
from clustermesh.cilium.access import choose
from clustermesh.cilium.installation import (
    FIRST_VERSION,
    LAST_VERSION,
    CiliumError,
    Installation,
    misfits,
    release,
)
from clustermesh.cilium.objects import API_SERVER, CA, REMOTE_CERT, REMOTE_USERS
from clustermesh.cilium.users import UsersError
from clustermesh.cli.mesh import ClusterView
from clustermesh.pki import PkiError

# The tunnel adds 50 bytes to an IPv4 packet, and IPv6 needs 1280 inside.
MINIMAL_MTU = 1280 + 50

_Network = IPv4Network | IPv6Network


class Result(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Check(msgspec.Struct, frozen=True):
    """One claim about one cluster or several; `detail` says what is wrong and what to do, or what was found.

    `starting`: a cluster that has just been started fails it for some seconds and then passes.
    """

    name: str
    result: Result
    detail: str = ""
    starting: bool = False


def check_all(source: ClusterView, destinations: Sequence[ClusterView], now: float) -> list[Check]:
    """All checks for connecting `source` with each of `destinations`."""
    clusters = [source, *destinations]
    results = [check for cluster in clusters for check in _check_cluster(cluster, now)]
    if any(cluster.cilium is not None for cluster in clusters):
        results.append(_verdict("one of each two runs clustermesh", _both_cilium(source, destinations)))
    results += [check for one, other in pairs_with_cilium(source, destinations) for check in _join(one, other, now)]
    results.append(_verdict("cluster names differ", _same_names(clusters)))
    results.append(_verdict("cluster ids differ", _same_ids(source, destinations)))
    results.append(_verdict("identities are numbered alike", _other_numbering(clusters)))
    results.append(_verdict("pod CIDRs do not overlap", _overlapping_ranges(clusters)))
    results.append(_verdict("node addresses differ", _shared_addresses(clusters)))
    results.append(_check_mtu(clusters))
    return results


def pairs_with_cilium(
    source: ClusterView, destinations: Sequence[ClusterView]
) -> Iterator[tuple[ClusterView, ClusterView]]:
    """Of the pairs to be connected those with one cluster that runs Cilium, which comes second."""
    for other in destinations:
        if (source.cilium is None) != (other.cilium is None):
            yield (source, other) if source.cilium is None else (other, source)


def failed(checks: Iterable[Check]) -> list[Check]:
    return [check for check in checks if check.result is Result.FAILED]


def may_be_starting(checks: Iterable[Check]) -> bool:
    """Whether all that failed may pass by itself within seconds."""
    wrong = failed(checks)
    return bool(wrong) and all(check.starting for check in wrong)


def _verdict(name: str, problems: Iterable[str], *, starting: bool = False) -> Check:
    found = list(problems)
    if not found:
        return Check(name, Result.OK)
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return Check(name, Result.FAILED, "; ".join(found[:3]) + more, starting)


def _check_cluster(cluster: ClusterView, now: float) -> Iterator[Check]:
    if cluster.cilium is None:
        yield _verdict(f"{cluster.name}: the API server runs", _api_server(cluster), starting=True)
        yield _verdict(f"{cluster.name}: every node has an agent", _missing_agents(cluster), starting=True)
    else:
        yield _check_version(cluster.name, cluster.cilium.version)
        yield _verdict(f"{cluster.name}: Cilium's settings fit", misfits(cluster.cilium))
        yield _check_endpoints(cluster, cluster.cilium)
        yield _verdict(f"{cluster.name}: its Secrets can be read", _unreadable(cluster.cilium))
    yield _verdict(f"{cluster.name}: every node has pod CIDRs", _missing_ranges(cluster))
    yield _verdict(f"{cluster.name}: the CA is valid", _authority(cluster, now), starting=not cluster.authority)


def _api_server(cluster: ClusterView) -> Iterator[str]:
    if not cluster.agents.updated:
        yield "it has not reported yet: check the Deployment or process clustermesh-apiserver and its log"
    elif not cluster.agents.alive(cluster.now):
        silent = cluster.now - cluster.agents.updated
        yield f"no sign of life for {silent:.0f} s: start clustermesh-apiserver, read its log"


def _missing_agents(cluster: ClusterView) -> Iterator[str]:
    if not cluster.nodes:
        yield "the cluster has no node"
    for node in cluster.nodes:
        if node.name not in cluster.agents.agents:
            yield f"no report from node {node.name}: start clustermesh-agent there, read its log"


def _missing_ranges(cluster: ClusterView) -> Iterator[str]:
    for node in cluster.nodes:
        if not node.pod_cidrs:
            yield f"node {node.name} has no spec.podCIDRs: let the controller manager allocate them"


def _authority(cluster: ClusterView, now: float) -> Iterator[str]:
    secret = "clustermesh-ca" if cluster.cilium is None else f"{cluster.cilium.namespace}/{CA}"
    if not cluster.authority:
        yield f"its certificate is not published: check Secret {secret} (ca.crt and ca.key)"
        return
    try:
        said = pki.describe(cluster.authority.encode())
    except PkiError as error:
        yield f"{error}: check Secret {secret}"
        return
    if said.expired(datetime.fromtimestamp(now, UTC)):
        yield f"expired on {said.not_after:%Y-%m-%d}: make a new CA in Secret {secret}"


def _check_version(cluster: str, version: str) -> Check:
    name = f"{cluster}: Cilium's version is known"
    found = release(version)
    if found is not None and FIRST_VERSION <= found <= LAST_VERSION:
        return Check(name, Result.OK, version)
    known = " to ".join(".".join(map(str, known)) for known in (FIRST_VERSION, LAST_VERSION))
    return Check(name, Result.WARNING, f"{version or 'it'} is not a release of {known}: it may write other records")


def _check_endpoints(cluster: ClusterView, installation: Installation) -> Check:
    name = f"{cluster.name}: its etcd can be reached"
    if not cluster.endpoints:
        return Check(
            name,
            Result.FAILED,
            f"Service {installation.namespace}/{API_SERVER} is missing or has no address: "
            "run `cilium clustermesh enable`, or wait for its load balancer",
        )
    return Check(name, Result.WARNING if installation.remark else Result.OK, installation.remark)


def _unreadable(installation: Installation) -> Iterator[str]:
    """Only of CA and certificate there is a choice, which is judged elsewhere."""
    for found in installation.forbidden:
        if not found.endswith((f"/{CA}", f"/{REMOTE_CERT}")):
            yield f"{found}: the right to get it is missing (secrets also need create and patch)"


def _both_cilium(source: ClusterView, destinations: Sequence[ClusterView]) -> Iterator[str]:
    for other in destinations:
        if source.cilium is not None and other.cilium is not None:
            yield (
                f"{source.name} and {other.name} both run Cilium: join them with `cilium clustermesh connect "
                f"--context {source.context} --destination-context {other.context}`"
            )


def _join(own: ClusterView, peer: ClusterView, now: float) -> Iterator[Check]:
    assert peer.cilium is not None
    name = f"{own.name} can get a certificate of {peer.name}"
    try:
        way = choose(peer.cilium, own.name, datetime.fromtimestamp(now, UTC))
        users.names(peer.cilium.users or "")
        yield Check(name, Result.OK, str(way))
    except UsersError as error:
        where = f"ConfigMap {peer.cilium.namespace}/{REMOTE_USERS}"
        yield Check(name, Result.FAILED, f"{where}: {error}: put it right first")
    except CiliumError as error:
        yield Check(name, Result.FAILED, str(error))


def _same_names(clusters: Sequence[ClusterView]) -> Iterator[str]:
    for one, other in combinations(clusters, 2):
        if one.name == other.name:
            yield (
                f"contexts {one.context} and {other.context} are both cluster {one.name!r}: "
                "give different contexts, or rename one cluster"
            )


def _same_ids(source: ClusterView, destinations: Sequence[ClusterView]) -> Iterator[str]:
    for one, other in combinations([source, *destinations], 2):
        if one.cluster_id == other.cluster_id:
            yield f"{one.name} and {other.name} both have id {one.cluster_id}: change cluster-id of one"
    # A third cluster that one side is connected with already has its id taken there.
    for one, other in [(source, d) for d in destinations] + [(d, source) for d in destinations]:
        for peer in one.peers.values():
            if peer.spec.cluster_id == other.cluster_id and peer.name != other.name:
                yield f"{one.name} has peer {peer.name} with id {other.cluster_id}, as {other.name}: change one's id"


def _other_numbering(clusters: Sequence[ClusterView]) -> Iterator[str]:
    first = clusters[0]
    for other in clusters[1:]:
        if other.max_clusters != first.max_clusters:
            yield (
                f"max-connected-clusters is {first.max_clusters} in {first.name} and {other.max_clusters} in "
                f"{other.name}: it must be equal in the whole mesh, from the start of each cluster"
            )


def _overlapping_ranges(clusters: Sequence[ClusterView]) -> Iterator[str]:
    """Sorted by address, ranges that overlap have no other range's start between them."""
    ranges = sorted(
        ((network, cluster.name, node) for cluster in clusters for network, node in _ranges(cluster)),
        key=lambda entry: (entry[0].version, int(entry[0].network_address), entry[0].prefixlen),
    )
    open_ranges: list[tuple[_Network, str, str]] = []
    for network, cluster, node in ranges:
        open_ranges = [
            entry
            for entry in open_ranges
            if entry[0].version == network.version and int(entry[0].broadcast_address) >= int(network.network_address)
        ]
        for wider, other, other_node in open_ranges:
            if other != cluster:
                yield (
                    f"{wider} of {other_node} in {other} and {network} of {node} in {cluster} overlap: "
                    "one cluster needs other pod CIDRs"
                )
        open_ranges.append((network, cluster, node))


def _ranges(cluster: ClusterView) -> Iterator[tuple[_Network, str]]:
    for node in cluster.nodes:
        for text in node.pod_cidrs:
            try:
                yield ip_network(text, strict=False), node.name
            except ValueError:
                continue  # Kubernetes validates them; what is none overlaps nothing


def _shared_addresses(clusters: Sequence[ClusterView]) -> Iterator[str]:
    owners: dict[str, tuple[str, str]] = {}
    for cluster in clusters:
        for node in cluster.nodes:
            for text in node.addresses:
                try:
                    address = str(ip_address(text))
                except ValueError:
                    continue
                owner, owner_node = owners.setdefault(address, (cluster.name, node.name))
                if owner != cluster.name:
                    yield (
                        f"{address} is node {owner_node} in {owner} and node {node.name} in {cluster.name}: "
                        "node addresses must be routable between the clusters"
                    )


def _check_mtu(clusters: Sequence[ClusterView]) -> Check:
    name = "MTU fits"
    found = {
        cluster.name: sorted({agent.mtu for agent in cluster.agents.agents.values() if agent.mtu})
        for cluster in clusters
    }
    small = [f"{cluster}: {mtus[0]}" for cluster, mtus in found.items() if mtus and mtus[0] < MINIMAL_MTU]
    if small:
        return Check(name, Result.FAILED, f"{', '.join(small)} is below {MINIMAL_MTU}: raise the node devices' MTU")
    different = sorted({mtu for mtus in found.values() for mtu in mtus})
    if len(different) > 1:
        shown = ", ".join(f"{cluster} {'/'.join(map(str, mtus))}" for cluster, mtus in found.items() if mtus)
        return Check(
            name,
            Result.WARNING,
            f"{shown}: TCP adapts, but large UDP packets from the larger side may get lost; make them equal",
        )
    return Check(name, Result.OK, str(different[0]) if different else "")
