"""A kernel map in memory that can be told to refuse."""

from collections.abc import Iterable

from nodeagent.datapath.errors import DatapathError
from nodeagent.reconciler import STAGES


class MemoryMap:
    """`content` is what the kernel holds; `room` how many entries fit; `log` what was done, in order."""

    def __init__(self, name: str, log: list[tuple[str, str, bytes]], room: int = 1 << 30) -> None:
        self.name = name
        self.content: dict[bytes, bytes] = {}
        self.room = room
        self._log = log

    def update_batch(self, entries: list[tuple[bytes, bytes]]) -> None:
        for key, value in entries:
            if key not in self.content and len(self.content) >= self.room:
                raise DatapathError(f"map {self.name} is full")
            self.content[key] = value
            self._log.append(("write", self.name, key))

    def delete_batch(self, keys: list[bytes]) -> None:
        for key in keys:
            if self.content.pop(key, None) is not None:
                self._log.append(("remove", self.name, key))

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        return list(self.content.items())

    def lookup(self, key: bytes) -> bytes | None:
        return self.content.get(key)


def memory_maps(log: list[tuple[str, str, bytes]] | None = None) -> dict[str, MemoryMap]:
    return {stage.map_name: MemoryMap(stage.map_name, log if log is not None else []) for stage in STAGES}
