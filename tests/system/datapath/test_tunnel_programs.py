"""What a node lets out of the tunnel and into it.

A test run cannot give a packet tunnel metadata, so what arrives is sent as real VXLAN from the other node's namespace;
what leaves is tried packet by packet.
"""

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest

from nodeagent.datapath import abi, bpf
from nodeagent.datapath.abi import (
    AddressKey,
    Code,
    Config,
    Event,
    EventType,
    IpcacheFlag,
    IpcacheKey,
    IpcacheValue,
    Map,
    Point,
)
from tests.system.datapath.lab import TUNNEL_MTU, Node, count, events, inside, run, socket_in
from tests.system.datapath.packets import ETHERNET, MSS_1460, SYN, echo, ipv4, tcp, udp

NEXT, DROP = -1, 2
POD, REMOTE, NODE, REMOTE_NODE = "10.1.1.10", "10.2.1.10", "10.250.0.1", "10.250.0.2"
STRANGER, ELSEWHERE = "10.250.0.66", "10.250.0.3"
# Addresses that a Cilium node has among its pods', and one of a pod with a number of its own in every cluster.
INTERNAL, HEALTH, INGRESS, WELL_KNOWN = "10.2.1.1", "10.2.1.250", "10.2.1.251", "10.2.1.53"
UNANNOUNCED = "10.2.1.77"
REMOTE_IDENTITY = 2 << 16 | 10


@pytest.fixture(scope="module", autouse=True)
def more_addresses(nodes: tuple[Node, Node]) -> None:
    """Node b can also speak as a node that nobody announced, and as another node of its cluster."""
    a, b = nodes
    for address in (STRANGER, ELSEWHERE):
        run("ip", "-n", b.namespace, "addr", "add", f"{address}/24", "dev", "eth0")
    a.write(Map.NODES, AddressKey(ELSEWHERE), abi.NodeValue(2))
    third = IpcacheFlag.REMOTE_CLUSTER | IpcacheFlag.NODE
    a.write(Map.IPCACHE, IpcacheKey.host(ELSEWHERE), IpcacheValue(6, "", 2, third))
    for address, identity in ((INTERNAL, 6), (HEALTH, 4), (INGRESS, 8), (WELL_KNOWN, 104)):
        inner = IpcacheValue(identity, REMOTE_NODE, 2, IpcacheFlag.REMOTE_CLUSTER)
        a.write(Map.IPCACHE, IpcacheKey.host(address), inner)


@pytest.fixture
def arrivals(nodes: tuple[Node, Node]) -> Iterator[list[Event]]:
    yield events(nodes[0])


def tunnel(node: Node, vni: int, frame: bytes, outer: str = REMOTE_NODE) -> None:
    with socket_in(node.namespace, socket.SOCK_DGRAM) as sender:
        sender.bind((outer, 0))
        sender.sendto(struct.pack(">II", 0x08000000, vni << 8) + frame, (NODE, 8472))


