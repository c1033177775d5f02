"""ServiceExports against what Cilium wrote for the same objects, and what golden cases do not say."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from apiserver.backends import Backends
from apiserver.cluster import ClusterIdentity
from apiserver.service_exports import ExportTable, compile_export
from apiserver.services import ServiceName, ServiceTable
from clustermesh.kube.objects import ObjectMeta, ObjectRef, Service, ServiceExport
from clustermesh.wire import keys, records

GOLDEN = Path(__file__).parents[2] / "golden"
RED = ClusterIdentity("red", 7)
CREATED = "2026-01-05T09:00:00Z"


def export(name: str = "web", namespace: str = "demo", **spec: Any) -> ServiceExport:
    document = {"metadata": {"name": name, "namespace": namespace, "creationTimestamp": CREATED}, "spec": spec or None}
    return msgspec.convert(document, ServiceExport)


def service(**spec: Any) -> Service:
    ports = [{"name": "http", "port": 80}]
    document = {
        "metadata": {"name": "web", "namespace": "demo"},
        "spec": {"clusterIP": "10.96.0.1", "ports": ports, **spec},
    }
    return msgspec.convert(document, Service)


def written(service: Service | None, export: ServiceExport) -> dict[str, Any]:
    record = compile_export(RED, service, export)
    assert record is not None
    found: dict[str, Any] = json.loads(records.encode(record))
    return found


@pytest.mark.parametrize("path", sorted((GOLDEN / "services").glob("6*.expected.json")), ids=lambda path: path.name)
def test_an_export_has_the_bytes_that_cilium_wrote(path: Path) -> None:
    services, exports = ServiceTable(), ExportTable()
    names: set[ServiceName] = set()
    for document in yaml.safe_load_all(path.with_name(path.name.replace(".expected.json", ".yaml")).read_text()):
        document["metadata"]["creationTimestamp"] = "2000-01-01T00:00:00Z"
        if document["kind"] == "Service":
            services.set_service(msgspec.convert(document, Service))
        elif document["kind"] == "ServiceExport":
            names |= exports.set_export(msgspec.convert(document, ServiceExport))
    found = {}
    for name in names:
        record = exports.compile(RED, name, services.service(name))
        assert record is not None
        found[keys.service_export("red", *name)] = records.encode(record).decode()
    expected = json.loads(path.read_text())
    assert found == {
        key: json.dumps(value, separators=(",", ":")) for key, value in expected.items() if "/serviceexports/" in key
    }


PLAIN: dict[str, Any] = {
    "cluster": "red",
    "name": "web",
    "namespace": "demo",
    "exportCreationTimestamp": CREATED,
    "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
    "type": "ClusterSetIP",
    "sessionAffinity": "None",
}
STICKY = {"sessionAffinity": "ClientIP"}


@pytest.mark.parametrize(
    ("spec", "differs"),
    [
        ({}, {}),
        ({"sessionAffinity": "None"}, {}),
        ({"type": "NodePort"}, {}),
        ({"type": "LoadBalancer"}, {}),
        ({"ipFamilies": ["IPv4"], "internalTrafficPolicy": "Cluster"}, {}),
        ({"ipFamilies": ["IPv6"]}, {"ipFamilies": ["IPv6"]}),
        ({"ipFamilies": ["IPv4", "IPv6"]}, {}),
        ({"ipFamilies": ["IPv6", "IPv4"]}, {}),
        ({"ipFamilies": []}, {}),
        ({"internalTrafficPolicy": "Local"}, {"internalTrafficPolicy": "Local"}),
        ({"internalTrafficPolicy": "Nearby"}, {}),
        ({"trafficDistribution": "PreferClose"}, {"trafficDistribution": "PreferClose"}),
        ({"trafficDistribution": "PreferSameNode"}, {"trafficDistribution": "PreferSameNode"}),
        ({"trafficDistribution": "PreferMine"}, {}),
        ({"clusterIP": "None"}, {"type": "Headless"}),
        ({"clusterIP": "None", "ports": None}, {"type": "Headless", "ports": []}),
        (STICKY, {**STICKY, "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}}),
        (
            {**STICKY, "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 42}}},
            {**STICKY, "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 42}}},
        ),
        (
            {**STICKY, "sessionAffinityConfig": {}},
            {**STICKY, "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}},
        ),
        ({"sessionAffinity": "Unheard"}, {}),
        ({"ports": [{"port": 80}]}, {"ports": [{"protocol": "TCP", "port": 80}]}),
        (
            {"ports": [{"name": "a", "port": 80, "appProtocol": "http"}, {"name": "b", "port": 53, "protocol": "UDP"}]},
            {
                "ports": [
                    {"name": "a", "protocol": "TCP", "appProtocol": "http", "port": 80},
                    {"name": "b", "protocol": "UDP", "port": 53},
                ]
            },
        ),
        (
            {"ports": [{"name": "s", "port": 7, "protocol": "SCTP"}]},
            {"ports": [{"name": "s", "protocol": "SCTP", "port": 7}]},
        ),
    ],
)
def test_a_record_says_how_the_service_looks(spec: dict[str, Any], differs: dict[str, Any]) -> None:
    assert written(service(**spec), export()) == PLAIN | differs


@pytest.mark.parametrize(
    ("wishes", "differs"),
    [
        ({"exportedLabels": {"team": "a"}}, {"labels": {"team": "a"}}),
        ({"exportedAnnotations": {"a": "<b>"}}, {"annotations": {"a": "<b>"}}),
        ({"exportedLabels": {}, "exportedAnnotations": None}, {}),
    ],
)
def test_what_an_export_wishes_to_hand_on_is_handed_on(wishes: dict[str, Any], differs: dict[str, Any]) -> None:
    assert written(service(), export(**wishes)) == PLAIN | differs


@pytest.mark.parametrize("given", [None, service(type="ExternalName", externalName="elsewhere.example")])
def test_there_is_nothing_to_export_without_a_service_that_has_endpoints(given: Service | None) -> None:
    assert compile_export(RED, given, export()) is None


@pytest.mark.parametrize("created", [None, "", "yesterday", "0001-01-01T00:00:00Z"])
def test_an_export_without_a_time_is_refused(created: str | None) -> None:
    with pytest.raises(ValueError, match=re.compile("time|format", re.I)):
        compile_export(RED, service(), ServiceExport(metadata=ObjectMeta(name="web", creation_timestamp=created)))


def test_either_part_may_come_first_and_both_must_stay() -> None:
    exports = ExportTable()
    (name,) = exports.set_export(export())
    assert exports.compile(RED, name, None) is None
    assert exports.compile(RED, name, service()) is not None
    assert exports.of_namespace("demo") == {name}
    assert exports.remove_export(ObjectRef("demo", "web", "")) == {name}
    assert exports.remove_export(ObjectRef("demo", "web", "")) == set()
    assert exports.compile(RED, name, service()) is None
    assert len(exports) == 0


TEXT = st.text(max_size=8)
PORT = st.fixed_dictionaries(
    {"port": st.integers(1, 65535)}, optional={"name": TEXT, "protocol": TEXT, "appProtocol": TEXT | st.none()}
)
SPEC = st.fixed_dictionaries(
    {},
    optional={
        "clusterIP": st.sampled_from(["None", "", "10.96.0.1"]),
        "ports": st.lists(PORT, max_size=3) | st.none(),
        "sessionAffinity": st.sampled_from(["ClientIP", "None", ""]) | TEXT,
        "sessionAffinityConfig": st.fixed_dictionaries(
            {}, optional={"clientIP": st.fixed_dictionaries({}, optional={"timeoutSeconds": st.integers() | st.none()})}
        ),
        "ipFamilies": st.lists(TEXT, max_size=2) | st.none(),
        "internalTrafficPolicy": TEXT | st.none(),
        "trafficDistribution": TEXT | st.none(),
    },
)
NAMES = st.dictionaries(TEXT, TEXT, max_size=3)


@given(SPEC, NAMES, NAMES)
def test_whatever_the_objects_say_readers_accept_the_record(
    spec: dict[str, Any], labels: dict[str, str], annotations: dict[str, str]
) -> None:
    given = service(**spec)
    record = compile_export(RED, given, export(exportedLabels=labels, exportedAnnotations=annotations))
    assert record is not None
    assert records.decode(records.ServiceExport, records.encode(record)) == record
    assert record.session_affinity in ("ClientIP", "None"), "older readers refuse an empty one"
    assert len(record.ports) == len(given.spec.ports or ())


STEPS = st.lists(st.tuples(st.sampled_from("ab"), st.frozensets(st.sampled_from("123"))))


@given(STEPS)
def test_backends_are_known_as_long_as_one_service_leads_to_them(steps: list[tuple[str, frozenset[str]]]) -> None:
    backends, model = Backends(), dict[str, frozenset[str]]()
    for name, addresses in steps:
        backends.set(ServiceName("demo", name), addresses)
        model[name] = addresses
        for address in "123":
            assert backends.none_of({address}) == (not any(address in known for known in model.values()))
