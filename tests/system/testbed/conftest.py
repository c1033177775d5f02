"""A testbed for each module, under a name of its own, driven by the command as a user would."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clustermesh.testbed import namespaces, processes
from clustermesh.testbed.down import destroy
from clustermesh.testbed.state import StateDirectory
from clustermesh.testbed.topology import host_device, namespace_prefix


class Bench:
    """One testbed and the commands that act on it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = StateDirectory(name)

    def run(self, verb: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "clustermesh.cli.main", "testbed", verb, "--name", self.name, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=os.environ | environment, timeout=100, check=False
        )

    def succeed(self, verb: str, *arguments: str) -> str:
        done = self.run(verb, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up(self) -> None:
        self.succeed("up", "--clusters", "red", "--nodes", "2")

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        command = [
            str(Path(sys.executable).with_name("kubectl")),
            f"--kubeconfig={self.directory.kubeconfig}",
            *arguments,
        ]
        done = subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=100, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, *what: str) -> Any:
        return json.loads(self.kubectl("get", *what, "-o", "json"))

    def pid(self, process: str) -> int:
        states = json.loads(self.succeed("status", "--output", "json"))["processes"]
        return int(next(state["pid"] for state in states if state["name"] == process))

    def left_behind(self) -> dict[str, object]:
        """What should not be there after `down`."""
        prefix = namespace_prefix(self.name)
        found = {
            "namespaces": namespaces.named(prefix),
            "processes": processes.of_testbed(self.name, []),
            "mounts": [
                line for line in Path("/proc/mounts").read_text().splitlines() if str(self.directory.path) in line
            ],
            "devices": Path("/sys/class/net", host_device(self.name)).exists(),
            "files": self.directory.path.exists(),
        }
        return {kind: what for kind, what in found.items() if what}


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Not up yet; down at the end whatever happens."""
    made = Bench(request.module.TESTBED)
    destroy(made.name)
    try:
        yield made
    finally:
        destroy(made.name)
