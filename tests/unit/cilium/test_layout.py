"""The files by which Cilium knows a peer."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.cilium import layout
from clustermesh.cilium.objects import AGENTS_SECRET, MIRROR_SECRET
from clustermesh.pki import KeyPair

PAIR = KeyPair(b"KEY", b"CERT")
ENDPOINTS = ("https://192.0.2.1:2379", "https://[2001:db8::1]:2379")

DIRECT = b"""endpoints:
- https://192.0.2.1:2379
- https://[2001:db8::1]:2379
trusted-ca-file: /var/lib/cilium/clustermesh/red.etcd-client-ca.crt
key-file: /var/lib/cilium/clustermesh/red.etcd-client.key
cert-file: /var/lib/cilium/clustermesh/red.etcd-client.crt
"""
LOCAL = b"""endpoints:
- https://clustermesh-apiserver.cilium.svc:2379
trusted-ca-file: /var/lib/cilium/clustermesh/local-etcd-client-ca.crt
key-file: /var/lib/cilium/clustermesh/local-etcd-client.key
cert-file: /var/lib/cilium/clustermesh/local-etcd-client.crt
"""
FILES = {"red.etcd-client-ca.crt": b"CA", "red.etcd-client.key": b"KEY", "red.etcd-client.crt": b"CERT"}


def entries(*, kvstoremesh: bool) -> dict[str, dict[str, bytes]]:
    return layout.entries("red", ENDPOINTS, "CA", PAIR, namespace="cilium", kvstoremesh=kvstoremesh)


def test_without_kvstoremesh_the_agents_come_themselves() -> None:
    assert entries(kvstoremesh=False) == {AGENTS_SECRET: {"red": DIRECT, **FILES}}


def test_with_kvstoremesh_the_agents_read_the_copy_in_their_own_cluster() -> None:
    assert entries(kvstoremesh=True) == {
        MIRROR_SECRET: {"red": DIRECT, **FILES},
        AGENTS_SECRET: {"red": LOCAL},
    }


def test_only_a_file_with_endpoints_is_a_peer() -> None:
    (data,) = entries(kvstoremesh=False).values()
    assert layout.peers(data) == ["red"]
    assert set(data) == set(layout.names("red"))
    assert layout.read(data["red"]).endpoints == ENDPOINTS


@given(st.binary(max_size=80))
def test_any_file_is_understood_or_refused(content: bytes) -> None:
    with suppress(ValueError):
        assert layout.read(b"endpoints: [" + content).endpoints is not None


@pytest.mark.parametrize("content", [b"", b"endpoints: 7", b"\xff", b"a: b"])
def test_what_is_no_configuration_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="no etcd configuration"):
        layout.read(content)
