"""Two replicas' elections against a real etcd and the stand-in Kubernetes; the leader's work is a counter in etcd."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from apiserver.health import Health
from apiserver.leadership import FENCE, LEASE_NAME, Election, LeadershipLost, Timing, incarnation
from clustermesh.kube import config
from clustermesh.kube.client import KubeClient
from clustermesh.kube.leases import LEASES, Lease
from clustermesh.kube.objects import SYSTEM_NAMESPACE
from clustermesh.kvstore.errors import KvError
from clustermesh.kvstore.fence import FencedConnection
from clustermesh.tasks import end
from tests.integration.apiserver.replicas import running_kubernetes
from tests.integration.etcd_process import EtcdProcess
from tests.integration.kubernetes.cluster import Cluster
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

SOON = Timing(lease_duration=2, renew_deadline=1.5, retry_period=0.2)
NEVER = Timing(lease_duration=3600, renew_deadline=5.0, retry_period=0.2)  # nobody's lease ends during a test


class Player:
    """One process of a replica: competes, and counts in etcd while it leads. `lost` is why it ended."""

    def __init__(self, etcd: EtcdProcess, kubernetes: Cluster, identity: str, timing: Timing) -> None:
        self.health = Health()
        self.count = 0
        self.leading = asyncio.Event()
        self.lost = ""
        self._holder = incarnation(identity)
        self._client = KubeClient(config.load(kubernetes.kubeconfig))
        self.connection = FencedConnection([etcd.endpoint], etcd.client_pem(), fence=FENCE, token=self._holder)
        self.election = Election(
            self._client, self.connection, identity=identity, holder=self._holder, timing=timing, health=self.health
        )
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._client, self.connection:
            await self.election.win()
            self.leading.set()
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self.election.hold())
                    tasks.create_task(self._work())
            except* LeadershipLost as group:
                self.lost = str(group.exceptions[0])
            finally:
                self.leading.clear()
                await self.election.release()

    async def _work(self) -> None:
        while True:
            try:
                await self.connection.put("cilium/work", self._holder.encode())
                self.count += 1
            except KvError:
                pass
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """As SIGTERM does."""
        await end(self._running)

    async def crash(self) -> None:
        """As SIGKILL does: nothing is given back."""
        self.election._held = None
        await end(self._running)

    async def works(self) -> None:
        """Returns once it has written something more."""
        count = self.count
        await eventually(lambda: self.count > count)


@pytest.fixture
async def kubernetes(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_kubernetes(tmp_path / "kubernetes-etcd") as cluster:
        yield cluster


Start = Callable[..., Player]


@pytest.fixture
async def start(etcd: EtcdProcess, kubernetes: Cluster) -> AsyncIterator[Start]:
    players: list[Player] = []

    def begin(identity: str, timing: Timing = NEVER) -> Player:
        players.append(Player(etcd, kubernetes, identity, timing))
        return players[-1]

    yield begin
    for player in players:
        await player.stop()


async def the_lease(kubernetes: Cluster) -> Lease:
    async with KubeClient(config.load(kubernetes.kubeconfig)) as client:
        return await client.get(LEASES, LEASE_NAME, SYSTEM_NAMESPACE)


def waits_for(standby: Player, leader: str) -> bool:
    return standby.health.ready and standby.health.notes == [f"standby: leader is {leader}"]


async def test_a_clean_stop_hands_over_at_once_and_a_restarted_replica_takes_over_at_once(start: Start) -> None:
    one = start("one")
    await one.leading.wait()
    two = start("two")
    await eventually(lambda: waits_for(two, one._holder))
    await one.stop()
    await eventually(two.leading.is_set)
    await two.works()
    await two.crash()
    three, again = start("three"), start("two")
    await eventually(again.leading.is_set)
    await eventually(lambda: waits_for(three, again._holder))
    await again.works()
    assert not three.leading.is_set()


async def test_the_first_replica_makes_the_namespace_that_its_lease_belongs_in(
    start: Start, kubernetes: Cluster
) -> None:
    await kubernetes.kubectl("delete", "namespace", SYSTEM_NAMESPACE)
    one = start("one")
    await one.leading.wait()
    assert (await the_lease(kubernetes)).spec.holder_identity == one._holder


async def test_whoever_is_not_heard_of_for_the_leases_duration_is_replaced(start: Start, kubernetes: Cluster) -> None:
    one = start("one", SOON)
    await one.leading.wait()
    two = start("two", SOON)
    await eventually(lambda: waits_for(two, one._holder))
    await one.crash()
    await eventually(two.leading.is_set)
    await two.works()
    assert (await the_lease(kubernetes)).spec.lease_transitions == 1


async def test_two_processes_with_one_identity_are_named(start: Start) -> None:
    one = start("same")
    await one.leading.wait()
    two = start("same")
    await eventually(two.leading.is_set)
    await eventually(lambda: bool(one.lost))
    assert "another process with the identity same leads now: give each replica its own --identity" in one.lost
    await two.works()


async def test_without_kubernetes_the_leader_goes_on_and_leads_when_it_is_back(
    start: Start, kubernetes: Cluster
) -> None:
    one = start("one", SOON)
    await one.leading.wait()
    two = start("two", SOON)
    await eventually(lambda: waits_for(two, one._holder))
    await kubernetes.stop()
    await eventually(lambda: not two.health.ready)
    await asyncio.sleep(1.5 * SOON.lease_duration)  # nothing may happen
    await one.works()
    await kubernetes.start()
    await eventually(lambda: waits_for(two, one._holder))
    renewed = (await the_lease(kubernetes)).spec.renew_time

    async def renewed_again() -> bool:
        return (await the_lease(kubernetes)).spec.renew_time != renewed

    await eventually(renewed_again)
    assert one.leading.is_set() and not one.lost and not two.leading.is_set()
    assert (await the_lease(kubernetes)).spec.lease_transitions == 0


async def test_a_lost_etcd_is_written_again_only_once_kubernetes_has_confirmed_the_leader(
    start: Start, kubernetes: Cluster, etcd: EtcdProcess
) -> None:
    one = start("one")
    await one.leading.wait()
    await one.works()
    await kubernetes.stop()
    await etcd.stop()
    etcd.wipe()
    await etcd.start()
    one.connection.broken.clear()
    await eventually(one.connection.broken.is_set)
    root = etcd.connection()
    await asyncio.sleep(3 * NEVER.retry_period)  # nothing may happen
    assert await root.count("c") == 0
    await kubernetes.start()
    await one.works()
    fence = await root.get(FENCE)
    assert fence is not None and fence.value.decode() == one._holder


async def test_a_leader_that_kubernetes_has_replaced_ends_and_leaves_the_fence_alone(
    start: Start, kubernetes: Cluster, etcd: EtcdProcess
) -> None:
    """As after a sleep: whoever took the Lease meanwhile took the fence as well."""
    one = start("one", Timing(lease_duration=3600, renew_deadline=5.0, retry_period=2.0))
    await one.leading.wait()
    await one.works()
    async with KubeClient(config.load(kubernetes.kubeconfig)) as client:
        lease = await client.get(LEASES, LEASE_NAME, SYSTEM_NAMESPACE)
        document = {"spec": {"holderIdentity": "other_1", "leaseDurationSeconds": 60}}
        await client.merge_patch(LEASES, LEASE_NAME, document, namespace=SYSTEM_NAMESPACE)
        assert lease.spec.holder_identity == one._holder
    root = etcd.connection()
    revision = await root.put(FENCE, b"other_1")
    await eventually(lambda: bool(one.lost))
    assert "other_1 leads now" in one.lost
    assert await root.current_revision() == revision
