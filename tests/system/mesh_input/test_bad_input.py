"""What is wrong is named once, with its remedy; nothing is left half-done, and nothing that worked is lost.

The tests share two small clusters and leave them as they found them: apart, or joined where they ask for it.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from clustermesh.kvstore.auth import AuthAdmin
from clustermesh.kvstore.connection import Connection, TlsFiles
from clustermesh.testbed import credentials
from clustermesh.testbed.state import StateDirectory
from tests.system.mesh.mesh import Mesh

T = TypeVar("T")

DIRECTORY = StateDirectory("testinput")
CONNECT = ("connect", "--context", "red", "--destination-context", "green")
NOBODY = 65534
# What will be needed is loaded while it may still be read.
AS_NOBODY = f"""
import difflib, os  # click looks for similar names
from clustermesh.cli import connect, disconnect, inspect, main, status, testbed
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
main.main()
"""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    mesh = Mesh(DIRECTORY.path.name, nodes=1)
    try:
        mesh.up()
        yield mesh
    finally:
        mesh.down()


@pytest.fixture(scope="module")
def connected(mesh: Mesh) -> Mesh:
    """Asked for by the last tests of this file: the clusters stay connected."""
    mesh.connect()
    return mesh


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one error of a command that failed as it should."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def in_etcd(cluster: str, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Something done by hand in a cluster's etcd, with its administrator's certificate."""
    topology = _topology()
    authority = credentials.pair(DIRECTORY, topology.cluster(cluster), credentials.AUTHORITY)
    root = credentials.pair(DIRECTORY, topology.cluster(cluster), credentials.ETCD_ROOT)

    async def with_connection() -> T:
        tls = TlsFiles(authority.cert, root.cert, root.key)
        async with Connection([topology.cluster(cluster).etcd_url], tls) as connection:
            return await work(connection)

    return asyncio.run(with_connection())


def keys(cluster: str, prefix: str) -> list[str]:
    async def read(connection: Connection) -> list[str]:
        return [kv.key.decode() async for page in connection.list(prefix) for kv in page]

    return in_etcd(cluster, read)


def value(cluster: str, key: str) -> bytes | None:
    async def read(connection: Connection) -> bytes | None:
        found = await connection.get(key)
        return found.value if found is not None else None

    return in_etcd(cluster, read)


def put(cluster: str, records: dict[str, bytes]) -> None:
    async def write(connection: Connection) -> None:
        for key, record in records.items():
            await connection.put(key, record)

    in_etcd(cluster, write)


def status(mesh: Mesh) -> Any:
    return json.loads(mesh.run("status", "--context", "red", "--output", "json").stdout)


def left_of_a_connection(mesh: Mesh) -> dict[str, object]:
    """Objects, keys, etcd users and records that stand for a peer, in both clusters."""
    found: dict[str, object] = {}
    for cluster in ("red", "green"):
        secrets = mesh.get(cluster, "secrets", "-n", "clustermesh-system")["items"]
        users = in_etcd(cluster, lambda connection: AuthAdmin(connection).users())
        found |= {
            f"{cluster} objects": mesh.get(cluster, "clustermeshpeers")["items"],
            f"{cluster} secrets": [s["metadata"]["name"] for s in secrets if "peer" in s["metadata"]["name"]],
            f"{cluster} users": [user for user in users if user.startswith("remote-")],
            f"{cluster} records": keys(cluster, "cilium/cache/"),
            f"{cluster} configs": [key for key in keys(cluster, "cilium/cluster-config/") if not key.endswith(cluster)],
        }
    return {what: which for what, which in found.items() if which}


# Who asks, and for what


