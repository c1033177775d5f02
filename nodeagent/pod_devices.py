"""Which device of this node leads to a local pod, asked of the kernel: no CNI's naming is relied upon.

Most CNIs route a pod's address to the host side of its veth. Others put a bridge between; then the neighbour table
knows the pod's MAC and the bridge's forwarding table the port behind which it is.
"""

from dataclasses import dataclass
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

_USE = 1  # NTF_USE: resolve the neighbour as if a packet had to go there


@dataclass(frozen=True, slots=True)
class PodDevice:
    """The host side of a pod's veth, and the MAC address of the pod's side (zeroes when that cannot be found)."""

    ifindex: int
    mac: bytes


class PodDevices:
    """Look-ups in the network namespace of the netlink socket."""

    def __init__(self, netlink: AsyncIPRoute) -> None:
        self._netlink = netlink

    async def find(self, ip: str) -> PodDevice | None:
        """The device of a local pod; None while there is none, or when the address leads elsewhere."""
        try:
            routes = list(await self._netlink.route("get", dst=ip))
        except NetlinkError:
            return None
        if not routes or routes[0].get_attr("RTA_GATEWAY") or routes[0].get_attr("RTA_VIA"):
            return None
        link = await self._link(routes[0].get_attr("RTA_OIF"))
        if link is None:
            return None
        kind = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")
        if kind == "bridge":
            return await self._behind_bridge(link["index"], ip)
        return PodDevice(link["index"], await self._peer_mac(link)) if kind == "veth" else None

    async def _link(self, ifindex: int, **where: int) -> Any:
        try:
            return next(iter([link async for link in await self._netlink.get_links(ifindex, **where)]), None)
        except NetlinkError:
            return None

    async def _peer_mac(self, link: Any) -> bytes:
        """Of the other end of a veth, which is in another namespace as a rule."""
        peer, namespace = link.get_attr("IFLA_LINK"), link.get_attr("IFLA_LINK_NETNSID")
        if peer is None:
            return bytes(6)
        where = {} if namespace is None else {"if_netnsid": namespace}
        other = await self._link(peer, **where)
        return _mac(other.get_attr("IFLA_ADDRESS")) if other is not None else bytes(6)

    async def _behind_bridge(self, bridge: int, ip: str) -> PodDevice | None:
        mac = await self._neighbour(bridge, ip)
        if mac is None:
            await self._resolve(bridge, ip)  # its answer comes as a netlink event
            return None
        try:
            entries = [entry async for entry in await self._netlink.fdb("dump", lladdr=mac)]
        except NetlinkError:
            return None
        for entry in entries:
            if entry.get_attr("NDA_MASTER") == bridge and entry["ifindex"] != bridge:
                return PodDevice(entry["ifindex"], _mac(mac))
        return None

    async def _neighbour(self, ifindex: int, ip: str) -> str | None:
        neighbours = await self._netlink.get_neighbours(dst=ip, ifindex=ifindex)
        macs = [neighbour.get_attr("NDA_LLADDR") async for neighbour in neighbours]
        return next((mac for mac in macs if mac), None)

    async def _resolve(self, ifindex: int, ip: str) -> None:
        try:
            await self._netlink.neigh("replace", dst=ip, ifindex=ifindex, flags=_USE, state=0)
        except NetlinkError:
            return


def _mac(text: str | None) -> bytes:
    return bytes.fromhex(text.replace(":", "")) if text else bytes(6)
