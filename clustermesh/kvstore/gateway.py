"""Whether an etcd answers by HTTP and JSON besides gRPC (its option --enable-grpc-gateway, on by default).

The gateway speaks to etcd under the server's own certificate, so users that are told by theirs mean nothing there.
Newer servers therefore refuse whoever has a name in his certificate (seen with 3.4.23 and 3.5.1); older ones did not.
"""

import asyncio
import ssl

from clustermesh.kvstore.endpoint import Endpoint
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.tls import TlsFiles, TlsPem, client_context

TIMEOUT = 5.0  # seconds
_PATH = "/v3/maintenance/status"  # needs no rights, reads next to nothing


async def gateway_answers(url: str, tls: TlsFiles | TlsPem | None) -> bool:
    """True if the gateway is on. KvError when that cannot be found out."""
    endpoint = Endpoint.parse(url)
    context = _context(tls) if endpoint.secure else None
    body = b"{}"
    request = (
        f"POST {_PATH} HTTP/1.1\r\nHost: {endpoint.authority}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context)
            try:
                writer.write(request.encode() + body)
                status = await reader.readline()
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise KvError(Stage.TIMEOUT, "no answer by HTTP", url) from None
    except (OSError, ValueError) as error:
        raise KvError(Stage.UNAVAILABLE, f"no answer by HTTP: {error}", url) from None
    words = status.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1."):
        raise KvError(Stage.UNAVAILABLE, "no answer by HTTP", url)
    return words[1] != b"404"


def _context(tls: TlsFiles | TlsPem | None) -> ssl.SSLContext:
    if tls is None:
        raise KvError(Stage.CREDENTIALS, "an https endpoint needs certificates")
    context = client_context(tls.read() if isinstance(tls, TlsFiles) else tls)
    context.set_alpn_protocols(["http/1.1"])
    return context
