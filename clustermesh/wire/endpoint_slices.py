"""Endpoint slices in etcd, as Cilium writes them from 1.20 on: a protobuf message in one zstd frame.

Go's encoder writes every plain field, also an empty one, and a pointer only when it is set; maps go out sorted by key.
`encode` gives the same message byte for byte (the compression around it differs between libraries).
"""

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec
import zstandard
from google.protobuf.message import DecodeError, Message

from clustermesh.wire.errors import RecordError
from clustermesh.wire.protobuf import endpoint_slice_pb2 as pb

T = TypeVar("T")

# A compressed value of a few bytes may claim any size, so all of these are checked before memory is spent.
MAX_BYTES = 16 * 1024 * 1024  # of the message, decompressed
MAX_FIELDS = 150_000  # of the message and of the messages in it
# Kubernetes' own limits; its API server lets no larger slice in.
MAX_ENDPOINTS = 1000
MAX_ADDRESSES = 100
MAX_ZONES = 8

# Messages in the message whose own fields are counted: by path, a list of field numbers.
_ENDPOINTS = (8,)
_HINTS = (8, 8)
_UNKNOWN_SIZE = zstandard.CONTENTSIZE_UNKNOWN
_FAMILIES: Mapping[str, type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]] = {
    "IPv4": ipaddress.IPv4Address,
    "IPv6": ipaddress.IPv6Address,
}


