"""The ABI of the kernel maps: keys, values and numbers shared with ``bpf/lib/maps.h`` and ``bpf/lib/drop.h``.

Every struct here mirrors the C struct named in its layout; a test compares sizes, offsets and enum values with
the compiled object's BTF. Addresses are text (``10.1.2.3``, ``fd00::1``); an empty text packs as the all-zero
address. On the wire they are 16 bytes, IPv4 in the first four in network order. Ports are plain integers here and
network order there.
"""

import socket
import struct
from collections.abc import Mapping
from enum import IntEnum, IntFlag, StrEnum
from typing import ClassVar, Self

import msgspec


class Map(StrEnum):
    """Names of the pinned maps."""

    IPCACHE = "cm_ipcache"
    ENDPOINTS = "cm_endpoints"
    NODES = "cm_nodes"
    SERVICES = "cm_services"
    BACKENDS = "cm_backends"
    CT = "cm_ct"
    FRAGMENTS = "cm_fragments"
    METRICS = "cm_metrics"
    PROBES = "cm_probes"
    EVENTS = "cm_events"
    CONFIG = "cm_config"


class Code(IntEnum):
    """Fate of a packet (``enum cm_code``): below 128 it was forwarded, from 128 on it was dropped."""

    TO_STACK = 1
    TO_TUNNEL = 2
    TO_POD = 3
    TO_NODE = 4
    HAIRPIN = 5
    FRAG_NEEDED = 6
    PROBE_ANSWERED = 7
    PROBE_RETURNED = 8
    SERVICE_CHOSEN = 9
    EVENT_LOST = 10

    DROP_MALFORMED = 128
    DROP_UNSUPPORTED = 129
    DROP_SPOOFED_SOURCE = 130
    DROP_NO_BACKEND = 131
    DROP_NO_TUNNEL_KEY = 132
    DROP_UNKNOWN_NODE = 133
    DROP_FOREIGN_IDENTITY = 134
    DROP_UNKNOWN_SOURCE = 135
    DROP_NO_ENDPOINT = 136
    DROP_NO_ROUTE = 137
    DROP_FAILED = 139
    DROP_NOT_CONFIGURED = 140
    DROP_UNEXPECTED_PROBE = 141

    @property
    def is_drop(self) -> bool:
        return self >= DROP_FIRST

    @property
    def label(self) -> str:
        """The name as commands and metrics print it: ``spoofed-source``."""
        return self.name.removeprefix("DROP_").lower().replace("_", "-")


DROP_FIRST = 128
CODES = 256


class Direction(IntEnum):
    EGRESS = 0
    INGRESS = 1


DIRECTIONS = len(Direction)


class Family(IntEnum):
    V4 = 1
    V6 = 2


class IpcacheFlag(IntFlag):
    NONE = 0
    HAS_TUNNEL = 1 << 1
    REMOTE_CLUSTER = 1 << 3
    NODE = 1 << 4
    CIDR = 1 << 5


class EndpointFlag(IntFlag):
    NONE = 0
    HOST = 1 << 0


class BackendState(IntEnum):
    ACTIVE = 0
    DRAINING = 1


class ConfigFlag(IntFlag):
    NONE = 0
    TRACE = 1 << 0


class CtKind(IntEnum):
    SERVICE = 1
    REPLY = 2
    RETURN = 3


class CtFlag(IntFlag):
    NONE = 0
    ESTABLISHED = 1 << 0
    HAIRPIN = 1 << 1
    OPENER_FIN = 1 << 2
    ANSWERER_FIN = 1 << 3
    RESET = 1 << 4


class EventType(IntEnum):
    DROP = 1
    TRACE = 2


class Point(IntEnum):
    """The program that saw the packet."""

    FROM_POD = 1
    TO_POD = 2
    FROM_TUNNEL = 3
    TO_TUNNEL = 4


class Layout:
    """One C struct: its name and its fields as (name, ``struct`` format) in order, without implicit padding."""

    def __init__(self, c_name: str, **fields: str) -> None:
        self.c_name = c_name
        self.fields: Mapping[str, str] = fields
        self.struct = struct.Struct("=" + "".join(fields.values()))

    @property
    def size(self) -> int:
        return self.struct.size

    def offsets(self) -> dict[str, int]:
        """Byte offset of each field."""
        offsets, position = {}, 0
        for name, fmt in self.fields.items():
            offsets[name] = position
            position += struct.calcsize("=" + fmt)
        return offsets


_ZEROES = bytes(16)
_V4_REST = bytes(12)


