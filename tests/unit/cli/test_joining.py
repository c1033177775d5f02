"""A Cilium cluster among those to be connected: checks, plans and refusals."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from clustermesh import pki
from clustermesh.cilium import access, layout
from clustermesh.cilium.installation import Installation
from clustermesh.cilium.objects import AGENTS_SECRET, MIRROR_SECRET
from clustermesh.cli.checks import Result, check_all, failed
from clustermesh.cli.connect import Action, already_connected, make_plan
from clustermesh.cli.disconnect import Removal, Side
from clustermesh.cli.disconnect import make_plan as make_removal_plan
from clustermesh.cli.joining import Join, known_peers
from clustermesh.cli.mesh import Cluster, ClusterView, NodeView
from clustermesh.cli.status import make_report
from clustermesh.kube import config
from clustermesh.kube.client import KubeClient
from clustermesh.kube.objects import ClusterMeshPeer
from clustermesh.output import Format, Output
from clustermesh.pki import KeyPair
from tests.unit.cilium.installations import installation
from tests.unit.cli.views import NOW, cluster, peer

replace = msgspec.structs.replace
RED = cluster("red", 1)


def view(of: Installation) -> ClusterView:
    return ClusterView(
        context=f"{of.name}-context",
        name=of.name,
        cluster_id=of.cluster_id,
        max_clusters=of.max_clusters,
        endpoints=of.endpoints,
        nodes=tuple(NodeView(*node) for node in of.nodes),
        cilium=of,
    )


EAST = view(installation())


def join(own: ClusterView = RED, there: ClusterView = EAST) -> Join:
    nowhere = KubeClient(config.ClusterAccess(context="c", server="https://192.0.2.0"))
    ours, theirs = Cluster(own.context, nowhere), Cluster(there.context, nowhere)
    return Join(own, there, ours, theirs, Output(Format.JSON))


def test_a_cluster_with_cilium_passes_beside_ours_on_either_side() -> None:
    for source, others in ((RED, [EAST, cluster("green", 2)]), (EAST, [RED])):
        results = check_all(source, others, NOW)
        assert {check.result for check in results} == {Result.OK}, failed(results)
        assert "east: Cilium's settings fit" in [check.name for check in results]


@pytest.mark.parametrize(
    ("changes", "name", "detail"),
    [
        ({"settings": {"tunnel-protocol": "geneve"}}, "east: Cilium's settings fit", "tunnel-protocol is geneve"),
        ({"endpoints": ()}, "east: its etcd can be reached", "cilium clustermesh enable"),
        ({"ca": ""}, "east: the CA is valid", "kube-system/cilium-ca"),
        ({"signer": None, "shared": None}, "red can get a certificate of east", "enable the mesh there first"),
        ({"users": "users: 7"}, "red can get a certificate of east", "kube-system/clustermesh-remote-users"),
        (
            {"forbidden": ("secrets kube-system/cilium-clustermesh", "secrets kube-system/cilium-ca")},
            "east: its Secrets can be read",
            "secrets kube-system/cilium-clustermesh",
        ),
        ({"cluster_id": 1}, "cluster ids differ", "red and east both have id 1"),
        ({"max_clusters": 511}, "identities are numbered alike", "255 in red and 511 in east"),
        ({"nodes": (("n", (), ("192.0.2.91",)),)}, "east: every node has pod CIDRs", "node n"),
        ({"nodes": (("n", ("10.1.0.0/16",), ("192.0.2.91",)),)}, "pod CIDRs do not overlap", "10.1.1.0/24 of red-1"),
    ],
)
def test_what_does_not_hold_is_named_before_anything_is_changed(changes: Any, name: str, detail: str) -> None:
    wrong = failed(check_all(RED, [view(installation(**changes))], NOW))
    assert [check.name for check in wrong] == [name]
    assert detail in wrong[0].detail


def test_an_untried_version_and_a_fragile_endpoint_are_only_warned_of() -> None:
    of = view(installation(version="1.16.9", remark="NodePort"))
    warned = [check for check in check_all(RED, [of], NOW) if check.result is Result.WARNING]
    assert [check.name for check in warned] == ["east: Cilium's version is known", "east: its etcd can be reached"]
    assert not failed(check_all(RED, [of], NOW))


def test_two_with_cilium_are_sent_to_ciliums_own_command() -> None:
    west = view(installation(name="west", cluster_id=8, nodes=()))
    (wrong,) = failed(check_all(EAST, [west], NOW))
    assert "cilium clustermesh connect --context east-context --destination-context west-context" in wrong.detail


def test_our_side_gets_an_object_that_says_what_runs_there() -> None:
    for source, other in ((RED, EAST), (EAST, RED)):
        (step,) = make_plan(source, [other])
        assert (step.cluster, step.peer, step.action) == ("red", "east", Action.CREATE)
        assert (step.spec.implementation, step.spec.strict) == ("cilium", False)
        assert step.spec.ca_bundle == installation().ca
        assert step.spec.endpoints == EAST.endpoints


@pytest.mark.parametrize(
    ("changes", "secrets", "user"),
    [
        ({}, {MIRROR_SECRET: 4, AGENTS_SECRET: 1}, "remote-red"),
        ({"kvstoremesh": False}, {AGENTS_SECRET: 4}, "remote-red"),
        ({"users": None}, {MIRROR_SECRET: 4, AGENTS_SECRET: 1}, ""),
        ({"signer": None}, {MIRROR_SECRET: 4, AGENTS_SECRET: 1}, ""),
    ],
)
def test_the_plan_says_what_is_written_over_there(changes: Any, secrets: dict[str, int], user: str) -> None:
    plan = join(there=view(installation(**changes))).plan
    assert {name: len(entries) for name, entries in plan.secrets.items()} == secrets
    assert plan.user == user
    assert "PRIVATE" not in msgspec.json.encode(plan).decode() + str(plan)


def connected(
    change: Callable[[ClusterMeshPeer], ClusterMeshPeer] = lambda it: it,
) -> tuple[ClusterView, ClusterView]:
    """Both sides as they are once everything is written."""
    key, ours = pki.make_request("remote-east"), pki.make_request("remote-red")
    authority = pki.CertificateAuthority.create("red")
    issued = authority.sign_request(key.csr, "remote-east")
    of = installation()
    way = access.choose(of, "red", datetime.now(UTC))
    signed = access.certificate(way, of, "red", ours.csr.decode())
    written = layout.entries(
        "red", RED.endpoints, RED.authority, KeyPair(key.key, issued), namespace="kube-system", kvstoremesh=True
    )
    there = view(installation(users="users:\n- name: remote-red\n  role: remote\n", secrets=written))
    made = peer(there)
    spec = replace(
        made.spec,
        implementation="cilium",
        ca_bundle=of.ca,
        certificate_request=key.csr.decode(),
        client_certificate=signed,
    )
    status = replace(made.status, certificate_request=ours.csr.decode(), issued_certificate=issued.decode())
    made = change(replace(made, spec=spec, status=status))
    return replace(RED, peers={"east": made}), there


def test_what_is_complete_is_left_alone() -> None:
    red, east = connected()
    assert already_connected(make_plan(red, [east]), [red, east], [join(red, east)])


@pytest.mark.parametrize(
    "change",
    [
        {"secrets": {}},
        {"kvstoremesh": False},
        {"users": "users: []\n"},
        {"signer": None},
    ],
)
def test_what_was_undone_over_there_is_done_again(change: Any) -> None:
    red, east = connected()
    assert east.cilium is not None
    fields = {name: getattr(east.cilium, name) for name in ("secrets", "users")}
    changed = view(installation(**{**fields, **change}))
    assert not already_connected(make_plan(red, [changed]), [red, changed], [join(red, changed)])


def test_a_renewed_certificate_is_brought_over() -> None:
    anew = pki.CertificateAuthority.create("red")

    def renewed(it: ClusterMeshPeer) -> ClusterMeshPeer:
        issued = anew.sign_request(it.spec.certificate_request.encode(), "remote-east").decode()
        return replace(it, status=replace(it.status, issued_certificate=issued))

    red, east = connected(renewed)
    assert not already_connected(make_plan(red, [east]), [red, east], [join(red, east)])


def test_disconnect_takes_out_what_stands_for_us_there() -> None:
    _, east = connected()
    assert east.cilium is not None
    assert known_peers(east.cilium) == {"red"}
    assert known_peers(installation(users="users: 7")) == frozenset()
    there = Side("east-context", "east", known_peers(east.cilium), east.cilium)
    red = Side("red", "red", frozenset({"east"}))
    assert make_removal_plan(red, [there], []) == [
        Removal("red", "red", "east"),
        Removal("east-context", "east", "red", "cilium"),
    ]
    west = Side("west", "west", frozenset({"east"}), installation(name="west"))
    assert make_removal_plan(west, [there], []) == []


def test_what_makes_it_last_depends_on_the_chart() -> None:
    assert "clustermesh.config.clusters" in join(there=view(installation(version="1.19.0"))).lasting()
    assert "clustermesh.config.enabled=false" in join().lasting()


def test_status_says_what_runs_at_a_peer() -> None:
    red, _ = connected()
    (line,) = make_report("red", red.peers, red.agents, NOW).peers
    assert (line.implementation, line.ready) == ("cilium", True)
