"""Clusters can be cut from each other; the network alone, without processes."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from clustermesh.testbed import namespaces, topology
from clustermesh.testbed.netns import NetnsDriver, destroy

TESTBED = "tlinks"
PLAN = topology.plan(TESTBED, topology.SLOTS - 1, ["red", "green", "blue"], 1)


@pytest.fixture(scope="module")
def driver() -> Iterator[NetnsDriver]:
    destroy(TESTBED)
    made = NetnsDriver(PLAN)
    try:
        made.create()
        yield made
    finally:
        made.destroy()
    assert namespaces.named(topology.namespace_prefix(TESTBED)) == []


def reaches(source: str | None, target: str) -> bool:
    """Whether a packet gets there and back: nobody listens, so the answer is a refusal."""
    program = (
        "import socket, sys; s = socket.socket(); s.settimeout(0.5); sys.exit(s.connect_ex((sys.argv[1], 1)) != 111)"
    )
    command = [sys.executable, "-I", "-S", "-c", program, PLAN.node(target).address]
    argv = command if source is None else namespaces.entering(PLAN.node(source).namespace, command)
    return subprocess.run(argv, check=False).returncode == 0


def test_nodes_of_all_clusters_and_the_host_reach_each_other(driver: NetnsDriver) -> None:
    assert reaches("red-1", "green-1")
    assert reaches("green-1", "red-1")
    assert reaches(None, "blue-1")


def test_a_cut_parts_two_clusters_and_no_others(driver: NetnsDriver) -> None:
    driver.cut("red", "green")
    driver.cut("green", "red")
    assert driver.cuts() == {("green", "red")}
    assert not reaches("red-1", "green-1")
    assert not reaches("green-1", "red-1")
    assert reaches("red-1", "blue-1")
    assert reaches(None, "green-1")


def test_healing_undoes_the_cut_and_may_be_repeated(driver: NetnsDriver) -> None:
    driver.heal("green", "red")
    driver.heal("green", "red")
    assert driver.cuts() == frozenset()
    assert reaches("red-1", "green-1")
