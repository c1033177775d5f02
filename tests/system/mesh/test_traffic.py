"""Pods of two clusters reach each other as if they were in one."""

import pytest

from tests.system.mesh.mesh import Mesh

BOTH_WAYS = [("red", "green"), ("green", "red")]


@pytest.mark.parametrize(("here", "there"), BOTH_WAYS)
def test_a_pod_reaches_every_pod_of_the_other_cluster_by_its_address(mesh: Mesh, here: str, there: str) -> None:
    for address in mesh.pod_ips(there, "echo"):
        report = mesh.requests(f"{here}/client", f"{address}:8080", 20)
        assert report.failed == 0
        assert set(report.by_cluster) == {there}


@pytest.mark.parametrize(("here", "there"), BOTH_WAYS)
def test_a_client_keeps_its_address_across_clusters(mesh: Mesh, here: str, there: str) -> None:
    client = mesh.get(here, "pod", "client")["status"]["podIP"]
    address = mesh.pod_ips(there, "echo")[0]
    assert set(mesh.requests(f"{here}/client", f"{address}:8080", 5).clients) == {client}
    assert set(mesh.requests(f"{here}/client", mesh.service_ip(here), 100).clients) == {client}


@pytest.mark.parametrize("here", ["red", "green"])
def test_a_global_service_is_answered_by_every_pod_of_both_clusters(mesh: Mesh, here: str) -> None:
    report = mesh.requests(f"{here}/client", mesh.service_ip(here), 300)
    assert report.failed == 0
    assert set(report.by_cluster) == {"red", "green"}
    assert set(report.by_node) == {"red-1", "red-2", "green-1", "green-2"}


def test_a_pod_that_is_a_backend_itself_reaches_the_service(mesh: Mesh) -> None:
    pod = mesh.get("red", "pods", "-l", "app=echo")["items"][0]["metadata"]["name"]
    report = mesh.requests(f"red/{pod}", mesh.service_ip("red"), 100)
    assert report.failed == 0


@pytest.mark.parametrize(("here", "there"), BOTH_WAYS)
def test_processes_of_a_node_reach_pods_of_the_other_cluster(mesh: Mesh, here: str, there: str) -> None:
    for node in (f"{here}-1", f"{here}-2"):
        for address in mesh.pod_ips(there, "echo"):
            report = mesh.requests(node, f"{address}:8080", 10)
            assert report.failed == 0
            assert set(report.by_cluster) == {there}


def test_pods_keep_an_mtu_of_1500_and_large_packets_find_their_way(mesh: Mesh) -> None:
    there = mesh.get("green", "pod", "client")["status"]["podIP"]
    assert "mtu 1500" in mesh.execute("red/client", "ip", "link", "show", "eth0").stdout
    # The tunnel takes 50 of the 1500 bytes: 20 + 8 + 1472 do not fit, and the pod is told what does.
    told = mesh.execute("red/client", "ping", "-c", "2", "-W", "2", "-M", "do", "-s", "1472", there)
    assert "mtu = 1450" in told.stdout + told.stderr or "mtu=1450" in told.stdout + told.stderr
    assert mesh.execute("red/client", "ping", "-c", "2", "-W", "2", "-M", "do", "-s", "1422", there).returncode == 0
    assert mesh.execute("red/client", "ping", "-c", "2", "-W", "2", "-M", "dont", "-s", "4000", there).returncode == 0


def test_the_identity_that_arrives_is_the_senders(mesh: Mesh) -> None:
    client = mesh.get("red", "pod", "client")
    node = mesh.get("green", "pods", "-l", "app=echo")["items"][0]
    identity = next(
        int(item["metadata"]["name"])
        for item in mesh.get("red", "clustermeshidentities")["items"]
        if item["spec"]["labels"].get("k8s:app") == "client"
    )
    with mesh.tracing(node["spec"]["nodeName"]) as events:
        assert mesh.requests("red/client", f"{node['status']['podIP']}:8080", 5).failed == 0
    sender = client["status"]["podIP"]
    arrived = [event for event in events() if event["point"] == "from-tunnel" and event["source"].startswith(sender)]
    assert arrived
    assert {event["identity"] for event in arrived} == {identity}
