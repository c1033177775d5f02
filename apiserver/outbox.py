"""The way of this cluster's records into etcd: a writer for each kind, what it was given, when all of it is there."""

import asyncio
import logging

from apiserver.health import Health
from apiserver.metrics import Metrics
from clustermesh.kube.reflector import Backoff
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.errors import KvError
from clustermesh.kvstore.lease import Lease
from clustermesh.kvstore.writer import Writer
from clustermesh.wire import keys
from clustermesh.wire.keys import Kind

log = logging.getLogger(__name__)

_LEASE_PATIENCE = 2.0  # seconds after which a lease that is not granted yet is called a problem

# Nothing goes while something may still point to it.
REMOVAL_ORDER = (
    Kind.SERVICE_EXPORTS,
    Kind.ENDPOINT_SLICES,
    Kind.SERVICES,
    Kind.ADDRESSES,
    Kind.IDENTITIES,
    Kind.NODES,
)
LEADING_TO_ADDRESSES = (Kind.SERVICE_EXPORTS, Kind.ENDPOINT_SLICES, Kind.SERVICES)

_LOCAL = {
    Kind.SERVICES: keys.LOCAL_SERVICES,
    Kind.ADDRESSES: keys.LOCAL_ADDRESSES,
    Kind.IDENTITIES: keys.LOCAL_IDENTITIES,
}


class Outbox:
    """Its claim on health is `etcd`: whether what is handed in gets there."""

    def __init__(self, cluster: str, connection: Connection, lease: Lease, health: Health, metrics: Metrics) -> None:
        self.writers = {kind: Writer(connection, lease, changed=self._tell) for kind in Kind}
        self._cluster = cluster
        self._lease = lease
        self._health = health
        self._metrics = metrics
        self._given: dict[Kind, set[str]] = {kind: set() for kind in (Kind.NODES, *LEADING_TO_ADDRESSES)}
        health.set("etcd", False, "not connected yet")
        for kind, writer in self.writers.items():
            metrics.watch_queue(kind, writer.__len__)
        for kind, given in self._given.items():
            metrics.watch_objects(kind, given.__len__)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for writer in self.writers.values():
                tasks.create_task(writer.run())

    def _tell(self) -> None:
        error = next((writer.error for writer in self.writers.values() if writer.error is not None), None)
        self._health.set("etcd", error is None, str(error or ""))

    def set(self, kind: Kind, key: str, value: bytes | None) -> None:
        """A record of a kind that stands in one place; None: it must not be there."""
        given, writer = self._given[kind], self.writers[kind]
        if value is not None:
            given.add(key)
            writer.put(key, value)
            self._metrics.put(kind)
        elif key in given:
            given.discard(key)
            writer.delete(key)
            self._metrics.delete(kind)

    async def flush(self, *kinds: Kind) -> None:
        """Wait until what was put is in etcd; a value that etcd will never take holds nobody up."""
        for kind in kinds:
            await self._flush(kind)

    async def _flush(self, kind: Kind) -> None:
        backoff = Backoff(cap=5.0)
        while True:
            try:
                await self.writers[kind].flush(despite_rejections=True)
            except KvError as error:
                if error.hopeless:
                    continue
                self._health.set("etcd", False, str(error))
                await asyncio.sleep(backoff.pause())
            else:
                self._health.set("etcd", True)
                return

    async def adopt(self) -> None:
        """Learn what an earlier run left in etcd."""
        while True:
            try:
                async with asyncio.timeout(_LEASE_PATIENCE):
                    await self._lease.granted()
                break
            except TimeoutError:
                self._health.set("etcd", False, str(self._lease.error or "no lease yet"))
        backoff = Backoff(cap=5.0)
        for kind in Kind:
            for prefix in self._prefixes(kind):
                while True:
                    try:
                        found = await self.writers[kind].adopt(prefix)
                        break
                    except KvError as error:
                        self._health.set("etcd", False, str(error))
                        log.warning("cannot read %s yet: %s", prefix, error)
                        await asyncio.sleep(backoff.pause())
                self._health.set("etcd", True)
                if found:
                    log.info("adopted %d %s", found, kind)

    async def prune(self) -> None:
        """Delete what was adopted and not given since."""
        for kind in REMOVAL_ORDER:
            for prefix in self._prefixes(kind):
                self.writers[kind].prune(prefix)
            await self._flush(kind)

    def _prefixes(self, kind: Kind) -> tuple[str, ...]:
        local = _LOCAL.get(kind)
        return (keys.state_prefix(kind, self._cluster), *([local] if local else ()))
