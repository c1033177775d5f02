"""A prefix that is read while its writer vouches for it: its canary stands as long as nothing of it is lost.

See `Gate` for what that means for deletions.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from clustermesh.kvstore.connection import PAGE, Connection
from clustermesh.kvstore.errors import KvError
from clustermesh.kvstore.feed import Batch, Event, Feed
from clustermesh.kvstore.gate import Gate

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5


async def stands(connection: Connection, canary: str) -> None:
    """Return once the canary stands."""
    async with aclosing(Feed(connection, canary, exact=True).batches()) as batches:
        async for batch in batches:
            if any(event.value is not None for event in batch.events):
                return


async def vouched(
    connection: Connection,
    prefix: str,
    canary: str,
    apply: Callable[[Sequence[Event]], None],
    tasks: asyncio.TaskGroup,
    *,
    page: int = PAGE,
) -> AsyncGenerator[Batch, None]:
    """Batches of a prefix, endless, each after `apply` took what counts of it.

    What was held back is applied by one of `tasks` when the canary returns. Close it when you leave it early.
    """
    gate = Gate()

    async def release() -> None:
        await stands(connection, canary)
        apply(gate.release())

    releasing: asyncio.Task[None] | None = None
    async with aclosing(Feed(connection, prefix, page=page).batches()) as batches:
        async for batch in batches:
            gone = any(event.value is None for event in batch.events)
            apply(gate.admit(batch.events, not gone or await _standing(connection, canary)))
            if gate.holds and (releasing is None or releasing.done()):
                log.warning("%s is lost: what vanished below %s is kept until it is back", canary, prefix)
                releasing = tasks.create_task(release())
            yield batch


async def _standing(connection: Connection, canary: str) -> bool:
    """Whether the canary stands now; asks until etcd answers."""
    while True:
        try:
            return await connection.get(canary) is not None
        except KvError as error:
            log.warning("cannot read %s: %s", canary, error)
            await asyncio.sleep(_RETRY_SECONDS)
