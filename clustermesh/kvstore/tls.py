"""Certificates for a connection: from files that may be replaced under us, or from memory."""

import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from clustermesh.kvstore.errors import KvError, Stage

Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class TlsPem:
    """PEM texts: the CA (or bundle) that signs the server, our client certificate and its private key."""

    ca: bytes
    cert: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of the same; they are read again whenever they change."""

    ca: Path
    cert: Path
    key: Path

    def stamp(self) -> Stamp | None:
        """Changes whenever one of the files does; None while one is missing (being replaced)."""
        try:
            stats = [path.stat() for path in (self.ca, self.cert, self.key)]
        except OSError:
            return None
        return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats)

    def read(self) -> TlsPem:
        """Read the three files; raises KvError(CREDENTIALS)."""
        try:
            return TlsPem(self.ca.read_bytes(), self.cert.read_bytes(), self.key.read_bytes())
        except OSError as error:
            raise KvError(Stage.CREDENTIALS, f"cannot read {error.filename}: {error.strerror}") from error


def client_context(pem: TlsPem) -> ssl.SSLContext:
    """The same credentials for Python's ssl; raises KvError(CREDENTIALS) if they do not fit together.

    gRPC takes any bytes and fails later without a word why, so this is also how credentials are checked.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cadata=pem.ca.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError) as error:
        raise KvError(Stage.CREDENTIALS, f"the CA certificate is not usable PEM: {error}") from error
    try:
        _load_pair(context, pem.cert, pem.key)
    except (ssl.SSLError, ValueError) as error:
        raise KvError(Stage.CREDENTIALS, f"client certificate and key do not fit together: {error}") from error
    return context


def _load_pair(context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
    """ssl reads a certificate from files only, and a private key should touch no disk: use anonymous memory files."""
    cert_fd, key_fd = _memory_file("cert", cert), _memory_file("key", key)
    try:
        context.load_cert_chain(f"/proc/self/fd/{cert_fd}", f"/proc/self/fd/{key_fd}", password=_no_password)
    finally:
        _close((cert_fd, key_fd))


def _no_password() -> str:
    raise ValueError("the private key is encrypted; give it in the clear")


def _memory_file(name: str, content: bytes) -> int:
    descriptor = os.memfd_create(name)
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(content)
    return descriptor


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
