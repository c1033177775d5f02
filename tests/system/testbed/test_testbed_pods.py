"""Pods of one cluster: they reach each other, follow their Deployment, and outlive their kubelet."""

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from clustermesh.testbed import namespaces, processes
from clustermesh.testbed.containers import UID_VARIABLE
from tests.system.testbed.conftest import Bench

TESTBED = "tpods"

WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: echo
          image: clustermesh/echo
          env: [{name: PORT, value: "9090"}]
          ports: [{name: http, containerPort: 9090}]
          readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: web, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  containers:
    - {name: shell, image: busybox, command: [sleep, infinity]}
"""


@pytest.fixture(scope="module")
def web(bench: Bench) -> Bench:
    bench.up()
    bench.kubectl("apply", "-f", "-", stdin=WEB)
    bench.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    bench.kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=30s")
    return bench


def pods(bench: Bench) -> list[dict[str, Any]]:
    found = bench.get("pods", "-l", "app=web")["items"]
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def ready_endpoints(bench: Bench) -> set[str]:
    slices = bench.get("endpointslices", "-l", "kubernetes.io/service-name=web")["items"]
    return {
        endpoint["addresses"][0]
        for each in slices
        for endpoint in each.get("endpoints") or ()
        if endpoint["conditions"]["ready"]
    }


def eventually(holds: Callable[[], bool], within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.1)


def ask(bench: Bench, where: str, address: str) -> dict[str, str]:
    program = f"import urllib.request as u; print(u.urlopen('http://{address}/', timeout=3).read().decode())"
    answer: dict[str, str] = json.loads(bench.succeed("exec", where, "--", "/usr/bin/env", "python3", "-c", program))
    return answer


def test_pods_are_spread_and_reach_each_other_with_their_own_addresses(web: Bench) -> None:
    found = pods(web)
    assert {pod["spec"]["nodeName"] for pod in found} == {"red-1", "red-2"}
    client = web.get("pod", "client")
    for pod in found:
        answer = ask(web, "red/client", f"{pod['status']['podIP']}:9090")
        assert answer["pod"] == pod["metadata"]["name"]
        assert answer["node"] == pod["spec"]["nodeName"]
        assert answer["client"] == client["status"]["podIP"]


def test_nodes_reach_the_pods_of_their_cluster(web: Bench) -> None:
    addresses = {
        node["metadata"]["name"]: node["status"]["addresses"][0]["address"] for node in web.get("nodes")["items"]
    }
    for pod in pods(web):
        answer = ask(web, "red-1", f"{pod['status']['podIP']}:9090")
        assert answer["node"] == pod["spec"]["nodeName"]
        assert answer["client"] == addresses["red-1"]


def test_endpoint_slices_name_the_ready_pods_and_the_resolved_port(web: Bench) -> None:
    assert ready_endpoints(web) == {pod["status"]["podIP"] for pod in pods(web)}
    [only] = web.get("endpointslices", "-l", "kubernetes.io/service-name=web")["items"]
    assert only["ports"] == [{"name": "web", "protocol": "TCP", "port": 9090}]


def test_a_pod_says_that_its_image_is_not_pulled(web: Bench) -> None:
    events = web.get("events")["items"]
    assert any(e["involvedObject"]["name"] == "client" and "not pulled" in e["message"] for e in events)


def test_a_changed_template_replaces_the_pods(web: Bench) -> None:
    before = {pod["metadata"]["name"] for pod in pods(web)}
    web.kubectl("rollout", "restart", "deployment/web")
    web.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    after = pods(web)
    assert len(after) == 2
    assert before.isdisjoint(pod["metadata"]["name"] for pod in after)
    eventually(lambda: ready_endpoints(web) == {pod["status"]["podIP"] for pod in pods(web)})


def test_a_container_that_dies_is_started_again(web: Bench) -> None:
    metadata = pods(web)[0]["metadata"]
    name = metadata["name"]
    [(pid, _)] = processes.carrying({UID_VARIABLE: metadata["uid"]})
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: web.get("pod", name)["status"]["containerStatuses"][0]["restartCount"] == 1)
    eventually(lambda: len(ready_endpoints(web)) == 2)


def test_pods_outlive_their_kubelet_and_are_adopted_by_the_next(web: Bench) -> None:
    web.succeed("kill", "red/kubelet")
    web.kubectl("scale", "deployment/web", "--replicas=3")
    web.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    states = {pod["metadata"]["name"]: pod["status"] for pod in web.get("pods")["items"]}
    assert states["client"]["containerStatuses"][0]["restartCount"] == 0
    assert len({state["podIP"] for state in states.values()}) == 4
    for pod in pods(web):
        assert ask(web, "red/client", f"{pod['status']['podIP']}:9090")["pod"] == pod["metadata"]["name"]


def test_what_is_deleted_while_no_kubelet_runs_is_removed_by_the_next(web: Bench) -> None:
    web.succeed("stop", "red/kubelet")
    web.kubectl("delete", "pod", "client", "--grace-period=0", "--force")
    web.kubectl("delete", "pod", pods(web)[0]["metadata"]["name"], "--wait=false")
    web.succeed("start", "red/kubelet")
    web.kubectl("scale", "deployment/web", "--replicas=0")
    web.kubectl("wait", "--for=delete", "pod", "-l", "app=web", "--timeout=30s")
    assert ready_endpoints(web) == set()
    eventually(lambda: namespaces.named("cm-tpods-red-") == ["cm-tpods-red-1", "cm-tpods-red-2"])


def test_what_was_stopped_stays_down_and_what_crashed_comes_back(web: Bench) -> None:
    def state() -> tuple[str, int]:
        found = json.loads(web.succeed("status", "--output", "json"))["processes"]
        return next((each["state"], each["restarts"]) for each in found if each["name"] == "red-2/agent")

    web.succeed("stop", "red-2/agent", "--kill")
    assert state() == ("stopped", 0)
    web.succeed("start", "red-2/agent")
    assert state() == ("running", 0)
    before = web.pid("red-2/agent")
    web.succeed("kill", "red-2/agent")
    eventually(lambda: state() == ("running", 1))
    assert web.pid("red-2/agent") != before
    unknown = web.run("stop", "red/nonsense")
    assert unknown.returncode == 1
    assert "no process 'red/nonsense'; there are: red-1/agent" in unknown.stderr
