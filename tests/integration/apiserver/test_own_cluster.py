"""What this cluster has is its own against peers, also while its etcd has lost it."""

import asyncio

import pytest

from apiserver.claims import Claims
from apiserver.own_cluster import OwnCluster
from clustermesh.tasks import end
from clustermesh.wire import keys
from clustermesh.wire.keys import Kind
from clustermesh.wire.ranges import number_of
from tests.integration.apiserver.exports import address, node
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

POD, HIDDEN = "10.9.9.9", "10.9.9.10"


async def test_what_a_lost_store_is_without_stays_the_clusters_own_until_it_is_filled(
    etcd: EtcdProcess,
) -> None:
    claims = Claims()

    def owner(ip: str) -> str | None:
        found = number_of(ip)
        assert found is not None
        return claims.at("green", *found)[1]

    async with etcd.connection() as kv:
        await kv.put(keys.node("red", "red-1"), node("red-1"))
        await kv.put(keys.address(POD), address(POD))
        await kv.put(keys.LOCAL_ADDRESSES + HIDDEN, address(HIDDEN))
        own = OwnCluster("red", kv, claims, changed=lambda: None)
        running = asyncio.create_task(own.run())
        try:
            for kind in (Kind.NODES, Kind.ADDRESSES):
                await kv.put(keys.state_canary(kind, "red"), b"now")
            await eventually(lambda: owner(POD) == owner(HIDDEN) == owner("10.5.1.7") == "red")
            assert own.nodes == {"red-1"}

            await kv.delete_prefix("")
            await kv.put(keys.node("red", "red-2"), node("red-2", "10.5.2.0/24", "192.0.2.22"))
            await kv.put(keys.address("10.9.9.11"), address("10.9.9.11"))
            await eventually(lambda: own.nodes == {"red-1", "red-2"} and owner("10.9.9.11") == "red")
            assert owner(POD) == owner(HIDDEN) == owner("10.5.1.7") == "red"

            for kind in (Kind.NODES, Kind.ADDRESSES):
                await kv.put(keys.state_canary(kind, "red"), b"now")
            await eventually(lambda: own.nodes == {"red-2"} and owner(POD) is None and owner(HIDDEN) is None)
            assert owner("10.5.1.7") is None
        finally:
            await end(running)
