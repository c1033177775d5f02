"""Probes and metrics over HTTP, and the command line's refusals."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
import pytest
from click.testing import CliRunner

from apiserver.health import Health
from apiserver.main import cli
from apiserver.metrics import Metrics
from apiserver.server import ListenAddress, ListenError, Server


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
async def url(health: Health) -> AsyncIterator[str]:
    server = Server(ListenAddress("127.0.0.1", 0), health, Metrics().registry)
    running = asyncio.create_task(server.run())
    async with asyncio.timeout(5):
        await server.listening.wait()
    yield f"http://127.0.0.1:{server.port}"
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def test_readiness_lists_what_is_missing(health: Health, url: str) -> None:
    health.set("etcd", True)
    health.set("export", False, "still listing pods")
    health.set("peer green", False)
    assert await get(f"{url}/readyz") == (503, "export: still listing pods\npeer green\n")
    health.set("export", True)
    health.remove("peer green")
    assert await get(f"{url}/readyz") == (200, "ready\n")


async def test_a_process_that_is_not_ready_is_alive(health: Health, url: str) -> None:
    health.set("export", False)
    assert await get(f"{url}/healthz") == (200, "ok\n")


async def test_metrics_are_served(url: str) -> None:
    status, text = await get(f"{url}/metrics")
    assert status == 200
    assert "clustermesh_apiserver_initial_export_completed 0.0" in text
    assert "process_resident_memory_bytes" in text


async def test_a_port_in_use_is_named_with_the_remedy(health: Health) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = Server(ListenAddress("127.0.0.1", port), health, Metrics().registry)
        with pytest.raises(ListenError, match=rf"cannot listen on 127.0.0.1:{port}: .* give another --listen"):
            await server.run()


@pytest.mark.parametrize(
    ("text", "host", "port"), [("127.0.0.1:80", "127.0.0.1", 80), (":9880", "", 9880), ("[::1]:1", "::1", 1)]
)
def test_listen_addresses(text: str, host: str, port: int) -> None:
    assert ListenAddress.parse(text) == ListenAddress(host, port)


@pytest.mark.parametrize("text", ["", "80", "::1:80", "host:", "host:70000", "host:http"])
def test_what_is_no_listen_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        ListenAddress.parse(text)


GOOD = {"--cluster-name": "red", "--cluster-id": "1", "--etcd-endpoints": "http://127.0.0.1:2379"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"--cluster-name": "Red"}, "cluster name 'Red' must be lower-case"),
        ({"--cluster-name": "default"}, "choose another"),
        ({"--cluster-id": "256"}, "cluster id must be between 1 and 255, not 256"),
        ({"--max-connected-clusters": "300"}, "'300' is not one of '255', '511'"),
        ({"--etcd-endpoints": "etcd"}, "etcd"),
        ({"--etcd-endpoints": "https://127.0.0.1:1"}, "--etcd-ca, --etcd-cert and --etcd-key"),
        ({"--etcd-ca": "/nowhere/ca.crt"}, "/nowhere/ca.crt"),
        ({"--listen": "nowhere"}, "'nowhere' is not HOST:PORT"),
        ({"--kubeconfig": "/nowhere/config"}, "/nowhere/config"),
    ],
)
def test_a_wrong_argument_is_one_clear_error(
    change: dict[str, str], expected: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = tmp_path_factory.mktemp("kube") / "config"
    config.write_text(
        "{current-context: red, contexts: [{name: red, context: {cluster: red}}],"
        " clusters: [{name: red, cluster: {server: 'http://127.0.0.1:1'}}]}"
    )
    arguments = {"--kubeconfig": str(config), **GOOD, **change}
    result = CliRunner().invoke(cli, [part for pair in arguments.items() for part in pair])
    assert result.exit_code == 2
    assert expected in result.output
