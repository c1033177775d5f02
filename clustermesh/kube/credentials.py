"""Credentials that are not simply written down: token files that rotate, and exec plugins."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec

from clustermesh.kube.errors import CredentialError

_TOKEN_FILE_AGE = 30.0  # seconds a token that was read from a file is used before the file is read again
_PLUGIN_TIMEOUT = 60.0  # seconds; some plugins ask a cloud
_EXPIRY_MARGIN = 30.0  # seconds before its end at which a credential is renewed


class ExecStatus(msgspec.Struct, frozen=True, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: datetime | None = None


class ExecCredential(msgspec.Struct, frozen=True):
    """What an exec plugin prints (client.authentication.k8s.io)."""

    status: ExecStatus


@dataclass(frozen=True, slots=True)
class ExecPlugin:
    """A command of the kubeconfig that prints a token or a client certificate."""

    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    api_version: str = "client.authentication.k8s.io/v1"
    install_hint: str = ""

    def run(self) -> ExecStatus:
        """Run the command, which may take seconds; CredentialError names it and what it said."""
        request = {"apiVersion": self.api_version, "kind": "ExecCredential", "spec": {"interactive": False}}
        environment = {**os.environ, **self.env, "KUBERNETES_EXEC_INFO": json.dumps(request)}
        try:
            done = subprocess.run(
                [self.command, *self.args],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PLUGIN_TIMEOUT,
                check=False,
            )
        except FileNotFoundError:
            hint = self.install_hint or "install it or correct users[].user.exec.command in the kubeconfig"
            raise CredentialError(f"credential plugin {self.command!r} is not installed: {hint}") from None
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CredentialError(f"credential plugin {self.command!r} did not run: {error}") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-300:]
            raise CredentialError(f"credential plugin {self.command!r} failed ({done.returncode}): {said}")
        try:
            return msgspec.json.decode(done.stdout, type=ExecCredential).status
        except msgspec.MsgspecError as error:
            raise CredentialError(f"credential plugin {self.command!r} printed no ExecCredential: {error}") from None


@dataclass(slots=True)
class TokenFile:
    """A token that somebody else renews, as the kubelet does for service accounts."""

    path: Path
    clock: Callable[[], float] = time.monotonic
    _token: str = ""
    _read: float = float("-inf")

    def token(self) -> str:
        if self.clock() - self._read > _TOKEN_FILE_AGE:
            try:
                self._token = self.path.read_text().strip()
            except OSError as error:
                raise CredentialError(f"token file {self.path} cannot be read: {error.strerror}") from None
            self._read = self.clock()
        return self._token


def expired(credential: ExecStatus, now: float) -> bool:
    """`now` is Unix time in seconds."""
    end = credential.expiration_timestamp
    return end is not None and end.timestamp() - _EXPIRY_MARGIN <= now
