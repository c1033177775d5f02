"""Ending a task loses neither its failure nor a cancellation of whoever ends it."""

import asyncio

import pytest

from clustermesh.tasks import end


async def slow_to_end(release: asyncio.Event) -> None:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await release.wait()


async def fails_at_the_end() -> None:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        raise ValueError("defect")


async def test_who_is_cancelled_while_ending_a_task_stays_cancelled() -> None:
    release = asyncio.Event()
    task = asyncio.create_task(slow_to_end(release))
    await asyncio.sleep(0)
    ending = asyncio.create_task(end(task))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert not task.done()
    release.set()
    await end(task)
    assert task.cancelled()


async def test_a_defect_of_the_task_is_raised() -> None:
    task = asyncio.create_task(fails_at_the_end())
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="defect"):
        await end(task)
