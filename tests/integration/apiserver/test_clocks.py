"""The wall clock is for display: whether a peer lives, or still settles, is measured by a clock that never jumps."""

import time
from types import SimpleNamespace

import pytest

import apiserver.mirror
from tests.integration.apiserver.exports import export
from tests.integration.apiserver.test_mirror import mirroring, restricted, until_synced
from tests.integration.etcd_process import EtcdProcess
from tests.integration.waiting import eventually

pytestmark = pytest.mark.integration

DAY = 86400.0


def jump(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The mirror's wall clock is wrong from now on; gRPC's is left alone."""
    monkeypatch.setattr(apiserver.mirror, "time", SimpleNamespace(time=lambda: time.time() + seconds))


@pytest.mark.parametrize("seconds", [DAY, -DAY])
async def test_a_jump_of_the_clock_makes_no_living_peer_look_dead(
    etcd: EtcdProcess, own: EtcdProcess, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    await export(await restricted(etcd))
    async with mirroring(etcd, own.connection()) as mirror:
        await until_synced(mirror)
        with monkeypatch.context() as impatient:
            impatient.setattr(apiserver.mirror, "HEARTBEAT_LIMIT", 0.0)
            await eventually(lambda: mirror.view().stage == "heartbeat")  # so a heartbeat was seen
        jump(monkeypatch, seconds)
        view = mirror.view()
        assert (view.state, view.stage) == ("connected", "")
        assert 0 <= view.quiet < 60


async def test_a_peer_whose_heart_stopped_is_named_though_our_clock_went_back(
    etcd: EtcdProcess, own: EtcdProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    await export(await restricted(etcd))
    async with mirroring(etcd, own.connection()) as mirror:
        await until_synced(mirror)
        jump(monkeypatch, -DAY)
        monkeypatch.setattr(apiserver.mirror, "HEARTBEAT_LIMIT", 0.0)
        await eventually(lambda: mirror.view().stage == "heartbeat")
