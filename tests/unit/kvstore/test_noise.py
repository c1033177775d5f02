"""gRPC's C core keeps to itself what a KvError says better."""

import os
import subprocess
import sys

PROGRAM = """
import asyncio
from clustermesh.kvstore.connection import Connection, TlsPem
from clustermesh.kvstore.errors import KvError
from clustermesh.pki import CertificateAuthority

async def main():
    def refuse(_, writer):
        writer.write(b"no TLS here")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    ca = CertificateAuthority.create("red")
    pair = ca.issue_client("root")
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with Connection([url], TlsPem(ca.cert, pair.cert, pair.key)) as connection:
        try:
            await connection.get("key")
        except KvError as error:
            print(error.stage)

asyncio.run(main())
"""


def said(**environment: str) -> tuple[str, str]:
    """stdout and stderr of a process whose server does not speak TLS."""
    inherited = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=inherited | environment, capture_output=True, text=True, timeout=30
    )
    return ended.stdout.strip(), ended.stderr


def test_a_failed_handshake_is_an_error_and_no_noise() -> None:
    assert said() == ("tls", "")


def test_who_wants_grpcs_own_words_gets_them() -> None:
    stage, noise = said(GRPC_VERBOSITY="INFO")
    assert stage == "tls"
    assert "Handshake failed" in noise