class SliceEndpoint(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One backend. A condition that is None is unknown: ready and serving count as true then, terminating as false."""

    addresses: tuple[str, ...]
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None
    hostname: str | None = None
    node_name: str | None = None
    zone: str | None = None
    for_zones: tuple[str, ...] = ()
    deprecated_topology: Mapping[str, str] = {}


class SlicePort(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A port of all endpoints of a slice. `port` None means every port."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    app_protocol: str | None = None


class ClusterEndpointSlice(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """`cilium/state/endpointslices/v1/<cluster>/<namespace>/<name>`; `name` is the slice's, not its Service's."""

    cluster: str
    cluster_id: int
    namespace: str
    name: str
    address_type: str  # IPv4 or IPv6
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    endpoints: tuple[SliceEndpoint, ...] = ()
    ports: tuple[SlicePort, ...] = ()


def encode(record: ClusterEndpointSlice) -> bytes:
    """The value's bytes; equal slices give equal bytes."""
    return zstandard.ZstdCompressor(write_checksum=True).compress(encode_message(record))


def decode(raw: bytes) -> ClusterEndpointSlice:
    """Decode a value; RecordError for whatever is no valid slice, at a bounded cost."""
    return decode_message(_decompress(raw))


def encode_message(record: ClusterEndpointSlice) -> bytes:
    """The protobuf message alone."""
    message = pb.ClusterEndpointSlice(
        cluster=record.cluster,
        clusterID=record.cluster_id,
        namespace=record.namespace,
        name=record.name,
        labels=record.labels,
        annotations=record.annotations,
        addressType=record.address_type,
        endpoints=[_endpoint_message(endpoint) for endpoint in record.endpoints],
        ports=[
            pb.EndpointPort(name=port.name, protocol=port.protocol, port=port.port, appProtocol=port.app_protocol)
            for port in record.ports
        ],
    )
    raw: bytes = message.SerializeToString(deterministic=True)
    return raw


def decode_message(raw: bytes) -> ClusterEndpointSlice:
    """Decode the message alone; RecordError as `decode`."""
    _check_fields(raw)
    try:
        message = pb.ClusterEndpointSlice.FromString(raw)
        record = ClusterEndpointSlice(
            cluster=_text(message.cluster),
            cluster_id=message.clusterID,
            namespace=_text(message.namespace),
            name=_text(message.name),
            labels=_texts(message.labels),
            annotations=_texts(message.annotations),
            address_type=_text(message.addressType),
            endpoints=tuple(_endpoint(endpoint) for endpoint in message.endpoints),
            ports=tuple(
                SlicePort(
                    name=_optional(port, "name"),
                    protocol=_optional(port, "protocol"),
                    port=_optional(port, "port"),
                    app_protocol=_optional(port, "appProtocol"),
                )
                for port in message.ports
            ),
        )
    except (DecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"not a valid endpoint slice: {error}") from None
    _check(record)
    return record


def _endpoint_message(endpoint: SliceEndpoint) -> pb.Endpoint:
    return pb.Endpoint(
        addresses=endpoint.addresses,
        # Written even when it is empty.
        conditions=pb.EndpointConditions(
            ready=endpoint.ready, serving=endpoint.serving, terminating=endpoint.terminating
        ),
        hostname=endpoint.hostname,
        deprecatedTopology=endpoint.deprecated_topology,
        nodeName=endpoint.node_name,
        zone=endpoint.zone,
        hints=pb.EndpointHints(forZones=[pb.ForZone(name=zone) for zone in endpoint.for_zones])
        if endpoint.for_zones
        else None,
    )


def _endpoint(message: pb.Endpoint) -> SliceEndpoint:
    if len(message.addresses) > MAX_ADDRESSES:
        raise RecordError(f"an endpoint with more than {MAX_ADDRESSES} addresses")
    if len(message.hints.forZones) > MAX_ZONES:
        raise RecordError(f"an endpoint with hints for more than {MAX_ZONES} zones")
    return SliceEndpoint(
        addresses=tuple(map(_text, message.addresses)),
        ready=_optional(message.conditions, "ready"),
        serving=_optional(message.conditions, "serving"),
        terminating=_optional(message.conditions, "terminating"),
        hostname=_optional(message, "hostname"),
        node_name=_optional(message, "nodeName"),
        zone=_optional(message, "zone"),
        for_zones=tuple(_text(zone.name) for zone in message.hints.forZones),
        deprecated_topology=_texts(message.deprecatedTopology),
    )


def _optional(message: Message, field: str) -> Any:
    return _text(getattr(message, field)) if message.HasField(field) else None


def _text(value: T) -> T:
    """The library hands out text that is no UTF-8 as bytes."""
    if isinstance(value, bytes):
        raise RecordError(f"not a valid endpoint slice: {value[:32]!r} is not UTF-8")
    return value


def _texts(values: Mapping[str, str]) -> dict[str, str]:
    return {_text(key): _text(value) for key, value in values.items()}


def _check(record: ClusterEndpointSlice) -> None:
    for field in ("cluster", "namespace", "name"):
        if not getattr(record, field):
            raise RecordError(f"an endpoint slice without {field}")
    family = _FAMILIES.get(record.address_type)
    if family is None:
        raise RecordError(f"address type {record.address_type!r} is neither IPv4 nor IPv6")
    for endpoint in record.endpoints:
        for address in endpoint.addresses:
            try:
                zone = getattr(family(address), "scope_id", None)
            except ValueError:
                raise RecordError(f"{address!r} is no {record.address_type} address") from None
            if zone is not None:
                raise RecordError(f"address {address!r} has a zone")
    for port in record.ports:
        if port.port is not None and not 0 <= port.port <= 65535:
            raise RecordError(f"port {port.port} is out of range")


def _decompress(raw: bytes) -> bytes:
    try:
        size = zstandard.get_frame_parameters(raw).content_size
        if size != _UNKNOWN_SIZE and size > MAX_BYTES:
            raise RecordError(f"an endpoint slice of {size} bytes is larger than {MAX_BYTES}")
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_BYTES)
        return decompressor.decompress(raw, max_output_size=MAX_BYTES, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RecordError(f"not one zstd frame: {error}") from None


def _check_fields(raw: bytes) -> None:
    """Count what the message holds without unpacking it: an empty field takes 2 bytes here, but 50 or 100 unpacked."""
    endpoints = fields = 0
    todo: list[tuple[tuple[int, ...], int, int]] = [((), 0, len(raw))]
    while todo:
        path, start, end = todo.pop()
        for number, begin, finish in _fields(raw, start, end):
            inner = (*path, number)
            fields += 1
            endpoints += inner == _ENDPOINTS
            if endpoints > MAX_ENDPOINTS:
                raise RecordError(f"more than {MAX_ENDPOINTS} endpoints")
            if fields > MAX_FIELDS:
                raise RecordError(f"more than {MAX_FIELDS} fields")
            if inner in (_ENDPOINTS, _HINTS):
                todo.append((inner, begin, finish))


def _fields(raw: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of the content of each field between two positions; numbers' content is left out."""
    while position < end:
        tag, position = _varint(raw, position)
        wire_type, length = tag & 7, 0
        if wire_type == 0:
            _, position = _varint(raw, position)
        elif wire_type == 1:
            position += 8
        elif wire_type == 2:
            length, position = _varint(raw, position)
            position += length
        elif wire_type == 5:
            position += 4
        else:
            raise RecordError(f"not a valid endpoint slice: wire type {wire_type}")
        if position > end:
            raise RecordError("not a valid endpoint slice: cut off")
        yield tag >> 3, position - length, position


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(raw):
            raise RecordError("not a valid endpoint slice: cut off")
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise RecordError("not a valid endpoint slice: a number without end")
