"""The command lines of a testbed's processes."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import clustermesh
from clustermesh.testbed import credentials
from clustermesh.testbed.driver import Driver
from clustermesh.testbed.processes import TESTBED_VARIABLE
from clustermesh.testbed.state import StateDirectory
from clustermesh.testbed.supervisor import Spec
from clustermesh.testbed.topology import Cluster, Node

API_SERVER_PORT, AGENT_PORT = 9880, 9881


def environment(testbed: str) -> dict[str, str]:
    """What every process of a testbed gets: its mark, and this project wherever it lies."""
    root = str(Path(clustermesh.__file__).parent.parent)
    path = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "LC_ALL")}
    return {**inherited, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", TESTBED_VARIABLE: testbed}


def agent_settings(directory: StateDirectory, cluster: Cluster, node: Node) -> dict[str, str]:
    """Flags of a node's agent, without "--": what any command about that node has to be told."""
    client = credentials.pair(directory, cluster, credentials.AGENT)
    return {
        "node-name": node.name,
        "cluster-name": cluster.name,
        "cluster-id": str(cluster.id),
        "etcd-endpoints": cluster.etcd_url,
        "etcd-ca": str(credentials.pair(directory, cluster, credentials.AUTHORITY).cert),
        "etcd-cert": str(client.cert),
        "etcd-key": str(client.key),
        "pin-dir": str(directory.pins(node.name)),
    }


class Programs:
    """Makes the specs of one testbed's processes."""

    def __init__(self, testbed: str, directory: StateDirectory, driver: Driver) -> None:
        self._testbed = testbed
        self._directory = directory
        self._driver = driver

    def etcd(self, cluster: Cluster) -> Spec:
        server = credentials.pair(self._directory, cluster, credentials.ETCD)
        peer_url = "http://127.0.0.1:2380"
        clients = f"{cluster.etcd_url},https://127.0.0.1:2379"
        return self._spec(
            f"{cluster.name}/etcd",
            cluster.first,
            [
                "etcd",
                f"--name={cluster.name}",
                f"--data-dir={self._directory.etcd(cluster.name)}",
                f"--listen-client-urls={clients}",
                f"--advertise-client-urls={cluster.etcd_url}",
                f"--listen-peer-urls={peer_url}",
                f"--initial-advertise-peer-urls={peer_url}",
                f"--initial-cluster={cluster.name}={peer_url}",
                # A testbed that is made again has another etcd, and readers shall see that by its cluster id.
                f"--initial-cluster-token={uuid4()}",
                f"--cert-file={server.cert}",
                f"--key-file={server.key}",
                f"--trusted-ca-file={self._authority(cluster)}",
                "--client-cert-auth",
                # The gateway would speak to etcd with the server's certificate, and users are known by theirs.
                "--enable-grpc-gateway=false",
                # A large peer is mirrored in transactions of this size, if etcd takes them.
                "--max-txn-ops=1024",
                "--auto-compaction-retention=1",
                "--snapshot-count=5000",
                "--logger=zap",
                "--log-level=warn",
            ],
        )

    def kubernetes(self, cluster: Cluster) -> Spec:
        server = credentials.pair(self._directory, cluster, credentials.KUBERNETES)
        return self._python(
            f"{cluster.name}/kubernetes",
            cluster.first,
            "clustermesh.testbed.kubernetes",
            [
                f"--cluster-name={cluster.name}",
                *self._etcd(cluster, credentials.ETCD_ROOT),
                f"--listen={cluster.first.address}:6443",
                f"--tls-cert={server.cert}",
                f"--tls-key={server.key}",
                f"--client-ca={self._authority(cluster)}",
                f"--service-cidr={cluster.service_cidr}",
            ],
        )

    def kubelet(self, cluster: Cluster) -> Spec:
        """On the host, from where it enters the namespaces of nodes and pods."""
        arguments = [str(self._directory.path), cluster.name]
        return self._python(f"{cluster.name}/kubelet", None, "clustermesh.testbed.kubelet", arguments)

    def api_server(self, cluster: Cluster, node: Node) -> Spec:
        """The replica on that node."""
        replica = "" if node is cluster.first else f"-{cluster.nodes.index(node) + 1}"
        return self._python(
            f"{cluster.name}/apiserver{replica}",
            node,
            "apiserver.main",
            [
                f"--cluster-name={cluster.name}",
                f"--cluster-id={cluster.id}",
                f"--kubeconfig={self._directory.kubeconfig}",
                f"--context={cluster.name}",
                *self._etcd(cluster, credentials.API_SERVER),
                f"--listen={node.address}:{API_SERVER_PORT}",
            ],
        )

    def agent(self, cluster: Cluster, node: Node) -> Spec:
        return self._python(
            f"{node.name}/agent",
            node,
            "nodeagent.main",
            [
                "run",
                *(f"--{flag}={value}" for flag, value in agent_settings(self._directory, cluster, node).items()),
                f"--listen={node.address}:{AGENT_PORT}",
            ],
        )

    def _etcd(self, cluster: Cluster, user: str) -> list[str]:
        client = credentials.pair(self._directory, cluster, user)
        return [
            f"--etcd-endpoints={cluster.etcd_url}",
            f"--etcd-ca={self._authority(cluster)}",
            f"--etcd-cert={client.cert}",
            f"--etcd-key={client.key}",
        ]

    def _authority(self, cluster: Cluster) -> Path:
        return credentials.pair(self._directory, cluster, credentials.AUTHORITY).cert

    def _python(self, name: str, node: Node | None, module: str, arguments: Sequence[str]) -> Spec:
        return self._spec(name, node, [sys.executable, "-m", module, *arguments])

    def _spec(self, name: str, node: Node | None, argv: Sequence[str]) -> Spec:
        log = self._directory.log(name)
        command = argv if node is None else self._driver.command(node, argv)
        return Spec(name, tuple(command), environment(self._testbed), str(log))
