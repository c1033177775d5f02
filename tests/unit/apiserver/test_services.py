"""The exporter's service records against what Cilium's wrote for the same objects."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from apiserver.cluster import ClusterIdentity
from apiserver.services import ServiceName, ServiceTable, affinity, is_global, is_shared
from clustermesh.kube.objects import EndpointSlice, ObjectMeta, Service, ServiceSpec
from clustermesh.wire import keys, records

GOLDEN = Path(__file__).parents[2] / "golden"
RED = ClusterIdentity("red", 7)


def load(table: ServiceTable, path: Path) -> set[ServiceName]:
    touched: set[ServiceName] = set()
    for document in yaml.safe_load_all(path.read_text()):
        if document["kind"] == "Service":
            touched |= table.set_service(msgspec.convert(document, Service))
        elif document["kind"] == "EndpointSlice":
            touched |= table.set_slice(msgspec.convert(document, EndpointSlice))
    return touched


def exported(cluster: ClusterIdentity, table: ServiceTable, names: Iterable[ServiceName]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        record, _ = table.compile(cluster, name)
        found[keys.service(cluster.name, *name)] = None if record is None else json.loads(records.encode(record))
    return found


def comparable(expected: Mapping[str, Any]) -> dict[str, Any]:
    """Service keys of a golden file; `"hostnames": {}` equals none."""
    kept = {key: value for key, value in expected.items() if "/services/v1/" in key}
    return {
        key: {field: content for field, content in value.items() if field != "hostnames" or content}
        for key, value in kept.items()
        if value is not None
    } | {key: None for key, value in kept.items() if value is None}


CASES = sorted(path.name.removesuffix(".expected.json") for path in (GOLDEN / "services").glob("*.expected.json"))


@pytest.mark.parametrize("case", CASES)
def test_a_service_is_exported_as_cilium_does_it(case: str) -> None:
    table = ServiceTable()
    names = load(table, GOLDEN / "services" / f"{case}.yaml")
    before = GOLDEN / "services" / f"{case}.before.json"
    if before.exists():
        assert exported(RED, table, names) == comparable(json.loads(before.read_text()))
    second = GOLDEN / "services" / f"{case}.then-apply.yaml"
    if second.exists():
        names |= load(table, second)
    expected = comparable(json.loads((GOLDEN / "services" / f"{case}.expected.json").read_text()))
    found = exported(RED, table, names)
    assert {key: found.get(key) for key in expected} == expected
    assert not [key for key, value in found.items() if value is not None and key not in expected]


def test_a_whole_cluster_gives_the_bytes_that_cilium_wrote() -> None:
    table = ServiceTable()
    names = load(table, GOLDEN / "input.yaml")
    cluster = ClusterIdentity("cluster1", 1)
    found = {
        keys.service(cluster.name, *name): records.encode(record).decode()
        for name in names
        if (record := table.compile(cluster, name)[0]) is not None
    }
    lines = (GOLDEN / "exported-by-cilium.txt").read_text().splitlines()
    recorded = dict(zip(lines[::2], lines[1::2], strict=True))
    assert found == {key: value for key, value in recorded.items() if "/services/v1/" in key}


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({}, (False, False, "none")),
        ({"service.cilium.io/global": "TRUE"}, (True, True, "none")),
        ({"io.cilium/global-service": "true"}, (True, True, "none")),
        ({"service.cilium.io/global": "", "io.cilium/global-service": "true"}, (False, False, "none")),
        ({"service.cilium.io/global": "true", "service.cilium.io/shared": "false"}, (True, False, "none")),
        ({"service.cilium.io/shared": "true"}, (False, False, "none")),
        ({"service.cilium.io/global": "true", "service.cilium.io/affinity": "Local"}, (True, True, "local")),
        ({"service.cilium.io/global": "true", "service.cilium.io/affinity": "nearby"}, (True, True, "none")),
    ],
)
def test_annotations_steer_a_service(annotations: dict[str, str], expected: tuple[bool, bool, str]) -> None:
    given = Service(metadata=ObjectMeta(name="web", annotations=annotations))
    assert (is_global(given), is_shared(given), affinity(given)) == expected


def test_an_unshared_service_is_known_to_the_own_agents_alone() -> None:
    table = ServiceTable()
    (name,) = table.set_service(
        Service(
            metadata=ObjectMeta(
                name="web",
                namespace="demo",
                annotations={"service.cilium.io/global": "true", "service.cilium.io/shared": "false"},
            ),
            spec=ServiceSpec(cluster_ip="10.96.0.1"),
        )
    )
    record, local = table.compile(RED, name)
    assert record is None
    assert local is not None
    assert (local.shared, dict(local.frontends)) == (False, {"10.96.0.1": {}})


def test_a_service_leaves_when_its_last_slice_goes_or_changes_its_owner() -> None:
    table = ServiceTable()
    names = load(table, GOLDEN / "services" / "01-global-true.yaml")
    (name,) = names
    slice_of = {"kubernetes.io/service-name": "other"}
    moved = EndpointSlice(metadata=ObjectMeta(name="web-1", namespace=name.namespace, labels=slice_of))
    assert table.set_slice(moved) == {name, ServiceName(name.namespace, "other")}
    assert table.compile(RED, name)[0] is None
    assert table.compile(RED, name)[1] is not None


def test_slices_that_hold_what_peers_sent_are_left_out() -> None:
    table = ServiceTable()
    labels = {
        "kubernetes.io/service-name": "web",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-mesh-controller.cilium.io",
    }
    assert table.set_slice(EndpointSlice(metadata=ObjectMeta(name="web-1", namespace="demo", labels=labels))) == set()


def test_a_slice_with_null_lists_and_a_port_without_number_decodes() -> None:
    raw = b'{"metadata":{"name":"a","namespace":"b"},"addressType":"IPv4","endpoints":null,"ports":[{"name":""}]}'
    piece = msgspec.json.decode(raw, type=EndpointSlice)
    assert piece.endpoints is None
