"""The mirror with one large peer: bootstrap, its own restart, changes at three rates, memory.

Two etcds on a tmpfs, the peer's and the own one; a process with the real mirror between them; a process that watches
both sides and one with the agent's feeds, tables and reconciler over real kernel maps. All times are CLOCK_MONOTONIC,
which the processes of one machine share. Everything shares the processors, the generator of the changes as well.
"""

import argparse
import asyncio
import gc
import ipaddress
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from apiserver import collector
from apiserver.claims import Claims
from apiserver.cluster import ClusterIdentity
from apiserver.mirror import Mirror, PeerSpec
from clustermesh.kvstore.connection import Change, Connection, TlsFiles, TlsPem
from clustermesh.kvstore.feed import Feed
from clustermesh.kvstore.lease import Lease
from clustermesh.wire import keys, labels, records
from clustermesh.wire.keys import DATAPATH_KINDS, Kind
from clustermesh.wire.records import AddressRecord, Capabilities, Cidr, ClusterConfig, Node, NodeAddress
from nodeagent.datapath.abi import IpcacheKey, Map
from nodeagent.datapath.datapath import Datapath
from nodeagent.feeds import Feeds
from nodeagent.mesh import Mesh
from nodeagent.place import Place
from nodeagent.reconciler import STAGES, Entries, KernelMap, Reconciler
from tests.bench.ingest import bpf_mount, resident, say, until
from tests.bench.report import Result
from tests.integration.etcd_process import EtcdProcess

PEER, OWN = ClusterIdentity("red", 5), ClusterIdentity("green", 7)
LEASE_ID = 0x7EE
TXN_OPS = 1024
_TMPFS = Path("/dev/shm")
_READY_WITHIN = 300.0


class Size(NamedTuple):
    """How much there is of each kind; rates of change a second, for how many seconds each."""

    addresses: int
    identities: int
    nodes: int
    rates: tuple[int, ...]
    seconds: int

    @property
    def records(self) -> int:
        return self.addresses + self.identities + self.nodes


FULL = Size(250_000, 25_000, 25_000, (325, 1_000, 5_000), 30)
QUICK = Size(25_000, 2_500, 2_500, (325, 1_000), 5)


class Aims(NamedTuple):
    """Seconds, megabytes, bytes, milliseconds; for the full size alone."""

    bootstrap: float | None = None
    restart: float | None = None
    mirror_megabytes: float | None = None
    address_in_agent: float | None = None
    p50: float | None = None
    p99: float | None = None


NO_AIMS = Aims()
AIMS = Aims(bootstrap=15.0, restart=3.0, mirror_megabytes=400, address_in_agent=600, p50=2.0, p99=15.0)


def run(rounds: int, *, quick: bool = False) -> Sequence[Result]:
    """One round, whatever is asked for: it takes minutes."""
    del rounds
    return asyncio.run(_measure(QUICK if quick else FULL))


async def _measure(size: Size) -> list[Result]:
    with tempfile.TemporaryDirectory(dir=_TMPFS) as name:
        directory = Path(name)
        peer, own = _etcd(directory / "peer"), _etcd(directory / "own")
        try:
            await peer.start()
            await own.start()
            await _fill(peer.connection(), size)
            return await _stages(directory, peer, own, size)
        finally:
            await peer.close()
            await own.close()


def _etcd(directory: Path) -> EtcdProcess:
    directory.mkdir()
    options = [f"--max-txn-ops={TXN_OPS}", "--quota-backend-bytes=8589934592", "--snapshot-count=10000"]
    return EtcdProcess(directory, options=options)


