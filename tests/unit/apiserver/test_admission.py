"""What of a peer's records is let in, by policy."""

from collections.abc import Mapping
from ipaddress import ip_network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiserver.admission import NO_NODE, NO_SUCH_IDENTITY, OUTSIDE_NODES, OUTSIDE_PEER, OUTSIDE_POD_CIDRS
from apiserver.claims import Claims
from clustermesh.wire import endpoint_slices, labels, records
from clustermesh.wire.endpoint_slices import ClusterEndpointSlice, SliceEndpoint, SlicePort
from clustermesh.wire.keys import Kind
from clustermesh.wire.records import (
    AddressRecord,
    Cidr,
    ExportedPort,
    Node,
    NodeAddress,
    Port,
    ServiceExport,
    ServiceRecord,
)
from clustermesh.wire.validation import LARGEST
from tests.integration.apiserver.exports import CLUSTER_ID, FIRST_IDENTITY, identity, node
from tests.unit.apiserver.judging import Judged
from tests.unit.apiserver.ranges import cidr

POD = FIRST_IDENTITY + 1
NODE, OTHER_NODE = "192.0.2.21", "192.0.2.71"


def mesh(*, strict: bool) -> Judged:
    """Red has one node with pods in 10.5.1.0/24; green, this cluster, and blue have one each."""
    claims = Claims()
    claims.hold("green", "green-1", [cidr("10.7.1.0/24"), cidr("192.0.2.71/32")])
    claims.hold("blue", "blue-1", [cidr("10.8.1.0/24"), cidr("192.0.2.81/32")])
    red = Judged(claims, strict=strict)
    own = Node(
        name="red-1",
        cluster="red",
        cluster_id=CLUSTER_ID,
        ip_addresses=(NodeAddress("InternalIP", NODE), NodeAddress("CiliumInternalIP", "10.5.1.1")),
        ipv4_alloc_cidr=Cidr.of(ip_network("10.5.1.0/24")),
        ipv6_alloc_cidr=Cidr.of(ip_network("fd00:5::/64")),
        ipv4_health_ip="10.5.1.250",
        ipv4_ingress_ip="10.5.1.251",
    )
    assert red.say(Kind.NODES, "red-1", records.encode(own)) is None
    return red


def address(ip: str, number: int = POD, host: str = NODE, **more: object) -> bytes:
    return records.encode(AddressRecord(ip, host_ip=host, identity=number, **more))  # type: ignore[arg-type]


def service(*backends: str, port: int = 80, frontend: str = "10.45.0.9") -> bytes:
    record = ServiceRecord(
        cluster="red",
        namespace="default",
        name="echo",
        cluster_id=CLUSTER_ID,
        frontends={frontend: {"http": Port("TCP", 80)}},
        backends={ip: {"http": Port("TCP", port)} for ip in backends},
    )
    return records.encode(record)


def changed(record: Node | ServiceRecord, **fields: object) -> bytes:
    return records.encode(msgspec.structs.replace(record, **fields))


def slice_of(*addresses: str, **more: object) -> bytes:
    fields: Mapping[str, object] = {
        "cluster": "red",
        "cluster_id": CLUSTER_ID,
        "namespace": "default",
        "name": "echo-x",
        "address_type": "IPv4",
        "endpoints": tuple(SliceEndpoint(addresses=(ip,)) for ip in addresses),
        "ports": (SlicePort(name="http", protocol="TCP", port=80),),
        **more,
    }
    return endpoint_slices.encode(ClusterEndpointSlice(**fields))  # type: ignore[arg-type]


def export(**more: object) -> bytes:
    fields: Mapping[str, object] = {
        "cluster": "red",
        "namespace": "default",
        "name": "echo",
        "export_creation_timestamp": "2026-01-05T09:00:00Z",
        "ports": (ExportedPort(name="http", protocol="TCP", port=80),),
        "type": "ClusterSetIP",
        **more,
    }
    return records.encode(ServiceExport(**fields))  # type: ignore[arg-type]


N, ID, A = Kind.NODES, Kind.IDENTITIES, Kind.ADDRESSES
S, E, L = Kind.SERVICES, Kind.SERVICE_EXPORTS, Kind.ENDPOINT_SLICES
SAME = "as strict"
DEEP = b'{"x":' + b"[" * 5000
NUMBER = str(FIRST_IDENTITY)


