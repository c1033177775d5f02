"""Decoders take anything and answer with a record or a RecordError; what they take they give back."""

import ipaddress

import msgspec
import pytest

from clustermesh.wire import labels, names, records
from clustermesh.wire.errors import RecordError
from clustermesh.wire.identity import Numbering
from clustermesh.wire.validation import (
    Claimant,
    check_address,
    check_identity,
    check_node,
    check_service,
)


def test_an_error_names_the_field() -> None:
    with pytest.raises(RecordError, match=r"\$\.ID"):
        records.decode(records.AddressRecord, b'{"IP":"10.0.0.1","ID":"seven"}')


def test_unknown_fields_are_ignored() -> None:
    record = records.decode(records.AddressRecord, b'{"IP":"10.0.0.1","ID":7,"FromTheFuture":{"a":[1]}}')
    assert record == records.AddressRecord("10.0.0.1", identity=7)


def test_labels_are_sorted_by_key_whatever_their_source() -> None:
    assert labels.encode({"k8s:b": "2", "any:c": "3", "k8s:a": "1"}) == "k8s:a=1;k8s:b=2;any:c=3;"


@pytest.mark.parametrize("text", ["", "k8s:a=1", "a=1;", "k8s:a;", "k8s:=1;", ":a=1;", "k8s:a=1;;", "k8s:a=1;k8s:a=2;"])
def test_malformed_labels_are_refused(text: str) -> None:
    with pytest.raises(RecordError):
        labels.decode(text)


def test_labels_that_differ_from_pod_to_pod_make_no_identity() -> None:
    of_pod = labels.of_pod(
        "red",
        "prod",
        {"kubernetes.io/metadata.name": "prod", "team": "a"},
        "",
        {
            "app": "web",
            "app.kubernetes.io/name": "web",
            "pod-template-hash": "5d4",
            "statefulset.kubernetes.io/pod-name": "web-0",
            "batch.kubernetes.io/controller-uid": "x",
            "io.kubernetes.pod.uid": "7",
            "io.cilium.k8s.namespace.labels.team": "another",
            "io.cilium.k8s.namespace.labels.owner": "me",
            "io.cilium.k8s.policy.cluster": "green",
            "io.cilium.k8s.policy.serviceaccount": "root",
            "io.cilium.k8s.policy.derived-from": "another",
            "io.kubernetes.pod.namespace": "kube-system",
        },
    )
    assert of_pod == {
        "k8s:app": "web",
        "k8s:app.kubernetes.io/name": "web",
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name": "prod",
        "k8s:io.cilium.k8s.namespace.labels.team": "a",
        "k8s:io.cilium.k8s.policy.cluster": "red",
        "k8s:io.cilium.k8s.policy.serviceaccount": "default",
        "k8s:io.kubernetes.pod.namespace": "prod",
    }


@pytest.mark.parametrize(
    ("max_clusters", "cluster_id", "expected"),
    [(255, 1, (65536, 131071)), (255, 5, (327680, 393215)), (511, 511, (16744448, 16777215)), (255, 0, (256, 65535))],
)
def test_a_cluster_owns_its_range_of_identities(max_clusters: int, cluster_id: int, expected: tuple[int, int]) -> None:
    numbering = Numbering(max_clusters)
    assert numbering.range(cluster_id) == expected
    assert {numbering.cluster_of(number) for number in expected} == {cluster_id}


@pytest.mark.parametrize("max_clusters", [0, 1, 254, 256, 512, -1])
def test_only_two_mesh_sizes_exist(max_clusters: int) -> None:
    with pytest.raises(ValueError, match="255 or 511"):
        Numbering(max_clusters)


@pytest.mark.parametrize("name", ["", "default", "Red", "-a", "a-", "a_b", "a.b", "x" * 33, "red\n"])
def test_bad_cluster_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cluster name"):
        names.check_cluster_name(name)


GREEN = Claimant("green", 2, Numbering())
NODE = records.Node(
    name="n1",
    cluster="green",
    cluster_id=2,
    ip_addresses=(records.NodeAddress("InternalIP", "192.0.2.1"),),
    ipv4_alloc_cidr=records.Cidr.of(ipaddress.ip_network("10.2.1.0/24")),
)
SERVICE = records.ServiceRecord(cluster="green", namespace="a", name="b", cluster_id=2)


