"""Numbers for backends, stable across restarts.

Connections remember their backend by number, so a number must never come to mean another backend. A number is a hash
of what it stands for; numbers found in the kernel at start are kept, which settles collisions the same way again.
"""

from collections.abc import Iterable
from zlib import crc32

_LIMIT = 1 << 32


class BackendIds:
    """Numbers in use, by the backend's value in the kernel map, counted by users."""

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._values: dict[int, bytes] = {}
        self._users: dict[bytes, int] = {}

    def adopt(self, backends: Iterable[tuple[int, bytes]]) -> None:
        """Numbers that the kernel knows. They stay reserved for their backends even while nobody uses them."""
        for number, value in backends:
            if value not in self._ids:
                self._ids[value], self._values[number] = number, value

    def number(self, value: bytes) -> int:
        """The number of a backend in use."""
        return self._ids[value]

    def acquire(self, value: bytes) -> tuple[int, bool]:
        """The backend's number, and whether this is its first user."""
        users = self._users.get(value, 0)
        self._users[value] = users + 1
        number = self._ids.get(value)
        if number is None:
            number = crc32(value) or 1
            while number in self._values:
                number = (number + 1) % _LIMIT or 1
            self._ids[value], self._values[number] = number, value
        return number, users == 0

    def release(self, value: bytes) -> int | None:
        """One user less; the number if that was the last one. The number is free for others from then on."""
        users = self._users[value] - 1
        if users:
            self._users[value] = users
            return None
        del self._users[value]
        number = self._ids.pop(value)
        del self._values[number]
        return number
