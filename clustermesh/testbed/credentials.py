"""Certificates and keys of a testbed's clusters, and the kubeconfig that holds the administrator's."""

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from clustermesh import pki
from clustermesh.testbed.state import StateDirectory
from clustermesh.testbed.topology import Cluster

# Files in a cluster's directory, each as <name>.crt and <name>.key.
AUTHORITY = "ca"
ETCD = "etcd"  # server
KUBERNETES = "kubernetes"  # server
ADMIN = "admin"  # client of Kubernetes: the operator, and the testbed's own kubelets
ETCD_ROOT = "etcd-root"  # client of etcd: the Kubernetes stand-in
API_SERVER = "apiserver"  # client of etcd
AGENT = "agent"  # client of etcd


class Pair(NamedTuple):
    cert: Path
    key: Path


def pair(directory: StateDirectory, cluster: Cluster, name: str) -> Pair:
    home = directory.pki(cluster.name)
    return Pair(home / f"{name}.crt", home / f"{name}.key")


def issue(directory: StateDirectory, cluster: Cluster) -> None:
    """Make the cluster's authority and all that it signs at the start."""
    authority = pki.CertificateAuthority.create(f"{cluster.name} CA")
    addresses = [cluster.first.address, "127.0.0.1", "localhost"]
    issued = {
        AUTHORITY: pki.KeyPair(authority.key, authority.cert),
        ETCD: authority.issue_server("etcd", [pki.server_name(cluster.name), *addresses]),
        KUBERNETES: authority.issue_server("kubernetes", ["kubernetes", *addresses]),
        ADMIN: authority.issue_client("kubernetes-admin", organization="system:masters"),
        ETCD_ROOT: authority.issue_client("root"),
        API_SERVER: authority.issue_client(f"admin-{cluster.name}"),
        AGENT: authority.issue_client(f"local-{cluster.name}"),
    }
    directory.pki(cluster.name).mkdir(parents=True, mode=0o700)
    for name, made in issued.items():
        files = pair(directory, cluster, name)
        files.cert.write_bytes(made.cert)
        files.key.touch(mode=0o600)
        files.key.write_bytes(made.key)


def write_kubeconfig(directory: StateDirectory, clusters: Iterable[Cluster]) -> None:
    """One context a cluster, named like it; the first is the current one."""
    clusters = list(clusters)
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": clusters[0].name,
        "clusters": [
            {
                "name": cluster.name,
                "cluster": {
                    "server": cluster.kubernetes_url,
                    "certificate-authority-data": _base64(pair(directory, cluster, AUTHORITY).cert),
                },
            }
            for cluster in clusters
        ],
        "users": [{"name": f"{cluster.name}-admin", "user": _user(directory, cluster)} for cluster in clusters],
        "contexts": [
            {"name": cluster.name, "context": {"cluster": cluster.name, "user": f"{cluster.name}-admin"}}
            for cluster in clusters
        ],
    }
    directory.kubeconfig.touch(mode=0o600)
    directory.kubeconfig.write_text(yaml.safe_dump(document, sort_keys=False))


def _user(directory: StateDirectory, cluster: Cluster) -> Mapping[str, str]:
    admin = pair(directory, cluster, ADMIN)
    return {"client-certificate-data": _base64(admin.cert), "client-key-data": _base64(admin.key)}


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
