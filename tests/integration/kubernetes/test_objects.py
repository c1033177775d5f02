"""Objects as the API keeps them: conflicts, pages, selectors, deletion, addresses of Services."""

import asyncio
import ssl
from typing import Any

import aiohttp
import pytest

from tests.integration.kubernetes.cluster import Cluster

pytestmark = pytest.mark.integration

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"
SERVICES = "/api/v1/namespaces/default/services"
PATIENCE = 20.0


def config_map(name: str, **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}, "data": {"a": "b"}}


def pod(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}], **spec}}


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}


async def test_a_stale_resource_version_is_a_conflict(cluster: Cluster) -> None:
    first = (await cluster.post(CONFIG_MAPS, config_map("c"))).body
    second = await cluster.call("PUT", f"{CONFIG_MAPS}/c", first | {"data": {"a": "c"}})
    stale = await cluster.call("PUT", f"{CONFIG_MAPS}/c", first | {"data": {"a": "d"}})

    assert int(second.body["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    assert (stale.status, stale.body["kind"], stale.body["reason"]) == (409, "Status", "Conflict")
    assert (await cluster.get(f"{CONFIG_MAPS}/c")).body["data"] == {"a": "c"}


async def test_concurrent_patches_are_all_kept(cluster: Cluster) -> None:
    await cluster.post(CONFIG_MAPS, config_map("c"))
    patches = [{"data": {f"key-{i}": "x"}} for i in range(6)]
    media = "application/merge-patch+json"
    answers = await asyncio.gather(*(cluster.call("PATCH", f"{CONFIG_MAPS}/c", patch, media) for patch in patches))

    assert [answer.status for answer in answers] == [200] * 6
    assert len((await cluster.get(f"{CONFIG_MAPS}/c")).body["data"]) == 7


async def test_a_write_that_changes_nothing_is_no_event(cluster: Cluster) -> None:
    first = (await cluster.post(CONFIG_MAPS, config_map("c"))).body
    again = await cluster.call("PUT", f"{CONFIG_MAPS}/c", config_map("c"))
    assert again.body["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


async def test_errors_are_status_objects(cluster: Cluster) -> None:
    await cluster.post(CONFIG_MAPS, config_map("c"))
    missing = await cluster.get(f"{CONFIG_MAPS}/nobody")
    again = await cluster.post(CONFIG_MAPS, config_map("c"))
    invalid = await cluster.post(CONFIG_MAPS, config_map("Not_A_Name"))
    media = await cluster.call("PATCH", f"{CONFIG_MAPS}/c", {}, "text/plain")
    nowhere = await cluster.get("/apis/nothing.io/v1/things")
    shapeless = await cluster.post(PODS, {"metadata": {"name": "p"}, "spec": {"containers": "none"}})

    assert [a.status for a in (missing, again, invalid, media, nowhere, shapeless)] == [404, 409, 422, 415, 404, 400]
    assert missing.body["message"] == 'configmaps "nobody" not found'
    assert (again.body["reason"], invalid.body["reason"]) == ("AlreadyExists", "Invalid")
    assert invalid.body["details"]["causes"][0]["field"] == "metadata.name"


async def test_nobody_without_a_certificate_gets_in_but_health_is_open(cluster: Cluster) -> None:
    context = ssl.create_default_context(cafile=str(cluster.etcd.ca_file))
    async with aiohttp.ClientSession(cluster.url, connector=aiohttp.TCPConnector(ssl=context)) as session:
        statuses = {path: (await session.get(path)).status for path in ("/readyz", "/version", CONFIG_MAPS)}
    assert statuses == {"/readyz": 200, "/version": 200, CONFIG_MAPS: 401}


async def test_pages_show_one_revision_until_it_is_compacted(cluster: Cluster) -> None:
    for i in range(5):
        await cluster.post(CONFIG_MAPS, config_map(f"c-{i}"))
    first = (await cluster.get(CONFIG_MAPS, limit="2")).body
    await cluster.call("DELETE", f"{CONFIG_MAPS}/c-4")
    token = first["metadata"]["continue"]
    second = (await cluster.get(CONFIG_MAPS, **{"limit": "10", "continue": token})).body

    names = [item["metadata"]["name"] for page in (first, second) for item in page["items"]]
    assert names == ["c-0", "c-1", "c-2", "c-3", "c-4"]
    assert first["metadata"]["remainingItemCount"] == 3
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert "continue" not in second["metadata"]

    await cluster.etcd.compact()
    gone = await cluster.get(CONFIG_MAPS, **{"limit": "10", "continue": token})
    assert (gone.status, gone.body["reason"]) == (410, "Expired")


async def test_selectors_narrow_lists_and_pages(cluster: Cluster) -> None:
    for i in range(6):
        await cluster.post(
            PODS, pod(f"p-{i}", nodeName=f"n-{i % 2}") | {"metadata": {"name": f"p-{i}", "labels": {"i": str(i)}}}
        )

    async def names(**query: str) -> list[str]:
        return [item["metadata"]["name"] for item in (await cluster.get(PODS, **query)).body["items"]]

    assert await names(labelSelector="i in (1, 2),i!=2") == ["p-1"]
    assert await names(labelSelector="!i") == []
    assert await names(fieldSelector="spec.nodeName=n-1") == ["p-1", "p-3", "p-5"]
    assert await names(fieldSelector="metadata.name=p-4") == ["p-4"]
    page = (await cluster.get(PODS, fieldSelector="spec.nodeName=n-1", limit="2")).body
    rest = {"fieldSelector": "spec.nodeName=n-1", "continue": page["metadata"]["continue"]}
    assert await names(**rest) == ["p-5"]
    assert (await cluster.get(PODS, fieldSelector="spec.containers=x")).status == 400


async def test_a_pod_on_a_node_waits_for_its_kubelet(cluster: Cluster) -> None:
    await cluster.post(PODS, pod("placed", nodeName="n"))
    await cluster.post(PODS, pod("unplaced"))
    marked = (await cluster.call("DELETE", f"{PODS}/placed")).body
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 30
    assert (await cluster.call("DELETE", f"{PODS}/unplaced")).body["status"] == "Success"

    await cluster.call("DELETE", f"{PODS}/placed", {"gracePeriodSeconds": 0})
    assert (await cluster.get(PODS)).body["items"] == []


async def test_finalizers_hold_an_object_and_owners_take_it_along(cluster: Cluster) -> None:
    owner = (await cluster.post(CONFIG_MAPS, config_map("owner", finalizers=["example.io/wait"]))).body
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    await cluster.post(CONFIG_MAPS, config_map("owned", ownerReferences=[reference]))
    held = (await cluster.call("DELETE", f"{CONFIG_MAPS}/owner")).body
    assert "deletionTimestamp" in held["metadata"]

    release = {"metadata": {"finalizers": None}}
    await cluster.call("PATCH", f"{CONFIG_MAPS}/owner", release, "application/merge-patch+json")
    async with asyncio.timeout(PATIENCE):
        async for event in cluster.watch(CONFIG_MAPS):
            if (event["type"], event["object"]["metadata"]["name"]) == ("DELETED", "owned"):
                break
            if (await cluster.get(CONFIG_MAPS)).body["items"] == []:
                break
    assert (await cluster.get(CONFIG_MAPS)).body["items"] == []


async def test_names_are_generated(cluster: Cluster) -> None:
    generated = {"metadata": {"generateName": "c-"}, "data": {}}
    names = {(await cluster.post(CONFIG_MAPS, generated)).body["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("c-") and len(name) == 7 for name in names)


async def test_services_get_an_address_of_their_own_and_keep_it(cluster: Cluster) -> None:
    free = (await cluster.post(SERVICES, service("free"))).body
    address = free["spec"]["clusterIP"]
    assert address.startswith("10.101.")
    assert free["spec"]["clusterIPs"] == [address]

    headless = await cluster.post(SERVICES, service("headless", clusterIP="None"))
    assert headless.body["spec"]["clusterIP"] == "None"
    given = await cluster.post(SERVICES, service("given", clusterIP="10.101.7.7"))
    assert given.body["spec"]["clusterIP"] == "10.101.7.7"
    taken = await cluster.post(SERVICES, service("taken", clusterIP=address))
    outside = await cluster.post(SERVICES, service("outside", clusterIP="192.0.2.1"))
    assert (taken.status, outside.status) == (422, 422)
    assert "already allocated" in taken.body["message"]

    replaced = await cluster.call("PUT", f"{SERVICES}/free", service("free", ports=[{"port": 81}]))
    assert replaced.body["spec"]["clusterIP"] == address
    ports = await cluster.post(SERVICES, service("ports", type="NodePort"))
    assert 30000 <= ports.body["spec"]["ports"][0]["nodePort"] < 32768


async def test_concurrent_services_never_share_an_address(cluster: Cluster) -> None:
    answers = await asyncio.gather(*(cluster.post(SERVICES, service(f"s-{i}")) for i in range(20)))
    assert len({answer.body["spec"]["clusterIP"] for answer in answers}) == 20


async def test_status_and_the_rest_are_written_apart(cluster: Cluster) -> None:
    await cluster.post(PODS, pod("p", nodeName="n") | {"status": {"phase": "Running"}})
    media = "application/merge-patch+json"
    change = {"spec": {"nodeName": "other"}, "status": {"phase": "Running", "podIP": "10.1.1.1"}}
    await cluster.call("PATCH", f"{PODS}/p/status", change, media)
    stored = (await cluster.get(f"{PODS}/p")).body
    assert (stored["spec"]["nodeName"], stored["status"]["phase"], stored["metadata"]["generation"]) == (
        "n",
        "Running",
        1,
    )

    await cluster.call("PATCH", f"{PODS}/p", {"status": {"phase": "Failed"}}, media)
    assert (await cluster.get(f"{PODS}/p")).body["status"]["phase"] == "Running"
