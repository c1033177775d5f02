"""All that the mesh's etcd ever held below a prefix, revision by revision."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager

from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.feed import Event, Feed
from clustermesh.tasks import end
from clustermesh.wire import keys
from clustermesh.wire.keys import Kind
from tests.integration.waiting import eventually


class History:
    def __init__(self, connection: Connection, prefix: str = "c") -> None:
        self.events: list[Event] = []
        self._connection = connection
        self._feed = Feed(connection, prefix)
        self._reached = 0

    async def run(self) -> None:
        async with aclosing(self._feed.batches()) as batches:
            async for batch in batches:
                self.events += batch.events
                self._reached = batch.revision

    async def caught_up(self) -> None:
        """Wait until all that has been written until now is in `events`."""
        marker = "clustermesh/test/marker"
        revision = await self._connection.put(marker, b"")
        await eventually(lambda: self._reached >= revision)
        await self._connection.delete(marker)

    def of(self, key: str) -> list[str | None]:
        """Every value that the key had, in order; None: it was gone."""
        return [None if e.value is None else e.value.decode() for e in self.events if e.key == key.encode()]

    def states(self) -> Iterator[tuple[int, dict[str, str]]]:
        """(revision, everything that stood then), for each revision. The same dict, changed in place."""
        state: dict[str, str] = {}
        for index, event in enumerate(self.events):
            if event.value is None:
                state.pop(event.key.decode(), None)
            else:
                state[event.key.decode()] = event.value.decode(errors="replace")
            following = self.events[index + 1 :][:1]
            if not following or following[0].mod_revision != event.mod_revision:
                yield event.mod_revision, state

    def loose_ends(self, cluster: str = "red") -> list[str]:
        """Whatever pointed to what peers did not know at that revision."""
        found = []
        addresses = keys.state_prefix(Kind.ADDRESSES, cluster)
        services = keys.state_prefix(Kind.SERVICES, cluster)
        for revision, state in self.states():
            for key, value in state.items():
                if key.startswith(addresses):
                    wanted = [keys.identity(json.loads(value)["ID"])]
                elif key.startswith(services):
                    wanted = [keys.address(ip) for ip in json.loads(value)["backends"]]
                else:
                    continue
                found += [f"revision {revision}: {key} leads to {other}" for other in wanted if other not in state]
        return found


@asynccontextmanager
async def recording(connection: Connection) -> AsyncIterator[History]:
    history = History(connection)
    task = asyncio.create_task(history.run())
    try:
        yield history
        if task.done():
            task.result()
    finally:
        await end(task)
