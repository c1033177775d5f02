"""Two etcds: `etcd` is the peer's (red), `own` this cluster's (green)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.etcd_process import EtcdProcess, running_etcd


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[EtcdProcess]:
    async with running_etcd(tmp_path / "own") as process:
        yield process