@pytest.mark.parametrize(
    ("kind", "name", "value", "strict", "lenient"),
    [
        # Keys
        (N, "", node(""), "malformed key", SAME),
        (N, "a/b", node("a/b"), "malformed key", SAME),
        (N, b"red\xff", node("x"), "key is no printable text", SAME),
        (N, "red\n2", node("red\n2"), "key is no printable text", SAME),
        (N, "r" * 513, node("r" * 513), "key too long", SAME),
        (ID, f"{NUMBER}/", identity(), "malformed key", SAME),
        (A, "", address(""), "malformed address", SAME),
        (A, "10.5.1.7/", address("10.5.1.7"), "address differs from key", SAME),
        (S, "echo", service(), "malformed key", SAME),
        (S, "default/", service(), "malformed key", SAME),
        (S, "default//echo", service(), "malformed key", SAME),
        (E, "default/echo/more", export(), "malformed key", SAME),
        (L, "/echo-x", slice_of(), "malformed key", SAME),
        # Nodes
        (N, "red-2", node("red-2", "10.5.2.0/24", "192.0.2.22"), None, SAME),
        (N, "red-2", node("red-2", "10.5.1.0/24", "192.0.2.22"), None, SAME),
        (N, "red-2", node("red-2", "10.7.1.128/25"), "pod CIDR overlaps addresses of cluster green", SAME),
        (N, "red-2", node("red-2", "10.7.0.0/16"), "pod CIDR overlaps addresses of cluster green", SAME),
        (N, "red-2", node("red-2", "10.8.1.0/24"), "pod CIDR overlaps addresses of cluster blue", SAME),
        (N, "red-2", node("red-2", "192.0.2.64/26"), "pod CIDR overlaps addresses of cluster green", SAME),
        (N, "red-2", node("red-2", ip=OTHER_NODE), "node address belongs to cluster green", SAME),
        (N, "red-2", node("red-2", ip="10.7.1.9"), "node address belongs to cluster green", SAME),
        (
            N,
            "red-2",
            changed(records.decode(Node, node("red-2")), ipv4_health_ip="10.7.1.9"),
            "node address belongs to cluster green",
            SAME,
        ),
        (N, "red-2", node("red-2", "127.0.0.0/16"), "pod CIDR in a special range", SAME),
        (N, "red-2", node("red-2", ip="169.254.0.1"), "node address in a special range", SAME),
        (N, "red-2", node("red-2", ip="0.0.0.0"), "node address in a special range", SAME),
        (N, "red-2", node("red-2", "0.0.0.0/0"), "pod CIDR too wide", SAME),
        (N, "red-2", node("red-2", cluster="blue"), "node of another cluster", SAME),
        (N, "red-2", node("red-3"), "node name differs from key", SAME),
        (N, "red-2", b"{", "undecodable nodes record", SAME),
        (N, "red-2", DEEP, "undecodable nodes record", SAME),
        (N, "red-2", b" " * (LARGEST[N] + 1), "record too large", SAME),
        # Identities
        (ID, NUMBER, identity(), None, SAME),
        (ID, str(FIRST_IDENTITY + 65535), identity(), None, SAME),
        (ID, str(FIRST_IDENTITY + 65536), identity(), "identity outside the peer's range", SAME),
        (ID, str((7 << 16) + 1), identity(), "identity outside the peer's range", SAME),
        (ID, "6", identity(), "identity outside the peer's range", SAME),
        (ID, str(1 << 24 | FIRST_IDENTITY), identity(), "identity outside the peer's range", SAME),
        (ID, f"0{NUMBER}", identity(), "identity key is no number", SAME),
        (ID, NUMBER, identity(cluster="green"), "identity without the peer's cluster label", SAME),
        (ID, NUMBER, records.encode_identity({"any:x": "y"}), "identity without the peer's cluster label", SAME),
        (
            ID,
            NUMBER,
            records.encode_identity({labels.CLUSTER.replace("k8s:", "any:"): "red"}),
            "identity without the peer's cluster label",
            SAME,
        ),
        (ID, NUMBER, b"\xff", "undecodable identities record", SAME),
        (ID, NUMBER, identity(app="x" * LARGEST[ID]), "record too large", SAME),
        # Addresses
        (A, "10.5.1.7", address("10.5.1.7"), None, SAME),
        (A, "fd00:5::7", address("fd00:5::7"), None, SAME),
        (A, "fd00:5:0::7", address("fd00:5:0::7"), "address differs from key", SAME),
        (A, "10.5.1.8", address("10.5.1.7"), "address differs from key", SAME),
        (A, "10.5.1.0/28", address("10.5.1.0", mask="////8A=="), "address range", SAME),
        (A, "10.5.1.7", address("10.5.1.7", POD + 65536), "address with an identity outside the peer's range", SAME),
        (A, "10.5.1.7", address("10.5.1.7", 256), "address with an identity outside the peer's range", SAME),
        (A, "10.5.1.7", address("10.5.1.7", -1), "address with an identity outside the peer's range", SAME),
        (A, "10.5.1.7", address("10.5.1.7", 1 << 32), "address with an identity outside the peer's range", SAME),
        (A, "10.5.1.7", address("10.5.1.7", key=256), "number out of range in an address", SAME),
        (A, "10.5.2.7", address("10.5.2.7"), OUTSIDE_POD_CIDRS, None),
        (A, "10.7.1.7", address("10.7.1.7"), "address belongs to cluster green", SAME),
        (A, "10.8.1.7", address("10.8.1.7"), "address belongs to cluster blue", SAME),
        (A, OTHER_NODE, address(OTHER_NODE, 6), "address belongs to cluster green", SAME),
        (A, "127.0.0.1", address("127.0.0.1"), "address of a special range", SAME),
        (A, "::ffff:a07:107", address("::ffff:a07:107"), "address of a special range", SAME),
        (A, "::ffff:10.7.1.7", address("::ffff:10.7.1.7"), "address differs from key", SAME),
        (A, "10.5.1.7", address("10.5.1.7", host="192.0.2.22"), OUTSIDE_NODES, None),
        (A, "10.5.1.7", address("10.5.1.7", host=""), OUTSIDE_NODES, None),
        (A, "10.5.1.7", address("10.5.1.7", host="10.5.1.9"), OUTSIDE_NODES, None),
        (A, "10.5.1.7", address("10.5.1.7", host=OTHER_NODE), OUTSIDE_NODES, "HostIP belongs to cluster green"),
        (A, "10.5.1.7", address("10.5.1.7", host="node"), "malformed address", SAME),
        (A, "10.5.1.7", b'{"IP":"10.5.1.7","Mask":7}', "undecodable addresses record", SAME),
        (A, "10.5.1.7", b" " * (LARGEST[A] + 1), "record too large", SAME),
        # Identities of an address that mean the same everywhere
        (A, "10.5.1.7", address("10.5.1.7", 0), None, SAME),
        (A, "10.5.1.7", address("10.5.1.7", 3), None, SAME),
        (A, "10.5.1.7", address("10.5.1.7", 5), None, SAME),
        (A, "10.5.2.7", address("10.5.2.7", 5), OUTSIDE_POD_CIDRS, None),
        (A, NODE, address(NODE, 1), None, SAME),
        (A, NODE, address(NODE, 6), None, SAME),
        (A, "10.5.1.1", address("10.5.1.1", 1), None, SAME),
        (A, "10.5.1.250", address("10.5.1.250", 4), None, SAME),
        (A, "10.5.1.251", address("10.5.1.251", 8), None, SAME),
        (A, "10.5.1.7", address("10.5.1.7", 1), NO_NODE, None),
        (A, "10.5.1.7", address("10.5.1.7", 6), NO_NODE, None),
        (A, "10.5.1.7", address("10.5.1.7", 8), NO_NODE, None),
        (A, "10.5.1.7", address("10.5.1.7", 2), NO_SUCH_IDENTITY, None),
        (A, NODE, address(NODE, 7), NO_SUCH_IDENTITY, None),
        (A, "10.5.1.7", address("10.5.1.7", 9), NO_SUCH_IDENTITY, None),
        (A, "10.5.1.7", address("10.5.1.7", 102), NO_SUCH_IDENTITY, None),
        (A, "10.5.1.7", address("10.5.1.7", 255), NO_SUCH_IDENTITY, None),
        # Services
        (S, "default/echo", service(), None, SAME),
        (S, "default/echo", service("10.5.1.7", NODE), None, SAME),
        (S, "default/echo", service("10.5.1.7", frontend="10.7.1.7"), None, SAME),
        (S, "default/echo", service("10.5.1.7", "10.5.2.7"), OUTSIDE_PEER, None),
        (S, "default/echo", service("10.5.1.7", "10.7.1.7"), "backend belongs to cluster green", SAME),
        (S, "default/echo", service("127.0.0.1"), "backend of a special range", SAME),
        (S, "default/echo", service("10.5.1.7", "x"), "malformed address in a service", SAME),
        (S, "default/echo", service(frontend="x"), "malformed address in a service", SAME),
        (S, "default/echo", service("10.5.1.7", port=65536), "port out of range", SAME),
        (S, "default/other", service(), "service name differs from key", SAME),
        (
            S,
            "default/echo",
            changed(records.decode(ServiceRecord, service()), cluster="blue"),
            "service of another cluster",
            SAME,
        ),
        (
            S,
            "default/echo",
            changed(records.decode(ServiceRecord, service()), cluster_id=6),
            "service with another cluster id",
            SAME,
        ),
        (
            S,
            "default/echo",
            changed(
                records.decode(ServiceRecord, service()),
                backends={"10.5.1.7": {str(port): Port("TCP", 80) for port in range(1001)}},
            ),
            "too many ports",
            SAME,
        ),
        (S, "default/echo", b" " * (LARGEST[S] + 1), "record too large", SAME),
        # Service exports
        (E, "default/echo", export(), None, SAME),
        (E, "default/other", export(), "service export name differs from key", SAME),
        (E, "default/echo", export(cluster="blue"), "service export of another cluster", SAME),
        (E, "default/echo", export(ports=(ExportedPort(port=65536),)), "port out of range", SAME),
        (E, "default/echo", export(ports=(ExportedPort(port=1),) * 1001), "too many ports", SAME),
        (E, "default/echo", export().replace(b"ClusterSetIP", b"x"), "undecodable serviceexports record", SAME),
        # Endpoint slices
        (L, "default/echo-x", slice_of("10.5.1.7", NODE), None, SAME),
        (L, "default/echo-x", slice_of("10.5.2.7"), OUTSIDE_PEER, None),
        (L, "default/echo-x", slice_of("10.8.1.7"), "backend belongs to cluster blue", SAME),
        (L, "default/echo-y", slice_of(), "endpoint slice name differs from key", SAME),
        (L, "default/echo-x", slice_of(cluster="blue"), "endpoint slice of another cluster", SAME),
        (L, "default/echo-x", slice_of(cluster_id=6), "endpoint slice with another cluster id", SAME),
        (L, "default/echo-x", slice_of(ports=(SlicePort(port=1),) * 1001), "too many ports", SAME),
        (L, "default/echo-x", slice_of("fd00:5::7"), "undecodable endpointslices record", SAME),
        (L, "default/echo-x", b"x", "undecodable endpointslices record", SAME),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_each_claim_is_checked(
    kind: Kind, name: str | bytes, value: bytes, strict: str | None, lenient: str | None
) -> None:
    expected = {True: strict, False: strict if lenient == SAME else lenient}
    for policy, reason in expected.items():
        red = mesh(strict=policy)
        assert red.say(kind, name, value) == reason, f"strict={policy}"
        if isinstance(name, str):
            assert red.sees(kind, name) == (reason is None)


@pytest.mark.parametrize("strict", [True, False])
def test_a_refused_value_leaves_the_last_good_one_in_force_until_it_is_deleted(strict: bool) -> None:
    red = mesh(strict=strict)
    red.say(A, "10.5.1.7", address("10.5.1.7"))
    assert red.say(A, "10.5.1.7", b"{") == "undecodable addresses record"
    assert red.readers.seen[A, "10.5.1.7"] == address("10.5.1.7")
    assert red.say(A, "10.5.1.7", address("10.5.1.7")) is None, "the same again ends the quarantine"
    red.say(A, "10.5.1.7", b"{")
    assert red.say(A, "10.5.1.7", None) is None
    assert not red.sees(A, "10.5.1.7")


def test_an_address_waits_for_its_node_and_goes_with_it() -> None:
    red = mesh(strict=True)
    assert red.say(A, "10.5.2.7", address("10.5.2.7", host="192.0.2.22")) == OUTSIDE_POD_CIDRS
    red.say(N, "red-2", node("red-2", "10.5.2.0/24", "192.0.2.23"))
    assert red.reason(A, "10.5.2.7") == OUTSIDE_NODES
    red.say(N, "red-2", node("red-2", "10.5.2.0/24", "192.0.2.22"))
    assert red.sees(A, "10.5.2.7") and red.reason(A, "10.5.2.7") is None
    red.say(N, "red-2", node("red-2", "10.5.2.128/25", "192.0.2.22"))
    assert red.reason(A, "10.5.2.7") == OUTSIDE_POD_CIDRS and not red.sees(A, "10.5.2.7")
    red.say(N, "red-2", node("red-2", "10.5.2.0/24", "192.0.2.22"))
    assert red.sees(A, "10.5.2.7")
    red.say(N, "red-2", None)
    assert red.reason(A, "10.5.2.7") == OUTSIDE_POD_CIDRS and not red.sees(A, "10.5.2.7")


@pytest.mark.parametrize(("kind", "name"), [(S, "default/echo"), (L, "default/echo-x")])
def test_a_service_waits_for_the_nodes_of_its_backends(kind: Kind, name: str) -> None:
    red = mesh(strict=True)
    value = service("10.5.1.7", "10.5.2.7") if kind is S else slice_of("10.5.1.7", "10.5.2.7")
    assert red.say(kind, name, value) == OUTSIDE_PEER
    red.say(N, "red-2", node("red-2", "10.5.2.0/24", "192.0.2.22"))
    assert red.sees(kind, name)
    red.say(N, "red-2", None)
    assert red.reason(kind, name) == OUTSIDE_PEER and not red.sees(kind, name)


@pytest.mark.parametrize("strict", [True, False])
def test_this_clusters_own_node_takes_its_addresses_from_a_peer_and_gives_them_back(strict: bool) -> None:
    red = mesh(strict=strict)
    red.say(A, "10.5.1.7", address("10.5.1.7"))
    red.say(S, "default/echo", service("10.5.1.7"))
    red.claims.hold("green", "green-2", [cidr("10.5.0.0/16")])
    red.claims.settle()
    assert red.readers.seen == {}
    assert red.reason(N, "red-1") == "pod CIDR overlaps addresses of cluster green"
    assert red.reason(A, "10.5.1.7") == "address belongs to cluster green"
    assert red.reason(S, "default/echo") == "backend belongs to cluster green"
    red.claims.release("green", "green-2")
    red.claims.settle()
    assert len(red.readers.seen) == 3
    assert red.admission.quarantine.view().total == 0


def test_of_two_peers_the_first_keeps_a_range_until_it_lets_go() -> None:
    claims = Claims()
    red, blue = Judged(claims), Judged(claims, name="blue", cluster_id=6)
    mine = node("blue-1", "10.5.0.0/16", "192.0.2.81", cluster="blue").replace(b'"ClusterID":5', b'"ClusterID":6')
    red.say(N, "red-1", node("red-1"))
    assert blue.say(N, "blue-1", mine) == "pod CIDR overlaps addresses of cluster red"
    red.say(N, "red-1", None)
    assert blue.sees(N, "blue-1") and blue.reason(N, "blue-1") is None
    assert red.say(N, "red-1", node("red-1")) == "pod CIDR overlaps addresses of cluster blue"


def test_a_lenient_peers_address_outside_its_ranges_is_its_own_against_other_peers_but_not_against_nodes() -> None:
    claims = Claims()
    red, blue = Judged(claims, strict=False), Judged(claims, name="blue", cluster_id=6, strict=False)
    theirs = address("10.9.9.9", (6 << 16) + 1, host="192.0.2.81")
    assert red.say(A, "10.9.9.9", address("10.9.9.9")) is None
    assert blue.say(A, "10.9.9.9", theirs) == "address belongs to cluster red"
    red.say(A, "10.9.9.9", None)
    assert blue.sees(A, "10.9.9.9")
    red.say(N, "red-1", node("red-1", "10.9.9.0/24"))
    assert blue.reason(A, "10.9.9.9") == "address belongs to cluster red" and not blue.sees(A, "10.9.9.9")


def test_an_address_that_loses_its_range_stays_a_lenient_peers_own() -> None:
    claims = Claims()
    red, blue = Judged(claims, strict=False), Judged(claims, name="blue", cluster_id=6, strict=False)
    red.say(N, "red-1", node("red-1", "10.9.9.0/24"))
    red.say(A, "10.9.9.9", address("10.9.9.9"))
    red.say(N, "red-1", None)
    assert red.sees(A, "10.9.9.9")
    theirs = address("10.9.9.9", (6 << 16) + 1, host="192.0.2.81")
    assert blue.say(A, "10.9.9.9", theirs) == "address belongs to cluster red"


def test_what_a_list_does_not_bring_again_is_gone_with_its_quarantine() -> None:
    red = mesh(strict=True)
    red.say(A, "10.5.1.7", address("10.5.1.7"))
    red.say(A, "10.5.1.8", address("10.5.1.8"))
    red.say(A, "10.5.9.9", address("10.5.9.9"))
    red.admission.begin(A)
    red.say(A, "10.5.1.8", address("10.5.1.8"))
    assert red.sees(A, "10.5.1.7"), "what is known holds until the list is complete"
    red.admission.complete(A)
    red.admission.finish()
    assert set(red.readers.seen) == {(N, "red-1"), (A, "10.5.1.8")}
    assert red.admission.quarantine.view().total == 0


def test_the_nodes_that_an_earlier_mirror_let_in_lose_their_claims_when_they_are_gone() -> None:
    claims = Claims()
    claims.hold("red", "red-0", [cidr("10.5.0.0/24")])
    red = Judged(claims)
    red.admission.begin(N)
    red.say(N, "red-1", node("red-1"))
    red.admission.complete(N)
    assert set(claims.nodes("red")) == {"red-1"}


@given(st.sampled_from(Kind), st.binary(max_size=60), st.binary(max_size=200), st.booleans())
def test_nothing_a_peer_writes_raises(kind: Kind, key: bytes, value: bytes, strict: bool) -> None:
    red = mesh(strict=strict)
    red.say(kind, key, value)
    red.admission.quarantine.view()
    red.say(kind, key, None)
    assert set(red.readers.seen) == {(N, "red-1")}
    assert red.admission.quarantine.view().total == 0


def test_what_an_earlier_process_let_in_is_in_force_at_once_and_judged_later() -> None:
    red = mesh(strict=True)
    for name, value in {
        "10.5.1.7": address("10.5.1.7"),
        "10.9.9.9": address("10.9.9.9"),  # as a lenient peer may
        "10.5.1.8": b"{",  # as no rules would have let it in
    }.items():
        red.admission.adopt(Kind.ADDRESSES, name.encode(), value)
    red.admission.finish()
    assert red.admission.unproven == 3
    assert red.admission.count(Kind.ADDRESSES) == 3
    red.admission.prove(3)
    assert red.admission.unproven == 0
    assert {name for kind, name in red.readers.seen if kind is Kind.ADDRESSES} == {"10.5.1.7"}
    assert red.reason(Kind.ADDRESSES, "10.9.9.9") == OUTSIDE_POD_CIDRS
    assert red.reason(Kind.ADDRESSES, "10.5.1.8") == "undecodable addresses record"


def test_an_adopted_value_that_would_not_be_let_in_is_not_the_last_good_one() -> None:
    red = mesh(strict=True)
    red.admission.adopt(Kind.ADDRESSES, b"10.9.9.9", address("10.9.9.9"))
    assert red.say(Kind.ADDRESSES, "10.9.9.9", address("10.9.9.9", POD + 1)) == OUTSIDE_POD_CIDRS
    assert not red.sees(Kind.ADDRESSES, "10.9.9.9")
    red.admission.adopt(Kind.ADDRESSES, b"10.5.1.7", address("10.5.1.7"))
    assert red.say(Kind.ADDRESSES, "10.5.1.7", b"{") is not None
    assert red.readers.seen[Kind.ADDRESSES, "10.5.1.7"] == address("10.5.1.7")
    assert red.admission.unproven == 0
