"""Plans of connect and disconnect, and what is carried between two sides."""

import msgspec

from clustermesh import pki
from clustermesh.cli.connect import Action, already_connected, make_plan, to_carry
from clustermesh.cli.disconnect import Removal, Side, remaining
from clustermesh.cli.disconnect import make_plan as make_removal_plan
from clustermesh.kube.objects import ClusterMeshPeer, ClusterMeshPeerSpec, ClusterMeshPeerStatus
from clustermesh.pki import CertificateAuthority
from tests.unit.cli.views import cluster, peer

RED, GREEN, BLUE = cluster("red", 1), cluster("green", 2), cluster("blue", 3)


def test_each_pair_gets_an_object_on_both_sides() -> None:
    plan = make_plan(RED, [GREEN, BLUE])
    assert [(step.context, step.peer, step.action) for step in plan] == [
        ("red", "green", Action.CREATE),
        ("green", "red", Action.CREATE),
        ("red", "blue", Action.CREATE),
        ("blue", "red", Action.CREATE),
    ]
    assert plan[0].spec.endpoints == GREEN.endpoints
    assert plan[0].spec.cluster_id == 2


def test_what_is_there_is_kept_and_what_differs_is_named() -> None:
    moved = msgspec.structs.replace(GREEN, endpoints=("https://192.0.2.99:2379",))
    red = cluster("red", 1, peers=(peer(GREEN),))
    green = cluster("green", 2, peers=(peer(RED),))
    first, second = make_plan(red, [msgspec.structs.replace(moved, peers=green.peers)])
    assert (first.action, first.changes) == (Action.UPDATE, ("endpoints",))
    assert (second.action, second.changes) == (Action.KEEP, ())
    signed = msgspec.structs.replace(peer(GREEN).spec, client_certificate="signed", policy="lenient")
    kept = msgspec.structs.replace(peer(GREEN), spec=signed)
    (step, _) = make_plan(cluster("red", 1, peers=(kept,)), [green])
    assert step.spec == signed


def test_connected_means_both_sides_are_there_and_ready() -> None:
    red, green = cluster("red", 1, peers=(peer(GREEN),)), cluster("green", 2, peers=(peer(RED),))
    assert already_connected(make_plan(red, [green]), [red, green])
    for half in (GREEN, cluster("green", 2, peers=(peer(RED, missing="Applied"),))):
        assert not already_connected(make_plan(red, [half]), [red, half])
    stale = cluster("green", 2, peers=(peer(RED, generation=2),))
    assert not already_connected(make_plan(red, [stale]), [red, stale])


def test_requests_and_certificates_are_carried_once_they_appear() -> None:
    request = pki.make_request("remote-red")
    issued = CertificateAuthority.create("green").sign_request(request.csr, "remote-red").decode()
    ours = ClusterMeshPeer(status=ClusterMeshPeerStatus(certificate_request=request.csr.decode()))
    theirs = ClusterMeshPeer(status=ClusterMeshPeerStatus(certificate_request="R", issued_certificate=issued))
    assert to_carry(ours, ClusterMeshPeer()) == {}
    assert to_carry(ours, theirs) == {"certificateRequest": "R", "clientCertificate": issued}
    spec = ClusterMeshPeerSpec(certificate_request="R", client_certificate=issued)
    assert to_carry(msgspec.structs.replace(ours, spec=spec), theirs) == {}


def test_a_certificate_for_a_key_that_is_gone_is_not_carried() -> None:
    old, new = pki.make_request("remote-red"), pki.make_request("remote-red")
    issued = CertificateAuthority.create("green").sign_request(old.csr, "remote-red").decode()
    theirs = ClusterMeshPeer(status=ClusterMeshPeerStatus(issued_certificate=issued))
    for request in (new.csr.decode(), "", "nonsense"):
        ours = ClusterMeshPeer(status=ClusterMeshPeerStatus(certificate_request=request))
        assert to_carry(ours, theirs) == {}


def test_disconnect_removes_what_is_there_on_either_side() -> None:
    red = Side("red-context", "red", frozenset({"green", "blue"}))
    green = Side("green-context", "green", frozenset({"red"}))
    grey = Side("grey-context", "grey", frozenset())
    assert make_removal_plan(red, [green, grey], ["blue", "unknown", "green"]) == [
        Removal("red-context", "red", "green"),
        Removal("green-context", "green", "red"),
        Removal("red-context", "red", "blue"),
    ]


def test_data_counts_as_gone_only_by_a_report_made_after_the_deletion() -> None:
    removal = Removal("red", "red", "green")
    held = cluster("red", 1, peers=(peer(GREEN),)).agents
    gone = msgspec.structs.replace(RED.agents, version="8")
    cleaning = msgspec.structs.replace(gone, peers=frozenset({"green"}))
    assert "still there" in (remaining(removal, {"green"}, gone, "7") or "")
    assert "1 agents still hold" in (remaining(removal, {}, held, "7") or "")
    assert "being removed" in (remaining(removal, {}, cleaning, "7") or "")
    assert "has not said yet" in (remaining(removal, {}, gone, "8") or "")
    assert remaining(removal, {}, gone, "7") is None
