"""Which Services and slices give which records, as follows from Cilium's sources.

What it really wrote is compared in test_golden_export.py.
"""

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiserver import services
from apiserver.cluster import ClusterIdentity
from apiserver.services import ServiceName, SliceName, Touched, affinity, compile_backends, is_global, is_shared
from clustermesh.kube.objects import EndpointSlice, ObjectMeta, ObjectRef, Service
from clustermesh.wire import endpoint_slices, keys, private, records, validation
from tests.unit.apiserver import any_objects
from tests.unit.apiserver.golden import Export

RED = ClusterIdentity("red", 7)
KEY = "cilium/state/services/v1/red/demo/web"
HTTP = {"http": {"Protocol": "TCP", "Port": 8080}}

Document = dict[str, Any]


def service(
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    *,
    namespace: str = "demo",
    **spec: Any,
) -> Document:
    """A global Service with an address, one port and a selector, but for what is said otherwise."""
    given = {"service.cilium.io/global": "true"} if annotations is None else annotations
    default = {"clusterIP": "10.96.0.1", "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80}]}
    metadata = {"name": "web", "namespace": namespace, "annotations": given, "labels": labels}
    return {"kind": "Service", "metadata": metadata, "spec": default | spec}


def piece(
    *endpoints: Document, name: str = "web-1", labels: Mapping[str, str] | None = None, **fields: Any
) -> Document:
    """A slice of that Service with one endpoint and one port, but for what is said otherwise."""
    own = {"kubernetes.io/service-name": "web"} if labels is None else labels
    metadata = {"name": name, "namespace": "demo", "labels": own}
    default = {"addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}
    given = list(endpoints) or [endpoint("10.7.0.1")]
    return {"kind": "EndpointSlice", "metadata": metadata, **default, "endpoints": given, **fields}


def endpoint(*addresses: str, ready: bool | None = True, **fields: Any) -> Document:
    return {"addresses": list(addresses), "conditions": {"ready": ready}, **fields}


def exported(*documents: Document) -> Document | None:
    """The Service's record as JSON."""
    export = Export(RED)
    export.apply(*documents)
    value = export.values().get(KEY)
    return None if value is None else json.loads(value)


def tcp(**ports: int) -> Document:
    return {name: {"Protocol": "TCP", "Port": port} for name, port in ports.items()}


G, S, F = "service.cilium.io/global", "service.cilium.io/shared", "service.cilium.io/affinity"
OLD_G, OLD_S, OLD_F = "io.cilium/global-service", "io.cilium/shared-service", "io.cilium/service-affinity"


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({}, (False, False, "none")),
        ({G: "true"}, (True, True, "none")),
        ({G: "TRUE"}, (True, True, "none")),
        ({G: "tRuE"}, (True, True, "none")),
        ({G: "false"}, (False, False, "none")),
        ({G: ""}, (False, False, "none")),
        ({G: "1"}, (False, False, "none")),
        ({G: "yes"}, (False, False, "none")),
        ({G: " true"}, (False, False, "none")),
        ({OLD_G: "true"}, (True, True, "none")),
        ({OLD_G: "True"}, (True, True, "none")),
        ({G: "", OLD_G: "true"}, (False, False, "none")),
        ({G: "on", OLD_G: "true"}, (False, False, "none")),
        ({G: "true", OLD_G: "false"}, (True, True, "none")),
        ({G: "true", S: "false"}, (True, False, "none")),
        ({G: "true", S: "True"}, (True, True, "none")),
        ({G: "true", S: ""}, (True, False, "none")),
        ({G: "true", S: "maybe"}, (True, False, "none")),
        ({G: "true", OLD_S: "false"}, (True, False, "none")),
        ({G: "true", S: "true", OLD_S: "false"}, (True, True, "none")),
        ({G: "true", S: "", OLD_S: "true"}, (True, False, "none")),
        ({OLD_G: "true", OLD_S: "FALSE"}, (True, False, "none")),
        ({S: "true"}, (False, False, "none")),
        ({G: "true", F: "Local"}, (True, True, "local")),
        ({G: "true", F: "REMOTE"}, (True, True, "remote")),
        ({G: "true", F: "nearby"}, (True, True, "none")),
        ({G: "true", OLD_F: "local"}, (True, True, "local")),
        ({G: "true", F: "", OLD_F: "local"}, (True, True, "none")),
    ],
)
def test_annotations_steer_a_service(annotations: dict[str, str], expected: tuple[bool, bool, str]) -> None:
    given = Service(metadata=ObjectMeta(name="web", annotations=annotations))
    assert (is_global(given), is_shared(given), affinity(given)) == expected
    assert (exported(service(annotations), piece()) is not None) == expected[1]


