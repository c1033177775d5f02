"""Endpoint slices: what Go writes is read, and what a hostile peer compresses costs little."""

import contextlib
import tracemalloc
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.wire import endpoint_slices
from clustermesh.wire.endpoint_slices import (
    MAX_ADDRESSES,
    MAX_BYTES,
    MAX_ENDPOINTS,
    MAX_FIELDS,
    MAX_ZONES,
    ClusterEndpointSlice,
    SliceEndpoint,
    SlicePort,
    decode,
    encode,
    encode_message,
)
from clustermesh.wire.errors import RecordError
from tests.unit.wire.strategies import ENDPOINT_SLICES, damaged

WEB = ClusterEndpointSlice(
    cluster="green",
    cluster_id=2,
    namespace="shop",
    name="web-x7k2",
    address_type="IPv4",
    labels={"kubernetes.io/service-name": "web"},
    endpoints=(
        SliceEndpoint(addresses=("10.2.1.5",), ready=True, serving=True, terminating=False, node_name="green-1"),
        SliceEndpoint(addresses=("10.2.1.6",), ready=False),
    ),
    ports=(SlicePort(name="http", protocol="TCP", port=8080),),
)


def varint(value: int) -> bytes:
    raw = b""
    while value > 0x7F:
        raw += bytes([value & 0x7F | 0x80])
        value >>= 7
    return raw + bytes([value])


