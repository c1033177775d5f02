"""Where a cluster's API is and who we are there: kubeconfig files, or what a pod finds in its file system.

Format: https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/. Several files (KUBECONFIG=a:b) are merged as
kubectl does: the first file that defines a name wins.
"""

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clustermesh.kube.credentials import ExecPlugin
from clustermesh.kube.errors import ConfigError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """All that is needed to speak to one cluster's API. Certificates and keys are PEM."""

    server: str
    ca: bytes | None = None  # None: the system's authorities
    client_certificate: bytes | None = None
    client_key: bytes | None = None
    token: str | None = None
    token_file: Path | None = None
    exec_plugin: ExecPlugin | None = None
    server_name: str | None = None  # expected in the server's certificate instead of the URL's host
    insecure: bool = False
    context: str = ""
    namespace: str = "default"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A named part of a kubeconfig and the file it stands in: its relative paths start there."""

    value: Mapping[str, Any]
    file: Path


@dataclass(frozen=True, slots=True)
class _Kubeconfig:
    files: tuple[Path, ...]
    current: str
    clusters: Mapping[str, _Entry]
    users: Mapping[str, _Entry]
    contexts: Mapping[str, _Entry]

    @property
    def origin(self) -> str:
        return ":".join(map(str, self.files))


def load(kubeconfig: Path | None = None, context: str | None = None) -> ClusterAccess:
    """Access by kubeconfig (given, KUBECONFIG, ~/.kube/config) or else as a pod; ConfigError when there is none."""
    files = _files(kubeconfig)
    if not files:
        if context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            return in_cluster()
        raise ConfigError("no kubeconfig: give --kubeconfig FILE, set KUBECONFIG or create ~/.kube/config")
    config = _read(files)
    name = context or config.current
    if not name:
        raise ConfigError(f"{config.origin} sets no current-context: give --context, one of {_names(config.contexts)}")
    chosen = config.contexts.get(name)
    if chosen is None:
        raise ConfigError(f"{config.origin} has no context {name!r}: give one of {_names(config.contexts)}")
    return _access(config, name, chosen)


def contexts(kubeconfig: Path | None = None) -> tuple[str, ...]:
    """Names of all contexts, the current one first."""
    files = _files(kubeconfig)
    if not files:
        return ()
    config = _read(files)
    return tuple(sorted(config.contexts, key=lambda name: (name != config.current, name)))


def in_cluster(directory: Path = SERVICE_ACCOUNT, environ: Mapping[str, str] = os.environ) -> ClusterAccess:
    """Access of a pod by its service account."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    token_file = directory / "token"
    if not host or not token_file.exists():
        raise ConfigError(f"not in a pod with a service account ({token_file} is missing): give --kubeconfig FILE")
    return ClusterAccess(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        ca=_read_file(directory / "ca.crt", "the service account"),
        token_file=token_file,
        context="in-cluster",
        namespace=_read_file(directory / "namespace", "the service account").decode().strip(),
    )


def _files(kubeconfig: Path | None) -> tuple[Path, ...]:
    if kubeconfig is not None:
        if not kubeconfig.is_file():
            raise ConfigError(f"kubeconfig {kubeconfig} does not exist: give the path of an existing file")
        return (kubeconfig,)
    if listed := os.environ.get("KUBECONFIG"):
        files = tuple(path for path in map(Path, filter(None, listed.split(os.pathsep))) if path.is_file())
        if not files:
            raise ConfigError(f"no file of KUBECONFIG={listed} exists: correct the variable or unset it")
        return files
    default = Path.home() / ".kube" / "config"
    return (default,) if default.is_file() else ()


