"""Where the parts run: a router, and behind it the source's etcd, the local etcd and the agents' nodes.

The API server, Kubernetes and the test itself are on the host. Each etcd has a second cable to the host alone, by which
the test writes and looks whatever is cut.

    host ── router ─┬─ source        host ── source
                    ├─ local         host ── local
                    ├─ agent1
                    └─ agent2
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clustermesh.testbed import namespaces

AGENTS = ("agent1", "agent2")
PARTIES = ("source", "local", *AGENTS)
HOST = "198.18.0.1"
_NETWORK = "198.18.0.0/16"
_BEHIND = {party: f"198.18.{number}" for number, party in enumerate(PARTIES, 1)}
_ASIDE = {"source": "198.18.101", "local": "198.18.102"}
_DROPPING = 100  # priority of the rules


def address(party: str) -> str:
    """Of a party as the others see it; "mirror" is the API server on the host."""
    return HOST if party == "mirror" else f"{_BEHIND[party]}.2"


def aside(party: str) -> str:
    """Of an etcd as only the test sees it."""
    return f"{_ASIDE[party]}.2"


@dataclass(frozen=True)
class Network:
    """Namespaces by party, and ways to cut them from each other."""

    prefix: str

    def namespace(self, party: str) -> str:
        return f"{self.prefix}-{party}"

    def unplug(self, party: str) -> None:
        """Pull the cable out of the router: who sends gets an error."""
        namespaces.configure(self.namespace("router"), [f"link set {party} down"])

    def plug(self, party: str) -> None:
        namespaces.configure(self.namespace("router"), [f"link set {party} up"])

    def drop(self, sender: str, receiver: str) -> None:
        """Lose silently what goes one way."""
        self._rule("add", sender, receiver)

    def pass_on(self, sender: str, receiver: str) -> None:
        self._rule("del", sender, receiver)

    def _rule(self, verb: str, sender: str, receiver: str) -> None:
        what = f"from {address(sender)} to {address(receiver)} blackhole priority {_DROPPING}"
        namespaces.configure(self.namespace("router"), [f"rule {verb} {what}"])


@contextmanager
def network() -> Iterator[Network]:
    """All namespaces and cables; they go whatever happens."""
    net = Network(f"cmf{os.getpid()}")
    names = [net.namespace(party) for party in ("router", *PARTIES)]
    devices = [f"{net.prefix}{letter}" for letter in "rsl"]
    try:
        for name in names:
            namespaces.create(name, {"net/ipv4/ip_forward": "1"} if name.endswith("router") else None)
        _lay_cables(net, devices)
        yield net
    finally:
        for device in devices:
            _remove(device)
        for name in names:
            namespaces.remove(name)
        namespaces.release_registry()


def _lay_cables(net: Network, devices: Sequence[str]) -> None:
    router = net.namespace("router")
    to_router, to_source, to_local = devices
    namespaces.configure(
        None,
        [
            f"link add {to_router} type veth peer name host netns {router}",
            f"link add {to_source} type veth peer name aside netns {net.namespace('source')}",
            f"link add {to_local} type veth peer name aside netns {net.namespace('local')}",
            *(
                f"link add eth0 netns {net.namespace(party)} type veth peer name {party} netns {router}"
                for party in PARTIES
            ),
            f"address add {HOST}/24 dev {to_router}",
            f"address add {_ASIDE['source']}.1/24 dev {to_source}",
            f"address add {_ASIDE['local']}.1/24 dev {to_local}",
            *(f"link set {device} up" for device in devices),
            f"route add {_NETWORK} via 198.18.0.254",
        ],
    )
    namespaces.configure(router, ["address add 198.18.0.254/24 dev host", "link set host up"])
    for party, subnet in _BEHIND.items():
        namespaces.configure(router, [f"address add {subnet}.1/24 dev {party}", f"link set {party} up"])
        commands = [f"address add {subnet}.2/24 dev eth0", "link set eth0 up", f"route add {_NETWORK} via {subnet}.1"]
        if party in _ASIDE:
            commands += [f"address add {aside(party)}/24 dev aside", "link set aside up"]
        namespaces.configure(net.namespace(party), commands)


def _remove(device: str) -> None:
    if Path("/sys/class/net", device).exists():
        namespaces.configure(None, [f"link delete {device}"])
