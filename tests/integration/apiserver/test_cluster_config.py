"""What a cluster says of itself is its own to say."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from apiserver.control import ControlKeys
from clustermesh.kvstore.lease import Lease
from clustermesh.tasks import end
from clustermesh.wire import keys, records
from clustermesh.wire.records import Capabilities, ClusterConfig
from tests.integration.apiserver.exporting import RED, Store
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

KEY = keys.cluster_config("red")


def config(*, service_exports: bool) -> bytes:
    capabilities = Capabilities(
        synced_canaries=True,
        max_connected_clusters=255,
        service_exports_enabled=service_exports,
        endpoint_slices_export_mode=records.SERVICES_AND_SLICES,
    )
    return records.encode(ClusterConfig(1, capabilities))


@pytest.fixture
async def control(etcd: EtcdProcess) -> AsyncIterator[ControlKeys]:
    connection = etcd.connection()
    lease = Lease(connection, 30, 0x636D_0000_0001)
    control = ControlKeys(RED, connection, lease, heartbeat=0.1)

    async def both() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lease.run())
            tasks.create_task(control.run())

    running = asyncio.create_task(both())
    try:
        yield control
    finally:
        await end(running)


async def test_a_foreign_hand_is_put_right_at_once_and_named(
    control: ControlKeys, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "apiserver")

    async def stands(value: bytes) -> bool:
        found = await store.connection.get(KEY)
        return found is not None and found.value == value and found.lease != 0

    control.set_config(service_exports=False)
    await eventually(lambda: stands(config(service_exports=False)))
    await store.connection.put(KEY, b"{}")
    await eventually(lambda: stands(config(service_exports=False)), within=10)
    await store.connection.delete(KEY)
    await eventually(lambda: stands(config(service_exports=False)), within=10)
    await store.connection.put(keys.cluster_config("red-2"), b"{}")
    assert caplog.messages == [f"{KEY} was changed or deleted by somebody else: restoring it"] * 2

    control.set_config(service_exports=True)
    await eventually(lambda: stands(config(service_exports=True)))
    assert len(caplog.messages) == 2, "our own hand is not foreign"


async def test_a_heartbeat_comes_again_and_again_and_after_a_loss_all_is_back(
    control: ControlKeys, store: Store, etcd: EtcdProcess
) -> None:
    control.set_config(service_exports=False)

    async def beats() -> int:
        found = await store.connection.get(keys.HEARTBEAT)
        return 0 if found is None else found.mod_revision

    for _ in range(2):
        before = await beats()

        async def later(before: int = before) -> bool:
            return await beats() > before

        await eventually(later)
    await etcd.kill()
    etcd.wipe()
    await etcd.start()

    async def back() -> bool:
        found = await store.all()
        return found.get(KEY) == config(service_exports=False).decode() and keys.HEARTBEAT in found

    await eventually(back)