def pack_address(address: str) -> tuple[bytes, int]:
    """Return (16 bytes, family) of an address. Raises OSError if it is neither IPv4 nor IPv6."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address), 2
    if not address:
        return _ZEROES, 0
    return socket.inet_pton(socket.AF_INET, address) + _V4_REST, 1


def unpack_address(raw: bytes, family: int | None = None) -> str:
    """The text of a 16-byte address; without a family, twelve zero bytes at the end mean IPv4."""
    if raw == _ZEROES and family != Family.V6:
        return "" if family in (None, 0) else "0.0.0.0"
    if family == Family.V6 or (family is None and raw[4:] != _V4_REST):
        return socket.inet_ntop(socket.AF_INET6, raw)
    return socket.inet_ntoa(raw[:4])


IPCACHE_PREFIX_BASE = 32
"""Bits of the LPM key before the address: cluster id, padding and family always match in full."""


class IpcacheKey(msgspec.Struct, frozen=True, gc=False):
    """A network (or, with its full prefix, an address). ``address`` is the network's first address."""

    layout: ClassVar = Layout("cm_ipcache_key", prefixlen="I", cluster_id="H", pad="B", family="B", addr="16s")

    address: str
    prefix: int
    cluster_id: int = 0

    def pack(self) -> bytes:
        raw, family = pack_address(self.address)
        return _PACK_IPCACHE_KEY(IPCACHE_PREFIX_BASE + self.prefix, self.cluster_id, 0, family, raw)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        prefixlen, cluster_id, _, family, address = cls.layout.struct.unpack(raw)
        return cls(unpack_address(address, family), prefixlen - IPCACHE_PREFIX_BASE, cluster_id)

    @classmethod
    def host(cls, address: str) -> Self:
        """The key of a single address."""
        return cls(address, 128 if ":" in address else 32)


_PACK_IPCACHE_KEY = IpcacheKey.layout.struct.pack


class IpcacheValue(msgspec.Struct, frozen=True, gc=False):
    """Who an address is. ``tunnel`` is the outer address of its node, empty when it is reached natively.

    ``cluster_id`` names the cluster the entry came from. HAS_TUNNEL is set by packing, from ``tunnel``.
    """

    layout: ClassVar = Layout("cm_ipcache_value", identity="I", tunnel="16s", cluster_id="H", key="B", flags="B")

    identity: int
    tunnel: str = ""
    cluster_id: int = 0
    flags: int = 0
    key: int = 0

    def pack(self) -> bytes:
        tunnel, family = pack_address(self.tunnel)
        flags = self.flags | 2 if family else self.flags
        return _PACK_IPCACHE_VALUE(self.identity, tunnel, self.cluster_id, self.key, flags)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        identity, tunnel, cluster_id, key, flags = cls.layout.struct.unpack(raw)
        return cls(identity, unpack_address(tunnel), cluster_id, flags & ~IpcacheFlag.HAS_TUNNEL.value, key)


_PACK_IPCACHE_VALUE = IpcacheValue.layout.struct.pack


class AddressKey(msgspec.Struct, frozen=True, gc=False):
    """The key of cm_endpoints, cm_nodes and cm_probes: one address."""

    layout: ClassVar = Layout("cm_endpoint_key", addr="16s", family="B", pad="3s")

    address: str

    def pack(self) -> bytes:
        raw, family = pack_address(self.address)
        return self.layout.struct.pack(raw, family, b"")

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        address, family, _ = cls.layout.struct.unpack(raw)
        return cls(unpack_address(address, family))


class EndpointValue(msgspec.Struct, frozen=True, gc=False):
    """A local pod (``ifindex`` = host side of its veth) or, with EndpointFlag.HOST, an address of the node itself."""

    layout: ClassVar = Layout("cm_endpoint_value", ifindex="I", identity="I", flags="I", mac="6s", pad="2s")

    ifindex: int
    identity: int
    flags: int = 0
    mac: bytes = bytes(6)

    def pack(self) -> bytes:
        return self.layout.struct.pack(self.ifindex, self.identity, self.flags, self.mac, b"")

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        ifindex, identity, flags, mac, _ = cls.layout.struct.unpack(raw)
        return cls(ifindex, identity, flags, mac)


class NodeValue(msgspec.Struct, frozen=True, gc=False):
    """A peer's node, by its outer address."""

    layout: ClassVar = Layout("cm_node_value", cluster_id="I", flags="I")

    cluster_id: int
    flags: int = 0

    def pack(self) -> bytes:
        return self.layout.struct.pack(self.cluster_id, self.flags)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        return cls(*cls.layout.struct.unpack(raw))


