"""How long to wait before trying again."""

import random


class Backoff:
    """Doubling waits in seconds, spread by chance so that many clients do not come back at the same moment."""

    def __init__(self, first: float = 0.1, limit: float = 5.0) -> None:
        self._first = first
        self._limit = limit
        self._wait = first

    def next(self) -> float:
        """The wait before the next attempt."""
        wait, self._wait = self._wait, min(self._wait * 2, self._limit)
        return wait * random.uniform(0.7, 1.3)

    def reset(self) -> None:
        """Success: start small again."""
        self._wait = self._first