def next_event(node: Node, point: Point = Point.FROM_TUNNEL, timeout: float = 3) -> Event:
    """The next thing that the tunnel's ingress said."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for event in events(node):
            if event.point == point:
                return event
        time.sleep(0.005)
    raise AssertionError("the tunnel program said nothing")


@dataclass(frozen=True)
class Arrival:
    what: str
    vni: int
    frame: bytes
    code: Code
    outer: str = REMOTE_NODE


PROBE = abi.PROBE_PAYLOAD.pack(abi.PROBE_MAGIC, abi.PROBE_REQUEST, 1, 2)
ARRIVALS = [
    Arrival("a remote pod", REMOTE_IDENTITY, udp((REMOTE, 5), (POD, 6)), Code.TO_POD),
    Arrival("a pod known by its node's network alone", 2 << 16 | 5, udp((UNANNOUNCED, 5), (POD, 6)), Code.TO_POD),
    Arrival("a remote node", 6, udp((REMOTE_NODE, 5), (POD, 6)), Code.TO_POD),
    Arrival("a remote pod to the node itself", REMOTE_IDENTITY, udp((REMOTE, 5), (NODE, 6)), Code.TO_NODE),
    Arrival("a tunnel endpoint that is no node", REMOTE_IDENTITY, echo(REMOTE, POD), Code.DROP_UNKNOWN_NODE, STRANGER),
    Arrival("another cluster's identity", 3 << 16 | 10, echo(REMOTE, POD), Code.DROP_FOREIGN_IDENTITY),
    Arrival("this cluster's own identity", 1 << 16 | 10, echo(REMOTE, POD), Code.DROP_FOREIGN_IDENTITY),
    Arrival("the identity world", 2, echo(REMOTE, POD), Code.DROP_FOREIGN_IDENTITY),
    Arrival("no identity", 0, echo(REMOTE, POD), Code.DROP_FOREIGN_IDENTITY),
    Arrival("a pod that calls itself a node", 6, echo(REMOTE, POD), Code.DROP_FOREIGN_IDENTITY),
    Arrival("a node that calls itself a pod", REMOTE_IDENTITY, echo(REMOTE_NODE, POD), Code.DROP_FOREIGN_IDENTITY),
    Arrival("a pod behind another node", REMOTE_IDENTITY, echo(REMOTE, POD), Code.DROP_UNKNOWN_SOURCE, ELSEWHERE),
    Arrival("an address nobody announced", REMOTE_IDENTITY, echo("10.9.9.9", POD), Code.DROP_UNKNOWN_SOURCE),
    Arrival("one of our own pods' addresses", REMOTE_IDENTITY, echo("10.1.1.11", POD), Code.DROP_UNKNOWN_SOURCE),
    Arrival("our own node's address", 6, echo(NODE, POD), Code.DROP_UNKNOWN_SOURCE),
    Arrival("a pod that is not here", REMOTE_IDENTITY, echo(REMOTE, "10.1.1.99"), Code.DROP_NO_ENDPOINT),
    Arrival("the outside world", REMOTE_IDENTITY, echo(REMOTE, "192.0.2.1"), Code.DROP_NO_ENDPOINT),
    Arrival("IPv6", REMOTE_IDENTITY, ETHERNET + b"\x86\xdd\x60" + bytes(60), Code.DROP_UNSUPPORTED),
    Arrival("ARP", REMOTE_IDENTITY, ETHERNET + b"\x08\x06" + bytes(46), Code.DROP_UNSUPPORTED),
    Arrival("a header cut short", REMOTE_IDENTITY, ipv4(REMOTE, POD, 6, bytes(8)), Code.DROP_MALFORMED),
    Arrival("a probe", 6, udp((REMOTE_NODE, 8473), (NODE, 8473), PROBE), Code.PROBE_ANSWERED),
    Arrival("a probe in another node's name", 6, udp((ELSEWHERE, 1), (NODE, 8473), PROBE), Code.DROP_UNEXPECTED_PROBE),
    Arrival("a pod's imitation of a probe", REMOTE_IDENTITY, udp((REMOTE, 1), (NODE, 8473), PROBE), Code.TO_NODE),
    Arrival("another use of the probes' port", 6, udp((REMOTE_NODE, 1), (NODE, 8473), b"x" * 30), Code.TO_NODE),
]


# What a Cilium node sends: under which number, from which of its addresses.
OF_CILIUM = [
    Arrival("a node's own traffic", 6, udp((INTERNAL, 5), (POD, 6)), Code.TO_POD),
    Arrival("a node that pings a pod", 6, echo(INTERNAL, POD), Code.TO_POD),
    Arrival("a node that pings this node", 6, echo(INTERNAL, NODE), Code.TO_NODE),
    Arrival("a node that answers a ping", 6, echo(INTERNAL, POD, reply=True), Code.TO_POD),
    Arrival("a node by its outer address", 6, tcp((REMOTE_NODE, 5), (POD, 6), SYN), Code.TO_POD),
    Arrival("a client of a node's port", 2, tcp((INTERNAL, 5), (POD, 6), SYN), Code.TO_POD),
    Arrival("the same on two stacks", 9, tcp((INTERNAL, 5), (POD, 6), SYN), Code.TO_POD),
    Arrival("the same by the outer address", 2, tcp((REMOTE_NODE, 5), (POD, 6), SYN), Code.TO_POD),
    Arrival("a health check of a pod", 4, echo(HEALTH, POD), Code.TO_POD),
    Arrival("a health check of this node", 4, tcp((HEALTH, 5), (NODE, 4240), SYN), Code.TO_NODE),
    Arrival("an ingress proxy", 8, tcp((INGRESS, 5), (POD, 6), SYN), Code.TO_POD),
    Arrival("a well-known pod", 104, udp((WELL_KNOWN, 53), (POD, 6)), Code.TO_POD),
    Arrival("a pod's request that went through its proxy", REMOTE_IDENTITY, echo(INTERNAL, POD), Code.TO_POD),
    Arrival("a pod that pings", REMOTE_IDENTITY, echo(REMOTE, POD), Code.TO_POD),
    Arrival("the host's number, which never travels", 1, echo(INTERNAL, POD), Code.DROP_FOREIGN_IDENTITY),
    Arrival("no number", 0, echo(INTERNAL, POD), Code.DROP_FOREIGN_IDENTITY),
    Arrival("a node that calls itself its health check", 4, echo(INTERNAL, POD), Code.DROP_FOREIGN_IDENTITY),
    Arrival("a pod that calls itself a health check", 4, echo(REMOTE, POD), Code.DROP_FOREIGN_IDENTITY),
    Arrival("a pod that calls itself well-known", 104, echo(REMOTE, POD), Code.DROP_FOREIGN_IDENTITY),
    Arrival("the world by an address nobody announced", 2, echo(UNANNOUNCED, POD), Code.DROP_FOREIGN_IDENTITY),
    Arrival("the world by a health address", 2, echo(HEALTH, POD), Code.DROP_FOREIGN_IDENTITY),
    Arrival("a node by an address nobody announced", 6, echo(UNANNOUNCED, POD), Code.DROP_FOREIGN_IDENTITY),
    Arrival("a node's address behind another node", 6, echo(INTERNAL, POD), Code.DROP_UNKNOWN_SOURCE, ELSEWHERE),
    Arrival("a health check behind another node", 4, echo(HEALTH, POD), Code.DROP_UNKNOWN_SOURCE, ELSEWHERE),
]


@pytest.mark.parametrize("case", [*ARRIVALS, *OF_CILIUM], ids=lambda case: case.what)
def test_what_arrives(nodes: tuple[Node, Node], arrivals: list[Event], case: Arrival) -> None:
    a, b = nodes
    before = count(a, case.code)
    tunnel(b, case.vni, case.frame, case.outer)
    event = next_event(a)
    assert event.reason == case.code.label
    assert event.type == (EventType.DROP if case.code.is_drop else EventType.TRACE)
    assert (event.identity, event.outer) == (case.vni, case.outer)
    assert count(a, case.code) == before + 1


@pytest.mark.parametrize(("vni", "source"), [(6, INTERNAL), (4, HEALTH), (REMOTE_IDENTITY, REMOTE)])
@pytest.mark.parametrize("destination", [POD, NODE])
def test_a_frame_for_the_senders_own_veth_is_delivered(
    nodes: tuple[Node, Node], vni: int, source: str, destination: str
) -> None:
    """Cilium leaves the inner Ethernet addresses as they were on its side."""
    a, b = nodes
    namespace = a.namespace if destination == NODE else a.pods[0].namespace
    with socket_in(namespace, socket.SOCK_DGRAM) as receiver:
        receiver.bind((destination, 7000))
        inner = udp((source, 5), (destination, 7000), source.encode())
        tunnel(b, vni, bytes.fromhex("0e1122334455") + bytes.fromhex("ca0011223344") + inner[12:])
        assert receiver.recvfrom(100) == (source.encode(), (source, 5))


@pytest.mark.parametrize(("cluster_id", "shift", "most"), [(255, 16, 65535), (300, 15, 32767), (511, 15, 32767)])
def test_clusters_up_to_the_last_number_are_told_apart(
    nodes: tuple[Node, Node], cluster_id: int, shift: int, most: int
) -> None:
    """With 511 clusters the cluster's number has nine bits: in identities, and in every map."""
    a, b = nodes
    far, remote = "10.9.1.5", IpcacheFlag.REMOTE_CLUSTER
    config = Config.unpack(a.datapath.maps[Map.CONFIG].lookup(bytes(4)) or b"")
    a.datapath.configure(msgspec.structs.replace(config, identity_shift=shift))
    a.write(Map.NODES, AddressKey(ELSEWHERE), abi.NodeValue(cluster_id))
    a.write(Map.IPCACHE, IpcacheKey.host(far), IpcacheValue(cluster_id << shift | most, ELSEWHERE, cluster_id, remote))
    try:
        for identity, code in (
            (cluster_id << shift | most, Code.TO_POD),
            (cluster_id << shift, Code.TO_POD),
            ((cluster_id - 1) << shift | most, Code.DROP_FOREIGN_IDENTITY),
            ((cluster_id & 255) << 16 | 7 if shift == 15 else 7 << 16, Code.DROP_FOREIGN_IDENTITY),
        ):
            events(a)
            tunnel(b, identity, udp((far, 5), (POD, 6)), ELSEWHERE)
            assert (identity, next_event(a).reason) == (identity, code.label)
    finally:
        a.datapath.configure(config)
        a.write(Map.NODES, AddressKey(ELSEWHERE), abi.NodeValue(2))


