"""The kernel's maps end up as desired, in an order that packets survive."""

import asyncio
import threading

import pytest

from clustermesh.tasks import end
from nodeagent.compile.slots import slot_key
from nodeagent.datapath.abi import AddressKey, IpcacheKey, IpcacheValue, Map, NodeValue, ServiceKey
from nodeagent.reconciler import Reconciler
from tests.unit.nodeagent.memory_map import MemoryMap, memory_maps

MASTER = ServiceKey("10.96.0.1", 80, 6).pack()
SLOT = slot_key(MASTER, 1)


def pod(number: int, cluster_id: int = 2) -> tuple[bytes, bytes]:
    return IpcacheKey.host(f"10.2.0.{number}").pack(), IpcacheValue(7, "192.0.2.1", cluster_id).pack()


async def test_what_others_refer_to_is_written_first_and_removed_last() -> None:
    log: list[tuple[str, str, bytes]] = []
    maps = memory_maps(log)
    reconciler = Reconciler(maps)
    changes = [
        (Map.SERVICES, MASTER),
        (Map.SERVICES, SLOT),
        (Map.BACKENDS, b"back"),
        (Map.ENDPOINTS, b"pod"),
        (Map.IPCACHE, b"addr"),
        (Map.NODES, b"node"),
    ]
    for name, key in changes:
        reconciler.submit(name, [(key, b"v")])
    await reconciler.flush()
    assert [(name, key) for _, name, key in log] == [(str(name), key) for name, key in reversed(changes)]
    log.clear()
    for name, key in reversed(changes):
        reconciler.submit(name, [(key, None)])
    await reconciler.flush()
    assert [(name, key) for _, name, key in log] == [(str(name), key) for name, key in changes]


async def test_equal_entries_cost_no_call_and_the_last_word_counts() -> None:
    log: list[tuple[str, str, bytes]] = []
    maps = memory_maps(log)
    reconciler = Reconciler(maps)
    reconciler.submit(Map.NODES, [(b"a", b"1"), (b"b", b"1")])
    reconciler.submit(Map.NODES, [(b"a", b"2"), (b"b", None)])
    await reconciler.flush()
    assert maps[Map.NODES].content == {b"a": b"2"}
    assert len(log) == 1
    reconciler.submit(Map.NODES, [(b"a", b"2")])
    await reconciler.flush()
    assert len(log) == 1


async def test_marks_are_reached_when_their_entries_are_in_the_kernel() -> None:
    reconciler = Reconciler(memory_maps())
    idle = reconciler.mark()
    assert idle <= reconciler.flushed
    reconciler.submit(Map.NODES, [(b"a", b"1")])
    mark = reconciler.mark()
    assert mark > reconciler.flushed
    await reconciler.flush()
    assert mark <= reconciler.flushed


async def test_adopted_entries_stay_until_their_source_is_read_and_then_only_the_wanted_ones() -> None:
    maps = memory_maps()
    stale, kept, other = pod(1), pod(2), pod(3, cluster_id=3)
    maps[Map.IPCACHE].content.update([stale, kept, other])
    reconciler = Reconciler(maps)
    reconciler.adopt()
    reconciler.submit(Map.IPCACHE, [kept])
    await reconciler.flush()
    assert len(maps[Map.IPCACHE].content) == 3
    reconciler.prune(Map.IPCACHE, 2, {kept[0]})
    await reconciler.flush()
    assert maps[Map.IPCACHE].content == dict([kept, other])


async def test_a_full_map_keeps_what_fits_says_so_and_tries_again() -> None:
    maps = memory_maps()
    maps[Map.NODES].room = 2
    reconciler = Reconciler(maps)
    value = NodeValue(2).pack()
    keys = [AddressKey(f"192.0.2.{number}").pack() for number in range(3)]
    reconciler.submit(Map.NODES, [(key, value) for key in keys])
    await reconciler.flush()
    assert len(maps[Map.NODES].content) == 2
    assert reconciler.refusals == 1
    assert "full" in next(iter(reconciler.refused[Map.NODES].values())).reason
    maps[Map.NODES].room = 3
    reconciler.submit(Map.NODES, [(keys[2], value)])
    await reconciler.flush()
    assert set(maps[Map.NODES].content) == set(keys)
    assert reconciler.refusals == 0


