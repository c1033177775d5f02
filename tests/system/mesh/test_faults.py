"""The datapath outlives its control plane: a death costs no request and no connection, and leaves the maps right."""

import pytest

from tests.system.mesh.mesh import Mesh

PROCESSES = [
    "red-1/agent",
    "green-1/agent",
    "red/apiserver",
    "green/apiserver",
    "red/etcd",
    "green/etcd",
]


@pytest.mark.parametrize("process", PROCESSES)
def test_a_killed_process_costs_no_request_and_no_connection(mesh: Mesh, process: str) -> None:
    there = mesh.pod_ips("green", "echo")[0]
    red, green = mesh.service_ip("red"), mesh.service_ip("green")
    with (
        mesh.load("red/client", red) as through_service,
        mesh.load("red/client", f"{there}:8080") as to_pod,
        mesh.load("green/client", green) as back,
    ):
        mesh.crash(process)
        # In the middle of the recovery, whose end the reports below may not show for a moment.
        assert mesh.requests("red/client", red, 300).failed == 0
        mesh.clustermesh("status", "--context", "red", "--wait", "--timeout", "60")
        mesh.clustermesh("status", "--context", "green", "--wait", "--timeout", "60")
    for report in (through_service(), to_pod(), back()):
        assert report.answered > 50, report
        assert report.failed == 0, report.errors
        assert report.broken_connections == 0, report.errors
    for node in ("red-1", "red-2", "green-1", "green-2"):
        assert mesh.differences(node) == []


def test_changes_that_an_agent_slept_through_are_applied_when_it_returns(mesh: Mesh) -> None:
    mesh.testbed("stop", "red-1/agent", "--kill")
    try:
        mesh.kubectl("green", "scale", "deployment/echo", "--replicas=3")
        mesh.kubectl("green", "rollout", "status", "deployment/echo", "--timeout=60s")
        mesh.kubectl("green", "scale", "deployment/echo", "--replicas=2")
        mesh.eventually(lambda: len(mesh.pod_ips("green", "echo")) == 2)
    finally:
        mesh.testbed("start", "red-1/agent")
    mesh.clustermesh("status", "--context", "red", "--wait", "--timeout", "60")
    mesh.eventually(lambda: mesh.differences("red-1") == [])
    assert mesh.requests("red/client", mesh.service_ip("red"), 100).failed == 0


def test_a_scaled_down_cluster_is_answered_for_by_the_other(mesh: Mesh) -> None:
    mesh.kubectl("red", "scale", "deployment/echo", "--replicas=0")
    try:
        mesh.eventually(lambda: mesh.pod_ips("red", "echo") == [])
        report = mesh.requests("red/client", mesh.service_ip("red"), 100)
        assert report.failed == 0
        assert set(report.by_cluster) == {"green"}
    finally:
        mesh.kubectl("red", "scale", "deployment/echo", "--replicas=2")
        mesh.kubectl("red", "rollout", "status", "deployment/echo", "--timeout=60s")


def test_a_disconnected_cluster_is_alone_and_holds_nothing_of_its_peer(mesh: Mesh) -> None:
    there = mesh.pod_ips("green", "echo")[0]
    mesh.disconnect()
    try:
        report = mesh.requests("red/client", mesh.service_ip("red"), 100)
        assert report.failed == 0
        assert set(report.by_cluster) == {"red"}
        assert mesh.requests("red/client", f"{there}:8080", 3, timeout=0.5).answered == 0
        for node in ("red-1", "red-2"):
            assert mesh.inspect(node, "nodes") == []
            assert not [entry for entry in mesh.inspect(node, "ipcache") if entry["cluster_id"] == 2]
        assert "green" not in mesh.clustermesh("status", "--context", "red", "--output", "json")
    finally:
        mesh.connect()
    assert set(mesh.requests("red/client", mesh.service_ip("red"), 200).by_cluster) == {"red", "green"}
