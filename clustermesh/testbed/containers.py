"""One container: a process in its pod's network namespace, on the host's file system. Images are not pulled.

The process leads a session of its own and carries its pod's uid and its name in the environment. So it outlives the
kubelet, and the next kubelet takes it over.
"""

import asyncio
import contextlib
import enum
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clustermesh.testbed import echo, namespaces, probes, processes
from clustermesh.testbed.objects import Container, Pod
from clustermesh.testbed.topology import Node

ECHO_IMAGE = "clustermesh/echo"
UID_VARIABLE, CONTAINER_VARIABLE, NODE_VARIABLE = "CLUSTERMESH_POD_UID", "CLUSTERMESH_CONTAINER", "CLUSTERMESH_NODE"

_FIRST_DELAY, _LONGEST_DELAY, _STEADY_AFTER = 1.0, 30.0, 60.0  # seconds before a restart
_UNTIL_READY = 0.2  # seconds between probes of a container that is not ready yet
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_REFERENCE = re.compile(r"\$\((\w+)\)")
_MAP_FIELD = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


class ContainerError(Exception):
    """The container cannot be started as it is specified; `reason` is a word for machines."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Phase(enum.StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    TERMINATED = "terminated"


class State(NamedTuple):
    """What a ContainerStatus calls state."""

    phase: Phase
    since: str  # RFC 3339
    reason: str = ""
    message: str = ""
    exit_code: int = 0

    def document(self) -> dict[str, Any]:
        match self.phase:
            case Phase.RUNNING:
                return {"running": {"startedAt": self.since}}
            case Phase.WAITING:
                return {"waiting": {"reason": self.reason, "message": self.message}}
            case Phase.TERMINATED:
                ended = {"exitCode": self.exit_code, "reason": self.reason, "finishedAt": self.since}
                return {"terminated": ended}


class Place(NamedTuple):
    """Where a pod's containers run."""

    testbed: str
    node: Node
    namespace: str
    address: str


class Command(NamedTuple):
    argv: tuple[str, ...]
    environment: dict[str, str]


def is_echo(image: str) -> bool:
    return image.partition("@")[0].partition(":")[0] == ECHO_IMAGE


def command(pod: Pod, container: Container, place: Place) -> Command:
    """What to run; ContainerError when the testbed has nothing to run or a variable cannot be filled in."""
    environment = _environment(pod, container, place)
    if container.working_dir and not Path(container.working_dir).is_dir():
        raise ContainerError(
            "CreateContainerError", f"workingDir {container.working_dir} is no directory of this machine"
        )
    if container.command:
        argv = (*container.command, *(container.args or ()))
    elif is_echo(container.image):
        argv = (sys.executable, "-I", "-S", str(Path(echo.__file__)))
    else:
        raise ContainerError(
            "ImageNotPulled",
            f"a testbed pulls no images: give container {container.name!r} a command that is on this machine, "
            f"or the image {ECHO_IMAGE}",
        )
    return Command(tuple(_expanded(word, environment) for word in argv), environment)


