"""Does the kernel hold what it should? Reads etcd afresh, compiles it all anew, and compares with the pinned maps.

Compared is what entries mean, not their bytes: numbers of backends and devices are an agent's own choice.
"""

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from clustermesh.kvstore.connection import Connection
from nodeagent import inspect as inspection
from nodeagent.datapath.abi import Map
from nodeagent.datapath.errors import DatapathError
from nodeagent.datapath.maps import open_pinned
from nodeagent.feeds import Feeds
from nodeagent.inspect import Row
from nodeagent.mesh import Mesh
from nodeagent.place import Place
from nodeagent.reconciler import STAGES, Entries, Reconciler

# Each kind, and the columns by which an entry is told apart from others and compared.
_COMPARED: Mapping[str, tuple[str, ...]] = {
    "nodes": ("address", "cluster_id"),
    "ipcache": ("address", "identity", "cluster_id", "tunnel", "kind"),
    "services": ("service", "backends"),
    "endpoints": ("address", "identity", "kind"),
}


class Difference(msgspec.Struct, frozen=True):
    """An entry that the kernel has and should not (`superfluous`), lacks (`missing`) or has otherwise (`differs`)."""

    kind: str
    entry: str
    problem: str
    kernel: Mapping[str, Any] | None
    wanted: Mapping[str, Any] | None


class _Memory:
    """A map that is no kernel's."""

    def __init__(self) -> None:
        self._entries: dict[bytes, bytes] = {}

    def update_batch(self, entries: Entries) -> None:
        self._entries.update(entries)

    def delete_batch(self, keys: list[bytes]) -> None:
        for key in keys:
            self._entries.pop(key, None)

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        return self._entries.items()

    def lookup(self, key: bytes) -> bytes | None:
        return self._entries.get(key)


async def verify(place: Place, connection: Connection, pin_dir: Path, *, timeout: float) -> list[Difference]:
    """What is wrong with this node's maps. DatapathError if etcd does not tell within `timeout` seconds."""
    wanted: dict[str, _Memory] = {stage.map_name: _Memory() for stage in STAGES} | {Map.PROBES: _Memory()}
    reconciler = Reconciler({stage.map_name: wanted[stage.map_name] for stage in STAGES})
    mesh = Mesh(place, reconciler)
    try:
        async with asyncio.timeout(timeout):
            await _fill(mesh, reconciler, connection)
    except TimeoutError:
        raise DatapathError(
            f"etcd did not give this node's complete records within {timeout:.0f} s: is the API server ready?"
        ) from None
    pods = [{"address": ip, "identity": number, "kind": "pod"} for ip, number in mesh.pods.entries.items()]
    kernel = open_pinned(pin_dir)
    try:
        return [
            difference
            for kind in _COMPARED
            for difference in compare(
                kind,
                inspection.KINDS[kind](kernel),
                [*inspection.KINDS[kind](wanted), *(pods if kind == "endpoints" else ())],
            )
        ]
    finally:
        for one in kernel.values():
            one.close()


async def _fill(mesh: Mesh, reconciler: Reconciler, connection: Connection) -> None:
    """Run feeds and reconciler until everything is read."""
    changed = asyncio.Event()
    mesh.on_change = changed.set
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(reconciler.run()), tasks.create_task(Feeds(connection, mesh).run())]
        while not (mesh.peers_known and all(mesh.complete(cluster) for cluster in mesh.clusters.values())):
            await changed.wait()
            changed.clear()
            await reconciler.wait(reconciler.mark())
        for task in running:
            task.cancel()


def compare(kind: str, kernel: Iterable[Row], wanted: Iterable[Row]) -> list[Difference]:
    """Entries of one kind that are not alike, by name."""
    has, should = _by_name(kind, kernel), _by_name(kind, wanted)
    problems = dict.fromkeys(has.keys() - should.keys(), "superfluous")
    problems |= dict.fromkeys(should.keys() - has.keys(), "missing")
    problems |= {name: "differs" for name in has.keys() & should.keys() if has[name] != should[name]}
    return [
        Difference(kind, name, problem, has.get(name), should.get(name)) for name, problem in sorted(problems.items())
    ]


def _by_name(kind: str, rows: Iterable[Row]) -> dict[str, Row]:
    columns = _COMPARED[kind]
    return {row[columns[0]]: {column: _ordered(row[column]) for column in columns} for row in rows}


def _ordered(value: Any) -> Any:
    return sorted(value, key=repr) if isinstance(value, list) else value