def test_the_record_of_a_plain_service_has_every_field() -> None:
    assert exported(service(), piece()) == {
        "cluster": "red",
        "namespace": "demo",
        "name": "web",
        "frontends": {"10.96.0.1": tcp(http=80)},
        "backends": {"10.7.0.1": HTTP},
        "labels": {},
        "selector": {"app": "web"},
        "includeExternal": True,
        "shared": True,
        "clusterID": 7,
    }


NOT_EXPORTED = {
    "a name elsewhere": (service(type="ExternalName", externalName="example.org"), piece()),
    "a type that nobody knows": (service(type="Sideways"), piece()),
    "a Service that another proxy serves": (service(None, {"service.kubernetes.io/service-proxy-name": "x"}), piece()),
    "a Service that has no address yet": (service(clusterIP=""), piece()),
    "no slice": (service(),),
    "only slices that hold what peers sent": (
        service(),
        piece(
            labels={
                "kubernetes.io/service-name": "web",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-mesh-controller.cilium.io",
            }
        ),
    ),
    "only a slice that names no Service": (service(), piece(labels={})),
    "only a slice that names another Service": (service(), piece(labels={"kubernetes.io/service-name": "other"})),
    "only a slice of another namespace": (
        service(),
        {**piece(), "metadata": {"name": "a", "namespace": "b", "labels": {"kubernetes.io/service-name": "web"}}},
    ),
    "no Service": (piece(),),
}


@pytest.mark.parametrize("case", NOT_EXPORTED)
def test_nothing_is_exported_of(case: str) -> None:
    assert exported(*NOT_EXPORTED[case]) is None


PROTOCOLS = {"t": "TCP", "u": "UDP", "s": "SCTP"}
DNS = [{"name": name, "port": 53, "protocol": protocol} for name, protocol in PROTOCOLS.items()]
DNS_RECORD = {name: {"Protocol": protocol, "Port": 53} for name, protocol in PROTOCOLS.items()}
BOTH = ["10.96.0.1", "fd00:10::1"]
FRONTENDS: dict[str, tuple[Document, Any]] = {
    "every cluster IP with every port": (
        service(clusterIPs=BOTH, ports=[{"name": "a", "port": 1}, {"name": "b", "port": 65535}]),
        {"10.96.0.1": tcp(a=1, b=65535), "fd00:10::1": tcp(a=1, b=65535)},
    ),
    "the one address where no list is given": (service(clusterIPs=None), {"10.96.0.1": tcp(http=80)}),
    "no node port": (service(type="NodePort", ports=[{"port": 80, "nodePort": 30080}]), {"10.96.0.1": tcp(**{"": 80})}),
    "no external address": (service(externalIPs=["198.51.100.8"]), {"10.96.0.1": tcp(http=80)}),
    "no address of a load balancer": (
        service(type="LoadBalancer", loadBalancerIP="198.51.100.9") | {"status": {"loadBalancer": {"ingress": [{}]}}},
        {"10.96.0.1": tcp(http=80)},
    ),
    "no target port": (service(ports=[{"name": "http", "port": 80, "targetPort": "web"}]), {"10.96.0.1": tcp(http=80)}),
    "a port without a name": (service(ports=[{"port": 80}]), {"10.96.0.1": tcp(**{"": 80})}),
    "digits as a name": (service(ports=[{"name": "443", "port": 80}]), {"10.96.0.1": tcp(**{"443": 80})}),
    "each protocol": (service(ports=DNS), {"10.96.0.1": DNS_RECORD}),
    "several names of one port": (
        service(ports=[{"name": "a", "port": 80}, {"name": "b", "port": 80}]),
        {"10.96.0.1": tcp(a=80, b=80)},
    ),
    "nothing when headless": (service(clusterIP="None", clusterIPs=["None"]), {}),
    "nothing when headless in both families": (
        service(clusterIP="None", clusterIPs=["None"], ipFamilies=["IPv4", "IPv6"]),
        {},
    ),
    "its address although a label calls it headless": (
        service(None, {"service.kubernetes.io/headless": ""}),
        {"10.96.0.1": tcp(http=80)},
    ),
    "an IPv6 address as everybody writes it": (service(clusterIP="FD00:10:0::1"), {"fd00:10::1": tcp(http=80)}),
    "an address without ports": (service(ports=None), {"10.96.0.1": {}}),
}


