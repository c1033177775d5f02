"""One peer: its exported records, checked and copied into this cluster's etcd, where the agents read them.

One task a kind follows the peer's prefix once the peer's canary says that it is complete. The peer's cluster-config is
written before any record, our canary of a kind after all records of its first list. A peer that cannot be reached
changes nothing here: what was mirrored stays until the peer says otherwise or is disconnected.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import NoReturn

import msgspec

from apiserver.admission import Admission
from apiserver.claims import Claims
from apiserver.cluster import ClusterIdentity
from apiserver.metrics import PeerFigures
from apiserver.quota import Pace, changes
from apiserver.status import MirrorView, timestamp
from clustermesh import pki
from clustermesh.kube.objects import PeerQuota
from clustermesh.kvstore.backoff import Backoff
from clustermesh.kvstore.connection import Connection, KeyValue, TlsPem
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.feed import Batch, Feed, FeedState
from clustermesh.kvstore.lease import Lease
from clustermesh.kvstore.writer import Writer
from clustermesh.tasks import end
from clustermesh.wire import keys, private, records
from clustermesh.wire.errors import RecordError
from clustermesh.wire.keys import DATAPATH_KINDS, Kind
from clustermesh.wire.private import PeerSettings
from clustermesh.wire.records import ClusterConfig
from clustermesh.wire.validation import Claimant

log = logging.getLogger(__name__)

# Seconds: for a peer to say who it is; between two signs of life that are asked of it, so that one that is frozen or
# cut off is known four of them later; until one that writes a heartbeat a minute counts as silent.
GREETING = 4.0
PULSE = 1.5
HEARTBEAT_LIMIT = 150.0
# Seconds between two attempts at a peer that is away: each is a dial or two, and one that is back is not left waiting.
_RETRY_LIMIT = 1.5
_PORTION = 1000  # records that are judged at a stretch: some milliseconds
# What was adopted is judged once it was compared with the peer's lists, or after so many seconds without them; so many
# records at a stretch, about a millisecond, since changes come in between.
_PROOF_WITHIN = 5.0
_PROOFS = 100
# Seconds between two lists of a kind that are made because refused records were forgotten.
LIST_AGAIN = 60.0


# Kinds whose records are judged by the nodes: these are listed first, so that nothing is refused for want of them.
_BEHIND_NODES = frozenset({Kind.ADDRESSES, Kind.SERVICES, Kind.ENDPOINT_SLICES})


class PeerError(Exception):
    """The peer answers, but not as the peer that was asked for. `stage` stands beside those of KvError."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(stage, message)
        self.stage = stage
        self.message = message

    def __str__(self) -> str:
        return f"{self.stage}: {self.message}"


class _ConfigChangedError(Exception):
    """The peer has another cluster-config than the one that the session began with."""


class PeerSpec(msgspec.Struct, frozen=True):
    """Whom to mirror, and how to reach it."""

    name: str
    cluster_id: int
    endpoints: tuple[str, ...]
    strict: bool = True
    implementation: str = "clustermesh"
    quota: PeerQuota = PeerQuota()

    @property
    def settings(self) -> PeerSettings:
        """What the agents have to know of it besides its cluster-config."""
        return PeerSettings(implementation=self.implementation, strict=self.strict)


def check_config(
    config: ClusterConfig, peer: PeerSpec, own: ClusterIdentity, owner_of_id: Callable[[int], str | None]
) -> str | None:
    """Why a peer's cluster-config cannot be accepted; None when it can."""
    if config.id == own.id:
        return f"{peer.name} has cluster id {config.id}, as this cluster: give one of them another id"
    if config.id != peer.cluster_id:
        return f"{peer.name} has cluster id {config.id}, but spec.clusterID says {peer.cluster_id}: connect again"
    other = owner_of_id(config.id)
    if other is not None and other != peer.name:
        return f"{peer.name} has cluster id {config.id}, which peer {other} has already"
    theirs = config.capabilities.max_connected_clusters or 255
    if theirs != own.max_clusters:
        return (
            f"{peer.name} numbers identities for {theirs} clusters, this cluster for {own.max_clusters}: "
            "max-connected-clusters must be equal in the whole mesh"
        )
    return None


