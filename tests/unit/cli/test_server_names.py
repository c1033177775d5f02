"""Whether a server's certificate names the host by which it is reached."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from clustermesh.cli.checks import Result
from clustermesh.cli.server_names import check_server_names
from clustermesh.pki import CertificateAuthority
from tests.unit.cli.views import cluster

CA = CertificateAuthority.create("red")


@asynccontextmanager
async def serving(directory: Path, *names: str) -> AsyncIterator[int]:
    """A TLS server that wants a client certificate, as etcd does; its port."""
    pair = CA.issue_server("etcd", names)
    (directory / "pair").write_bytes(pair.cert + pair.key)
    (directory / "ca").write_bytes(CA.cert)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(directory / "ca"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(directory / "pair")
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def judge(endpoints: tuple[str, ...], authority: CertificateAuthority = CA) -> tuple[Result, str]:
    red = cluster("red", 1)
    agents = msgspec.structs.replace(red.agents, ca=authority.cert.decode())
    (check,) = await check_server_names(msgspec.structs.replace(red, endpoints=endpoints, agents=agents))
    return check.result, check.detail


async def test_a_certificate_that_names_all_hosts_passes(tmp_path: Path) -> None:
    async with serving(tmp_path, "red.mesh.cilium.io", "127.0.0.1", "localhost") as port:
        assert await judge((f"https://127.0.0.1:{port}", f"https://localhost:{port}")) == (Result.OK, "")


async def test_a_host_that_is_not_named_is_refused_with_the_remedy(tmp_path: Path) -> None:
    async with serving(tmp_path, "red.mesh.cilium.io") as port:
        result, detail = await judge((f"https://127.0.0.1:{port}",))
        assert result is Result.FAILED
        assert "give its server certificate 127.0.0.1 as a further name" in detail


async def test_another_authority_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, "127.0.0.1") as port:
        result, _ = await judge((f"https://127.0.0.1:{port}",), CertificateAuthority.create("other"))
        assert result is Result.FAILED


async def test_what_cannot_be_asked_from_here_is_a_warning(tmp_path: Path) -> None:
    async with serving(tmp_path, "127.0.0.1") as port:
        closed = port
    result, detail = await judge((f"https://127.0.0.1:{closed}",))
    assert result is Result.WARNING
    assert "cannot be asked from here" in detail
