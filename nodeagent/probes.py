"""Path probes: whether a peer's nodes can be reached through the tunnel, whatever their processes do.

A request goes out through the tunnel device itself; the other node's program answers it, and our own program notes the
answer in cm_probes. So a probe that came back proves both directions of the very path that pods' packets take.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median_low
from typing import Protocol

from clustermesh.wire.private import ProbeReport
from nodeagent.datapath.abi import (
    PROBE_MAGIC,
    PROBE_PAYLOAD,
    PROBE_PORT,
    PROBE_REQUEST,
    AddressKey,
    ProbeValue,
)
from nodeagent.devices import TUNNEL

INTERVAL = 1.0  # seconds between two probes of a node
_NEAR = 0.2  # seconds within which an answer is noticed in its own round
LATEST = 3.0  # seconds after which an answer no longer says that a node is reachable
_BURST = 512  # probes a round: with more nodes each is probed less often, and its answer counts longer

# The answer comes back with the same header, and a VXLAN device drops frames that bear its own address as source.
_MAC = bytes.fromhex("02636d707200")
_ETH_IP = struct.pack("!H", 0x0800)
_IP = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_CLOCK_NS = 1_000_000_000


class ProbeMap(Protocol):
    """cm_probes."""

    def lookup(self, key: bytes) -> bytes | None: ...

    def delete_batch(self, keys: list[bytes]) -> object: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """The latest answer of a node: its age in seconds, its round trip time in microseconds."""

    age: float
    rtt_us: int


class Prober:
    """Probes `targets()` (IPv4 addresses of peers' nodes) in turn, for ever."""

    def __init__(self, answers: ProbeMap) -> None:
        self._map = answers
        self._source: str | None = None
        self._targets: list[str] = []
        self._answers: dict[str, Answer] = {}
        self._sequence = 0
        self._position = 0
        self._ready = asyncio.Event()

    def configure(self, source: str) -> None:
        """The node's own address; no probe is sent before."""
        self._source = source
        self._ready.set()

    def retarget(self, targets: Iterable[str]) -> None:
        """Probe these from now on and forget what the others answered."""
        wanted = sorted(set(targets))
        gone = [target for target in self._targets if target not in set(wanted)]
        for target in gone:
            self._answers.pop(target, None)
        self._map.delete_batch([AddressKey(target).pack() for target in gone])
        self._targets = wanted

    @property
    def patience(self) -> float:
        """Seconds for which an answer counts."""
        rounds = -(-len(self._targets) // _BURST) or 1
        return LATEST * rounds

    def report(self, targets: Iterable[str]) -> ProbeReport:
        """How `targets` stand."""
        wanted = list(targets)
        times = [
            answer.rtt_us
            for target in wanted
            if (answer := self._answers.get(target)) is not None and answer.age <= self.patience
        ]
        return ProbeReport(len(times), len(wanted), median_low(times) if times else 0)

    async def run(self) -> None:
        await self._ready.wait()
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((TUNNEL, 0))
            raw.setblocking(False)
            while True:
                self._send(raw)
                await asyncio.sleep(_NEAR)
                self.read()
                await asyncio.sleep(INTERVAL - _NEAR)

    def _send(self, raw: socket.socket) -> None:
        due = self._targets[self._position : self._position + _BURST]
        self._position = self._position + _BURST if self._position + _BURST < len(self._targets) else 0
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        for target in due:
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            try:
                raw.send(frame(self._source or "", target, self._sequence, now))
            except OSError:
                return  # the device is down or its queue is full: no answer will come, which is what we report

    def read(self) -> None:
        """Take in what has come back."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        answers: dict[str, Answer] = {}
        for target in self._targets:
            raw = self._map.lookup(AddressKey(target).pack())
            if raw is not None:
                value = ProbeValue.unpack(raw)
                answers[target] = Answer((now - value.received) / _CLOCK_NS, value.rtt_us)
        self._answers = answers


def frame(source: str, target: str, sequence: int, sent_ns: int) -> bytes:
    """A request as an Ethernet frame. UDP's checksum is optional in IPv4."""
    payload = PROBE_PAYLOAD.pack(PROBE_MAGIC, PROBE_REQUEST, sequence, sent_ns)
    udp = _UDP.pack(PROBE_PORT, PROBE_PORT, _UDP.size + len(payload), 0)
    addresses = socket.inet_aton(source), socket.inet_aton(target)
    fields = (0x45, 0, _IP.size + len(udp) + len(payload), 0, 0, 64, socket.IPPROTO_UDP)
    header = _IP.pack(*fields, _checksum(_IP.pack(*fields, 0, *addresses)), *addresses)
    return _MAC + _MAC + _ETH_IP + header + udp + payload


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