def test_a_drop_tells_which_packet_it_was(nodes: tuple[Node, Node], arrivals: list[Event]) -> None:
    a, b = nodes
    frame = udp((REMOTE, 1234), ("10.1.1.99", 5678))
    tunnel(b, REMOTE_IDENTITY, frame)
    event = next_event(a)
    assert (event.source, event.sport, event.destination, event.dport) == (REMOTE, 1234, "10.1.1.99", 5678)
    assert (event.proto, event.length) == (17, len(frame))
    assert abs(event.time - time.monotonic_ns()) < 60e9


# --- what the node itself sends -----------------------------------------------------------------------------------


def leave(node: Node, packet: bytes, *, ingress: int = 0, mark: int = 0) -> tuple[int, bytes, int]:
    """Verdict, packet and mark on the egress of the tunnel device."""
    context = bytearray(192)
    struct.pack_into("I", context, 8, mark)
    with inside(node.namespace):
        device = socket.if_nametoindex("cm_vxlan")
        struct.pack_into("II", context, 36, ingress, device)
        done = bpf.prog_test_run(node.datapath.programs["to_tunnel"], packet, bytes(context))
    return done.verdict, done.packet, struct.unpack_from("I", done.context, 8)[0]


def test_what_a_pod_program_sent_passes_at_once(nodes: tuple[Node, Node]) -> None:
    packet = echo("192.0.2.1", "192.0.2.2")
    assert leave(nodes[0], packet, mark=0x636D0001) == (NEXT, packet, 0)


