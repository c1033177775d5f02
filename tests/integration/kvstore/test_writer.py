"""A writer brings etcd to what its owner wants with as few writes as possible, and keeps it there."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from clustermesh.kvstore.auth import AuthAdmin, Permission
from clustermesh.kvstore.connection import PAGE, Connection, KeyValue
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.keyspace import Key
from clustermesh.kvstore.lease import Lease
from clustermesh.kvstore.writer import ROOM, Writer
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

PREFIX = "cilium/state/services/v1/red/"
LEASE_ID = 0x7ED


@asynccontextmanager
async def running(
    connection: Connection, *, ttl: int = 60, leased: bool = True, lost: asyncio.Event | None = None
) -> AsyncIterator[Writer]:
    """`lost` is set at each loss that the writer was told of."""
    lease = Lease(connection, ttl, LEASE_ID) if leased else None
    writer = Writer(connection, lease)
    if lease is not None and lost is not None:
        lease.on_loss(lost.set)
    async with asyncio.TaskGroup() as tasks:
        background = [tasks.create_task(writer.run())]
        if lease is not None:
            background.append(tasks.create_task(lease.run()))
        try:
            async with asyncio.timeout(60):
                yield writer
        finally:
            for task in background:
                task.cancel()


async def stored(connection: Connection) -> dict[str, bytes]:
    return {kv.key.decode(): kv.value async for page in connection.list("") for kv in page}


async def until_stored(connection: Connection, wanted: dict[str, bytes]) -> None:
    async def as_wanted() -> bool:
        return await stored(connection) == wanted

    await eventually(as_wanted)


async def test_many_keys_go_in_transactions_under_the_lease(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    wanted = {f"{PREFIX}{number}": b"%d" % number for number in range(1000)}
    async with running(kv) as writer:
        before = await kv.current_revision()
        for key, value in wanted.items():
            writer.put(key, value)
        await writer.flush()
        assert await kv.current_revision() - before == 8  # ceil(1000 / 128)
        assert {kv.lease async for page in kv.list("") for kv in page} == {LEASE_ID}
    assert await stored(kv) == wanted


async def test_changes_of_one_key_are_written_once_with_the_last_value(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    async with running(kv) as writer:
        before = await kv.current_revision()
        for number in range(100):
            writer.put(f"{PREFIX}a", b"%d" % number)
        writer.put(f"{PREFIX}b", b"gone before it was there")
        writer.delete(f"{PREFIX}b")
        await writer.flush()
        writer.put(f"{PREFIX}a", b"99")
        await writer.flush()
        assert await kv.current_revision() == before + 1
    assert await stored(kv) == {f"{PREFIX}a": b"99"}


async def test_a_key_that_changes_while_it_travels_ends_with_the_last_value(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    async with running(kv) as writer:
        for number in range(300):
            writer.put(f"{PREFIX}a", b"%d" % number)
            writer.put(f"{PREFIX}{number % 7}", b"%d" % number)
            await asyncio.sleep(0)
        await writer.flush()
        found = await stored(kv)
    assert found[f"{PREFIX}a"] == b"299"
    assert found[f"{PREFIX}5"] == b"299"


async def test_a_restart_adopts_the_living_lease_and_writes_only_what_changed(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    async with running(kv) as writer:
        for number in range(200):
            writer.put(f"{PREFIX}{number}", b"same")
        await writer.flush()
    before = await kv.current_revision()
    async with running(etcd.connection()) as writer:
        assert await writer.adopt(PREFIX) == 200
        for number in range(199):
            writer.put(f"{PREFIX}{number}", b"same")
        await writer.flush()
        assert await kv.current_revision() == before, "nothing changed, nothing is written"
        writer.put(f"{PREFIX}0", b"other")
        assert writer.prune(PREFIX) == 1
        await writer.flush()
        assert await kv.current_revision() == before + 1
    found = await stored(kv)
    assert len(found) == 199
    assert found[f"{PREFIX}0"] == b"other"


async def test_equal_keys_without_our_lease_are_put_under_it(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    await kv.put(f"{PREFIX}a", b"same")
    async with running(kv) as writer:
        await writer.adopt(PREFIX)
        writer.put(f"{PREFIX}a", b"same")
        await writer.flush()
    found = await kv.get(f"{PREFIX}a")
    assert found is not None
    assert found.lease == LEASE_ID


async def test_a_lost_lease_is_granted_again_and_its_keys_are_written_again(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    wanted = {f"{PREFIX}{number}": b"x" for number in range(300)}
    async with running(kv, ttl=3) as writer:
        for key, value in wanted.items():
            writer.put(key, value)
        await writer.flush()
        await etcd.revoke_lease(LEASE_ID)
        await until_stored(kv, wanted)


async def test_a_write_under_a_lost_lease_finds_out_at_once(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    async with running(kv) as writer:
        writer.put(f"{PREFIX}a", b"1")
        await writer.flush()
        await etcd.revoke_lease(LEASE_ID)
        writer.put(f"{PREFIX}b", b"2")
        async with asyncio.timeout(5):
            await writer.flush()
        await until_stored(kv, {f"{PREFIX}a": b"1", f"{PREFIX}b": b"2"})


class Hesitant(Connection):
    """Finds no left-overs before it is allowed to look."""

    def __init__(self, etcd: EtcdProcess) -> None:
        super().__init__([etcd.endpoint], etcd.client_pem())
        self.may_look = asyncio.Event()

    async def list(self, prefix: Key, *, page: int = PAGE) -> AsyncGenerator[list[KeyValue], None]:
        await self.may_look.wait()
        async for found in super().list(prefix, page=page):
            yield found


async def test_flush_after_a_second_loss_waits_for_everything_while_the_first_is_still_made_good(
    etcd: EtcdProcess,
) -> None:
    kv, lost = etcd.connection(), asyncio.Event()
    wanted = {f"{PREFIX}{number}": b"x" for number in range(300)}
    async with Hesitant(etcd) as hesitant, running(hesitant, ttl=3, lost=lost) as writer:
        await writer.adopt(PREFIX)
        for key, value in wanted.items():
            writer.put(key, value)
        await writer.flush()
        for _ in range(2):
            await etcd.revoke_lease(LEASE_ID)
            await lost.wait()
            lost.clear()
            await writer.flush()
            assert await stored(kv) == wanted
        hesitant.may_look.set()


async def test_everything_comes_back_after_the_store_was_emptied(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    async with running(kv, ttl=3) as writer:
        writer.put(f"{PREFIX}a", b"1")
        await writer.flush()
        await etcd.kill()
        etcd.wipe()
        await etcd.start()
        await until_stored(kv, {f"{PREFIX}a": b"1"})


async def test_a_restored_store_is_brought_up_to_date(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    async with running(kv, ttl=3) as writer:
        await writer.adopt(PREFIX)
        writer.prune(PREFIX)
        writer.put(f"{PREFIX}a", b"old")
        writer.put(f"{PREFIX}b", b"deleted later")
        await writer.flush()
        await etcd.stop()
        saved = etcd.save()
        await etcd.start()
        for number in range(10):
            writer.put(f"{PREFIX}a", b"new %d" % number)
            writer.delete(f"{PREFIX}b")
            await writer.flush()
        await asyncio.sleep(1.5)  # one renewal of the lease sees the newer revision
        await etcd.kill()
        etcd.restore(saved)
        await etcd.start()
        await until_stored(kv, {f"{PREFIX}a": b"new 9"})


async def test_what_a_restored_store_brings_back_before_the_first_prune_is_pruned(
    etcd: EtcdProcess,
) -> None:
    kv = etcd.connection()
    await kv.put(f"{PREFIX}stray", b"1")
    await etcd.stop()
    saved = etcd.save()
    await etcd.start()
    await kv.delete(f"{PREFIX}stray")
    async with running(kv, ttl=3) as writer:
        await writer.adopt(PREFIX)
        writer.put(f"{PREFIX}a", b"1")
        await writer.flush()
        await etcd.kill()
        etcd.restore(saved)
        await etcd.start()
        await until_stored(kv, {f"{PREFIX}stray": b"1", f"{PREFIX}a": b"1"})
        writer.prune(PREFIX)
        await until_stored(kv, {f"{PREFIX}a": b"1"})


async def test_a_value_that_is_too_large_is_rejected_alone(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    async with running(kv) as writer:
        writer.put(f"{PREFIX}a", b"fine")
        writer.put(f"{PREFIX}b", b"x" * 2_000_000)
        writer.put(f"{PREFIX}c", b"fine")
        with pytest.raises(KvError) as caught:
            await writer.flush()
        assert caught.value.stage is Stage.TOO_LARGE
        await until_stored(kv, {f"{PREFIX}a": b"fine", f"{PREFIX}c": b"fine"})
        assert list(writer.rejected) == [f"{PREFIX}b".encode()]
        writer.put(f"{PREFIX}b", b"smaller")
        await writer.flush()
        assert not writer.rejected


async def test_large_values_are_spread_over_transactions(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    async with running(kv) as writer:
        for number in range(40):
            writer.put(f"{PREFIX}{number}", b"x" * 100_000)
        await writer.flush()
        assert not writer.rejected
    assert await kv.count(PREFIX) == 40


async def test_missing_permission_is_told_and_the_write_waits_for_it(etcd: EtcdProcess) -> None:
    await etcd.enable_auth()
    root = etcd.connection()
    admin = AuthAdmin(root)
    await admin.ensure_user("local-red", [])
    async with running(etcd.connection("local-red")) as writer:
        writer.put(f"{PREFIX}a", b"1")
        with pytest.raises(KvError) as caught:
            await writer.flush()
        assert caught.value.stage is Stage.PERMISSION
        await admin.ensure_role("writer", [Permission("readwrite", PREFIX)])
        await admin.ensure_user("local-red", ["writer"])
        await until_stored(root, {f"{PREFIX}a": b"1"})


async def test_writes_wait_for_a_server_that_is_down(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    async with running(kv, leased=False) as writer:
        await etcd.kill()
        for number in range(300):
            writer.put(f"{PREFIX}{number:03}", b"1")
        flushed = asyncio.create_task(writer.flush())
        await asyncio.wait([flushed], timeout=0.5)
        assert not flushed.done()
        await etcd.start()
        await flushed
        assert len(writer) == 0
    assert await kv.count(PREFIX) == 300


async def test_an_etcd_that_takes_larger_transactions_gets_them(tmp_path: Path) -> None:
    etcd = EtcdProcess(tmp_path, options=["--max-txn-ops=1024"])
    try:
        await etcd.start()
        kv = etcd.connection()
        async with running(kv) as writer:
            before = await kv.current_revision()
            for number in range(2000):
                writer.put(f"{PREFIX}{number}", b"x")
            await writer.flush()
            assert await kv.current_revision() - before == 2
    finally:
        await etcd.close()


async def test_who_puts_more_than_is_written_waits_for_room(etcd: EtcdProcess) -> None:
    writer = Writer(etcd.connection(), None)
    for number in range(ROOM):
        writer.put(f"{PREFIX}{number}", b"x")
    waiting = asyncio.ensure_future(writer.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(60):
        running_writer = tasks.create_task(writer.run())
        await waiting
        assert 0 < len(writer) < ROOM
        await writer.flush()
        running_writer.cancel()
