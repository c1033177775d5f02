"""Keys and values go into their bytes and come back, whatever they are."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.datapath.abi import (
    AddressKey,
    BackendValue,
    Code,
    Config,
    CtKey,
    CtValue,
    EndpointValue,
    Event,
    IpcacheFlag,
    IpcacheKey,
    IpcacheValue,
    NodeValue,
    ProbeValue,
    ServiceKey,
    ServiceValue,
    code_label,
)

v4 = st.integers(0, 2**32 - 1).map(lambda number: str(IPv4Address(number)))
v6 = st.integers(2**96, 2**128 - 1).map(lambda number: str(IPv6Address(number | 1)))
address = st.one_of(v4, v6)
known = address.filter(lambda text: text != "0.0.0.0")
u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
port = u16

records = st.one_of(
    st.builds(IpcacheKey, v4, st.integers(0, 32), u16),
    st.builds(IpcacheKey, v6, st.integers(0, 128), u16),
    st.builds(IpcacheValue, u32, st.one_of(known, st.just("")), u16, st.sampled_from([0, 8, 16, 40]), u8),
    st.builds(AddressKey, address),
    st.builds(EndpointValue, u32, u32, u32, st.binary(min_size=6, max_size=6)),
    st.builds(NodeValue, u32, u32),
    st.builds(ServiceKey, address, port, u8, u16),
    st.builds(ServiceValue, u32, u16, u16, u32),
    st.builds(BackendValue, address, port, u8, u16, u8),
    st.builds(CtKey, v4, v4, port, port, u8, u8),
    st.builds(CtKey, v6, v6, port, port, u8, u8),
    st.builds(CtValue, u64, known, port, u16, u32),
    st.builds(ProbeValue, u64, u64, u32, u32),
    st.builds(Config, u32, u32, u32, known, u32, u32, u32),
)


@given(records)
def test_a_record_comes_back_as_it_went(record: IpcacheKey) -> None:
    raw = record.pack()
    assert len(raw) == record.layout.size
    assert type(record).unpack(raw) == record


@given(st.binary(min_size=Event.layout.size, max_size=Event.layout.size))
def test_any_record_of_the_ring_decodes(raw: bytes) -> None:
    event = Event.unpack(raw)
    assert event.reason


def test_addresses_are_in_network_order_and_ipv4_comes_first() -> None:
    key = IpcacheKey("10.1.2.0", 24).pack()
    assert key[:4] == (32 + 24).to_bytes(4, "little")
    assert key[7:] == b"\x01\x0a\x01\x02\x00" + bytes(12)


def test_a_tunnel_sets_its_flag() -> None:
    assert IpcacheValue(5, "10.0.0.1").pack()[-1] == IpcacheFlag.HAS_TUNNEL
    assert IpcacheValue(5).pack()[-1] == 0


@pytest.mark.parametrize("text", ["10.1", "pod", "10.1.2.3/32", "1:2"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(OSError):
        AddressKey(text).pack()


def test_reasons_read_like_words_and_unknown_ones_keep_their_number() -> None:
    assert Code.DROP_SPOOFED_SOURCE.label == "spoofed-source"
    assert code_label(250) == "250"