@dataclass(frozen=True)
class Departure:
    what: str
    packet: bytes
    code: Code
    through: int = 0
    """Which pod's device it came in by; 0: it began on the node."""


DEPARTURES = [
    Departure("the node to a remote pod", udp((NODE, 5), (REMOTE, 6)), Code.TO_TUNNEL),
    Departure("a pod whose device has no program yet", udp((POD, 5), (REMOTE, 6)), Code.TO_TUNNEL, 1),
    Departure("a pod in its neighbour's name", udp(("10.1.1.11", 5), (REMOTE, 6)), Code.DROP_SPOOFED_SOURCE, 1),
    Departure("a pod in its node's name", udp((NODE, 5), (REMOTE, 6)), Code.DROP_SPOOFED_SOURCE, 1),
    Departure("somebody else", udp(("192.0.2.1", 5), (REMOTE, 6)), Code.DROP_SPOOFED_SOURCE),
    Departure("the node to nowhere", udp((NODE, 5), ("192.0.2.1", 6)), Code.DROP_NO_ROUTE),
    Departure("the node to a remote node", udp((NODE, 5), (REMOTE_NODE, 6)), Code.DROP_NO_ROUTE),
    Departure("a probe to a remote node", udp((NODE, 8473), (REMOTE_NODE, 8473), PROBE), Code.TO_TUNNEL),
    Departure("a probe to no node", udp((NODE, 8473), (STRANGER, 8473), PROBE), Code.DROP_NO_ROUTE),
    Departure("IPv6", ETHERNET + b"\x86\xdd\x60" + bytes(60), Code.DROP_UNSUPPORTED),
]


@pytest.mark.parametrize("case", DEPARTURES, ids=lambda case: case.what)
def test_what_leaves(nodes: tuple[Node, Node], case: Departure) -> None:
    a, _ = nodes
    before = count(a, case.code)
    ingress = a.pods[case.through - 1].ifindex if case.through else 0
    verdict, packet, _ = leave(a, case.packet, ingress=ingress)
    assert verdict == (DROP if case.code.is_drop else NEXT)
    assert packet == case.packet
    assert count(a, case.code) == before + 1


def test_the_nodes_own_connections_have_their_segments_limited(nodes: tuple[Node, Node]) -> None:
    mss = struct.pack(">BBH", 2, 4, TUNNEL_MTU - 40)
    _, packet, _ = leave(nodes[0], tcp((NODE, 5), (REMOTE, 80), SYN, options=MSS_1460))
    assert packet == tcp((NODE, 5), (REMOTE, 80), SYN, options=mss)
