"""TCP connections of this network namespace, listed and destroyed by the kernel (inet_diag over netlink).

Formats: linux/sock_diag.h, linux/inet_diag.h. Listing needs no privilege, destroying CAP_NET_ADMIN and a kernel with
CONFIG_INET_DIAG_DESTROY.
"""

import os
import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_ESTABLISHED, _LISTEN = 1, 10

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_REQUEST_HEAD = struct.Struct("=BBBxI")  # family, protocol, extensions, states
_SOCKET_ID = struct.Struct("!HH16s16s4s8s")  # ports, addresses, then interface and cookie as the kernel has them
_MESSAGE_HEAD = struct.Struct("=BBBB")  # family, state, timer, retransmissions
_MESSAGE_TAIL = struct.Struct("=IIIII")  # expires, receive queue, send queue, uid, inode
_MESSAGE_SIZE = _MESSAGE_HEAD.size + _SOCKET_ID.size + _MESSAGE_TAIL.size
_ANY_SOCKET = _SOCKET_ID.pack(0, 0, bytes(16), bytes(16), bytes(4), b"\xff" * 8)


class TcpSocket(NamedTuple):
    """One end of a connection, or a listener; `key` is what the kernel knows it by."""

    family: int
    local: IPv4Address | IPv6Address
    local_port: int
    remote: IPv4Address | IPv6Address
    remote_port: int
    inode: int  # 0 before somebody accepts it
    key: bytes


def established() -> list[TcpSocket]:
    """Both families. OSError."""
    return _list(_ESTABLISHED)


def listening() -> list[TcpSocket]:
    """Both families. OSError."""
    return _list(_LISTEN)


def destroy(target: TcpSocket) -> None:
    """Reset a connection, for both ends and at once; one that is gone already is fine.

    PermissionError without CAP_NET_ADMIN, another OSError (EOPNOTSUPP) if the kernel cannot do it.
    """
    body = _REQUEST_HEAD.pack(target.family, socket.IPPROTO_TCP, 0, 1 << _ESTABLISHED) + target.key
    try:
        for _ in _exchange(_SOCK_DESTROY, _REQUEST | _ACK, body):
            pass
    except FileNotFoundError:
        return


def own_inodes() -> set[int]:
    """Of this process' sockets."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
        except OSError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
    return found


def _list(state: int) -> list[TcpSocket]:
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        body = _REQUEST_HEAD.pack(family, socket.IPPROTO_TCP, 0, 1 << state) + _ANY_SOCKET
        found += [parse(message) for message in _exchange(_SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, body)]
    return found


def parse(message: bytes) -> TcpSocket:
    """An inet_diag_msg; ValueError for anything else."""
    if len(message) < _MESSAGE_SIZE or message[0] not in (socket.AF_INET, socket.AF_INET6):
        raise ValueError(f"netlink: no socket of TCP: {message[:80].hex()}")
    family = message[0]
    key = message[_MESSAGE_HEAD.size : _MESSAGE_HEAD.size + _SOCKET_ID.size]
    local_port, remote_port, local, remote, _, _ = _SOCKET_ID.unpack(key)
    inode = _MESSAGE_TAIL.unpack_from(message, _MESSAGE_HEAD.size + _SOCKET_ID.size)[4]
    return TcpSocket(family, _address(family, local), local_port, _address(family, remote), remote_port, inode, key)


def _address(family: int, raw: bytes) -> IPv4Address | IPv6Address:
    if family == socket.AF_INET:
        return ip_address(raw[:4])
    address = IPv6Address(raw)
    return address.ipv4_mapped or address


def _exchange(kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """Bodies of the answers to one request; OSError with the kernel's number when it refuses."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(5.0)  # it answers at once or there is something wrong with it
        kernel.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        last = False
        while not last:
            bodies, last = answers(kernel.recv(1 << 18))
            yield from bodies


def answers(datagram: bytes) -> tuple[list[bytes], bool]:
    """Bodies of a datagram's messages, and whether the answer ends with it.

    ValueError if it is malformed, OSError with the kernel's number if it is a refusal.
    """
    bodies: list[bytes] = []
    at = 0
    while at < len(datagram):
        if len(datagram) - at < _HEADER.size:
            raise ValueError("netlink: half a header")
        length, kind, _, _, _ = _HEADER.unpack_from(datagram, at)
        body = datagram[at + _HEADER.size : at + length]
        if not _HEADER.size <= length <= len(datagram) - at:
            raise ValueError(f"netlink: a message of {length} bytes in {len(datagram) - at}")
        if kind == _DONE:
            return bodies, True
        if kind == _ERROR:
            if len(body) < 4:
                raise ValueError("netlink: an error without its number")
            number = -int.from_bytes(body[:4], sys.byteorder, signed=True)
            if number:
                raise OSError(number, os.strerror(number))
            return bodies, True
        bodies.append(body)
        at += (length + 3) & ~3
    return bodies, False
