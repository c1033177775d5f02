"""Entries that several sources may claim: the best source's claim counts, the others wait behind it.

A pod's address belongs to one cluster in a sound mesh, yet two clusters may announce it, if only for a moment. Which
one counts must not depend on the order of events, and when the better claim goes the next one must come forward.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from nodeagent.tables.source import Source

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Changes = list[tuple[K, V | None]]  # None: the entry goes


class Ranked(Generic[K, V]):
    """Claims by source and their outcome. A change costs the same whatever the table holds, unless it is contested."""

    def __init__(self) -> None:
        self._claims: dict[Source, dict[K, V]] = {}
        self._winners: dict[K, V] = {}
        self._contested: set[K] = set()

    @property
    def entries(self) -> Mapping[K, V]:
        """The outcome."""
        return self._winners

    @property
    def contested(self) -> int:
        """Entries that more than one source claims or has claimed since the entry appeared."""
        return len(self._contested)

    def claims(self, source: Source) -> Mapping[K, V]:
        """What `source` claims, whether or not it counts."""
        return self._claims.get(source, {})

    def apply(self, source: Source, changes: Iterable[tuple[K, V | None]]) -> Changes[K, V]:
        """Take claims and withdrawals (value None) of a source; returns the entries that changed."""
        mine = self._claims.setdefault(source, {})
        winners, contested = self._winners, self._contested
        changed: Changes[K, V] = []
        for key, value in changes:
            if key in contested or (key in winners and key not in mine):
                if value is None:
                    if mine.pop(key, None) is None:
                        continue
                else:
                    mine[key] = value
                changed.extend(self._settle(key))
            elif value is None:
                if mine.pop(key, None) is not None:
                    del winners[key]
                    changed.append((key, None))
            elif mine.get(key) != value:
                mine[key] = winners[key] = value
                changed.append((key, value))
        if not mine:
            del self._claims[source]
        return changed

    def replace(self, source: Source, claims: Mapping[K, V]) -> Changes[K, V]:
        """Make `claims` all that a source claims."""
        gone: list[tuple[K, V | None]] = [(key, None) for key in self.claims(source) if key not in claims]
        return self.apply(source, [*gone, *claims.items()])

    def drop(self, source: Source) -> Changes[K, V]:
        """Forget a source."""
        return self.replace(source, {})

    def _settle(self, key: K) -> Changes[K, V]:
        """Find who counts among several claims. Rare, and its cost follows the number of sources."""
        sources = [source for source, claims in self._claims.items() if key in claims]
        if len(sources) > 1:
            self._contested.add(key)
        else:
            self._contested.discard(key)
        before = self._winners.get(key)
        if not sources:
            self._winners.pop(key, None)
            return [(key, None)] if before is not None else []
        value = self._claims[min(sources)][key]
        if value == before:
            return []
        self._winners[key] = value
        return [(key, value)]