def republished(config: ClusterConfig) -> ClusterConfig:
    """The peer's cluster-config as a mirror writes it: the same, but cached and always with canaries."""
    capabilities = msgspec.structs.replace(config.capabilities, synced_canaries=True, cached=True)
    return ClusterConfig(config.id, capabilities)


class _Paths:
    """Where a peer's records stand: in its own state, or, if the peer is itself a mirror's copy, in that cache."""

    def __init__(self, peer: str, *, cached: bool) -> None:
        prefix, canary = (keys.cache_prefix, keys.cache_canary) if cached else (keys.state_prefix, keys.state_canary)
        self.prefixes = {kind: prefix(kind, peer) for kind in Kind}
        self.canaries = {kind: canary(kind, peer) for kind in Kind}


class _Copy:
    """The peer's records as they shall stand in this cluster's etcd: where the admission puts them."""

    def __init__(self, peer: str, writer: Writer, settled: Callable[[], None]) -> None:
        self.again = {kind: asyncio.Event() for kind in Kind}
        self.settled = settled
        self._writer = writer
        self._prefixes = {kind: keys.cache_prefix(kind, peer) for kind in Kind}

    def put(self, kind: Kind, name: str, value: bytes) -> None:
        self._writer.put(self._prefixes[kind] + name, value)

    def delete(self, kind: Kind, name: str) -> None:
        self._writer.delete(self._prefixes[kind] + name)

    def read_again(self, kind: Kind) -> None:
        self.again[kind].set()


