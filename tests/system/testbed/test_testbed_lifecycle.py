"""A testbed comes up once, fails clean, and leaves nothing whatever became of it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clustermesh.testbed import processes
from tests.system.testbed.conftest import Bench

TESTBED = "tlife"


def test_up_and_down_leave_nothing(bench: Bench) -> None:
    bench.up()
    status = json.loads(bench.succeed("status", "--output", "json"))
    assert status["ready"]
    assert {process["name"] for process in status["processes"]} == {
        "red/etcd",
        "red/kubernetes",
        "red/kubelet",
        "red/apiserver",
        "red-1/agent",
        "red-2/agent",
    }
    assert all(process["state"] == "running" and not process["restarts"] for process in status["processes"])
    assert "up already" in bench.succeed("up", "--clusters", "red", "--nodes", "2")
    other = bench.run("up", "--clusters", "red,green", "--nodes", "2")
    assert other.returncode == 1
    assert "is up with clusters red, 2 nodes and 1 API servers each" in other.stderr

    bench.succeed("down")
    assert bench.left_behind() == {}
    assert "no testbed" in bench.succeed("down")


def test_down_after_the_supervisor_was_killed_leaves_nothing(bench: Bench) -> None:
    bench.up()
    bench.kubectl("apply", "-f", str(Path(__file__).parents[3] / "examples" / "client.yaml"))
    bench.kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=60s")
    [supervisor] = [
        pid
        for pid, _ in processes.carrying({processes.TESTBED_VARIABLE: TESTBED})
        if b"clustermesh.testbed.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(supervisor, signal.SIGKILL)
    again = bench.run("up", "--clusters", "red", "--nodes", "2")
    assert again.returncode == 1
    assert "does not run" in again.stderr
    bench.succeed("down")
    assert bench.left_behind() == {}


def test_a_process_that_does_not_start_is_named_with_its_log_and_nothing_is_left(bench: Bench, tmp_path: Path) -> None:
    broken = tmp_path / "etcd"
    broken.write_text("#!/bin/sh\necho out of order\nexit 3\n")
    broken.chmod(0o755)
    failed = bench.run("up", "--clusters", "red", "--nodes", "1", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert failed.returncode == 1
    assert "red/etcd ended 3 times, the last time with 3" in failed.stderr
    assert "out of order" in failed.stderr
    assert bench.left_behind() == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clusters", "default"], "cluster name 'default' is invalid"),
        (["--clusters", "red,red"], "given twice"),
        (["--nodes", "0"], "0 nodes asked for"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_made(bench: Bench, arguments: list[str], message: str) -> None:
    failed = bench.run("up", *arguments)
    assert failed.returncode == 1
    assert message in failed.stderr
    assert bench.left_behind() == {}


def test_an_interrupted_start_leaves_nothing(bench: Bench) -> None:
    command = [sys.executable, "-m", "clustermesh.cli.main", "testbed", "up", "--name", TESTBED, "--clusters", "red"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as starting:
        assert starting.stdout is not None
        assert "network" in starting.stdout.readline()
        starting.terminate()
        _, errors = starting.communicate(timeout=60)
    assert starting.returncode == 1
    assert "interrupted" in errors
    assert bench.left_behind() == {}
