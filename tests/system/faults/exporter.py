"""The source's exporter, played: brings the model to the source's etcd, whatever becomes of that.

After every failure it compares the whole store with the model, as a real exporter does after a loss. A store that was
lost has no canaries; one that was restored still has them, and then they go until it is whole again.
"""

import asyncio
from collections.abc import Mapping

from apiserver.users import EtcdUsers
from clustermesh.kvstore.connection import Change, Connection
from clustermesh.kvstore.errors import KvError
from clustermesh.wire import records
from clustermesh.wire.records import Capabilities, ClusterConfig
from tests.system.faults.model import CLUSTER, CLUSTER_ID, STATE, Changed, Model

_SYNCED = f"cilium/synced/{CLUSTER}/"
_CANARIES = [f"{_SYNCED}{STATE}/{kind}/v1" for kind in ("nodes", "identities", "ip", "services")]
_OPERATIONS = 100  # a transaction
_RETRY = 0.1


class PlayedExporter:
    """`run` writes until cancelled; `change` is what the cluster does meanwhile."""

    def __init__(self, connection: Connection, model: Model, *, reader: str) -> None:
        self._kv = connection
        self._model = model
        self._reader = reader
        self._pending: dict[str, bytes | None] = {}
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._doubts = 1  # grows whenever the store may have been lost
        self._settled = 0

    def change(self, changed: Changed) -> None:
        self._pending.update(changed)
        self._idle.clear()
        self._work.set()

    def doubt(self) -> None:
        """The store is another one, or an older one, than a moment ago."""
        self._doubts += 1
        self._idle.clear()
        self._work.set()

    async def settled(self) -> None:
        """Wait until the store is as the model."""
        await self._idle.wait()

    async def run(self) -> None:
        while True:
            try:
                await self._bring()
                self._idle.set()
                self._work.clear()
                await self._work.wait()
            except KvError:
                self.doubt()
                await asyncio.sleep(_RETRY)

    async def _bring(self) -> None:
        while self._settled != self._doubts or self._pending:
            if self._settled != self._doubts:
                doubts = self._doubts
                await self._fill()
                self._settled = doubts
            else:
                taken = dict(list(self._pending.items())[:_OPERATIONS])
                for key in taken:
                    del self._pending[key]
                await self._commit(taken)

    async def _fill(self) -> None:
        users = EtcdUsers(self._kv, CLUSTER)
        await users.ensure()
        await users.set_peers(frozenset({self._reader}))
        found = {kv.key.decode(): kv.value async for page in self._kv.list(f"{STATE}/") for kv in page}
        self._pending.clear()
        wanted = self._model.wanted
        wrong: dict[str, bytes | None] = {key: value for key, value in wanted.items() if found.get(key) != value}
        wrong |= dict.fromkeys(found.keys() - wanted.keys())
        if wrong:
            await self._kv.delete_prefix(_SYNCED)
        capabilities = Capabilities(synced_canaries=True, max_connected_clusters=255)
        config = records.encode(ClusterConfig(CLUSTER_ID, capabilities))
        await self._commit({"cilium/.heartbeat": b"now", f"cilium/cluster-config/{CLUSTER}": config})
        keys = list(wrong)
        for start in range(0, len(keys), _OPERATIONS):
            await self._commit({key: wrong[key] for key in keys[start : start + _OPERATIONS]})
        await self._commit(dict.fromkeys(_CANARIES, b"now"))

    async def _commit(self, changed: Mapping[str, bytes | None]) -> None:
        await self._kv.commit([Change(key.encode(), value) for key, value in changed.items()])
