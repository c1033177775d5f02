"""Readiness probes, carried out as a kubelet does: HTTP and TCP from the node, exec inside the pod."""

import asyncio
import subprocess
from collections.abc import Mapping

from clustermesh.testbed import namespaces
from clustermesh.testbed.objects import Container, HttpAction, Probe


class Target:
    """Where a container is reached, and from where."""

    def __init__(
        self,
        container: Container,
        address: str,
        namespace: str,
        environment: Mapping[str, str],
        sockets: namespaces.SocketFactory,
    ) -> None:
        self.container = container
        self.address = address
        self.namespace = namespace
        self.environment = environment
        self.sockets = sockets

    def port(self, port: int | str) -> int:
        """A port given by number or by the name it has in the container; 0 when there is none of that name."""
        if isinstance(port, int):
            return port
        return next((known.container_port for known in self.container.ports or () if known.name == port), 0)


async def passes(probe: Probe, target: Target) -> bool:
    """One attempt; False when it fails or takes longer than the probe allows."""
    try:
        async with asyncio.timeout(probe.timeout_seconds):
            if probe.http_get:
                return await _http(probe.http_get, target)
            if probe.tcp_socket:
                return await _tcp(target.port(probe.tcp_socket.port), target)
            if probe.exec:
                return await _exec(probe.exec.command, probe.timeout_seconds, target)
    except (OSError, TimeoutError, ValueError):
        return False
    return True


async def _tcp(port: int, target: Target) -> bool:
    with target.sockets.tcp() as connection:
        await asyncio.get_running_loop().sock_connect(connection, (target.address, port))
    return True


async def _http(action: HttpAction, target: Target) -> bool:
    loop = asyncio.get_running_loop()
    port = target.port(action.port)
    with target.sockets.tcp() as connection:
        await loop.sock_connect(connection, (target.address, port))
        head = f"GET {action.path} HTTP/1.1\r\nHost: {target.address}:{port}\r\nConnection: close\r\n"
        await loop.sock_sendall(connection, f"{head}User-Agent: kube-probe\r\nAccept: */*\r\n\r\n".encode())
        answer = b""
        while b"\r\n" not in answer:
            part = await loop.sock_recv(connection, 4096)
            if not part:
                return False
            answer += part
    return 200 <= int(answer.split(b" ", 2)[1][:3]) < 400


async def _exec(command: tuple[str, ...], timeout: float, target: Target) -> bool:
    def run() -> int:
        try:
            return subprocess.run(
                namespaces.entering(target.namespace, command),
                env=dict(target.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=timeout,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return -1

    return await asyncio.to_thread(run) == 0
