"""This cluster's own records, as far as its peers are judged by them: its nodes, and which addresses are taken.

What vanishes together with its canary, because etcd or the lease was lost, stays claimed until the exporter is back: in
between a peer could take it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial

from apiserver.claims import Claims
from apiserver.own_claims import OwnClaims
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.feed import Event
from clustermesh.kvstore.vouched import stands, vouched
from clustermesh.wire import keys, records
from clustermesh.wire.errors import RecordError
from clustermesh.wire.keys import Kind

log = logging.getLogger(__name__)

_Take = Callable[[str, bytes | None], None]


class OwnCluster:
    """Follows the own etcd while `run` runs.

    `nodes`: those that should have an agent; `nodes_known` is set once the exporter has written all of them. `changed`
    is called when they change.
    """

    def __init__(self, cluster: str, connection: Connection, claims: Claims, *, changed: Callable[[], None]) -> None:
        self.nodes: set[str] = set()
        self.nodes_known = asyncio.Event()
        self._cluster = cluster
        self._connection = connection
        self._claims = claims
        self._own = OwnClaims(cluster, claims)
        self._changed = changed

    async def run(self) -> None:
        nodes = keys.state_prefix(Kind.NODES, self._cluster)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(Kind.NODES, nodes, self._take_node, self.nodes_known.set))
            await self.nodes_known.wait()
            for prefix in (keys.state_prefix(Kind.ADDRESSES, self._cluster), keys.LOCAL_ADDRESSES):
                tasks.create_task(self._follow(Kind.ADDRESSES, prefix, partial(self._take_pod, prefix)))

    async def _follow(self, kind: Kind, prefix: str, take: _Take, listed: Callable[[], None] = lambda: None) -> None:
        canary = keys.state_canary(kind, self._cluster)

        def apply(events: Sequence[Event]) -> None:
            for event in events:
                take(event.key.decode(errors="replace")[len(prefix) :], event.value)
            self._claims.settle()

        await stands(self._connection, canary)
        async with (
            asyncio.TaskGroup() as tasks,
            aclosing(vouched(self._connection, prefix, canary, apply, tasks)) as batches,
        ):
            async for batch in batches:
                if batch.synced:
                    listed()

    def _take_node(self, name: str, value: bytes | None) -> None:
        self._changed()
        if value is None:
            self.nodes.discard(name)
            self._own.delete_node(name)
            return
        self.nodes.add(name)
        try:
            self._own.put_node(records.decode(records.Node, value))
        except RecordError as error:
            log.error("own node %s: %s", name, error)

    def _take_pod(self, prefix: str, address: str, value: bytes | None) -> None:
        if value is None:
            self._own.delete_pod(prefix, address)
        else:
            self._own.put_pod(prefix, address)
