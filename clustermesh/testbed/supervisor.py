"""Keeps a testbed's processes running: a daemon with a Unix socket, one for each testbed.

Each supervised process has one task, which starts it, waits for its end and starts it again, a little later each time
it dies young. What was stopped stays stopped. Requests and answers are one JSON line each, one request a connection.
The processes outlive the daemon; `down` finds them by their mark.
"""

import asyncio
import contextlib
import enum
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from clustermesh.testbed import processes
from clustermesh.testbed.errors import TestbedError

log = logging.getLogger(__name__)

SOCKET = "control.sock"
STOP_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_FIRST_DELAY, _LONGEST_DELAY, _STEADY_AFTER = 0.2, 5.0, 10.0  # seconds


class State(enum.StrEnum):
    RUNNING = "running"
    WAITING = "waiting"  # died, will be started again
    STOPPED = "stopped"


class Spec(msgspec.Struct, frozen=True):
    """How to start a process; `argv` enters its namespace itself."""

    name: str
    argv: tuple[str, ...]
    environment: dict[str, str]
    log: str


class Status(msgspec.Struct, frozen=True):
    name: str
    state: State
    pid: int | None
    restarts: int
    since: float  # Unix seconds: when the state was entered
    last_exit: int | None  # exit code, negative for a signal


class Verb(enum.StrEnum):
    STATUS = "status"
    START = "start"  # with spec: add and start; without: start again what was stopped
    STOP = "stop"  # SIGTERM; stays down
    KILL = "kill"  # SIGKILL; started again like after any crash
    CRASH = "crash"  # SIGKILL; stays down


class Request(msgspec.Struct, frozen=True):
    verb: Verb
    name: str = ""
    spec: Spec | None = None


class Answer(msgspec.Struct, frozen=True):
    error: str = ""
    processes: tuple[Status, ...] = ()


class Supervised:
    """One process and what became of it."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._state = State.STOPPED
        self._since = time.time()
        self._pid: int | None = None
        self._restarts = 0
        self._last_exit: int | None = None
        self._wanted = asyncio.Event()
        self._unwanted = asyncio.Event()
        self._changed = asyncio.Event()

    def status(self) -> Status:
        return Status(self.spec.name, self._state, self._pid, self._restarts, self._since, self._last_exit)

    async def start(self) -> None:
        """Returns when it runs, which is not yet ready, or could not be started."""
        self._unwanted.clear()
        self._wanted.set()
        await self._reach({State.RUNNING, State.WAITING})

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Returns when it is gone."""
        self._wanted.clear()
        self._unwanted.set()
        pid = self._pid
        if pid is not None:
            processes.signal_group(pid, number)
            try:
                async with asyncio.timeout(STOP_GRACE):
                    await self._reach({State.STOPPED})
            except TimeoutError:
                processes.signal_group(pid, signal.SIGKILL)
        await self._reach({State.STOPPED})

    async def kill(self) -> None:
        """Returns when the process that ran is gone; another takes its place."""
        pid = self._pid
        if pid is not None:
            processes.signal_group(pid, signal.SIGKILL)
            while self._pid == pid:
                await self._change()

    async def run(self) -> None:
        delay = _FIRST_DELAY
        while True:
            self._enter(State.STOPPED)
            await self._wanted.wait()
            started = time.monotonic()
            await self._live()
            if not self._wanted.is_set():
                delay = _FIRST_DELAY
                continue
            delay = _FIRST_DELAY if time.monotonic() - started > _STEADY_AFTER else min(delay * 2, _LONGEST_DELAY)
            self._restarts += 1
            self._enter(State.WAITING)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._unwanted.wait()

    async def _live(self) -> None:
        try:
            child = self._spawn()
        except OSError as error:
            log.error("cannot start %s: %s", self.spec.name, error)
            self._last_exit = 127
            return
        self._pid = child.pid
        self._enter(State.RUNNING)
        try:
            await processes.exited(child.pid)
        finally:
            self._last_exit = child.poll()
            self._pid = None
        log.info("%s ended with %s", self.spec.name, self._last_exit)

    def _spawn(self) -> "subprocess.Popen[bytes]":
        with Path(self.spec.log).open("ab", buffering=0) as output:
            return subprocess.Popen(
                self.spec.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.spec.environment,
                start_new_session=True,
            )

    def _enter(self, state: State) -> None:
        self._state = state
        self._since = time.time()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _change(self) -> None:
        await self._changed.wait()

    async def _reach(self, states: set[State]) -> None:
        while self._state not in states:
            await self._change()


class Supervisor:
    """Answers requests on the socket of a state directory until it is cancelled or killed."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / SOCKET
        self._supervised: dict[str, Supervised] = {}

    async def run(self) -> None:
        self._socket.unlink(missing_ok=True)
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            server = await asyncio.start_unix_server(self._serve, self._socket)
            # Whoever started us waits for this.
            sys.stdout.write("listening\n")
            sys.stdout.flush()
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._answer(await reader.readline())
            writer.write(msgspec.json.encode(answer) + b"\n")
            await writer.drain()
        except ConnectionError as error:
            log.info("a client left early: %s", error)
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Answer:
        try:
            request = msgspec.json.decode(line, type=Request)
            if request.verb is not Verb.STATUS:
                await self._act(request)
        except (msgspec.DecodeError, TestbedError, OSError) as error:
            return Answer(error=str(error))
        return Answer(processes=tuple(supervised.status() for supervised in self._supervised.values()))

    async def _act(self, request: Request) -> None:
        supervised = self._add(request.spec) if request.spec else self._find(request.name)
        match request.verb:
            case Verb.START:
                await supervised.start()
            case Verb.STOP:
                await supervised.stop()
            case Verb.CRASH:
                await supervised.stop(signal.SIGKILL)
            case Verb.KILL:
                await supervised.kill()

    def _add(self, spec: Spec) -> Supervised:
        if spec.name in self._supervised:
            raise TestbedError(f"process {spec.name!r} is supervised already")
        supervised = self._supervised[spec.name] = Supervised(spec)
        self._tasks.create_task(supervised.run(), name=spec.name)
        return supervised

    def _find(self, name: str) -> Supervised:
        try:
            return self._supervised[name]
        except KeyError:
            known = ", ".join(sorted(self._supervised)) or "none"
            raise TestbedError(f"no process {name!r}; there are: {known}") from None


def running(directory: Path) -> bool:
    """Whether a supervisor answers for this state directory."""
    try:
        ask(directory, Request(Verb.STATUS))
    except TestbedError:
        return False
    return True


def ask(directory: Path, request: Request, *, timeout: float = 60.0) -> tuple[Status, ...]:
    """Send one request and return the processes' states after it; TestbedError when refused or nobody answers."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(os.fspath(directory / SOCKET))
            connection.sendall(msgspec.json.encode(request) + b"\n")
            line = connection.makefile("rb").readline()
    except OSError as error:
        raise TestbedError(
            f"the supervisor of testbed {directory.name!r} does not answer ({error}): "
            f"clean up with 'clustermesh testbed down --name {directory.name}'"
        ) from error
    answer = msgspec.json.decode(line, type=Answer) if line else Answer(error="the supervisor went away")
    if answer.error:
        raise TestbedError(answer.error)
    return answer.processes


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    asyncio.run(Supervisor(Path(sys.argv[1])).run())


if __name__ == "__main__":
    main()
