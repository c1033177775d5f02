"""Which parts of the own etcd this node reads, and for how long.

The own cluster's records are read always, a peer's from the moment its `cluster-config` appears until it vanishes and
the list of peers, which a lost store is without, does not name it. Each kind of each cluster has a task of its own; a
prefix is read from the moment its canary stands, so that its first list is complete and everything beyond it is known
to be stale.

Which kinds a peer has follows from its `cluster-config`; when that changes, only what it names otherwise is read anew.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import NamedTuple

from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.feed import Event, Feed
from clustermesh.kvstore.vouched import stands, vouched
from clustermesh.wire import keys, records
from clustermesh.wire.errors import RecordError
from clustermesh.wire.identity import Numbering
from clustermesh.wire.keys import Kind
from clustermesh.wire.private import PeerList, PeerSettings
from nodeagent.mesh import Cluster, Mesh

log = logging.getLogger(__name__)

# Keys a page of a list. Two pages stand in memory at once, and what they took is not given back: with 10,000 an agent
# keeps 700 bytes an address instead of 550, and reads 95,000 records/s instead of 65,000.
_PAGE = 4000
# Whether a mesh has 255 or 511 clusters concerns the API server; no identity can carry more.
_ANY_CLUSTER = Numbering(511)


class Watched(NamedTuple):
    """A prefix and the key that says when it is complete."""

    prefix: str
    canary: str


class Feeds:
    """Reads the own etcd into the tables, for ever."""

    def __init__(self, connection: Connection, mesh: Mesh) -> None:
        self._connection = connection
        self._mesh = mesh
        self._peers: dict[str, dict[Kind, asyncio.Task[None]]] = {}
        self._listed: Mapping[str, int] | None = None  # the peers there are; None while nobody says
        self._vanished: set[str] = set()  # those of them without a configuration now
        self._configs_read = False
        self._settings_read = asyncio.Event()
        self._refused: dict[str, Event] = {}  # configurations that cannot be used, at least not now

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for kind in self._mesh.own.kinds:
                tasks.create_task(self._kind(self._mesh.own, kind, *self._own(kind)))
            tasks.create_task(self._settings())
            tasks.create_task(self._configs(tasks))
            tasks.create_task(self._peer_list(tasks))

    def _own(self, kind: Kind) -> tuple[Watched, ...]:
        """Of its own cluster a node needs more than the cluster tells its peers."""
        cluster = self._mesh.place.cluster
        public = keys.state_prefix(kind, cluster)
        prefixes = {
            Kind.IDENTITIES: (public, keys.LOCAL_IDENTITIES),
            Kind.ADDRESSES: (public, keys.LOCAL_ADDRESSES),
            Kind.SERVICES: (keys.LOCAL_SERVICES,),
        }
        return tuple(Watched(prefix, keys.state_canary(kind, cluster)) for prefix in prefixes.get(kind, (public,)))

    # One kind of one cluster

    async def _kind(self, cluster: Cluster, kind: Kind, *places: Watched) -> None:
        """The kind is complete when the lists of all its places are. One canary speaks for all of them."""
        unlisted = set(places)

        async def follow(watched: Watched) -> None:
            def apply(events: Sequence[Event]) -> None:
                self._mesh.apply(cluster, kind, watched.prefix, events, time.time())

            async with asyncio.TaskGroup() as tasks:
                batches = vouched(self._connection, watched.prefix, watched.canary, apply, tasks, page=_PAGE)
                async with aclosing(batches):
                    async for batch in batches:
                        self._mesh.advance(cluster, batch.revision)
                        if batch.synced:
                            unlisted.discard(watched)
                        if not unlisted:
                            self._mesh.set_synced(cluster, kind)

        await stands(self._connection, places[0].canary)
        async with asyncio.TaskGroup() as following:
            for watched in places:
                following.create_task(follow(watched))

    # The list of peers

    async def _configs(self, tasks: asyncio.TaskGroup) -> None:
        await self._settings_read.wait()
        async with aclosing(Feed(self._connection, keys.CLUSTER_CONFIGS).batches()) as batches:
            async for batch in batches:
                for event in batch.events:
                    self._config(event, tasks)
                self._configs_read |= batch.synced
                self._part(tasks)

    async def _peer_list(self, tasks: asyncio.TaskGroup) -> None:
        async with aclosing(Feed(self._connection, keys.PEER_LIST, exact=True).batches()) as batches:
            async for batch in batches:
                for event in batch.events:
                    self._listed = self._read_list(event.value)
                self._part(tasks)

    def _read_list(self, raw: bytes | None) -> Mapping[str, int] | None:
        if raw is None:
            log.warning("%s is lost: peers whose configuration vanishes are kept until it is back", keys.PEER_LIST)
            return None
        try:
            peers = records.decode(PeerList, raw).peers
        except RecordError as error:
            self._mesh.reject(self._mesh.place.cluster, keys.PEER_LIST, str(error))
            return self._listed
        self._mesh.forgive(keys.PEER_LIST)
        return peers

    def _part(self, tasks: asyncio.TaskGroup) -> None:
        """Part from the peers that are gone for good."""
        if self._listed is not None and self._configs_read:
            for name in self._vanished - self._listed.keys():
                self._vanished.discard(name)
                self._stop(name)
            self._mesh.set_peers_known(self._listed.values())
        # A cluster id may be free now.
        for event in list(self._refused.values()):
            self._config(event, tasks)

    def _config(self, event: Event, tasks: asyncio.TaskGroup) -> None:
        key = event.key.decode(errors="backslashreplace")
        name = keys.tail(keys.CLUSTER_CONFIGS, key)
        if name == self._mesh.place.cluster:
            return
        known = self._mesh.clusters.get(name)
        self._refused.pop(name, None)
        self._vanished.discard(name)
        if event.value is None:
            self._mesh.forgive(key)
            if known is not None:
                self._vanished.add(name)
            return
        try:
            config = records.decode(records.ClusterConfig, event.value)
            config.kinds()  # a mode that nobody knows
            self._check_id(name, config.id)
        except ValueError as error:
            self._mesh.reject(name, key, str(error))
            self._refused[name] = event
            return
        self._mesh.forgive(key)
        if known is not None and known.cluster_id != config.id:
            self._stop(name)
            known = None
        kinds = config.datapath_kinds()
        if known is None:
            known = self._mesh.add_peer(name, config.id, kinds)
        elif known.kinds != kinds:
            self._mesh.set_kinds(known, kinds)
        self._read(known, tasks)

    def _check_id(self, name: str, cluster_id: int) -> None:
        _ANY_CLUSTER.check_cluster_id(cluster_id)
        for other in self._mesh.clusters.values():
            if other.cluster_id == cluster_id and other.name != name:
                raise RecordError(f"cluster id {cluster_id} is in use by {other.name}: give one of them another id")

    def _read(self, peer: Cluster, tasks: asyncio.TaskGroup) -> None:
        """Have the peer's kinds read, and those alone."""
        running = self._peers.setdefault(peer.name, {})
        # The group that runs a task awaits its end. What it may still deliver until then is of no kind that is read.
        for kind in running.keys() - set(peer.kinds):
            running.pop(kind).cancel()
        for kind in peer.kinds:
            if kind not in running:
                watched = Watched(keys.cache_prefix(kind, peer.name), keys.cache_canary(kind, peer.name))
                running[kind] = tasks.create_task(self._kind(peer, kind, watched))

    def _stop(self, name: str) -> None:
        for task in self._peers.pop(name).values():
            task.cancel()
        self._mesh.remove_peer(name)

    # What the API server says of peers

    async def _settings(self) -> None:
        async with aclosing(Feed(self._connection, keys.PEERS).batches()) as batches:
            async for batch in batches:
                for event in batch.events:
                    self._setting(event)
                if batch.synced:
                    self._settings_read.set()

    def _setting(self, event: Event) -> None:
        key = event.key.decode(errors="backslashreplace")
        name = keys.tail(keys.PEERS, key)
        if event.value is None:
            self._mesh.forgive(key)
            return  # the peer goes, or the store is lost: neither changes what runs there
        try:
            self._mesh.set_settings(name, records.decode(PeerSettings, event.value))
        except RecordError as error:
            self._mesh.reject(name, key, str(error))
        else:
            self._mesh.forgive(key)
