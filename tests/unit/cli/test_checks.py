"""What must hold before clusters are connected."""

from collections.abc import Callable

import msgspec
import pytest

from clustermesh.cli.checks import Result, check_all, failed, may_be_starting
from clustermesh.cli.mesh import AgentsView, ClusterView, NodeView
from tests.unit.cli.views import NOW, cluster, peer

replace = msgspec.structs.replace

RED, GREEN, BLUE = cluster("red", 1), cluster("green", 2), cluster("blue", 3)


def with_node(view: ClusterView, name: str, pod_cidr: str, address: str) -> ClusterView:
    agents = dict(view.agents.agents)
    agents[name] = next(iter(agents.values()))
    nodes = (*view.nodes, NodeView(name, (pod_cidr,) if pod_cidr else (), (address,)))
    return replace(view, nodes=nodes, agents=replace(view.agents, agents=agents))


def test_whether_an_api_server_lives_is_judged_by_its_clusters_clock() -> None:
    """Which may be another than ours by any time."""
    ahead = replace(GREEN, now=NOW + 5000, agents=replace(GREEN.agents, updated=NOW + 4990))
    dead = replace(BLUE, now=NOW + 5000, agents=replace(BLUE.agents, updated=NOW))
    (wrong,) = failed(check_all(RED, [ahead, dead], NOW))
    assert wrong.name == "blue: the API server runs"
    assert "5000 s" in wrong.detail


def test_two_plain_clusters_pass() -> None:
    results = check_all(RED, [GREEN, BLUE], NOW)
    assert {check.result for check in results} == {Result.OK}


@pytest.mark.parametrize(
    ("change", "name", "detail"),
    [
        (lambda v: replace(v, name="red"), "cluster names differ", "contexts red and green are both cluster 'red'"),
        (lambda v: replace(v, cluster_id=1), "cluster ids differ", "red and green both have id 1"),
        (
            lambda v: replace(v, peers={"grey": replace(peer(replace(RED, name="grey")))}),
            "cluster ids differ",
            "green has peer grey with id 1",
        ),
        (lambda v: replace(v, max_clusters=511), "identities are numbered alike", "255 in red and 511 in green"),
        (
            lambda v: with_node(v, "green-2", "10.1.0.0/16", "192.0.2.9"),
            "pod CIDRs do not overlap",
            "10.1.0.0/16 of green-2 in green and 10.1.1.0/24 of red-1 in red overlap",
        ),
        (
            lambda v: with_node(v, "green-2", "10.2.2.0/24", "192.0.2.1"),
            "node addresses differ",
            "192.0.2.1 is node red-1 in red and node green-2 in green",
        ),
        (lambda v: with_node(v, "green-2", "", "192.0.2.9"), "green: every node has pod CIDRs", "green-2"),
        (
            lambda v: replace(v, nodes=(*v.nodes, NodeView("green-9", ("10.2.9.0/24",), ()))),
            "green: every node has an agent",
            "no report from node green-9",
        ),
        (lambda v: replace(v, agents=AgentsView()), "green: the API server runs", "has not reported yet"),
        (
            lambda v: replace(v, agents=replace(v.agents, updated=NOW - 300)),
            "green: the API server runs",
            "no sign of life for 300 s",
        ),
        (lambda v: replace(v, agents=replace(v.agents, ca="x")), "green: the CA is valid", "Secret clustermesh-ca"),
        (lambda _: cluster("green", 2, mtu=1300), "MTU fits", "below 1330"),
    ],
)
def test_each_obstacle_is_named(change: Callable[[ClusterView], ClusterView], name: str, detail: str) -> None:
    wrong = {check.name: check.detail for check in failed(check_all(RED, [change(GREEN)], NOW))}
    assert detail in wrong[name], wrong


def test_an_expired_authority_is_named() -> None:
    late = NOW + 20 * 365 * 86400
    fresh = [replace(view, agents=replace(view.agents, updated=late)) for view in (RED, GREEN)]
    assert [check.name for check in failed(check_all(fresh[0], fresh[1:], late))] == [
        "red: the CA is valid",
        "green: the CA is valid",
    ]


def test_different_mtus_are_a_warning() -> None:
    results = check_all(RED, [cluster("green", 2, mtu=9000)], NOW)
    (warning,) = (check for check in results if check.result is Result.WARNING)
    assert "red 1500, green 9000" in warning.detail
    assert not failed(results)


def test_two_destinations_are_compared_with_each_other_too() -> None:
    twin = replace(with_node(BLUE, "blue-2", "10.2.1.0/25", "192.0.2.9"), cluster_id=2)
    names = [check.name for check in failed(check_all(RED, [GREEN, twin], NOW))]
    assert names == ["cluster ids differ", "pod CIDRs do not overlap"]


def test_what_is_connected_already_is_no_obstacle() -> None:
    red = cluster("red", 1, peers=(peer(GREEN),))
    green = cluster("green", 2, peers=(peer(RED),))
    assert not failed(check_all(red, [green], NOW))


def test_what_a_starting_cluster_lacks_is_worth_waiting_for() -> None:
    starting = replace(GREEN, agents=AgentsView())
    assert may_be_starting(check_all(RED, [starting], NOW))


def test_what_no_waiting_mends_is_not_waited_for() -> None:
    starting_twin = replace(GREEN, agents=AgentsView(), cluster_id=1)
    assert not may_be_starting(check_all(RED, [starting_twin], NOW))
    assert not may_be_starting(check_all(RED, [GREEN], NOW))
