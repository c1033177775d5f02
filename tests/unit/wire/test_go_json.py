"""JSON as Go's encoder writes it and Go's decoder reads it: escapes, what is left out, and null."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from clustermesh.wire import records
from clustermesh.wire.errors import RecordError
from clustermesh.wire.records import AddressRecord, ServiceRecord

UNICODE = st.text(st.characters(codec="utf-8") | st.sampled_from('<>&\u2028\u2029"\\\b\f\n\r\t\x00\x1f\x7f\ufffd'))


def go(value: Any) -> bytes:
    """Go's encoding/json, told once more: short escapes, lower-case hex, markup and line separators escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode()


@given(UNICODE, UNICODE)
def test_texts_are_escaped_as_go_does(ip: str, metadata: str) -> None:
    record = {"IP": ip, "Mask": None, "HostIP": "", "ID": 1, "Key": 0, "Metadata": metadata}
    assert records.encode(AddressRecord(ip, identity=1, metadata=metadata)) == go(record)


@given(st.dictionaries(UNICODE, UNICODE))
def test_maps_are_sorted_by_the_bytes_of_their_keys(labels: dict[str, str]) -> None:
    ordered = dict(sorted(labels.items(), key=lambda item: item[0].encode()))
    raw = records.encode(ServiceRecord(cluster="c", namespace="n", name="s", labels=labels, cluster_id=1))
    assert b'"labels":' + go(ordered) + b"," in raw


@pytest.mark.parametrize(
    ("record", "written"),
    [
        (records.ClusterConfig(5), '{"id":5,"capabilities":{}}'),
        (
            records.ClusterConfig(5, records.Capabilities(service_exports_enabled=False)),
            '{"id":5,"capabilities":{"serviceExportsEnabled":false}}',
        ),
        (
            records.ClusterConfig(5, records.Capabilities(True, True, 511, True, records.SLICES_ONLY)),
            '{"id":5,"capabilities":{"syncedCanaries":true,"cached":true,"maxConnectedClusters":511,'
            '"serviceExportsEnabled":true,"endpointSlicesExportMode":"endpointslices-only"}}',
        ),
        (
            records.Node(name="w", cluster="c", cluster_id=1),
            '{"Name":"w","Cluster":"c","IPAddresses":null,"IPv4AllocCIDR":null,"IPv4SecondaryAllocCIDRs":null,'
            '"IPv6AllocCIDR":null,"IPv6SecondaryAllocCIDRs":null,"IPv4HealthIP":"","IPv6HealthIP":"",'
            '"IPv4IngressIP":"","IPv6IngressIP":"","ClusterID":1,"Source":"custom-resource","EncryptionKey":0,'
            '"Labels":null,"Annotations":null,"NodeIdentity":0,"WireguardPubKey":"","BootID":""}',
        ),
        (
            AddressRecord(
                "10.0.0.1", host_ip="192.0.2.1", identity=7, namespace="a", pod_name="b", service_account="d"
            ),
            '{"IP":"10.0.0.1","Mask":null,"HostIP":"192.0.2.1","ID":7,"Key":0,"Metadata":"","K8sNamespace":"a",'
            '"K8sPodName":"b","K8sServiceAccount":"d"}',
        ),
        (
            AddressRecord("10.0.0.0", mask="////AA==", named_ports=(records.NamedPort("http", 80, "TCP"),)),
            '{"IP":"10.0.0.0","Mask":"////AA==","HostIP":"","ID":0,"Key":0,"Metadata":"",'
            '"NamedPorts":[{"Name":"http","Port":80,"Protocol":"TCP"}]}',
        ),
        (
            ServiceRecord(cluster="c", namespace="n", name="s", cluster_id=1),
            '{"cluster":"c","namespace":"n","name":"s","frontends":{},"backends":{},"labels":{},"selector":{},'
            '"includeExternal":true,"shared":true,"clusterID":1}',
        ),
        (
            ServiceRecord(
                cluster="c",
                namespace="n",
                name="s",
                backends={"10.0.0.1": {}},
                hostnames={"10.0.0.1": "db-0"},
                zones={"10.0.0.1": records.BackendZone("z1", (records.ForZone("z1"),))},
                cluster_id=1,
            ),
            '{"cluster":"c","namespace":"n","name":"s","frontends":{},"backends":{"10.0.0.1":{}},'
            '"hostnames":{"10.0.0.1":"db-0"},"zones":{"10.0.0.1":{"zone":"z1","forZones":[{"name":"z1"}]}},'
            '"labels":{},"selector":{},"includeExternal":true,"shared":true,"clusterID":1}',
        ),
        (
            records.ServiceExport(
                cluster="c",
                name="s",
                namespace="n",
                export_creation_timestamp="2026-01-05T09:00:00Z",
                type=records.HEADLESS,
            ),
            '{"cluster":"c","name":"s","namespace":"n","exportCreationTimestamp":"2026-01-05T09:00:00Z","ports":[],'
            '"type":"Headless","sessionAffinity":""}',
        ),
    ],
)
def test_what_is_left_out_and_what_is_not(record: records.Record, written: str) -> None:
    assert records.encode(record) == written.encode()
    assert records.decode(type(record), written.encode()) == record


