"""Local pods: finds their devices, attaches the programs, keeps cm_endpoints.

The tables say which pods are here, the kernel says where. Either may come first, so pods without a device wait for
netlink's events. A device's programs are attached once, however many addresses its pod has, and only after its
endpoint entry stands, since a packet from an unknown pod is dropped.
"""

import asyncio
import errno
import logging
from collections.abc import Iterable
from typing import Any, Protocol

from pyroute2 import AsyncIPRoute

from nodeagent.datapath.abi import AddressKey, EndpointValue, Map
from nodeagent.datapath.errors import DatapathError
from nodeagent.pod_devices import PodDevice, PodDevices

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 15.0  # everything is looked up again this often, in case an event was missed
_EVENTS = frozenset(
    {"RTM_NEWLINK", "RTM_DELLINK", "RTM_NEWROUTE", "RTM_DELROUTE", "RTM_NEWNEIGH", "RTM_NEWADDR", "RTM_DELADDR"}
)


class PodPrograms(Protocol):
    """The datapath's programs at pods' devices. DatapathError when the kernel refuses."""

    def attach_pod(self, ifindex: int) -> object: ...

    def detach_pod(self, ifindex: int) -> object: ...

    def attached_pods(self) -> Iterable[int]: ...


class Entries(Protocol):
    """Where endpoint entries go."""

    def submit(self, map_name: str, changes: Iterable[tuple[bytes, bytes | None]]) -> None: ...

    def mark(self) -> int: ...

    async def wait(self, mark: int) -> None: ...


class Endpoints:
    """Keeps programs and entries of local pods as `change` says. Leaves all of it in place when it ends."""

    def __init__(self, programs: PodPrograms, entries: Entries) -> None:
        self._programs = programs
        self._entries = entries
        self._wanted: dict[str, int] = {}
        self._placed: dict[str, tuple[PodDevice, int]] = {}  # address → device, identity
        self._attached: dict[int, set[str]] = {}  # device → addresses
        self._dirty: set[str] = set()
        self._work = asyncio.Event()
        self._complete = False
        self.settled = asyncio.Event()  # all pods that were wanted at `complete` have been looked for
        self.failures: dict[int, str] = {}

    def __len__(self) -> int:
        """Addresses with an entry."""
        return len(self._placed)

    @property
    def missing(self) -> list[str]:
        """Local pods without a device."""
        return [ip for ip in self._wanted if ip not in self._placed]

    def change(self, changes: Iterable[tuple[str, int | None]]) -> None:
        """Local pods that came, changed their identity or went (None)."""
        for ip, identity in changes:
            if identity is None:
                self._wanted.pop(ip, None)
            else:
                self._wanted[ip] = identity
            self._touch(ip)

    def complete(self) -> None:
        """All local pods are known: programs that an earlier agent attached elsewhere may go."""
        self._complete = True
        self._work.set()

    def keys(self) -> set[bytes]:
        """Entries that should stand."""
        return {AddressKey(ip).pack() for ip in self._placed}

    async def run(self) -> None:
        async with AsyncIPRoute() as netlink, AsyncIPRoute() as events, asyncio.TaskGroup() as tasks:
            await events.bind()
            tasks.create_task(self._listen(events))
            tasks.create_task(self._work_off(PodDevices(netlink)))

    async def _listen(self, events: AsyncIPRoute) -> None:
        while True:
            try:
                async for message in events.get():  # ends with what came in one datagram
                    self._notice(message)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                log.warning("netlink lost events: looking all pods up again")
                self._touch(*self._wanted)

    def _notice(self, message: Any) -> None:
        event = message["event"]
        if event not in _EVENTS:
            return
        if event == "RTM_DELLINK":
            self._touch(*self._attached.get(message["index"], ()))
        elif event.endswith("ROUTE") and (target := message.get_attr("RTA_DST")) in self._wanted:
            self._touch(target)
        self._touch(*self.missing)

    def _touch(self, *ips: str) -> None:
        if ips:
            self._dirty.update(ips)
            self._work.set()

    async def _work_off(self, devices: PodDevices) -> None:
        while True:
            try:
                async with asyncio.timeout(_AGAIN_SECONDS):
                    await self._work.wait()
            except TimeoutError:
                self._dirty.update(self._wanted)
            self._work.clear()
            taken, self._dirty = self._dirty, set()
            complete = self._complete
            await self._settle({ip: await devices.find(ip) for ip in taken if ip in self._wanted}, taken)
            if complete and not self.settled.is_set():
                self._detach_strangers()
                self.settled.set()

    async def _settle(self, found: dict[str, PodDevice | None], taken: Iterable[str]) -> None:
        changes: list[tuple[bytes, bytes | None]] = []
        deserted: set[int] = set()
        for ip in taken:
            device, identity = found.get(ip), self._wanted.get(ip)
            before = self._placed.get(ip)
            after = (device, identity) if device is not None and identity is not None else None
            if before is not None and (after is None or after[0].ifindex != before[0].ifindex):
                users = self._attached[before[0].ifindex]
                users.discard(ip)
                if not users:
                    deserted.add(before[0].ifindex)
            if after is None:
                self._placed.pop(ip, None)
                changes.append((AddressKey(ip).pack(), None))
            else:
                self._placed[ip] = after
                changes.append(
                    (AddressKey(ip).pack(), EndpointValue(after[0].ifindex, after[1], 0, after[0].mac).pack())
                )
        self._detach(deserted)
        self._entries.submit(Map.ENDPOINTS, changes)
        await self._entries.wait(self._entries.mark())
        for ip in taken:
            if (placed := self._placed.get(ip)) is not None:
                self._attach(ip, placed[0].ifindex)

    def _attach(self, ip: str, ifindex: int) -> None:
        users = self._attached.setdefault(ifindex, set())
        if not users or ifindex in self.failures:
            try:
                self._programs.attach_pod(ifindex)
            except DatapathError as error:
                if self.failures.get(ifindex) != str(error):
                    log.error("cannot attach to device %d of pod %s: %s; trying again", ifindex, ip, error)
                self.failures[ifindex] = str(error)
            else:
                self.failures.pop(ifindex, None)
        users.add(ip)

    def _detach(self, deserted: Iterable[int]) -> None:
        for ifindex in deserted:
            if not self._attached.get(ifindex):
                self._attached.pop(ifindex, None)
                self.failures.pop(ifindex, None)
                self._detach_one(ifindex)

    def _detach_strangers(self) -> None:
        for ifindex in [index for index in self._programs.attached_pods() if index not in self._attached]:
            self._detach_one(ifindex)

    def _detach_one(self, ifindex: int) -> None:
        try:
            self._programs.detach_pod(ifindex)
        except DatapathError as error:
            log.warning("cannot detach from device %d: %s", ifindex, error)
