"""A steady stream of HTTP requests from inside a pod, and what became of them.

Open loop: requests start at their time whether or not earlier ones have answered, so a stall is seen by every request
that falls into it. Runs as `python -m clustermesh.testbed.load URL` in a pod's network namespace, ends after its
duration or at SIGTERM, and prints one JSON object, a LoadReport.
"""

import argparse
import asyncio
import contextlib
import itertools
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec


class LoadReport(msgspec.Struct, frozen=True):
    """Counts and times (milliseconds) of one run."""

    sent: int
    answered: int
    failed: int
    by_cluster: Mapping[str, int]
    by_node: Mapping[str, int]
    clients: Mapping[str, int]  # source address as the server saw it → answers
    errors: Mapping[str, int]
    p50_ms: float
    p99_ms: float
    max_ms: float
    longest_gap_ms: float  # between two answers
    kept_connections: int  # open for the whole run
    broken_connections: int


class Echo(msgspec.Struct, frozen=True):
    """The part of the echo server's answer that is counted."""

    cluster: str
    node: str
    client: str


class Load:
    """Sends requests and counts."""

    def __init__(self, url: str, *, rate: float, timeout: float, keep_open: int) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r} is not of the form http://host:port/path")
        self._host, self._port, self._path = parts.hostname, parts.port or 80, parts.path or "/"
        self._rate = rate
        self._timeout = timeout
        self._keep_open = keep_open
        self._sent = 0
        self._answers: list[tuple[float, float, Echo]] = []  # finished at, seconds taken, answer
        self._errors: Counter[str] = Counter()
        self._broken = 0

    async def run(self, *, duration: float | None, count: int | None) -> LoadReport:
        """Send until the time or the count is used up, or until cancelled; then wait for open requests."""
        started = time.monotonic()
        kept = [asyncio.create_task(self._long_lived()) for _ in range(self._keep_open)]
        requests: set[asyncio.Task[None]] = set()
        try:
            while (count is None or self._sent < count) and (duration is None or time.monotonic() - started < duration):
                due = started + self._sent / self._rate
                if (ahead := due - time.monotonic()) > 0:
                    await asyncio.sleep(ahead)
                self._sent += 1
                task = asyncio.create_task(self._request())
                requests.add(task)
                task.add_done_callback(requests.discard)
        except asyncio.CancelledError:
            pass  # asked to stop: what is under way still counts
        await asyncio.gather(*requests)
        for task in kept:
            task.cancel()
        await asyncio.gather(*kept, return_exceptions=True)
        return self._report()

    async def _request(self) -> None:
        begin = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    echo = await self._exchange(reader, writer, close=True)
                finally:
                    writer.close()
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self._errors[_name(error)] += 1
            return
        now = time.monotonic()
        self._answers.append((now, now - begin, echo))

    async def _long_lived(self) -> None:
        """One connection for the whole run, a request on it ten times a second."""
        while True:
            try:
                reader, writer = await asyncio.open_connection(self._host, self._port)
                with contextlib.closing(writer):
                    while True:
                        async with asyncio.timeout(self._timeout):
                            await self._exchange(reader, writer, close=False)
                        await asyncio.sleep(0.1)
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                self._broken += 1
                self._errors[f"kept connection: {_name(error)}"] += 1
                await asyncio.sleep(0.1)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, close: bool) -> Echo:
        connection = "close" if close else "keep-alive"
        writer.write(f"GET {self._path} HTTP/1.1\r\nHost: {self._host}\r\nConnection: {connection}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        status, _, fields = head.decode("latin-1").partition("\r\n")
        if " 200 " not in f"{status} ":
            raise ValueError(status)
        lengths = [f.partition(":")[2] for f in fields.split("\r\n") if f.lower().startswith("content-length:")]
        if not lengths:
            raise ValueError("answer without Content-Length")
        return msgspec.json.decode(await reader.readexactly(int(lengths[0])), type=Echo)

    def _report(self) -> LoadReport:
        taken = sorted(seconds for _, seconds, _ in self._answers)
        times = sorted(at for at, _, _ in self._answers)
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return LoadReport(
            sent=self._sent,
            answered=len(self._answers),
            failed=self._sent - len(self._answers),
            by_cluster=Counter(echo.cluster for _, _, echo in self._answers),
            by_node=Counter(echo.node for _, _, echo in self._answers),
            clients=Counter(echo.client for _, _, echo in self._answers),
            errors=dict(self._errors),
            p50_ms=_quantile(taken, 0.5),
            p99_ms=_quantile(taken, 0.99),
            max_ms=_quantile(taken, 1.0),
            longest_gap_ms=round(max(gaps, default=0.0) * 1000, 1),
            kept_connections=self._keep_open,
            broken_connections=self._broken,
        )


def _quantile(ordered: list[float], part: float) -> float:
    return round(ordered[min(int(len(ordered) * part), len(ordered) - 1)] * 1000, 2) if ordered else 0.0


def _name(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


async def _main(arguments: argparse.Namespace) -> LoadReport:
    load = Load(arguments.url, rate=arguments.rate, timeout=arguments.timeout, keep_open=arguments.keep_open)
    task = asyncio.create_task(load.run(duration=arguments.duration, count=arguments.count))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    return await task


def main() -> None:
    parser = argparse.ArgumentParser(prog="clustermesh.testbed.load", description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second (100)")
    parser.add_argument("--duration", type=float, help="seconds; without it and without --count until SIGTERM")
    parser.add_argument("--count", type=int, help="requests in all")
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds a request may take (2)")
    parser.add_argument("--keep-open", type=int, default=0, help="connections kept open all the time (0)")
    arguments = parser.parse_args()
    try:
        report = asyncio.run(_main(arguments))
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")


if __name__ == "__main__":
    main()
