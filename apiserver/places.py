"""Two places for the records of a kind: where peers read, and below `clustermesh/` for the own agents alone.

A record that changes its place stands in both for a moment, so that no agent ever misses it. What is another's record
goes at once.
"""

from collections.abc import Callable

from clustermesh.kvstore.writer import Writer


class Places:
    """`public` and `private` make keys of names."""

    def __init__(self, writer: Writer, public: Callable[[str], str], private: Callable[[str], str]) -> None:
        self._writer = writer
        self._public = public
        self._private = private
        # Keys of records that stand in their new place already, by the turn in which they were put there.
        self._leaving: dict[str, int] = {}
        self._turn = 0

    def put(self, name: str, value: bytes, *, public: bool, replaces: bool = False) -> bool:
        """Whether the record is new in its place. `replaces`: the name belonged to somebody else, if to anybody."""
        here, there = self._public(name), self._private(name)
        if not public:
            here, there = there, here
        new = self._writer.known(here) != value
        self._writer.put(here, value)
        self._leaving.pop(here, None)
        other = self._writer.known(there)
        if other == value or (other is not None and not replaces):
            if there not in self._leaving:
                self._turn += 1
                self._leaving[there] = self._turn
        elif other is not None:
            self._delete(there)
        return new

    def delete(self, name: str) -> None:
        for key in (self._public(name), self._private(name)):
            if self._writer.known(key) is not None:
                self._delete(key)

    @property
    def turn(self) -> int:
        """Of the latest record that stands in two places."""
        return self._turn if self._leaving else 0

    def vacate(self, turn: int) -> None:
        """Records that were put in two places up to `turn` leave the old one. They must be in etcd by now."""
        for key in [key for key, put in self._leaving.items() if put <= turn]:
            self._delete(key)

    def _delete(self, key: str) -> None:
        self._writer.delete(key)
        self._leaving.pop(key, None)
