"""A process of ours that is started again whenever it ends, as Kubernetes would."""

import asyncio
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from clustermesh.tasks import end

_AGAIN = 0.2  # seconds before a process that ended by itself is started again


class Kept:
    """`start` and `close` frame its life; in between it may be hurt."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._process: asyncio.subprocess.Process | None = None
        self._may_run = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._may_run.set()
        self._keeping = asyncio.create_task(self._keep(), name=self.name)

    async def close(self) -> None:
        if self._keeping is not None:
            await end(self._keeping)

    async def down(self, how: signal.Signals) -> None:
        """End it, and keep it down until `up`."""
        self._may_run.clear()
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(how)
            await process.wait()

    def up(self) -> None:
        self._may_run.set()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _keep(self) -> None:
        with self.log.open("ab") as log:
            while True:
                await self._may_run.wait()
                self._process = await asyncio.create_subprocess_exec(*self._command, stdout=log, stderr=log)
                try:
                    await self._process.wait()
                except asyncio.CancelledError:
                    self._process.kill()
                    await self._process.wait()
                    raise
                await asyncio.sleep(_AGAIN)
