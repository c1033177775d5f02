"""Real traffic between the pods of two nodes."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from nodeagent.datapath import abi
from nodeagent.datapath.abi import AddressKey, Code, Config, ConfigFlag, Map, Point, ProbeValue
from nodeagent.datapath.attach import Attachment
from tests.system.datapath.lab import (
    TUNNEL_MTU,
    Node,
    Pod,
    count,
    events,
    ifindex,
    inside,
    listen_in,
    socket_in,
    two_nodes,
)
from tests.system.datapath.packets import icmp_message, udp

TCP, UDP = 6, 17
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_PMTUDISC_DONT = 10, 2, 0


@pytest.fixture(scope="module", params=[Attachment.TCX, Attachment.CLSACT])
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    with two_nodes(tmp_path_factory.mktemp("nodes"), request.param) as pair:
        assert pair[0].datapath.attachment == request.param
        yield pair


def ping(pod: Pod, address: str, size: int = 56, discover: int = IP_PMTUDISC_DO) -> tuple[str, int, int, int]:
    """Source, type, code and the "rest of header"'s second half of the answer."""
    with pod.open_socket(socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, discover)
        raw.sendto(icmp_message(8, 0, struct.pack(">HH", 77, 1), bytes(size)), (address, 0))
        while True:
            answer, source = raw.recvfrom(65535)
            if answer[20] != 8:
                return source[0], answer[20], answer[21], struct.unpack(">H", answer[26:28])[0]


def connect(
    client: socket.socket, address: tuple[str, int], listener: socket.socket
) -> tuple[socket.socket, tuple[str, int]]:
    client.connect(address)
    server, peer = listener.accept()
    server.settimeout(5)
    return server, peer


def transfer(sender: socket.socket, receiver: socket.socket, size: int) -> int:
    """Bytes that arrived of ``size`` sent."""

    def send() -> None:
        sender.sendall(bytes(size))
        sender.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    received = 0
    while data := receiver.recv(1 << 20):
        received += len(data)
    thread.join()
    return received


