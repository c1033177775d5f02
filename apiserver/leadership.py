"""One of several replicas leads: it holds a Lease of Kubernetes and, by its word, the fence of etcd.

The Lease decides whose turn it is, as client-go's leader election does: a holder renews it, and whoever has seen no
renewal for as long as the record says takes it. Ages are measured by one's own monotonic clock since the record last
changed, so clocks that differ or jump elect nobody. While Kubernetes does not answer nothing ages: nobody can renew.

The fence (`clustermesh.kvstore.fence`) decides who can write. A leader takes it in three steps: look at it, have
Kubernetes confirm the Lease, replace the fence as it was found. Whoever is confirmed later finds a newer fence or makes
the older step fail; so the fence follows the Lease, and a leader that sleeps through its end finds its writes refused.

That is why a leader that cannot reach Kubernetes goes on: as long as nobody else took the fence, nobody else leads,
and peers go on being mirrored. It ends when Kubernetes names another holder.
"""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass

import msgspec

from apiserver.health import Health
from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import AlreadyExists, Conflict, CredentialError, KubeError, NotFound
from clustermesh.kube.leases import LEASES, Lease, LeaseSpec, micro_time
from clustermesh.kube.objects import NAMESPACES, SYSTEM_NAMESPACE, Namespace, ObjectMeta
from clustermesh.kube.reflector import Phase, Reflector, ReflectorState
from clustermesh.kvstore.backoff import Backoff
from clustermesh.kvstore.errors import KvError
from clustermesh.kvstore.fence import FencedConnection
from clustermesh.wire import keys

log = logging.getLogger(__name__)

LEASE_NAME = "clustermesh-apiserver"
FENCE = keys.PRIVATE + "leader"

_RELEASE_TIMEOUT = 2.0  # seconds that a clean stop waits for Kubernetes
_CLAIM, _FEED_CLAIM = "leadership", f"kubernetes {LEASES}"


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, named and chosen as in Kubernetes' own components."""

    lease_duration: int = 15  # without a renewal, until another replica may lead
    renew_deadline: float = 10.0  # a renewal may take, and its failures remain unsaid
    retry_period: float = 2.0  # between two renewals

    def __post_init__(self) -> None:
        """ValueError unless a leader has time for several attempts."""
        if not self.lease_duration > self.renew_deadline > self.retry_period > 0:
            raise ValueError("lease duration > renew deadline > retry period > 0 is needed")


class LeadershipLost(Exception):
    """Another replica leads; the text names it."""


class Observation(msgspec.Struct, frozen=True):
    """The Lease (None: there is none) and since when its record stands unchanged before our eyes, by our own clock.

    since: infinite while we see nothing.
    """

    lease: Lease | None
    since: float


def observe(before: Observation | None, lease: Lease | None, now: float) -> Observation:
    """A record that was seen before keeps its age, whatever else of the object changed."""
    if before is not None and _spec(before.lease) == _spec(lease):
        return Observation(lease, min(before.since, now))
    return Observation(lease, now)


def unseen(before: Observation) -> Observation:
    """Kubernetes does not answer: a record that nobody can renew has no age."""
    return Observation(before.lease, math.inf)


def free_from(seen: Observation, identity: str, duration: float) -> float:
    """When (by our clock) the Lease may be taken. Our own replica's is free at once: its former process is dead."""
    spec = _spec(seen.lease)
    if not spec.holder_identity or of_replica(spec.holder_identity, identity):
        return -math.inf
    return seen.since + (spec.lease_duration_seconds or duration)


def incarnation(identity: str) -> str:
    """What a process of the replica `identity` calls itself; no two processes have the same."""
    return f"{identity}_{uuid.uuid4().hex}"


def of_replica(holder: str, identity: str) -> bool:
    """Whether a holder is a process of that replica."""
    return holder.rpartition("_")[0] == identity


def claimed(lease: Lease | None, holder: str, duration: int, now: float) -> Lease:
    """The Lease with us as its holder, to be created or to replace `lease`; now in Unix seconds."""
    spec, moment = _spec(lease), micro_time(now)
    if lease is None:
        lease, transitions = Lease(metadata=ObjectMeta(name=LEASE_NAME, namespace=SYSTEM_NAMESPACE)), 0
    else:
        transitions = (spec.lease_transitions or 0) + (spec.holder_identity != holder)
    spec = msgspec.structs.replace(
        spec,
        holder_identity=holder,
        lease_duration_seconds=duration,
        acquire_time=spec.acquire_time if spec.holder_identity == holder else moment,
        renew_time=moment,
        lease_transitions=transitions,
    )
    return msgspec.structs.replace(lease, spec=spec)


