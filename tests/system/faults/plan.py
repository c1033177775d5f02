"""Which faults strike what, and when: drawn from a seed before anything happens, so that a run can be repeated."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import NamedTuple

from clustermesh.kvstore.errors import KvError
from tests.integration.etcd_process import EtcdProcess
from tests.system.faults.network import AGENTS, PARTIES
from tests.system.faults.processes import Kept
from tests.system.faults.world import World

# Strikes a target, holds for some seconds, and undoes itself.
Act = Callable[[World, float], Awaitable[None]]

_HOLDS = (0.2, 0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 8.0)  # seconds
_GAP = 1.0  # seconds between two faults, in the mean


class Fault(NamedTuple):
    """One entry of the plan; what strikes one target waits for what strikes it already."""

    at: float  # seconds from the beginning
    target: str
    what: str
    hold: float  # seconds
    act: Act

    def __str__(self) -> str:
        return f"{self.at:6.1f} s  {self.target}: {self.what}, held {self.hold} s"


def plan(random: Random, seconds: float) -> list[Fault]:
    """Faults for so long: each kind once before any comes twice."""
    kinds = [
        *_of_etcd("source"),
        *_of_etcd("local"),
        *_of_process("mirror"),
        *(fault for agent in AGENTS for fault in _of_process(agent)),
        *(fault for party in PARTIES for fault in _of_cable(party)),
    ]
    faults: list[Fault] = []
    at, deck = 0.0, []
    while at < seconds:
        if not deck:
            deck = random.sample(kinds, len(kinds))
        target, what, act = deck.pop()
        faults.append(Fault(round(at, 1), target, what, random.choice(_HOLDS), act))
        at += random.uniform(0.2, 2 * _GAP - 0.2)
    return faults


async def strike(world: World, faults: list[Fault]) -> None:
    """Carry a plan out; returns once everything is undone."""
    begin = asyncio.get_running_loop().time()
    turns = {fault.target: asyncio.Lock() for fault in faults}

    async def one(fault: Fault) -> None:
        await asyncio.sleep(begin + fault.at - asyncio.get_running_loop().time())
        async with turns[fault.target]:
            await fault.act(world, fault.hold)

    async with asyncio.TaskGroup() as tasks:
        for fault in faults:
            tasks.create_task(one(fault))


Kind = tuple[str, str, Act]


def _of_etcd(name: str) -> list[Kind]:
    def etcd(world: World) -> EtcdProcess:
        return world.source if name == "source" else world.local

    def doubt(world: World) -> None:
        if name == "source":
            world.exporter.doubt()

    async def crash(world: World, hold: float) -> None:
        await etcd(world).kill()
        await asyncio.sleep(hold)
        await etcd(world).start()

    async def restart(world: World, hold: float) -> None:
        await etcd(world).stop()
        await asyncio.sleep(hold)
        await etcd(world).start()

    async def freeze(world: World, hold: float) -> None:
        etcd(world).freeze()
        await asyncio.sleep(hold)
        etcd(world).thaw()

    async def compact(world: World, hold: float) -> None:
        with suppress(KvError):  # nothing has changed since the last time
            await etcd(world).compact()

    async def lose(world: World, hold: float) -> None:
        await etcd(world).kill()
        etcd(world).wipe()
        await asyncio.sleep(hold)
        await etcd(world).start()
        doubt(world)

    async def save(world: World, hold: float) -> None:
        await etcd(world).stop()
        etcd(world).save()
        await etcd(world).start()

    async def restore(world: World, hold: float) -> None:
        await etcd(world).kill()
        saved = etcd(world).directory / "saved"
        if saved.exists():
            etcd(world).restore(saved)
        await asyncio.sleep(hold)
        await etcd(world).start()
        doubt(world)

    return [
        (name, "crashes", crash),
        (name, "restarts", restart),
        (name, "freezes", freeze),
        (name, "is compacted", compact),
        (name, "loses everything", lose),
        (name, "is backed up", save),
        (name, "goes back to the backup", restore),
    ]


def _of_process(name: str) -> list[Kind]:
    def process(world: World) -> Kept:
        return world.mirror if name == "mirror" else world.agents[name]

    async def crash(world: World, hold: float) -> None:
        await process(world).down(signal.SIGKILL)
        await asyncio.sleep(hold)
        process(world).up()

    async def stop(world: World, hold: float) -> None:
        await process(world).down(signal.SIGTERM)
        await asyncio.sleep(hold)
        process(world).up()

    async def freeze(world: World, hold: float) -> None:
        process(world).freeze()
        await asyncio.sleep(hold)
        process(world).thaw()

    return [(name, "crashes", crash), (name, "is stopped", stop), (name, "freezes", freeze)]


def _of_cable(party: str) -> list[Kind]:
    other = "mirror" if party in ("source", "local") else "local"

    async def unplug(world: World, hold: float) -> None:
        world.net.unplug(party)
        await asyncio.sleep(hold)
        world.net.plug(party)

    def drop(sender: str, receiver: str) -> Act:
        async def act(world: World, hold: float) -> None:
            world.net.drop(sender, receiver)
            await asyncio.sleep(hold)
            world.net.pass_on(sender, receiver)

        return act

    return [
        (f"cable of {party}", "is unplugged", unplug),
        (f"packets from {party} to {other}", "are lost", drop(party, other)),
        (f"packets from {other} to {party}", "are lost", drop(other, party)),
    ]
