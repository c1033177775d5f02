"""Which peer objects can be acted on, and what is signed for them."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from apiserver import trust
from apiserver.cluster import ClusterIdentity
from apiserver.mirror import PeerSpec, check_config
from apiserver.peers import asks_anew, spec_problem
from apiserver.users import own_users, roles, surplus
from clustermesh import pki
from clustermesh.kube.objects import ClusterMeshPeer, ClusterMeshPeerSpec, ClusterMeshPeerStatus, ObjectMeta, PeerQuota
from clustermesh.pki import CertificateAuthority, PkiError
from clustermesh.wire.records import Capabilities, ClusterConfig

GREEN = ClusterIdentity("green", 7)
NOW = datetime.now(UTC)


def peer(name: str = "red", cluster_id: int = 5, created: str = "2026-01-01T00:00:00Z") -> ClusterMeshPeer:
    return ClusterMeshPeer(
        metadata=ObjectMeta(name=name, creation_timestamp=created),
        spec=ClusterMeshPeerSpec(cluster_id=cluster_id, endpoints=("https://192.0.2.1:2379",)),
    )


@pytest.mark.parametrize(
    ("object_", "said"),
    [
        (peer(), None),
        (peer("green"), "own name"),
        (peer("default"), "choose another"),
        (peer("Red"), "lower-case"),
        (peer(cluster_id=7), "own id"),
        (peer(cluster_id=0), "between 1 and 255"),
        (peer(cluster_id=256), "between 1 and 255"),
        (peer(cluster_id=9), "id of peer blue already"),
    ],
)
def test_objects_that_cannot_be_acted_on_are_named(object_: ClusterMeshPeer, said: str | None) -> None:
    others = {"blue": peer("blue", 9, "2025-01-01T00:00:00Z"), "grey": peer("grey", 5, "2026-06-01T00:00:00Z")}
    problem = spec_problem(object_, others, GREEN)
    assert problem is None if said is None else said in (problem or "")


@pytest.mark.parametrize(
    ("quota", "said"),
    [
        (PeerQuota(records=0), "spec.quota.records"),
        (PeerQuota(bytes=-1), "spec.quota.bytes"),
        (PeerQuota(changes_per_second=0), "spec.quota.changesPerSecond"),
    ],
)
def test_a_quota_of_nothing_is_named(quota: PeerQuota, said: str) -> None:
    """Kubernetes refuses it by our definition, unless somebody installed another one."""
    object_ = msgspec.structs.replace(peer(), spec=msgspec.structs.replace(peer().spec, quota=quota))
    assert f"{said} must be at least 1" in (spec_problem(object_, {}, GREEN) or "")


def test_what_we_write_ourselves_asks_for_nothing() -> None:
    def written(generation: int, uid: str = "1", status: str = "") -> ClusterMeshPeer:
        meta = ObjectMeta(name="red", uid=uid, generation=generation)
        return ClusterMeshPeer(metadata=meta, status=ClusterMeshPeerStatus(certificate_request=status))

    assert asks_anew(None, written(1))
    assert not asks_anew(written(1), written(1, status="new"))
    assert asks_anew(written(1), written(2))
    assert asks_anew(written(1), written(1, uid="2"))


def test_a_peer_must_be_who_its_object_says() -> None:
    spec = PeerSpec("red", 5, ())

    def said(cluster_id: int, clusters: int, owner: str | None = "red") -> str:
        config = ClusterConfig(cluster_id, Capabilities(max_connected_clusters=clusters))
        return check_config(config, spec, GREEN, lambda _: owner) or ""

    assert said(5, 255) == said(5, 0) == ""
    assert "as this cluster" in said(7, 255)
    assert "spec.clusterID says 5" in said(6, 255)
    assert "peer blue has already" in said(5, 255, "blue")
    assert "511 clusters" in said(5, 511)


def test_a_certificate_is_issued_once_and_again_before_it_expires() -> None:
    authority = CertificateAuthority.create("green")
    request = pki.make_request("remote-red")
    asked = ClusterMeshPeer(
        metadata=ObjectMeta(name="red"), spec=ClusterMeshPeerSpec(certificate_request=request.csr.decode())
    )
    first = trust.issue(authority, asked, NOW)
    issued = ClusterMeshPeer(
        metadata=asked.metadata, spec=asked.spec, status=ClusterMeshPeerStatus(issued_certificate=first)
    )
    assert trust.issue(authority, issued, NOW) == first
    assert trust.issue(authority, issued, NOW + timedelta(days=300)) != first
    assert trust.issue(CertificateAuthority.create("green"), issued, NOW) != first


def test_a_request_in_another_peers_name_is_not_signed() -> None:
    request = pki.make_request("remote-blue")
    asked = ClusterMeshPeer(
        metadata=ObjectMeta(name="red"), spec=ClusterMeshPeerSpec(certificate_request=request.csr.decode())
    )
    with pytest.raises(PkiError, match="remote-blue"):
        trust.issue(CertificateAuthority.create("green"), asked, NOW)


def test_only_a_certificate_for_our_own_key_is_used() -> None:
    authority = CertificateAuthority.create("red")
    request = pki.make_request("remote-green")
    cert = authority.sign_request(request.csr, "remote-green").decode()
    spec = ClusterMeshPeerSpec(client_certificate=cert, ca_bundle=authority.cert.decode())
    found = trust.credentials(spec, request, NOW)
    assert found is not None and found.key == request.key
    assert trust.credentials(ClusterMeshPeerSpec(ca_bundle=spec.ca_bundle), request, NOW) is None
    with pytest.raises(PkiError, match="not made for our key"):
        trust.credentials(spec, pki.make_request("remote-green"), NOW)
    with pytest.raises(PkiError, match="expired on"):
        trust.credentials(spec, request, NOW + timedelta(days=366))
    with pytest.raises(PkiError, match="not a certificate"):
        trust.credentials(ClusterMeshPeerSpec(client_certificate=cert, ca_bundle="nonsense"), request, NOW)


def test_a_key_that_a_cilium_peer_shares_is_used_with_its_certificate() -> None:
    authority = CertificateAuthority.create("Cilium CA")
    shared, request = authority.issue_client("remote"), pki.make_request("remote-green")
    spec = ClusterMeshPeerSpec(client_certificate=shared.cert.decode(), ca_bundle=authority.cert.decode())
    found = trust.credentials(spec, request, NOW, shared.key)
    assert found is not None and found.key == shared.key
    ours = msgspec.structs.replace(
        spec, client_certificate=authority.sign_request(request.csr, "remote-green", common_name="remote").decode()
    )
    found = trust.credentials(ours, request, NOW, shared.key)
    assert found is not None and found.key == request.key
    with pytest.raises(PkiError, match="not made for our key"):
        trust.credentials(spec, request, NOW, authority.issue_client("remote").key)


def test_only_users_of_peers_are_ever_deleted() -> None:
    users = ["root", "admin-red", "local-red", "remote-green", "remote-blue"]
    assert surplus(users, frozenset({"green"})) == ["remote-blue"]
    assert not own_users("red").keys() & set(surplus(list(own_users("red")), frozenset()))


def test_a_user_that_all_peers_share_is_not_left_in_a_store_that_cilium_filled() -> None:
    assert surplus(["root", "remote", "remote-green"], frozenset({"green"})) == ["remote"]


def test_peers_read_exports_alone() -> None:
    readable = {(permission.kind, permission.key, permission.exact) for permission in roles("red")["remote"]}
    assert readable == {
        ("read", "cilium/.heartbeat", False),
        ("read", "cilium/state/", False),
        ("read", "cilium/synced/red/", False),
        ("read", "cilium/cluster-config/red", True),
    }
