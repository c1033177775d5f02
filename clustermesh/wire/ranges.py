"""Addresses and ranges as plain numbers: every record is asked for its addresses, and an object each would be slow."""

import ipaddress
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SIZES = {4: 32, 6: 128}


class Range(NamedTuple):
    """A range of addresses. Its `host_bits` lowest bits are free; a single address has none."""

    version: int  # 4 or 6
    first: int
    host_bits: int

    @classmethod
    def of(cls, network: Network) -> "Range":
        return cls(network.version, int(network.network_address), network.max_prefixlen - network.prefixlen)

    @property
    def prefix_length(self) -> int:
        return _SIZES[self.version] - self.host_bits

    def network(self) -> Network:
        """The same as an object."""
        kind = ipaddress.IPv4Network if self.version == 4 else ipaddress.IPv6Network
        return kind((self.first, self.prefix_length))

    def overlaps(self, other: "Range") -> bool:
        bits = max(self.host_bits, other.host_bits)
        return self.version == other.version and self.first >> bits == other.first >> bits

    def __str__(self) -> str:
        return f"{text_of(self.version, self.first)}/{self.prefix_length}"


_LONGEST = 45  # characters of an address: six groups of IPv6 and an IPv4 address


def number_of(text: str) -> tuple[int, int] | None:
    """IP version and number of an address; None for a text that is no address."""
    return _number_of(text) if len(text) <= _LONGEST else None


# An address is asked for several times while its record is judged, and that of a node by all of its pods. A peer's text
# of any length is not remembered.
@lru_cache(maxsize=8192)
def _number_of(text: str) -> tuple[int, int] | None:
    try:
        if ":" in text:
            return 6, int.from_bytes(inet_pton(AF_INET6, text), "big")
        return 4, int.from_bytes(inet_pton(AF_INET, text), "big")
    except (OSError, ValueError):
        return None


def text_of(version: int, number: int) -> str:
    """The one spelling of an address that Cilium writes."""
    if version == 4:
        return inet_ntop(AF_INET, number.to_bytes(4, "big"))
    text = inet_ntop(AF_INET6, number.to_bytes(16, "big"))
    # The C library writes the last four bytes of some addresses as if they were IPv4.
    return str(ipaddress.IPv6Address(number)) if "." in text else text


def range_of(text: str) -> Range | None:
    """The range of a single address; None for a text that is no address."""
    found = number_of(text)
    return Range(*found, 0) if found is not None else None


def masked_range(text: str, mask: bytes) -> Range:
    """The range that an address and a mask of 4 or 16 bytes make; ValueError when they make none."""
    found = number_of(text)
    if found is None:
        raise ValueError(f"{text!r} is no address")
    version, first = found
    size = _SIZES[version]
    if len(mask) * 8 != size:
        raise ValueError(f"a mask of {len(mask)} bytes does not fit IPv{version}")
    free = (1 << size) - 1 - int.from_bytes(mask, "big")
    if free & (free + 1):
        raise ValueError("the mask has gaps")
    if first & free:
        raise ValueError("the address has bits behind the mask")
    return Range(version, first, free.bit_length())
