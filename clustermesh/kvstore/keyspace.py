"""Keys and key ranges as etcd sees them: bytes, ordered byte by byte."""

Key = str | bytes

# As the end of a range: everything from the first key on.
TO_THE_END = b"\0"


def to_bytes(key: Key) -> bytes:
    """A key as etcd stores it."""
    return key.encode() if isinstance(key, str) else key


def prefix_end(prefix: bytes) -> bytes:
    """The first key behind all keys that start with prefix (exclusive end of the range)."""
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return TO_THE_END
    return stem[:-1] + bytes((stem[-1] + 1,))


def prefix_range(prefix: Key) -> tuple[bytes, bytes]:
    """(start, exclusive end) of all keys that start with prefix; the empty prefix means every key."""
    start = to_bytes(prefix)
    return start or b"\0", prefix_end(start)


def successor(key: bytes) -> bytes:
    """The next possible key."""
    return key + b"\0"
