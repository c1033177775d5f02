"""Which EndpointSlices give which records. The cases follow from Cilium's sources (1.20)."""

from typing import Any

import msgspec
import pytest

from apiserver.cluster import ClusterIdentity
from apiserver.endpoint_slices import compile_endpoint_slice
from clustermesh.kube.objects import EndpointSlice
from clustermesh.wire import endpoint_slices
from clustermesh.wire.endpoint_slices import ClusterEndpointSlice, SliceEndpoint, SlicePort
from tests.unit.apiserver.golden import Export

RED = ClusterIdentity("red", 7)
KEY = "cilium/state/endpointslices/v1/red/demo/web-1"
LABELS = {"kubernetes.io/service-name": "web"}
GLOBAL = {"service.cilium.io/global": "true"}


def piece(*endpoints: dict[str, Any], **fields: Any) -> dict[str, Any]:
    metadata = {"name": "web-1", "namespace": "demo", "labels": LABELS} | fields.pop("metadata", {})
    return {"kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4", "endpoints": endpoints} | fields


def service(annotations: dict[str, str], **spec: Any) -> dict[str, Any]:
    metadata = {"name": "web", "namespace": "demo", "annotations": annotations}
    return {"kind": "Service", "metadata": metadata, "spec": {"clusterIP": "10.96.0.1"} | spec}


def compiled(document: dict[str, Any]) -> ClusterEndpointSlice | None:
    record = compile_endpoint_slice(RED, msgspec.convert(document, EndpointSlice))
    if record is not None:
        assert endpoint_slices.decode(endpoint_slices.encode(record)) == record
    return record


def one(**endpoint: Any) -> SliceEndpoint:
    """What becomes of a slice's only endpoint."""
    record = compiled(piece({"addresses": ["10.7.0.1"], **endpoint}))
    assert record is not None
    (only,) = record.endpoints
    return only


def test_a_slice_keeps_what_cilium_keeps() -> None:
    annotations = {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"}
    labels = LABELS | {"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io", "app": "web"}
    full = {
        "addresses": ["10.7.0.1", "10.7.0.2"],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "hostname": "web-0",
        "nodeName": "red-1",
        "zone": "a",
        "hints": {"forZones": [{"name": "a"}, {"name": "b"}]},
        "deprecatedTopology": {"rack": "7"},
        "targetRef": {"kind": "Pod", "name": "web-0", "namespace": "demo"},
    }
    ports = [{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "kubernetes.io/h2c"}]
    given = piece(full, metadata={"labels": labels, "annotations": annotations}, ports=ports)
    assert compiled(given) == ClusterEndpointSlice(
        cluster="red",
        cluster_id=7,
        namespace="demo",
        name="web-1",
        address_type="IPv4",
        labels=labels,
        annotations=annotations,
        endpoints=(
            SliceEndpoint(
                addresses=("10.7.0.1", "10.7.0.2"),
                ready=True,
                serving=True,
                terminating=False,
                hostname="web-0",
                node_name="red-1",
                zone="a",
                for_zones=("a", "b"),
                deprecated_topology={"rack": "7"},
            ),
        ),
        ports=(SlicePort(name="http", protocol="TCP", port=8080),),
    )


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ({}, (None, None, None)),
        ({"conditions": None}, (None, None, None)),
        ({"conditions": {}}, (None, None, None)),
        ({"conditions": {"ready": False}}, (False, None, None)),
        ({"conditions": {"ready": None, "serving": True}}, (None, True, None)),
        ({"conditions": {"ready": False, "serving": True, "terminating": True}}, (False, True, True)),
        ({"conditions": {"ready": False, "serving": False, "terminating": False}}, (False, False, False)),
    ],
)
def test_conditions_are_kept_also_when_nobody_knows_them(endpoint: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = one(**endpoint)
    assert (found.ready, found.serving, found.terminating) == expected


def test_an_empty_text_is_not_an_absent_one() -> None:
    assert (one(hostname="", zone="").hostname, one(hostname="", zone="").zone) == ("", "")
    assert (one().hostname, one().zone, one().node_name) == (None, None, None)


@pytest.mark.parametrize("hints", [None, {}, {"forZones": None}, {"forZones": []}])
def test_hints_without_zones_are_none(hints: dict[str, Any] | None) -> None:
    assert one(hints=hints).for_zones == ()


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ({"port": 8080}, SlicePort(port=8080)),
        ({"name": "", "port": 8080, "protocol": "UDP"}, SlicePort(name="", protocol="UDP", port=8080)),
        ({"name": "any"}, SlicePort(name="any")),
    ],
)
def test_ports_are_kept_as_they_are(port: dict[str, Any], expected: SlicePort) -> None:
    record = compiled(piece(ports=[port]))
    assert record is not None
    assert record.ports == (expected,)


