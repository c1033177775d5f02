"""Nodes and pods made of network namespaces and veths, with the datapath's entries written by hand.

Two nodes of two clusters share one link of MTU 1500. Every pod has MTU 1500 too, an address of its node's pod CIDR and
a default route by its node, which forwards like a plain CNI. Nothing here knows how entries are compiled.
"""

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from nodeagent.datapath.abi import (
    AddressKey,
    BackendKey,
    BackendValue,
    Code,
    Config,
    EndpointFlag,
    EndpointValue,
    Event,
    IpcacheFlag,
    IpcacheKey,
    IpcacheValue,
    Map,
    NodeValue,
    ServiceKey,
    ServiceValue,
)
from nodeagent.datapath.attach import Attachment
from nodeagent.datapath.datapath import Datapath, Options
from nodeagent.datapath.ringbuf import RingBuffer

GATEWAY = "169.254.1.1"
TUNNEL_MTU = 1450
_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Be in a network namespace; sockets made inside stay there. For the current thread only."""
    with Path("/proc/thread-self/ns/net").open("rb") as home, Path(f"/run/netns/{namespace}").open("rb") as there:
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def namespace(name: str) -> Iterator[str]:
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        run("ip", "netns", "del", name)


@contextmanager
def bpf_file_system(path: Path) -> Iterator[Path]:
    path.mkdir()
    run("mount", "-t", "bpf", "bpf", str(path))
    try:
        yield path
    finally:
        run("umount", str(path))


def sysctl(namespace: str, name: str, value: int) -> None:
    with inside(namespace):
        Path("/proc/sys", *name.split("/")).write_text(str(value), encoding="ascii")


def ifindex(namespace: str, device: str) -> int:
    with inside(namespace):
        return socket.if_nametoindex(device)


@dataclass
class Pod:
    node: "Node"
    name: str
    ip: str
    identity: int
    device: str
    namespace: str

    @property
    def ifindex(self) -> int:
        return ifindex(self.node.namespace, self.device)

    def open_socket(self, kind: int = socket.SOCK_STREAM, protocol: int = 0, timeout: float = 5) -> socket.socket:
        return socket_in(self.namespace, kind, protocol, timeout)

    def listen(self, port: int) -> socket.socket:
        return listen_in(self.namespace, port)


def socket_in(namespace: str, kind: int, protocol: int = 0, timeout: float = 5) -> socket.socket:
    with inside(namespace):
        made = socket.socket(socket.AF_INET, kind, protocol)
    made.settimeout(timeout)
    return made


def listen_in(namespace: str, port: int) -> socket.socket:
    listener = socket_in(namespace, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", port))
    listener.listen(64)
    return listener


@dataclass
class Node:
    namespace: str
    cluster_id: int
    ip: str
    pod_network: str
    pin_dir: Path
    stack: ExitStack
    attachment: Attachment
    pods: list[Pod] = field(default_factory=list)
    datapath: Datapath = field(init=False)

    def start(self) -> Self:
        """Load, configure and attach, as an agent does."""
        self.datapath = self.stack.enter_context(self.load())
        tunnel = ifindex(self.namespace, "cm_vxlan")
        self.datapath.configure(Config(self.cluster_id, tunnel, TUNNEL_MTU, self.ip, flags=1))
        self.write(Map.ENDPOINTS, AddressKey(self.ip), EndpointValue(0, 1, EndpointFlag.HOST))
        with inside(self.namespace):
            self.datapath.attach_tunnel(tunnel)
        return self

    def load(self) -> Datapath:
        return Datapath(self.pin_dir, Options(attachment=self.attachment))

    def add_pod(self, number: int) -> Pod:
        ip = f"{self.pod_network}.{number}"
        pod = Pod(
            node=self,
            name=f"pod-{number}",
            ip=ip,
            identity=self.cluster_id << 16 | number,
            device=f"lxc{number}",
            namespace=self.stack.enter_context(namespace(f"{self.namespace}-p{number}")),
        )
        inner, outer = pod.namespace, self.namespace
        run("ip", "-n", outer, "link", "add", pod.device, "type", "veth", "peer", "name", "eth0", "netns", inner)
        run("ip", "-n", outer, "link", "set", pod.device, "up")
        run("ip", "-n", inner, "link", "set", "eth0", "up")
        run("ip", "-n", inner, "addr", "add", f"{ip}/32", "dev", "eth0")
        run("ip", "-n", inner, "route", "add", GATEWAY, "dev", "eth0", "scope", "link")
        run("ip", "-n", inner, "route", "add", "default", "via", GATEWAY)
        run("ip", "-n", outer, "route", "add", f"{ip}/32", "dev", pod.device)
        self.write(Map.ENDPOINTS, AddressKey(ip), EndpointValue(pod.ifindex, pod.identity))
        self.write(Map.IPCACHE, IpcacheKey.host(ip), IpcacheValue(pod.identity, "", self.cluster_id))
        with inside(outer):
            self.datapath.attach_pod(pod.ifindex)
        self.pods.append(pod)
        return pod

    def write(self, name: Map, key: object, value: object) -> None:
        self.datapath.maps[name].update(key.pack(), value.pack())  # type: ignore[attr-defined]

    def learn(self, other: "Node") -> None:
        """What the agent would write about a peer's node and its pods."""
        remote = IpcacheFlag.REMOTE_CLUSTER
        self.write(Map.NODES, AddressKey(other.ip), NodeValue(other.cluster_id))
        node_flags = remote | IpcacheFlag.NODE
        self.write(Map.IPCACHE, IpcacheKey.host(other.ip), IpcacheValue(6, "", other.cluster_id, node_flags))
        network = IpcacheKey(f"{other.pod_network}.0", 24)
        self.write(Map.IPCACHE, network, IpcacheValue(2, other.ip, other.cluster_id, remote | IpcacheFlag.CIDR))
        for pod in other.pods:
            value = IpcacheValue(pod.identity, other.ip, other.cluster_id, remote)
            self.write(Map.IPCACHE, IpcacheKey.host(pod.ip), value)
        route = ("route", "replace", f"{other.pod_network}.0/24", "dev", "cm_vxlan")
        run("ip", "-n", self.namespace, *route, "src", self.ip, "mtu", str(TUNNEL_MTU))

    def serve(self, address: str, port: int, proto: int, backends: list[tuple[str, int]], first_id: int = 1) -> None:
        """A service with these backends, in the order in which an agent writes one."""
        for slot, (backend, backend_port) in enumerate(backends, 1):
            number = first_id + slot - 1
            self.write(Map.BACKENDS, BackendKey(number), BackendValue(backend, backend_port, proto))
            self.write(Map.SERVICES, ServiceKey(address, port, proto, slot), ServiceValue(number))
        self.write(Map.SERVICES, ServiceKey(address, port, proto), ServiceValue(count=len(backends)))


