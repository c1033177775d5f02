"""A kind that comes, changes its version and goes while it is followed."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from clustermesh.kube.objects import SERVICE_EXPORTS, SERVICE_EXPORTS_ALPHA, ObjectRef, ServiceExport
from clustermesh.kube.optional import OptionalReflector
from clustermesh.kube.reflector import KubeBatch
from clustermesh.tasks import end
from tests.integration.apiserver.exporting import Kubernetes
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration


class Follower:
    """What somebody who follows it knows."""

    def __init__(self, kubernetes: Kubernetes) -> None:
        self.reflector = OptionalReflector(
            kubernetes.client, (SERVICE_EXPORTS, SERVICE_EXPORTS_ALPHA), look=0.1, confirm=0.1
        )
        self.known: dict[ObjectRef, str] = {}
        self.synced = 0

    @property
    def names(self) -> list[str]:
        return sorted(ref.name for ref in self.known)

    @property
    def version(self) -> str | None:
        return self.reflector.served and self.reflector.served.version

    async def handle(self, batch: KubeBatch[ServiceExport]) -> None:
        for ref in batch.deletes:
            del self.known[ref]
        for item in batch.upserts:
            self.known[item.ref] = item.metadata.resource_version
        self.synced += batch.synced


@asynccontextmanager
async def following(kubernetes: Kubernetes) -> AsyncIterator[Follower]:
    follower = Follower(kubernetes)
    task = asyncio.create_task(follower.reflector.run(follower.handle))
    try:
        yield follower
        if task.done():
            task.result()
    finally:
        await end(task)


async def test_a_kind_that_is_not_there_has_no_objects_until_it_comes_and_none_when_it_goes(
    kubernetes: Kubernetes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clustermesh")
    await kubernetes.namespace()
    async with following(kubernetes) as follower:
        await eventually(lambda: follower.synced >= 3)
        assert follower.version is None
        assert caplog.messages == [], "a kind that is missing is no news"

        await kubernetes.install_service_exports("v1alpha1")
        await eventually(lambda: follower.version == "v1alpha1")
        await kubernetes.export("web", SERVICE_EXPORTS_ALPHA)
        await kubernetes.export("mail", SERVICE_EXPORTS_ALPHA)
        await eventually(lambda: follower.names == ["mail", "web"])

        await kubernetes.uninstall_service_exports()
        await eventually(lambda: follower.version is None)
        assert follower.known == {}
        await kubernetes.install_service_exports("v1alpha1", "v1beta1")
        await eventually(lambda: follower.version == "v1beta1")
    assert len(caplog.messages) <= 6, caplog.messages


async def test_another_version_of_the_kind_goes_on_where_the_former_was(kubernetes: Kubernetes) -> None:
    await kubernetes.namespace()
    await kubernetes.install_service_exports("v1alpha1", "v1beta1")
    await eventually(lambda: kubernetes.serves(SERVICE_EXPORTS))
    for name in ("web", "mail"):
        await kubernetes.export(name)
    async with following(kubernetes) as follower:
        await eventually(lambda: follower.names == ["mail", "web"])
        assert follower.version == "v1beta1"
        before = dict(follower.known)
        await kubernetes.install_service_exports("v1alpha1")
        await kubernetes.client.delete(SERVICE_EXPORTS_ALPHA, "mail", "demo")
        await eventually(lambda: follower.version == "v1alpha1" and follower.names == ["web"])
        assert follower.known.items() <= before.items(), "no object was seen as another one"
        await kubernetes.export("new", SERVICE_EXPORTS_ALPHA)
        await eventually(lambda: follower.names == ["new", "web"])