class Mirror:
    """Follows one peer for as long as `run` runs; `view` says how that goes."""

    def __init__(
        self,
        peer: PeerSpec,
        tls: TlsPem,
        *,
        cluster: ClusterIdentity,
        own: Connection,
        lease: Lease,
        claims: Claims,
        owner_of_id: Callable[[int], str | None],
        changed: Callable[[], None],
    ) -> None:
        self._peer = peer
        self._cluster = cluster
        self._own = own
        self._owner_of_id = owner_of_id
        self._changed = changed
        self._remote = Connection(peer.endpoints, tls, server_name=pki.server_name(peer.name))
        self._lease = lease
        self._writer = Writer(own, lease, changed=changed)
        self._lost = asyncio.Event()
        lease.on_loss(self._lost.set)
        self._copy = _Copy(peer.name, self._writer, self._records_moved)
        self._admission = Admission(
            Claimant(peer.name, peer.cluster_id, cluster.numbering),
            claims,
            self._copy,
            strict=peer.strict,
            quota=peer.quota,
        )
        self._pace = Pace(peer.quota.changes_per_second)
        self._synced: set[Kind] = set()
        self._current: set[Kind] = set()  # complete in this session
        self._compared = asyncio.Event()  # all kinds were, in some session
        self._feeds: list[Feed] = []
        self._config: ClusterConfig | None = None
        self._error: KvError | PeerError | None = None
        self._connected = False
        # By the event loop's clock, which never jumps. What earlier feeds and plain reads saw; the feeds of
        # now know better.
        self._proved = float("-inf")
        self._last_heartbeat = float("-inf")
        self._records_changed = float("-inf")
        self._events: Counter[Kind] = Counter()
        self._lists: Counter[Kind] = Counter()
        self._lists_in_turn = asyncio.Lock()  # a peer is asked for one list at a time
        self._watches = 0  # of sessions that have ended
        self._heart: Feed | None = None

    @property
    def current(self) -> frozenset[Kind]:
        """Kinds whose list of this session is complete in the own etcd, and which are followed since."""
        return frozenset(self._current)

    @property
    def unproven(self) -> int:
        """How many of the records that an earlier process mirrored have not been judged yet."""
        return self._admission.unproven

    async def update_tls(self, tls: TlsPem) -> None:
        """Use a renewed certificate or another CA from now on."""
        await self._remote.update_tls(tls)

    def view(self) -> MirrorView:
        failures = (feed.error for feed in self._feeds if feed.state is FeedState.RETRYING)
        error = self._own_error() or self._error or next(failures, None)
        now = asyncio.get_running_loop().time()
        silent = now - self._last_heartbeat
        if error is not None:
            state, stage, message = "failed", str(error.stage), _told(error)
        elif not self._connected:
            state, stage, message = "connecting", "", f"connecting to {self._remote.endpoint}"
        elif HEARTBEAT_LIMIT < silent < float("inf"):
            state, stage = "failed", "heartbeat"
            message = f"no heartbeat since {timestamp(time.time() - silent)}: its API server does not run"
        else:
            state, stage, message = "connected", "", ""
        return MirrorView(
            state=state,
            stage=stage,
            message=message,
            last_event=self._proof_of_life(),
            quiet=now - self._records_changed,
            config=self._config,
            kinds=self._config.kinds() if self._config is not None else DATAPATH_KINDS,
            synced=frozenset(self._synced),
            records={kind: self._admission.count(kind) for kind in Kind},
            quarantined=self._admission.quarantine.view(),
            strict=self._admission.strict,
            used_records=self._admission.usage.records,
            used_bytes=self._admission.usage.bytes,
            throttled=self._pace.throttled,
        )

    def figures(self) -> PeerFigures:
        view, proof = self.view(), self._latest_proof()
        return PeerFigures(
            self._peer.name,
            state=view.state,
            records={kind.value: count for kind, count in view.records.items()},
            quarantined=view.quarantined.by_reason,
            silence=asyncio.get_running_loop().time() - proof if proof > 0 else None,
            events={kind: self._events[kind] for kind in Kind},
            relists={kind: max(0, self._lists[kind] - 1) for kind in Kind},
            reconnects=max(0, self._watches + (self._heart.watches if self._heart is not None else 0) - 1),
            queue=len(self._writer),
            throttled=self._pace.waited,
            quota={
                "records": (self._admission.usage.records, self._peer.quota.records),
                "bytes": (self._admission.usage.bytes, self._peer.quota.bytes),
            },
        )

    async def run(self) -> None:
        """Endless. Nothing a peer does or says ends it."""
        try:
            async with self._remote, asyncio.TaskGroup() as group:
                group.create_task(self._writer.run())
                group.create_task(self._vouch_again())
                await self._adopt()
                group.create_task(self._prove())
                await self._sessions()
        finally:
            self._lease.forget(self._lost.set)
            self._admission.close()
            self._changed()

    async def _adopt(self) -> None:
        """Take over what an earlier process mirrored, so that it outlives that process even if the peer is away."""
        backoff = Backoff()
        while True:
            try:
                await self._put_settings()
                for kind in Kind:
                    await self._adopt_kind(kind)
                key = keys.cluster_config(self._peer.name)
                await self._writer.adopt(key)
                present = await self._own.get(key)
                if present is not None:
                    self._writer.put(key, present.value)
                return
            except KvError as error:
                self._report(_own_etcd(error))
                await asyncio.sleep(backoff.next())

    async def _put_settings(self) -> None:
        """Before the peer's cluster-config, by which the agents take notice of it."""
        key = keys.peer_settings(self._peer.name)
        await self._writer.adopt(key)
        self._writer.put(key, private.encode(self._peer.settings))
        await self._writer.flush()

    async def _adopt_kind(self, kind: Kind) -> None:
        prefix, canary = keys.cache_prefix(kind, self._peer.name), keys.cache_canary(kind, self._peer.name)
        skip, adopt = len(prefix), self._admission.adopt
        async for page in self._writer.adopting(prefix):
            for portion in range(0, len(page), _PORTION):
                for key, value in page[portion : portion + _PORTION]:
                    adopt(kind, key[skip:], value)
                self._admission.finish()
                await asyncio.sleep(0)
        present = await self._own.get(canary)
        if present is not None:
            if present.lease != (lease := await self._lease.granted()):
                await self._own.put(canary, present.value, lease)
            self._synced.add(kind)

    async def _prove(self) -> None:
        """The peer's policy and quota, the rules and others' claims may be other than when it was let in."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PROOF_WITHIN):
                await self._compared.wait()
        while self._admission.unproven:
            self._admission.prove(_PROOFS)
            await asyncio.sleep(0)

    async def _sessions(self) -> NoReturn:
        backoff = Backoff(limit=_RETRY_LIMIT)
        while True:
            try:
                await self._session()
            except _ConfigChangedError:
                log.info("peer %s: its cluster-config changed, reading it again", self._peer.name)
                backoff.reset()
            except (KvError, PeerError) as error:
                if self._connected:
                    backoff.reset()
                self._report(error)
                await self._remote.redial()
            await asyncio.sleep(backoff.next())

    async def _session(self) -> None:
        """Everything between two looks at who the peer is; ends with the error that makes another look necessary."""
        config = await self._greet()
        self._config = config
        self._writer.put(keys.cluster_config(self._peer.name), records.encode(republished(config)))
        await self._flush()
        self._error = None
        self._connected = True
        self._changed()
        log.info("peer %s: connected, cluster id %d", self._peer.name, config.id)
        paths = _Paths(self._peer.name, cached=config.capabilities.cached)
        kinds = config.kinds()
        canaries = {kind: asyncio.Event() for kind in kinds}
        listed_nodes = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_heartbeat())
                group.create_task(self._watch_config(config))
                if config.capabilities.synced_canaries:
                    group.create_task(self._follow_canaries(paths, canaries))
                else:
                    for event in canaries.values():
                        event.set()
                for kind in kinds:
                    gates = [canaries[kind]] + ([listed_nodes] if kind in _BEHIND_NODES else [])
                    done = listed_nodes if kind is Kind.NODES else asyncio.Event()
                    group.create_task(self._follow(kind, paths, gates, done, config))
        except BaseExceptionGroup as errors:
            _reraise(errors)
        finally:
            self._current.clear()
            self._proved = self._latest_proof()
            self._feeds.clear()
            if self._heart is not None:
                self._watches += self._heart.watches
                self._heart = None

    async def _greet(self) -> ClusterConfig:
        """Who answers there, if it is the peer and fits into the mesh."""
        await self._look(keys.HEARTBEAT)
        found = await self._look(keys.cluster_config(self._peer.name))
        if found is None:
            raise PeerError(
                "config",
                f"the etcd has no cluster-config of {self._peer.name}: its API server has not started there yet, "
                "or the endpoint belongs to another cluster",
            )
        try:
            config = records.decode(ClusterConfig, found.value)
        except RecordError as error:
            raise PeerError("config", f"cluster-config of {self._peer.name} does not decode: {error}") from None
        if reason := check_config(config, self._peer, self._cluster, self._owner_of_id):
            raise PeerError("config", reason)
        try:
            config.kinds()
        except RecordError as error:
            raise PeerError("config", f"{self._peer.name}: {error}: update this cluster") from None
        return config

    async def _look(self, key: str) -> KeyValue | None:
        """One key of the peer's, or soon the reason why not."""
        page = await self._remote.range(key, timeout=GREETING)
        self._proved = asyncio.get_running_loop().time()
        return page.kvs[0] if page.kvs else None

    async def _watch_config(self, agreed: ClusterConfig) -> None:
        """A missing one means an API server that is away: what is mirrored stays."""
        async with aclosing(self._feed(keys.cluster_config(self._peer.name), exact=True).batches()) as batches:
            async for batch in batches:
                for event in batch.events:
                    if event.value is not None and not _says(event.value, agreed):
                        raise _ConfigChangedError

    async def _follow_heartbeat(self) -> None:
        self._heart = self._feed(keys.HEARTBEAT, exact=True, progress=PULSE)
        async with aclosing(self._heart.batches()) as batches:
            async for batch in batches:
                if any(event.value is not None for event in batch.events):
                    self._last_heartbeat = asyncio.get_running_loop().time()

    async def _follow_canaries(self, paths: _Paths, canaries: dict[Kind, asyncio.Event]) -> None:
        kinds = {canary.encode(): kind for kind, canary in paths.canaries.items()}
        async with aclosing(self._feed(keys.synced_prefix(self._peer.name)).batches()) as batches:
            async for batch in batches:
                for event in batch.events:
                    kind = kinds.get(event.key)
                    if event.value is not None and kind in canaries:
                        canaries[kind].set()

    async def _follow(
        self, kind: Kind, paths: _Paths, gates: Sequence[asyncio.Event], done: asyncio.Event, config: ClusterConfig
    ) -> None:
        for gate in gates:
            await gate.wait()
        again = self._copy.again[kind]
        while True:
            again.clear()
            reading = asyncio.create_task(self._read(kind, paths, done, config))
            asking = asyncio.create_task(self._asked_again(again))
            try:
                await asyncio.wait((reading, asking), return_when=asyncio.FIRST_COMPLETED)
            finally:
                await end(asking)
                await end(reading)
            log.info(
                "peer %s: listing its %s again: some that were kept out may be right by now", self._peer.name, kind
            )

    async def _asked_again(self, again: asyncio.Event) -> None:
        await asyncio.sleep(LIST_AGAIN)
        await again.wait()

    async def _read(self, kind: Kind, paths: _Paths, done: asyncio.Event, config: ClusterConfig) -> None:
        prefix = paths.prefixes[kind]
        # The admission knows what there is: the feed need not know it as well.
        feed = self._feed(prefix, remember=False, lists=self._lists_in_turn)
        try:
            async with aclosing(feed.batches()) as batches:
                async for batch in batches:
                    if batch.starts:
                        self._admission.begin(kind)
                    if batch.synced and config.capabilities.synced_canaries:
                        await self._expect_canary(kind, paths.canaries[kind], batch.revision)
                    judged = await self._take(kind, len(prefix), batch)
                    await self._writer.room()
                    if batch.synced:
                        self._lists[kind] += 1
                        await self._complete(kind)
                        done.set()
                    await self._pace.spend(judged + changes(event.value for event in batch.events))
        finally:
            self._proved = max(self._proved, feed.last_event)
            self._feeds.remove(feed)

    async def _expect_canary(self, kind: Kind, canary: str, revision: int) -> None:
        """A list counts only if the peer had said by then that it is complete: an etcd may have come back empty.

        Otherwise its deletions are not believed, and a new session waits for the canary.
        """
        found = await self._remote.get(canary)
        if found is None or found.mod_revision > revision:
            raise PeerError(
                "synced", f"{self._peer.name} is filling its etcd again: waiting until its {kind} are there"
            )

    async def _take(self, kind: Kind, skip: int, batch: Batch) -> int:
        """Let in what a batch brings, in portions: others have their turn in between.

        Returns how many records were judged again: a node that goes costs as much as all the pods behind it.
        """
        judged, take = 0, self._admission.take
        for portion in range(0, len(batch.events), _PORTION):
            if portion:
                await asyncio.sleep(0)
            for key, value, _ in batch.events[portion : portion + _PORTION]:
                take(kind, key[skip:], value)
            judged += self._admission.finish()
        self._events[kind] += len(batch.events)
        if batch.events:
            self._records_moved()
        return judged

    def _records_moved(self) -> None:
        self._records_changed = asyncio.get_running_loop().time()
        self._changed()

    async def _complete(self, kind: Kind) -> None:
        """A list is in: what is not in it goes, then the agents may trust it."""
        self._admission.complete(kind)
        self._admission.finish()
        self._writer.prune(keys.cache_prefix(kind, self._peer.name))
        await self._vouch(kind)
        self._synced.add(kind)
        self._current.add(kind)
        self._changed()
        log.info("peer %s: %d %s mirrored", self._peer.name, self._admission.count(kind), kind)
        if self._config is not None and self._current >= set(self._config.kinds()):
            await self._drop_others(self._config.kinds())
            self._compared.set()

    async def _vouch(self, kind: Kind) -> None:
        """Say that the kind is complete, once it is. Not by the writer, which after a loss would not put it last."""
        backoff = Backoff(limit=_RETRY_LIMIT)
        while True:
            await self._flush()
            try:
                value = timestamp(time.time()).encode()
                await self._own.put(keys.cache_canary(kind, self._peer.name), value, await self._lease.granted())
                return
            except KvError as error:
                if error.stage is Stage.LEASE:
                    self._lease.suspect()
                log.warning("peer %s: cannot say yet that its %s are complete: %s", self._peer.name, kind, error)
                await asyncio.sleep(backoff.next())

    async def _vouch_again(self) -> NoReturn:
        """After a loss of the own etcd the canaries return behind the records."""
        while True:
            await self._lost.wait()
            self._lost.clear()
            for kind in tuple(self._synced):
                if kind in self._synced:  # still: it may have been dropped while another one was waited for
                    await self._vouch(kind)

    async def _drop_others(self, kinds: Sequence[Kind]) -> None:
        """What the peer exported before and says it does not any more goes once all that it exports now is there.

        Its canary first: what vanishes without one stays with an agent until it knows what the peer exports now.
        """
        others = [kind for kind in Kind if kind not in kinds and (kind in self._synced or self._admission.count(kind))]
        for kind in others:
            self._synced.discard(kind)
            await self._disown(kind)
        for kind in others:
            self._admission.begin(kind)
            self._admission.complete(kind)
        self._admission.finish()

    async def _disown(self, kind: Kind) -> None:
        """Say that the kind is not kept up any more."""
        backoff = Backoff()
        while True:
            try:
                await self._own.delete(keys.cache_canary(kind, self._peer.name))
                return
            except KvError as error:
                log.warning("peer %s: %s", self._peer.name, _own_etcd(error))
                await asyncio.sleep(backoff.next())

    async def _flush(self) -> None:
        """Wait for the own etcd however long it takes: what was read of the peer need not be read again."""
        backoff = Backoff()
        while True:
            try:
                await self._writer.flush(despite_rejections=True)
                return
            except KvError:
                self._changed()  # `_own_error` says it
                await asyncio.sleep(backoff.next())

    def _own_error(self) -> PeerError | None:
        error = self._writer.error or self._lease.error
        return None if error is None else _own_etcd(error)

    def _feed(
        self,
        prefix: str,
        *,
        exact: bool = False,
        remember: bool = True,
        lists: asyncio.Lock | None = None,
        progress: float = 5.0,
    ) -> Feed:
        feed = Feed(
            self._remote,
            prefix,
            exact=exact,
            remember=remember,
            lists=lists,
            progress=progress,
            retry=_RETRY_LIMIT,
        )
        self._feeds.append(feed)
        return feed

    def _latest_proof(self) -> float:
        return max([self._proved, *(feed.last_event for feed in self._feeds)])

    def _proof_of_life(self) -> float:
        """When the peer's etcd last answered, be it with records or without; Unix seconds, 0 for never."""
        proof = self._latest_proof()
        return time.time() - asyncio.get_running_loop().time() + proof if proof > 0 else 0.0

    def _report(self, error: KvError | PeerError) -> None:
        if self._error is None or str(self._error) != str(error):
            log.warning("peer %s: %s", self._peer.name, error)
        self._error = error
        self._connected = False
        self._changed()