@contextmanager
def two_nodes(directory: Path, attachment: Attachment = Attachment.AUTO) -> Iterator[tuple[Node, Node]]:
    """Node a (cluster 1, 10.250.0.1, pods 10.1.1.x), node b (cluster 2, 10.250.0.2, pods 10.2.1.x); two pods each."""
    with ExitStack() as stack:
        bpffs = stack.enter_context(bpf_file_system(directory / "bpf"))
        prefix = f"cmdp{os.getpid()}"
        nodes = [
            Node(
                stack.enter_context(namespace(f"{prefix}-{name}")),
                cluster_id,
                f"10.250.0.{cluster_id}",
                f"10.{cluster_id}.1",
                bpffs / name,
                stack,
                attachment,
            )
            for cluster_id, name in ((1, "a"), (2, "b"))
        ]
        a, b = nodes
        run(
            "ip", "-n", a.namespace, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.namespace
        )
        for node in nodes:
            run("ip", "-n", node.namespace, "addr", "add", f"{node.ip}/24", "dev", "eth0")
            run("ip", "-n", node.namespace, "link", "set", "eth0", "up")
            vxlan = ("link", "add", "cm_vxlan", "type", "vxlan", "external", "dstport", "8472")
            run("ip", "-n", node.namespace, *vxlan)
            run("ip", "-n", node.namespace, "link", "set", "cm_vxlan", "arp", "off", "mtu", "65000", "up")
            run("ip", "-n", node.namespace, "addr", "add", f"{GATEWAY}/32", "dev", "lo")
            sysctl(node.namespace, "net/ipv4/ip_forward", 1)
            node.start()
            node.add_pod(10)
            node.add_pod(11)
        a.learn(b)
        b.learn(a)
        yield a, b


def events(node: Node) -> list[Event]:
    """What waits in the node's event ring; consumes it."""
    ring_map = node.datapath.maps[Map.EVENTS]
    ring = RingBuffer(ring_map.fd, ring_map.info.max_entries)
    try:
        return [Event.unpack(raw) for raw in ring.read()]
    finally:
        ring.close()


def count(node: Node, code: Code) -> int:
    """Packets that met this fate on the node so far, in both directions."""
    return sum(metric.packets for (one, _), metric in node.datapath.counters().items() if one == code)
