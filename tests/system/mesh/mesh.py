"""A connected pair of clusters for system tests, driven as a user would drive it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from clustermesh.testbed.load import LoadReport

ROOT = Path(__file__).parents[3]
KUBECTL = str(Path(sys.executable).with_name("kubectl"))


class Mesh:
    """Two clusters, red and green, of some nodes each; `echo` and `client` run in both."""

    def __init__(self, name: str, nodes: int = 2) -> None:
        self.name = name
        self.nodes = nodes
        self.environment = os.environ | {"KUBECONFIG": f"/run/clustermesh/testbed/{name}/kubeconfig", "NO_COLOR": "1"}

    def up(self) -> None:
        self.clustermesh("testbed", "up", "--name", self.name, "--clusters", "red,green", "--nodes", str(self.nodes))
        for cluster in ("red", "green"):
            self.kubectl(cluster, "apply", "-f", str(ROOT / "examples"))
        for cluster in ("red", "green"):
            self.kubectl(cluster, "rollout", "status", "deployment/echo", "--timeout=60s")
            self.kubectl(cluster, "wait", "--for=condition=Ready", "pod/client", "--timeout=60s")

    def down(self) -> None:
        self.clustermesh("testbed", "down", "--name", self.name)

    def connect(self) -> None:
        self.clustermesh("connect", "--context", "red", "--destination-context", "green")

    def disconnect(self) -> None:
        self.clustermesh("disconnect", "--context", "red", "--destination-context", "green")

    def run(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """The project's command, whatever its exit status."""
        command = [sys.executable, "-m", "clustermesh.cli.main", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=timeout)

    def clustermesh(self, *arguments: str, timeout: float = 180) -> str:
        return _checked(self.run(*arguments, timeout=timeout))

    def testbed(self, verb: str, *arguments: str, timeout: float = 120) -> str:
        return self.clustermesh("testbed", verb, "--name", self.name, *arguments, timeout=timeout)

    def kubectl(self, cluster: str, *arguments: str) -> str:
        command = [KUBECTL, "--context", cluster, *arguments]
        return _checked(subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=120))

    def get(self, cluster: str, *what: str) -> Any:
        return json.loads(self.kubectl(cluster, "get", *what, "-o", "json"))

    def pod_ips(self, cluster: str, app: str) -> list[str]:
        return [pod["status"]["podIP"] for pod in self.get(cluster, "pods", "-l", f"app={app}")["items"]]

    def service_ip(self, cluster: str) -> str:
        return str(self.get(cluster, "service", "echo")["spec"]["clusterIP"])

    def inside(self, where: str, *command: str) -> list[str]:
        """A command line that runs in a pod (`red/client`) or on a node (`red-1`)."""
        own = [sys.executable, "-m", "clustermesh.cli.main", "testbed", "exec", "--name", self.name, where, "--"]
        return [*own, *command]

    def execute(self, where: str, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.inside(where, *command), capture_output=True, text=True, env=self.environment, timeout=timeout
        )

    def requests(self, where: str, address: str, count: int = 100, *, timeout: float = 2.0) -> LoadReport:
        """`count` requests from a pod or node, each on a connection of its own."""
        done = self.execute(where, *_load(address, "--count", str(count), "--rate", "200", "--timeout", str(timeout)))
        return msgspec.json.decode(_checked(done), type=LoadReport)

    @contextmanager
    def load(self, where: str, address: str) -> Iterator[Callable[[], LoadReport]]:
        """Requests go on while the body runs; the value tells afterwards what became of them."""
        command = self.inside(where, *_load(address, "--rate", "50", "--keep-open", "5"))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=self.environment, start_new_session=True)
        output: list[bytes] = []
        try:
            yield lambda: msgspec.json.decode(output[0], type=LoadReport)
        finally:
            process.terminate()
            output.append(process.communicate(timeout=30)[0])

    def inspect(self, node: str, what: str) -> Any:
        """What a node's kernel maps hold, read without its agent."""
        done = self.execute(node, sys.executable, "-m", "clustermesh.cli.main", "inspect", what, "--output", "json")
        return json.loads(_checked(done))

    def crash(self, process: str) -> None:
        """Kill a process and return when its successor runs."""
        before = self._pid(process)
        self.testbed("kill", process)
        self.eventually(lambda: self._pid(process) not in (before, None))

    def _pid(self, process: str) -> int | None:
        processes = json.loads(self.testbed("status", "--output", "json"))["processes"]
        return next(entry["pid"] for entry in processes if entry["name"] == process)

    def differences(self, node: str) -> Any:
        """What a node's kernel maps hold otherwise than a fresh compile of etcd's content says."""
        done = self.execute(node, sys.executable, "-m", "nodeagent.main", "verify", "--output", "json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def tracing(self, node: str) -> Iterator[Callable[[], list[Any]]]:
        """Packets that a node's programs see while the body runs; the value tells them afterwards."""
        inspect = ["inspect", "events", "--follow", "--trace", "--output", "json"]
        command = self.inside(node, sys.executable, "-m", "nodeagent.main", *inspect)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environment)
        lines: list[bytes] = []
        try:
            assert process.stderr is not None
            assert b"tracing" in process.stderr.readline()
            yield lambda: [json.loads(line) for line in lines]
        finally:
            process.send_signal(signal.SIGINT)
            lines += process.communicate(timeout=30)[0].splitlines()

    def eventually(self, check: Callable[[], bool], *, within: float = 30) -> None:
        """Wait for a state; fails when it does not come."""
        deadline = time.monotonic() + within
        while not check():
            assert time.monotonic() < deadline, f"not so within {within} s"
            time.sleep(0.1)


def _load(address: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "clustermesh.testbed.load", f"http://{address}/", *arguments]


def _checked(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{' '.join(done.args)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