@pytest.mark.parametrize("case", FRONTENDS)
def test_the_frontends_are(case: str) -> None:
    given, expected = FRONTENDS[case]
    record = exported(given, piece())
    assert record is not None
    assert record["frontends"] == expected


def zone(name: str, *hints: str) -> Document:
    return {"zone": name, "forZones": [{"name": hint} for hint in hints]}


# What slices give: the fields of the record that are not as in a plain one.
SLICES: dict[str, tuple[list[Document], Document]] = {
    "all addresses of an endpoint": (
        [piece(endpoint("10.7.0.1", "10.7.0.2"))],
        {"backends": {"10.7.0.1": HTTP, "10.7.0.2": HTTP}},
    ),
    "both families": (
        [piece(), piece(endpoint("fd00:7::1"), name="web-2", addressType="IPv6")],
        {"backends": {"10.7.0.1": HTTP, "fd00:7::1": HTTP}},
    ),
    "ports of its own slice to an endpoint": (
        [piece(), piece(endpoint("10.7.0.2"), name="web-2", ports=[{"name": "admin", "port": 9}])],
        {"backends": {"10.7.0.1": HTTP, "10.7.0.2": tcp(admin=9)}},
    ),
    "ports of both slices to an address in both": (
        [piece(), piece(name="web-2", ports=[{"name": "admin", "port": 9}])],
        {"backends": {"10.7.0.1": HTTP | tcp(admin=9)}},
    ),
    "of an address that is ready in one slice that slice's ports": (
        [piece(), piece(endpoint("10.7.0.1", ready=False), name="web-2", ports=[{"name": "admin", "port": 9}])],
        {"backends": {"10.7.0.1": HTTP}},
    ),
    "an address in both slices once": ([piece(), piece(name="web-2")], {"backends": {"10.7.0.1": HTTP}}),
    "a port without a name": ([piece(ports=[{"port": 8080}])], {"backends": {"10.7.0.1": tcp(**{"": 8080})}}),
    "a port with an empty name": (
        [piece(ports=[{"name": "", "port": 8080}])],
        {"backends": {"10.7.0.1": tcp(**{"": 8080})}},
    ),
    "digits as a name": (
        [piece(ports=[{"name": "80", "port": 8080}])],
        {"backends": {"10.7.0.1": tcp(**{"80": 8080})}},
    ),
    "TCP where no protocol is given": (
        [piece(ports=[{"name": "http", "port": 8080, "protocol": None}])],
        {"backends": {"10.7.0.1": HTTP}},
    ),
    "each protocol": ([piece(ports=DNS)], {"backends": {"10.7.0.1": DNS_RECORD}}),
    "no port of an unknown protocol": (
        [piece(ports=[{"name": "a", "port": 1, "protocol": "DCCP"}, {"name": "b", "port": 2}])],
        {"backends": {"10.7.0.1": tcp(b=2)}},
    ),
    "several names of one port, all of them": (
        [piece(ports=[{"name": "a", "port": 80}, {"name": "b", "port": 80}])],
        {"backends": {"10.7.0.1": tcp(a=80, b=80)}},
    ),
    "no port that means any": (
        [piece(ports=[{"name": "any"}, {"name": "b", "port": 2}])],
        {"backends": {"10.7.0.1": tcp(b=2)}},
    ),
    "an address without ports": ([piece(ports=[])], {"backends": {"10.7.0.1": {}}}),
    "an address where ports are null": ([piece(ports=None)], {"backends": {"10.7.0.1": {}}}),
    "nothing of a slice without endpoints": ([piece(endpoints=[])], {"backends": {}}),
    "nothing of a slice whose endpoints are null": ([piece(endpoints=None)], {"backends": {}}),
    "nothing of an endpoint without addresses": ([piece({"addresses": None}, endpoint())], {"backends": {}}),
    "nothing of endpoints that are not ready": (
        [piece(endpoint("10.7.0.1", ready=False, hostname="a", zone="z"))],
        {"backends": {}},
    ),
    "an endpoint whose readiness nobody knows": (
        [
            piece(
                endpoint("10.7.0.1", ready=None),
                {"addresses": ["10.7.0.2"]},
                {"addresses": ["10.7.0.3"], "conditions": None},
            )
        ],
        {"backends": {"10.7.0.1": HTTP, "10.7.0.2": HTTP, "10.7.0.3": HTTP}},
    ),
    "an endpoint that is ready although it serves nothing and ends": (
        [piece({"addresses": ["10.7.0.1"], "conditions": {"ready": True, "serving": False, "terminating": True}})],
        {"backends": {"10.7.0.1": HTTP}},
    ),
    "no endpoint that is not ready although it serves": (
        [piece({"addresses": ["10.7.0.1"], "conditions": {"ready": False, "serving": True, "terminating": True}})],
        {"backends": {}},
    ),
    "nothing but a key for a slice of domain names": (
        [piece(endpoint("example.org"), addressType="FQDN")],
        {"backends": {}},
    ),
    "nothing of a slice of domain names beside another": (
        [piece(), piece(endpoint("10.7.0.9"), name="web-2", addressType="FQDN")],
        {"backends": {"10.7.0.1": HTTP}},
    ),
    "an IPv6 address as everybody writes it": (
        [piece(endpoint("FD00:7:0:0::0001", hostname="a"), addressType="IPv6")],
        {"backends": {"fd00:7::1": HTTP}, "hostnames": {"fd00:7::1": "a"}},
    ),
    "no address that cannot be read": (
        [piece(endpoint("10.7.0.1", "010.7.0.2", "10.7.0", "fe80::1%eth0"))],
        {"backends": {"10.7.0.1": HTTP}},
    ),
    "host names": (
        [piece(endpoint("10.7.0.1", hostname="web-0"), endpoint("10.7.0.2"), endpoint("10.7.0.3", hostname=""))],
        {
            "backends": {"10.7.0.1": HTTP, "10.7.0.2": HTTP, "10.7.0.3": HTTP},
            "hostnames": {"10.7.0.1": "web-0"},
        },
    ),
    "one host name of all addresses of an endpoint": (
        [piece(endpoint("10.7.0.1", "10.7.0.2", hostname="a"))],
        {"backends": {"10.7.0.1": HTTP, "10.7.0.2": HTTP}, "hostnames": {"10.7.0.1": "a", "10.7.0.2": "a"}},
    ),
    "host names of all slices": (
        [piece(endpoint("10.7.0.1", hostname="a")), piece(endpoint("10.7.0.2", hostname="b"), name="web-2")],
        {"backends": {"10.7.0.1": HTTP, "10.7.0.2": HTTP}, "hostnames": {"10.7.0.1": "a", "10.7.0.2": "b"}},
    ),
    "zones": (
        [piece(endpoint("10.7.0.1", zone="a"), endpoint("10.7.0.2"))],
        {"backends": {"10.7.0.1": HTTP, "10.7.0.2": HTTP}, "zones": {"10.7.0.1": zone("a")}},
    ),
    "zones that shall use an endpoint": (
        [piece(endpoint("10.7.0.1", zone="a", hints={"forZones": [{"name": "a"}, {"name": "b"}]}))],
        {"zones": {"10.7.0.1": zone("a", "a", "b")}},
    ),
    "no hints without a zone": ([piece(endpoint("10.7.0.1", hints={"forZones": [{"name": "a"}]}))], {}),
    "no zone that is empty": ([piece(endpoint("10.7.0.1", zone=""))], {}),
    "a zone whose hints are null": (
        [piece(endpoint("10.7.0.1", zone="a", hints={"forZones": None}))],
        {"zones": {"10.7.0.1": zone("a")}},
    ),
    "a zone as older slices have it": (
        [piece(endpoint("10.7.0.1", deprecatedTopology={"topology.kubernetes.io/zone": "a"}))],
        {"zones": {"10.7.0.1": zone("a")}},
    ),
    "its own zone rather than that of older slices": (
        [piece(endpoint("10.7.0.1", zone="b", deprecatedTopology={"topology.kubernetes.io/zone": "a"}))],
        {"zones": {"10.7.0.1": zone("b")}},
    ),
    "nothing of what peers sent": (
        [
            piece(),
            piece(
                endpoint("10.9.0.1"),
                name="web-2",
                labels={
                    "kubernetes.io/service-name": "web",
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-mesh-controller.cilium.io",
                },
            ),
        ],
        {"backends": {"10.7.0.1": HTTP}},
    ),
    "what any other controller says": (
        [piece(labels={"kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "me"})],
        {"backends": {"10.7.0.1": HTTP}},
    ),
}


@pytest.mark.parametrize("case", SLICES)
def test_slices_give(case: str) -> None:
    slices, expected = SLICES[case]
    plain = exported(service(), piece())
    assert plain is not None
    assert exported(service(), *slices) == plain | expected
    assert exported(*reversed(slices), service()) == plain | expected, "in whatever order they come"


def test_labels_and_selector_are_those_of_the_service() -> None:
    record = exported(service(None, {"tier": "front"}, selector=None), piece())
    assert record is not None
    assert (record["labels"], record["selector"]) == ({"tier": "front"}, {})


def test_services_of_the_control_plane_are_like_any_other() -> None:
    export = Export(RED)
    controller = {"kubernetes.io/service-name": "kube-scheduler"}
    metadata = {"name": "kube-scheduler", "namespace": "kube-system"}
    export.apply(service(namespace="kube-system") | {"metadata": service()["metadata"] | metadata})
    export.apply(piece() | {"metadata": metadata | {"labels": controller}})
    assert list(export.values()) == ["cilium/state/services/v1/red/kube-system/kube-scheduler"]


def test_bytes_are_those_of_gos_encoder() -> None:
    export = Export(RED)
    export.apply(
        service(None, {"b": "<&>", "a": "é"}), piece(ports=[{"name": "z", "port": 1}, {"name": "a", "port": 2}])
    )
    assert (
        export.values()[KEY]
        == (
            '{"cluster":"red","namespace":"demo","name":"web","frontends":{"10.96.0.1":{"http":{"Protocol":"TCP","Port":80}}},'
            '"backends":{"10.7.0.1":{"a":{"Protocol":"TCP","Port":2},"z":{"Protocol":"TCP","Port":1}}},'
            '"labels":{"a":"é","b":"\\u003c\\u0026\\u003e"},"selector":{"app":"web"},"includeExternal":true,"shared":true,'
            '"clusterID":7}'
        ).encode()
    )


def test_addresses_stand_in_the_order_of_their_letters() -> None:
    export = Export(RED)
    export.apply(service(), piece(*(endpoint(f"10.7.0.{last}") for last in (10, 9, 1))))
    one, ten, nine = (export.values()[KEY].index(f'"10.7.0.{last}"'.encode()) for last in (1, 10, 9))
    assert one < ten < nine


# What happens after a Service was exported → whether its key is there afterwards.
CHANGES: dict[str, tuple[list[Document], list[Document], bool]] = {
    "the annotation goes": ([service({})], [], False),
    "the annotation says no": ([service({G: "false"})], [], False),
    "it is no longer shared": ([service({G: "true", S: "false"})], [], False),
    "it becomes a name elsewhere": ([service(type="ExternalName")], [], False),
    "another proxy takes it": ([service(None, {"service.kubernetes.io/service-proxy-name": "x"})], [], False),
    "it is deleted": ([], [service()], False),
    "its last slice is deleted": ([], [piece()], False),
    "its last slice changes its owner": ([piece(labels={"kubernetes.io/service-name": "other"})], [], False),
    "its last slice loses its owner": ([piece(labels={})], [], False),
    "its last slice is taken over by the mesh": (
        [
            piece(
                labels={
                    "kubernetes.io/service-name": "web",
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-mesh-controller.cilium.io",
                }
            )
        ],
        [],
        False,
    ),
    "its last endpoint goes": ([piece(endpoints=[])], [], True),
    "it becomes headless": ([service(clusterIP="None")], [], True),
    "one of two slices goes": ([piece(name="web-2")], [piece()], True),
    "its annotation is spelled the old way": ([service({OLD_G: "true"})], [], True),
}


@pytest.mark.parametrize("case", CHANGES)
def test_the_key_follows_when(case: str) -> None:
    applied, deleted, stays = CHANGES[case]
    export = Export(RED)
    export.apply(service(), piece())
    assert KEY in export.values()
    export.apply(*applied)
    export.delete(*deleted)
    assert (KEY in export.values()) == stays


def test_an_unshared_service_is_known_to_the_own_agents_alone() -> None:
    export = Export(RED)
    export.apply(service({G: "true", S: "false"}))
    record, local = export.services.compile(RED, ServiceName("demo", "web"))
    assert record is None
    assert local is not None
    assert (local.shared, dict(local.backends)) == (False, {})
    assert dict(local.frontends) == {"10.96.0.1": {"http": records.Port("TCP", 80)}}


def test_agents_keep_a_service_whose_slices_have_gone() -> None:
    export = Export(RED)
    export.apply(service(), piece())
    export.delete(piece())
    assert export.services.compile(RED, ServiceName("demo", "web"))[1] is not None


def as_service(document: Document) -> Service:
    return msgspec.convert(document, Service)


def as_slice(document: Document) -> EndpointSlice:
    return msgspec.convert(document, EndpointSlice)


WEB = ServiceName("demo", "web")
FIRST, SECOND = SliceName("demo", "web-1"), SliceName("demo", "web-2")


def test_a_change_touches_its_service_and_no_slice_but_its_own() -> None:
    table = Export(RED).services
    assert not table.set_slice(as_slice(piece()))
    assert table.set_service(as_service(service())) == Touched({WEB}, {FIRST})
    assert table.set_slice(as_slice(piece())) == Touched({WEB}, {FIRST})
    assert table.set_slice(as_slice(piece(name="web-2"))) == Touched({WEB}, {SECOND})
    assert table.set_service(as_service(service(None, {"tier": "front"}))) == Touched({WEB})
    moved = piece(labels={"kubernetes.io/service-name": "other"})
    assert table.set_slice(as_slice(moved)) == Touched({WEB}, {FIRST})
    assert not table.remove_slice(ObjectRef("demo", "web-1", ""))
    assert table.remove_service(ObjectRef("demo", "web", "")) == Touched({WEB}, {SECOND})


def test_a_service_that_becomes_global_or_is_not_any_more_touches_its_slices() -> None:
    table = Export(RED).services
    assert table.set_service(as_service(service({}))) == Touched({WEB})
    assert not table.set_slice(as_slice(piece())), "of a Service that is not global"
    assert table.set_service(as_service(service())) == Touched({WEB}, {FIRST})
    assert table.set_service(as_service(service({G: "true", S: "false"}))) == Touched({WEB}, {FIRST})
    assert table.set_service(as_service(service())) == Touched({WEB}, {FIRST})
    assert table.set_service(as_service(service({}))) == Touched({WEB}, {FIRST})
    assert not table.remove_slice(ObjectRef("demo", "web-1", ""))


def test_what_is_not_known_touches_nothing_when_it_goes() -> None:
    table = Export(RED).services
    assert not table.remove_slice(ObjectRef("demo", "web-1", ""))
    assert not table.remove_service(ObjectRef("demo", "web", ""))
    assert not table.set_slice(as_slice(piece(labels={})))


def test_a_burst_of_changes_touches_a_service_once() -> None:
    table, touched = Export(RED).services, Touched()
    table.set_service(as_service(service()))
    for number in range(50):
        touched |= table.set_slice(as_slice(piece(name=f"web-{number}")))
    assert touched.services == {WEB}
    assert len(touched.slices) == 50


def test_what_other_slices_give_is_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Export(RED).services
    table.set_service(as_service(service()))
    for number in range(5):
        table.set_slice(as_slice(piece(endpoint(f"10.7.0.{number}"), name=f"web-{number}")))
    table.compile(RED, WEB)
    worked_out = []

    def counted(given: EndpointSlice) -> services.ReadyBackends:
        worked_out.append(given.name)
        return compile_backends(given)

    monkeypatch.setattr(services, "compile_backends", counted)
    table.set_slice(as_slice(piece(endpoint("10.7.1.3"), name="web-3")))
    record, _ = table.compile(RED, WEB)
    assert record is not None
    assert "10.7.1.3" in record.backends
    assert worked_out == ["web-3"]


def test_a_slice_with_null_lists_and_a_port_without_number_decodes() -> None:
    raw = b'{"metadata":{"name":"a","namespace":"b"},"addressType":"IPv4","endpoints":null,"ports":[{"name":""}]}'
    given = msgspec.json.decode(raw, type=EndpointSlice)
    assert given.endpoints is None


@given(held=any_objects.services(), slices=st.lists(any_objects.slices(), max_size=4))
def test_whatever_kubernetes_holds_gives_records_that_a_reader_takes(
    held: Service, slices: list[EndpointSlice]
) -> None:
    export = Export(RED)
    export.services.set_service(held)
    touched = Touched()
    for item in slices:
        touched |= export.services.set_slice(item)
    peer = validation.Claimant("red", 7, RED.numbering)
    record, local = export.services.compile(RED, ServiceName(held.namespace, held.name))
    if record is not None:
        decoded = records.decode(records.ServiceRecord, records.encode(record))
        assert decoded == record
        assert validation.check_service(peer, f"{held.namespace}/{held.name}", decoded) is None
    if local is not None:
        assert msgspec.json.decode(private.encode(local), type=private.LocalService) == local
    for name in touched.slices:
        compiled = export.services.compile_slice(RED, name)
        assert compiled is None or endpoint_slices.decode(endpoint_slices.encode(compiled)) == compiled


def in_etcd(table: services.ServiceTable, touched: Touched) -> dict[str, bytes | None]:
    """What stands under the keys that a change touches."""
    found: dict[str, bytes | None] = {}
    for name in touched.services:
        record, local = table.compile(RED, name)
        found[keys.service("red", *name)] = None if record is None else records.encode(record)
        found[keys.local_service(*name)] = None if local is None else private.encode(local)
    for slice_name in touched.slices:
        piece_record = table.compile_slice(RED, slice_name)
        value = None if piece_record is None else endpoint_slices.encode_message(piece_record)
        found[keys.endpoint_slice("red", *slice_name)] = value
    return found


def removed(kind: type[Service] | type[EndpointSlice]) -> st.SearchStrategy[tuple[Any, ObjectRef]]:
    names = ("web",) if kind is Service else ("web-1", "web-2", "web-3")
    refs = st.builds(ObjectRef, st.sampled_from(("demo", "shop")), st.sampled_from(names), st.just(""))
    return st.tuples(st.just(kind), refs)


@given(
    steps=st.lists(
        any_objects.services() | any_objects.slices() | removed(Service) | removed(EndpointSlice), max_size=12
    )
)
def test_what_changes_touch_is_all_that_they_change(steps: list[Any]) -> None:
    """Step by step, writing only what is touched, leads where a fresh start with the last state leads."""
    table, written = services.ServiceTable(), dict[str, bytes | None]()
    last: dict[tuple[type, str, str], Service | EndpointSlice] = {}
    for step in steps:
        match step:
            case Service():
                touched = table.set_service(step)
            case EndpointSlice():
                touched = table.set_slice(step)
            case (kind, ref):
                touched = table.remove_service(ref) if kind is Service else table.remove_slice(ref)
                last.pop((kind, ref.namespace, ref.name), None)
        if isinstance(step, Service | EndpointSlice):
            last[type(step), step.namespace, step.name] = step
        written |= in_etcd(table, touched)
    fresh, everything = services.ServiceTable(), Touched()
    for item in last.values():
        everything |= fresh.set_service(item) if isinstance(item, Service) else fresh.set_slice(item)
    expected = in_etcd(fresh, everything)
    assert {key: value for key, value in written.items() if value is not None} == {
        key: value for key, value in expected.items() if value is not None
    }


def test_keys_of_slices_bear_the_slices_own_name() -> None:
    export = Export(RED)
    export.apply(service(), piece())
    assert list(export.slices()) == [keys.endpoint_slice("red", "demo", "web-1")]