def released(lease: Lease, now: float) -> Lease:
    """The Lease without a holder, so that nobody waits for its end."""
    moment = micro_time(now)
    spec = msgspec.structs.replace(
        lease.spec, holder_identity=None, lease_duration_seconds=1, acquire_time=moment, renew_time=moment
    )
    return msgspec.structs.replace(lease, spec=spec)


def _spec(lease: Lease | None) -> LeaseSpec:
    return LeaseSpec() if lease is None else lease.spec


class Election:
    """One replica's part in it: `win`, then `hold` beside the leader's work, then `release` behind it.

    identity: the replica's name, the same after a restart. connection: its token is this process' `incarnation`.
    """

    def __init__(
        self,
        client: KubeClient,
        connection: FencedConnection,
        *,
        identity: str,
        holder: str,
        timing: Timing,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._connection = connection
        self._identity = identity
        self._holder = holder
        self._timing = timing
        self._health = health
        self._clock = clock
        self._seen: Observation | None = None
        self._moved = asyncio.Event()
        self._held: Lease | None = None
        self._problem = ""
        self._leader = ""  # whom we wait for
        health.set(_CLAIM, False, "the Lease has not been read yet")

    async def win(self) -> None:
        """Returns once this process leads. Whatever fails is said in `health` and tried again."""
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._follow())
            await self._compete()
            watching.cancel()
        self._health.remove(_FEED_CLAIM)
        self._health.set(_CLAIM, True)
        self._health.note(_CLAIM, f"leader as {self._holder}")
        log.info("leading as %s", self._holder)

    async def hold(self) -> None:
        """Renew for ever; raises LeadershipLost."""
        renewed_at, told, patient = self._clock(), False, False
        while True:
            await self._rest(patient=patient)
            patient = True
            try:
                await self._confirm()
                if told:
                    log.info("the leader's Lease is renewed again")
                renewed_at, told, patient = self._clock(), False, False
            except KvError as error:
                log.debug("the leader's key cannot be looked at or written: %s", error)
            except (KubeError, CredentialError, TimeoutError) as error:
                if not told and self._clock() - renewed_at > self._timing.renew_deadline:
                    told = True
                    log.warning("the leader's Lease is not renewed, going on until another leads: %s", error or "late")

    async def release(self) -> None:
        """Let another replica lead at once; nothing of ours may be writing any more."""
        if self._held is None:
            return
        try:
            async with asyncio.timeout(_RELEASE_TIMEOUT):
                await self._give_back(self._held)
        except (KubeError, CredentialError, TimeoutError) as error:
            log.warning("the leader's Lease is left to expire: %s", error or "no answer")
        self._held = None

    # As standby

    async def _follow(self) -> None:
        reflector = Reflector(self._client, LEASES, SYSTEM_NAMESPACE, on_state=self._feed_state)
        async with aclosing(reflector.batches()) as batches:
            async for batch in batches:
                ours = [lease for lease in batch.upserts if lease.name == LEASE_NAME]
                if ours:
                    self._observe(ours[-1])
                elif self._seen is None or any(ref.name == LEASE_NAME for ref in batch.deletes):
                    self._observe(None)

    def _feed_state(self, state: ReflectorState) -> None:
        watching = state.phase is Phase.WATCHING
        self._health.set(_FEED_CLAIM, watching, state.error or "not listed yet")
        if self._seen is None:
            return
        if watching:
            self._observe(self._seen.lease)
        elif state.phase is Phase.RETRYING:
            self._seen = unseen(self._seen)

    def _observe(self, lease: Lease | None) -> None:
        self._seen = observe(self._seen, lease, self._clock())
        self._moved.set()
        if not self._free():
            self._said("")
            self._health.set(_CLAIM, True)
            self._waits_for(_spec(lease).holder_identity or "")

    def _waits_for(self, leader: str) -> None:
        if leader != self._leader:
            log.info("standby: leader is %s", leader)
        self._leader = leader
        self._health.note(_CLAIM, f"standby: leader is {leader}")

    def _free(self) -> bool:
        return self._seen is not None and self._wait() <= 0

    def _wait(self) -> float:
        assert self._seen is not None
        return free_from(self._seen, self._identity, self._timing.lease_duration) - self._clock()

    async def _compete(self) -> None:
        backoff = Backoff(limit=self._timing.retry_period)
        while True:
            await self._vacancy()
            try:
                if await self._take():
                    return
            except (KubeError, CredentialError, KvError) as error:
                self._said(str(error))
                self._health.set(_CLAIM, False, str(error))
            await asyncio.sleep(backoff.next())

    async def _vacancy(self) -> None:
        while not self._free():
            self._moved.clear()
            wait = math.inf if self._seen is None else self._wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if wait == math.inf else wait):
                    await self._moved.wait()

    async def _take(self) -> bool:
        found = await self._connection.look()
        return await self._claim() and await self._connection.take(found)

    async def _claim(self) -> bool:
        """Kubernetes' word that it is our turn: the Lease is ours, and renewed now."""
        try:
            lease = await self._read()
        except (KubeError, CredentialError):
            if self._seen is not None:
                self._seen = observe(None, self._seen.lease, self._clock())
            raise
        self._observe(lease)
        if not self._free():
            return False
        wanted = claimed(lease, self._holder, self._timing.lease_duration, time.time())
        try:
            self._held = await self._write(lease, wanted)
        except Conflict:
            return False
        return True

    async def _read(self) -> Lease | None:
        try:
            return await self._client.get(LEASES, LEASE_NAME, SYSTEM_NAMESPACE)
        except NotFound:
            return None

    async def _write(self, lease: Lease | None, wanted: Lease) -> Lease:
        if lease is not None:
            return await self._client.replace(LEASES, wanted)
        try:
            return await self._client.create(LEASES, wanted)
        except NotFound:
            await self._make_namespace()
            return await self._client.create(LEASES, wanted)

    async def _make_namespace(self) -> None:
        """A cluster that the mesh was never installed in has none."""
        with suppress(AlreadyExists):
            await self._client.create(NAMESPACES, Namespace(metadata=ObjectMeta(name=SYSTEM_NAMESPACE)))
            log.info("namespace %s made", SYSTEM_NAMESPACE)

    def _said(self, problem: str) -> None:
        if problem and problem != self._problem:
            log.warning("cannot lead yet: %s", problem)
        self._problem = problem

    # As leader

    async def _rest(self, *, patient: bool) -> None:
        """Until the next renewal is due; a fence that breaks wants one now, unless the last one failed."""
        if patient:
            await asyncio.sleep(self._timing.retry_period)
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timing.retry_period):
                    await self._connection.broken.wait()
        self._connection.broken.clear()

    async def _confirm(self) -> None:
        """One round: renew, and take the fence again if etcd lost it. The look comes first, as in `_take`."""
        found, trouble = None, None
        try:
            found = await self._connection.look()
        except KvError as error:
            trouble = error
        async with asyncio.timeout(self._timing.renew_deadline):
            await self._renew()
        if trouble is not None:
            raise trouble
        if not self._connection.holds(found):
            log.warning("etcd does not have the leader's key any more: writing it again")
            if not await self._connection.take(found):
                self._connection.broken.set()

    async def _renew(self) -> None:
        assert self._held is not None
        lease: Lease | None = self._held
        for _ in range(2):
            holder = _spec(lease).holder_identity
            if holder and holder != self._holder:
                self._held = None
                raise LeadershipLost(self._loss(holder))
            wanted = claimed(lease, self._holder, self._timing.lease_duration, time.time())
            try:
                self._held = await self._write(lease, wanted)
                return
            except (Conflict, NotFound) as error:
                conflict = error
            lease = await self._read()
        raise conflict

    def _loss(self, holder: str) -> str:
        if of_replica(holder, self._identity):
            return f"another process with the identity {self._identity} leads now: give each replica its own --identity"
        return f"{holder} leads now, after {self._identity} was not heard of in time: starting anew as standby"

    async def _give_back(self, lease: Lease) -> None:
        try:
            await self._client.replace(LEASES, released(lease, time.time()))
        except Conflict:
            # The last renewal may have arrived without our seeing its answer.
            found = await self._read()
            if found is not None and found.spec.holder_identity == self._holder:
                await self._client.replace(LEASES, released(found, time.time()))
        log.info("another replica may lead now")
