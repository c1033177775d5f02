"""A namespace that is not global: peers know nothing of it, the own agents all."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from clustermesh.kvstore.connection import Connection
from clustermesh.tasks import end
from clustermesh.wire import keys
from clustermesh.wire.keys import Kind
from nodeagent.datapath.abi import IpcacheKey, Map
from nodeagent.feeds import Feeds
from nodeagent.mesh import Mesh
from nodeagent.place import Place
from nodeagent.reconciler import Reconciler
from tests.integration.apiserver.exporting import Kubernetes, Store, exporting, ready
from tests.integration.apiserver.history import History, recording
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually
from tests.unit.nodeagent.memory_map import memory_maps

pytestmark = pytest.mark.integration

PODS = {"10.1.1.5", "10.1.1.6"}


class Agent:
    """An agent of red-1 over maps in memory, and whether it ever missed a pod that it knew."""

    def __init__(self, connection: Connection) -> None:
        self.maps = memory_maps()
        self.reconciler = Reconciler(self.maps)
        self.mesh = Mesh(Place(node="red-1", cluster="red", cluster_id=1), self.reconciler)
        self.feeds = Feeds(connection, self.mesh)
        self.missed: list[str] = []
        self.mesh.on_pods = lambda changes: self.missed.extend(ip for ip, identity in changes if identity is None)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.reconciler.run())
            tasks.create_task(self.feeds.run())

    @property
    def complete(self) -> bool:
        return self.mesh.complete(self.mesh.own)

    def knows(self, *ips: str) -> bool:
        return all(IpcacheKey.host(ip).pack() in self.maps[Map.IPCACHE].content for ip in ips) and set(
            self.mesh.pods.entries
        ) >= set(ips)


@pytest.fixture
async def agent(etcd: EtcdProcess) -> AsyncIterator[Agent]:
    agent = Agent(etcd.connection())
    task = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        await end(task)


async def seen_by_peers(store: Store) -> set[str]:
    """Kinds of which peers see records of the namespace."""
    found = await store.all(keys.STATE)
    kinds = (Kind.IDENTITIES, Kind.ADDRESSES, Kind.SERVICES)
    return {kind for kind in kinds for key in found if key.startswith(keys.state_prefix(kind, "red"))}


async def private(store: Store) -> int:
    return len(await store.all(keys.LOCAL_ADDRESSES)) + len(await store.all(keys.LOCAL_IDENTITIES))


async def fill(kubernetes: Kubernetes, **annotations: str) -> None:
    await kubernetes.install()
    await kubernetes.namespace(**annotations)
    await kubernetes.node()
    await kubernetes.pod("web-5", "10.1.1.5")
    await kubernetes.pod("web-6", "10.1.1.6", {"app": "other"})
    await kubernetes.service("10.1.1.5", **{"global": "true"})


async def visible(store: Store) -> None:
    async def done() -> bool:
        return len(await seen_by_peers(store)) == 3 and not await private(store)

    await eventually(done)


async def hidden(store: Store) -> None:
    async def done() -> bool:
        return not await seen_by_peers(store) and await private(store) == 4

    await eventually(done)


def never_in_no_place(history: History) -> list[str]:
    """Revisions at which an address that was known stood nowhere."""
    found, known = [], False
    for revision, state in history.states():
        stand = [keys.address("10.1.1.5") in state, keys.local_address("10.1.1.5") in state]
        known = known or any(stand)
        if known and not any(stand):
            found.append(f"revision {revision}")
    return found


async def test_a_namespace_leaves_the_peers_sight_and_returns_without_a_moment_in_which_agents_miss_it(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store, agent: Agent
) -> None:
    await fill(kubernetes)
    async with exporting(kubernetes, etcd) as health, recording(store.connection) as history:
        await ready(health)
        await visible(store)
        await eventually(lambda: agent.complete and agent.knows(*PODS))

        await kubernetes.set_global("false")
        await hidden(store)
        assert agent.knows(*PODS)
        assert await store.lacks(keys.local_service("demo", "web")), "its services are not global any more"
        # What comes now is not for peers either.
        await kubernetes.pod("web-7", "10.1.1.7", {"app": "third"})
        await eventually(lambda: agent.knows("10.1.1.7"))
        assert await seen_by_peers(store) == set()

        await kubernetes.set_global("true")
        await visible(store)
        assert await store.has(keys.service("red", "demo", "web"))
        # Back and forth, faster than it can move.
        for value in ("false", "true", "false", None):
            await kubernetes.set_global(value)
        await kubernetes.pod("fence", "10.1.1.8", {"app": "fence"})
        await eventually(lambda: agent.knows("10.1.1.8"))
        await visible(store)
        assert agent.knows(*PODS)
        assert agent.missed == []
        await history.caught_up()
        assert history.loose_ends() == []
        assert never_in_no_place(history) == []


async def test_the_default_holds_for_namespaces_that_do_not_say_and_may_change_with_a_restart(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store, agent: Agent
) -> None:
    await fill(kubernetes)
    await kubernetes.namespace("loud", **{"global": "true"})
    async with recording(store.connection) as history:
        async with exporting(kubernetes, etcd, default_global=False) as health:
            await ready(health)
            await hidden(store)
            await eventually(lambda: agent.complete and agent.knows(*PODS))
        numbers = set(await store.all(keys.LOCAL_IDENTITIES))
        async with exporting(kubernetes, etcd) as health:
            await ready(health)
            await visible(store)
        public = keys.state_prefix(Kind.IDENTITIES, "red")
        assert {keys.LOCAL_IDENTITIES + key.removeprefix(public) for key in await store.all(public)} == numbers
        async with exporting(kubernetes, etcd, default_global=False) as health:
            await ready(health)
            await hidden(store)
        assert agent.knows(*PODS)
        assert agent.missed == []
        await history.caught_up()
        assert history.loose_ends() == []


async def test_a_namespace_that_changes_its_labels_and_its_mind_at_once_ends_up_right(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store, agent: Agent
) -> None:
    await fill(kubernetes)
    async with exporting(kubernetes, etcd, grace=0.4) as health, recording(store.connection) as history:
        await ready(health)
        await eventually(lambda: agent.complete and agent.knows(*PODS))
        before = await store.identity_of("10.1.1.5")
        for value, team in (("false", "bank"), ("true", "shop"), ("false", "desk")):
            metadata = {"annotations": {"clustermesh.cilium.io/global": value}, "labels": {"team": team}}
            await kubernetes.change_namespace({"metadata": metadata})
        await hidden(store)
        assert not any(f"/{before}" in key for key in await store.all(keys.LOCAL_IDENTITIES))
        assert all("labels.team=desk;" in text for text in (await store.all(keys.LOCAL_IDENTITIES)).values())
        await eventually(lambda: agent.knows(*PODS))
        await history.caught_up()
        assert history.loose_ends() == []


async def test_of_two_pods_with_one_address_only_the_owners_namespace_counts(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    await kubernetes.namespace("quiet", **{"global": "false"})
    async with exporting(kubernetes, etcd) as health, recording(store.connection) as history:
        await ready(health)
        await kubernetes.pod("loud", "10.1.1.5")
        await eventually(lambda: store.has(keys.address("10.1.1.5")))
        await kubernetes.pod("secret", "10.1.1.5", namespace="quiet")
        await kubernetes.pod("fence", "10.1.1.6", namespace="quiet")
        await eventually(lambda: store.has(keys.local_address("10.1.1.6")))
        assert await store.lacks(keys.local_address("10.1.1.5"))
        await kubernetes.delete_pod("loud")
        await eventually(lambda: store.has(keys.local_address("10.1.1.5")))
        await eventually(lambda: store.lacks(keys.address("10.1.1.5")))
        await history.caught_up()
        for _, state in history.states():
            assert not {keys.address("10.1.1.5"), keys.local_address("10.1.1.5")} <= state.keys()
        assert not [
            event for event in history.events if event.key.startswith(b"cilium/") and b"secret" in (event.value or b"")
        ]
