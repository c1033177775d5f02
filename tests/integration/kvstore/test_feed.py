"""A feed keeps a copy of a prefix equal to the store, whatever happens to the server."""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from apiserver import inet_diag
from clustermesh.kvstore.auth import AuthAdmin, Permission
from clustermesh.kvstore.connection import Change, Connection
from clustermesh.kvstore.errors import Stage
from clustermesh.kvstore.feed import Event, Feed, FeedState
from clustermesh.tasks import end
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

PREFIX = "cilium/state/nodes/v1/red/"
PATIENCE = 40.0


class Copy:
    """What a consumer of a feed knows, and how it came to know it."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.keys: dict[bytes, bytes] = {}
        self.events = 0
        self.deleted: list[bytes] = []
        self.lists = 0
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        async with aclosing(self.feed.batches()) as batches:
            async for batch in batches:
                async with self._changed:
                    for event in batch.events:
                        self.events += 1
                        if event.value is None:
                            del self.keys[event.key]
                            self.deleted.append(event.key)
                        else:
                            self.keys[event.key] = event.value
                    self.lists += batch.synced
                    self._changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(condition)

    async def until_equal(self, connection: Connection) -> None:
        store = {kv.key: kv.value async for page in connection.list(PREFIX) for kv in page}
        await self.until(lambda: self.keys == store)

    async def until_state(self, state: FeedState, stage: Stage | None = None) -> None:
        def reached() -> bool:
            error = self.feed.error
            return self.feed.state is state and (stage is None or (error is not None and error.stage is stage))

        await eventually(reached)


@asynccontextmanager
async def following(connection: Connection, *, page: int = 5000, progress: float = 1.0) -> AsyncIterator[Copy]:
    copy = Copy(Feed(connection, PREFIX, page=page, progress=progress))
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(copy.run())
        await copy.until(lambda: copy.lists == 1)
        yield copy
        task.cancel()


async def write(connection: Connection, numbers: range, value: bytes = b"x", *, per_txn: int = 128) -> None:
    changes = [Change(f"{PREFIX}{number:06}".encode(), value) for number in numbers]
    for at in range(0, len(changes), per_txn):
        await connection.commit(changes[at : at + per_txn])


async def test_list_pages_and_later_changes_arrive(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    await write(kv, range(25))
    await kv.put("cilium/state/nodes/v1/redder", b"a neighbour of the prefix")
    async with following(etcd.connection(), page=10) as copy:
        assert len(copy.keys) == 25
        await kv.put(f"{PREFIX}000003", b"changed")
        await kv.delete(f"{PREFIX}000004")
        await copy.until_equal(kv)
        assert (copy.events, copy.lists) == (27, 1)


@pytest.mark.parametrize("signal", ["stop", "kill"])
async def test_a_restarted_server_is_resumed_where_it_was(etcd: EtcdProcess, signal: str) -> None:
    kv = etcd.connection()
    await write(kv, range(10))
    async with following(etcd.connection()) as copy:
        await getattr(etcd, signal)()
        await etcd.start()
        await write(kv, range(5, 15), b"new")
        await kv.delete(f"{PREFIX}000000")
        await copy.until_equal(kv)
        assert copy.lists == 1
        assert copy.events == 10 + 10 + 1


async def test_a_kill_in_the_middle_of_catching_up_loses_nothing(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    feed = Feed(etcd.connection(), PREFIX, progress=1.0)
    total = 5000
    seen: list[int] = []
    async with aclosing(feed.batches()) as batches:
        assert (await anext(batches)).synced
        await asyncio.gather(*[_count_up(kv, range(lane, total, 50)) for lane in range(50)])
        killed = False
        async with asyncio.timeout(90):
            async for batch in batches:
                assert not batch.synced
                seen += [event.mod_revision for event in batch.events]
                if not killed and len(seen) >= 500:
                    killed = True
                    await etcd.kill()
                    await etcd.start()
                if len(seen) >= total:
                    break
    assert killed
    assert seen == list(range(seen[0], seen[0] + total))


async def _count_up(connection: Connection, numbers: range) -> None:
    for number in numbers:
        await connection.put(f"{PREFIX}counter", b"%01000d" % number)


async def test_a_compacted_watch_lists_again_and_reports_what_vanished(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    await write(kv, range(10))
    other = etcd.connection()
    feed = Feed(other, PREFIX)
    async with aclosing(feed.batches()) as batches:
        first = await anext(batches)
        assert first.synced
        # The watch is not open yet: everything from here on is history for it.
        await write(kv, range(2, 4), b"changed")
        await kv.delete(f"{PREFIX}000007")
        await kv.put("elsewhere", b"")
        await etcd.compact()
        async with asyncio.timeout(PATIENCE):
            again = await anext(batches)
    assert again.synced
    assert {(event.key[-1:], event.value) for event in again.events} == {
        (b"2", b"changed"),
        (b"3", b"changed"),
        (b"7", None),
    }


async def test_a_frozen_server_is_noticed(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    async with following(etcd.connection(), progress=0.5) as copy:
        await copy.until_state(FeedState.WATCHING)
        etcd.freeze()
        await copy.until_state(FeedState.RETRYING, Stage.TIMEOUT)
        etcd.thaw()
        await kv.put(f"{PREFIX}after", b"")
        await copy.until_equal(kv)
        assert copy.lists == 1


async def test_a_quiet_but_living_server_is_not_given_up(etcd: EtcdProcess) -> None:
    async with following(etcd.connection(), progress=0.1) as copy:
        await copy.until_state(FeedState.WATCHING)
        before = copy.feed.last_event
        await asyncio.sleep(1.0)
        assert copy.feed.state is FeedState.WATCHING
        assert copy.feed.last_event > before + 0.5


async def test_a_prefix_without_permission_is_reported_and_retried(etcd: EtcdProcess) -> None:
    await etcd.enable_auth()
    root = etcd.connection()
    admin = AuthAdmin(root)
    await admin.ensure_user("remote-green", [])
    await root.put(f"{PREFIX}1", b"")
    copy = Copy(Feed(etcd.connection("remote-green"), PREFIX))
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(copy.run())
        await copy.until_state(FeedState.RETRYING, Stage.PERMISSION)
        await admin.ensure_role("peer", [Permission("read", PREFIX)])
        await admin.ensure_user("remote-green", ["peer"])
        await copy.until_equal(root)
        task.cancel()


async def test_revoked_rights_show_at_the_next_connection(etcd: EtcdProcess) -> None:
    await etcd.enable_auth()
    root = etcd.connection()
    admin = AuthAdmin(root)
    await admin.ensure_role("peer", [Permission("read", PREFIX)])
    await admin.ensure_user("remote-green", ["peer"])
    await root.put(f"{PREFIX}1", b"")
    async with following(etcd.connection("remote-green")) as copy:
        await copy.until_state(FeedState.WATCHING)
        await admin.delete_user("remote-green")
        await etcd.restart()
        await copy.until_state(FeedState.RETRYING, Stage.PERMISSION)
        assert len(copy.keys) == 1, "what was known stays until something better is known"


async def test_a_watch_without_permission_is_refused_not_silent(etcd: EtcdProcess) -> None:
    await etcd.enable_auth()
    root = etcd.connection()
    admin = AuthAdmin(root)
    await admin.ensure_role("peer", [Permission("read", PREFIX)])
    await admin.ensure_user("remote-green", ["peer"])
    await root.put(f"{PREFIX}1", b"")
    feed = Feed(etcd.connection("remote-green"), PREFIX)
    async with aclosing(feed.batches()) as batches:
        await anext(batches)
        await admin.ensure_role("peer", [])
        waiting = asyncio.ensure_future(anext(batches))
        await eventually(lambda: feed.state is FeedState.RETRYING)
        assert feed.error is not None
        assert feed.error.stage is Stage.PERMISSION
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_an_emptied_store_means_deletions(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    await write(kv, range(10))
    async with following(etcd.connection()) as copy:
        await etcd.kill()
        etcd.wipe()
        await etcd.start()
        await copy.until(lambda: not copy.keys)
        assert copy.lists == 2


async def test_a_replaced_store_that_has_overtaken_us_is_noticed(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    await write(kv, range(3), per_txn=1)
    feed = Feed(etcd.connection(), PREFIX)
    async with aclosing(feed.batches()) as batches:
        await anext(batches)
        await etcd.kill()
        etcd.wipe()
        await etcd.start()
        # The same keys at the same revisions but one, with other values, and more history than before.
        await write(kv, range(2), b"other", per_txn=1)
        await write(kv, range(5, 15), b"other", per_txn=1)
        async with asyncio.timeout(PATIENCE):
            again = await anext(batches)
    assert again.synced
    assert {event.value for event in again.events} == {b"other", None}
    assert [event.key[-1:] for event in again.events if event.value is None] == [b"2"]
    assert len(again.events) == 13


async def test_a_key_that_is_no_text_does_not_end_the_feed_when_the_store_is_replaced(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    await kv.put(PREFIX.encode() + b"\xff", b"hostile")
    feed = Feed(etcd.connection(), PREFIX)
    async with aclosing(feed.batches()) as batches:
        await anext(batches)
        await etcd.kill()
        etcd.wipe()
        await etcd.start()
        await write(kv, range(5), b"other", per_txn=1)
        async with asyncio.timeout(PATIENCE):
            again = await anext(batches)
    assert again.synced
    assert len(again.events) == 6


async def test_a_store_restored_from_an_older_copy_takes_later_keys_back(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    await write(kv, range(5))
    await etcd.stop()
    saved = etcd.save()
    await etcd.start()
    async with following(etcd.connection()) as copy:
        await write(kv, range(5, 10), per_txn=1)
        await copy.until_equal(kv)
        await etcd.kill()
        etcd.restore(saved)
        await etcd.start()
        await copy.until_equal(kv)
        assert sorted(copy.deleted) == [f"{PREFIX}{number:06}".encode() for number in range(5, 10)]


async def test_revisions_larger_than_a_message_are_put_together(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    feed = Feed(etcd.connection(), PREFIX)
    value = b"v" * 480_000
    events: list[Event] = []
    async with aclosing(feed.batches()) as batches:
        await anext(batches)
        # Six revisions of 1.4 MB, and etcd cuts its response after about 2 MB: in the middle of revisions.
        await write(kv, range(18), value, per_txn=3)
        async with asyncio.timeout(PATIENCE):
            while len(events) < 18:
                batch = await anext(batches)
                per_revision = Counter(event.mod_revision for event in batch.events)
                assert set(per_revision.values()) == {3}, "no revision is torn"
                assert batch.revision == batch.events[-1].mod_revision
                events += batch.events
    assert [event.key for event in events] == [f"{PREFIX}{number:06}".encode() for number in range(18)]
    assert all(event.value == value for event in events)


async def test_another_etcd_cluster_behind_the_same_address_is_noticed_by_any_answer(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    await write(kv, range(3))
    async with following(kv, progress=60) as copy:
        await etcd.stop()
        etcd.wipe()
        etcd.options.append("--initial-cluster-token=another")
        await etcd.start()
        async with etcd.connection("other") as other:
            await write(other, range(1, 5), b"of another cluster")
        await copy.until(lambda: copy.lists == 2)
        assert copy.keys == {f"{PREFIX}{number:06}".encode(): b"of another cluster" for number in range(1, 5)}


async def test_a_feed_without_memory_brings_every_list_in_full(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    await write(kv, range(10))
    async with aclosing(Feed(etcd.connection(), PREFIX, remember=False, page=4).batches()) as batches:
        first = [await anext(batches) for _ in range(3)]
        assert [len(batch.events) for batch in first] == [4, 4, 2]
        assert [(batch.starts, batch.synced) for batch in first] == [(True, False), (False, False), (False, True)]
        # The watch is not open yet: it comes too late for what is compacted now.
        await kv.delete(f"{PREFIX}000004")
        await write(kv, range(1), b"changed")
        await etcd.compact()
        async with asyncio.timeout(PATIENCE):
            again = [await anext(batches) for _ in range(3)]
        assert [len(batch.events) for batch in again] == [4, 4, 1]
        assert all(event.value is not None for batch in again for event in batch.events)
        await kv.delete(f"{PREFIX}000005")
        async with asyncio.timeout(PATIENCE):
            change = await anext(batches)
        assert (change.starts, [event.value for event in change.events]) == (False, [None])


async def test_feeds_that_share_a_turn_list_one_after_another(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    await write(kv, range(10))
    turn = asyncio.Lock()
    feeds = [Feed(kv, PREFIX, page=4, lists=turn) for _ in range(2)]
    async with aclosing(feeds[0].batches()) as first, aclosing(feeds[1].batches()) as second:
        await anext(first)
        waiting = asyncio.ensure_future(anext(second))
        while not (await anext(first)).synced:
            assert turn.locked() and not waiting.done()
        async with asyncio.timeout(PATIENCE):
            await waiting


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may reset connections")
async def test_a_watch_that_resumes_at_once_is_no_news_and_one_that_does_not_is(
    etcd: EtcdProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clustermesh.kvstore.feed")
    feed = Feed(etcd.connection(), "key")
    running = asyncio.create_task(exhaust(feed))
    try:
        await eventually(lambda: feed.watches == 1)
        for connection in inet_diag.established():
            if connection.local_port == etcd.port:
                inet_diag.destroy(connection)
        await eventually(lambda: feed.watches == 2)
        assert caplog.messages == []
        await etcd.stop()
        await eventually(lambda: bool(caplog.messages))
        assert caplog.messages[0].startswith("feed key: ")
        await etcd.start()
        await eventually(lambda: feed.watches == 3)
        assert "watching again" in caplog.messages[-1]
    finally:
        await end(running)


async def exhaust(feed: Feed) -> None:
    async for _ in feed.batches():
        pass
