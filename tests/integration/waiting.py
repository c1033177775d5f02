"""Waiting for states that announce themselves to nobody."""

import asyncio
from collections.abc import Awaitable, Callable

from clustermesh.kvstore.errors import KvError


async def eventually(condition: Callable[[], Awaitable[bool] | bool], *, within: float = 40.0) -> None:
    """Look now and then until condition holds; TimeoutError after `within` seconds."""
    async with asyncio.timeout(within):
        while True:
            answer = condition()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.02)


def despite_outages(condition: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
    """Does not hold while the etcd that is asked does not answer: a connection comes back a little after its server."""

    async def holds() -> bool:
        try:
            return await condition()
        except KvError:
            return False

    return holds
