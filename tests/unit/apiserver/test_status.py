"""What a peer's status says of trust, mirror and agents."""

import msgspec
import pytest

from apiserver.quarantine import QuarantineView
from apiserver.status import SETTLE, MirrorView, TrustView, agents_document, summarise, timestamp, worth_writing
from clustermesh.cli.mesh import AgentView
from clustermesh.kube.objects import ClusterMeshPeerStatus, PeerUsage
from clustermesh.wire.keys import Kind
from clustermesh.wire.private import AgentReport, PeerReport, ProbeReport
from clustermesh.wire.records import SLICES_ONLY, Capabilities, ClusterConfig

NOW = 1_700_000_000.0
COUNTS = {Kind.NODES: 2, Kind.IDENTITIES: 3, Kind.ADDRESSES: 10, Kind.SERVICES: 1}
APPLIED = {kind.value: count for kind, count in COUNTS.items()}
TRUST = TrustView(complete=True, reason="Exchanged")
MIRROR = MirrorView(state="connected", last_event=NOW - 3, synced=frozenset(Kind), records=COUNTS)
PART = PeerReport(ready=True, records=APPLIED, probe=ProbeReport(2, 2, 500))


def report(node: str, part: PeerReport | None = PART, *, ready: bool = True) -> AgentReport:
    peers = {"red": part} if part is not None else {}
    return AgentReport(node=node, version="1", started=0, updated=NOW, ready=ready, peers=peers)


def status(
    *reports: AgentReport,
    trust: TrustView = TRUST,
    mirror: MirrorView = MIRROR,
    nodes: tuple[str, ...] = ("n1", "n2"),
    previous: ClusterMeshPeerStatus | None = None,
    now: float = NOW,
    probed: bool = True,
) -> ClusterMeshPeerStatus:
    return summarise(
        "red",
        generation=4,
        trust=trust,
        mirror=mirror,
        nodes=nodes,
        reports={one.node: one for one in reports},
        probed=probed,
        previous=previous or ClusterMeshPeerStatus(),
        now=now,
    )


def truths(of: ClusterMeshPeerStatus) -> dict[str, str]:
    return {condition.type: condition.status for condition in of.conditions}


def test_ready_means_applied_by_every_agent_and_probed() -> None:
    said = status(report("n1"), report("n2", msgspec.structs.replace(PART, probe=ProbeReport(1, 2, 700))))
    assert set(truths(said).values()) == {"True"}
    assert (said.agents.ready, said.agents.total, said.agents.waiting) == (2, 2, ())
    assert (said.probe.reachable, said.probe.total, said.probe.rtt_micros) == (3, 4, 600)
    assert said.records.addresses == 10
    assert said.observed_generation == 4
    assert said.connection.last_event == timestamp(NOW - 3)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (None, "no report from its agent"),
        (report("n2", ready=False), "agent is not ready"),
        (report("n2", None), "agent does not know the peer yet"),
        (report("n2", PeerReport(ready=False, reason="nodes not complete")), "nodes not complete"),
        (
            report("n2", msgspec.structs.replace(PART, records=APPLIED | {"addresses": 9})),
            "9 of 10 addresses applied",
        ),
    ],
)
def test_one_agent_that_is_not_done_is_named(second: AgentReport | None, reason: str) -> None:
    said = status(report("n1"), *([second] if second else []))
    assert truths(said) == {
        "Trusted": "True",
        "Connected": "True",
        "Synced": "True",
        "Applied": "False",
        "Ready": "False",
    }
    (waiting,) = said.agents.waiting
    assert (waiting.node, waiting.reason) == ("n2", reason)


def test_applied_without_a_probe_is_not_ready() -> None:
    said = status(report("n1"), report("n2", msgspec.structs.replace(PART, probe=ProbeReport(0, 2, 0))))
    assert (truths(said)["Applied"], truths(said)["Ready"]) == ("True", "False")
    assert said.agents.waiting[0].reason == "no probe came back"


def test_a_cluster_without_nodes_is_never_ready() -> None:
    assert truths(status(nodes=()))["Ready"] == "False"


@pytest.mark.parametrize(
    ("trust", "mirror", "blocked"),
    [
        (TrustView(reason="Pending"), MIRROR, "NotTrusted"),
        (TRUST, msgspec.structs.replace(MIRROR, state="failed", stage="tls", message="no"), "NotConnected"),
        (TRUST, msgspec.structs.replace(MIRROR, synced=frozenset({Kind.NODES})), "NotSynced"),
    ],
)
def test_the_first_obstacle_is_the_reason(trust: TrustView, mirror: MirrorView, blocked: str) -> None:
    said = status(report("n1"), report("n2"), trust=trust, mirror=mirror)
    (ready,) = (condition for condition in said.conditions if condition.type == "Ready")
    assert (ready.status, ready.reason) == ("False", blocked)


