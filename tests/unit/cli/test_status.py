"""What status says, and when it refuses to say ready."""

import msgspec
import pytest

from clustermesh.cli.mesh import ALIVE, parse_agents
from clustermesh.cli.readiness import why_not_ready
from clustermesh.cli.status import kept_out, make_report, quota_warnings
from clustermesh.kube.objects import (
    Condition,
    ConfigMap,
    PeerAgents,
    PeerQuarantine,
    PeerQuota,
    PeerRecords,
    PeerUsage,
    WaitingAgent,
)
from tests.unit.cli.views import NOW, cluster, peer

RED = cluster("red", 1)


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        (peer(RED), None),
        (peer(RED, generation=2), "the API server has not acted on it yet"),
        (peer(RED, failed="tls"), "tls: "),
        (peer(RED, missing="Synced"), "about Synced"),
        (msgspec.structs.replace(peer(RED), status=type(peer(RED).status)()), "the API server has not acted on it yet"),
    ],
)
def test_the_first_missing_thing_is_the_reason(of: object, reason: str | None) -> None:
    assert why_not_ready(of) == reason  # type: ignore[arg-type]


def test_an_agent_that_waits_is_named() -> None:
    waiting = PeerAgents(ready=1, total=2, waiting=(WaitingAgent(node="n2", reason="no probe came back"),))
    of = peer(RED, missing="Ready")
    of = msgspec.structs.replace(of, status=msgspec.structs.replace(of.status, agents=waiting))
    assert why_not_ready(of) == "1 of 2 agents: n2: no probe came back"


def test_mirrored_and_applied_records_stand_side_by_side() -> None:
    of = peer(RED)
    of = msgspec.structs.replace(
        of, status=msgspec.structs.replace(of.status, records=PeerRecords(nodes=1, services=4))
    )
    green = cluster("green", 2, peers=(of,))
    report = make_report("green", green.peers, green.agents, NOW)
    assert report.ready
    (line,) = report.peers
    assert (line.records["nodes"].mirrored, line.records["nodes"].applied) == (1, 1)
    assert (line.records["services"].mirrored, line.records["services"].applied) == (4, 0)


def test_a_silent_api_server_makes_nothing_ready() -> None:
    green = cluster("green", 2, peers=(peer(RED),))
    report = make_report("green", green.peers, green.agents, NOW + ALIVE + 1)
    assert not report.ready and not report.peers[0].ready
    assert "silent" in report.peers[0].reason


def test_a_cluster_without_peers_is_ready() -> None:
    assert make_report("red", {}, RED.agents, NOW).ready


def test_refused_trust_is_the_reason_whatever_the_connection_does() -> None:
    for failed in ("", "tls"):
        of = peer(RED, failed=failed)
        refused = Condition(type="Trusted", status="False", reason="Refused", message="spec.caBundle: no PEM")
        conditions = (refused, *of.status.conditions[1:])
        of = msgspec.structs.replace(of, status=msgspec.structs.replace(of.status, conditions=conditions))
        assert why_not_ready(of) == "spec.caBundle: no PEM"


def test_records_that_an_agent_cannot_read_are_named_with_their_node() -> None:
    data = {
        "agents.json": '{"red-1": {"ready": true, "undecodable": ["clustermesh/services/v1/a/b"]}, "red-2": {}}',
        "updated": "2026-09-21T14:13:10Z",
    }
    report = make_report("red", {}, parse_agents(ConfigMap(data=data)), NOW)
    assert report.undecodable == {"red-1": ("clustermesh/services/v1/a/b",)}


def test_what_is_kept_out_is_told_by_examples_and_beyond_them_by_numbers() -> None:
    few = PeerQuarantine(total=1, by_reason={"odd": 1}, examples=("nodes/a: odd",))
    assert kept_out(few) == ["kept out: nodes/a: odd"]
    many = PeerQuarantine(total=20_001, by_reason={"rare": 1, "odd": 20_000}, examples=("nodes/a: odd",))
    assert kept_out(many) == [
        "kept out: nodes/a: odd",
        "kept out in all: 20000 x odd",
        "kept out in all: 1 x rare",
    ]


@pytest.mark.parametrize(
    ("usage", "reasons", "said"),
    [
        (PeerUsage(records=9, bytes=99), {}, []),
        (PeerUsage(records=10, bytes=99), {}, ["all of spec.quota.records (10) is used"]),
        (PeerUsage(records=9, bytes=90), {"over the quota of bytes": 1}, ["all of spec.quota.bytes (100) is used"]),
        (PeerUsage(throttled=True), {}, ["changes faster than spec.quota.changesPerSecond (5)"]),
    ],
)
def test_a_quota_that_holds_something_back_is_named(usage: PeerUsage, reasons: dict[str, int], said: list[str]) -> None:
    of = peer(RED)
    quota = PeerQuota(records=10, bytes=100, changes_per_second=5)
    of = msgspec.structs.replace(
        of,
        spec=msgspec.structs.replace(of.spec, quota=quota),
        status=msgspec.structs.replace(
            of.status, policy="strict", usage=usage, quarantined=PeerQuarantine(by_reason=reasons)
        ),
    )
    green = cluster("green", 2, peers=(of,))
    (line,) = make_report("green", green.peers, green.agents, NOW).peers
    assert line.policy == "strict"
    warnings = quota_warnings(line)
    assert len(warnings) == len(said)
    assert all(warning.startswith(start) for warning, start in zip(warnings, said, strict=True))
