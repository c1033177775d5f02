"""Ending tasks that one owns."""

import asyncio
from typing import Any


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended; what it fails with is raised.

    Unlike `suppress(CancelledError)` around `await task`, this lets a cancellation of the caller through.
    """
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