async def test_an_audit_repairs_what_somebody_else_changed() -> None:
    maps = memory_maps()
    reconciler = Reconciler(maps)
    wanted = dict([pod(1), pod(2)])
    reconciler.submit(Map.IPCACHE, wanted.items())
    await reconciler.flush()
    content = maps[Map.IPCACHE].content
    content[pod(1)[0]] = b"wrong"
    del content[pod(2)[0]]
    content[pod(3)[0]] = b"foreign"
    await reconciler.audit()
    assert content == wanted
    assert reconciler.repairs == 3
    await reconciler.audit()
    assert reconciler.repairs == 3


class LargeMap(MemoryMap):
    """Takes its time to be read."""

    def __init__(self, original: MemoryMap) -> None:
        super().__init__(original.name, [])
        self.being_read, self.go_on = threading.Event(), threading.Event()

    def items(self) -> list[tuple[bytes, bytes]]:
        content = list(self.content.items())
        self.being_read.set()
        assert self.go_on.wait(10)
        return content


async def test_changes_go_on_while_an_audit_reads_and_it_judges_the_rest_alone() -> None:
    maps: dict[str, MemoryMap] = memory_maps()
    large = maps[Map.IPCACHE] = LargeMap(maps[Map.IPCACHE])
    reconciler = Reconciler(maps, audit_seconds=0.01)
    running = asyncio.create_task(reconciler.run())
    try:
        reconciler.submit(Map.IPCACHE, [pod(1), pod(2), pod(3)])
        await reconciler.wait(reconciler.mark())
        del large.content[pod(3)[0]]
        await asyncio.to_thread(large.being_read.wait, 10)
        reconciler.submit(Map.IPCACHE, [(pod(1)[0], None), (pod(2)[0], b"new"), pod(4)])
        async with asyncio.timeout(5):
            await reconciler.wait(reconciler.mark())
        assert large.content == dict([(pod(2)[0], b"new"), pod(4)])
        large.go_on.set()
        async with asyncio.timeout(5):
            while reconciler.repairs == 0:
                await reconciler.wait(reconciler.flushed + 1)
        await reconciler.wait(reconciler.mark())
        assert large.content == dict([(pod(2)[0], b"new"), pod(3), pod(4)])
        assert reconciler.repairs == 1
    finally:
        large.go_on.set()
        await end(running)


class SlowMap(MemoryMap):
    """Calls back while a batch is on its way."""

    def __init__(self, original: MemoryMap, meanwhile) -> None:  # type: ignore[no-untyped-def]
        super().__init__(original.name, [])
        self._meanwhile = meanwhile

    def update_batch(self, entries: list[tuple[bytes, bytes]]) -> None:
        self._meanwhile()
        super().update_batch(entries)


async def test_what_comes_during_a_round_goes_with_the_next() -> None:
    maps: dict[str, MemoryMap] = memory_maps()
    maps[Map.NODES] = SlowMap(maps[Map.NODES], lambda: reconciler.submit(Map.NODES, [(b"b", b"2")]))
    reconciler = Reconciler(maps)
    reconciler.submit(Map.NODES, [(b"a", b"1")])
    await reconciler.flush()
    assert maps[Map.NODES].content == {b"a": b"1"}
    await reconciler.flush()
    assert maps[Map.NODES].content == {b"a": b"1", b"b": b"2"}


async def test_run_flushes_what_is_submitted() -> None:
    maps = memory_maps()
    reconciler = Reconciler(maps)
    task = asyncio.create_task(reconciler.run())
    try:
        reconciler.submit(Map.NODES, [(b"a", b"1")])
        await asyncio.wait_for(reconciler.wait(reconciler.mark()), 5)
        assert maps[Map.NODES].content == {b"a": b"1"}
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
