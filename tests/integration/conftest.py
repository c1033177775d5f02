"""A real etcd for every integration test that asks for it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.etcd_process import EtcdProcess, running_etcd


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[EtcdProcess]:
    """A running etcd with TLS and client-certificate authentication; users and roles are off until enable_auth()."""
    async with running_etcd(tmp_path / "etcd") as process:
        yield process
