"""A bad network between a client and an etcd: slow, thin, silent, cut, or leading elsewhere."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.integration.etcd_process import EtcdProcess

_CHUNK = 4096


class TcpProxy:
    """Listens on loopback and hands on to `target`, a port there, which may be changed for later connections.

    delay: seconds that bytes take each way. rate: bytes a second each way (None: all there are). `silence` loses
    everything from now on and tells nobody, as a firewall that forgot its connections; `cut` resets what is open.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay = 0.0
        self.rate: float | None = None
        self.accepted = 0
        self._passes = asyncio.Event()
        self._passes.set()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def endpoint(self) -> str:
        assert self._server is not None
        return f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def silence(self) -> None:
        self._passes.clear()

    def speak(self) -> None:
        """Hand on again; what was sent in silence arrives late, as after retransmissions."""
        self._passes.set()

    def cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._open.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            self._open.discard(writer)
            return
        self._open.add(far_writer)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, far_writer))
                tasks.create_task(self._pump(far_reader, writer))
        finally:
            for one in (writer, far_writer):
                one.transport.abort()
                self._open.discard(one)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                await self._passes.wait()
                if self.delay or self.rate:
                    await asyncio.sleep(self.delay + (len(chunk) / self.rate if self.rate else 0))
                writer.write(chunk)
                await writer.drain()
            writer.close()


@asynccontextmanager
async def proxied(etcd: EtcdProcess) -> AsyncIterator[TcpProxy]:
    """A proxy in front of an etcd."""
    proxy = TcpProxy(etcd.port)
    await proxy.start()
    try:
        yield proxy
    finally:
        proxy.speak()
        await proxy.close()