@pytest.mark.parametrize(
    "arguments",
    [
        ("testbed", "up", "--name", "testinput2"),
        ("testbed", "status", "--name", DIRECTORY.path.name),
        ("status", "--context", "red"),
        ("inspect", "ipcache", "--pin-dir", str(DIRECTORY.pins("red-1"))),
    ],
)
def test_one_who_is_not_root_is_told_so(mesh: Mesh, arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, *arguments],
        capture_output=True,
        text=True,
        env=mesh.environment,
        timeout=30,
        check=False,
    )
    said = refused(done)
    assert "root" in said or "Permission denied" in said
    assert not StateDirectory("testinput2").path.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--name", DIRECTORY.path.name, "--nodes", "2"), "is up with clusters red,green"),
        (("--name", "testinput2", "--clusters", "Red,green"), "cluster name 'Red' is invalid"),
        (("--name", "testinput2", "--clusters", "red,red"), "cluster name 'red' is given twice"),
    ],
)
def test_names_that_are_taken_or_invalid_start_nothing(mesh: Mesh, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(mesh.run("testbed", "up", *arguments))
    assert not StateDirectory("testinput2").path.exists()


@pytest.mark.parametrize("module", ["apiserver.main", "nodeagent.main"])
def test_a_port_in_use_is_named(mesh: Mesh, module: str) -> None:
    taken = f"{_topology().cluster('red').first.address}:6443"
    done = mesh.execute("red-1", *_process(module), "--listen", taken)
    assert done.returncode == 1
    assert f"cannot listen on {taken}: Address already in use: give another --listen HOST:PORT" in done.stderr
    assert "Traceback" not in done.stderr


# Clusters that do not go together


@pytest.mark.parametrize(
    ("cluster_id", "said"),
    [("1", "red and green both have id 1: change cluster-id of one"), ("0", "between 1 and 255")],
)
def test_a_cluster_id_that_is_equal_or_invalid_is_refused(mesh: Mesh, cluster_id: str, said: str) -> None:
    config = ("-n", "clustermesh-system", "patch", "configmap", "clustermesh-config", "--type=merge", "-p")
    mesh.kubectl("green", *config, json.dumps({"data": {"cluster-id": cluster_id}}))
    try:
        assert said in refused(mesh.run(*CONNECT))
    finally:
        mesh.kubectl("green", *config, json.dumps({"data": {"cluster-id": "2"}}))
    assert not left_of_a_connection(mesh)


def test_pod_cidrs_that_overlap_are_refused(mesh: Mesh) -> None:
    def give(cidr: str) -> None:
        patch = json.dumps({"spec": {"podCIDR": cidr, "podCIDRs": [cidr]}})
        mesh.kubectl("green", "patch", "node", "green-1", "--type=merge", "-p", patch)

    give("10.1.1.128/25")
    try:
        said = refused(mesh.run(*CONNECT))
    finally:
        give(_topology().node("green-1").pod_cidr)
    assert "10.1.1.0/24 of red-1 in red and 10.1.1.128/25 of green-1 in green overlap" in said
    assert "one cluster needs other pod CIDRs" in said
    assert not left_of_a_connection(mesh)


# Certificates


@pytest.mark.parametrize(
    ("part", "entry", "said"),
    [
        ("clusters", "cluster", "not signed by the CA of context 'red'"),
        ("users", "user", "renew the client certificate of context 'red'"),
    ],
)
def test_certificates_of_another_cluster_in_the_kubeconfig_are_named(
    mesh: Mesh, tmp_path: Path, part: str, entry: str, said: str
) -> None:
    document = yaml.safe_load(DIRECTORY.kubeconfig.read_text())
    red, green = document[part]
    red[entry] = {**green[entry], "server": red[entry].get("server")}
    wrong = tmp_path / "kubeconfig"
    wrong.write_text(yaml.safe_dump(document))
    for command in (("status", "--context", "red"), CONNECT):
        assert said in refused(mesh.run("--kubeconfig", str(wrong), *command))


@pytest.mark.parametrize(
    ("flag", "file", "said"),
    [
        ("--etcd-ca", "ca.crt", "the server's certificate is not signed by the CA we trust"),
        ("--etcd-cert", "apiserver.crt", "client certificate and key do not fit together"),
    ],
)
def test_certificates_that_the_own_etcd_does_not_take_are_named(mesh: Mesh, flag: str, file: str, said: str) -> None:
    """The process goes on trying: certificates may be renewed under it."""
    command = [*_process("apiserver.main"), "--listen", "127.0.0.1:0", flag, str(DIRECTORY.pki("green") / file)]
    process = subprocess.Popen(mesh.inside("red-1", *command), stderr=subprocess.PIPE, text=True, env=mesh.environment)
    try:
        assert process.stderr is not None
        assert any(said in line for line in process.stderr)
    finally:
        process.terminate()
        process.communicate(timeout=30)


# A peer that cannot be reached


def test_an_unreachable_peer_rolls_everything_back(mesh: Mesh) -> None:
    mesh.testbed("cut", "red", "green")
    try:
        said = refused(mesh.run(*CONNECT, "--timeout", "12"))
    finally:
        mesh.testbed("heal", "red", "green")
    url = _topology().cluster("green").etcd_url
    assert f"red → green: tcp: no answer; check the route and firewalls on the way ({url})" in said
    mesh.eventually(lambda: not left_of_a_connection(mesh))


# Records that do not decode


def test_a_record_that_does_not_decode_is_kept_out_and_shown(connected: Mesh) -> None:
    mesh = connected
    known = mesh.pod_ips("green", "echo")[0]
    address, service = "cilium/state/ip/v1/default/", "cilium/state/services/v1/green/default/"
    good = {key: value("green", key) for key in (address + known, service + "echo")}
    before = mesh.inspect("red-1", "ipcache"), mesh.inspect("red-1", "services")
    broken = {
        address + known: b'{"IP": ',
        address + "10.2.1.200": b"\xff",
        service + "echo": b"[]",
        service + "other": b'{"frontends": 7}',
    }
    reasons = {
        f"addresses/{known}: undecodable addresses record",
        "addresses/10.2.1.200: undecodable addresses record",
        "services/default/echo: undecodable services record",
        "services/default/other: undecodable services record",
    }
    with mesh.load("red/client", mesh.service_ip("red")) as load:
        put("green", broken)
        mesh.eventually(lambda: status(mesh)["peers"][0]["quarantined"]["total"] == len(broken))
        shown = mesh.run("status", "--context", "red")
        assert shown.returncode == 0, "what is kept out does not make the rest less ready"
        assert all(f"kept out: {reason}" in shown.stdout for reason in reasons)
        log = mesh.testbed("logs", "red/apiserver")
        assert all(f"peer green: kept out {reason}" in log for reason in reasons)
        assert value("red", f"cilium/cache/ip/v1/green/{known}") == good[address + known]
        assert (mesh.inspect("red-1", "ipcache"), mesh.inspect("red-1", "services")) == before
    report = load()
    assert report.answered and not report.failed, report
    # Whoever exports them puts right what he finds.
    mesh.crash("green/apiserver")
    mesh.eventually(lambda: status(mesh)["peers"][0]["quarantined"]["total"] == 0)
    assert {key: value("green", key) for key in good} == good
    assert not set(broken) - set(good) & set(keys("green", "cilium/state/"))


def test_a_record_of_the_own_cluster_that_does_not_decode_is_shown(connected: Mesh) -> None:
    mesh, key = connected, "clustermesh/services/v1/default/echo"
    before = mesh.inspect("red-1", "services")
    put("red", {key: b"{"})
    mesh.eventually(lambda: status(mesh)["undecodable"] == {"red-1": [key]})
    assert f"red-1: record {key} of the own etcd does not decode" in mesh.run("status", "--context", "red").stdout
    assert f"kept out record {key} of red" in mesh.testbed("logs", "red-1/agent")
    assert mesh.inspect("red-1", "services") == before
    mesh.crash("red/apiserver")
    mesh.eventually(lambda: not status(mesh)["undecodable"])


# A connection that goes wrong later


def test_another_ca_for_the_peer_is_named_and_connect_puts_it_right(connected: Mesh) -> None:
    mesh = connected
    other = (DIRECTORY.pki("red") / "ca.crt").read_text()
    for bundle, said in (("nonsense", "spec.caBundle: not a certificate"), (other, "tls: the server's certificate")):
        patch = json.dumps({"spec": {"caBundle": bundle}})
        mesh.kubectl("red", "patch", "clustermeshpeer", "green", "--type=merge", "-p", patch)
        mesh.eventually(lambda said=said: said in status(mesh)["peers"][0]["reason"])  # type: ignore[misc]
    assert "check the CA bundle" in refused(mesh.run("status", "--context", "red"))
    report = mesh.requests("red/client", mesh.service_ip("red"), 20)
    assert not report.failed, "what is in the kernel goes on"
    mesh.connect()
    assert status(mesh)["ready"]


def _process(module: str) -> list[str]:
    """A second process of a kind that runs already, with the first one's credentials."""
    red = _topology().cluster("red")
    authority = credentials.pair(DIRECTORY, red, credentials.AUTHORITY)
    who = credentials.API_SERVER if module == "apiserver.main" else credentials.AGENT
    own = credentials.pair(DIRECTORY, red, who)
    files = {"--etcd-ca": authority.cert, "--etcd-cert": own.cert, "--etcd-key": own.key}
    flags = [f"{flag}={file}" for flag, file in files.items()]
    flags += [f"--cluster-name={red.name}", f"--cluster-id={red.id}", f"--etcd-endpoints={red.etcd_url}"]
    if module == "apiserver.main":
        return [sys.executable, "-m", module, *flags, f"--kubeconfig={DIRECTORY.kubeconfig}", "--context=red"]
    pins = DIRECTORY.pins(red.first.name)
    return [sys.executable, "-m", module, "run", *flags, f"--node-name={red.first.name}", f"--pin-dir={pins}"]


def _topology() -> Any:
    record = DIRECTORY.load()
    assert record is not None
    return record.topology
