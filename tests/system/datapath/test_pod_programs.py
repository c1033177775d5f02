"""The pod's programs, one packet at a time: what goes in, what comes out, and what it counts as."""

import socket
import struct
import time
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from nodeagent.datapath import bpf
from nodeagent.datapath.abi import (
    BackendKey,
    BackendState,
    BackendValue,
    Code,
    CtFlag,
    CtKey,
    CtKind,
    CtValue,
    Map,
    ServiceKey,
    ServiceValue,
)
from tests.system.datapath.lab import TUNNEL_MTU, Node, count, inside
from tests.system.datapath.packets import (
    ACK,
    ETHERNET,
    FIN,
    MF,
    MSS_1460,
    RST,
    SYN,
    checksum,
    datagram,
    echo,
    icmp,
    icmp_message,
    ipv4,
    quoted,
    tcp,
    udp,
)

NEXT, DROP, REDIRECT = -1, 2, 7
TCP, UDP = 6, 17
POD, NEIGHBOUR = "10.1.1.10", "10.1.1.11"
REMOTE, OTHER_REMOTE = "10.2.1.10", "10.2.1.11"
REMOTE_NODE, NODE = "10.250.0.2", "10.250.0.1"
VIP, EMPTY_VIP, HAIRPIN_VIP, LOCAL_VIP = "10.101.9.1", "10.101.9.2", "10.101.9.3", "10.101.9.4"
HAIRPIN = "169.254.42.1"
MSS_1410 = b"\x02\x04\x05\x82"
NOP = b"\x01"


