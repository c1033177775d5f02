"""The state directory of a testbed: what is remembered of it, and which file lies where."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from clustermesh.testbed.errors import TestbedError
from clustermesh.testbed.topology import STATE_ROOT, Topology, check_testbed_name, is_testbed_name, plan


class Record(msgspec.Struct, frozen=True):
    """What a testbed is made of; all names and addresses follow from it. `ready` once `up` has finished."""

    name: str
    slot: int
    clusters: tuple[str, ...]
    nodes: int
    ready: bool = False
    api_servers: int = 1  # of each cluster

    @property
    def topology(self) -> Topology:
        return plan(self.name, self.slot, self.clusters, self.nodes)


class StateDirectory:
    """Paths under /run/clustermesh/testbed/<name>. TestbedError for a name that no testbed may bear."""

    def __init__(self, name: str, root: Path = STATE_ROOT) -> None:
        check_testbed_name(name)
        self.path = root / name

    @property
    def record_file(self) -> Path:
        return self.path / "state.json"

    @property
    def kubeconfig(self) -> Path:
        return self.path / "kubeconfig"

    @property
    def bpf(self) -> Path:
        """Where the testbed's own BPF file system is mounted."""
        return self.path / "bpf"

    def pins(self, node: str) -> Path:
        return self.bpf / node

    def etcd(self, cluster: str) -> Path:
        return self.path / "etcd" / cluster

    def pki(self, cluster: str) -> Path:
        return self.path / "pki" / cluster

    def log(self, process: str) -> Path:
        """`process` is `red/etcd`, `red-1/agent`, or a pod's `red/<namespace>/<pod>/<container>`."""
        return self.path / "logs" / f"{process}.log"

    def pod(self, cluster: str, namespace: str, name: str) -> Path:
        """A link to the pod's network namespace."""
        return self.path / "pods" / cluster / namespace / name

    def save(self, record: Record) -> None:
        """Replaced in one step, so that a reader never sees half of it."""
        part = self.record_file.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(record))
        part.rename(self.record_file)

    def load(self) -> Record | None:
        """None when there is no such testbed; TestbedError when its record is unreadable."""
        try:
            return msgspec.json.decode(self.record_file.read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise TestbedError(
                f"{self.record_file} is damaged ({error}): clean up with "
                f"'clustermesh testbed down --name {self.path.name}'"
            ) from None


def all_directories(root: Path = STATE_ROOT) -> Iterator[StateDirectory]:
    """Of all testbeds; what else lies there is nobody's to touch."""
    if root.is_dir():
        for entry in sorted(root.iterdir()):
            if entry.is_dir() and is_testbed_name(entry.name):
                yield StateDirectory(entry.name, root)