class ContainerRunner:
    """Runs one container until it is stopped; `changed` is called whenever its state or readiness does."""

    def __init__(
        self,
        pod: Pod,
        container: Container,
        place: Place,
        *,
        log: Path,
        sockets: namespaces.SocketFactory,
        clock: Callable[[], str],
        changed: Callable[[], None],
        restarts: int = 0,
    ) -> None:
        self._pod = pod
        self._container = container
        self._place = place
        self._log = log
        self._sockets = sockets
        self._clock = clock
        self._changed = changed
        self._restarts = restarts
        self._state = State(Phase.WAITING, clock(), "ContainerCreating")
        self._last: State | None = None
        self._ready = False
        self._pid: int | None = None
        self._stopping = False

    @property
    def state(self) -> State:
        return self._state

    @property
    def ready(self) -> bool:
        return self._ready

    def status(self) -> dict[str, Any]:
        """The ContainerStatus."""
        return {
            "name": self._container.name,
            "image": self._container.image,
            "imageID": "",
            "ready": self._ready,
            "started": self._state.phase is Phase.RUNNING,
            "restartCount": self._restarts,
            "state": self._state.document(),
            "lastState": {} if self._last is None else self._last.document(),
        }

    async def run(self, adopted: int | None = None) -> None:
        """Start and restart as the pod's policy says; `adopted` is a process that a former kubelet started."""
        delay = _FIRST_DELAY
        while True:
            try:
                wanted = command(self._pod, self._container, self._place)
            except ContainerError as error:
                self._enter(State(Phase.WAITING, self._clock(), error.reason, str(error)))
                return
            began = time.monotonic()
            code = await self._live(wanted, adopted)
            adopted = None
            ended = State(
                Phase.TERMINATED, self._clock(), "Error" if code else "Completed", exit_code=_shell_code(code)
            )
            self._enter(ended)
            policy = self._pod.spec.restart_policy
            if self._stopping or policy == "Never" or (policy == "OnFailure" and code == 0):
                return
            self._last = ended
            if time.monotonic() - began > _STEADY_AFTER:
                delay = _FIRST_DELAY
            message = f"back-off {delay:.0f}s restarting; see its log {self._log}"
            self._enter(State(Phase.WAITING, self._clock(), "CrashLoopBackOff", message))
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY)
            self._restarts += 1

    async def stop(self, grace: float) -> None:
        """SIGTERM, and SIGKILL after `grace` seconds; returns when the process is gone."""
        self._stopping = True
        pid = self._pid
        if pid is None:
            return
        if grace > 0:
            processes.signal_group(pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await processes.exited(pid)
        processes.signal_group(pid, signal.SIGKILL)
        await processes.exited(pid)

    async def _live(self, wanted: Command, adopted: int | None) -> int:
        """Run the process to its end; its exit code, as far as it is known."""
        child = None if adopted is not None else self._spawn(wanted)
        pid = child.pid if child is not None else adopted
        assert pid is not None
        self._pid = pid
        self._enter(State(Phase.RUNNING, self._clock()))
        probing = asyncio.create_task(self._probe(wanted.environment))
        try:
            await processes.exited(pid)
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)
        self._pid = None
        # What the process left behind in its session ends with it, as in a container.
        processes.signal_group(pid, signal.SIGKILL)
        return (child.poll() or 0) if child is not None else 0

    def _spawn(self, wanted: Command) -> "subprocess.Popen[bytes]":
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab", buffering=0) as output:
            return subprocess.Popen(
                namespaces.entering(self._place.namespace, wanted.argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=wanted.environment,
                cwd=self._container.working_dir or "/",
                start_new_session=True,
            )

    async def _probe(self, environment: Mapping[str, str]) -> None:
        probe = self._container.readiness_probe
        if probe is None:
            self._set_ready(True)
            return
        target = probes.Target(self._container, self._place.address, self._place.namespace, environment, self._sockets)
        await asyncio.sleep(probe.initial_delay_seconds)
        streak = 0  # successes in a row, or failures if negative
        while True:
            passed = await probes.passes(probe, target)
            streak = max(streak, 0) + 1 if passed else min(streak, 0) - 1
            if streak >= probe.success_threshold:
                self._set_ready(True)
            elif -streak >= probe.failure_threshold:
                self._set_ready(False)
            await asyncio.sleep(probe.period_seconds if self._ready else min(_UNTIL_READY, probe.period_seconds))

    def _set_ready(self, ready: bool) -> None:
        if ready != self._ready:
            self._ready = ready
            self._changed()

    def _enter(self, state: State) -> None:
        self._state = state
        if state.phase is not Phase.RUNNING:
            self._ready = False
        self._changed()


def _environment(pod: Pod, container: Container, place: Place) -> dict[str, str]:
    environment = {"PATH": _PATH, "HOME": "/root", "HOSTNAME": pod.name}
    if is_echo(container.image):
        environment |= {
            "CLUSTER_NAME": place.node.cluster,
            "NODE_NAME": place.node.name,
            "POD_NAME": pod.name,
            "POD_NAMESPACE": pod.namespace,
        }
    for variable in container.env or ():
        if variable.value_from is None:
            environment[variable.name] = _expanded(variable.value, environment)
        elif variable.value_from.field_ref is None:
            raise ContainerError(
                "CreateContainerConfigError", f"variable {variable.name}: a testbed knows value and fieldRef only"
            )
        else:
            environment[variable.name] = _field(pod, place, variable.value_from.field_ref.field_path)
    return environment | {
        processes.TESTBED_VARIABLE: place.testbed,
        UID_VARIABLE: pod.metadata.uid,
        CONTAINER_VARIABLE: container.name,
        NODE_VARIABLE: place.node.name,
    }


def _field(pod: Pod, place: Place, path: str) -> str:
    fields = {
        "metadata.name": pod.name,
        "metadata.namespace": pod.namespace,
        "metadata.uid": pod.metadata.uid,
        "spec.nodeName": place.node.name,
        "spec.serviceAccountName": pod.spec.service_account_name or "default",
        "status.podIP": place.address,
        "status.podIPs": place.address,
        "status.hostIP": place.node.address,
        "status.hostIPs": place.node.address,
    }
    if path in fields:
        return fields[path]
    if match := _MAP_FIELD.fullmatch(path):
        values = pod.metadata.labels if match[1] == "labels" else pod.metadata.annotations
        return (values or {}).get(match[2], "")
    raise ContainerError("CreateContainerConfigError", f"fieldRef {path!r} is not known; there are {', '.join(fields)}")


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    """Replace $(NAME); what is not known stays as it is."""
    return _REFERENCE.sub(lambda match: environment.get(match[1], match[0]), text)


def _shell_code(code: int) -> int:
    """As Kubernetes counts: 128 + n for a process that signal n ended."""
    return 128 - code if code < 0 else code
