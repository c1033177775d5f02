"""What readers see on the way: at no revision a loose end, never a wrong owner, never more writes than changes."""

import asyncio
import json
import os
import random
from collections.abc import Sequence

import pytest

from clustermesh.kube.objects import ENDPOINT_SLICES, PODS
from clustermesh.kvstore.connection import Change, Connection
from clustermesh.wire import keys
from clustermesh.wire.keys import Kind
from tests.integration.apiserver.exporting import Kubernetes, Store, exporting, ready
from tests.integration.apiserver.history import History, recording
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

SEED = int(os.environ.get("SEED", "3"))


class Uneven(Connection):
    """Transactions take their time, each another one: what must come in order does not by luck."""

    def __init__(self, etcd: EtcdProcess, chance: random.Random) -> None:
        super().__init__((etcd.endpoint,), etcd.client_files())
        self._chance = chance

    async def commit(self, changes: Sequence[Change]) -> int:
        await asyncio.sleep(self._chance.choice([0, 0, 0.02, 0.1]))
        return await super().commit(changes)


async def owners(history: History, ip: str) -> list[str | None]:
    """Who had the address, one after the other."""
    await history.caught_up()
    names = [None if value is None else json.loads(value)["K8sPodName"] for value in history.of(keys.address(ip))]
    return [name for index, name in enumerate(names) if not index or names[index - 1] != name]


async def test_an_address_that_moves_has_no_wrong_owner_and_the_first_of_two_keeps_it(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    async with exporting(kubernetes, etcd) as health, recording(store.connection) as history:
        await ready(health)
        await kubernetes.pod("first", "10.1.1.5")
        await eventually(lambda: store.has(keys.address("10.1.1.5")))
        await kubernetes.pod("second", "10.1.1.5", {"app": "other"})
        await kubernetes.pod("third", "10.1.1.5", {"app": "third"})
        await kubernetes.pod("fence", "10.1.1.6", {"app": "third"})
        await eventually(lambda: store.has(keys.address("10.1.1.6")))
        assert await owners(history, "10.1.1.5") == ["first"]

        # Both, in either order of events: the claim of one that goes, and the claim of one that has it already.
        await kubernetes.delete_pod("third")
        await kubernetes.delete_pod("first")

        async def second() -> bool:
            return json.loads((await store.all())[keys.address("10.1.1.5")])["K8sPodName"] == "second"

        await eventually(second)
        # A pod made anew under its name is another one.
        await kubernetes.delete_pod("second")
        await kubernetes.pod("second", "10.1.1.7")
        await eventually(lambda: store.lacks(keys.address("10.1.1.5")))
        await eventually(lambda: store.has(keys.address("10.1.1.7")))
        assert await owners(history, "10.1.1.5") == ["first", "second", None]
        assert await owners(history, "10.1.1.7") == ["second"]
        assert history.loose_ends() == []


async def test_under_churn_no_revision_has_a_loose_end(kubernetes: Kubernetes, etcd: EtcdProcess, store: Store) -> None:
    """Pods come, go and change their labels, their namespace changes its own, the service leads to some of them."""
    chance = random.Random(SEED)
    await kubernetes.install()
    await kubernetes.namespace()
    await kubernetes.service("10.1.1.5", **{"global": "true"})
    await kubernetes.pod("pod-5", "10.1.1.5")
    alive, backends, host = {"pod-5": "10.1.1.5"}, {"pod-5"}, 6
    async with (
        recording(store.connection) as history,
        exporting(kubernetes, etcd, connection=Uneven(etcd, chance), grace=0.4) as health,
    ):
        await ready(health)
        for _ in range(60):
            action = chance.choice(["come", "come", "go", "go", "relabel", "namespace", "lead", "leave"])
            if action == "come":
                name, ip = f"pod-{host}", f"10.1.1.{host}"
                host += 1
                await kubernetes.pod(name, ip, {"app": f"app-{chance.randrange(5)}"})
                alive[name] = ip
            elif action == "lead" and alive:
                # As a pod must be ready before it is led to.
                name = chance.choice(sorted(alive))
                await eventually(lambda name=name: store.has(keys.address(alive[name])))  # type: ignore[misc]
                backends.add(name)
                await kubernetes.lead_to(*(alive[name] for name in sorted(backends)))
            elif action == "leave" and backends:
                backends.discard(chance.choice(sorted(backends)))
                await kubernetes.lead_to(*(alive[name] for name in sorted(backends)))
            elif action == "go" and alive:
                name = chance.choice(sorted(alive))
                if name in backends:
                    backends.discard(name)
                    await kubernetes.lead_to(*(alive[name] for name in sorted(backends)))
                del alive[name]
                await kubernetes.delete_pod(name)
            elif action == "relabel" and alive:
                labels = {"metadata": {"labels": {"app": f"app-{chance.randrange(5)}"}}}
                await kubernetes.client.merge_patch(PODS, chance.choice(sorted(alive)), labels, "demo")
            elif action == "namespace":
                await kubernetes.label_namespace(team=f"team-{chance.randrange(3)}")

        async def settled() -> bool:
            prefix = keys.state_prefix(Kind.ADDRESSES, "red")
            return {key.removeprefix(prefix) for key in await store.all(prefix)} == set(alive.values())

        await eventually(settled)
        await history.caught_up()
    assert history.loose_ends() == []


async def test_a_change_costs_one_write_and_a_burst_goes_in_transactions(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    await kubernetes.service("10.1.1.5", **{"global": "true"})
    for number in range(60):
        await kubernetes.pod(f"web-{number}", f"10.1.1.{number}")
    async with recording(store.connection) as history, exporting(kubernetes, etcd) as health:
        await ready(health)
        await history.caught_up()
        written = [event for event in history.events if event.key.startswith(b"cilium/state/ip/")]
        assert len(written) == 60
        assert len({event.mod_revision for event in written}) <= 6, "a burst goes in transactions"

        before = len(history.events)
        await kubernetes.pod("new", "10.1.2.1")
        await eventually(lambda: store.has(keys.address("10.1.2.1")))
        await kubernetes.lead_to("10.1.1.5", "10.1.2.1")

        async def led() -> bool:
            return "10.1.2.1" in (await store.all())[keys.service("red", "demo", "web")]

        await eventually(led)
        # What no record says costs nothing.
        status = {"conditions": [{"type": "Ready", "status": "True"}]}
        await kubernetes.client.merge_patch_status(PODS, "web-1", status, "demo")
        await kubernetes.client.merge_patch(ENDPOINT_SLICES, "web-1", {"metadata": {"annotations": {"a": "b"}}}, "demo")
        await kubernetes.delete_pod("web-2")
        await eventually(lambda: store.lacks(keys.address("10.1.1.2")))
        await history.caught_up()
        changed = [event.key.decode() for event in history.events[before:] if b"/test/" not in event.key]
        own, shared = keys.local_service("demo", "web"), keys.service("red", "demo", "web")
        addresses = [keys.address("10.1.2.1"), keys.address("10.1.1.2")]
        slices = [keys.endpoint_slice("red", "demo", "web-1")] * 2  # its annotations are part of its record
        assert sorted(changed) == sorted([*addresses, own, shared, *slices])