def replace(record: object, **changes: object) -> object:
    return msgspec.structs.replace(record, **changes)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (check_node(GREEN, "n1", NODE), None),
        (check_node(GREEN, "n2", NODE), "node name differs from key"),
        (check_node(GREEN, "n1", replace(NODE, cluster="red")), "node of another cluster"),
        (check_node(GREEN, "n1", replace(NODE, cluster_id=1)), "node with another cluster id"),
        (check_node(GREEN, "n1", replace(NODE, ip_addresses=None)), None),
        (
            check_node(GREEN, "n1", replace(NODE, ip_addresses=(records.NodeAddress("Hostname", "n1"),))),
            "malformed address in a node",
        ),
        (check_node(GREEN, "n1", replace(NODE, ipv4_health_ip="10.2.1")), "malformed address in a node"),
        (check_node(GREEN, "n1", replace(NODE, encryption_key=256)), "number out of range in a node"),
        (
            check_node(GREEN, "n1", replace(NODE, ipv4_alloc_cidr=records.Cidr("10.2.1.0", "/wD/AA=="))),
            "malformed pod CIDR",
        ),
        (check_node(GREEN, "n1", replace(NODE, ipv4_alloc_cidr=records.Cidr("x", "y"))), "malformed pod CIDR"),
        (
            check_node(GREEN, "n1", replace(NODE, ipv4_alloc_cidr=records.Cidr.of(ipaddress.ip_network("0.0.0.0/0")))),
            "pod CIDR too wide",
        ),
        (check_identity(GREEN, "131072", {labels.CLUSTER: "green"}), None),
        (check_identity(GREEN, "65536", {labels.CLUSTER: "green"}), "identity outside the peer's range"),
        (check_identity(GREEN, "131072", {labels.CLUSTER: "red"}), "identity without the peer's cluster label"),
        (check_identity(GREEN, "0131072", {labels.CLUSTER: "green"}), "identity key is no number"),
        (check_identity(GREEN, "١٣١٠٧٢", {labels.CLUSTER: "green"}), "identity key is no number"),
        (check_address(GREEN, "10.2.1.5", records.AddressRecord("10.2.1.5", identity=131072)), None),
        (
            check_address(GREEN, "10.2.1.6", records.AddressRecord("10.2.1.5", identity=131072)),
            "address differs from key",
        ),
        (check_address(GREEN, "x", records.AddressRecord("x", identity=131072)), "malformed address"),
        (
            check_address(GREEN, "10.2.1.5", records.AddressRecord("10.2.1.5", identity=65536)),
            "address with an identity outside the peer's range",
        ),
        (check_address(GREEN, "10.2.1.5", records.AddressRecord("10.2.1.5", identity=255)), None),
        (
            check_address(GREEN, "10.2.1.5", records.AddressRecord("10.2.1.5", identity=256)),
            "address with an identity outside the peer's range",
        ),
        (
            check_address(GREEN, "10.2.1.5", records.AddressRecord("10.2.1.5", identity=-1)),
            "address with an identity outside the peer's range",
        ),
        (check_address(GREEN, "10.2.1.5", records.AddressRecord("10.2.1.5", host_ip="x")), "malformed address"),
        (
            check_address(GREEN, "10.2.1.5", records.AddressRecord("10.2.1.5", key=256)),
            "number out of range in an address",
        ),
        (check_address(GREEN, "10.2.1.5", records.AddressRecord("10.2.1.5", mask="////AA==")), "address range"),
        (
            check_address(GREEN, "fd00:0::1", records.AddressRecord("fd00:0::1", identity=131072)),
            "address differs from key",
        ),
        (check_address(GREEN, "fd00::1", records.AddressRecord("fd00::1", identity=131072)), None),
        (check_service(GREEN, "a/b", SERVICE), None),
        (check_service(GREEN, "a/c", SERVICE), "service name differs from key"),
        (check_service(GREEN, "a/b", replace(SERVICE, cluster="red")), "service of another cluster"),
        (check_service(GREEN, "a/b", replace(SERVICE, backends={"x": {}})), "malformed address in a service"),
        (
            check_service(GREEN, "a/b", replace(SERVICE, backends={"10.2.1.5": {"": records.Port("TCP", 65536)}})),
            "port out of range",
        ),
    ],
)
def test_what_a_peer_announces_is_judged(reason: str | None, expected: str | None) -> None:
    assert reason == expected
