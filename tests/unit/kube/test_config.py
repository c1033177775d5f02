"""Where a kubeconfig leads, and what is said of one that leads nowhere."""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from clustermesh.kube import config
from clustermesh.kube.credentials import ExecPlugin
from clustermesh.kube.errors import ConfigError, CredentialError

CA = b"-----BEGIN CERTIFICATE-----\n"


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def write(path: Path, *, current: str = "red", user: dict[str, Any] | None = None, **cluster: Any) -> Path:
    document = {
        "current-context": current,
        "contexts": [{"name": "red", "context": {"cluster": "red", "user": "me", "namespace": "demo"}}],
        "clusters": [{"name": "red", "cluster": {"server": "https://10.0.0.1:6443/", **cluster}}],
        "users": [{"name": "me", "user": user or {"token": "secret"}}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def test_data_may_be_inline_or_in_files_beside_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "me.crt").write_bytes(b"cert")
    (tmp_path / "me.key").write_bytes(b"key")
    user = {"client-certificate": "me.crt", "client-key": "me.key"}
    inline = base64.b64encode(CA).decode()
    path = write(tmp_path / "config", user=user, **{"certificate-authority-data": inline})
    access = config.load(path)
    assert (access.server, access.ca, access.client_certificate, access.client_key, access.namespace) == (
        "https://10.0.0.1:6443",
        CA,
        b"cert",
        b"key",
        "demo",
    )


def test_several_files_are_merged_and_the_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tmp_path / "first"
    first.write_text(yaml.safe_dump({"clusters": [{"name": "red", "cluster": {"server": "https://first:1"}}]}))
    second = write(tmp_path / "second")
    monkeypatch.setenv("KUBECONFIG", f"{first}:{tmp_path / 'missing'}:{second}")
    access = config.load()
    assert (access.server, access.token) == ("https://first:1", "secret")
    assert config.contexts() == ("red",)


def test_a_pod_uses_its_service_account(tmp_path: Path) -> None:
    for name, content in {"token": "t", "ca.crt": "pem", "namespace": "clustermesh-system\n"}.items():
        (tmp_path / name).write_text(content)
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    access = config.in_cluster(tmp_path, environ)
    assert (access.server, access.namespace) == ("https://[fd00::1]:443", "clustermesh-system")


@pytest.mark.parametrize(
    ("change", "context", "expected"),
    [
        ({}, "blue", r"has no context 'blue': give one of red"),
        ({"current": ""}, None, r"sets no current-context: give --context, one of red"),
        ({"server": "10.0.0.1"}, None, r"cluster 'red' of .* needs server: https://HOST:PORT, has '10.0.0.1'"),
        ({"certificate-authority": "nowhere.crt"}, None, r"nowhere.crt, used by context 'red' of .*, cannot be read"),
        ({"certificate-authority-data": "?"}, None, r"certificate-authority-data in .* is not base64"),
        ({"user": {"username": "me"}}, None, r"use a client certificate, a token or exec"),
        ({"user": {"client-certificate-data": "YQ=="}}, None, r"needs both client-certificate and client-key"),
    ],
)
def test_a_kubeconfig_that_leads_nowhere_is_named_with_the_remedy(
    tmp_path: Path, change: dict[str, Any], context: str | None, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        config.load(write(tmp_path / "config", **change), context)


@pytest.mark.parametrize("content", ["[1", "- a\n", "contexts: [{name: red, context: 3}]"])
def test_a_file_that_is_no_kubeconfig_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    with pytest.raises(ConfigError, match=str(path)):
        config.load(path)


def test_without_any_kubeconfig_the_error_says_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match="--kubeconfig"):
        config.load()


def plugin(tmp_path: Path, code: str) -> ExecPlugin:
    path = tmp_path / "plugin.py"
    path.write_text(code)
    user = {"exec": {"command": sys.executable, "args": [str(path)], "env": [{"name": "WHO", "value": "me"}]}}
    found = config.load(write(tmp_path / "config", user=user)).exec_plugin
    assert found is not None
    return found


def test_a_credential_plugin_gives_a_token(tmp_path: Path) -> None:
    answer = {"kind": "ExecCredential", "status": {"token": "t", "expirationTimestamp": "2030-01-01T00:00:00Z"}}
    checks = "assert os.environ['WHO'] == 'me' and os.environ['KUBERNETES_EXEC_INFO']"
    code = f"import os; {checks}; print({json.dumps(answer)!r})"
    assert plugin(tmp_path, code).run().token == "t"


@pytest.mark.parametrize(
    ("code", "expected"), [("import sys; sys.exit('log in first')", "log in first"), ("print(1)", "no ExecCredential")]
)
def test_a_credential_plugin_that_fails_is_quoted(tmp_path: Path, code: str, expected: str) -> None:
    with pytest.raises(CredentialError, match=expected):
        plugin(tmp_path, code).run()
