"""The files by which Cilium's agents and KVStoreMesh know a peer: entries of two Secrets, mounted as one directory.

A file whose text contains `endpoints:` is a peer, its name is the peer's; the files that it names lie beside it. That
is how the Helm charts 1.17 to 1.20 write a peer with certificates of its own. With KVStoreMesh the agents read the copy
in their own cluster, by the certificate that is made for that.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import yaml

from clustermesh.cilium.objects import AGENTS_SECRET, API_SERVER, MIRROR_SECRET
from clustermesh.pki import KeyPair

DIRECTORY = "/var/lib/cilium/clustermesh/"
_LOCAL = "local-"
_MARK = b"endpoints:"


class EtcdConfig(msgspec.Struct, frozen=True, rename="kebab"):
    """The text of a peer's file, an etcd client's configuration."""

    endpoints: tuple[str, ...]
    trusted_ca_file: str = ""
    key_file: str = ""
    cert_file: str = ""


class Files(NamedTuple):
    """Names in the directory."""

    ca: str
    key: str
    cert: str

    @classmethod
    def of(cls, prefix: str) -> "Files":
        return cls(*(f"{prefix}etcd-client{suffix}" for suffix in ("-ca.crt", ".key", ".crt")))


def peer_files(cluster: str) -> Files:
    return Files.of(f"{cluster}.")


def names(cluster: str) -> tuple[str, ...]:
    """Every entry that may belong to a peer."""
    return (cluster, *peer_files(cluster))


def entries(
    cluster: str, endpoints: Sequence[str], ca: str, pair: KeyPair, *, namespace: str, kvstoremesh: bool
) -> dict[str, dict[str, bytes]]:
    """What stands in which Secret so that a Cilium cluster reads `cluster`: Secret → entry → content."""
    files = peer_files(cluster)
    direct = {
        cluster: _write(endpoints, files),
        files.ca: ca.encode(),
        files.key: pair.key,
        files.cert: pair.cert,
    }
    if not kvstoremesh:
        return {AGENTS_SECRET: direct}
    own = f"https://{API_SERVER}.{namespace}.svc:2379"
    # KVStoreMesh first: what the agents are told of must have somebody who fetches it.
    return {MIRROR_SECRET: direct, AGENTS_SECRET: {cluster: _write([own], Files.of(_LOCAL))}}


def peers(data: Mapping[str, bytes]) -> list[str]:
    """The peers that a Secret's entries name."""
    return sorted(name for name, content in data.items() if _MARK in content)


def read(content: bytes) -> EtcdConfig:
    """A peer's file; ValueError when it is none."""
    try:
        return msgspec.convert(yaml.load(content, Loader=yaml.BaseLoader), EtcdConfig)
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no etcd configuration: {' '.join(str(error).split())}") from None


def _write(endpoints: Sequence[str], files: Files) -> bytes:
    lines = ["endpoints:", *(f"- {endpoint}" for endpoint in endpoints)]
    lines += [f"trusted-ca-file: {DIRECTORY}{files.ca}"]
    lines += [f"key-file: {DIRECTORY}{files.key}", f"cert-file: {DIRECTORY}{files.cert}"]
    return ("\n".join(lines) + "\n").encode()
