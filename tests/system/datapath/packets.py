"""Frames by hand, with right checksums, so that expected packets are built like those that go in."""

import socket
import struct

ETHERNET = bytes(12)
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
DF, MF = 0x4000, 0x2000
MSS_1460 = b"\x02\x04\x05\xb4"


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def ipv4(source: str, destination: str, proto: int, payload: bytes, *, flags: int = DF, ident: int = 1) -> bytes:
    """An Ethernet frame. ``flags``: flags and fragment offset (in units of 8 bytes) of the header."""
    return ETHERNET + b"\x08\x00" + header(source, destination, proto, len(payload), flags, ident) + payload


def header(source: str, destination: str, proto: int, length: int, flags: int = DF, ident: int = 1) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    bare = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, ident, flags, 64, proto, 0) + addresses
    return bare[:10] + struct.pack(">H", checksum(bare)) + bare[12:]


def _pseudo(source: str, destination: str, proto: int, length: int) -> bytes:
    return socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack(">HH", proto, length)


def tcp(
    source: tuple[str, int],
    destination: tuple[str, int],
    flags: int = ACK,
    *,
    options: bytes = b"",
    data: bytes = b"",
    ip_flags: int = DF,
) -> bytes:
    offset = (20 + len(options)) // 4 << 4
    segment = struct.pack(">HHIIBBHHH", source[1], destination[1], 7, 9, offset, flags, 1000, 0, 0) + options + data
    check = checksum(_pseudo(source[0], destination[0], 6, len(segment)) + segment)
    return ipv4(source[0], destination[0], 6, segment[:16] + struct.pack(">H", check) + segment[18:], flags=ip_flags)


def udp(
    source: tuple[str, int],
    destination: tuple[str, int],
    data: bytes = b"query",
    *,
    checked: bool = True,
    ip_flags: int = DF,
) -> bytes:
    return ipv4(source[0], destination[0], 17, datagram(source, destination, data, checked=checked), flags=ip_flags)


def datagram(
    source: tuple[str, int], destination: tuple[str, int], data: bytes, *, checked: bool = True, total: bytes = b""
) -> bytes:
    """A UDP datagram. ``total``: all its data, if ``data`` is only the first fragment's."""
    whole = total or data
    bare = struct.pack(">HHHH", source[1], destination[1], 8 + len(whole), 0)
    check = checksum(_pseudo(source[0], destination[0], 17, 8 + len(whole)) + bare + whole) or 0xFFFF
    return bare[:6] + struct.pack(">H", check if checked else 0) + data


def icmp(source: str, destination: str, kind: int, code: int, rest: bytes, data: bytes, *, flags: int = DF) -> bytes:
    return ipv4(source, destination, 1, icmp_message(kind, code, rest, data), flags=flags)


def icmp_message(kind: int, code: int, rest: bytes, data: bytes) -> bytes:
    return struct.pack(">BBH", kind, code, checksum(struct.pack(">BBH", kind, code, 0) + rest + data)) + rest + data


def echo(source: str, destination: str, ident: int = 5, size: int = 56, *, reply: bool = False) -> bytes:
    return icmp(source, destination, 0 if reply else 8, 0, struct.pack(">HH", ident, 1), bytes(size))


def quoted(frame: bytes, payload: int = 20) -> bytes:
    """What an ICMP error quotes of a frame."""
    return frame[14 : 14 + 20 + payload]
