"""Which cluster owns which addresses: the first to claim a range holds it, this cluster's own nodes before all.

A range is claimed by a node that gives addresses out of it to pods; a node's own address is a range of one. Whoever
judges records by claims watches them: it is told every range that changed hands, notes what of its own that concerns,
and judges that again when the claims settle.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_network
from types import MappingProxyType
from typing import NamedTuple, Protocol

from clustermesh.wire.ranges import Range

# Addresses that nobody has: an owner whom no cluster can be called like.
NOBODY = ""
_SPECIAL = (
    *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "255.255.255.255/32"),
    *(f"{first}.0.0.0/8" for first in range(224, 240)),  # multicast; one prefix length less to look at
    *("::/128", "::1/128", "::ffff:0:0/96", "fe80::/10", "ff00::/8"),
)

# Ranges of one length: the bits that are not host bits → how many claims each owner has there. The counts of ranges
# that one owner claims once, nearly all, are one shared object.
_Owners = Mapping[str, int]
_Level = dict[int, _Owners]
_Levels = dict[int, _Level]  # by host bits


class Conflict(NamedTuple):
    """Who else holds something of a range. As long as `within` changes no hands, that stays so."""

    owner: str
    within: Range


class Watcher(Protocol):
    """Who judges records by what clusters claim."""

    def touched(self, owner: str, gained: Sequence[Range], lost: Sequence[Range]) -> bool:
        """Ranges changed hands. Note what that concerns; True when something must be judged again."""

    def settle(self) -> int:
        """Judge what was noted; returns how many records that were."""


class Claims:
    """Ranges by owner. A question costs one look-up for each distinct prefix length, however many ranges there are."""

    def __init__(self) -> None:
        self._by_node: dict[str, dict[str, tuple[Range, ...]]] = {}
        self._held: dict[int, _Levels] = {4: {}, 6: {}}  # by IP version
        # What lies inside a shorter prefix: made when a length is first asked for, kept up from then on.
        self._inside: dict[int, _Levels] = {4: {}, 6: {}}
        self._strays: dict[tuple[int, int], str] = {}
        self._once: dict[str, _Owners] = {}
        self._watchers: dict[str, Watcher] = {}
        self._unsettled: dict[str, Watcher] = {}
        self._settling = False
        for text in _SPECIAL:
            self._count(Range.of(ip_network(text)), NOBODY, 1)

    # Watchers

    def watch(self, owner: str, watcher: Watcher) -> None:
        """From now on this one judges the records of `owner`."""
        self._watchers[owner] = watcher
        self._unsettled.pop(owner, None)

    def unwatch(self, owner: str, watcher: Watcher) -> None:
        if self._watchers.get(owner) is watcher:
            del self._watchers[owner]
            self._unsettled.pop(owner, None)

    def wake(self, owner: str) -> None:
        """Let the one who judges `owner` take part in the next settling."""
        if (watcher := self._watchers.get(owner)) is not None:
            self._unsettled[owner] = watcher

    def settle(self) -> int:
        """Let everybody judge again what the changes so far concern, and what follows; returns how many records."""
        if self._settling:
            return 0
        self._settling = True
        judged = 0
        try:
            while self._unsettled:
                owner = next(iter(self._unsettled))
                judged += self._unsettled.pop(owner).settle()
        finally:
            self._settling = False
        return judged

    # Nodes

    def hold(self, owner: str, node: str, ranges: Iterable[Range]) -> None:
        """Replace the claims of one node of `owner`. Whether it may claim them is the caller's affair."""
        claimed = tuple(dict.fromkeys(ranges))
        nodes = self._by_node.setdefault(owner, {})
        before = nodes.get(node, ())
        if claimed:
            nodes[node] = claimed
        else:
            nodes.pop(node, None)
        gained = [range for range in claimed if range not in before]
        lost = [range for range in before if range not in claimed]
        for range in gained:
            self._count(range, owner, 1)
        for range in lost:
            self._count(range, owner, -1)
        self._tell(owner, gained, lost)

    def release(self, owner: str, node: str) -> None:
        self.hold(owner, node, ())

    def release_all(self, owner: str) -> None:
        for node in list(self._by_node.get(owner, ())):
            self.release(owner, node)
        for address, holder in list(self._strays.items()):
            if holder == owner:
                self.release_stray(owner, *address)
        self._by_node.pop(owner, None)
        self._once.pop(owner, None)

    def nodes(self, owner: str) -> Mapping[str, tuple[Range, ...]]:
        """The nodes of `owner` and what each of them claims."""
        return MappingProxyType(self._by_node.get(owner, {}))

    # Single addresses that a cluster gives to pods outside of all ranges: they yield to nodes, not to each other.

    def hold_stray(self, owner: str, version: int, number: int) -> None:
        """Unless somebody has it already."""
        if (version, number) not in self._strays:
            self._strays[version, number] = owner
            self._tell(owner, [Range(version, number, 0)], [])

    def release_stray(self, owner: str, version: int, number: int) -> None:
        if self._strays.get((version, number)) == owner:
            del self._strays[version, number]
            self._tell(owner, [], [Range(version, number, 0)])

    # Questions

    def at(self, owner: str, version: int, number: int) -> tuple[bool, str | None]:
        """Whether an address lies in a range of `owner`, and who else has it."""
        mine = False
        for bits, level in self._held[version].items():
            owners = level.get(number >> bits)
            if owners is not None:
                mine = mine or owner in owners
                for other in owners:
                    if other != owner:
                        return mine, other
        if self._strays:
            other = self._strays.get((version, number), owner)
            if other != owner and not mine:
                return mine, other
        return mine, None

    def is_node(self, owner: str, version: int, number: int) -> bool:
        """Whether an address is one of a node's own, be it `owner`'s alone or not."""
        singles = self._held[version].get(0)
        return singles is not None and owner in singles.get(number, ())

    def is_in_range(self, owner: str, version: int, number: int) -> bool:
        """Whether an address lies in a range of `owner` that is more than a single address."""
        return any(owner in level.get(number >> bits, ()) for bits, level in self._held[version].items() if bits)

    def conflict(self, owner: str, range: Range) -> Conflict | None:
        """Another owner of something that overlaps `range`, if there is one."""
        version, first, host_bits = range
        for bits, level in self._held[version].items():
            if bits >= host_bits and (owners := level.get(first >> bits)) is not None:
                for other in owners:
                    if other != owner:
                        return Conflict(other, Range(version, first >> bits << bits, bits))
        for other in self._level_inside(version, host_bits).get(first >> host_bits, ()):
            if other != owner:
                return Conflict(other, range)
        return None

    def holds_some(self, owner: str, range: Range) -> bool:
        """Whether `owner` holds something that overlaps `range`."""
        version, first, host_bits = range
        return any(
            bits >= host_bits and owner in level.get(first >> bits, ()) for bits, level in self._held[version].items()
        ) or owner in self._level_inside(version, host_bits).get(first >> host_bits, ())

    def _level_inside(self, version: int, host_bits: int) -> _Level:
        level = self._inside[version].get(host_bits)
        if level is None:
            counts: dict[int, Counter[str]] = {}
            for bits, members in self._held[version].items():
                if bits < host_bits:
                    for number, owners in members.items():
                        counts.setdefault(number >> (host_bits - bits), Counter()).update(owners)
            level = {number: self._shared(owners) for number, owners in counts.items()}
            self._inside[version][host_bits] = level
        return level

    def _count(self, range: Range, owner: str, difference: int) -> None:
        version, first, host_bits = range
        held = self._held[version]
        self._recount(held.setdefault(host_bits, {}), first >> host_bits, owner, difference)
        if not held[host_bits]:
            del held[host_bits]
        for bits, level in self._inside[version].items():
            if bits > host_bits:
                self._recount(level, first >> bits, owner, difference)

    def _recount(self, level: _Level, number: int, owner: str, difference: int) -> None:
        before = level.get(number)
        if before is None and difference == 1:  # nearly always
            level[number] = self._once.get(owner) or self._shared({owner: 1})
            return
        owners = dict(before or ())
        owners[owner] = owners.get(owner, 0) + difference
        if not owners[owner]:
            del owners[owner]
        if owners:
            level[number] = self._shared(owners)
        else:
            del level[number]

    def _shared(self, owners: _Owners) -> _Owners:
        if len(owners) == 1:
            owner, count = next(iter(owners.items()))
            if count == 1:
                return self._once.setdefault(owner, owners)
        return owners

    def _tell(self, owner: str, gained: Sequence[Range], lost: Sequence[Range]) -> None:
        if gained or lost:
            for name, watcher in self._watchers.items():
                if watcher.touched(owner, gained, lost):
                    self._unsettled[name] = watcher
