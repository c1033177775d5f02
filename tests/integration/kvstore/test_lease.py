"""A lease under a number of our own, whoever else uses that number."""

import asyncio

import pytest

from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.lease import Lease
from clustermesh.kvstore.rpc import etcd_pb2 as pb
from clustermesh.tasks import end
from tests.integration.etcd_process import EtcdProcess

pytestmark = pytest.mark.integration

NUMBER = 0x7EF


async def grant(connection: Connection, ttl: int) -> None:
    await connection.unary(lambda session: session.lease.LeaseGrant, pb.LeaseGrantRequest(ID=NUMBER, TTL=ttl))


@pytest.mark.parametrize(("found", "then"), [(5, 60), (30, 30), (600, 600)])
async def test_a_lease_too_short_to_be_ours_is_replaced_and_any_other_adopted(
    etcd: EtcdProcess, found: int, then: int
) -> None:
    connection = etcd.connection()
    await grant(etcd.connection(), found)
    lease = Lease(connection, 60, NUMBER)
    running = asyncio.create_task(lease.run())
    try:
        async with asyncio.timeout(20):
            assert await lease.granted() == NUMBER
        request = pb.LeaseTimeToLiveRequest(ID=NUMBER)
        answer = await connection.unary(lambda session: session.lease.LeaseTimeToLive, request)
        assert answer.grantedTTL == then
    finally:
        await end(running)


async def test_a_standby_renews_the_lease_and_never_grants_it(etcd: EtcdProcess) -> None:
    connection = etcd.connection()
    lease = Lease(connection, 60, NUMBER)
    assert not await lease.sustain()
    await grant(connection, 60)
    assert await lease.sustain()
