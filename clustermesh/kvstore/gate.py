"""Deletions that count only while their writer vouches for them.

What the API server writes hangs on its lease and on its etcd. When either is lost, keys vanish although the pods and
services they speak of live on; a node that believed it would cut its own traffic. Each prefix has a canary, which the
writer sets once the prefix is complete and which is lost together with it. So a deletion counts while the canary
stands; otherwise it waits until the canary is back, and a key that has come back by then was never deleted.
"""

from collections.abc import Sequence

from clustermesh.kvstore.feed import Event


class Gate:
    """Holds back deletions of one prefix."""

    def __init__(self) -> None:
        self._held: dict[bytes, Event] = {}

    @property
    def holds(self) -> bool:
        return bool(self._held)

    def admit(self, events: Sequence[Event], vouched: bool) -> Sequence[Event]:
        """The events that count now. `vouched`: whether the canary stands at or after these events."""
        if vouched and not self._held:
            return events
        admitted = []
        for event in events:
            if event.value is None and not vouched:
                self._held[event.key] = event
            else:
                self._held.pop(event.key, None)
                admitted.append(event)
        return admitted

    def release(self) -> list[Event]:
        """The canary is back: deletions that nothing has revoked since."""
        released, self._held = list(self._held.values()), {}
        return released
