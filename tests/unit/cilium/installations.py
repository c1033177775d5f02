"""Cilium installations as they are read."""

from clustermesh.cilium.installation import Installation, MeshNode
from clustermesh.pki import CertificateAuthority, KeyPair

AUTHORITY = CertificateAuthority.create("Cilium CA")
SIGNER = KeyPair(AUTHORITY.key, AUTHORITY.cert)
SHARED = AUTHORITY.issue_client("remote")
SETTINGS = {"routing-mode": "tunnel", "tunnel-protocol": "vxlan"}


def installation(**changes: object) -> Installation:
    """As a default `helm install` of 1.20 with its mesh enabled looks, but for `changes`."""
    fields: dict[str, object] = {
        "namespace": "kube-system",
        "name": "east",
        "cluster_id": 9,
        "version": "1.20.1",
        "settings": SETTINGS,
        "kvstoremesh": True,
        "endpoints": ("https://192.0.2.9:2379",),
        "nodes": (MeshNode("east-1", ("10.9.1.0/24",), ("192.0.2.91",)),),
        "ca": AUTHORITY.cert.decode(),
        "signer": SIGNER,
        "shared": SHARED,
        "users": "users: []\n",
    }
    return Installation(**{**fields, **changes})  # type: ignore[arg-type]
