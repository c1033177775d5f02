"""Addresses and ranges as numbers."""

import ipaddress
import sys
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.wire.ranges import Range, masked_range, number_of, range_of, text_of
from clustermesh.wire.records import Cidr


@given(st.ip_addresses())
def test_an_address_keeps_its_number_and_its_spelling(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    found = number_of(str(address))
    assert found == (address.version, int(address))
    if getattr(address, "ipv4_mapped", None) is None:  # which Python spells in its own way
        assert text_of(*found) == str(address)


@pytest.mark.parametrize(
    "text",
    ["", "x", "1.2.3", "1.2.3.4.5", "01.2.3.4", "1.2.3.4 ", "1.2.3.4\0", "fe80::1%eth0", "::g", "\udcff", "１.2.3.4"],
)
def test_what_is_no_address_has_no_number(text: str) -> None:
    assert number_of(text) is None
    assert range_of(text) is None


@given(st.text(max_size=50))
def test_no_text_raises(text: str) -> None:
    number_of(text)


@given(st.ip_addresses(), st.integers(0, 128))
def test_a_mask_makes_the_same_range_as_the_library_does(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, length: int
) -> None:
    network = ipaddress.ip_network(f"{address}/{min(length, address.max_prefixlen)}", strict=False)
    made = Cidr.of(network).range()
    assert made == Range.of(network)
    assert made.network() == network
    assert made.prefix_length == network.prefixlen


@pytest.mark.parametrize(
    ("text", "mask", "what"),
    [
        ("10.1.0.0", bytes((255, 0, 255, 0)), "gaps"),
        ("10.1.0.1", bytes((255, 255, 255, 0)), "behind the mask"),
        ("10.1.0.0", b"\xff" * 16, "does not fit"),
        ("10.1.0.0", b"", "does not fit"),
        ("fd00::", b"\xff" * 4, "does not fit"),
        ("x", b"\xff" * 4, "no address"),
    ],
)
def test_what_makes_no_range_is_refused(text: str, mask: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        masked_range(text, mask)
    with pytest.raises(ValueError, match=what):
        Cidr(text, b64encode(mask).decode()).range()


networks = st.builds(
    lambda number, bits: Range(4, number >> bits << bits, bits),
    st.integers(10 << 24, (10 << 24) + 0xFFF),
    st.integers(0, 12),
)


@given(networks, networks)
def test_ranges_overlap_as_their_networks_do(one: Range, other: Range) -> None:
    assert one.overlaps(other) == one.network().overlaps(other.network())


def test_what_is_too_long_to_be_an_address_is_not_remembered() -> None:
    text = "1" * 100_000
    holders = sys.getrefcount(text)
    assert number_of(text) is None
    assert sys.getrefcount(text) == holders


def test_the_longest_spelling_of_an_address_is_read() -> None:
    text = "0000:0000:0000:0000:0000:ffff:192.168.100.228"
    assert number_of(text) == (6, 0xFFFF << 32 | 0xC0A864E4)
