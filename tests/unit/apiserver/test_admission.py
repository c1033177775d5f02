"""What of a peer's records is let in."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiserver.admission import LARGEST, OUTSIDE_POD_CIDRS, Admission, Quarantine
from apiserver.claims import Claims
from clustermesh.wire.identity import Numbering
from clustermesh.wire.keys import Kind
from clustermesh.wire.validation import Claimant
from tests.integration.apiserver.exports import CLUSTER_ID, FIRST_IDENTITY, address, identity, node, service

RED = Claimant("red", CLUSTER_ID, Numbering())


def admission(*, strict: bool = True) -> Admission:
    claims = Claims()
    claims.hold("green", "green-1", [ip_network("10.7.1.0/24")], [ip_address("192.0.2.71")])
    judge = Admission(RED, claims, strict=strict)
    assert judge.judge(Kind.NODES, "red-1", node("red-1")) is None
    return judge


@pytest.mark.parametrize(
    ("kind", "tail", "value", "reason"),
    [
        (Kind.NODES, "red-2", node("red-2", "10.5.2.0/24"), None),
        (Kind.NODES, "red-2", node("red-2", "10.7.1.128/25"), "pod CIDR overlaps addresses of cluster green"),
        (Kind.NODES, "red-2", node("red-2", "192.0.2.64/26"), "pod CIDR overlaps addresses of cluster green"),
        (Kind.NODES, "red-2", node("red-2", ip="192.0.2.71"), "node address belongs to cluster green"),
        (Kind.NODES, "red-2", node("red-2", ip="10.7.1.9"), "node address belongs to cluster green"),
        (Kind.NODES, "red-2", node("red-2", cluster="blue"), "node of another cluster"),
        (Kind.NODES, "red-2", b"{", "undecodable nodes record"),
        (Kind.IDENTITIES, str(FIRST_IDENTITY), identity(), None),
        (Kind.IDENTITIES, str(FIRST_IDENTITY), identity(cluster="blue"), "identity without the peer's cluster label"),
        (Kind.IDENTITIES, str(FIRST_IDENTITY), b"\xff", "undecodable identities record"),
        (Kind.IDENTITIES, "6", identity(), "identity outside the peer's range"),
        (Kind.ADDRESSES, "10.5.1.7", address("10.5.1.7"), None),
        (Kind.ADDRESSES, "10.5.2.7", address("10.5.2.7"), OUTSIDE_POD_CIDRS),
        (Kind.ADDRESSES, "10.7.1.7", address("10.7.1.7"), OUTSIDE_POD_CIDRS),
        (Kind.ADDRESSES, "10.7.1.7", address("10.7.1.7", 6), "address belongs to cluster green"),
        (Kind.ADDRESSES, "192.0.2.71", address("192.0.2.71", 1), "address belongs to cluster green"),
        (Kind.SERVICES, "default/echo", service("echo"), None),
        (Kind.SERVICES, "default/other", service("echo"), "service name differs from key"),
        (Kind.SERVICES, "default/echo", b" " * (LARGEST + 1), "record too large"),
    ],
)
def test_each_claim_is_checked(kind: Kind, tail: str, value: bytes, reason: str | None) -> None:
    assert admission().judge(kind, tail, value) == reason


def test_without_strictness_pods_may_lie_outside_but_not_in_anothers_range() -> None:
    lax = admission(strict=False)
    assert lax.judge(Kind.ADDRESSES, "10.5.2.7", address("10.5.2.7")) is None
    assert lax.judge(Kind.ADDRESSES, "10.7.1.7", address("10.7.1.7")) == "address belongs to cluster green"


def test_a_deleted_nodes_range_is_no_longer_the_peers() -> None:
    judge = admission()
    judge.forget(Kind.NODES, "red-1")
    assert judge.judge(Kind.ADDRESSES, "10.5.1.7", address("10.5.1.7")) == OUTSIDE_POD_CIDRS


@given(st.sampled_from(Kind), st.text(max_size=40), st.binary(max_size=200))
def test_nothing_a_peer_writes_raises(kind: Kind, tail: str, value: bytes) -> None:
    admission().judge(kind, tail, value)


def test_quarantine_counts_what_is_kept_out_now() -> None:
    quarantine = Quarantine()
    assert quarantine.put("nodes/a", "too big")
    assert not quarantine.put("nodes/a", "too big")
    assert quarantine.put("nodes/a", "too small")
    quarantine.put("nodes/b", "too small")
    quarantine.put("services/a", "odd")
    assert quarantine.view().by_reason == {"odd": 1, "too small": 2}
    quarantine.keep_only("nodes/", {"nodes/b"})
    quarantine.release("services/a")
    quarantine.release("services/never")
    view = quarantine.view()
    assert (view.total, view.by_reason, view.examples) == (1, {"too small": 1}, ("nodes/b: too small",))