async def forget_peer(own: Connection, peer: str, *, detached: Callable[[], Awaitable[None]], grace: float) -> None:
    """Remove a peer's copy: its cluster-config first, the records once all agents let go or `grace` seconds passed."""
    backoff = Backoff()
    while True:
        try:
            await own.delete(keys.cluster_config(peer))
            try:
                async with asyncio.timeout(grace):
                    await detached()
            except TimeoutError:
                log.warning("peer %s: some agents still use its records; removing them", peer)
            await own.delete_prefix(keys.synced_prefix(peer))
            for kind in Kind:
                await own.delete_prefix(keys.cache_prefix(kind, peer))
            await own.delete(keys.peer_settings(peer))
            return
        except KvError as error:
            log.warning("peer %s: its records cannot be removed yet: %s", peer, error)
            await asyncio.sleep(backoff.next())


def _reraise(errors: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Of a session's errors the first one; whatever is no peer's fault goes on as it is."""
    _, foreign = errors.split((KvError, PeerError, _ConfigChangedError))
    if foreign is not None:
        raise foreign
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    raise first from None


def _says(value: bytes, agreed: ClusterConfig) -> bool:
    """Whether a cluster-config still says the same, in whatever words."""
    try:
        return records.decode(ClusterConfig, value) == agreed
    except RecordError:
        return False


def _own_etcd(error: KvError) -> PeerError:
    return PeerError("own-etcd", f"this cluster's own etcd does not take the records: {error}")


def _told(error: KvError | PeerError) -> str:
    """With the address it was about, which the operator may have to correct."""
    where = error.endpoint if isinstance(error, KvError) else ""
    return f"{error.message} ({where})" if where else error.message
