"""How much is taken of a peer: so many records and bytes, and so many changes a second."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from clustermesh.kube.objects import PeerQuota

OVER_RECORDS = "over the quota of records"
OVER_BYTES = "over the quota of bytes"
# What a peer that was quiet may bring at once, in seconds of its rate: a first list is no flood.
BURST_SECONDS = 15.0


# Bytes of a value that count as one change. That of an address has 230, of a service with 5,000 backends 800,000.
CHANGE_BYTES = 512


@dataclass(slots=True)
class Usage:
    """What of a quota is used. Bytes are those of keys below their prefixes and of values."""

    limit: PeerQuota
    records: int = 0
    bytes: int = 0

    def refusal(self, before: int | None, after: int) -> str | None:
        """Why a record of `after` bytes cannot take the place of one of `before` bytes; None: it is new."""
        if before is None and self.records >= self.limit.records:
            return OVER_RECORDS
        grows = after - (before or 0)
        if grows > 0 and self.bytes + grows > self.limit.bytes:
            return OVER_BYTES
        return None

    def replace(self, before: int | None, after: int | None) -> None:
        """Count a record in, out or anew."""
        self.records += (after is not None) - (before is not None)
        self.bytes += (after or 0) - (before or 0)


def changes(values: Iterable[bytes | None]) -> int:
    """How many changes these count as: judging one costs what its value's size costs."""
    return sum(1 + len(value) // CHANGE_BYTES if value is not None else 1 for value in values)


class Pace:
    """A token bucket: whoever takes more changes than the rate allows waits. Nothing is lost or overtaken."""

    def __init__(
        self,
        rate: float,
        *,
        burst: float | None = None,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.waited = 0.0  # seconds, by all together
        self._waiting = 0
        self._rate = rate
        self._burst = rate * BURST_SECONDS if burst is None else burst
        self._tokens = self._burst
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._sleep = sleep
        self._filled: float | None = None

    @property
    def throttled(self) -> bool:
        """Whether somebody waits now."""
        return self._waiting > 0

    async def spend(self, changes: int) -> None:
        """Return once `changes` more are within the rate."""
        now = self._clock()
        if self._filled is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        self._tokens -= changes
        if self._tokens >= 0:
            return
        wait = -self._tokens / self._rate
        self._waiting += 1
        try:
            await self._sleep(wait)
        finally:
            self._waiting -= 1
            self.waited += wait
