"""The node's own part of the tunnel: the VXLAN device, and routes that lead its processes to remote pods."""

import asyncio
import errno
import ipaddress
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

log = logging.getLogger(__name__)

TUNNEL = "cm_vxlan"
TUNNEL_PORT = 8472
OVERHEAD = 50  # bytes: outer Ethernet is not counted, inner is; IPv4 20, UDP 8, VXLAN 8, Ethernet 14
_TUNNEL_MTU = 65485  # the device does not judge sizes; the programs do, with the right answer to the sender
_FALLBACK_MTU = 1500
_ROUTE_PROTOCOL = 131  # marks routes as ours; unassigned in the kernel's and iproute2's lists
_LINK_SCOPE = 253
_TAKEN = (errno.EADDRINUSE, errno.EEXIST)
_UP, _NO_ARP = 0x1, 0x80
_AUDIT_SECONDS = 30.0
_RETRY_SECONDS = 1.0


class DeviceError(Exception):
    """A device that this node needs cannot be had; the text names the remedy."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The VXLAN device."""

    ifindex: int


async def ensure_tunnel(netlink: AsyncIPRoute, port: int = TUNNEL_PORT) -> Tunnel:
    """The tunnel device, made if need be, left alone if it is right already. DeviceError names what is in the way."""
    link = await _find(netlink, TUNNEL)
    if link is not None and not _is_ours(link, port):
        log.warning("%s is not as it must be: making it anew", TUNNEL)
        await netlink.link("del", index=link["index"])
        link = None
    if link is None:
        try:
            await netlink.link(
                "add", ifname=TUNNEL, kind="vxlan", vxlan_collect_metadata=True, vxlan_port=port, vxlan_learning=False
            )
        except NetlinkError as error:
            if error.code in _TAKEN:
                raise await _port_taken(netlink, port) from error
            raise DeviceError(f"cannot make the VXLAN device {TUNNEL}: {error}; is the vxlan module there?") from error
        link = await _find(netlink, TUNNEL)
        if link is None or not _is_ours(link, port):
            raise DeviceError(f"the VXLAN device {TUNNEL} was changed or removed at once: find out by whom")
    index = link["index"]
    try:
        await netlink.link("set", index=index, mtu=_TUNNEL_MTU)
    except NetlinkError as error:
        log.warning("%s keeps MTU %s: %s", TUNNEL, link.get_attr("IFLA_MTU"), error)
    _quiet(TUNNEL)
    try:
        # Without ARP: the other end's programs take any inner MAC address.
        await netlink.link("set", index=index, flags=_UP | _NO_ARP, change=_UP | _NO_ARP)
    except NetlinkError as error:
        if error.code in _TAKEN:
            raise await _port_taken(netlink, port) from error
        raise DeviceError(f"cannot bring {TUNNEL} up: {error}") from error
    return Tunnel(index)


async def remove_tunnel(netlink: AsyncIPRoute) -> bool:
    """Remove the device, and with it its routes. Returns whether it was there."""
    link = await _find(netlink, TUNNEL)
    if link is not None:
        await netlink.link("del", index=link["index"])
    return link is not None


async def underlay_mtu(netlink: AsyncIPRoute, node_ip: str) -> int:
    """MTU of the device that bears the node's address: what an outer packet may measure."""
    async for address in await netlink.get_addr(local=node_ip):
        async for link in await netlink.get_links(address["index"]):
            return int(link.get_attr("IFLA_MTU"))
    log.warning("no device bears this node's address %s: taking MTU %d", node_ip, _FALLBACK_MTU)
    return _FALLBACK_MTU


