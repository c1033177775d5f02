"""A node in a network namespace of its own."""

import os
import subprocess
from collections.abc import Iterator
from uuid import uuid4

import pytest
from pyroute2 import netns


class NodeNamespace:
    """The namespace that the test runs in, and pods' namespaces beside it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pods: list[str] = []

    def ip(self, command: str) -> str:
        """Run `ip` in the node."""
        return run(f"ip -n {self.name} {command}")

    def pod(self, address: str, device: str, *, route: bool = True, up: bool = True) -> str:
        """A pod with an address behind a veth `device`; returns its MAC address."""
        pod = f"{self.name}p{len(self.pods)}"
        run(f"ip netns add {pod}")
        self.pods.append(pod)
        self.ip(f"link add {device} type veth peer name eth0 netns {pod}")
        run(f"ip -n {pod} addr add {address}/32 dev eth0")
        run(f"ip -n {pod} link set eth0 up")
        if up:
            self.ip(f"link set {device} up")
        if route:
            self.ip(f"route add {address}/32 dev {device}")
        return run("cat /sys/class/net/eth0/address", inside=pod).strip()

    def ifindex(self, device: str) -> int:
        return int(self.ip(f"-o link show {device}").split(":")[0])


def run(command: str, *, inside: str | None = None) -> str:
    """Run a command, in a namespace if so wanted; what it printed."""
    words = command.split()
    if inside is not None:
        words = ["ip", "netns", "exec", inside, *words]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


@pytest.fixture
def node() -> Iterator[NodeNamespace]:
    """Enter a fresh namespace for the time of the test."""
    namespace = NodeNamespace(f"cmt{os.getpid()}{uuid4().hex[:4]}")
    run(f"ip netns add {namespace.name}")
    try:
        netns.pushns(namespace.name)
        try:
            namespace.ip("link set lo up")
            yield namespace
        finally:
            netns.popns()
    finally:
        for name in [*namespace.pods, namespace.name]:
            run(f"ip netns del {name}")
