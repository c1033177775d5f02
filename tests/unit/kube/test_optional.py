"""What counts as a kind that is not there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from clustermesh.kube.client import Page
from clustermesh.kube.errors import Forbidden, NotFound, Unreachable
from clustermesh.kube.objects import SERVICE_EXPORTS, SERVICE_EXPORTS_ALPHA, Resource, ServiceExport
from clustermesh.kube.optional import OptionalReflector
from clustermesh.kube.reflector import KubeBatch
from clustermesh.tasks import end


class Client:
    """Answers looks at each version with what stands for it here."""

    def __init__(self, **answers: Exception | Page) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def page(self, resource: Resource[Any], *_: object, **__: object) -> Page:
        self.asked.append(resource.version)
        answer = self.answers[resource.version]
        if isinstance(answer, Exception):
            raise answer
        return answer

    @asynccontextmanager
    async def watch(self, *_: object, **__: object) -> AsyncIterator[AsyncIterator[bytes]]:
        raise Unreachable("nothing happens here")
        yield


MISSING = NotFound(404, "NotFound", "no such kind")
CLOSED = Forbidden(403, "Forbidden", "may not list serviceexports")


async def first_batch(client: Client) -> tuple[KubeBatch[ServiceExport] | None, Resource[Any] | None]:
    """What is told first within a moment, and what is followed then."""
    reflector = OptionalReflector(
        client,  # type: ignore[arg-type]
        (SERVICE_EXPORTS, SERVICE_EXPORTS_ALPHA),
        look=0.01,
        confirm=0.0,
    )
    batches: asyncio.Queue[KubeBatch[ServiceExport]] = asyncio.Queue()
    task = asyncio.create_task(reflector.run(batches.put))
    try:
        async with asyncio.timeout(0.2):
            return await batches.get(), reflector.served
    except TimeoutError:
        return None, reflector.served
    finally:
        await end(task)


@pytest.mark.parametrize("refusal", [MISSING, CLOSED])
async def test_a_kind_that_nobody_serves_or_may_read_has_no_objects(
    refusal: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(v1beta1=refusal, v1alpha1=refusal)
    assert await first_batch(client) == (KubeBatch(synced=True), None)
    assert client.asked[:2] == ["v1beta1", "v1alpha1"]
    assert len(caplog.messages) == (1 if refusal is CLOSED else 0), "said once, not at every look"


async def test_the_first_version_that_is_served_is_followed() -> None:
    batch, served = await first_batch(Client(v1beta1=MISSING, v1alpha1=Page([], "", "")))
    assert batch == KubeBatch(synced=True)
    assert served is SERVICE_EXPORTS_ALPHA


async def test_a_server_that_does_not_answer_says_nothing_of_the_kind() -> None:
    batch, served = await first_batch(Client(v1beta1=Unreachable("no answer"), v1alpha1=MISSING))
    assert batch is None
    assert served is SERVICE_EXPORTS
