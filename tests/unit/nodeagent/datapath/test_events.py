"""The stream of events from the kernel's ring."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from nodeagent.datapath import datapath
from nodeagent.datapath.abi import Event, Map
from nodeagent.datapath.datapath import Datapath

MANY = 10_000


class BusyRing:
    """Holds more than anybody reads at a stretch."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd

    def read(self) -> Iterator[bytes]:
        for _ in range(MANY):
            yield bytes(Event.layout.size)

    def close(self) -> None:
        os.close(self.fd)


async def test_a_ring_that_fills_as_fast_as_it_is_read_does_not_keep_others_waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datapath, "RingBuffer", BusyRing)
    node = Datapath(tmp_path)
    ring = SimpleNamespace(fd=os.eventfd(0), info=SimpleNamespace(max_entries=4096))
    node.maps = {Map.EVENTS: ring}  # type: ignore[dict-item]
    had_its_turn = asyncio.Event()
    asyncio.get_running_loop().call_soon(had_its_turn.set)
    read = 0
    events = node.events()
    async for _ in events:
        read += 1
        if had_its_turn.is_set() or read == MANY:
            break
    await events.aclose()  # type: ignore[attr-defined]
    assert read < MANY
