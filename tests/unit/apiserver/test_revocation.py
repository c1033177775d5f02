"""Which connections are cut, and what the kernel's answers say of them."""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiserver.inet_diag import TcpSocket, answers, parse
from apiserver.revocation import foreign

NODE, LOOPBACK, PEER = "192.0.2.1", "127.0.0.1", "198.51.100.7"
OURS, THEIRS, SERVERS = 11, 12, 13  # inodes of the three processes' sockets


def end(local: str, port: int, remote: str, remote_port: int, inode: int = SERVERS) -> TcpSocket:
    family = socket.AF_INET if ip_address(local).version == 4 else socket.AF_INET6
    return TcpSocket(family, ip_address(local), port, ip_address(remote), remote_port, inode, b"")


def listener(address: str = NODE, port: int = 2379) -> TcpSocket:
    return end(address, port, "0.0.0.0", 0)


@pytest.mark.parametrize(
    ("listeners", "connection", "is_cut"),
    [
        ([listener()], end(NODE, 2379, PEER, 40000), True),
        ([listener("0.0.0.0")], end(NODE, 2379, PEER, 40000), True),
        ([listener("::")], end(NODE, 2379, PEER, 40000), True),
        ([listener()], end(NODE, 2379, PEER, 40000, 0), True),  # not accepted yet
        ([listener(port=2380)], end(NODE, 2380, PEER, 40000), False),  # members among themselves
        ([listener()], end(LOOPBACK, 2379, LOOPBACK, 40000), False),  # another server's, on another address
        ([listener()], end(NODE, 40000, PEER, 2379, THEIRS), False),  # a client of another cluster's etcd
        ([], end(NODE, 2379, PEER, 40000), False),
    ],
)
def test_connections_that_a_server_of_etcds_port_accepted_are_cut(
    listeners: list[TcpSocket], connection: TcpSocket, is_cut: bool
) -> None:
    assert (foreign([connection], listeners, {2379}, {OURS}) == [connection]) is is_cut


def test_our_own_connections_stay() -> None:
    mine, its_end = end(NODE, 40000, NODE, 2379, OURS), end(NODE, 2379, NODE, 40000)
    other, cut = end(NODE, 40001, NODE, 2379, THEIRS), end(NODE, 2379, NODE, 40001)
    assert foreign([mine, its_end, other, cut], [listener()], {2379}, {OURS}) == [cut]


def test_an_address_of_version_4_in_a_socket_of_version_6_is_the_same_address() -> None:
    message = diag(socket.AF_INET6, bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 1)), bytes(16))
    assert parse(message).local == IPv4Address(NODE)


def diag(family: int, local: bytes, remote: bytes, inode: int = 7) -> bytes:
    """An inet_diag_msg as linux/inet_diag.h has it."""
    ports = (2379).to_bytes(2, "big") + (40000).to_bytes(2, "big")
    key = ports + local.ljust(16, b"\0") + remote.ljust(16, b"\0") + bytes(4) + bytes(8)
    return bytes((family, 1, 0, 0)) + key + bytes(16) + inode.to_bytes(4, "little")


def test_a_message_of_the_kernel_is_read() -> None:
    found = parse(diag(socket.AF_INET, bytes((192, 0, 2, 1)), bytes((198, 51, 100, 7))) + b"attributes")
    assert found[:6] == (socket.AF_INET, ip_address(NODE), 2379, ip_address(PEER), 40000, 7)
    assert len(found.key) == 48


@given(st.binary(max_size=120))
def test_a_message_is_read_or_refused(message: bytes) -> None:
    try:
        found = parse(message)
    except ValueError:
        assert len(message) < 72 or message[0] not in (socket.AF_INET, socket.AF_INET6)
    else:
        assert isinstance(found.local, IPv4Address | IPv6Address)


def packet(kind: int, body: bytes) -> bytes:
    length = 16 + len(body)
    header = length.to_bytes(4, "little") + kind.to_bytes(2, "little") + bytes(10)
    return (header + body).ljust((length + 3) & ~3, b"\0")


def test_several_messages_in_one_datagram_come_one_by_one_until_the_last() -> None:
    data = packet(20, b"one..") + packet(20, b"two") + packet(3, bytes(4)) + packet(20, b"never")
    assert answers(data) == ([b"one..", b"two"], True)
    assert answers(packet(20, b"one")) == ([b"one"], False)
    assert answers(packet(2, bytes(4))) == ([], True)  # an acknowledgement


def test_a_refusal_is_the_kernels_error() -> None:
    with pytest.raises(PermissionError):
        answers(packet(2, (-1).to_bytes(4, "little", signed=True)))


@given(st.binary(max_size=200))
def test_datagrams_of_any_shape_end_in_messages_or_an_error(data: bytes) -> None:
    try:
        bodies, _ = answers(data)
    except (ValueError, OSError):
        return
    assert sum(map(len, bodies)) <= len(data)


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(1, 15))
def test_a_datagram_that_is_cut_short_is_refused_instead_of_read_wrongly(bodies: list[bytes], missing: int) -> None:
    data = b"".join(packet(20, body) for body in bodies) + packet(20, bytes(16))
    with pytest.raises(ValueError, match="netlink"):
        answers(data[:-missing])
