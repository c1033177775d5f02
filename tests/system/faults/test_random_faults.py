"""Whatever is killed, cut, frozen, lost or restored while the source changes: in the end nothing is missing, stale or
wrong, and what does not change is never missing at all.

CLUSTERMESH_FAULT_SECONDS: how long faults go on. CLUSTERMESH_FAULT_SEED: another course of things; a failure names the
seed that it had and its faults.
"""

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from clustermesh.tasks import end
from tests.integration.waiting import eventually
from tests.system.faults.plan import plan, strike
from tests.system.faults.world import World, running_world

SECONDS = float(os.environ.get("CLUSTERMESH_FAULT_SECONDS", "25"))
SEED = int(os.environ.get("CLUSTERMESH_FAULT_SEED", "1"))
RATE = 300  # changes a second
CONVERGENCE = 120.0  # seconds
_TICK = 0.02
_LOOK = 0.25


@pytest.mark.timeout(SECONDS + 400)
async def test_after_random_faults_nothing_is_missing_stale_or_wrong(tmp_path: Path) -> None:
    faults = plan(Random(f"faults {SEED}"), SECONDS)
    lost: list[str] = []
    try:
        async with running_world(tmp_path, SEED) as world:
            assert await converged(world) == []
            watching = asyncio.create_task(watch(world, lost))
            loading = asyncio.create_task(load(world))
            try:
                await strike(world, faults)
                await end(loading)
                world.exporter.change(world.model.mend())
                await world.exporter.settled()
                assert await converged(world) == []
                for agent in world.agents:
                    assert await world.verify(agent) == ""
                assert await world.wrong() == []
            finally:
                await end(loading)
                await end(watching)
            assert world.model.changes > SECONDS * RATE / 2
        assert lost == []
        for process in (world.mirror, *world.agents.values()):
            assert "Traceback" not in process.log.read_text()
    except BaseException:
        print(f"CLUSTERMESH_FAULT_SEED={SEED} CLUSTERMESH_FAULT_SECONDS={SECONDS:g}", *faults, sep="\n")
        raise


async def load(world: World) -> None:
    """The source's cluster at work."""
    while True:
        for _ in range(int(RATE * _TICK)):
            world.exporter.change(world.model.change())
        await asyncio.sleep(_TICK)


async def watch(world: World, lost: list[str]) -> None:
    """Note what is missing of that which never changes."""
    begin = asyncio.get_running_loop().time()
    while True:
        missing = world.lost()
        if missing:
            lost.append(f"{asyncio.get_running_loop().time() - begin:.1f} s: {len(missing)}, as {missing[0]}")
        await asyncio.sleep(_LOOK)


async def converged(world: World) -> list[str]:
    """Wait until nothing is wrong; what still is after a long while."""
    wrong: list[str] = []

    async def right() -> bool:
        wrong[:] = await world.wrong()
        return not wrong

    with suppress(TimeoutError):
        await eventually(right, within=CONVERGENCE)
    return wrong