def _read(files: Sequence[Path]) -> _Kubeconfig:
    current = ""
    sections: dict[str, dict[str, _Entry]] = {"cluster": {}, "user": {}, "context": {}}
    for file in files:
        try:
            document = yaml.safe_load(file.read_text()) or {}
        except OSError as error:
            raise ConfigError(f"kubeconfig {file} cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"kubeconfig {file} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(document, dict):
            raise ConfigError(f"kubeconfig {file} is not a YAML mapping")
        current = current or str(document.get("current-context") or "")
        for section, entries in sections.items():
            for item in document.get(f"{section}s") or ():
                if not isinstance(item, dict) or not isinstance(item.get(section), dict | None):
                    raise ConfigError(f"kubeconfig {file}: {section}s must be a list of name and {section}")
                entries.setdefault(str(item.get("name")), _Entry(item.get(section) or {}, file))
    return _Kubeconfig(tuple(files), current, sections["cluster"], sections["user"], sections["context"])


def _access(config: _Kubeconfig, name: str, chosen: _Entry) -> ClusterAccess:
    where = f"context {name!r} of {chosen.file}"
    cluster_name, user_name = str(chosen.value.get("cluster") or ""), str(chosen.value.get("user") or "")
    cluster = config.clusters.get(cluster_name)
    if cluster is None:
        raise ConfigError(f"{where} names cluster {cluster_name!r}, which is not defined: correct the context")
    server = str(cluster.value.get("server") or "")
    if not server.startswith(("https://", "http://")):
        raise ConfigError(f"cluster {cluster_name!r} of {cluster.file} needs server: https://HOST:PORT, has {server!r}")
    user = config.users.get(user_name)
    if user is None:
        if user_name:
            raise ConfigError(f"{where} names user {user_name!r}, which is not defined: correct the context")
        user = _Entry({}, chosen.file)
    if "auth-provider" in user.value or "username" in user.value:
        raise ConfigError(
            f"user {user_name!r} of {user.file} uses auth-provider or a password, which current Kubernetes does not"
            " know: use a client certificate, a token or exec"
        )
    certificate, key = _material(user, "client-certificate", where), _material(user, "client-key", where)
    if (certificate is None) != (key is None):
        raise ConfigError(f"user {user_name!r} of {user.file} needs both client-certificate and client-key")
    token_file = user.value.get("tokenFile")
    return ClusterAccess(
        server=server.rstrip("/"),
        ca=_material(cluster, "certificate-authority", where),
        client_certificate=certificate,
        client_key=key,
        token=user.value.get("token") or None,
        token_file=_path(user, token_file) if token_file else None,
        exec_plugin=_plugin(user),
        server_name=cluster.value.get("tls-server-name") or None,
        insecure=bool(cluster.value.get("insecure-skip-tls-verify")),
        context=name,
        namespace=chosen.value.get("namespace") or "default",
    )


def _material(entry: _Entry, field: str, where: str) -> bytes | None:
    """PEM given inline (`<field>-data`) or by file (`<field>`)."""
    if data := entry.value.get(f"{field}-data"):
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise ConfigError(f"{field}-data in {entry.file}, used by {where}, is not base64") from None
    if file := entry.value.get(field):
        return _read_file(_path(entry, file), where)
    return None


def _plugin(user: _Entry) -> ExecPlugin | None:
    spec = user.value.get("exec")
    if not spec:
        return None
    command = spec.get("command") or ""
    if not command:
        raise ConfigError(f"exec of a user in {user.file} has no command")
    return ExecPlugin(
        # A command with a slash is relative to the kubeconfig; a bare name is looked up in PATH.
        command=str(_path(user, command)) if "/" in command else command,
        args=tuple(map(str, spec.get("args") or ())),
        env={str(item["name"]): str(item["value"]) for item in spec.get("env") or ()},
        api_version=spec.get("apiVersion") or "client.authentication.k8s.io/v1",
        install_hint=" ".join(str(spec.get("installHint") or "").split()),
    )


def _path(entry: _Entry, path: str) -> Path:
    return entry.file.parent / path


def _read_file(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}, used by {where}, cannot be read: {error.strerror}") from None


def _names(entries: Mapping[str, _Entry]) -> str:
    return ", ".join(sorted(entries)) or "(none defined)"
