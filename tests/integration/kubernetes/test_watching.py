"""Watches lose nothing: they resume, or say that they cannot; also when etcd or the server go away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from tests.integration.kubernetes.cluster import Cluster

pytestmark = pytest.mark.integration

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
PATIENCE = 30.0


def config_map(name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels or {}}, "data": {}}


async def take(events: AsyncIterator[Any], count: int) -> list[tuple[str, str]]:
    """The next events as (type, name); a bookmark's name is ""."""
    taken = []
    async with asyncio.timeout(PATIENCE):
        while len(taken) < count:
            event = await anext(events)
            taken.append((event["type"], event["object"].get("metadata", {}).get("name", "")))
    return taken


async def test_a_watch_goes_on_behind_its_resource_version(cluster: Cluster) -> None:
    first = (await cluster.post(CONFIG_MAPS, config_map("one"))).body
    await cluster.post(CONFIG_MAPS, config_map("two"))
    await cluster.call("DELETE", f"{CONFIG_MAPS}/one")
    await cluster.post("/api/v1/namespaces/kube-system/configmaps", config_map("elsewhere"))

    async with aclosing(cluster.watch(CONFIG_MAPS, resourceVersion=first["metadata"]["resourceVersion"])) as events:
        assert await take(events, 2) == [("ADDED", "two"), ("DELETED", "one")]
        await cluster.post(CONFIG_MAPS, config_map("three"))
        assert await take(events, 1) == [("ADDED", "three")]


async def test_initial_events_end_with_a_bookmark(cluster: Cluster) -> None:
    await cluster.post(CONFIG_MAPS, config_map("one"))
    query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    async with aclosing(cluster.watch(CONFIG_MAPS, **query)) as events:
        added, bookmark = await anext(events), await anext(events)
        assert (added["type"], added["object"]["metadata"]["name"]) == ("ADDED", "one")
        assert bookmark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        assert int(bookmark["object"]["metadata"]["resourceVersion"]) >= int(
            added["object"]["metadata"]["resourceVersion"]
        )


async def test_objects_enter_and_leave_a_selection(cluster: Cluster) -> None:
    media = "application/merge-patch+json"
    now = (await cluster.get(CONFIG_MAPS)).body["metadata"]["resourceVersion"]
    async with aclosing(cluster.watch(CONFIG_MAPS, labelSelector="team=a", resourceVersion=now)) as events:
        await cluster.post(CONFIG_MAPS, config_map("one", {"team": "b"}))
        await cluster.call("PATCH", f"{CONFIG_MAPS}/one", {"metadata": {"labels": {"team": "a"}}}, media)
        await cluster.call("PATCH", f"{CONFIG_MAPS}/one", {"data": {"a": "b"}}, media)
        await cluster.call("PATCH", f"{CONFIG_MAPS}/one", {"metadata": {"labels": {"team": "b"}}}, media)
        assert await take(events, 3) == [("ADDED", "one"), ("MODIFIED", "one"), ("DELETED", "one")]


async def test_open_watches_do_not_hold_up_a_stopping_server(cluster: Cluster) -> None:
    await cluster.post(CONFIG_MAPS, config_map("one"))
    async with aclosing(cluster.watch(CONFIG_MAPS)) as events:
        assert await take(events, 1) == [("ADDED", "one")]
        async with asyncio.timeout(5):
            assert await cluster.stop() == 0
            assert [event async for event in events] == []  # and no broken stream


async def test_a_watch_ends_at_its_timeout(cluster: Cluster) -> None:
    async with asyncio.timeout(PATIENCE):
        assert [event async for event in cluster.watch(CONFIG_MAPS, timeoutSeconds="1")] == []


async def test_a_restarted_server_serves_the_same_and_refuses_what_it_did_not_see(cluster: Cluster) -> None:
    old = (await cluster.post(CONFIG_MAPS, config_map("one"))).body["metadata"]["resourceVersion"]
    await cluster.post(CONFIG_MAPS, config_map("two"))
    assert await cluster.stop() == 0
    await cluster.etcd.compact()
    await cluster.start()

    listed = (await cluster.get(CONFIG_MAPS)).body
    assert [item["metadata"]["name"] for item in listed["items"]] == ["one", "two"]
    refused = await anext(cluster.watch(CONFIG_MAPS, resourceVersion=old))
    assert (refused["type"], refused["object"]["code"]) == ("REFUSED", 410)
    async with aclosing(cluster.watch(CONFIG_MAPS, resourceVersion=listed["metadata"]["resourceVersion"])) as events:
        await cluster.post(CONFIG_MAPS, config_map("three"))
        assert await take(events, 1) == [("ADDED", "three")]


async def test_a_revision_from_the_future_is_refused(cluster: Cluster) -> None:
    refused = await anext(cluster.watch(CONFIG_MAPS, resourceVersion="999999"))
    assert (refused["type"], refused["object"]["code"]) == ("REFUSED", 410)


async def test_an_open_watch_outlives_etcd(cluster: Cluster) -> None:
    await cluster.post(CONFIG_MAPS, config_map("one"))
    async with aclosing(cluster.watch(CONFIG_MAPS)) as events:
        assert await take(events, 1) == [("ADDED", "one")]
        await cluster.etcd.kill()
        dead = await cluster.get(CONFIG_MAPS)
        assert (dead.status, dead.body["kind"], dead.body["reason"]) == (503, "Status", "ServiceUnavailable")

        await cluster.etcd.start()
        await cluster.wait_ready()
        await cluster.post(CONFIG_MAPS, config_map("two"))
        assert await take(events, 1) == [("ADDED", "two")]


async def test_an_emptied_etcd_ends_all_watches_and_is_furnished_again(cluster: Cluster) -> None:
    for i in range(5):
        await cluster.post(CONFIG_MAPS, config_map(f"c-{i}"))
    async with aclosing(cluster.watch(CONFIG_MAPS)) as events:
        await take(events, 5)
        await cluster.etcd.kill()
        cluster.etcd.wipe()
        await cluster.etcd.start()
        async with asyncio.timeout(PATIENCE):
            last = [event async for event in events][-1]
        assert (last["type"], last["object"]["code"]) == ("ERROR", 410)
    await cluster.wait_ready()
    assert (await cluster.get(CONFIG_MAPS)).body["items"] == []
    assert (await cluster.post(CONFIG_MAPS, config_map("new"))).status == 201
