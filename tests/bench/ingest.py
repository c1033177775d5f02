"""Records a second from etcd into the kernel maps, and the agent's memory an address.

A real etcd holds a peer with 100,000 addresses. A process with the agent's feeds, tables and reconciler over real
kernel maps learns of that peer; the time runs from then until everything is in the kernel. etcd shares the processors.
"""

import asyncio
import gc
import ipaddress
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from clustermesh.kvstore.connection import Change, Connection, TlsFiles
from clustermesh.wire import keys, private, records
from clustermesh.wire.keys import Kind
from clustermesh.wire.private import PeerList
from clustermesh.wire.records import AddressRecord, Cidr, ClusterConfig, Node, NodeAddress
from nodeagent.datapath.abi import Map
from nodeagent.datapath.datapath import Datapath
from nodeagent.feeds import Feeds
from nodeagent.mesh import Mesh
from nodeagent.place import Place
from nodeagent.reconciler import STAGES, Reconciler
from tests.bench.report import Result
from tests.integration.etcd_process import EtcdProcess

ADDRESSES = 100_000
NODES = 500
IDENTITIES = 1_000
AIM_RATE = 60_000
AIM_BYTES = 600
_TRANSACTION = 128


def run(rounds: int) -> Sequence[Result]:
    """Rounds are agents that start anew; the rate is their median."""
    measured = asyncio.run(_measure(min(rounds, 3)))
    rates = [one["rate"] for one in measured]
    sizes = [one["bytes"] for one in measured]
    rate, size = statistics.median(rates), statistics.median(sizes)
    return [
        Result(
            name="records into the kernel",
            value=rate,
            unit="records/s",
            spread=f"{min(rates):,.0f}–{max(rates):,.0f}",
            aim=f"≥ {AIM_RATE:,}",
            reached=rate >= AIM_RATE,
            note=f"{ADDRESSES:,} addresses of one peer, etcd on the same processors",
        ),
        Result(
            name="agent memory an address",
            value=size,
            unit="bytes",
            spread=f"{min(sizes):,.0f}–{max(sizes):,.0f}",
            aim=f"≤ {AIM_BYTES:,}",
            reached=size <= AIM_BYTES,
        ),
    ]


async def _measure(rounds: int) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as directory:
        etcd = EtcdProcess(Path(directory))
        await etcd.start()
        try:
            connection = etcd.connection()
            await _fill(connection)
            files = etcd.client_files()
            results = []
            for number in range(rounds):
                pins = Path(directory) / f"pins-{number}"
                with bpf_mount(pins):
                    results.append(await _round(etcd.endpoint, files, pins, connection))
            return results
        finally:
            await etcd.close()


@contextmanager
def bpf_mount(path: Path) -> Iterator[None]:
    """A BPF file system of its own; what is pinned there goes with it."""
    path.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


async def _fill(connection: Connection) -> None:
    changes = [Change(key.encode(), value) for key, value in _own() + _peer()]
    loads = [changes[at : at + _TRANSACTION] for at in range(0, len(changes), _TRANSACTION)]
    for at in range(0, len(loads), 4):
        await asyncio.gather(*(connection.commit(load) for load in loads[at : at + 4]))


def _own() -> list[tuple[str, bytes]]:
    return [
        (keys.cluster_config("red"), records.encode(ClusterConfig(1))),
        (keys.PEER_LIST, private.encode(PeerList())),
        *((keys.state_canary(kind, "red"), b"now") for kind in Kind),
        *((keys.cache_canary(kind, "green"), b"now") for kind in Kind),
    ]


def _peer() -> list[tuple[str, bytes]]:
    entries: list[tuple[str, bytes]] = []
    first = int(ipaddress.ip_address("10.64.0.0"))
    hosts = [f"172.20.{number // 250}.{number % 250 + 1}" for number in range(NODES)]
    for number, host in enumerate(hosts):
        cidr = Cidr.of(ipaddress.ip_network((first + number * 256, 24)))
        node = Node(
            name=f"green-{number}",
            cluster="green",
            cluster_id=2,
            ip_addresses=(NodeAddress("InternalIP", host),),
            ipv4_alloc_cidr=cidr,
        )
        entries.append((keys.cache_prefix(Kind.NODES, "green") + node.name, records.encode(node)))
    for number in range(IDENTITIES):
        labels = f"k8s:app=app-{number};k8s:io.cilium.k8s.policy.cluster=green;k8s:io.kubernetes.pod.namespace=shop;"
        entries.append((keys.cache_prefix(Kind.IDENTITIES, "green") + str((2 << 16) + 256 + number), labels.encode()))
    for number in range(ADDRESSES):
        node_number, within = number % NODES, number // NODES
        ip = str(ipaddress.ip_address(first + node_number * 256 + within + 1))
        record = AddressRecord(
            ip=ip,
            host_ip=hosts[node_number],
            identity=(2 << 16) + 256 + number % IDENTITIES,
            namespace="shop",
            pod_name=f"app-{number % IDENTITIES}-{number:06d}",
            service_account="default",
        )
        entries.append((keys.cache_prefix(Kind.ADDRESSES, "green") + ip, records.encode(record)))
    return entries


async def _round(endpoint: str, files: TlsFiles, pins: Path, connection: Connection) -> dict[str, float]:
    """One agent process: told of the peer once it stands."""
    await connection.delete(keys.cluster_config("green"))
    words = [endpoint, str(files.ca), str(files.cert), str(files.key), str(pins / "agent")]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.ingest", *words, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(120):
            await process.stdout.readline()
            await connection.put(keys.cluster_config("green"), records.encode(ClusterConfig(2)))
            result: dict[str, float] = json.loads(await process.stdout.readline())
            return result
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


# The agent's side


async def _agent(endpoint: str, tls: TlsFiles, pin_dir: Path) -> None:
    with Datapath(pin_dir) as datapath:
        async with Connection([endpoint], tls) as connection:
            reconciler = Reconciler({stage.map_name: datapath.maps[Map(stage.map_name)] for stage in STAGES})
            mesh = Mesh(Place("red-1", "red", 1), reconciler)
            mesh.adopt(reconciler.adopt())
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(reconciler.run())
                tasks.create_task(Feeds(connection, mesh).run())
                await until(lambda: mesh.peers_known and mesh.complete(mesh.own))
                gc.collect()
                before = resident()
                say("ready")
                await until(lambda: "green" in mesh.clusters)
                started = time.perf_counter()
                await until(lambda: mesh.complete(mesh.clusters["green"]))
                taken = time.perf_counter() - started
                gc.collect()
                applied = sum(mesh.counts(mesh.clusters["green"]).values())
                say(json.dumps({"rate": applied / taken, "bytes": (resident() - before) / ADDRESSES}))
                # Ended by its parent.


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - the measured parts must not be changed to announce themselves
        await asyncio.sleep(0.002)


def resident() -> int:
    """Bytes of memory this process occupies."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


if __name__ == "__main__":
    asyncio.run(_agent(sys.argv[1], TlsFiles(*map(Path, sys.argv[2:5])), Path(sys.argv[5])))
