"""Pod to pod across clusters, against the same path through a plain kernel VXLAN device with routes.

Both paths run between the same two nodes and through the same router, turn by turn; each pod of the plain path hangs on
its node by a veth pair too. The plain pods have the MTU that VXLAN leaves them, ours keep 1500.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.report import Result, paired

NAME = "bench"
# The service leads to a port of its own: a connection to a tuple that was used directly a moment ago would meet a
# server in TIME_WAIT, to which its timestamps look old.
PORT, SERVICE_PORT = "7777", "7778"
SECONDS = "2"
SOURCE = Path(__file__).with_name("netbench.c")
UNITS = {"stream": "bytes/s", "rr": "round trips/s", "crr": "connections/s"}


def run(rounds: int) -> Sequence[Result]:
    with tempfile.TemporaryDirectory() as directory, connected_clusters():
        tool = Path(directory, "netbench")
        subprocess.run(["cc", "-O2", "-o", str(tool), str(SOURCE)], check=True)
        ours = ("red/client", pod("green", "client")["status"]["podIP"])
        vip = kubectl("red", "get", "service", "bench")["spec"]["clusterIP"]
        with plain_vxlan() as (plain_client, plain_server, plain_address):
            servers = [
                server(in_pod("green/client", str(tool), "server", ours[1], PORT)),
                server(in_pod("green/client", str(tool), "server", ours[1], SERVICE_PORT)),
                server(in_namespace(plain_server, str(tool), "server", plain_address, PORT)),
            ]
            try:
                return [
                    *(
                        measure(
                            mode,
                            rounds,
                            in_pod(ours[0], str(tool), mode, ours[1], PORT, SECONDS),
                            in_namespace(plain_client, str(tool), mode, plain_address, PORT, SECONDS),
                            "pod to pod",
                            at_least=1.0,
                        )
                        for mode in UNITS
                    ),
                    measure(
                        "crr",
                        rounds,
                        in_pod(ours[0], str(tool), "crr", vip, SERVICE_PORT, SECONDS),
                        in_namespace(plain_client, str(tool), "crr", plain_address, PORT, SECONDS),
                        "through the global service",
                    ),
                ]
            finally:
                for process in servers:
                    process.terminate()
                    process.wait()


def measure(
    mode: str, rounds: int, ours: list[str], plain: list[str], path: str, at_least: float | None = None
) -> Result:
    """Both in turn, and who begins changes from round to round: the machine's speed drifts within a pair too."""
    figures: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            figures[which].append(once((ours, plain)[which]))
    return paired(f"{mode}, {path}", *figures, UNITS[mode], at_least)


def once(command: list[str]) -> float:
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


def server(command: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError(f"{' '.join(command)} did not start")
    return process


def clustermesh(*arguments: str) -> str:
    command = [sys.executable, "-m", "clustermesh.cli.main", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment()).stdout


def environment() -> dict[str, str]:
    return os.environ | {"KUBECONFIG": f"/run/clustermesh/testbed/{NAME}/kubeconfig"}


def kubectl(context: str, *arguments: str, manifest: str | None = None) -> dict:  # type: ignore[type-arg]
    command = [str(Path(sys.executable).with_name("kubectl")), "--context", context, *arguments, "-o", "json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment(), input=manifest)
    return json.loads(done.stdout)


def pod(context: str, name: str) -> dict:  # type: ignore[type-arg]
    return kubectl(context, "get", "pod", name)


def in_pod(where: str, *command: str) -> list[str]:
    """Straight into the namespace: our own command line would cost more than a short measurement."""
    cluster, name = where.split("/")
    found = pod(cluster, name)
    namespace = f"cm-{NAME}-{found['spec']['nodeName']}-{found['metadata']['uid'].replace('-', '')[:6]}"
    return in_namespace(namespace, *command)


def in_namespace(namespace: str, *command: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{namespace}", *command]


@contextlib.contextmanager
def connected_clusters() -> Iterator[None]:
    manifest = json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "bench",
                "namespace": "default",
                "annotations": {"service.cilium.io/global": "true", "service.cilium.io/affinity": "remote"},
            },
            "spec": {"selector": {"app": "client"}, "ports": [{"port": int(SERVICE_PORT)}]},
        }
    )
    try:
        clustermesh("testbed", "up", "--name", NAME, "--clusters", "red,green", "--nodes", "1")
        for cluster in ("red", "green"):
            kubectl(cluster, "apply", "-f", "examples/client.yaml")
            kubectl(cluster, "apply", "-f", "-", manifest=manifest)
        for cluster in ("red", "green"):
            kubectl(cluster, "wait", "--for=condition=Ready", "pod/client", "--timeout=60s")
        clustermesh("connect", "--context", "red", "--destination-context", "green")
        yield
    finally:
        clustermesh("testbed", "down", "--name", NAME)


@contextlib.contextmanager
def plain_vxlan() -> Iterator[tuple[str, str, str]]:
    """Two pods on the same nodes, joined by a kernel VXLAN device and routes: client, server, the server's address."""
    nodes = {"red": f"cm-{NAME}-red-1", "green": f"cm-{NAME}-green-1"}
    addresses = {cluster: node_address(cluster) for cluster in nodes}
    pods = {cluster: f"cm-{NAME}-plain-{cluster}" for cluster in nodes}
    subnets = {"red": "10.250.1", "green": "10.250.2"}
    hops = {"red": "10.250.0.1", "green": "10.250.0.2"}
    try:
        for cluster, other in (("red", "green"), ("green", "red")):
            node, mine, subnet = nodes[cluster], pods[cluster], subnets[cluster]
            ip(f"netns add {mine}")
            ip(f"-n {node} link add plain mtu 1450 type veth peer name eth0 mtu 1450 netns {mine}")
            ip(f"-n {node} addr add {subnet}.1/24 dev plain")
            ip(f"-n {node} link set plain up")
            ip(f"-n {mine} addr add {subnet}.2/24 dev eth0")
            ip(f"-n {mine} link set eth0 up")
            ip(f"-n {mine} route add default via {subnet}.1")
            ends = f"local {addresses[cluster]} remote {addresses[other]}"
            ip(f"-n {node} link add vxplain mtu 1450 type vxlan id 7 dstport 4790 noudpcsum {ends}")
            ip(f"-n {node} addr add {hops[cluster]}/24 dev vxplain")
            ip(f"-n {node} link set vxplain up")
            ip(f"-n {node} route add {subnets[other]}.0/24 via {hops[other]}")
        yield pods["red"], pods["green"], f"{subnets['green']}.2"
    finally:
        for name in pods.values():
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)


def node_address(cluster: str) -> str:
    node = kubectl(cluster, "get", "node", f"{cluster}-1")
    return str(next(a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP"))


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)
