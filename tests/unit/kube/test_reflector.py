"""List and watch against a small server that misbehaves on request."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.kube.client import KubeClient
from clustermesh.kube.config import ClusterAccess
from clustermesh.kube.objects import PODS, ObjectRef, Pod
from clustermesh.kube.reflector import KubeBatch, LineSplitter, Phase, Reflector, ReflectorState


def pod(name: str, version: int, uid: str = "", **extra: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "demo", "uid": uid or name, "resourceVersion": str(version)},
        **extra,
    }


def event(kind: str, item: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


EXPIRED = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}

Stream = Callable[[web.StreamResponse], Awaitable[None]]


@dataclass
class FakeApi:
    """Lists `items`; each watch is played from the next script in line, the last one over and over."""

    items: list[dict[str, Any]] = field(default_factory=list)
    version: int = 1
    page: int = 500
    watches: list[Stream] = field(default_factory=list)
    list_failures: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    lists: int = 0
    asked: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    hangs: bool = False
    watched_from: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            assert request.query["allowWatchBookmarks"] == "true"
            return await self._watch(request)
        if self.list_failures:
            status, body = self.list_failures.pop(0)
            return web.json_response(body, status=status)
        start = int(request.query.get("continue", "0"))
        if not start:
            self.lists += 1
        size = self.page if "limit" in request.query else len(self.items)
        rest = start + size < len(self.items)
        meta = {"resourceVersion": str(self.version), "continue": str(start + size) if rest else ""}
        response = web.json_response({"metadata": meta, "items": self.items[start : start + size]})
        response.enable_compression()
        return response

    async def version_of_server(self, _: web.Request) -> web.Response:
        self.asked.release()
        if self.hangs:
            await asyncio.sleep(10)
        return web.json_response({})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        self.watched_from.append(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        script = self.watches.pop(0) if self.watches else stay
        await script(response)
        return response


async def stay(response: web.StreamResponse) -> None:
    await asyncio.Event().wait()


def sends(*chunks: bytes, then: Stream = stay) -> Stream:
    async def script(response: web.StreamResponse) -> None:
        for chunk in chunks:
            await response.write(chunk)
            await asyncio.sleep(0.01)  # so that chunks are not merged on their way
        await then(response)

    return script


async def cut(response: web.StreamResponse) -> None:
    """The connection breaks in the middle of the body."""
    assert response._req is not None
    transport = response._req.transport
    assert transport is not None
    transport.abort()


async def end(response: web.StreamResponse) -> None:
    await response.write_eof()


@asynccontextmanager
async def follow(
    api: FakeApi, on_state: Callable[[ReflectorState], None] | None = None, **options: float
) -> AsyncIterator[tuple[Reflector[Pod], AsyncIterator[KubeBatch[Pod]]]]:
    app = web.Application()
    app.router.add_get("/api/v1/pods", api.handle)
    app.router.add_get("/version", api.version_of_server)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with KubeClient(ClusterAccess(server=f"http://127.0.0.1:{port}"), **options) as client:
            reflector = Reflector(client, PODS, on_state=on_state)
            async with aclosing(reflector.batches()) as batches:
                yield reflector, batches
    finally:
        await runner.cleanup()


async def following(batches: AsyncIterator[KubeBatch[Pod]]) -> KubeBatch[Pod]:
    async with asyncio.timeout(5):
        return await anext(batches)


def names(batch: KubeBatch[Pod]) -> list[str]:
    return [item.name for item in batch.upserts]


async def test_a_list_comes_in_pages_and_the_last_one_is_synced() -> None:
    api = FakeApi([pod(f"p{n}", n) for n in range(5)], version=9, page=2)
    async with follow(api) as (_, batches):
        pages = [await following(batches) for _ in range(3)]
    assert [len(page.upserts) for page in pages] == [2, 2, 1]
    assert [page.synced for page in pages] == [False, False, True]


async def test_a_list_that_expires_between_pages_is_taken_whole() -> None:
    api = FakeApi([pod(f"p{n}", n) for n in range(5)], page=2)
    async with follow(api) as (_, batches):
        await following(batches)
        api.list_failures = [(410, EXPIRED)]
        last = await following(batches)
    assert last.synced
    assert names(last) == ["p2", "p3", "p4"], "what was told already is not told again"


async def test_lines_that_span_chunks_are_put_together() -> None:
    line = event("ADDED", pod("a", 2, spec={"nodeName": "ä" * 1000}))
    pieces = [line[:10], line[10:500], line[500:501], line[501:] + event("ADDED", pod("b", 3))]
    async with follow(FakeApi(watches=[sends(*pieces)])) as (_, batches):
        await following(batches)
        batch = await following(batches)
    assert names(batch) == ["a", "b"]


async def test_events_of_one_chunk_come_down_to_their_outcome() -> None:
    chunk = (
        event("ADDED", pod("a", 2))
        + event("MODIFIED", pod("a", 3))
        + event("ADDED", pod("b", 4))
        + event("DELETED", pod("b", 5))
        + event("DELETED", pod("kept", 6, "old"))
        + event("ADDED", pod("kept", 7, "new"))
    )
    async with follow(FakeApi([pod("kept", 1, "old")], watches=[sends(chunk)])) as (_, batches):
        await following(batches)
        batch = await following(batches)
    assert [(item.name, item.metadata.resource_version) for item in batch.upserts] == [("a", "3"), ("kept", "7")]
    assert set(batch.deletes) == {ObjectRef("demo", "b", "b"), ObjectRef("demo", "kept", "old")}


@pytest.mark.parametrize("ending", [cut, end])
async def test_a_watch_that_ends_goes_on_from_the_last_bookmark(ending: Stream) -> None:
    bookmark = event("BOOKMARK", {"metadata": {"resourceVersion": "70"}})
    api = FakeApi(
        watches=[sends(event("ADDED", pod("a", 60)), bookmark, then=ending), sends(event("ADDED", pod("b", 80)))]
    )
    async with follow(api) as (_, batches):
        await following(batches)
        assert names(await following(batches)) == ["a"]
        assert names(await following(batches)) == ["b"]
    assert api.watched_from == ["1", "70"]
    assert api.lists == 1


async def test_an_unfinished_line_of_a_broken_watch_is_dropped() -> None:
    half = event("ADDED", pod("b", 3))[:30]
    api = FakeApi(watches=[sends(event("ADDED", pod("a", 2)), half, then=cut), sends(event("ADDED", pod("b", 3)))])
    async with follow(api) as (_, batches):
        await following(batches)
        assert names(await following(batches)) == ["a"]
        assert names(await following(batches)) == ["b"]
    assert api.watched_from == ["1", "2"]


@pytest.mark.parametrize("status", [EXPIRED, {"kind": "Status", "code": 410, "reason": "Gone"}])
async def test_a_compacted_watch_lists_again_and_tells_what_has_gone(status: dict[str, Any]) -> None:
    api = FakeApi([pod("gone", 1), pod("kept", 2), pod("again", 3, "old")])
    script = sends(event("ERROR", status))

    async def after_changes(response: web.StreamResponse) -> None:
        api.items = [pod("kept", 2), pod("again", 9, "new"), pod("new", 8)]
        await script(response)

    api.watches = [after_changes]
    async with follow(api) as (_, batches):
        await following(batches)
        batch = await following(batches)
    assert batch.synced
    assert names(batch) == ["again", "new"]
    assert set(batch.deletes) == {ObjectRef("demo", "gone", "gone"), ObjectRef("demo", "again", "old")}


async def test_a_server_that_hangs_is_left_and_a_quiet_one_is_not() -> None:
    api = FakeApi(watches=[stay, sends(event("ADDED", pod("a", 2)))])
    async with follow(api, request_timeout=0.2, silence=0.1) as (_, batches):
        await following(batches)
        waiting = asyncio.ensure_future(following(batches))
        await api.asked.acquire()
        await api.asked.acquire()
        assert len(api.watched_from) == 1
        api.hangs = True
        assert names(await waiting) == ["a"]


async def test_refusals_are_retried_and_shown() -> None:
    forbidden = {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "pods is forbidden: User cannot list"}
    api = FakeApi([pod("a", 1)], list_failures=[(403, forbidden)])
    states: list[ReflectorState] = []
    async with follow(api, states.append) as (_, batches):
        assert names(await following(batches)) == ["a"]
    assert [state.phase for state in states[:2]] == [Phase.RETRYING, Phase.LISTING]
    assert "cannot list" in states[0].error


async def test_one_object_that_does_not_decode_spoils_no_other() -> None:
    bad = pod("bad", 2, status={"podIPs": "none"})
    api = FakeApi([pod("a", 1), bad], watches=[sends(event("MODIFIED", bad), event("ADDED", pod("b", 3)))])
    async with follow(api) as (_, batches):
        assert names(await following(batches)) == ["a"]
        assert names(await following(batches)) == ["b"]


@given(st.lists(st.binary(min_size=1, max_size=20).filter(lambda line: b"\n" not in line)), st.data())
def test_lines_do_not_depend_on_how_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    splitter, found = LineSplitter(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += splitter.feed(stream[:size])
        stream = stream[size:]
    assert found == lines