class ServiceKey(msgspec.Struct, frozen=True, gc=False):
    """A service port (slot 0) or one of its backend slots (1..count). ``proto`` is the IP protocol number."""

    layout: ClassVar = Layout("cm_service_key", addr="16s", port="H", proto="B", family="B", slot="H", pad="H")

    address: str
    port: int
    proto: int
    slot: int = 0

    def pack(self) -> bytes:
        raw, family = pack_address(self.address)
        return self.layout.struct.pack(raw, socket.htons(self.port), self.proto, family, self.slot, 0)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        address, port, proto, family, slot, _ = cls.layout.struct.unpack(raw)
        return cls(unpack_address(address, family), socket.ntohs(port), proto, slot)


class ServiceValue(msgspec.Struct, frozen=True, gc=False):
    """Slot 0: ``count`` of backends. Slots 1..count: ``backend_id``.

    Order of writing: backends, slots, slot 0; of shrinking: slot 0, slots, backends.
    """

    layout: ClassVar = Layout("cm_service_value", backend_id="I", count="H", flags="H", service_id="I", pad="I")

    backend_id: int = 0
    count: int = 0
    flags: int = 0
    service_id: int = 0

    def pack(self) -> bytes:
        return self.layout.struct.pack(self.backend_id, self.count, self.flags, self.service_id, 0)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        backend_id, count, flags, service_id, _ = cls.layout.struct.unpack(raw)
        return cls(backend_id, count, flags, service_id)


class BackendKey(msgspec.Struct, frozen=True, gc=False):
    """The number of a backend. Never 0: the programs take 0 for "no backend"."""

    layout: ClassVar = Layout("", id="I")

    id: int

    def pack(self) -> bytes:
        return self.layout.struct.pack(self.id)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        return cls(*cls.layout.struct.unpack(raw))


class BackendValue(msgspec.Struct, frozen=True, gc=False):
    """One address and port behind services. ``proto`` is the IP protocol number."""

    layout: ClassVar = Layout(
        "cm_backend_value", addr="16s", port="H", proto="B", family="B", cluster_id="H", state="B", pad="B"
    )

    address: str
    port: int
    proto: int
    cluster_id: int = 0
    state: int = 0

    def pack(self) -> bytes:
        raw, family = pack_address(self.address)
        return self.layout.struct.pack(raw, socket.htons(self.port), self.proto, family, self.cluster_id, self.state, 0)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        address, port, proto, family, cluster_id, state, _ = cls.layout.struct.unpack(raw)
        return cls(unpack_address(address, family), socket.ntohs(port), proto, cluster_id, state)


class CtKey(msgspec.Struct, frozen=True, gc=False):
    """A flow in the direction in which the entry is looked up. ICMP echoes carry their id in both ports."""

    layout: ClassVar = Layout(
        "cm_ct_key", saddr="16s", daddr="16s", sport="H", dport="H", proto="B", family="B", kind="B", pad="B"
    )

    source: str
    destination: str
    sport: int
    dport: int
    proto: int
    kind: int

    def pack(self) -> bytes:
        source, family = pack_address(self.source)
        destination, _ = pack_address(self.destination)
        ports = socket.htons(self.sport), socket.htons(self.dport)
        return self.layout.struct.pack(source, destination, *ports, self.proto, family, self.kind, 0)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        source, destination, sport, dport, proto, family, kind, _ = cls.layout.struct.unpack(raw)
        return cls(
            unpack_address(source, family),
            unpack_address(destination, family),
            socket.ntohs(sport),
            socket.ntohs(dport),
            proto,
            kind,
        )


class CtValue(msgspec.Struct, frozen=True, gc=False):
    """What a tracked flow is rewritten to. ``last_seen`` in ns of CLOCK_MONOTONIC."""

    layout: ClassVar = Layout("cm_ct_value", last_seen="Q", addr="16s", port="H", flags="H", backend_id="I")

    last_seen: int
    address: str
    port: int
    flags: int = 0
    backend_id: int = 0

    def pack(self) -> bytes:
        raw, _ = pack_address(self.address)
        return self.layout.struct.pack(self.last_seen, raw, socket.htons(self.port), self.flags, self.backend_id)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        last_seen, address, port, flags, backend_id = cls.layout.struct.unpack(raw)
        return cls(last_seen, unpack_address(address), socket.ntohs(port), flags, backend_id)


FRAGMENT_KEY = Layout("cm_fragment_key", saddr="16s", daddr="16s", id="I", proto="B", family="B", pad="2s")
FRAGMENT_VALUE = Layout("cm_fragment_value", sport="H", dport="H")


class Metric(msgspec.Struct, frozen=True, gc=False):
    """A counter; the map holds one a CPU."""

    layout: ClassVar = Layout("cm_metric", packets="Q", bytes="Q")

    packets: int
    bytes: int


