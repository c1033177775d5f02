"""Two etcds: `etcd` is the peer's (red), `own` this cluster's (green)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.etcd_process import EtcdProcess


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[EtcdProcess]:
    directory = tmp_path / "own"
    directory.mkdir()
    process = EtcdProcess(directory)
    try:
        await process.start()
        yield process
    finally:
        await process.close()
