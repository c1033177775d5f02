"""Kernel maps as raw keys and values: bulk first, one element at a time where the kernel knows no better."""

import ctypes
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from nodeagent.datapath import bpf
from nodeagent.datapath.abi import Map
from nodeagent.datapath.errors import DatapathError

BATCH = 65536
"""Elements handed to the kernel in one call: a few MiB of keys and values."""

_NO_BATCHES = {errno.EINVAL, errno.EOPNOTSUPP, 524}  # 524: ENOTSUPP, which has no name in user space
_PER_CPU = {bpf.MapType.PERCPU_HASH, bpf.MapType.PERCPU_ARRAY, bpf.MapType.LRU_PERCPU_HASH}


def possible_cpus() -> int:
    """How many values a per-CPU map holds for a key."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii")
    return 1 + max(int(part.rpartition("-")[2]) for part in text.split(","))


class BpfMap:
    """An open map; owns its file descriptor. Methods raise DatapathError when the kernel refuses."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.info = bpf.map_info(fd)
        self._value_size = self.info.value_size
        if self.info.type in _PER_CPU:
            self._value_size = (self.info.value_size + 7) // 8 * 8 * possible_cpus()

    @classmethod
    def pinned(cls, path: Path) -> Self:
        try:
            return cls(path.name, bpf.obj_get(path))
        except FileNotFoundError:
            raise DatapathError(f"no map pinned at {path}; has the agent of this node ever run?") from None
        except PermissionError:
            raise DatapathError(f"not allowed to open {path}; run as root (CAP_BPF)") from None

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def lookup(self, key: bytes) -> bytes | None:
        return bpf.map_lookup(self.fd, key, self._value_size)

    def update(self, key: bytes, value: bytes) -> None:
        try:
            bpf.map_update(self.fd, key, value)
        except OSError as error:
            raise self._refused("update", error) from error

    def delete(self, key: bytes) -> bool:
        """Whether the key was there."""
        return bpf.map_delete(self.fd, key)

    def update_batch(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Write all entries, in order. Raises DatapathError (those before the refused one are written)."""
        for start in range(0, len(entries), BATCH):
            chunk = entries[start : start + BATCH]
            keys = bpf.buffer_of(b"".join([key for key, _ in chunk]))
            values = bpf.buffer_of(b"".join([value for _, value in chunk]))
            done, error = bpf.map_batch(bpf.Command.MAP_UPDATE_BATCH, self.fd, len(chunk), keys, values)
            if error is None:
                continue
            if error.errno not in _NO_BATCHES:
                raise self._refused("update", error) from error
            # After EINVAL `done` may be unwritten; writing an entry twice does no harm.
            for key, value in chunk[0 if done >= len(chunk) else done :]:
                self.update(key, value)

    def delete_batch(self, keys: Sequence[bytes]) -> int:
        """Delete the keys that are there; returns how many were."""
        deleted, position, size = 0, 0, self.info.key_size
        buffer = bpf.buffer_of(b"".join(keys))
        while position < len(keys):
            count = min(BATCH, len(keys) - position)
            done, error = bpf.map_batch(bpf.Command.MAP_DELETE_BATCH, self.fd, count, buffer, skip=position * size)
            if error is None:
                deleted += count
                position += count
            elif error.errno == errno.ENOENT:  # stops at a key that is not there: pass over it
                deleted += done
                position += done + 1
            elif error.errno in _NO_BATCHES:
                deleted += sum(self.delete(key) for key in keys[position : position + count])
                position += count
            else:
                raise self._refused("delete", error) from error
        return deleted

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries. Entries that come and go meanwhile may or may not show, none shows twice."""
        if self.info.type in (bpf.MapType.HASH, bpf.MapType.LRU_HASH, bpf.MapType.LPM_TRIE):
            return self._items_by_batch()
        return self._items_one_by_one()

    def keys(self) -> Iterator[bytes]:
        key = bpf.map_next_key(self.fd, None, self.info.key_size)
        while key is not None:
            yield key
            key = bpf.map_next_key(self.fd, key, self.info.key_size)

    def __len__(self) -> int:
        """Counts by reading: the kernel keeps no number."""
        return sum(1 for _ in self.items())

    def _items_one_by_one(self) -> Iterator[tuple[bytes, bytes]]:
        seen: set[bytes] = set()
        for key in self.keys():
            if key in seen:
                continue
            seen.add(key)
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def _items_by_batch(self) -> Iterator[tuple[bytes, bytes]]:
        key_size, value_size = self.info.key_size, self._value_size
        room = 4096
        seen: set[bytes] = set()
        position: ctypes.Array[ctypes.c_char] | None = None
        following = ctypes.create_string_buffer(max(key_size, 4))
        while True:
            keys, values = ctypes.create_string_buffer(key_size * room), ctypes.create_string_buffer(value_size * room)
            count, error = bpf.map_batch(
                bpf.Command.MAP_LOOKUP_BATCH, self.fd, room, keys, values, start=position, following=following
            )
            if error is not None and error.errno == errno.ENOSPC:  # a hash bucket longer than the room
                room *= 2
                continue
            if error is not None and error.errno in _NO_BATCHES and position is None:
                yield from self._items_one_by_one()
                return
            if error is not None and error.errno not in (errno.ENOENT, errno.EFAULT):
                raise self._refused("read", error) from error
            raw_keys, raw_values = keys.raw, values.raw
            for index in range(count):
                key = raw_keys[index * key_size : (index + 1) * key_size]
                if key not in seen:
                    seen.add(key)
                    yield key, raw_values[index * value_size : (index + 1) * value_size]
            if error is not None:
                return
            position, following = following, ctypes.create_string_buffer(max(key_size, 4))

    def _refused(self, verb: str, error: OSError) -> DatapathError:
        if error.errno in (errno.E2BIG, errno.ENOSPC):
            return DatapathError(
                f"map {self.name} is full ({self.info.max_entries} entries);"
                " restart the agent with a larger size for it"
            )
        return DatapathError(f"kernel refused to {verb} map {self.name}: {error.strerror}")


def open_pinned(pin_dir: Path, names: Iterable[str] = tuple(Map)) -> dict[str, BpfMap]:
    """Open maps that an agent pinned, without loading anything; the caller closes them."""
    opened: dict[str, BpfMap] = {}
    try:
        for name in names:
            opened[str(name)] = BpfMap.pinned(pin_dir / "maps" / str(name))
    except DatapathError:
        for one in opened.values():
            one.close()
        raise
    return opened
