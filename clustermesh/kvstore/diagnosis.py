"""Why a connection failed. gRPC says "failed to connect" for everything; one plain attempt finds the stage."""

import asyncio
import os
import socket
import ssl

from clustermesh.kvstore.endpoint import Endpoint
from clustermesh.kvstore.errors import KvError, Stage

# Bounds each step of the attempt, in seconds.
STEP_TIMEOUT = 3.0


async def diagnose(endpoint: Endpoint, context: ssl.SSLContext | None, server_name: str | None) -> KvError | None:
    """Connect step by step as gRPC does and say at which stage it fails; None if nothing is wrong with it now."""
    try:
        await _attempt(endpoint, context, server_name)
    except KvError as error:
        return error
    return None


async def _attempt(endpoint: Endpoint, context: ssl.SSLContext | None, server_name: str | None) -> None:
    url = str(endpoint)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(STEP_TIMEOUT):
            await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError) as error:
        raise KvError(Stage.DNS, f"{endpoint.host} does not resolve: {error or 'no answer'}", url) from error
    try:
        async with asyncio.timeout(STEP_TIMEOUT):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    except TimeoutError as error:
        raise KvError(Stage.TCP, "no answer; check the route and firewalls on the way", url) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise KvError(Stage.TCP, f"{reason}; check that etcd runs and listens there", url) from error
    try:
        if context is not None:
            await _handshake(reader, writer, context, server_name or endpoint.host, url)
    finally:
        writer.transport.abort()


async def _handshake(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext, name: str, url: str
) -> None:
    try:
        async with asyncio.timeout(STEP_TIMEOUT):
            await writer.start_tls(context, server_hostname=name)
            # Under TLS 1.3 the server refuses a client certificate only after the handshake: either its HTTP/2
            # settings come now, or the alert. Writing first would turn the alert into a bare connection reset.
            answer = await reader.read(1)
    except TimeoutError as error:
        raise KvError(Stage.TIMEOUT, "the server accepts connections but does not answer", url) from error
    except ssl.SSLCertVerificationError as error:
        raise KvError(Stage.TLS, _server_refused(error, name), url) from error
    except ssl.SSLError as error:
        raise KvError(Stage.TLS, _client_refused(error), url) from error
    except OSError as error:
        raise KvError(Stage.TLS, f"the connection broke in the TLS handshake: {error}", url) from error
    if not answer:
        raise KvError(Stage.TLS, "the server closed the connection after the TLS handshake", url)


def _server_refused(error: ssl.SSLCertVerificationError, name: str) -> str:
    reason = error.verify_message.rstrip(".")
    match error.verify_code:
        case 10:
            return f"the server's certificate has expired ({reason}); renew it"
        case 9:
            return f"the server's certificate is not valid yet ({reason}); check both clocks"
        case 18 | 19 | 20 | 21:
            return f"the server's certificate is not signed by the CA we trust ({reason}); check the CA bundle"
        case 62 | 64:
            return f"the server's certificate does not name {name} ({reason})"
    return f"the server's certificate is not acceptable ({reason})"


def _client_refused(error: ssl.SSLError) -> str:
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if "alert" in reason:
        return (
            f"the server refused our client certificate ({reason}); check that its CA signed it and it is not expired"
        )
    return f"TLS handshake failed ({reason})"
