"""The recorded cases again, all the way: from a Kubernetes API that fills in its defaults to a real etcd."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from apiserver.cluster import ClusterIdentity
from clustermesh.kube.objects import ENDPOINT_SLICES, NAMESPACES, SERVICES, KubeObject, Resource
from clustermesh.wire import keys
from clustermesh.wire.keys import Kind
from tests.integration.apiserver.exporting import Kubernetes, Store, exporting, ready
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually
from tests.unit.apiserver.golden import GOLDEN, comparable

pytestmark = pytest.mark.integration

RED = ClusterIdentity("red", 7)
PREFIX = keys.state_prefix(Kind.SERVICES, "red")
RESOURCES: dict[str, Resource[Any]] = {"Service": SERVICES, "EndpointSlice": ENDPOINT_SLICES}

# The stand-in gives a Service one address, of its own range.
DUAL_STACK = ("17-dual-stack",)
CASES = sorted({path.name.removesuffix(".expected.json") for path in (GOLDEN / "services").glob("*.expected.json")})


def text(case: str, suffix: str) -> str | None:
    path: Path = GOLDEN / "services" / f"{case}.{suffix}"
    return path.read_text().replace("10.96.", "10.101.") if path.exists() else None


def objects(case: str, suffix: str) -> list[tuple[Resource[Any], dict[str, Any]]]:
    documents = yaml.safe_load_all(text(case, suffix) or "")
    return [(RESOURCES[item["kind"]], item) for item in documents if item and item["kind"] in RESOURCES]


async def apply(kubernetes: Kubernetes, resource: Resource[KubeObject], document: dict[str, Any]) -> None:
    name, namespace = document["metadata"]["name"], document["metadata"]["namespace"]
    if any(item.name == name for item in await kubernetes.client.list(resource, namespace)):
        # What a document does not say must go, and a merge patch takes away only what is null in it.
        annotations = document["metadata"].get("annotations")
        document = {**document, "metadata": {**document["metadata"], "annotations": annotations}}
        await kubernetes.client.merge_patch(resource, name, document, namespace)
    else:
        await kubernetes.client.create(resource, document)


async def expect(store: Store, case: str, suffix: str) -> None:
    content = json.loads(text(case, suffix) or "{}")
    wanted = {key: comparable(value) for key, value in content.items() if value and key.startswith(PREFIX)}
    found: dict[str, Any] = {}

    async def equal() -> bool:
        nonlocal found
        found = {key: comparable(json.loads(value)) for key, value in (await store.all(PREFIX)).items()}
        return found == wanted

    try:
        await eventually(equal)
    except TimeoutError:
        raise AssertionError(f"{case}: {found} instead of {wanted}") from None


async def test_recorded_cases_come_out_of_a_running_exporter(
    kubernetes: Kubernetes, etcd: EtcdProcess, store: Store
) -> None:
    await kubernetes.install()
    async with exporting(kubernetes, etcd, cluster=RED) as health:
        await ready(health)
        for case in (case for case in CASES if case not in DUAL_STACK):
            first, second = objects(case, "yaml"), objects(case, "then-apply.yaml")
            namespace = first[0][1]["metadata"]["namespace"]
            await kubernetes.client.create(NAMESPACES, {"metadata": {"name": namespace}})
            for resource, document in first:
                await apply(kubernetes, resource, document)
            if text(case, "before.json") is not None:
                await expect(store, case, "before.json")
            for resource, document in second:
                await apply(kubernetes, resource, document)
            await expect(store, case, "expected.json")
            for resource, document in first:
                await kubernetes.client.delete(resource, document["metadata"]["name"], namespace)
        await eventually(lambda: _nothing(store))


async def _nothing(store: Store) -> bool:
    return not await store.all(PREFIX)
