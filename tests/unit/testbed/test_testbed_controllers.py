"""What Deployments, Services and the scheduler ask for, computed from pods."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.testbed import deployments, endpoints, scheduling, topology
from clustermesh.testbed.objects import Deployment, Pod, Service

NODES = topology.plan("x", 0, ["red"], 2).cluster("red").nodes


def deployment(replicas: int, *, template: dict[str, Any] | None = None, **strategy: Any) -> Deployment:
    document = {
        "metadata": {"name": "web", "namespace": "default", "uid": "d1", "generation": 3},
        "spec": {
            "replicas": replicas,
            "template": template or {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}},
            "strategy": {"type": strategy.pop("type", "RollingUpdate"), "rollingUpdate": strategy},
        },
    }
    return msgspec.convert(document, Deployment)


def pod(
    name: str,
    *,
    revision: str = "old",
    ready: bool = True,
    node: str = "red-1",
    terminating: bool = False,
    ip: str = "10.1.1.2",
    labels: dict[str, str] | None = None,
    port: int = 8080,
    created: str = "2026-01-01T00:00:00Z",
    owner: str = "d1",
) -> Pod:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "default",
        "uid": name,
        "labels": {"app": "web", deployments.HASH_LABEL: revision, **(labels or {})},
        "creationTimestamp": created,
        "ownerReferences": [{"uid": owner, "controller": True}],
    }
    if terminating:
        metadata["deletionTimestamp"] = created
    return msgspec.convert(
        {
            "metadata": metadata,
            "spec": {
                "nodeName": node,
                "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}],
            },
            "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": str(ready)}]},
        },
        Pod,
    )


# Deployments


def test_missing_pods_are_created() -> None:
    wanted = deployment(3)
    present = pod("a", revision=deployments.template_hash(wanted))
    assert deployments.plan(wanted, [present]) == (2, ())


def test_scaling_down_takes_what_is_not_ready_first_then_the_youngest() -> None:
    wanted = deployment(1)
    revision = deployments.template_hash(wanted)
    pods = [
        pod("old", revision=revision, created="2026-01-01T00:00:00Z"),
        pod("young", revision=revision, created="2026-01-02T00:00:00Z"),
        pod("unready", revision=revision, ready=False),
    ]
    assert deployments.plan(wanted, pods) == (0, ("unready", "young"))


def test_a_pod_that_is_being_deleted_is_replaced_and_not_deleted_again() -> None:
    wanted = deployment(1)
    leaving = pod("a", revision=deployments.template_hash(wanted), terminating=True)
    assert deployments.plan(wanted, [leaving]) == (1, ())


def test_a_new_template_rolls_out_without_ever_leaving_the_bounds() -> None:
    wanted = deployment(4, maxSurge=1, maxUnavailable=1)
    revision = deployments.template_hash(wanted)
    pods = {name: pod(name) for name in "abcd"}
    for turn in range(20):
        step = deployments.plan(wanted, list(pods.values()))
        for name in step.delete:
            del pods[name]
        for number in range(step.create):
            pods[f"n{turn}-{number}"] = pod(f"n{turn}-{number}", revision=revision, ready=False)
        assert len(pods) <= 5
        assert sum(each.ready for each in pods.values()) >= 3
        if not step.create and not step.delete:
            unready = [name for name, each in pods.items() if not each.ready]
            if not unready:
                break
            pods[unready[0]] = pod(unready[0], revision=revision)
    assert len(pods) == 4
    assert all((each.metadata.labels or {})[deployments.HASH_LABEL] == revision for each in pods.values())


def test_recreate_waits_until_the_old_pods_are_gone() -> None:
    wanted = deployment(2, type="Recreate")
    assert deployments.plan(wanted, [pod("a"), pod("b")]) == (0, ("a", "b"))
    assert deployments.plan(wanted, [pod("a", terminating=True)]) == (0, ())
    assert deployments.plan(wanted, []) == (2, ())


@given(
    replicas=st.integers(0, 6),
    new=st.lists(st.booleans(), max_size=6),
    old=st.lists(st.booleans(), max_size=6),
    surge=st.integers(0, 3),
    unavailable=st.integers(0, 3),
)
def test_no_step_exceeds_the_surge_or_takes_too_many_ready_pods(
    replicas: int, new: list[bool], old: list[bool], surge: int, unavailable: int
) -> None:
    wanted = deployment(replicas, maxSurge=surge, maxUnavailable=unavailable)
    revision = deployments.template_hash(wanted)
    pods = [pod(f"n{i}", revision=revision, ready=ready) for i, ready in enumerate(new)]
    pods += [pod(f"o{i}", ready=ready) for i, ready in enumerate(old)]
    step = deployments.plan(wanted, pods)
    if step.create:
        assert len(pods) + step.create <= replicas + surge
    ready = sum(each.ready for each in pods)
    left = sum(each.ready for each in pods if each.name not in step.delete)
    assert left >= min(ready, replicas - max(unavailable, 0 if surge else 1))


def test_the_status_counts_what_kubectl_rollout_looks_at() -> None:
    wanted = deployment(2)
    revision = deployments.template_hash(wanted)
    status = deployments.status(wanted, [pod("a", revision=revision), pod("b")], "2026-01-01T00:00:00Z")
    counts = {key: status[key] for key in ("observedGeneration", "replicas", "updatedReplicas", "availableReplicas")}
    assert counts == {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 1, "availableReplicas": 2}


def test_a_status_without_news_is_equal_to_the_former() -> None:
    wanted = deployment(1)
    first = deployments.status(wanted, [], "2026-01-01T00:00:00Z")
    again = msgspec.structs.replace(wanted, status=first)
    assert deployments.status(again, [], "2026-01-02T00:00:00Z") == first


# EndpointSlices


def service(target: int | str | None = "http", selector: dict[str, str] | None = None, **spec: Any) -> Service:
    port = {"name": "web", "port": 80, "protocol": "TCP", "targetPort": target}
    return msgspec.convert(
        {
            "metadata": {"name": "web", "namespace": "default", "uid": "s1"},
            "spec": {"selector": {"app": "web"} if selector is None else selector, "ports": [port], **spec},
        },
        Service,
    )


def test_an_endpoint_is_ready_when_its_pod_is() -> None:
    [only] = endpoints.slices(service(), [pod("a"), pod("b", ready=False, ip="10.1.1.3")])
    states = {endpoint["addresses"][0]: endpoint["conditions"] for endpoint in only["endpoints"]}
    assert states == {
        "10.1.1.2": {"ready": True, "serving": True, "terminating": False},
        "10.1.1.3": {"ready": False, "serving": False, "terminating": False},
    }


def test_a_terminating_pod_is_ready_no_more_but_serves() -> None:
    [only] = endpoints.slices(service(), [pod("a", terminating=True)])
    assert only["endpoints"][0]["conditions"] == {"ready": False, "serving": True, "terminating": True}


def test_unready_addresses_are_published_when_asked_for() -> None:
    [only] = endpoints.slices(service(publishNotReadyAddresses=True), [pod("a", ready=False)])
    assert only["endpoints"][0]["conditions"]["ready"] is True


def test_a_named_target_port_is_looked_up_in_each_pod() -> None:
    slices = endpoints.slices(service("http"), [pod("a", port=8080), pod("b", port=9090, ip="10.1.1.3")])
    ports = {each["endpoints"][0]["addresses"][0]: each["ports"] for each in slices}
    assert ports == {
        "10.1.1.2": [{"name": "web", "protocol": "TCP", "port": 8080}],
        "10.1.1.3": [{"name": "web", "protocol": "TCP", "port": 9090}],
    }


@pytest.mark.parametrize(("target", "number"), [(8443, 8443), (None, 80)])
def test_a_numbered_or_missing_target_port_is_the_same_for_all(target: int | None, number: int) -> None:
    [only] = endpoints.slices(service(target), [pod("a")])
    assert only["ports"] == [{"name": "web", "protocol": "TCP", "port": number}]


def test_pods_without_address_and_of_other_labels_are_left_out() -> None:
    [only] = endpoints.slices(service(), [pod("a", ip=""), pod("b", labels={"app": "db"})])
    assert only["endpoints"] == []


def test_many_endpoints_are_spread_over_slices() -> None:
    pods = [pod(f"p{number:03}", ip=f"10.1.1.{number}") for number in range(2, 252)]
    slices = endpoints.slices(service(), pods)
    assert [len(each["endpoints"]) for each in slices] == [100, 100, 50]
    assert len({each["metadata"]["name"] for each in slices}) == 3


def test_a_service_without_selector_selects_nothing() -> None:
    assert not endpoints.selects(service(selector={}), {"app": "web"})


# Scheduling


def test_pods_of_one_owner_go_round_the_nodes() -> None:
    placed: list[Pod] = []
    for number in range(4):
        chosen = scheduling.choose(pod(f"p{number}", node=""), NODES, placed)
        assert chosen is not None
        placed.append(pod(f"p{number}", node=chosen))
    assert [each.spec.node_name for each in placed] == ["red-1", "red-2", "red-1", "red-2"]


def test_among_nodes_with_as_many_siblings_the_emptiest_is_chosen() -> None:
    placed = [pod("other", owner="d2", node="red-1")]
    assert scheduling.choose(pod("p", node=""), NODES, placed) == "red-2"


def test_a_node_selector_is_obeyed_and_may_fit_nowhere() -> None:
    here = msgspec.structs.replace(pod("p"), spec=msgspec.structs.replace(pod("p").spec, node_selector={"a": "b"}))
    assert scheduling.choose(here, NODES, []) is None
    there = msgspec.structs.replace(here.spec, node_selector={"kubernetes.io/hostname": "red-2"})
    assert scheduling.choose(msgspec.structs.replace(here, spec=there), NODES, []) == "red-2"
