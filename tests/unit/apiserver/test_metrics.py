"""What Prometheus sees of the mirrors, under the names that are documented."""

import re
from pathlib import Path

from prometheus_client import generate_latest

from apiserver.exposure import ExposureCheck
from apiserver.health import Health
from apiserver.metrics import Metrics, PeerFigures
from apiserver.revocation import Cutter
from clustermesh.kvstore.connection import Connection
from clustermesh.wire.keys import Kind

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_each_peer_has_its_figures() -> None:
    metrics = Metrics()
    red = PeerFigures(
        "red",
        state="failed",
        silence=4.5,
        records={Kind.NODES: 2},
        quarantined={"record too large": 1},
        events={Kind.NODES: 7},
        relists={Kind.NODES: 1},
        reconnects=3,
        queue=5,
    )
    metrics.watch_peers(lambda: [red, PeerFigures("blue")])
    text = generate_latest(metrics.registry).decode()
    for line in (
        'peer_connection_state{peer="red",state="failed"} 1.0',
        'peer_connection_state{peer="red",state="connected"} 0.0',
        'peer_connection_state{peer="blue",state="pending"} 1.0',
        'peer_proof_of_life_age_seconds{peer="red"} 4.5',
        'peer_records{kind="nodes",peer="red"} 2.0',
        'peer_quarantined_records{peer="red",reason="record too large"} 1.0',
        'peer_events_total{kind="nodes",peer="red"} 7.0',
        'peer_relists_total{kind="nodes",peer="red"} 1.0',
        'peer_reconnects_total{peer="red"} 3.0',
        'peer_write_queue_size{peer="red"} 5.0',
    ):
        assert f"clustermesh_apiserver_{line}" in text
    assert 'proof_of_life_age_seconds{peer="blue"}' not in text, "never is no age"


def test_every_metric_is_documented_and_no_other() -> None:
    metrics = Metrics()
    metrics.watch_peers(list)
    etcd = "http://127.0.0.1:2379"
    Cutter(Connection([etcd], None), [etcd], metrics.registry)
    ExposureCheck([etcd], None, Health(), metrics.registry)
    served = set(re.findall(r"^# TYPE (clustermesh_apiserver_\w+)", generate_latest(metrics.registry).decode(), re.M))
    documented = set(re.findall(r"`(clustermesh_apiserver_\w+)", PAGE.read_text()))
    assert {name for name in served if not name.endswith("_created")} == documented
