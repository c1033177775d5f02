"""Reading a BPF ring buffer through its memory map. One reader a ring: reading consumes.

Layout: a page with the consumer's position (ours to write), a page with the producer's, then the data, mapped twice
in a row so that a record never wraps. A record is u32 length (bit 31 busy, bit 30 discarded), u32 page offset, data.
"""

import mmap
from collections.abc import Iterator

_BUSY, _DISCARDED = 1 << 31, 1 << 30
_HEADER = 8


class RingBuffer:
    """``fd`` (the map's) polls readable while records wait; it stays the caller's."""

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self.fd = fd
        self._mask = size - 1
        self._own = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._kernel = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._data = page
        # Whole 64-bit loads and stores: the other side reads and writes the positions while we do.
        self._consumed = memoryview(self._own).cast("Q")
        self._produced = memoryview(self._kernel)[:page].cast("Q")
        self._lengths = memoryview(self._kernel)[page:].cast("I")

    def read(self) -> Iterator[bytes]:
        """The records that are complete; each is consumed as it is yielded."""
        position = self._consumed[0]
        while position < self._produced[0]:
            offset = position & self._mask
            header = self._lengths[offset // 4]
            if header & _BUSY:
                return
            length = header & ~(_BUSY | _DISCARDED)
            start = self._data + offset + _HEADER
            record = None if header & _DISCARDED else self._kernel[start : start + length]
            position += (length + _HEADER + 7) // 8 * 8
            self._consumed[0] = position
            if record is not None:
                yield record

    def close(self) -> None:
        for view in (self._consumed, self._produced, self._lengths):
            view.release()
        self._own.close()
        self._kernel.close()
