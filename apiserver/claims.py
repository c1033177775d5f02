"""Which cluster owns which addresses: the first to claim a range holds it, this cluster's own nodes before all.

A range is claimed by a node that gives addresses out of it to pods; a node's own address is a range of one.
"""

from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

# Networks of one length: the bits that are not host bits → how many claims each owner has there.
_Level = dict[int, Counter[str]]
_Length = tuple[int, int]  # IP version, number of host bits


class Claims:
    """Ranges by owner. A question costs one look-up for each distinct prefix length, however many ranges there are."""

    def __init__(self) -> None:
        self._by_node: dict[tuple[str, str], tuple[Network, ...]] = {}
        self._held: dict[_Length, _Level] = {}
        # What lies inside a shorter prefix: made when a length is first asked for, kept up from then on.
        self._inside: dict[_Length, _Level] = {}

    def hold(self, owner: str, node: str, networks: Iterable[Network], addresses: Iterable[Address] = ()) -> None:
        """Replace the claims of one node of `owner`."""
        self.release(owner, node)
        claimed = (*networks, *(ip_network(address) for address in addresses))
        self._by_node[owner, node] = claimed
        for network in claimed:
            self._count(network, owner, 1)

    def release(self, owner: str, node: str) -> None:
        for network in self._by_node.pop((owner, node), ()):
            self._count(network, owner, -1)

    def release_all(self, owner: str) -> None:
        for held_by, node in [key for key in self._by_node if key[0] == owner]:
            self.release(held_by, node)

    def others(self, owner: str, network: Network) -> str | None:
        """Another owner of something that overlaps `network`, if there is one."""
        shift, version, number = _host_bits(network), network.version, int(network.network_address)
        for (held_version, held_shift), level in self._held.items():
            if held_version == version and held_shift >= shift and (found := level.get(number >> held_shift)):
                for other in found:
                    if other != owner:
                        return other
        for other in self._level_inside(version, shift).get(number >> shift, ()):
            if other != owner:
                return other
        return None

    def holds(self, owner: str, address: Address) -> bool:
        """Whether `address` lies in a range of `owner`."""
        number = int(address)
        return any(
            version == address.version and owner in level.get(number >> shift, ())
            for (version, shift), level in self._held.items()
        )

    def _level_inside(self, version: int, shift: int) -> _Level:
        level = self._inside.get((version, shift))
        if level is None:
            level = self._inside[version, shift] = {}
            for (held_version, held_shift), members in self._held.items():
                if held_version == version and held_shift < shift:
                    for number, owners in members.items():
                        level.setdefault(number >> (shift - held_shift), Counter()).update(owners)
        return level

    def _count(self, network: Network, owner: str, difference: int) -> None:
        shift, number = _host_bits(network), int(network.network_address)
        levels = [self._held.setdefault((network.version, shift), {})]
        shifts = [shift]
        for (version, wider), level in self._inside.items():
            if version == network.version and wider > shift:
                levels.append(level)
                shifts.append(wider)
        for level, by in zip(levels, shifts, strict=True):
            owners = level.setdefault(number >> by, Counter())
            owners[owner] += difference
            if not owners[owner]:
                del owners[owner]
            if not owners:
                del level[number >> by]


def _host_bits(network: Network) -> int:
    return network.max_prefixlen - network.prefixlen
