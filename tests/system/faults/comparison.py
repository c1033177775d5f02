"""What the mirror's copy and the agents' kernel maps should hold, worked out from the model alone."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from clustermesh.kvstore.connection import Connection
from nodeagent import inspect as inspection
from nodeagent.datapath.abi import IpcacheKey, IpcacheValue, Map
from nodeagent.datapath.maps import BpfMap, open_pinned
from tests.system.faults.model import CLUSTER, CLUSTER_ID, PORT, STATE, Model

# Where records of a kind lie in the source, and where their copies do.
_COPIES = {
    f"{STATE}/nodes/v1/{CLUSTER}/": f"cilium/cache/nodes/v1/{CLUSTER}/",
    f"{STATE}/identities/v1/id/": f"cilium/cache/identities/v1/{CLUSTER}/id/",
    f"{STATE}/ip/v1/default/": f"cilium/cache/ip/v1/{CLUSTER}/",
    f"{STATE}/services/v1/{CLUSTER}/": f"cilium/cache/services/v1/{CLUSTER}/",
}
_WORLD, _HOST, _REMOTE_NODE = 2, 1, 6


def differences(what: str, wanted: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    """Each key that is missing, stale or wrong."""
    said = [f"{what}: missing {key}" for key in wanted.keys() - found.keys()]
    said += [f"{what}: stale {key} = {found[key]!r}" for key in found.keys() - wanted.keys()]
    said += [
        f"{what}: wrong {key} = {found[key]!r}, wanted {wanted[key]!r}"
        for key in wanted.keys() & found.keys()
        if wanted[key] != found[key]
    ]
    return sorted(said)


def cache(model: Model) -> dict[str, bytes]:
    """The copy of every admissible record."""
    copied = {}
    for key, value in model.records.items():
        prefix = next(prefix for prefix in _COPIES if key.startswith(prefix))
        copied[_COPIES[prefix] + key.removeprefix(prefix)] = value
    return copied


async def held(connection: Connection, prefix: str) -> dict[str, bytes]:
    return {kv.key.decode(): kv.value async for page in connection.list(prefix) for kv in page}


def kernel(
    model: Model, own_id: int, own_nodes: Mapping[str, str], here: str, frontends: Mapping[str, str]
) -> dict[str, tuple[object, ...]]:
    """All entries of one agent's maps. own_nodes: name → address; frontends: service → cluster IP, of this cluster."""
    entries: dict[str, tuple[object, ...]] = {}
    for host in model.nodes.values():
        entries[f"nodes {host.ip}"] = (CLUSTER_ID,)
        entries[f"ipcache {host.ip}/32"] = (_REMOTE_NODE, CLUSTER_ID, None, "node")
        entries[f"ipcache {host.cidr}"] = (_WORLD, CLUSTER_ID, host.ip, "fallback")
    for name, ip in own_nodes.items():
        entries[f"ipcache {ip}/32"] = (_HOST if name == here else _REMOTE_NODE, own_id, None, "node")
    entries[f"endpoints {own_nodes[here]}"] = (_HOST, "node")
    for ip, pod in model.pods.items():
        entries[f"ipcache {ip}/32"] = (pod.identity, CLUSTER_ID, model.nodes[pod.node].ip, "pod")
    for name, frontend in frontends.items():
        backends = tuple(sorted((f"{ip}:{PORT}", CLUSTER_ID) for ip in model.services.get(name, ())))
        entries[f"services {frontend}:80/TCP"] = backends
    return entries


class KernelMaps:
    """One agent's pinned maps; open them once the agent has made them."""

    def __init__(self, maps: Mapping[str, BpfMap]) -> None:
        self._maps = maps

    def entries(self) -> dict[str, tuple[object, ...]]:
        """In the form of `kernel`."""
        rows = {
            kind: list(inspection.KINDS[kind](self._maps)) for kind in ("nodes", "ipcache", "services", "endpoints")
        }
        found: dict[str, tuple[object, ...]] = {}
        for row in rows["nodes"]:
            found[f"nodes {row['address']}"] = (row["cluster_id"],)
        for row in rows["ipcache"]:
            values = (row["identity"], row["cluster_id"], row["tunnel"], row["kind"])
            found[f"ipcache {row['address']}"] = values
        for row in rows["endpoints"]:
            found[f"endpoints {row['address']}"] = (row["identity"], row["kind"])
        for row in rows["services"]:
            backends = sorted((backend["address"], backend["cluster_id"]) for backend in row["backends"])
            found[f"services {row['service']}"] = tuple(backends)
        return found

    def lost(self, lasting: Iterable[tuple[str, int, str]]) -> list[str]:
        """Of pods (address, identity, node's address) that never change, those that are not there just now."""
        ipcache = self._maps[Map.IPCACHE]
        said = []
        for ip, identity, host in lasting:
            raw = ipcache.lookup(IpcacheKey.host(ip).pack())
            value = None if raw is None else IpcacheValue.unpack(raw)
            if value is None or (value.identity, value.tunnel) != (identity, host):
                said.append(f"{ip}: {value}")
        return said


@contextmanager
def kernel_maps(pin_dir: Path) -> Iterator[KernelMaps]:
    maps = open_pinned(pin_dir)
    try:
        yield KernelMaps(maps)
    finally:
        for one in maps.values():
            one.close()
