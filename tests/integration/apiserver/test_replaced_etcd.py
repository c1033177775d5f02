"""An exporter whose etcd is another one, or an older one, than before notices by the next answer, not by the lease.

The lease is renewed so seldom here that waiting for it would take these tests an hour.
"""

import pytest

from clustermesh.kvstore import lease
from clustermesh.wire import keys
from tests.integration.apiserver.exporting import Kubernetes, Store, exporting, ready
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

TTL = 3 * 3600


@pytest.fixture(autouse=True)
def rare_renewals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LONGEST_INTERVAL", TTL / 3)


async def test_a_store_that_was_emptied_is_filled_at_once(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    await kubernetes.pod("web", "10.1.1.5")
    async with exporting(kubernetes, etcd, ttl=TTL, heartbeat=0.5) as health:
        await ready(health)
        before = await store.all("cilium/state/")
        await etcd.kill()
        etcd.wipe()
        await etcd.start()
        await eventually(lambda: store.has(keys.state_canary(keys.Kind.ADDRESSES, "red")))
        assert await store.all("cilium/state/") == before


async def test_a_store_that_went_back_to_a_backup_is_brought_up_to_date_at_once(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    await kubernetes.pod("gone", "10.1.1.5")
    async with exporting(kubernetes, etcd, ttl=TTL, heartbeat=0.5) as health:
        await ready(health)
        await etcd.stop()
        saved = etcd.save()
        await etcd.start()
        await kubernetes.delete_pod("gone")
        await kubernetes.pod("new", "10.1.1.6")

        async def current() -> bool:
            return await store.has(keys.address("10.1.1.6")) and not await store.has(keys.address("10.1.1.5"))

        await eventually(current)
        await etcd.kill()
        etcd.restore(saved)
        await etcd.start()
        await eventually(current)
