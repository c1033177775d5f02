"""Which records of a peer are kept out now, and why. Bounded, whatever a peer writes.

Beyond the bound a refused record is counted but not remembered; to judge it again its kind must be read again.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import NamedTuple

import msgspec

from clustermesh.wire.keys import Kind

log = logging.getLogger(__name__)

EXAMPLES = 10
# Records that are remembered, and bytes of their keys and values.
MOST_RECORDS = 20_000
MOST_BYTES = 32 << 20
_NAMED_IN_LOG = 10
_SHOWN = 160  # characters of a key


class Refused(NamedTuple):
    """Why a record is kept out, and its value while it may become right without being written again."""

    reason: str
    value: bytes | None


class QuarantineView(msgspec.Struct, frozen=True):
    total: int = 0
    by_reason: Mapping[str, int] = {}
    examples: tuple[str, ...] = ()  # "key: reason", every reason in turn


class Quarantine:
    """The refused records of one peer."""

    def __init__(self, peer: str, *, most: int = MOST_RECORDS, most_bytes: int = MOST_BYTES) -> None:
        self._peer = peer
        self._most = most
        self._most_bytes = most_bytes
        self._records: dict[Kind, dict[str, Refused]] = {kind: {} for kind in Kind}
        self._by_reason: dict[str, dict[tuple[Kind, str], None]] = {}
        self._size = 0
        self._bytes = 0
        self._forgotten: dict[Kind, Counter[str]] = {}
        self._logged: Counter[str] = Counter()

    def put(self, kind: Kind, tail: str, reason: str, value: bytes | None) -> bool:
        """Note a refused record; False when there is no room to remember it."""
        before = self.release(kind, tail)
        if before is None or before.reason != reason:
            self._tell(kind, tail, reason)
        size = len(tail) + len(value or b"")
        if self._size >= self._most or self._bytes + size > self._most_bytes:
            self._forgotten.setdefault(kind, Counter())[reason] += 1
            return False
        self._records[kind][tail] = Refused(reason, value)
        self._by_reason.setdefault(reason, {})[kind, tail] = None
        self._size += 1
        self._bytes += size
        return True

    def release(self, kind: Kind, tail: str) -> Refused | None:
        """The record was corrected or deleted; what it was remembered with."""
        refused = self._records[kind].pop(tail, None)
        if refused is not None:
            self._size -= 1
            self._bytes -= len(tail) + len(refused.value or b"")
            alike = self._by_reason[refused.reason]
            del alike[kind, tail]
            if not alike:
                del self._by_reason[refused.reason]
        return refused

    def get(self, kind: Kind, tail: str) -> Refused | None:
        return self._records[kind].get(tail)

    def tails(self, kind: Kind) -> Iterator[str]:
        return iter(self._records[kind])

    def waiting(self, kind: Kind) -> Iterator[str]:
        """Those that may become right without being written again."""
        return (tail for tail, refused in self._records[kind].items() if refused.value is not None)

    def waits(self, kind: Kind, tail: str) -> bool:
        refused = self._records[kind].get(tail)
        return refused is not None and refused.value is not None

    @property
    def forgotten(self) -> frozenset[Kind]:
        """Kinds of which records were refused that are not remembered."""
        return frozenset(self._forgotten)

    def recount(self, kind: Kind) -> None:
        """The kind is being read from its beginning: what was not remembered comes again."""
        self._forgotten.pop(kind, None)

    def view(self) -> QuarantineView:
        counts = Counter({reason: len(alike) for reason, alike in self._by_reason.items()})
        for forgotten in self._forgotten.values():
            counts.update(forgotten)
        examples: list[str] = []
        columns = [iter(alike) for alike in self._by_reason.values()]
        for row in zip_longest(*columns):
            for reason, one in zip(self._by_reason, row, strict=True):
                if one is not None:
                    examples.append(f"{shown(*one)}: {reason}")
            if len(examples) >= EXAMPLES:
                break
        return QuarantineView(counts.total(), dict(sorted(counts.items())), tuple(examples[:EXAMPLES]))

    def _tell(self, kind: Kind, tail: str, reason: str) -> None:
        self._logged[reason] += 1
        if self._logged[reason] <= _NAMED_IN_LOG:
            more = "; further ones are not named" if self._logged[reason] == _NAMED_IN_LOG else ""
            log.warning("peer %s: kept out %s: %s%s", self._peer, shown(kind, tail), reason, more)


def shown(kind: Kind, tail: str) -> str:
    """A key as it can be printed, whatever bytes it was made of."""
    cut = tail[:_SHOWN]
    text = cut.encode(errors="surrogateescape").decode(errors="backslashreplace")
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"{kind}/{printable}{'…' if len(tail) > _SHOWN else ''}"