@pytest.mark.parametrize(
    ("kind", "raw", "same"),
    [
        (records.ClusterConfig, '{"id":5,"capabilities":null}', '{"id":5}'),
        (records.AddressRecord, '{"IP":"a","HostIP":null,"ID":7,"Key":null,"NamedPorts":null}', '{"IP":"a","ID":7}'),
        (
            records.Node,
            '{"Name":"w","Cluster":"c","IPAddresses":null,"IPv4HealthIP":null,"Labels":{"a":null}}',
            '{"Name":"w","Cluster":"c","Labels":{}}',
        ),
        (
            records.ServiceRecord,
            '{"cluster":"c","namespace":"n","name":"s","frontends":null,"backends":{"10.0.0.1":null},"labels":null,'
            '"selector":null,"hostnames":null,"zones":null,"clusterID":1}',
            '{"cluster":"c","namespace":"n","name":"s","clusterID":1}',
        ),
        (
            records.ServiceExport,
            '{"cluster":"c","name":"s","namespace":"n","labels":null,"Labels":null,"ports":null,"ipFamilies":null,'
            '"exportCreationTimestamp":"2026-01-05T09:00:00Z","type":"Headless","sessionAffinity":""}',
            '{"cluster":"c","name":"s","namespace":"n",'
            '"exportCreationTimestamp":"2026-01-05T09:00:00Z","type":"Headless"}',
        ),
    ],
)
def test_null_counts_as_absent_anywhere(kind: type, raw: str, same: str) -> None:
    assert records.decode(kind, raw.encode()) == records.decode(kind, same.encode())


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (records.ClusterConfig, '{"id":null}'),
        (records.AddressRecord, '{"IP":null}'),
        (records.ServiceRecord, '{"cluster":"c","namespace":"n","name":"s","clusterID":null}'),
        (records.Node, '{"Name":"w","Cluster":"c","IPAddresses":[null]}'),
    ],
)
def test_a_null_where_a_value_must_be_is_refused(kind: type, raw: str) -> None:
    with pytest.raises(RecordError):
        records.decode(kind, raw.encode())


def test_of_a_field_given_twice_the_last_counts() -> None:
    assert records.decode(AddressRecord, b'{"IP":"a","ID":1,"IP":"b","ID":2}') == AddressRecord("b", identity=2)


def test_names_of_fields_are_told_apart_by_case() -> None:
    assert records.decode(AddressRecord, b'{"IP":"a","ip":"b","id":9}') == AddressRecord("a")


def test_a_node_of_the_newest_cilium_has_no_identity_of_its_own() -> None:
    whole = records.encode(records.Node(name="w", cluster="c", boot_id="b"))
    newest = whole.replace(b'"NodeIdentity":0,', b"")
    assert newest != whole
    assert records.decode(records.Node, newest) == records.decode(records.Node, whole)


EXPORT = {
    "cluster": "c",
    "name": "s",
    "namespace": "n",
    "exportCreationTimestamp": "2026-01-05T09:00:00Z",
    "ports": [],
    "type": "ClusterSetIP",
    "sessionAffinity": "None",
}


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({"labels": {"a": "new"}, "Labels": {"a": "old"}}, {"a": "new"}),
        ({"Labels": {"a": "old"}, "labels": {"a": "new"}}, {"a": "new"}),
        ({"Labels": {"a": "old"}}, {"a": "old"}),
        ({"labels": {}, "Labels": {"a": "old"}}, {"a": "old"}),
        ({"labels": None, "Labels": {"a": "old"}}, {"a": "old"}),
        ({"labels": {}, "Labels": {}}, UNSET),
        ({}, UNSET),
    ],
)
def test_both_spellings_of_an_exports_labels_are_read_and_one_is_written(fields: Any, labels: Any) -> None:
    export = records.decode(records.ServiceExport, json.dumps(EXPORT | fields).encode())
    assert export.labels == labels
    assert b'"Labels"' not in records.encode(export)


@pytest.mark.parametrize(
    "fields",
    [
        {"cluster": ""},
        {"name": ""},
        {"namespace": ""},
        {"exportCreationTimestamp": "0001-01-01T00:00:00Z"},
        {"exportCreationTimestamp": "yesterday"},
        {"exportCreationTimestamp": "2026-01-05T09:00:00"},
        {"exportCreationTimestamp": None},
        {"type": "SuperclusterIP"},
        {"type": None},
        {"sessionAffinity": "ClientIp"},
        {"internalTrafficPolicy": "Elsewhere"},
        {"ports": [{"name": "http"}]},
        {"ports": [{"port": "80"}]},
    ],
)
def test_an_export_that_ciliums_reader_refuses_is_refused(fields: Any) -> None:
    with pytest.raises(RecordError):
        records.decode(records.ServiceExport, json.dumps(EXPORT | fields).encode())


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        ("", {"services"}),
        (records.SERVICES_AND_SLICES, {"services", "endpointslices"}),
        (records.SLICES_ONLY, {"endpointslices"}),
    ],
)
@pytest.mark.parametrize(("exports", "more"), [({}, set()), ({"serviceExportsEnabled": False}, {"serviceexports"})])
def test_a_cluster_config_tells_which_kinds_there_are(
    mode: str, kinds: set[str], exports: dict[str, bool], more: set[str]
) -> None:
    capabilities = {"endpointSlicesExportMode": mode, "fromTheFuture": {"a": [1]}, **exports}
    config = records.decode(records.ClusterConfig, json.dumps({"id": 5, "capabilities": capabilities}).encode())
    assert set(config.kinds()) == {"nodes", "identities", "addresses", *kinds, *more}


def test_a_mode_that_nobody_knows_is_refused() -> None:
    config = records.ClusterConfig(5, records.Capabilities(endpoint_slices_export_mode="all"))
    with pytest.raises(RecordError, match="'all' is unknown"):
        config.kinds()
