"""What a cluster says of itself besides its records: cluster-config, heartbeat and canaries."""

import asyncio
import logging
from contextlib import aclosing, suppress
from datetime import UTC, datetime

from apiserver.cluster import ClusterIdentity
from clustermesh.kube.reflector import Backoff
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.errors import KvError
from clustermesh.kvstore.feed import Feed
from clustermesh.kvstore.lease import Lease
from clustermesh.kvstore.writer import Writer
from clustermesh.wire import keys, records
from clustermesh.wire.keys import Kind
from clustermesh.wire.records import ClusterConfig

log = logging.getLogger(__name__)

HEARTBEAT = 60.0  # seconds between two heartbeats


class ControlKeys:
    """Runs until it is cancelled. `set_config` must be called before a reader can begin."""

    def __init__(
        self,
        cluster: ClusterIdentity,
        connection: Connection,
        lease: Lease,
        *,
        heartbeat: float = HEARTBEAT,
        slices: bool = True,
    ) -> None:
        """`heartbeat` in seconds. `slices`: whether endpoint slices are written beside the services."""
        self._cluster = cluster
        self._connection = connection
        self._lease = lease
        self._heartbeat = heartbeat
        self._mode = records.SERVICES_AND_SLICES if slices else ""
        self._writer = Writer(connection, lease)
        self._key = keys.cluster_config(cluster.name)
        self._config: ClusterConfig | None = None

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._writer.run())
            tasks.create_task(self._beat())
            tasks.create_task(self._guard())

    async def adopt(self) -> None:
        """Learn which config stands already. Best effort: not knowing costs a write that nobody needed."""
        with suppress(KvError):
            await self._writer.adopt(self._key)

    def set_config(self, *, service_exports: bool) -> None:
        """`service_exports`: whether this cluster has the kind. False is not absent: they are known, but off."""
        capabilities = records.Capabilities(
            synced_canaries=True,
            max_connected_clusters=self._cluster.max_clusters,
            service_exports_enabled=service_exports,
            endpoint_slices_export_mode=self._mode,
        )
        self._config = ClusterConfig(self._cluster.id, capabilities)
        self._writer.put(self._key, records.encode(self._config))
        for kind in set(Kind) - set(self._config.kinds()):
            # An earlier run may have exported it. The canary goes before the records: a list without it is no list.
            self._writer.delete(keys.state_canary(kind, self._cluster.name))

    async def put_canaries(self, lost: asyncio.Event) -> bool:
        """Say that the lists of all kinds that we export are complete. False when etcd lost its content meanwhile.

        Not by a writer: that would repeat them before the records.
        """
        assert self._config is not None
        backoff = Backoff(cap=5.0)
        for kind in self._config.kinds():
            key = keys.state_canary(kind, self._cluster.name)
            while not lost.is_set():
                try:
                    await self._writer.flush()  # the configuration says what to look for
                    await self._connection.put(key, _now(), await self._lease.granted())
                    break
                except KvError as error:
                    log.warning("cannot write %s yet: %s", key, error)
                    await asyncio.sleep(backoff.pause())
        return not lost.is_set()

    async def _beat(self) -> None:
        while True:
            self._writer.put(keys.HEARTBEAT, _now())
            await asyncio.sleep(self._heartbeat)

    async def _guard(self) -> None:
        """Put the cluster-config back when somebody else has changed or deleted it."""
        async with aclosing(Feed(self._connection, self._key, exact=True).batches()) as batches:
            async for batch in batches:
                if batch.events and batch.events[-1].value != self._wanted:
                    await self._restore()

    @property
    def _wanted(self) -> bytes | None:
        return None if self._config is None else records.encode(self._config)

    async def _restore(self) -> None:
        backoff = Backoff(cap=5.0)
        while self._wanted is not None:
            try:
                # What is on its way may be all that is missing: our own write, or all of them after a loss.
                await self._writer.flush()
                found = await self._connection.get(self._key)
                if found is None or found.value != self._wanted:
                    log.warning("%s was changed or deleted by somebody else: restoring it", self._key)
                    await self._connection.put(self._key, self._wanted, await self._lease.granted())
                return
            except KvError as error:
                log.warning("cannot restore %s yet: %s", self._key, error)
                await asyncio.sleep(backoff.pause())


def _now() -> bytes:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
