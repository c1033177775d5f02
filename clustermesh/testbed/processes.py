"""Processes of a testbed: how they are found, waited for and ended, whoever started them.

Every process started for a testbed carries the testbed's name in its environment, and what it starts inherits it. So
what a killed supervisor or kubelet leaves behind can be adopted or ended without a record of process ids.
"""

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

TESTBED_VARIABLE = "CLUSTERMESH_TESTBED"


def of_testbed(testbed: str, namespaces: Iterable[tuple[int, int]]) -> set[int]:
    """Ids of the processes that carry the testbed's mark or are inside one of its namespaces (device, inode).

    The caller and its ancestors are never among them.
    """
    inside = set(namespaces)
    mark = f"{TESTBED_VARIABLE}={testbed}"
    kin = _ancestors(os.getpid())
    return {pid for pid in _pids() if pid not in kin and (mark in _environment(pid) or _network(pid) in inside)}


def carrying(variables: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Processes whose environment has all of `variables`, with that environment."""
    wanted = {f"{key}={value}" for key, value in variables.items()}
    for pid in _pids():
        environment = _environment(pid)
        if wanted <= environment:
            yield pid, dict(entry.split("=", 1) for entry in environment if "=" in entry)


def end(pids: Iterable[int]) -> None:
    """SIGKILL; returns when all are gone."""
    handles = list(_handles(pids))
    try:
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        for handle in handles:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.poll()
    finally:
        for handle in handles:
            os.close(handle)


async def exited(pid: int) -> None:
    """Wait until a process has ended; it need not be our child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(handle, done.set)
    try:
        await done.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal the process group that `pid` leads; nothing happens when it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _handles(pids: Iterable[int]) -> Iterator[int]:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            yield os.pidfd_open(pid)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environment(pid: int) -> set[str]:
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0"))
    except OSError:
        return set()


def _network(pid: int) -> tuple[int, int] | None:
    try:
        status = Path(f"/proc/{pid}/ns/net").stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _ancestors(pid: int) -> set[int]:
    kin = set()
    while pid > 0:
        kin.add(pid)
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            break
        pid = int(status.rpartition(")")[2].split()[1])
    return kin
