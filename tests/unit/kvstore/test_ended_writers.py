"""A lease outlives many of those who write under it, and keeps nothing of them."""

import asyncio
import gc
import weakref

import pytest

from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.lease import Lease
from clustermesh.kvstore.writer import Writer
from clustermesh.tasks import end


async def _run_for_a_moment(lease: Lease) -> weakref.ref[Writer]:
    writer = Writer(Connection(["http://127.0.0.1:1"], None), lease)
    writer.put("a", b"1")
    running = asyncio.create_task(writer.run())
    await asyncio.sleep(0)
    await end(running)
    return weakref.ref(writer)


@pytest.mark.parametrize("writers", [1, 3])
async def test_a_writer_that_ended_is_forgotten(writers: int) -> None:
    lease = Lease(Connection(["http://127.0.0.1:1"], None), 60)
    ended = [await _run_for_a_moment(lease) for _ in range(writers)]
    gc.collect()
    assert [reference() for reference in ended] == [None] * writers
