"""A cluster's API for every test here."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.etcd_process import EtcdProcess
from tests.integration.kubernetes.cluster import Cluster


@pytest.fixture
async def cluster(etcd: EtcdProcess, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A cluster's API, ready."""
    cluster = Cluster(etcd, tmp_path)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()
