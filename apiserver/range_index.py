"""Which of a set of addresses lie in a range, at a cost that follows what is found."""

from collections.abc import Callable, Iterable, Iterator

from clustermesh.wire.ranges import Range, number_of, text_of

_STEP = 8  # host bits from one level to the next; few levels, whatever lengths are asked for


class RangeIndex:
    """Addresses as text, the one spelling that `text_of` gives. `members` are all of them, each once or more.

    An address is found by its upper bits on levels of 8, 16, … host bits. A level is made when it is first needed.
    """

    def __init__(self, members: Callable[[], Iterable[str]]) -> None:
        self._members = members
        self._levels: dict[tuple[int, int], dict[int, set[str]]] = {}

    def add(self, text: str) -> None:
        if self._levels and (found := number_of(text)) is not None:
            version, number = found
            for (of_version, bits), level in self._levels.items():
                if of_version != version:
                    continue
                if (inside := level.get(number >> bits)) is not None:
                    inside.add(text)
                else:
                    level[number >> bits] = {text}

    def discard(self, text: str) -> None:
        if self._levels and (found := number_of(text)) is not None:
            version, number = found
            for (of_version, bits), level in self._levels.items():
                if of_version == version and (inside := level.get(number >> bits)) is not None:
                    inside.discard(text)
                    if not inside:
                        del level[number >> bits]

    def inside(self, among: Range) -> Iterator[str]:
        """The members that lie in `among`; of a single address only its spelling, be it a member or not."""
        version, first, host_bits = among
        if not host_bits:
            yield text_of(version, first)
            return
        bits = max(_STEP, host_bits - host_bits % _STEP)
        level = self._levels.get((version, bits))
        if level is None:
            level = self._levels[version, bits] = self._make(version, bits)
        if not level:
            return
        if bits > host_bits:
            for text in level.get(first >> bits, ()):
                found = number_of(text)
                if found is not None and found[1] >> host_bits == first >> host_bits:
                    yield text
            return
        start = first >> bits
        for number in range(start, start + (1 << (host_bits - bits))):
            yield from level.get(number, ())

    def _make(self, version: int, bits: int) -> dict[int, set[str]]:
        level: dict[int, set[str]] = {}
        for text in self._members():
            found = number_of(text)
            if found is not None and found[0] == version:
                level.setdefault(found[1] >> bits, set()).add(text)
        return level