def test_records_that_just_changed_do_not_make_a_ready_peer_unready_at_once() -> None:
    before = status(report("n1"), report("n2"))
    moved = msgspec.structs.replace(MIRROR, records=COUNTS | {Kind.ADDRESSES: 11}, quiet=1.0)
    settled = msgspec.structs.replace(moved, quiet=SETTLE + 1)
    soon = status(report("n1"), report("n2"), mirror=moved, previous=before)
    late = status(report("n1"), report("n2"), mirror=settled, previous=soon)
    never_ready = status(report("n1"), report("n2"), mirror=moved)
    assert [truths(said)["Ready"] for said in (soon, late, never_ready)] == ["True", "False", "False"]


def test_times_of_transitions_stay_until_the_next_one() -> None:
    before = status(report("n1"), report("n2"))
    after = status(report("n1"), previous=before, now=NOW + 60)
    times = {condition.type: condition.last_transition_time for condition in after.conditions}
    assert times["Connected"] == timestamp(NOW)
    assert times["Applied"] == times["Ready"] == timestamp(NOW + 60)
    assert after.connection.since == timestamp(NOW)


def test_figures_that_always_move_are_written_only_when_they_are_due() -> None:
    before = status(report("n1"), report("n2"))
    moved = msgspec.structs.replace(MIRROR, last_event=MIRROR.last_event + 2)
    alive = status(report("n1"), report("n2"), mirror=moved, previous=before)
    assert not worth_writing(before, alive, figures_due=False)
    assert worth_writing(before, alive, figures_due=True)
    slower = status(report("n1"), report("n2", msgspec.structs.replace(PART, probe=ProbeReport(2, 2, 800))))
    assert not worth_writing(before, slower, figures_due=False)
    assert worth_writing(before, slower, figures_due=True)
    silent = status(report("n1"), report("n2"), previous=before, now=NOW + 60)
    assert not worth_writing(before, silent, figures_due=True)
    assert worth_writing(before, status(report("n1"), previous=before), figures_due=False)


def test_the_agents_document_is_what_the_command_reads() -> None:
    raw = agents_document({"n1": report("n1")})
    read = msgspec.json.decode(raw, type=dict[str, AgentView])
    assert read["n1"].ready and read["n1"].peers["red"].records == APPLIED


def test_a_peer_that_answers_no_probes_is_ready_without_any() -> None:
    silent = msgspec.structs.replace(PART, probe=ProbeReport())
    assert truths(status(report("n1", silent), report("n2", silent)))["Ready"] == "False"
    said = status(report("n1", silent), report("n2", silent), probed=False)
    assert set(truths(said).values()) == {"True"}
    assert (said.agents.ready, said.agents.waiting, said.probe.total) == (2, (), 0)
    late = status(report("n1", silent), report("n2", None), probed=False)
    assert truths(late)["Applied"] == truths(late)["Ready"] == "False"


def test_a_peer_without_service_records_is_applied_when_its_slices_are() -> None:
    config = ClusterConfig(2, Capabilities(endpoint_slices_export_mode=SLICES_ONLY))
    counts = {**COUNTS, Kind.ENDPOINT_SLICES: 4}
    del counts[Kind.SERVICES]
    mirror = msgspec.structs.replace(MIRROR, config=config, records=counts)
    applied = {kind.value: count for kind, count in counts.items()}
    done = msgspec.structs.replace(PART, records=applied)
    said = status(report("n1", done), report("n2", done), mirror=mirror)
    assert truths(said)["Applied"] == "True"
    assert (said.records.services, said.records.endpointslices) == (0, 4)
    behind = msgspec.structs.replace(PART, records=applied | {"endpointslices": 3})
    late = status(report("n1", done), report("n2", behind), mirror=mirror)
    assert [waiting.reason for waiting in late.agents.waiting] == ["3 of 4 endpointslices applied"]


@pytest.mark.parametrize(("strict", "policy"), [(None, ""), (True, "strict"), (False, "lenient")])
def test_the_policy_in_force_is_told_and_what_of_the_quota_is_used(strict: bool | None, policy: str) -> None:
    quarantined = QuarantineView(3, {"odd": 3}, ("nodes/a: odd",))
    mirror = msgspec.structs.replace(
        MIRROR, strict=strict, used_records=7, used_bytes=70, throttled=True, quarantined=quarantined
    )
    said = status(report("n1"), report("n2"), mirror=mirror)
    assert said.policy == policy
    assert (said.usage.records, said.usage.bytes, said.usage.throttled) == (7, 70, True)
    assert (said.quarantined.total, said.quarantined.by_reason) == (3, {"odd": 3})
    assert said.quarantined.examples == ("nodes/a: odd",)


def test_bytes_that_move_alone_are_written_when_figures_are_due() -> None:
    before = status(report("n1"), report("n2"))
    after = msgspec.structs.replace(before, usage=PeerUsage(bytes=1))
    assert not worth_writing(before, after, figures_due=False)
    assert worth_writing(before, after, figures_due=True)
    assert worth_writing(before, msgspec.structs.replace(before, usage=PeerUsage(throttled=True)), figures_due=False)