async def _stages(directory: Path, peer: EtcdProcess, own: EtcdProcess, size: Size) -> list[Result]:
    sides = [peer.endpoint, *_words(peer.client_files("remote-green"))]
    mine = [own.endpoint, *_words(own.client_files("admin-green"))]
    results: list[Result] = []
    async with _child("mirror", *sides, *mine) as mirror:
        first = await mirror.ask("report")
    aims = AIMS if size is FULL else NO_AIMS
    note = f"{size.records:,} records"
    results.append(_aimed("mirror: from empty to complete", first["seconds"], "s", aims.bootstrap, note))
    results.append(Result("mirror: its processor time of that", round(first["busy"], 2), "s"))
    results.append(_aimed("mirror: most memory, from empty", first["peak"] / 1e6, "MB", aims.mirror_megabytes))
    async with _child("mirror", *sides, *mine) as mirror:
        again = await mirror.ask("report")
        results.append(
            _aimed("mirror: own restart to complete", again["seconds"], "s", aims.restart, "with the process's start")
        )
        results.append(Result("mirror: its processor time of a restart", round(again["busy"], 2), "s"))
        results.append(Result("mirror: own restart until all is judged again", round(again["proven"], 2), "s"))
        results.append(_aimed("mirror: most memory, restart", again["peak"] / 1e6, "MB", aims.mirror_megabytes))
        results.append(
            Result("mirror: memory a record", round(again["held"] / size.records), "bytes", note="above an idle mirror")
        )
        pins = directory / "pins"
        with bpf_mount(pins):
            await own.connection().put(keys.cluster_config(OWN.name), records.encode(ClusterConfig(OWN.id)))
            for kind in DATAPATH_KINDS:
                await own.connection().put(keys.state_canary(kind, OWN.name), b"now")
            agent_words = [own.endpoint, *_words(own.client_files("local-green")), str(pins / "agent")]
            async with _child("agent", *agent_words) as agent, _child("watch", *sides, *mine) as watch:
                held = (await agent.ask("memory"))["held"]
                results.append(
                    _aimed(
                        "agent: memory an address",
                        held / size.addresses,
                        "bytes",
                        aims.address_in_agent,
                        "all kinds' records divided by the addresses",
                    )
                )
                for rate in size.rates:
                    results += await _changes(peer, size, rate, mirror, agent, watch)
        results.append(
            Result("mirror: most memory, under load", round((await mirror.ask("report"))["peak"] / 1e6, 1), "MB")
        )
    return results


async def _changes(
    peer: EtcdProcess, size: Size, rate: int, mirror: "_Child", agent: "_Child", watch: "_Child"
) -> list[Result]:
    """`rate` changes a second, each of another address, and where they were when."""
    await asyncio.gather(mirror.ask("clear"), agent.ask("clear"), watch.ask("clear"))
    written = await _load(peer, size, rate)
    seen = await watch.ask(f"collect {written}")
    applied = await agent.ask(f"collect {written}")
    figures = await mirror.ask("queue")
    cache = sorted((seen["own"][ip] - at) * 1000 for ip, at in seen["peer"].items() if ip in seen["own"])
    kernel = sorted((applied["kernel"][ip] - at) * 1000 for ip, at in seen["peer"].items() if ip in applied["kernel"])
    missing = f"{written - len(cache)} of {written:,} not in the cache, {written - len(kernel)} not in the kernel"
    aimed = rate == FULL.rates[0]
    return [
        Result(f"{rate:,}/s: written", written / size.seconds, "changes/s", note=missing),
        _aimed(f"{rate:,}/s: to the own etcd's cache, p50", _at(cache, 0.5), "ms", AIMS.p50 if aimed else None),
        _aimed(f"{rate:,}/s: to the own etcd's cache, p99", _at(cache, 0.99), "ms", AIMS.p99 if aimed else None),
        _aimed(f"{rate:,}/s: to the own etcd's cache, max", cache[-1], "ms", None),
        _aimed(f"{rate:,}/s: to the kernel map, p50", _at(kernel, 0.5), "ms", None),
        _aimed(f"{rate:,}/s: to the kernel map, p99", _at(kernel, 0.99), "ms", None),
        _aimed(f"{rate:,}/s: to the kernel map, max", kernel[-1], "ms", None),
        Result(
            f"{rate:,}/s: the mirror's loop was late, p99",
            round(figures["lag"], 2),
            "ms",
            note=f"at most {figures['lag_most']:.1f} ms",
        ),
        Result(
            f"{rate:,}/s: mirror's queue, end of the run against its middle",
            figures["late"] - figures["middle"],
            "writes",
            spread=f"{figures['least']}–{figures['most']}",
            aim="not growing",
            reached=figures["late"] <= figures["middle"] + rate / 10,
        ),
    ]