class ProbeValue(msgspec.Struct, frozen=True, gc=False):
    """The last probe that came back from a node. Times in ns of CLOCK_MONOTONIC."""

    layout: ClassVar = Layout("cm_probe_value", sent="Q", received="Q", seq="I", rtt_us="I")

    sent: int
    received: int
    seq: int
    rtt_us: int

    def pack(self) -> bytes:
        return self.layout.struct.pack(self.sent, self.received, self.seq, self.rtt_us)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        return cls(*cls.layout.struct.unpack(raw))


PROBE_PORT = 8473
PROBE_MAGIC = b"cmpr"
PROBE_REQUEST, PROBE_REPLY = 1, 2
PROBE_PAYLOAD = struct.Struct(">4sB3xIQ")
"""UDP payload of a probe, in network order: magic, kind, padding, sequence, time sent (ns, CLOCK_MONOTONIC)."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """A record of the event ring. ``time`` in ns of CLOCK_MONOTONIC; ``outer`` is the other tunnel endpoint."""

    layout: ClassVar = Layout(
        "cm_event",
        time="Q",
        type="B",
        code="B",
        point="B",
        family="B",
        ifindex="I",
        identity="I",
        length="I",
        source="16s",
        destination="16s",
        outer="16s",
        sport="H",
        dport="H",
        proto="B",
        pad="3s",
    )

    time: int
    type: int
    code: int
    point: int
    ifindex: int
    identity: int
    length: int
    source: str
    destination: str
    outer: str
    sport: int
    dport: int
    proto: int

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        unpacked = cls.layout.struct.unpack(raw)
        time, kind, code, point, family, ifindex, identity, length = unpacked[:8]
        source, destination, outer, sport, dport, proto, _ = unpacked[8:]
        return cls(
            time,
            kind,
            code,
            point,
            ifindex,
            identity,
            length,
            unpack_address(source, family),
            unpack_address(destination, family),
            unpack_address(outer),
            socket.ntohs(sport),
            socket.ntohs(dport),
            proto,
        )

    @property
    def reason(self) -> str:
        """Name of the code, or its number if this agent is older than the programs."""
        return code_label(self.code)


def code_label(code: int) -> str:
    try:
        return Code(code).label
    except ValueError:
        return str(code)


class Config(msgspec.Struct, frozen=True, gc=False):
    """What the programs must know of this node. ``tunnel_mtu`` is the largest inner IP packet in bytes."""

    layout: ClassVar = Layout(
        "cm_config",
        cluster_id="I",
        tunnel_ifindex="I",
        tunnel_mtu="I",
        identity_shift="I",
        flags="I",
        node_ip="16s",
        host_identity="I",
    )

    cluster_id: int
    tunnel_ifindex: int
    tunnel_mtu: int
    node_ip: str
    identity_shift: int = 16
    flags: int = 0
    host_identity: int = 1

    def pack(self) -> bytes:
        node_ip, _ = pack_address(self.node_ip)
        return self.layout.struct.pack(
            self.cluster_id,
            self.tunnel_ifindex,
            self.tunnel_mtu,
            self.identity_shift,
            self.flags,
            node_ip,
            self.host_identity,
        )

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        cluster_id, ifindex, mtu, shift, flags, node_ip, host_identity = cls.layout.struct.unpack(raw)
        return cls(cluster_id, ifindex, mtu, unpack_address(node_ip), shift, flags, host_identity)


LAYOUTS: tuple[Layout, ...] = (
    IpcacheKey.layout,
    IpcacheValue.layout,
    AddressKey.layout,
    EndpointValue.layout,
    Layout("cm_node_key", **AddressKey.layout.fields),
    NodeValue.layout,
    ServiceKey.layout,
    ServiceValue.layout,
    BackendValue.layout,
    CtKey.layout,
    CtValue.layout,
    FRAGMENT_KEY,
    FRAGMENT_VALUE,
    Metric.layout,
    Layout("cm_probe_key", **AddressKey.layout.fields),
    ProbeValue.layout,
    Event.layout,
    Config.layout,
)
"""Every struct of bpf/lib/maps.h, for the test that compares both sides."""

ENUMS: Mapping[str, type[IntEnum] | type[IntFlag]] = {
    "cm_code": Code,
    "cm_direction": Direction,
    "cm_ipcache_flag": IpcacheFlag,
    "cm_endpoint_flag": EndpointFlag,
    "cm_backend_state": BackendState,
    "cm_ct_kind": CtKind,
    "cm_ct_flag": CtFlag,
    "cm_event_type": EventType,
    "cm_point": Point,
    "cm_config_flag": ConfigFlag,
}
"""C enum → its mirror, for the same test."""