def field(number: int, content: bytes | int) -> bytes:
    """One field as protobuf writes it."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def frame(message: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(message)


def test_the_message_is_written_field_by_field_as_gos_encoder_does() -> None:
    conditions = field(1, 1) + field(2, 1) + field(3, 0)
    assert encode_message(WEB) == (
        field(1, b"green")
        + field(2, 2)
        + field(3, b"shop")
        + field(4, b"web-x7k2")
        + field(5, field(1, b"kubernetes.io/service-name") + field(2, b"web"))
        + field(7, b"IPv4")
        + field(8, field(1, b"10.2.1.5") + field(2, conditions) + field(6, b"green-1"))
        + field(8, field(1, b"10.2.1.6") + field(2, field(1, 0)))
        + field(9, field(1, b"http") + field(2, b"TCP") + field(3, 8080))
    )


def test_fields_that_are_unknown_are_passed_over() -> None:
    endpoint = field(1, b"10.2.1.9") + field(4, b"targetRef") + field(99, 7) + field(100, b"x")
    later = encode_message(WEB) + field(77, b"later") + varint(78 << 3 | 1) + bytes(8) + varint(79 << 3 | 5) + bytes(4)
    found = decode(frame(later + field(8, endpoint)))
    assert found == msgspec.structs.replace(WEB, endpoints=(*WEB.endpoints, SliceEndpoint(addresses=("10.2.1.9",))))


@pytest.mark.parametrize(
    "options", [{"level": 1}, {"level": 19}, {"write_content_size": False}, {"write_checksum": True}]
)
def test_any_frame_of_the_compressor_is_read(options: dict[str, Any]) -> None:
    assert decode(frame(encode_message(WEB), **options)) == WEB


def test_a_value_cut_off_anywhere_is_refused() -> None:
    raw = encode(WEB)
    for length in range(len(raw)):
        with pytest.raises(RecordError):
            decode(raw[:length])


def test_a_message_cut_off_anywhere_is_a_slice_or_refused() -> None:
    message = encode_message(WEB)
    for length in range(len(message)):
        with contextlib.suppress(RecordError):
            endpoint_slices.decode_message(message[:length])


@given(st.binary())
def test_any_bytes(raw: bytes) -> None:
    for candidate in (raw, frame(raw)):
        with contextlib.suppress(RecordError):
            decode(candidate)


@given(data=st.data())
def test_damaged_bytes(data: st.DataObject) -> None:
    record = data.draw(ENDPOINT_SLICES)
    for raw in (data.draw(damaged(encode(record))), frame(data.draw(damaged(encode_message(record))))):
        with contextlib.suppress(RecordError):
            decode(raw)


HEAD = encode_message(msgspec.structs.replace(WEB, endpoints=()))
ZEROS = frame(bytes(64 * 1024 * 1024))
BOMBS = {
    "a frame that says how large it is": ZEROS,
    "a frame that does not": frame(bytes(64 * 1024 * 1024), write_content_size=False),
    "more frames": frame(HEAD) + frame(HEAD),
    "something after the frame": frame(HEAD) + b"x",
    "a frame that can be skipped": b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd",
    "a huge window": b"\x28\xb5\x2f\xfd\x00\xf0" + bytes(8),
    "empty endpoints": frame(HEAD + b"\x42\x00" * (MAX_ENDPOINTS + 1)),
    "very many empty endpoints": frame(HEAD + b"\x42\x00" * 2_000_000),
    "very many labels": frame(HEAD + b"\x2a\x00" * (MAX_FIELDS + 1)),
    "very many addresses of one endpoint": frame(HEAD + field(8, b"\x0a\x00" * 2_000_000)),
    "very many zones of one endpoint": frame(HEAD + field(8, field(8, b"\x0a\x00" * 2_000_000))),
    "very many hints of one endpoint": frame(HEAD + field(8, b"\x42\x00" * 2_000_000)),
    "very many entries of a topology": frame(HEAD + field(8, b"\x2a\x00" * 2_000_000)),
    "fields of the future without end": frame(HEAD + varint(77 << 3 | 2) + b"\x00" + varint(77 << 3) * 2_000_000),
}


@pytest.mark.parametrize("raw", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_before_it_takes_memory(raw: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RecordError):
            decode(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MAX_BYTES


def of(endpoint: SliceEndpoint, **changes: Any) -> ClusterEndpointSlice:
    return msgspec.structs.replace(WEB, endpoints=(endpoint,), **changes)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (msgspec.structs.replace(WEB, cluster=""), "without cluster"),
        (msgspec.structs.replace(WEB, namespace=""), "without namespace"),
        (msgspec.structs.replace(WEB, name=""), "without name"),
        (msgspec.structs.replace(WEB, address_type="FQDN"), "neither IPv4 nor IPv6"),
        (msgspec.structs.replace(WEB, address_type=""), "neither IPv4 nor IPv6"),
        (msgspec.structs.replace(WEB, address_type="IPv6"), "no IPv6 address"),
        (of(SliceEndpoint(addresses=("fd00::1",))), "no IPv4 address"),
        (of(SliceEndpoint(addresses=("010.0.0.1",))), "no IPv4 address"),
        (of(SliceEndpoint(addresses=("fe80::1%eth0",)), address_type="IPv6"), "has a zone"),
        (of(SliceEndpoint(addresses=("10.2.1.5",) * (MAX_ADDRESSES + 1))), "addresses"),
        (of(SliceEndpoint(addresses=(), for_zones=("z",) * (MAX_ZONES + 1))), "zones"),
        (msgspec.structs.replace(WEB, ports=(SlicePort(port=65536),)), "out of range"),
        (msgspec.structs.replace(WEB, ports=(SlicePort(port=-1),)), "out of range"),
    ],
)
def test_what_ciliums_reader_refuses_is_refused(record: ClusterEndpointSlice, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        decode(encode(record))


@pytest.mark.parametrize(
    "message",
    [
        b"\xff" * 12,  # a field number without end
        HEAD + b"\x10" + b"\xff" * 11,  # a cluster id without end
        HEAD + b"\x42" + b"\xff" * 9 + b"\x01",  # an endpoint of 2^64 bytes
        HEAD + b"\x42\x7f",  # an endpoint longer than the message
        HEAD + field(8, b"\x0a\x7f"),  # an address longer than its endpoint
        HEAD + b"\x43",  # a group, which Go's types do not have
        HEAD + b"\x00\x00",  # field 0
        HEAD + field(3, b"\xff"),  # a namespace that is no UTF-8
        HEAD + field(5, field(1, b"a") + field(2, b"\xff")),  # a label that is none
        HEAD + field(7, b"\xff"),
        HEAD + field(8, field(1, b"\x0a\x02\x01\xff")),  # an address as four bytes
        HEAD + field(8, field(1, b"\xed\xa0\x80")),  # an address that is half a surrogate pair
        HEAD + field(8, field(7, b"\xff")),
        HEAD + field(8, field(8, field(1, field(1, b"\xff")))),
        HEAD + field(9, field(4, b"\xff")),
    ],
)
def test_a_malformed_message_is_refused(message: bytes) -> None:
    with pytest.raises(RecordError):
        decode(frame(message))


def test_a_full_slice_of_kubernetes_is_read() -> None:
    full = msgspec.structs.replace(
        WEB,
        endpoints=tuple(
            SliceEndpoint(
                addresses=(f"10.{number >> 8}.{number & 255}.1",),
                ready=True,
                serving=True,
                terminating=False,
                hostname=f"web-{number}",
                node_name="n",
                zone="z",
                for_zones=("a", "b"),
            )
            for number in range(MAX_ENDPOINTS)
        ),
    )
    assert decode(encode(full)) == full
