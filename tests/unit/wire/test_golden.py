"""What Cilium wrote decodes, and encodes to the same bytes again."""

from pathlib import Path

import pytest

from clustermesh.wire import keys, records

GOLDEN = Path(__file__).parents[2] / "golden"


def read(name: str) -> dict[str, str]:
    lines = (GOLDEN / name).read_text().splitlines()
    return dict(zip(lines[::2], lines[1::2], strict=True))


EXPORTED = read("exported-by-cilium.txt")
MIRRORED = read("mirrored-by-cilium.txt")

KINDS = {
    "cilium/cluster-config/": records.ClusterConfig,
    "cilium/state/nodes/": records.Node,
    "cilium/state/ip/": records.AddressRecord,
    "cilium/state/services/": records.ServiceRecord,
}


@pytest.mark.parametrize("key", [key for key in EXPORTED if key.startswith(tuple(KINDS))])
def test_a_record_keeps_its_bytes(key: str) -> None:
    kind = next(kind for prefix, kind in KINDS.items() if key.startswith(prefix))
    raw = EXPORTED[key].encode()
    assert records.encode(records.decode(kind, raw)) == raw


@pytest.mark.parametrize("key", [key for key in EXPORTED if "/identities/v1/id/" in key])
def test_an_identity_keeps_its_bytes(key: str) -> None:
    raw = EXPORTED[key].encode()
    assert records.encode_identity(records.decode_identity(raw)) == raw


# The recording is older than endpoint slices in etcd.
_RECORDED = [kind for kind in keys.Kind if kind is not keys.Kind.ENDPOINT_SLICES]


@pytest.mark.parametrize("kind", _RECORDED)
def test_a_mirror_keeps_a_record_under_the_key_that_cilium_gives_it(kind: keys.Kind) -> None:
    prefix = keys.state_prefix(kind, "cluster1")
    copies = {
        keys.cached_key(kind, "cluster1", key): value for key, value in EXPORTED.items() if key.startswith(prefix)
    }
    assert copies == {k: v for k, v in MIRRORED.items() if k.startswith(keys.cache_prefix(kind, "cluster1"))}
    assert copies


@pytest.mark.parametrize("kind", _RECORDED)
def test_canaries_are_named_as_cilium_names_them(kind: keys.Kind) -> None:
    assert keys.state_canary(kind, "cluster1") in EXPORTED
    assert keys.cache_canary(kind, "cluster1") in MIRRORED
    assert keys.state_canary(kind, "cluster1").startswith(keys.synced_prefix("cluster1"))


def test_keys_are_those_that_cilium_wrote() -> None:
    assert keys.cluster_config("cluster1") in EXPORTED
    assert keys.HEARTBEAT in EXPORTED
    assert keys.node("cluster1", "node-a") in EXPORTED
    assert keys.identity(65601) in EXPORTED
    assert keys.address("fd00:10:1::15") in EXPORTED
    assert keys.service("cluster1", "demo", "web") in EXPORTED


def test_a_node_knows_its_pod_ranges_and_the_address_to_send_to() -> None:
    node = records.decode(records.Node, EXPORTED["cilium/state/nodes/v1/cluster1/node-a"].encode())
    assert [str(cidr) for cidr in node.pod_cidrs()] == ["10.1.0.0/24", "fd00:10:1::/96", "10.1.100.0/24"]
    assert node.preferred_ip() == "172.18.0.11"
    assert node.preferred_ip(6) == "fc00:c111::b"
