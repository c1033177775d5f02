"""The `clustermesh` command as an operator types it, and what several clusters need so that it finds them."""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tests.integration.etcd_process import EtcdProcess

COMMAND = Path(sys.executable).parent / "clustermesh"


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return msgspec.json.decode(self.out)


async def start(kubeconfig: Path, *arguments: str) -> asyncio.subprocess.Process:
    environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(str(COMMAND), *arguments, env=environment, stdout=pipe, stderr=pipe)


async def run(kubeconfig: Path, *arguments: str) -> Ended:
    process = await start(kubeconfig, *arguments)
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def serve_as(etcd: EtcdProcess, cluster: str) -> None:
    """Give an etcd a server certificate in its cluster's name."""
    await etcd.stop()
    pair = etcd.ca.issue_server("etcd", [f"{cluster}.mesh.cilium.io", "localhost", "127.0.0.1"])
    etcd.server.cert.write_bytes(pair.cert)
    etcd.server.key.write_bytes(pair.key)
    await etcd.start()


def merged_kubeconfig(contexts: Mapping[str, Path], path: Path) -> Path:
    """One kubeconfig of several, a context each; the first is the current one."""
    merged: dict[str, Any] = {"apiVersion": "v1", "kind": "Config", "current-context": next(iter(contexts))}
    for name, kubeconfig in contexts.items():
        single = msgspec.json.decode(kubeconfig.read_bytes())
        for section, part in (("clusters", "cluster"), ("users", "user")):
            merged.setdefault(section, []).append({"name": name, part: single[section][0][part]})
        entry = {"name": name, "context": {"cluster": name, "user": name}}
        merged.setdefault("contexts", []).append(entry)
    path.write_bytes(msgspec.json.encode(merged))
    return path