def _aimed(name: str, value: float, unit: str, aim: float | None, note: str = "") -> Result:
    if aim is None:
        return Result(name, round(value, 2), unit, note=note)
    return Result(name, round(value, 2), unit, aim=f"≤ {aim:g}", reached=value <= aim, note=note)


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# The peer


async def _fill(connection: Connection, size: Size) -> None:
    changes = [Change(key.encode(), value) for key, value in _exported(size)]
    loads = [changes[at : at + TXN_OPS] for at in range(0, len(changes), TXN_OPS)]
    for at in range(0, len(loads), 4):
        await asyncio.gather(*(connection.commit(load) for load in loads[at : at + 4]))


def _exported(size: Size) -> Iterator[tuple[str, bytes]]:
    """What an exporter has written of a cluster whose nodes have a /24 each."""
    yield keys.HEARTBEAT, b"2026-01-01T00:00:00Z"
    capabilities = Capabilities(synced_canaries=True, max_connected_clusters=255)
    yield keys.cluster_config(PEER.name), records.encode(ClusterConfig(PEER.id, capabilities))
    first = int(ipaddress.ip_address("10.0.0.0"))
    for number in range(size.nodes):
        node = Node(
            name=f"red-{number}",
            cluster=PEER.name,
            cluster_id=PEER.id,
            ip_addresses=(
                NodeAddress("InternalIP", _host(number)),
                NodeAddress("CiliumInternalIP", str(ipaddress.ip_address(first + number * 256 + 1))),
            ),
            ipv4_alloc_cidr=Cidr.of(ipaddress.ip_network((first + number * 256, 24))),
            labels={"kubernetes.io/hostname": f"red-{number}", "topology.kubernetes.io/zone": f"zone-{number % 3}"},
        )
        yield keys.node(PEER.name, node.name), records.encode(node)
    lowest = _first_identity()
    for number in range(size.identities):
        text = {
            labels.CLUSTER: PEER.name,
            "k8s:app": f"app-{number}",
            "k8s:io.kubernetes.pod.namespace": f"team-{number % 100}",
            "k8s:io.cilium.k8s.policy.serviceaccount": "default",
        }
        yield keys.identity(lowest + number), records.encode_identity(text)
    for number in range(size.addresses):
        ip, record = _address(size, number, f"app-{number % size.identities}-{number:06d}")
        yield keys.address(ip), record
    for kind in DATAPATH_KINDS:
        yield keys.state_canary(kind, PEER.name), b"2026-01-01T00:00:00Z"


def _address(size: Size, number: int, pod: str, shift: int = 0) -> tuple[str, bytes]:
    node, within = number % size.nodes, number // size.nodes
    ip = f"10.{node >> 8}.{node & 255}.{within + 2}"
    record = AddressRecord(
        ip=ip,
        host_ip=_host(node),
        identity=_first_identity() + (number + shift) % size.identities,
        namespace=f"team-{number % 100}",
        pod_name=pod,
        service_account="default",
    )
    return ip, records.encode(record)


def _host(node: int) -> str:
    return f"172.{16 + (node >> 16)}.{node >> 8 & 255}.{node & 255}"


def _first_identity() -> int:
    return OWN.numbering.range(PEER.id)[0] + 256


