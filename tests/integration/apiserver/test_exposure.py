"""An etcd whose users do not keep clients apart is told of, and served nevertheless."""

import pytest
from prometheus_client import CollectorRegistry

from apiserver.exposure import GATEWAY, VERSION, ExposureCheck
from apiserver.health import Health
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.gateway import gateway_answers
from tests.integration.etcd_process import EtcdProcess

pytestmark = pytest.mark.integration


async def test_the_gateway_is_found_where_it_answers(etcd: EtcdProcess) -> None:
    health, registry = Health(), CollectorRegistry()
    check = ExposureCheck([etcd.endpoint], etcd.client_files(), health, registry)

    def exposed(reason: str) -> float | None:
        return registry.get_sample_value("clustermesh_apiserver_etcd_exposed", {"reason": reason})

    await check.check()
    assert exposed(GATEWAY) == 0.0
    assert not any("gateway" in note for note in health.notes)
    old = exposed(VERSION)
    assert any("certificate of its CA" in note for note in health.notes) is bool(old)

    etcd.options = ["--enable-grpc-gateway=true"]
    await etcd.restart()
    await check.check()
    assert exposed(GATEWAY) == 1.0
    assert any("--enable-grpc-gateway=false" in note for note in health.notes)
    assert health.ready

    await etcd.stop()
    await check.check()  # what is not known stays as it was
    assert exposed(GATEWAY) == 1.0


async def test_an_etcd_that_does_not_answer_has_no_known_gateway(etcd: EtcdProcess) -> None:
    await etcd.stop()
    with pytest.raises(KvError) as caught:
        await gateway_answers(etcd.endpoint, etcd.client_pem())
    assert caught.value.stage is Stage.UNAVAILABLE
