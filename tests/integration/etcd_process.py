"""A real etcd for tests: TLS, client certificates, a data directory of its own, and ways to hurt it."""

import asyncio
import contextlib
import itertools
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from clustermesh.kvstore.auth import AuthAdmin
from clustermesh.kvstore.connection import Connection, TlsFiles, TlsPem
from clustermesh.kvstore.errors import KvError
from clustermesh.kvstore.rpc import etcd_pb2 as pb
from clustermesh.pki import CertificateAuthority, KeyPair
from clustermesh.testbed import namespaces

SERVER_NAME = "red.mesh.cilium.io"
START_TIMEOUT = 30.0


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on; they may be taken again before they are used, which start() survives."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


class EtcdProcess:
    """One member. start/stop/kill keep the data and the port; wipe forgets the data.

    hosts: addresses to listen on; tests reach it by the first. namespace: the network namespace it runs in, or None
    for the one of the test.
    """

    def __init__(
        self,
        directory: Path,
        *,
        options: Sequence[str] = (),
        hosts: Sequence[str] = ("127.0.0.1",),
        namespace: str | None = None,
        ca: CertificateAuthority | None = None,
    ) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.hosts = list(hosts)
        self.namespace = namespace
        self.ca = ca or CertificateAuthority.create("red")
        self.ca_file = directory / "ca.crt"
        self.ca_file.write_bytes(self.ca.cert)
        self.options = list(options)
        self.server = self._write_pair("server", self.issue_server())
        self.port, self._peer_port = free_ports(2)
        self._process: asyncio.subprocess.Process | None = None
        self._connections: list[Connection] = []

    @property
    def endpoint(self) -> str:
        return self.endpoints[0]

    @property
    def endpoints(self) -> list[str]:
        return [f"https://{host}:{self.port}" for host in self.hosts]

    def issue_server(self) -> KeyPair:
        return self.ca.issue_server("etcd", [SERVER_NAME, "localhost", *self.hosts])

    def _write_pair(self, name: str, pair: KeyPair) -> TlsFiles:
        files = TlsFiles(self.ca_file, self.directory / f"{name}.crt", self.directory / f"{name}.key")
        files.key.write_bytes(pair.key)
        files.cert.write_bytes(pair.cert)
        return files

    def client_pem(self, cn: str = "root") -> TlsPem:
        """Credentials of a user."""
        pair = self.ca.issue_client(cn)
        return TlsPem(self.ca.cert, pair.cert, pair.key)

    def client_files(self, cn: str = "root") -> TlsFiles:
        """The same as files, written anew at each call."""
        return self._write_pair(f"client-{cn}", self.ca.issue_client(cn))

    def connection(self, cn: str = "root", *, endpoints: Sequence[str] | None = None) -> Connection:
        """A connection as a user; closed together with this etcd."""
        connection = Connection(endpoints or [self.endpoint], self.client_pem(cn))
        self._connections.append(connection)
        return connection

    async def start(self) -> None:
        """Start and wait until it serves."""
        self._process = await self._spawn()
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._serving()
        except TimeoutError:
            await self.kill()
            raise RuntimeError(f"etcd does not start:\n{(self.directory / 'etcd.log').read_text()[-2000:]}") from None

    async def _spawn(self) -> asyncio.subprocess.Process:
        tls = self.server
        peer = f"http://127.0.0.1:{self._peer_port}"
        command = [
            "etcd",
            "--name=only",
            f"--data-dir={self.data}",
            f"--listen-client-urls={','.join(self.endpoints)}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=only={peer}",
            f"--cert-file={tls.cert}",
            f"--key-file={tls.key}",
            f"--trusted-ca-file={tls.ca}",
            "--client-cert-auth",
            "--enable-grpc-gateway=false",
            "--log-level=warn",
            *self.options,
        ]
        if self.namespace is not None:
            command = namespaces.entering(self.namespace, command)
        with (self.directory / "etcd.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)

    async def _serving(self) -> None:
        assert self._process is not None
        while True:
            if self._process.returncode is not None:
                raise RuntimeError(f"etcd ended:\n{(self.directory / 'etcd.log').read_text()[-2000:]}")
            try:
                async with Connection([self.endpoint], self.client_pem()) as probe:
                    if (await probe.status()).leader:
                        await probe.current_revision()
                        return
            except KvError:
                pass
            await asyncio.sleep(0.05)  # a listening socket announces itself to nobody

    async def stop(self) -> None:
        """SIGTERM, as an orderly restart does."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL, as a crash does."""
        await self._end(signal.SIGKILL)

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def freeze(self) -> None:
        """SIGSTOP: the kernel still accepts connections, nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Forget all data; the next start makes a new, empty store. Only while stopped."""
        assert self._process is None
        shutil.rmtree(self.data, ignore_errors=True)

    def save(self) -> Path:
        """A copy of the data directory, to be given to restore(), instead of an earlier one. Only while stopped."""
        assert self._process is None
        copy = self.directory / "saved"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.data, copy)
        return copy

    def restore(self, saved: Path) -> None:
        """Go back to an older copy of the data. Only while stopped."""
        self.wipe()
        shutil.copytree(saved, self.data)

    async def compact(self) -> int:
        """Forget the whole history; returns the revision that is left."""
        async with self.connection() as root:
            revision = await root.current_revision()
            await root.compact(revision, physical=True)
            return revision

    async def fill(self) -> None:
        """Write junk until etcd takes nothing any more. It has to be started with a small --quota-backend-bytes."""
        async with self.connection() as root:
            with contextlib.suppress(KvError):
                for number in itertools.count():
                    await root.put(f"junk/{number}", bytes(500_000))
            assert "NOSPACE" in " ".join((await root.status()).alarms)

    async def make_room(self) -> None:
        """What an operator does about it: throw away, compact, defragment, disarm."""
        async with self.connection() as root:
            await root.delete_prefix("junk/")
            await root.compact(await root.current_revision(), physical=True)
            await root.unary(lambda session: session.maintenance.Defragment, pb.DefragmentRequest())
            armed = await root.unary(lambda session: session.maintenance.Alarm, pb.AlarmRequest())
            for alarm in armed.alarms:
                disarm = pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm)
                await root.unary(lambda session: session.maintenance.Alarm, disarm)

    async def enable_auth(self) -> None:
        """Turn on users and roles; afterwards only CN root may do everything."""
        async with self.connection() as root:
            admin = AuthAdmin(root)
            await admin.ensure_user("root", ["root"])
            await admin.enable()

    def expired(self, pem: bytes) -> bytes:
        """A certificate of this etcd's CA, but of the day before yesterday."""
        old = x509.load_pem_x509_certificate(pem)
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            issuer_name=old.issuer,
            subject_name=old.subject,
            public_key=old.public_key(),
            serial_number=old.serial_number,
            not_valid_before=now - timedelta(days=2),
            not_valid_after=now - timedelta(days=1),
            extensions=list(old.extensions),
        )
        key = serialization.load_pem_private_key(self.ca.key, None)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]

    async def revoke_lease(self, lease_id: int) -> None:
        """Take a lease and its keys away."""
        async with self.connection() as root:
            await root.unary(lambda session: session.lease.LeaseRevoke, pb.LeaseRevokeRequest(ID=lease_id))

    async def close(self) -> None:
        """End the process and all connections that were made here. Its log stays; its data take 130 MB and go."""
        for connection in self._connections:
            await connection.close()
        await self.kill()
        shutil.rmtree(self.data, ignore_errors=True)


@asynccontextmanager
async def running_etcd(
    directory: Path, *, ca: CertificateAuthority | None = None, options: Sequence[str] = ()
) -> AsyncIterator[EtcdProcess]:
    """A running etcd whose files lie in `directory`, which is made; ended whatever happens."""
    directory.mkdir()
    process = EtcdProcess(directory, ca=ca, options=options)
    try:
        await process.start()
        yield process
    finally:
        await process.close()
