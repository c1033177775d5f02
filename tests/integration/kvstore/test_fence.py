"""Whoever does not hold the fence changes nothing in etcd, whatever he tries."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from clustermesh.kvstore.auth import AuthAdmin, Permission
from clustermesh.kvstore.connection import Change
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.fence import FencedConnection
from clustermesh.kvstore.lease import Lease
from clustermesh.kvstore.writer import Writer
from clustermesh.tasks import end
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

FENCE = "private/leader"
Write = Callable[[FencedConnection], Awaitable[object]]

WRITES: dict[str, Write] = {
    "put": lambda kv: kv.put("key", b"new"),
    "delete": lambda kv: kv.delete("key"),
    "delete_prefix": lambda kv: kv.delete_prefix("k"),
    "commit": lambda kv: kv.commit([Change(b"key", b"new"), Change(b"other", None)]),
    "compare_and_put": lambda kv: kv.compare_and_put("key", b"new", 2),
    "guarded_put": lambda kv: kv.guarded_put("fresh", b"new", 0),
    "guarded_delete": lambda kv: kv.guarded_delete("key", 2),
    "ensure_role": lambda kv: AuthAdmin(kv).ensure_role("role", [Permission("read", "k")]),
    "ensure_user": lambda kv: AuthAdmin(kv).ensure_user("user", []),
    "delete_user": lambda kv: AuthAdmin(kv).delete_user("root"),
    "enable": lambda kv: AuthAdmin(kv).enable(),
    "compact": lambda kv: kv.compact(2),
    "revoke": lambda kv: granted(kv),
}


async def granted(kv: FencedConnection) -> None:
    lease = Lease(kv, 30, 0x7EF)
    await lease._grant()


@pytest.fixture
async def make(etcd: EtcdProcess) -> AsyncIterator[Callable[[str], FencedConnection]]:
    made: list[FencedConnection] = []

    def connection(token: str) -> FencedConnection:
        made.append(FencedConnection([etcd.endpoint], etcd.client_pem(), fence=FENCE, token=token))
        return made[-1]

    yield connection
    for each in made:
        await each.close()


Make = Callable[[str], FencedConnection]


async def test_the_holder_writes_as_on_any_connection(etcd: EtcdProcess, make: Make) -> None:
    one = make("one")
    assert await one.take(None)
    first = await one.put("key", b"1")
    assert await one.commit([Change(b"other", b"2")]) == first + 1
    assert await one.compare_and_put("key", b"2", first)
    refused = await one.guarded_put("key", b"3", first)
    assert not refused.succeeded
    assert refused.current is not None and refused.current.value == b"2"
    assert (await one.guarded_put("fresh", b"", 0)).succeeded
    assert not (await one.guarded_delete("missing", 7)).succeeded
    assert await one.delete("fresh")
    assert not await one.delete("fresh")
    assert await one.delete_prefix("o") == 1
    assert [kv.key async for page in one.list("") for kv in page] == [b"key", FENCE.encode()]
    assert await one.commit([Change(f"key{n}".encode(), b"") for n in range(128)]) > first
    await one.compact(first)
    assert not one.broken.is_set()


@pytest.mark.parametrize("taken", [True, False], ids=["another-holds-it", "it-is-gone"])
async def test_every_write_of_somebody_else_is_refused_by_etcd(etcd: EtcdProcess, make: Make, taken: bool) -> None:
    one, root = make("one"), etcd.connection()
    await root.put("key", b"old")
    await root.put("other", b"old")
    assert await one.take(None)
    found = await one.look()
    if taken:
        assert await make("two").take(found)
    else:
        await root.delete(FENCE)
    before = await everything(etcd)
    for name, write in WRITES.items():
        one.broken.clear()
        with pytest.raises(KvError) as caught:
            await write(one)
        assert caught.value.stage is Stage.FENCED, name
        assert one.broken.is_set()
    assert await everything(etcd) == before
    page = await one.get("key")
    assert page is not None and page.value == b"old"  # reading is free


async def everything(etcd: EtcdProcess) -> object:
    root = etcd.connection()
    keys = [kv async for page in root.list("") for kv in page]
    return keys, await AuthAdmin(root).users(), await AuthAdmin(root).roles(), (await root.status()).revision


async def test_of_two_that_found_the_same_fence_one_takes_it(make: Make) -> None:
    one, two = make("one"), make("two")
    assert sorted([await one.take(None), await two.take(None)]) == [False, True]
    found = await one.look()
    assert await two.take(found)
    assert not await one.take(found)
    assert two.holds(await two.look()) and not one.holds(await one.look())


async def test_a_writer_keeps_what_is_wanted_until_the_fence_is_its_own_again(etcd: EtcdProcess, make: Make) -> None:
    one, root = make("one"), etcd.connection()
    assert await one.take(None)
    writer = Writer(one, None)
    running = asyncio.create_task(writer.run())
    try:
        writer.put("a", b"1")
        await writer.flush()
        await root.put(FENCE, b"two")
        writer.put("a", b"2")
        writer.put("b", b"2")
        await one.broken.wait()
        await eventually(lambda: writer.error is not None and writer.error.stage is Stage.FENCED)
        assert len(writer) == 2
        assert await one.take(await one.look())
        await writer.flush()
        assert [kv.value async for page in root.list("a") for kv in page] == [b"2"]
    finally:
        await end(running)
