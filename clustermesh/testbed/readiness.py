"""Waiting for a server to answer, and saying why when it does not."""

import asyncio
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from clustermesh.testbed.errors import TestbedError

PATIENCE = 60.0  # seconds
_PAUSE = 0.05  # seconds between attempts
_ATTEMPT = 5.0  # seconds one attempt may take
_LOG_LINES = 12


async def answers(
    url: str, tls: ssl.SSLContext | None, *, name: str, log: Path, broken: Callable[[], str], patience: float = PATIENCE
) -> None:
    """Return once `url` answers 200. TestbedError with the end of the log when it never does, or `broken` says why."""
    deadline = time.monotonic() + patience
    while True:
        last = await _attempt(url, tls)
        if not last:
            return
        reason = await asyncio.to_thread(broken)
        if not reason and time.monotonic() > deadline:
            reason = f"was not ready after {patience:.0f} s: {last}"
        if reason:
            raise TestbedError(f"{name} {reason}. The end of its log {log}:\n{tail(log)}")
        await asyncio.sleep(_PAUSE)


def tail(log: Path, lines: int = _LOG_LINES) -> str:
    """The last lines of a log, indented."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        text = ""
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (empty)"


async def _attempt(url: str, tls: ssl.SSLContext | None) -> str:
    """Why it does not answer; "" when it does."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    try:
        async with asyncio.timeout(_ATTEMPT):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=tls)
            try:
                writer.write(f"GET {parts.path} HTTP/1.0\r\nHost: {parts.hostname}\r\n\r\n".encode())
                status = (await reader.readline()).decode("latin-1").strip()
                return "" if " 200 " in f"{status} " else status or "no answer"
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        return str(error) or type(error).__name__
