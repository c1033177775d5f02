"""What this cluster itself claims: its nodes, and its pods where they have addresses outside of all nodes' pod CIDRs.

The latter are those of a cluster whose CNI gives out addresses by other rules than the nodes' ranges.
"""

from collections.abc import Sequence

from apiserver.claims import Claims
from apiserver.range_index import RangeIndex
from clustermesh.wire.ranges import Range, number_of
from clustermesh.wire.records import Node
from clustermesh.wire.validation import node_ranges


class OwnClaims:
    """Call `Claims.settle` after a batch of changes."""

    def __init__(self, cluster: str, claims: Claims) -> None:
        self._cluster = cluster
        self._claims = claims
        self._pods: dict[str, tuple[str, ...]] = {}  # address → the prefixes that it stands under
        self._index = RangeIndex(lambda: self._pods)
        self._dirty: set[str] = set()
        claims.watch(cluster, self)

    def put_node(self, node: Node) -> None:
        """RecordError when a pod CIDR is malformed."""
        self._claims.hold(self._cluster, node.name, node_ranges(node))

    def delete_node(self, name: str) -> None:
        self._claims.release(self._cluster, name)

    def put_pod(self, place: str, address: str) -> None:
        """`place` is where it stands: a pod that moves between two is for a moment in both."""
        places = self._pods.get(address, ())
        if place not in places:
            self._pods[address] = (*places, place)
        if not places:
            self._index.add(address)
            self._judge(address)

    def delete_pod(self, place: str, address: str) -> None:
        places = self._pods.get(address, ())
        if place not in places:
            return
        left = tuple(other for other in places if other != place)
        if left:
            self._pods[address] = left
            return
        del self._pods[address]
        self._index.discard(address)
        self._claims.release(self._cluster, _claim(address))

    def touched(self, owner: str, gained: Sequence[Range], lost: Sequence[Range]) -> bool:
        """See `Watcher`."""
        if owner == self._cluster:
            for changed in (*gained, *lost):
                if changed.host_bits:
                    self._dirty.update(self._index.inside(changed))
        return bool(self._dirty)

    def settle(self) -> int:
        """See `Watcher`."""
        dirty, self._dirty = self._dirty & self._pods.keys(), set()
        for address in dirty:
            self._judge(address)
        return len(dirty)

    def _judge(self, address: str) -> None:
        found = number_of(address)
        if found is None:
            return
        if self._claims.is_in_range(self._cluster, *found):
            self._claims.release(self._cluster, _claim(address))
        else:
            self._claims.hold(self._cluster, _claim(address), (Range(*found, 0),))


def _claim(address: str) -> str:
    return f"pod {address}"  # no node can be called so