class Routes:
    """Routes of this node to peers' pod CIDRs through the tunnel. Leaves them in place when it ends."""

    def __init__(self) -> None:
        self._wanted: dict[str, str] = {}
        self._there: dict[str, tuple[str, int]] = {}
        self._dirty: set[str] = set()
        self._work = asyncio.Event()
        self._complete = False
        self._source: str | None = None
        self._mtu = 0

    def change(self, changes: Iterable[tuple[str, object]]) -> None:
        """Pod CIDRs that came or went (None)."""
        for cidr, tunnel in changes:
            if tunnel is None:
                self._wanted.pop(cidr, None)
            else:
                self._wanted[cidr] = str(tunnel)
            self._dirty.add(cidr)
        self._work.set()

    def configure(self, source: str, mtu: int) -> None:
        """The node's own address and the largest inner packet. No route is made before."""
        if (source, mtu) != (self._source, self._mtu):
            self._source, self._mtu = source, mtu
            self._dirty.update(self._wanted)
            self._work.set()

    def complete(self) -> None:
        """All CIDRs are known: what an earlier agent left beyond them goes."""
        if not self._complete:
            self._complete = True
            self._work.set()

    async def run(self, tunnel: Tunnel) -> None:
        """Keep the routes, for ever. DeviceError when the tunnel device has gone."""
        async with AsyncIPRoute() as netlink:
            self._there = await self._existing(netlink, tunnel)
            while True:
                try:
                    async with asyncio.timeout(_RETRY_SECONDS if self._dirty else _AUDIT_SECONDS):
                        await self._work.wait()
                except TimeoutError:
                    self._there = await self._existing(netlink, tunnel)
                    self._dirty.update(self._wanted)
                self._work.clear()
                if self._complete:
                    self._dirty.update(self._there.keys() - self._wanted.keys())
                taken, self._dirty = self._dirty, set()
                for cidr in taken:
                    if not await self._settle(netlink, tunnel, cidr):
                        self._dirty.add(cidr)

    async def _settle(self, netlink: AsyncIPRoute, tunnel: Tunnel, cidr: str) -> bool:
        """Bring one route to what is wanted; False if the kernel refused."""
        if cidr not in self._wanted:
            return cidr not in self._there or await self._delete(netlink, tunnel, cidr)
        if self._source is None or (":" in cidr) != (":" in self._source):
            return True
        is_so = (self._source, self._mtu)
        if self._there.get(cidr) == is_so:
            return True
        try:
            await netlink.route(
                "replace",
                dst=cidr,
                oif=tunnel.ifindex,
                prefsrc=self._source,
                metrics={"mtu": self._mtu},
                scope=_LINK_SCOPE,
                proto=_ROUTE_PROTOCOL,
            )
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                raise DeviceError(f"{TUNNEL} is gone: it is made anew when the agent starts again") from error
            log.error("cannot route %s through the tunnel: %s; trying again", cidr, error)
            return False
        self._there[cidr] = is_so
        return True

    async def _delete(self, netlink: AsyncIPRoute, tunnel: Tunnel, cidr: str) -> bool:
        try:
            await netlink.route("del", dst=cidr, oif=tunnel.ifindex, scope=_LINK_SCOPE, proto=_ROUTE_PROTOCOL)
        except NetlinkError as error:
            if error.code != errno.ESRCH:
                log.error("cannot remove the route to %s: %s; trying again", cidr, error)
                return False
        self._there.pop(cidr, None)
        return True

    @staticmethod
    async def _existing(netlink: AsyncIPRoute, tunnel: Tunnel) -> dict[str, tuple[str, int]]:
        there: dict[str, tuple[str, int]] = {}
        async for route in await netlink.get_routes(oif=tunnel.ifindex, family=2, table=254):
            destination = route.get_attr("RTA_DST")
            if destination is not None and route["proto"] == _ROUTE_PROTOCOL:
                cidr = str(ipaddress.ip_network(f"{destination}/{route['dst_len']}"))
                mtu = route.get_nested("RTA_METRICS", "RTAX_MTU") or 0
                there[cidr] = (route.get_attr("RTA_PREFSRC") or "", int(mtu))
        return there


async def _find(netlink: AsyncIPRoute, name: str) -> Any:
    for index in await netlink.link_lookup(ifname=name):
        async for link in await netlink.get_links(index):
            return link
    return None


def _is_ours(link: Any, port: int) -> bool:
    data = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
    return (
        link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "vxlan"
        and data is not None
        and bool(data.get_attr("IFLA_VXLAN_COLLECT_METADATA"))
        and data.get_attr("IFLA_VXLAN_PORT") == port
    )


async def _port_taken(netlink: AsyncIPRoute, port: int) -> DeviceError:
    others = [link.get_attr("IFLA_IFNAME") async for link in await netlink.get_links(kind="vxlan")]
    names = ", ".join(name for name in others if name != TUNNEL) or "none seen"
    return DeviceError(
        f"UDP port {port} is in use, probably by another VXLAN device ({names}): "
        "choose another --tunnel-port on all nodes of all clusters"
    )


def _quiet(name: str) -> None:
    """Sysctls of the device: no neighbour discovery of its own, and a reverse path check that knows the tunnel."""
    ipv4, ipv6 = Path("/proc/sys/net/ipv4/conf"), Path("/proc/sys/net/ipv6/conf")
    # The stricter of `all` and the device's own counts; 2 is strict about nothing but unroutable senders.
    strict = (ipv4 / "all/rp_filter").read_text().strip() != "0"
    (ipv4 / name / "rp_filter").write_text("2" if strict else "0")
    if (ipv6 / name).exists():
        (ipv6 / name / "accept_ra").write_text("0")
        (ipv6 / name / "addr_gen_mode").write_text("1")
