"""HTTP for probes and Prometheus: /healthz, /readyz, /metrics."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from apiserver.health import Health


class ListenError(Exception):
    """The address cannot be listened on; the text names address, reason and remedy."""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    host: str  # "" for every address
    port: int

    @classmethod
    def parse(cls, text: str) -> "ListenAddress":
        """HOST:PORT, [IPv6]:PORT or :PORT; ValueError for anything else."""
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not (colon and port.isascii() and port.isdecimal() and int(port) < 65536) or (":" in host and not bracketed):
            raise ValueError(f"{text!r} is not HOST:PORT")
        return cls(host[1:-1] if bracketed else host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Server:
    """Serves until it is cancelled."""

    def __init__(self, listen: ListenAddress, health: Health, registry: CollectorRegistry) -> None:
        self._listen = listen
        self._health = health
        self._registry = registry
        self.listening = asyncio.Event()
        self.port: int | None = None  # once it listens

    async def run(self) -> None:
        async with self._serving():
            await asyncio.get_running_loop().create_future()

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        """ListenError when the port is taken."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
            ]
        )
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._listen.host or None, self._listen.port)
            try:
                await site.start()
            except OSError as error:
                raise ListenError(
                    f"cannot listen on {self._listen}: {_reason(error)}: give another --listen HOST:PORT"
                ) from None
            self.port = runner.addresses[0][1]
            self.listening.set()
            yield
        finally:
            await runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        """One line for each thing that is missing, or else for each that is worth knowing."""
        missing = self._health.missing
        lines = missing or ["ready", *self._health.notes]
        return web.Response(status=503 if missing else 200, text="".join(f"{line}\n" for line in lines))

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _reason(error: OSError) -> str:
    """Without asyncio's words around it."""
    return os.strerror(error.errno) if error.errno else str(error)