@pytest.mark.parametrize("empty", [{"endpoints": None, "ports": None}, {"endpoints": [], "ports": []}])
def test_an_empty_slice_has_a_record(empty: dict[str, Any]) -> None:
    record = compiled(piece(**empty))
    assert record is not None
    assert (record.endpoints, record.ports) == ((), ())


def test_a_slice_of_domain_names_has_none() -> None:
    assert compiled(piece({"addresses": ["example.org"]}, addressType="FQDN")) is None


def test_an_address_that_would_spoil_the_slice_for_its_readers_is_left_out() -> None:
    record = compiled(
        piece(
            {"addresses": ["fd00:7::1", "10.7.0.1", "fe80::1%eth0", "nowhere"]},
            {"addresses": ["10.7.0.2"]},
            {"addresses": None},
            addressType="IPv6",
        )
    )
    assert record is not None
    assert [endpoint.addresses for endpoint in record.endpoints] == [("fd00:7::1",)]


EXPORTED = {
    "of a global Service": (service(GLOBAL), True),
    "of one whose annotation is spelled the old way": (service({"io.cilium/global-service": "True"}), True),
    "of a headless one": (service(GLOBAL, clusterIP="None"), True),
    "of one that is explicitly shared": (service(GLOBAL | {"service.cilium.io/shared": "true"}), True),
    "of one that is not shared": (service(GLOBAL | {"service.cilium.io/shared": "false"}), False),
    "of one whose annotation is senseless": (service(GLOBAL | {"service.cilium.io/shared": ""}), False),
    "of one that is not global": (service({}), False),
    "of one that is a name elsewhere": (service(GLOBAL, type="ExternalName"), False),
}


@pytest.mark.parametrize("case", EXPORTED)
def test_a_slice_is_exported_if_it_is(case: str) -> None:
    given, expected = EXPORTED[case]
    export = Export(RED)
    export.apply(piece({"addresses": ["10.7.0.1"], "conditions": {"ready": False}}), given)
    assert (KEY in export.slices()) == expected


def test_what_peers_sent_and_what_belongs_to_nobody_is_not_exported() -> None:
    export = Export(RED)
    export.apply(service(GLOBAL))
    mesh = LABELS | {"endpointslice.kubernetes.io/managed-by": "endpointslice-mesh-controller.cilium.io"}
    export.apply(piece(metadata={"labels": mesh, "name": "a"}), piece(metadata={"labels": None, "name": "b"}))
    export.apply(piece(metadata={"labels": {"kubernetes.io/service-name": "other"}, "name": "c"}))
    assert export.slices() == {}


def test_a_slice_goes_with_its_service_and_comes_back_with_it() -> None:
    export = Export(RED)
    export.apply(service(GLOBAL), piece())
    assert KEY in export.slices()
    export.delete(service(GLOBAL))
    assert export.slices() == {}
    export.apply(service(GLOBAL))
    assert KEY in export.slices()
    export.delete(piece())
    assert export.slices() == {}