@pytest.fixture(scope="module", autouse=True)
def services(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    for proto in (TCP, UDP):
        a.serve(VIP, 80, proto, [(REMOTE, 8080)], 1000 + proto)
        a.serve(LOCAL_VIP, 80, proto, [(NEIGHBOUR, 8080)], 1100 + proto)
        a.serve(HAIRPIN_VIP, 80, proto, [(POD, 8080)], 1200 + proto)
        a.serve(EMPTY_VIP, 80, proto, [])


class Run(NamedTuple):
    verdict: int
    packet: bytes
    mark: int


def run(node: Node, program: str, packet: bytes, *, mark: int = 0, ingress: int = 0, gso_size: int = 0) -> Run:
    """Run as if on the host side of the first pod's veth."""
    context = bytearray(192)
    struct.pack_into("I", context, 8, mark)
    struct.pack_into("II", context, 36, ingress, node.pods[0].ifindex)
    struct.pack_into("I", context, 176, gso_size)
    with inside(node.namespace):
        done = bpf.prog_test_run(node.datapath.programs[program], packet, bytes(context))
    return Run(done.verdict, done.packet, struct.unpack_from("I", done.context, 8)[0])


@dataclass(frozen=True)
class Case:
    what: str
    packet: bytes
    verdict: int
    code: Code
    after: bytes | None = None
    """None: unchanged."""


def frag_needed(packet: bytes) -> bytes:
    message = icmp_message(3, 4, struct.pack(">HH", 0, TUNNEL_MTU), quoted(packet))
    return ipv4(NODE, POD, 1, message, flags=0, ident=0)


LARGE_ECHO = echo(POD, REMOTE, size=1472)
LARGE_TO_SERVICE = udp((POD, 4000), (VIP, 80), bytes(1472))

FROM_POD = [
    Case("a pod of the same node is the CNI's", tcp((POD, 4000), (NEIGHBOUR, 80)), NEXT, Code.TO_STACK),
    Case("the outside world is the CNI's", udp((POD, 4000), ("192.0.2.1", 53)), NEXT, Code.TO_STACK),
    Case("a spoofed source is the CNI's as long as it stays in the cluster", echo(REMOTE, NODE), NEXT, Code.TO_STACK),
    Case("a remote pod is reached through the tunnel", tcp((POD, 4000), (REMOTE, 80)), REDIRECT, Code.TO_TUNNEL),
    Case("so is one known by its node's network alone", udp((POD, 4000), ("10.2.1.99", 9)), REDIRECT, Code.TO_TUNNEL),
    Case("a remote node is reached natively", tcp((POD, 4000), (REMOTE_NODE, 22)), NEXT, Code.TO_STACK),
    Case("a source that is no pod's is dropped", udp(("10.1.1.77", 1), (REMOTE, 9)), DROP, Code.DROP_SPOOFED_SOURCE),
    Case("another pod's source is dropped", tcp((NEIGHBOUR, 1), (REMOTE, 9)), DROP, Code.DROP_SPOOFED_SOURCE),
    Case("the node's own source is dropped", tcp((NODE, 1), (REMOTE, 9)), DROP, Code.DROP_SPOOFED_SOURCE),
    Case("a spoofed source chooses no backend", tcp((NEIGHBOUR, 1), (VIP, 80), SYN), DROP, Code.DROP_SPOOFED_SOURCE),
    Case(
        "a connection into the tunnel has its segments limited",
        tcp((POD, 4001), (REMOTE, 80), SYN, options=MSS_1460),
        REDIRECT,
        Code.TO_TUNNEL,
        tcp((POD, 4001), (REMOTE, 80), SYN, options=MSS_1410),
    ),
    Case(
        "so has one that is accepted, its option at an odd distance",
        tcp((POD, 80), (REMOTE, 4001), SYN | ACK, options=NOP + MSS_1460 + NOP * 3),
        REDIRECT,
        Code.TO_TUNNEL,
        tcp((POD, 80), (REMOTE, 4001), SYN | ACK, options=NOP + MSS_1410 + NOP * 3),
    ),
    Case(
        "smaller segments stay small",
        tcp((POD, 4001), (REMOTE, 80), SYN, options=b"\x02\x04\x02\x18"),
        REDIRECT,
        Code.TO_TUNNEL,
    ),
    Case(
        "a broken option is let alone",
        tcp((POD, 4001), (REMOTE, 80), SYN, options=b"\x08\x00\x00\x00"),
        REDIRECT,
        Code.TO_TUNNEL,
    ),
    Case("what must not be fragmented is refused", LARGE_ECHO, REDIRECT, Code.FRAG_NEEDED, frag_needed(LARGE_ECHO)),
    Case(
        "what may be fragmented is not",
        udp((POD, 4000), (REMOTE, 9), bytes(1472), ip_flags=0),
        REDIRECT,
        Code.TO_TUNNEL,
    ),
    Case("the largest that fits goes", echo(POD, REMOTE, size=TUNNEL_MTU - 28), REDIRECT, Code.TO_TUNNEL),
    Case(
        "the refusal quotes the service, not the backend",
        LARGE_TO_SERVICE,
        REDIRECT,
        Code.FRAG_NEEDED,
        frag_needed(LARGE_TO_SERVICE),
    ),
    Case(
        "a service leads to a remote backend",
        tcp((POD, 4002), (VIP, 80), SYN, options=MSS_1460),
        REDIRECT,
        Code.TO_TUNNEL,
        tcp((POD, 4002), (REMOTE, 8080), SYN, options=MSS_1410),
    ),
    Case(
        "a service leads to a local backend by the CNI",
        tcp((POD, 4003), (LOCAL_VIP, 80), SYN, options=MSS_1460),
        NEXT,
        Code.TO_STACK,
        tcp((POD, 4003), (NEIGHBOUR, 8080), SYN, options=MSS_1460),
    ),
    Case(
        "a datagram's checksum follows the translation",
        udp((POD, 4004), (VIP, 80), b"odd"),
        REDIRECT,
        Code.TO_TUNNEL,
        udp((POD, 4004), (REMOTE, 8080), b"odd"),
    ),
    Case(
        "a datagram without checksum stays without",
        udp((POD, 4005), (VIP, 80), checked=False),
        REDIRECT,
        Code.TO_TUNNEL,
        udp((POD, 4005), (REMOTE, 8080), checked=False),
    ),
    Case(
        "a pod reaches itself by its service, as a stranger",
        tcp((POD, 4006), (HAIRPIN_VIP, 80), SYN),
        REDIRECT,
        Code.HAIRPIN,
        tcp((HAIRPIN, 4006), (POD, 8080), SYN),
    ),
    Case("a service without backends drops", tcp((POD, 4), (EMPTY_VIP, 80), SYN), DROP, Code.DROP_NO_BACKEND),
    Case("another port of a service is no service", tcp((POD, 4), (VIP, 81), SYN), NEXT, Code.TO_STACK),
    Case("a header longer than the packet is dropped", ipv4(POD, REMOTE, TCP, bytes(8)), DROP, Code.DROP_MALFORMED),
    Case("a datagram cut short is dropped", ipv4(POD, REMOTE, UDP, bytes(4)), DROP, Code.DROP_MALFORMED),
]


@pytest.mark.parametrize("case", FROM_POD, ids=lambda case: case.what)
def test_what_a_pod_sends(nodes: tuple[Node, Node], case: Case) -> None:
    a, _ = nodes
    before = count(a, case.code)
    done = run(a, "from_pod", case.packet)
    assert (done.verdict, done.packet) == (case.verdict, case.after or case.packet)
    assert count(a, case.code) == before + 1
    assert (done.mark != 0) == (case.code is Code.TO_TUNNEL)


def test_ipv6_passes_untouched(nodes: tuple[Node, Node]) -> None:
    packet = ETHERNET + b"\x86\xdd" + b"\x60" + bytes(60)
    assert run(nodes[0], "from_pod", packet)[:2] == (NEXT, packet)
    assert run(nodes[0], "to_pod", packet)[:2] == (NEXT, packet)


def test_segments_of_an_offload_are_measured_not_their_sum(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    packet = tcp((POD, 4000), (REMOTE, 80), data=bytes(3000))
    before = count(a, Code.TO_TUNNEL)
    assert run(a, "from_pod", packet, gso_size=1398).packet == packet
    assert count(a, Code.TO_TUNNEL) == before + 1
    refused = run(a, "from_pod", packet, gso_size=1460)
    assert refused.packet == frag_needed(packet)


def test_the_backends_answer_comes_from_the_service(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    run(a, "from_pod", udp((POD, 4100), (LOCAL_VIP, 80)))
    answer = run(a, "to_pod", udp((NEIGHBOUR, 8080), (POD, 4100), b"answer"))
    assert answer[:2] == (NEXT, udp((LOCAL_VIP, 80), (POD, 4100), b"answer"))
    stranger = udp((NEIGHBOUR, 8081), (POD, 4100))
    assert run(a, "to_pod", stranger).packet == stranger


def test_a_hairpin_comes_back_from_the_service(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    run(a, "from_pod", tcp((POD, 4101), (HAIRPIN_VIP, 80), SYN))
    answer = run(a, "from_pod", tcp((POD, 8080), (HAIRPIN, 4101), SYN | ACK))
    assert answer[:2] == (REDIRECT, tcp((HAIRPIN_VIP, 80), (POD, 4101), SYN | ACK))


def test_later_fragments_follow_the_first_to_its_backend(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    data = bytes(range(200)) * 2
    first = datagram((POD, 4102), (VIP, 80), data[:392], total=data)
    expected = datagram((POD, 4102), (REMOTE, 8080), data[:392], total=data)
    assert run(a, "from_pod", ipv4(POD, VIP, UDP, first, flags=MF, ident=77)).packet == ipv4(
        POD, REMOTE, UDP, expected, flags=MF, ident=77
    )
    rest = data[392:]
    done = run(a, "from_pod", ipv4(POD, VIP, UDP, rest, flags=50, ident=77))
    assert done[:2] == (REDIRECT, ipv4(POD, REMOTE, UDP, rest, flags=50, ident=77))


def test_an_icmp_error_quotes_what_the_pod_sent(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    sent = udp((POD, 4103), (LOCAL_VIP, 80), b"x" * 40)
    arrived = run(a, "from_pod", sent).packet
    error = icmp(NEIGHBOUR, POD, 3, 3, bytes(4), quoted(arrived, 8))
    seen = run(a, "to_pod", error)
    assert seen.packet[42:62] == sent[14:34]
    assert seen.packet[62:66] == sent[34:38]
    assert checksum(seen.packet[34:]) == 0


def test_a_flow_that_a_remote_node_opened_is_answered_through_the_tunnel(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    answer = tcp((POD, 8080), (REMOTE_NODE, 55000), SYN | ACK)
    assert run(a, "from_pod", answer).verdict == NEXT
    key = CtKey(POD, REMOTE_NODE, 8080, 55000, TCP, CtKind.RETURN)
    a.write(Map.CT, key, CtValue(time.monotonic_ns(), REMOTE_NODE, 0))
    assert run(a, "from_pod", answer).verdict == REDIRECT


# --- which backend a flow keeps -----------------------------------------------------------------------------------

CHOICE_VIP = "10.101.9.9"
FIRST, SECOND = 1300, 1301


class Flow:
    """A client port of its own towards a service with two backends."""

    _next = 20000

    def __init__(self, node: Node, proto: int) -> None:
        Flow._next += 1
        self.node, self.proto, self.port = node, proto, Flow._next
        node.serve(CHOICE_VIP, 80, proto, [(REMOTE, 8080), (OTHER_REMOTE, 8080)], FIRST)

    def send(self, flags: int = ACK) -> str:
        """The backend that a packet goes to, or what became of it."""
        ends = (POD, self.port), (CHOICE_VIP, 80)
        done = run(self.node, "from_pod", tcp(*ends, flags) if self.proto == TCP else udp(*ends))
        return socket.inet_ntoa(done.packet[30:34]) if done.verdict == REDIRECT else "dropped"

    def remove(self, backend: str) -> None:
        number = FIRST if backend == REMOTE else SECOND
        self.node.datapath.maps[Map.BACKENDS].delete(BackendKey(number).pack())

    def entry(self, kind: CtKind, backend: str) -> tuple[CtKey, CtValue]:
        key = (
            CtKey(POD, CHOICE_VIP, self.port, 80, self.proto, kind)
            if kind is CtKind.SERVICE
            else CtKey(backend, POD, 8080, self.port, self.proto, kind)
        )
        raw = self.node.datapath.maps[Map.CT].lookup(key.pack())
        assert raw is not None
        return key, CtValue.unpack(raw)

    def age(self, kind: CtKind, backend: str, seconds: float) -> None:
        key, value = self.entry(kind, backend)
        seen = (time.monotonic_ns() - int(seconds * 1e9)) % 2**64  # the machine may be younger than that
        self.node.write(Map.CT, key, CtValue(seen, value.address, value.port, value.flags, value.backend_id))

    def answer(self, backend: str, flags: int = ACK) -> str:
        """The source that the pod sees of a backend's answer."""
        ends = (backend, 8080), (POD, self.port)
        done = run(self.node, "to_pod", tcp(*ends, flags) if self.proto == TCP else udp(*ends))
        return socket.inet_ntoa(done.packet[26:30])


@pytest.fixture
def tcp_flow(nodes: tuple[Node, Node]) -> Flow:
    return Flow(nodes[0], TCP)


@pytest.fixture
def udp_flow(nodes: tuple[Node, Node]) -> Flow:
    return Flow(nodes[0], UDP)


def other(backend: str) -> str:
    return OTHER_REMOTE if backend == REMOTE else REMOTE


def test_both_backends_are_chosen(nodes: tuple[Node, Node]) -> None:
    chosen = [Flow(nodes[0], TCP).send(SYN) for _ in range(60)]
    assert {REMOTE, OTHER_REMOTE} == set(chosen)


def test_a_connection_keeps_its_backend(tcp_flow: Flow) -> None:
    backend = tcp_flow.send(SYN)
    assert {tcp_flow.send(SYN) for _ in range(10)} == {backend}
    assert {tcp_flow.send() for _ in range(10)} == {backend}


def test_a_connection_outlives_the_removal_of_its_backend(tcp_flow: Flow) -> None:
    backend = tcp_flow.send(SYN)
    tcp_flow.send()
    tcp_flow.remove(backend)
    assert {tcp_flow.send(), tcp_flow.send(FIN | ACK)} == {backend}


def test_a_syn_towards_a_backend_that_is_gone_chooses_again(tcp_flow: Flow) -> None:
    backend = tcp_flow.send(SYN)
    tcp_flow.remove(backend)
    assert {tcp_flow.send(SYN) for _ in range(5)} <= {other(backend), "dropped"}


def test_a_syn_on_a_used_connection_opens_another(tcp_flow: Flow) -> None:
    chosen = set()
    for _ in range(40):
        chosen.add(tcp_flow.send(SYN))
        tcp_flow.send(RST)
    assert chosen == {REMOTE, OTHER_REMOTE}


def test_an_idle_connection_still_finds_its_backend(tcp_flow: Flow) -> None:
    backend = tcp_flow.send(SYN)
    tcp_flow.send()
    tcp_flow.age(CtKind.SERVICE, backend, 7 * 3600)
    assert tcp_flow.send() == backend


def test_datagrams_leave_a_backend_that_is_gone(udp_flow: Flow) -> None:
    backend = udp_flow.send()
    assert {udp_flow.send() for _ in range(10)} == {backend}
    udp_flow.remove(backend)
    assert {udp_flow.send() for _ in range(5)} <= {other(backend), "dropped"}


def test_datagrams_choose_again_after_a_minute(udp_flow: Flow) -> None:
    chosen = set()
    for _ in range(40):
        chosen.add(backend := udp_flow.send())
        udp_flow.age(CtKind.SERVICE, backend, 61)
    assert chosen == {REMOTE, OTHER_REMOTE}


def test_a_draining_backend_gets_nothing_new(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    old = Flow(a, TCP)
    while old.send(SYN) != REMOTE:
        old = Flow(a, TCP)
    a.write(Map.BACKENDS, BackendKey(FIRST), BackendValue(REMOTE, 8080, TCP, state=BackendState.DRAINING))
    assert old.send() == REMOTE
    for port in range(30000, 30020):
        done = run(a, "from_pod", tcp((POD, port), (CHOICE_VIP, 80), SYN))
        assert done.packet[30:34] != socket.inet_aton(REMOTE)


def test_an_ended_flow_does_not_disguise_a_direct_connection(tcp_flow: Flow) -> None:
    backend = tcp_flow.send(SYN)
    assert tcp_flow.answer(backend, SYN | ACK) == CHOICE_VIP
    tcp_flow.send(FIN | ACK)
    assert tcp_flow.answer(backend, FIN | ACK) == CHOICE_VIP
    assert tcp_flow.answer(backend) == CHOICE_VIP, "the last segments still belong to the service"
    assert tcp_flow.answer(backend, SYN | ACK) == backend, "accepted anew: opened to the backend itself"


def test_a_half_closed_connection_waits_for_its_answer(tcp_flow: Flow) -> None:
    backend = tcp_flow.send(SYN)
    tcp_flow.send(FIN | ACK)
    tcp_flow.age(CtKind.REPLY, backend, 60)
    assert tcp_flow.answer(backend) == CHOICE_VIP


def test_a_closed_flow_is_forgotten_after_ten_seconds(tcp_flow: Flow) -> None:
    backend = tcp_flow.send(SYN)
    tcp_flow.send(RST)
    _, value = tcp_flow.entry(CtKind.REPLY, backend)
    assert value.flags & CtFlag.RESET
    tcp_flow.age(CtKind.REPLY, backend, 11)
    assert tcp_flow.answer(backend) == backend


def test_what_the_pod_sends_keeps_the_way_back_open(udp_flow: Flow) -> None:
    backend = udp_flow.send()
    udp_flow.age(CtKind.SERVICE, backend, 50)
    udp_flow.age(CtKind.REPLY, backend, 100)
    udp_flow.send()
    assert udp_flow.answer(backend) == CHOICE_VIP


def test_two_services_with_one_backend_do_not_mix_up_answers(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    flow = Flow(a, TCP)
    backend = flow.send(SYN)
    twin = "10.101.9.10"
    for slot, number in ((1, FIRST), (2, SECOND)):
        a.write(Map.SERVICES, ServiceKey(twin, 80, TCP, slot), ServiceValue(number))
    a.write(Map.SERVICES, ServiceKey(twin, 80, TCP), ServiceValue(count=2))
    done = run(a, "from_pod", tcp((POD, flow.port), (twin, 80), SYN))
    # At random, four attempts: the same backend only once in 16.
    if socket.inet_ntoa(done.packet[30:34]) != backend:
        assert flow.answer(backend) == CHOICE_VIP
