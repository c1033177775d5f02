"""What this node's kernel maps hold, as rows to print. Reads the pinned maps: no running agent is needed."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from clustermesh.wire.identity import MINIMAL_ALLOCATION, Numbering, Reserved
from nodeagent.compile.services import PROTOCOLS
from nodeagent.compile.slots import is_master, slot_key
from nodeagent.datapath.abi import (
    AddressKey,
    BackendKey,
    BackendValue,
    Code,
    Config,
    EndpointFlag,
    EndpointValue,
    Event,
    EventType,
    IpcacheFlag,
    IpcacheKey,
    IpcacheValue,
    Map,
    NodeValue,
    Point,
    ProbeValue,
    ServiceKey,
    ServiceValue,
)

Row = Mapping[str, Any]


class Readable(Protocol):
    """A map, in the kernel or elsewhere."""

    def items(self) -> Iterable[tuple[bytes, bytes]]: ...

    def lookup(self, key: bytes) -> bytes | None: ...


Maps = Mapping[str, Readable]

_NAMES = {number: name for name, number in PROTOCOLS.items()}


def nodes(maps: Maps) -> Iterator[Row]:
    """Nodes of peers, with the latest probe that came back."""
    now = _now_ns()
    for key, value in sorted(maps[Map.NODES].items()):
        raw = maps[Map.PROBES].lookup(key)
        probe = None if raw is None else ProbeValue.unpack(raw)
        yield {
            "address": AddressKey.unpack(key).address,
            "cluster_id": NodeValue.unpack(value).cluster_id,
            "probe_age_s": None if probe is None else round((now - probe.received) / 1e9, 1),
            "rtt_us": None if probe is None else probe.rtt_us,
        }


def identities(maps: Maps) -> Iterator[Row]:
    """Identities that addresses bear."""
    numbering = numbering_of(maps)
    addresses = Counter(IpcacheValue.unpack(value).identity for _, value in maps[Map.IPCACHE].items())
    for identity, count in sorted(addresses.items()):
        yield {
            "identity": identity,
            "name": _reserved(identity),
            "cluster_id": numbering.cluster_of(identity) if identity >= MINIMAL_ALLOCATION else None,
            "addresses": count,
        }


def ipcache(maps: Maps) -> Iterator[Row]:
    """Addresses: identity, cluster and tunnel endpoint."""
    for raw_key, raw_value in sorted(maps[Map.IPCACHE].items(), key=lambda entry: entry[0][4:] + entry[0][:4]):
        key, value = IpcacheKey.unpack(raw_key), IpcacheValue.unpack(raw_value)
        flags = IpcacheFlag(value.flags)
        kind = "node" if IpcacheFlag.NODE in flags else "fallback" if IpcacheFlag.CIDR in flags else "pod"
        yield {
            "address": f"{key.address}/{key.prefix}",
            "identity": value.identity,
            "name": _reserved(value.identity),
            "cluster_id": value.cluster_id,
            "tunnel": value.tunnel or None,
            "kind": kind,
        }


def services(maps: Maps) -> Iterator[Row]:
    """Services and their backends."""
    entries = dict(maps[Map.SERVICES].items())
    backends = {BackendKey.unpack(key).id: BackendValue.unpack(value) for key, value in maps[Map.BACKENDS].items()}
    for raw in sorted(filter(is_master, entries)):
        key, master = ServiceKey.unpack(raw), ServiceValue.unpack(entries[raw])
        slots = [entries.get(slot_key(raw, slot)) for slot in range(1, master.count + 1)]
        behind = [backends.get(ServiceValue.unpack(slot).backend_id) for slot in slots if slot is not None]
        yield {
            "service": f"{_socket(key.address, key.port)}/{_NAMES.get(key.proto, key.proto)}",
            "backends": [
                {"address": _socket(backend.address, backend.port), "cluster_id": backend.cluster_id}
                for backend in behind
                if backend is not None
            ],
        }


def endpoints(maps: Maps) -> Iterator[Row]:
    """Local pods and the node's own addresses."""
    for key, raw in sorted(maps[Map.ENDPOINTS].items()):
        value = EndpointValue.unpack(raw)
        host = EndpointFlag.HOST in EndpointFlag(value.flags)
        yield {
            "address": AddressKey.unpack(key).address,
            "identity": value.identity,
            "kind": "node" if host else "pod",
            "ifindex": value.ifindex or None,
            "mac": value.mac.hex(":") if any(value.mac) else None,
        }


KINDS: Mapping[str, Callable[[Maps], Iterable[Row]]] = {
    "nodes": nodes,
    "identities": identities,
    "ipcache": ipcache,
    "services": services,
    "endpoints": endpoints,
}


def event_row(event: Event) -> Row:
    """One event of the ring."""
    return {
        "time_s": round(event.time / 1e9, 6),
        "type": EventType(event.type).name.lower() if event.type in set(EventType) else event.type,
        "reason": event.reason,
        "point": Point(event.point).name.lower().replace("_", "-") if event.point in set(Point) else event.point,
        "identity": event.identity,
        "source": _socket(event.source, event.sport),
        "destination": _socket(event.destination, event.dport),
        "protocol": _NAMES.get(event.proto, str(event.proto)),
        "outer": event.outer or None,
        "ifindex": event.ifindex,
        "length": event.length,
    }


def counter_rows(counters: Mapping[tuple[int, Any], Any], *, drops_only: bool) -> Iterator[Row]:
    """Packets by fate and direction."""
    for (code, direction), count in sorted(counters.items()):
        known = Code(code) if code in set(Code) else None
        drop = known.is_drop if known is not None else code >= Code.DROP_MALFORMED
        if drop or not drops_only:
            yield {
                "reason": known.label if known is not None else str(code),
                "direction": direction.name.lower(),
                "packets": count.packets,
                "bytes": count.bytes,
            }


def numbering_of(maps: Maps) -> Numbering:
    """How identities are numbered, as the node is configured."""
    raw = maps[Map.CONFIG].lookup(bytes(4))
    shift = Config.unpack(raw).identity_shift if raw is not None else 0
    return next((n for n in (Numbering(255), Numbering(511)) if n.shift == shift), Numbering())


def _reserved(identity: int) -> str | None:
    return Reserved(identity).name.lower().replace("_", "-") if identity in set(Reserved) else None


def _socket(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
