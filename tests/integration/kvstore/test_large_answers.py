"""However much a peer's etcd holds, no answer of it is larger than we can bear."""

import pytest

from clustermesh.kvstore.connection import Change
from clustermesh.kvstore.feed import Feed
from clustermesh.kvstore.keyspace import prefix_range
from clustermesh.kvstore.session import LARGEST_ANSWER
from tests.integration.etcd_process import EtcdProcess

pytestmark = pytest.mark.integration

PREFIX = "cilium/state/nodes/v1/red/"
MEGABYTE = 1_000_000


async def test_a_page_that_would_be_too_large_is_read_in_pieces(etcd: EtcdProcess) -> None:
    kv = etcd.connection()
    many = 2 * LARGEST_ANSWER // MEGABYTE
    await kv.commit([Change(f"{PREFIX}a{number}".encode(), b"small") for number in range(100)])
    for number in range(many):
        await kv.put(f"{PREFIX}b{number:03}", bytes(MEGABYTE))
    await kv.commit([Change(f"{PREFIX}c{number}".encode(), b"small") for number in range(100)])
    sizes = [(len(page.kvs), page.ByteSize()) async for page in kv.pages(*prefix_range(PREFIX), page=10_000)]
    assert sum(keys for keys, _ in sizes) == many + 200
    assert max(size for _, size in sizes) <= LARGEST_ANSWER
    # Behind the large ones the pages grow again.
    assert len(sizes) < 20

    listed = 0
    async for batch in Feed(kv, PREFIX).batches():
        listed += len(batch.events)
        if batch.synced:
            break
    assert listed == many + 200
