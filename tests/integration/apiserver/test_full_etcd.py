"""An etcd whose space is used up is named with its remedy; nothing is lost, and all goes on once there is room."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clustermesh.kvstore.connection import Change
from clustermesh.wire import keys
from tests.integration.apiserver.exporting import Kubernetes, exporting, ready
from tests.integration.apiserver.exports import address, export
from tests.integration.apiserver.test_mirror import mirroring, restricted, until_cached, until_synced
from tests.integration.etcd_process import EtcdProcess, running_etcd
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[EtcdProcess]:
    async with running_etcd(tmp_path / "small", options=["--quota-backend-bytes=8388608"]) as process:
        yield process


async def test_a_mirror_keeps_what_it_has_and_says_so(etcd: EtcdProcess, small: EtcdProcess) -> None:
    kv, mine = await restricted(etcd), small.connection()
    await export(kv)
    async with mirroring(etcd, mine) as mirror:
        await until_synced(mirror)
        await small.fill()
        ips = [f"10.5.1.{number}" for number in range(10, 30)]
        await kv.commit([Change(keys.address(ip).encode(), address(ip)) for ip in ips])
        await eventually(lambda: mirror.view().stage == "own-etcd")
        assert "compact and defragment etcd or raise its quota" in mirror.view().message
        await kv.delete(keys.address("10.5.1.10"))
        # What waits is bounded by what is wanted, however often it changes.
        for number in range(50):
            await kv.put(keys.address("10.5.1.11"), address("10.5.1.11", 5 << 16 | number + 1))
        await eventually(lambda: mirror.figures().events["addresses"] >= 71)
        assert mirror.figures().queue <= 20
        await until_cached(mine, "cilium/cache/ip/v1/red/10.5.1.7", address("10.5.1.7"))

        await small.make_room()
        await until_cached(mine, "cilium/cache/ip/v1/red/10.5.1.11", address("10.5.1.11", 5 << 16 | 50))
        await until_cached(mine, "cilium/cache/ip/v1/red/10.5.1.29", address("10.5.1.29"))
        await until_cached(mine, "cilium/cache/ip/v1/red/10.5.1.10", None)
        await eventually(lambda: (mirror.view().state, mirror.figures().queue) == ("connected", 0))


async def test_an_exporter_waits_and_says_so(kubernetes: Kubernetes, small: EtcdProcess) -> None:
    await kubernetes.install()
    await kubernetes.namespace()
    await kubernetes.pod("web", "10.1.1.5")
    store = small.connection()
    async with exporting(kubernetes, small) as health:
        await ready(health)
        await small.fill()
        await kubernetes.node()
        await eventually(lambda: any("compact and defragment" in line for line in health.missing))
        assert await store.get(keys.address("10.1.1.5")) is not None
        await kubernetes.pod("new", "10.1.1.6")
        await small.make_room()
        await ready(health)
        await eventually(lambda: has(small, keys.node("red", "red-1")))
        await eventually(lambda: has(small, keys.address("10.1.1.6")))


async def has(etcd: EtcdProcess, key: str) -> bool:
    return await etcd.connection().get(key) is not None