async def _load(peer: EtcdProcess, size: Size, rate: int) -> int:
    """Changes spread over time: as many puts a second as asked for, several in a transaction beyond 500."""
    each = max(1, rate // 500)
    count = rate * size.seconds // each
    started = time.monotonic()
    flying: set[asyncio.Task[int]] = set()
    async with peer.connection() as connection:
        for turn in range(count):
            await asyncio.sleep(max(0.0, started + turn * each / rate - time.monotonic()))
            changes = []
            for number in range(turn * each, (turn + 1) * each):
                ip, record = _address(size, number % size.addresses, f"load-{rate}-{number}", shift=rate)
                changes.append(Change(keys.address(ip).encode(), record))
            task = asyncio.create_task(connection.commit(changes))
            flying.add(task)
            task.add_done_callback(flying.discard)
            if len(flying) > 64:
                await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
        while flying:
            await asyncio.wait(flying)
    return count * each


# Processes


class _Child:
    """A process of this module that answers questions: a line in, a line of JSON out."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ask(self, question: str) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(question.encode() + b"\n")
        async with asyncio.timeout(_READY_WITHIN):
            line = await self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended instead of answering {question!r}")
        return json.loads(line)


@asynccontextmanager
async def _child(*words: str) -> Any:
    """Until it is ready, and ended behind the block."""
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *os.environ.get("BENCH_PYTHON", "").split(),
        "-m",
        "tests.bench.mirror",
        *words,
        f"--started={started}",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=1 << 28,
    )
    try:
        child = _Child(process)
        await child.ask("ready")
        yield child
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


class _Questions:
    """Standard input, line by line."""

    async def __aiter__(self) -> Any:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            yield line.decode().split()


async def _mirror(peer: tuple[str, TlsFiles], own: tuple[str, TlsFiles], started: float) -> None:
    logging.basicConfig(level=logging.WARNING)
    collector.relax()
    queue: list[int] = []
    lags: list[float] = []
    async with Connection([own[0]], own[1]) as connection, asyncio.TaskGroup() as tasks:
        before = resident()
        lease = Lease(connection, 900, LEASE_ID)
        mirror = Mirror(
            PeerSpec(PEER.name, PEER.id, (peer[0],)),
            _pem(peer[1]),
            cluster=OWN,
            own=connection,
            lease=lease,
            claims=Claims(),
            owner_of_id=lambda _: None,
            changed=lambda: None,
        )
        tasks.create_task(lease.run())
        tasks.create_task(mirror.run())
        tasks.create_task(_sample(mirror, queue))
        tasks.create_task(_lags(lags))
        await until(lambda: mirror.current >= frozenset(DATAPATH_KINDS))
        seconds, busy = time.monotonic() - started, time.process_time()
        await until(lambda: not mirror.unproven)
        proven = time.monotonic() - started
        async for question in _Questions():
            match question[0]:
                case "clear":
                    queue.clear()
                    lags.clear()
                    say("{}")
                case "queue":
                    middle, late = _means(queue)
                    figures = {"middle": middle, "late": late, "least": min(queue), "most": max(queue)}
                    late_by = sorted(lag * 1000 for lag in lags)
                    say(json.dumps({**figures, "lag": _at(late_by, 0.99), "lag_most": late_by[-1]}))
                case _:
                    gc.collect()
                    times = {"seconds": seconds, "busy": busy, "proven": proven}
                    say(json.dumps({**times, "peak": _peak(), "held": resident() - before}))


async def _lags(into: list[float]) -> None:
    """By how many seconds this process's event loop is late."""
    while True:
        due = time.monotonic() + 0.005
        await asyncio.sleep(0.005)
        into.append(time.monotonic() - due)


async def _sample(mirror: Mirror, queue: list[int]) -> None:
    while True:
        await asyncio.sleep(0.1)
        queue.append(mirror.figures().queue)


def _means(queue: Sequence[int]) -> tuple[float, float]:
    """Of the second and of the last quarter."""
    quarter = max(1, len(queue) // 4)
    return statistics.fmean(queue[quarter : 2 * quarter] or queue), statistics.fmean(queue[-quarter:])


async def _watch(peer: tuple[str, TlsFiles], own: tuple[str, TlsFiles]) -> None:
    """When each address's change was seen on either side."""
    seen: dict[str, dict[str, float]] = {"peer": {}, "own": {}}
    listed = {side: asyncio.Event() for side in seen}

    async def follow(side: str, at: tuple[str, TlsFiles], prefix: str) -> None:
        async with Connection([at[0]], at[1]) as connection, aclosing(Feed(connection, prefix).batches()) as batches:
            async for batch in batches:
                now = time.monotonic()
                if listed[side].is_set():
                    for event in batch.events:
                        seen[side][event.key[len(prefix) :].decode()] = now
                elif batch.synced:
                    listed[side].set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow("peer", peer, keys.state_prefix(Kind.ADDRESSES, PEER.name)))
        tasks.create_task(follow("own", own, keys.cache_prefix(Kind.ADDRESSES, PEER.name)))
        for event in listed.values():
            await event.wait()
        async for question in _Questions():
            if question[0] == "collect":
                await _patiently(lambda n=int(question[1]): min(map(len, seen.values())) >= n)
            elif question[0] == "clear":
                for times in seen.values():
                    times.clear()
            say(json.dumps(seen))


class _Timed:
    """A kernel map that notes when each entry was in."""

    def __init__(self, inner: KernelMap) -> None:
        self._inner = inner
        self.times: dict[bytes, float] = {}

    def update_batch(self, entries: Entries) -> object:
        outcome = self._inner.update_batch(entries)
        now = time.monotonic()
        self.times.update((key, now) for key, _ in entries)
        return outcome

    def delete_batch(self, batch: list[bytes]) -> object:
        return self._inner.delete_batch(batch)

    def items(self) -> Any:
        return self._inner.items()


async def _agent(own: tuple[str, TlsFiles], pin_dir: Path) -> None:
    with Datapath(pin_dir) as datapath:
        async with Connection([own[0]], own[1]) as connection:
            before = resident()
            maps: dict[str, KernelMap] = {stage.map_name: datapath.maps[Map(stage.map_name)] for stage in STAGES}
            timed = maps[Map.IPCACHE] = _Timed(maps[Map.IPCACHE])
            reconciler = Reconciler(maps)
            mesh = Mesh(Place("green-1", OWN.name, OWN.id), reconciler)
            mesh.adopt(reconciler.adopt())
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(reconciler.run())
                tasks.create_task(Feeds(connection, mesh).run())
                await until(lambda: PEER.name in mesh.clusters and mesh.complete(mesh.clusters[PEER.name]))
                timed.times.clear()
                gc.collect()
                held = resident() - before
                async for question in _Questions():
                    match question[0]:
                        case "clear":
                            timed.times.clear()
                            say("{}")
                        case "collect":
                            await _patiently(lambda n=int(question[1]): len(timed.times) >= n)
                            times = {IpcacheKey.unpack(key).address: at for key, at in timed.times.items()}
                            say(json.dumps({"kernel": times}))
                        case _:
                            say(json.dumps({"held": held}))


async def _patiently(holds: Any) -> None:
    """A change that got lost is found as missing afterwards."""
    with suppress(TimeoutError):
        async with asyncio.timeout(60):
            await until(holds)


def _peak() -> int:
    """Bytes: the most memory that this process has occupied."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 1024


def _words(files: TlsFiles) -> list[str]:
    return [str(files.ca), str(files.cert), str(files.key)]


def _pem(files: TlsFiles) -> TlsPem:
    return TlsPem(files.ca.read_bytes(), files.cert.read_bytes(), files.key.read_bytes())


def _side(words: Sequence[str]) -> tuple[str, TlsFiles]:
    return words[0], TlsFiles(*map(Path, words[1:4]))


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("mirror", "watch", "agent"))
    parser.add_argument("words", nargs="+")
    parser.add_argument("--started", type=float)
    arguments = parser.parse_args()
    words = arguments.words
    match arguments.role:
        case "mirror":
            asyncio.run(_mirror(_side(words), _side(words[4:]), arguments.started))
        case "watch":
            asyncio.run(_watch(_side(words), _side(words[4:])))
        case "agent":
            asyncio.run(_agent(_side(words), Path(words[4])))


if __name__ == "__main__":
    _main()