def test_pods_ping_each_other_across_nodes(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    for one, two in ((a.pods[0], b.pods[1]), (b.pods[0], a.pods[1])):
        assert ping(one, two.ip)[:3] == (two.ip, 0, 0)


def test_the_receiver_sees_the_senders_identity(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    sender, receiver = a.pods[1], b.pods[0]
    events(b)
    ping(sender, receiver.ip)
    seen = [event for event in events(b) if event.point == Point.FROM_TUNNEL]
    assert [(event.code, event.identity, event.source, event.outer) for event in seen] == [
        (Code.TO_POD, sender.identity, sender.ip, a.ip)
    ]


@pytest.mark.parametrize("direction", [(0, 1), (1, 0)], ids=["a to b", "b to a"])
def test_a_large_transfer_arrives_and_keeps_the_clients_address(
    nodes: tuple[Node, Node], direction: tuple[int, int]
) -> None:
    client_pod, server_pod = nodes[direction[0]].pods[0], nodes[direction[1]].pods[0]
    with server_pod.listen(8000) as listener, client_pod.open_socket() as client:
        server, peer = connect(client, (server_pod.ip, 8000), listener)
        with server:
            assert peer[0] == client_pod.ip
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= TUNNEL_MTU - 40
            assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= TUNNEL_MTU - 40
            assert transfer(client, server, 20 << 20) == 20 << 20


def test_a_ping_that_fills_the_pods_mtu_is_told_the_tunnels(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    _, kind, code, mtu = ping(a.pods[0], b.pods[0].ip, 1472)
    assert (kind, code, mtu) == (3, 4, TUNNEL_MTU)


def test_a_ping_that_may_be_fragmented_gets_through(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    assert ping(a.pods[1], b.pods[1].ip, 4000, IP_PMTUDISC_DONT)[:3] == (b.pods[1].ip, 0, 0)


@pytest.mark.parametrize("number", [10, 11], ids=["in itself", "on its own node"])
def test_a_service_leads_to_a_backend_nearby(nodes: tuple[Node, Node], number: int) -> None:
    a, _ = nodes
    client_pod = a.pods[0]
    backend = next(pod for pod in a.pods if pod.ip.endswith(f".{number}"))
    vip = f"10.101.1.{number}"
    a.serve(vip, 80, TCP, [(backend.ip, 8001)], 100 + number)
    with backend.listen(8001) as listener, client_pod.open_socket() as client:
        server, peer = connect(client, (vip, 80), listener)
        with server:
            assert peer[0] == ("169.254.42.1" if backend is client_pod else client_pod.ip)
            assert client.getpeername() == (vip, 80)
            server.sendall(b"from the backend")
            assert client.recv(100) == b"from the backend"
            assert transfer(client, server, 1 << 20) == 1 << 20


def test_a_service_leads_to_local_and_remote_backends(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    vip, backends = "10.101.1.3", (a.pods[1], b.pods[0])
    a.serve(vip, 80, TCP, [(pod.ip, 8002) for pod in backends], 200)
    with ExitStack() as stack:
        stop = threading.Event()
        for pod in backends:
            listener = stack.enter_context(pod.listen(8002))
            threading.Thread(target=_greet, args=(listener, pod.ip.encode(), stop), daemon=True).start()
        stack.callback(stop.set)
        answers = []
        for _ in range(40):
            with a.pods[0].open_socket() as client:
                client.connect((vip, 80))
                answers.append(client.recv(100).decode())
        assert set(answers) == {pod.ip for pod in backends}


def _greet(listener: socket.socket, greeting: bytes, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            server, _ = listener.accept()
        except OSError:
            return
        with server:
            server.sendall(greeting)


def test_datagrams_to_a_service_are_answered_by_it(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    vip = "10.101.1.4"
    a.serve(vip, 53, UDP, [(b.pods[1].ip, 5353)], 300)
    with b.pods[1].open_socket(socket.SOCK_DGRAM) as server, a.pods[0].open_socket(socket.SOCK_DGRAM) as client:
        server.bind(("0.0.0.0", 5353))
        client.connect((vip, 53))
        for size in (5, 1400, 3000):  # the last in fragments
            client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
            client.send(b"q" * size)
            question, peer = server.recvfrom(65535)
            assert (peer[0], len(question)) == (a.pods[0].ip, size)
            server.sendto(b"a" * size, peer)
            assert client.recv(65535) == b"a" * size


def test_a_refused_datagram_to_a_service_is_reported_to_its_sender(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    vip = "10.101.1.5"
    a.serve(vip, 53, UDP, [(b.pods[1].ip, 9)], 310)
    with a.pods[0].open_socket(socket.SOCK_DGRAM) as client:
        client.connect((vip, 53))
        client.send(b"anyone?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(10)


def test_a_service_without_backends_drops_with_a_reason(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    vip = "10.101.1.6"
    a.serve(vip, 53, UDP, [])
    events(a)
    with a.pods[0].open_socket(socket.SOCK_DGRAM) as client:
        client.sendto(b"x", (vip, 53))
    drops = [event for event in events(a) if Code(event.code).is_drop]
    assert [(event.reason, event.destination, event.identity) for event in drops] == [
        ("no-backend", vip, a.pods[0].identity)
    ]


def test_a_pod_cannot_borrow_an_address(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    thief, victim, target = a.pods[0], a.pods[1], b.pods[0]
    before = count(a, Code.DROP_SPOOFED_SOURCE)
    frame = udp((victim.ip, 1), (target.ip, 2))
    with thief.open_socket(socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(frame[14:], (target.ip, 0))
    assert count(a, Code.DROP_SPOOFED_SOURCE) == before + 1


def test_the_nodes_own_process_reaches_a_remote_pod(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    pod = b.pods[0]
    events(b)
    with pod.listen(8003) as listener, socket_in(a.namespace, socket.SOCK_STREAM) as client:
        server, peer = connect(client, (pod.ip, 8003), listener)
        with server:
            assert peer[0] == a.ip
            assert transfer(client, server, 1 << 20) == 1 << 20
    identities = {event.identity for event in events(b) if event.point == Point.FROM_TUNNEL}
    assert identities == {6}


def test_a_probe_comes_back_without_any_process(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    key = AddressKey(b.ip).pack()
    sent = time.monotonic_ns()
    payload = abi.PROBE_PAYLOAD.pack(abi.PROBE_MAGIC, abi.PROBE_REQUEST, 42, sent)
    frame = udp((a.ip, abi.PROBE_PORT), (b.ip, abi.PROBE_PORT), payload)
    with inside(a.namespace):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with closing(raw):
        raw.bind(("cm_vxlan", 0x0800))
        raw.send(frame)
    deadline = time.monotonic() + 3
    while (value := a.datapath.maps[Map.PROBES].lookup(key)) is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert value is not None
    probe = ProbeValue.unpack(value)
    assert (probe.seq, probe.sent) == (42, sent)
    assert probe.rtt_us == (probe.received - sent) // 1000
    assert probe.rtt_us < 1_000_000


def test_without_configuration_pods_are_left_to_the_cni(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    tunnel = ifindex(a.namespace, "cm_vxlan")
    try:
        a.datapath.configure(Config(0, tunnel, TUNNEL_MTU, a.ip))
        assert ping(a.pods[0], a.pods[1].ip)[:3] == (a.pods[1].ip, 0, 0)
        before = count(a, Code.DROP_NOT_CONFIGURED)
        with b.pods[0].open_socket(socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", (a.pods[0].ip, 9))
        assert count(a, Code.DROP_NOT_CONFIGURED) == before + 1
    finally:
        a.datapath.configure(Config(1, tunnel, TUNNEL_MTU, a.ip, flags=ConfigFlag.TRACE))


def test_a_nodes_own_address_is_reached_natively(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    before = count(a, Code.TO_TUNNEL)
    with listen_in(b.namespace, 8004), a.pods[0].open_socket(socket.SOCK_DGRAM) as client:
        client.sendto(b"x", (b.ip, 8004))
    assert count(a, Code.TO_TUNNEL) == before


def test_a_full_event_ring_costs_events_and_says_how_many(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    with b.pods[0].open_socket(socket.SOCK_DGRAM), a.pods[0].open_socket(socket.SOCK_DGRAM) as client:
        events(a)
        before = count(a, Code.TO_TUNNEL), count(a, Code.EVENT_LOST)
        for _ in range(4000):
            client.sendto(b"x", (b.pods[0].ip, 9))
        sent, lost = count(a, Code.TO_TUNNEL) - before[0], count(a, Code.EVENT_LOST) - before[1]
        kept = sum(event.point == Point.FROM_POD for event in events(a))
        assert sent == 4000
        assert 0 < lost <= 8000
        assert kept + lost >= sent
