"""What Cilium wrote decodes, and encodes to the same bytes again, under the keys that we would give it."""

import json
from pathlib import Path
from typing import Any

import pytest

from clustermesh.wire import keys, records
from clustermesh.wire.keys import Kind

GOLDEN = Path(__file__).parents[2] / "golden"
CLUSTER = "cluster1"


def read(name: str) -> dict[str, str]:
    lines = (GOLDEN / name).read_text().splitlines()
    return dict(zip(lines[::2], lines[1::2], strict=True))


EXPORTED = read("exported-by-cilium.txt")
MIRRORED = read("mirrored-by-cilium.txt")

TYPES: dict[Kind, type] = {
    Kind.NODES: records.Node,
    Kind.ADDRESSES: records.AddressRecord,
    Kind.SERVICES: records.ServiceRecord,
    Kind.SERVICE_EXPORTS: records.ServiceExport,
}
# The recording is older than endpoint slices in etcd.
RECORDED = [*TYPES, Kind.IDENTITIES]


def of_key(key: str) -> type | None:
    """The type of a key's value, if that is JSON."""
    if key == keys.cluster_config(CLUSTER):
        return records.ClusterConfig
    for kind, value_type in TYPES.items():
        if key.startswith((keys.state_prefix(kind, CLUSTER), keys.cache_prefix(kind, CLUSTER))):
            return value_type
    return None


def key_of(record: Any) -> str:
    match record:
        case records.Node():
            return keys.node(record.cluster, record.name)
        case records.AddressRecord():
            return keys.address(record.ip)
        case records.ServiceRecord():
            return keys.service(record.cluster, record.namespace, record.name)
        case records.ServiceExport():
            return keys.service_export(record.cluster, record.namespace, record.name)
    raise AssertionError(record)


BOTH = [pytest.param(key, value, id=key) for of in (EXPORTED, MIRRORED) for key, value in of.items()]


@pytest.mark.parametrize(("key", "value"), [one for one in BOTH if of_key(str(one.values[0])) is not None])
def test_a_record_keeps_its_bytes(key: str, value: str) -> None:
    value_type = of_key(key)
    assert value_type is not None
    assert records.encode(records.decode(value_type, value.encode())) == value.encode()


@pytest.mark.parametrize(("key", "value"), [one for one in BOTH if "/identities/v1/" in str(one.values[0])])
def test_an_identity_keeps_its_bytes(key: str, value: str) -> None:
    if "/synced/" not in key:
        assert records.encode_identity(records.decode_identity(value.encode())) == value.encode()


@pytest.mark.parametrize("key", [key for key in EXPORTED if of_key(key) in TYPES.values()])
def test_a_records_key_follows_from_the_record(key: str) -> None:
    value_type = of_key(key)
    assert value_type is not None
    assert key_of(records.decode(value_type, EXPORTED[key].encode())) == key


@pytest.mark.parametrize("kind", RECORDED)
def test_a_mirror_keeps_a_record_under_the_key_that_cilium_gives_it(kind: Kind) -> None:
    prefix, copies = keys.state_prefix(kind, CLUSTER), keys.cache_prefix(kind, CLUSTER)
    exported = {key: value for key, value in EXPORTED.items() if key.startswith(prefix)}
    mirrored = {key: value for key, value in MIRRORED.items() if key.startswith(copies)}
    assert {keys.cached_key(kind, CLUSTER, key): value for key, value in exported.items()} == mirrored
    assert {prefix + keys.tail(copies, key): value for key, value in mirrored.items()} == exported
    assert exported


@pytest.mark.parametrize("kind", RECORDED)
def test_canaries_are_named_as_cilium_names_them(kind: Kind) -> None:
    assert keys.state_canary(kind, CLUSTER) in EXPORTED
    assert keys.cache_canary(kind, CLUSTER) in MIRRORED
    assert keys.state_canary(kind, CLUSTER).startswith(keys.synced_prefix(CLUSTER))


def test_no_key_of_the_recording_is_unknown() -> None:
    known = {keys.HEARTBEAT, keys.cluster_config(CLUSTER)}
    known |= {canary(kind, CLUSTER) for kind in Kind for canary in (keys.state_canary, keys.cache_canary)}
    prefixes = tuple(prefix(kind, CLUSTER) for kind in Kind for prefix in (keys.state_prefix, keys.cache_prefix))
    assert not [key for key in (*EXPORTED, *MIRRORED) if key not in known and not key.startswith(prefixes)]


def test_the_cluster_config_announces_what_was_exported() -> None:
    config = records.decode(records.ClusterConfig, EXPORTED[keys.cluster_config(CLUSTER)].encode())
    assert {keys.state_canary(kind, CLUSTER) for kind in config.kinds()} == {
        key for key in EXPORTED if key.startswith(keys.synced_prefix(CLUSTER))
    }


@pytest.mark.parametrize("path", sorted((GOLDEN / "services").glob("*.json")), ids=lambda path: path.name)
def test_a_service_of_the_recorded_cases_keeps_its_content(path: Path) -> None:
    for key, value in json.loads(path.read_text()).items():
        if value is None:
            continue
        value_type = records.ServiceExport if "/serviceexports/" in key else records.ServiceRecord
        again = json.loads(records.encode(records.decode(value_type, json.dumps(value).encode())))
        # How the recording was printed says nothing of an empty map, which Cilium left out later.
        assert {name: field for name, field in again.items() if name != "hostnames" or field} == {
            name: field for name, field in value.items() if name != "hostnames" or field
        }


def test_a_node_knows_its_pod_ranges_and_the_address_to_send_to() -> None:
    node = records.decode(records.Node, EXPORTED[keys.node(CLUSTER, "node-a")].encode())
    assert [str(cidr) for cidr in node.pod_cidrs()] == ["10.1.0.0/24", "fd00:10:1::/96", "10.1.100.0/24"]
    assert node.preferred_ip() == "172.18.0.11"
    assert node.preferred_ip(6) == "fc00:c111::b"
