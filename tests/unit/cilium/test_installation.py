"""A Cilium installation is recognised by what it says of itself."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.cilium.installation import (
    CiliumError,
    MeshNode,
    find_authority,
    find_endpoints,
    misfits,
    parse_config,
    parse_version,
    release,
    view_cilium_node,
)
from clustermesh.cilium.objects import CiliumNode, Deployment, MeshService
from clustermesh.kube.objects import ConfigMap, ObjectMeta, Secret
from tests.unit.cilium.installations import installation

NODES = (MeshNode("b", (), ("192.0.2.2", "10.0.0.2")), MeshNode("a", (), ("192.0.2.1",)), MeshNode("c", (), ()))
META = ObjectMeta(name="cilium-config", namespace="kube-system")


def service(text: str) -> MeshService:
    return msgspec.json.decode(text, type=MeshService)


def config(**data: str) -> ConfigMap:
    return ConfigMap(metadata=META, data={key.replace("_", "-"): value for key, value in data.items()})


def test_name_id_and_size_of_the_mesh_are_read() -> None:
    assert parse_config(config(cluster_name="east", cluster_id="9")) == ("east", 9, 255)
    large = config(cluster_name="east", cluster_id="400", max_connected_clusters="511")
    assert parse_config(large) == ("east", 400, 511)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({}, "'default' with cluster-id '0'"),
        ({"cluster_name": "east", "cluster_id": "0"}, "Helm cluster.name, cluster.id"),
        ({"cluster_name": "East!", "cluster_id": "9"}, "East!"),
        ({"cluster_name": "east", "cluster_id": "nine"}, "'nine' is no number"),
        ({"cluster_name": "east", "cluster_id": "300"}, "300"),
        ({"cluster_name": "east", "cluster_id": "9", "max_connected_clusters": "300"}, "300"),
    ],
)
def test_one_that_is_not_made_for_a_mesh_is_refused(data: dict[str, str], why: str) -> None:
    with pytest.raises(CiliumError, match="ConfigMap kube-system/cilium-config") as refusal:
        parse_config(config(**data))
    assert why in str(refusal.value)


@given(st.dictionaries(st.sampled_from(["cluster_name", "cluster_id", "max_connected_clusters"]), st.text(max_size=12)))
def test_any_configuration_is_understood_or_refused(data: dict[str, str]) -> None:
    try:
        _, cluster_id, max_clusters = parse_config(config(**data))
    except CiliumError:
        return
    assert 0 < cluster_id <= max_clusters


@pytest.mark.parametrize(
    ("text", "endpoints", "remark"),
    [
        (
            """{"spec": {"type": "LoadBalancer", "ports": [{"port": 2379, "nodePort": 30000}]}, "status":
            {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}, {"hostname": "lb.example"}, {"ip": "2001:db8::7"}]}}}""",
            ("https://192.0.2.7:2379", "https://lb.example:2379", "https://[2001:db8::7]:2379"),
            "",
        ),
        ('{"spec": {"type": "LoadBalancer", "ports": [{"port": 2379}]}}', (), ""),
        (
            '{"spec": {"type": "NodePort", "ports": [{"port": 1}, {"port": 2379, "nodePort": 32379}]}}',
            ("https://192.0.2.1:32379", "https://192.0.2.2:32379"),
            "NodePort",
        ),
        ('{"spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 2379}]}}', ("https://10.96.0.9:2379",), "cluster IP"),
        ('{"spec": {"clusterIP": "None", "ports": [{"port": 2379}]}}', (), "cluster IP"),
        ('{"spec": {"type": "NodePort", "ports": null}}', (), ""),
    ],
)
def test_its_etcd_is_reached_as_its_service_says(text: str, endpoints: tuple[str, ...], remark: str) -> None:
    found, said = find_endpoints(service(text), NODES)
    assert found == endpoints
    assert remark in said
    assert find_endpoints(None, NODES) == ((), "")


@pytest.mark.parametrize(
    ("image", "version", "known"),
    [
        ("quay.io/cilium/clustermesh-apiserver:v1.17.4@sha256:abc", "1.17.4", (1, 17)),
        ("registry:5000/clustermesh-apiserver:v1.20.0-rc.1", "1.20.0-rc.1", (1, 20)),
        ("quay.io/cilium/clustermesh-apiserver-ci:latest", "latest", None),
        ("registry:5000/clustermesh-apiserver@sha256:abc", "", None),
    ],
)
def test_the_version_is_its_images(image: str, version: str, known: tuple[int, int] | None) -> None:
    containers = [{"name": "etcd", "image": "x:v3"}, {"name": "apiserver", "image": image}]
    found = parse_version(msgspec.convert({"spec": {"template": {"spec": {"containers": containers}}}}, Deployment))
    assert (found, release(found)) == (version, known)


def test_pools_and_addresses_of_a_node_are_found() -> None:
    text = """{"metadata": {"name": "n"}, "spec": {"addresses": [{"type": "CiliumInternalIP", "ip": "10.9.1.5"},
        {"type": "InternalIP", "ip": "10.0.0.5"}, {"type": "ExternalIP", "ip": "192.0.2.5"}],
        "ipam": {"podCIDRs": ["10.9.1.0/24"], "pools": {"allocated": [{"pool": "x", "cidrs": ["10.9.7.0/28"]}]}}}}"""
    node = msgspec.json.decode(text, type=CiliumNode)
    assert view_cilium_node(node) == ("n", ("10.9.1.0/24", "10.9.7.0/28"), ("192.0.2.5", "10.0.0.5"))
    bare = msgspec.json.decode('{"metadata": {"name": "n"}, "spec": {"addresses": null}}', type=CiliumNode)
    assert view_cilium_node(bare) == ("n", (), ())


def test_the_authority_beside_the_certificates_is_the_one_that_etcd_has() -> None:
    own, other = Secret(data={"ca.crt": b"A", "tls.crt": b"no CA"}), Secret(data={"tls.crt": b"B"})
    assert find_authority(other, own) == "A"
    assert find_authority(other, None) == "B"
    assert find_authority(None, None) == ""


def test_default_settings_fit() -> None:
    assert list(misfits(installation())) == list(misfits(installation(settings={}))) == []
    assert list(misfits(installation(settings={"tunnel-port": "8472", "enable-wireguard": "false"}))) == []


@pytest.mark.parametrize(
    ("entry", "value", "helm"),
    [
        ("routing-mode", "native", "routingMode"),
        ("tunnel-protocol", "geneve", "tunnelProtocol"),
        ("tunnel-port", "6081", "tunnelPort"),
        ("underlay-protocol", "ipv6", "underlayProtocol"),
        ("enable-wireguard", "true", "encryption.enabled"),
        ("enable-ipsec", "True", "encryption.enabled"),
        ("identity-allocation-mode", "kvstore", "identityAllocationMode"),
        ("kvstore", "etcd", "etcd.enabled"),
        ("enable-ipv4", "false", "ipv4.enabled"),
    ],
)
def test_a_setting_that_does_not_fit_is_named_with_its_remedy(entry: str, value: str, helm: str) -> None:
    (problem,) = misfits(installation(settings={entry: value}))
    assert entry in problem and value.lower() in problem and helm in problem


def test_keys_are_not_shown() -> None:
    assert "PRIVATE" not in repr(installation())
