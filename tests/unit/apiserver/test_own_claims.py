"""What this cluster claims against its peers."""

from hypothesis import given
from hypothesis import strategies as st

from apiserver.claims import Claims
from apiserver.own_claims import OwnClaims
from clustermesh.wire import records
from clustermesh.wire.keys import Kind
from clustermesh.wire.ranges import number_of
from clustermesh.wire.records import Node
from tests.integration.apiserver.exports import FIRST_IDENTITY, address, node
from tests.unit.apiserver.judging import Judged

NODES = {
    name: records.decode(Node, node(name, cidr, ip, cluster="green"))
    for name, cidr, ip in (("g1", "10.7.1.0/24", "192.0.2.71"), ("g2", "10.7.0.0/16", "192.0.2.72"))
}
PUBLIC, PRIVATE = "cilium/state/ip/v1/default/", "clustermesh/addresses/v1/"
PODS = ["10.7.1.9", "10.7.2.9", "10.9.9.9"]


def stranger(claims: Claims, ip: str) -> str | None:
    found = number_of(ip)
    assert found is not None
    return claims.at("red", *found)[1]


def test_a_pod_outside_of_the_nodes_ranges_is_taken_from_a_peer_that_announced_it() -> None:
    claims = Claims()
    own, red = OwnClaims("green", claims), Judged(claims, strict=False)
    assert red.say(Kind.ADDRESSES, "10.9.9.9", address("10.9.9.9", FIRST_IDENTITY)) is None
    own.put_pod(PUBLIC, "10.9.9.9")
    claims.settle()
    assert red.reason(Kind.ADDRESSES, "10.9.9.9") == "address belongs to cluster green"
    own.delete_pod(PUBLIC, "10.9.9.9")
    claims.settle()
    assert red.sees(Kind.ADDRESSES, "10.9.9.9")


def test_a_pod_that_leaves_the_peers_sight_stays_the_clusters_own() -> None:
    claims = Claims()
    own = OwnClaims("green", claims)
    own.put_pod(PUBLIC, "10.9.9.9")
    own.put_pod(PRIVATE, "10.9.9.9")
    own.delete_pod(PUBLIC, "10.9.9.9")
    claims.settle()
    assert stranger(claims, "10.9.9.9") == "green"
    own.delete_pod(PRIVATE, "10.9.9.9")
    claims.settle()
    assert stranger(claims, "10.9.9.9") is None


def test_a_pod_within_its_nodes_range_is_no_claim_of_its_own_until_the_range_goes() -> None:
    claims = Claims()
    own = OwnClaims("green", claims)
    own.put_node(NODES["g1"])
    own.put_pod(PUBLIC, "10.7.1.9")
    own.put_pod(PUBLIC, "no address")
    claims.settle()
    assert set(claims.nodes("green")) == {"g1"}
    own.delete_node("g1")
    claims.settle()
    assert set(claims.nodes("green")) == {"pod 10.7.1.9"}
    own.put_node(NODES["g2"])
    claims.settle()
    assert set(claims.nodes("green")) == {"g2"}


@given(st.lists(st.tuples(st.sampled_from([*NODES, *PODS]), st.booleans()), max_size=20))
def test_every_pod_is_the_clusters_own_in_whatever_order_nodes_come_and_go(steps: list[tuple[str, bool]]) -> None:
    claims = Claims()
    own = OwnClaims("green", claims)
    there: set[str] = set()
    for name, comes in steps:
        (there.add if comes else there.discard)(name)
        if name in NODES:
            own.put_node(NODES[name]) if comes else own.delete_node(name)
        else:
            own.put_pod(PUBLIC, name) if comes else own.delete_pod(PUBLIC, name)
        claims.settle()
        ranges = [network for node in there & NODES.keys() for network in NODES[node].pod_cidrs()]
        for pod in PODS:
            found = number_of(pod)
            assert found is not None
            inside = any(found[1] in range(int(n[0]), int(n[-1]) + 1) for n in ranges)
            assert (stranger(claims, pod) == "green") == (inside or pod in there)
            assert (f"pod {pod}" in claims.nodes("green")) == (pod in there and not inside)
