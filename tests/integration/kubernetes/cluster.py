"""The stand-in Kubernetes API as its own process over a real etcd, and the real kubectl against it."""

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec

from tests.integration.etcd_process import EtcdProcess, free_ports

KUBECTL = Path(sys.executable).parent / "kubectl"
START_TIMEOUT = 20.0


class Answer(NamedTuple):
    """An HTTP answer with its JSON body."""

    status: int
    body: Any


class Cluster:
    """One API server process, a client session and a kubeconfig."""

    def __init__(self, etcd: EtcdProcess, directory: Path) -> None:
        self.etcd = etcd
        self.directory = directory
        self.port = free_ports(1)[0]
        self.url = f"https://127.0.0.1:{self.port}"
        self.kubeconfig = directory / "kubeconfig"
        self._server_tls = self._pair("apiserver", etcd.ca.issue_server("kubernetes", ["localhost", "127.0.0.1"]))
        self._client_tls = self._pair("admin", etcd.ca.issue_client("kubernetes-admin"))
        self._process: asyncio.subprocess.Process | None = None
        self._write_kubeconfig()

    def _pair(self, name: str, pair: Any) -> tuple[Path, Path]:
        cert, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        cert.write_bytes(pair.cert)
        key.write_bytes(pair.key)
        return cert, key

    def _write_kubeconfig(self) -> None:
        cert, key = (str(path) for path in self._client_tls)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "red",
            "clusters": [
                {"name": "red", "cluster": {"server": self.url, "certificate-authority": str(self.etcd.ca_file)}}
            ],
            "users": [{"name": "admin", "user": {"client-certificate": cert, "client-key": key}}],
            "contexts": [{"name": "red", "context": {"cluster": "red", "user": "admin"}}],
        }
        self.kubeconfig.write_bytes(msgspec.json.encode(config))

    async def start(self) -> None:
        """Start and wait until it is ready."""
        client = self.etcd.client_files()
        cert, key = self._server_tls
        with (self.directory / "apiserver.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "clustermesh.testbed.kubernetes",
                "--cluster-name=red",
                f"--etcd-endpoints={self.etcd.endpoint}",
                f"--etcd-ca={client.ca}",
                f"--etcd-cert={client.cert}",
                f"--etcd-key={client.key}",
                f"--tls-cert={cert}",
                f"--tls-key={key}",
                f"--client-ca={self.etcd.ca_file}",
                f"--listen=127.0.0.1:{self.port}",
                "--service-cidr=10.101.0.0/16",
                stdout=log,
                stderr=log,
            )
        await self.wait_ready()

    async def wait_ready(self) -> None:
        """Ask until it answers from etcd; raises RuntimeError with its log if it ends."""
        async with asyncio.timeout(START_TIMEOUT):
            while not await self.ready():
                if self._process is None or self._process.returncode is not None:
                    raise RuntimeError((self.directory / "apiserver.log").read_text()[-2000:])
                await asyncio.sleep(0.05)  # a listening socket announces itself to nobody

    async def ready(self) -> bool:
        """Does it answer, with its default namespace made?"""
        try:
            return (await self.get("/api/v1/namespaces/default/serviceaccounts/default")).status == 200
        except aiohttp.ClientConnectionError:
            return False

    async def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return 0
        process.terminate()
        try:
            return await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            return await process.wait()

    def session(self) -> aiohttp.ClientSession:
        """A client with the administrator's certificate."""
        context = ssl.create_default_context(cafile=str(self.etcd.ca_file))
        context.load_cert_chain(*self._client_tls)
        return aiohttp.ClientSession(self.url, connector=aiohttp.TCPConnector(ssl=context))

    async def call(
        self, method: str, path: str, body: Any = None, media: str = "application/json", **query: str
    ) -> Answer:
        """One request; `query` as in the API."""
        data = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": media} if data else {}
        request = {"data": data, "headers": headers, "params": query}
        async with self.session() as session, session.request(method, path, **request) as response:
            raw = await response.read()
            return Answer(response.status, msgspec.json.decode(raw) if response.content_type.endswith("json") else raw)

    async def get(self, path: str, **query: str) -> Answer:
        return await self.call("GET", path, **query)

    async def post(self, path: str, body: Any) -> Answer:
        return await self.call("POST", path, body)

    async def watch(self, path: str, **query: str) -> AsyncIterator[Any]:
        """The events of a watch, until it ends."""
        async with self.session() as session, session.get(path, params={"watch": "true", **query}) as response:
            if response.status != 200:
                yield {"type": "REFUSED", "object": msgspec.json.decode(await response.read())}
                return
            async for line in response.content:
                yield msgspec.json.decode(line)

    async def spawn_kubectl(self, *arguments: str) -> asyncio.subprocess.Process:
        """kubectl with its output piped; whoever starts it ends it."""
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig), "HOME": str(self.directory)}
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            str(KUBECTL), *arguments, env=environment, stdin=pipe, stdout=pipe, stderr=pipe
        )

    async def try_kubectl(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        """Exit status, output and errors."""
        process = await self.spawn_kubectl(*arguments)
        try:
            async with asyncio.timeout(40):
                out, err = await process.communicate(stdin.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Its output; fails the test if it fails or warns."""
        status, out, err = await self.try_kubectl(*arguments, stdin=stdin)
        assert status == 0, f"kubectl {' '.join(arguments)}: {err}{out}"
        return out
