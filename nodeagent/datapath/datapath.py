"""The node's datapath: programs loaded, maps pinned, devices attached.

    with Datapath(pin_dir) as datapath:
        datapath.configure(Config(...))
        datapath.maps[Map.IPCACHE].update_batch(...)
        datapath.attach_tunnel(ifindex)
        datapath.attach_pod(ifindex)

Closing it (or dying) detaches nothing. After a restart with newer programs, attaching again replaces the old ones in
place; so fill the maps first, then attach. Everything happens in the current network namespace and blocks only for
the time of a system call.
"""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from nodeagent.datapath import loader
from nodeagent.datapath.abi import DIRECTIONS, Config, Direction, Event, Map, Metric
from nodeagent.datapath.attach import Attacher, Attachment, Hook, Program, choose
from nodeagent.datapath.errors import DatapathError
from nodeagent.datapath.maps import BpfMap
from nodeagent.datapath.ringbuf import RingBuffer

log = logging.getLogger(__name__)

_ZERO = bytes(4)
_EVENTS_AT_A_STRETCH = 256
_POD = (Program("from_pod", Hook.INGRESS), Program("to_pod", Hook.EGRESS))
_TUNNEL = (Program("from_tunnel", Hook.INGRESS), Program("to_tunnel", Hook.EGRESS))


class Options(msgspec.Struct, frozen=True):
    """``max_entries``: map name → size, for those that differ from bpf/lib/maps.h."""

    attachment: Attachment = Attachment.AUTO
    max_entries: Mapping[str, int] = {}
    objects: Path = loader.OBJECTS


class Datapath:
    """Open once a process. ``maps`` and ``programs`` (descriptors) by name; ``attachment``: how they are attached."""

    def __init__(self, pin_dir: Path, options: Options | None = None) -> None:
        self.pin_dir = pin_dir
        self.options = options or Options()
        self.maps: dict[str, BpfMap] = {}
        self.attachment = self.options.attachment
        self.renewed: frozenset[str] = frozenset()
        self.programs: dict[str, int] = {}
        self._attacher: Attacher | None = None

    def open(self) -> None:
        """Load the programs with the pinned maps. Attached programs stay as they are. Raises DatapathError."""
        loaded = loader.load(self.pin_dir, self.options.objects, self.options.max_entries)
        self.maps, self.programs, self.renewed = loaded.maps, loaded.programs, loaded.renewed
        try:
            links_dir = self.pin_dir / "links"
            links_dir.mkdir(exist_ok=True)
            self.attachment, self._attacher = choose(self.options.attachment, self.programs["from_pod"], links_dir)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for one in self.maps.values():
            one.close()
        for fd in self.programs.values():
            os.close(fd)
        self.maps, self.programs, self._attacher = {}, {}, None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def configure(self, config: Config) -> None:
        self.maps[Map.CONFIG].update(_ZERO, config.pack())

    def attach_pod(self, ifindex: int) -> None:
        """Attach to the host side of a pod's veth, or replace what an earlier agent attached."""
        self._attach(_POD, ifindex)

    def attach_tunnel(self, ifindex: int) -> None:
        """The same for the VXLAN device."""
        self._attach(_TUNNEL, ifindex)

    def detach_pod(self, ifindex: int) -> None:
        self._detach(_POD, ifindex)

    def detach_tunnel(self, ifindex: int) -> None:
        self._detach(_TUNNEL, ifindex)

    def attached_pods(self) -> set[int]:
        """Devices that carry both pod programs, by whichever agent attached. Forgets those that have gone."""
        return self._attached(_POD)

    def attached_tunnels(self) -> set[int]:
        return self._attached(_TUNNEL)

    def remove(self) -> None:
        """Detach everything and unpin the maps: the node is as before the first agent."""
        for ifindex in self.attached_tunnels():
            self.detach_tunnel(ifindex)
        for ifindex in self.attached_pods():
            self.detach_pod(ifindex)
        for name in Map:
            (self.pin_dir / "maps" / name).unlink(missing_ok=True)

    def counters(self) -> dict[tuple[int, Direction], Metric]:
        """What happened to how many packets (bytes with headers), summed over CPUs; only what ever happened."""
        counters: dict[tuple[int, Direction], Metric] = {}
        size = Metric.layout.size
        for key, value in self.maps[Map.METRICS].items():
            index = int.from_bytes(key, sys.byteorder)
            cpus = [Metric.layout.struct.unpack_from(value, at) for at in range(0, len(value), size)]
            packets, octets = (sum(column) for column in zip(*cpus, strict=True))
            if packets:
                counters[index // DIRECTIONS, Direction(index % DIRECTIONS)] = Metric(packets, octets)
        return counters

    async def events(self) -> AsyncIterator[Event]:
        """Drops (and traces, if configured) as they happen, decoded. Consumes them: one reader a node."""
        ring_map = self.maps[Map.EVENTS]
        ring = RingBuffer(ring_map.fd, ring_map.info.max_entries)
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(ring.fd, readable.set)
        try:
            while True:
                for number, raw in enumerate(ring.read(), start=1):
                    yield Event.unpack(raw)
                    if number % _EVENTS_AT_A_STRETCH == 0:
                        await asyncio.sleep(0)  # a ring that fills as fast as it is read must not keep others waiting
                readable.clear()
                await readable.wait()
        finally:
            loop.remove_reader(ring.fd)
            ring.close()

    def _attach(self, programs: tuple[Program, ...], ifindex: int) -> None:
        attacher = self._opened()
        for program in programs:
            attacher.attach(program, self.programs[program.name], ifindex)

    def _detach(self, programs: tuple[Program, ...], ifindex: int) -> None:
        attacher = self._opened()
        for program in programs:
            attacher.detach(program, ifindex)

    def _attached(self, programs: tuple[Program, ...]) -> set[int]:
        attacher = self._opened()
        return set.intersection(*(attacher.attached(program) for program in programs))

    def _opened(self) -> Attacher:
        if self._attacher is None:
            raise DatapathError("the datapath is not open")
        return self._attacher
