"""`clustermesh-apiserver`: exports this cluster to its etcd and mirrors its peers there."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from apiserver.cluster import ClusterIdentity
from apiserver.exporter import Exporter
from apiserver.health import Health
from apiserver.metrics import Metrics
from apiserver.peers import PeerManager
from apiserver.server import ListenAddress, ListenError, Server
from apiserver.users import EtcdUsers
from clustermesh.kube import config
from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import ConfigError, CredentialError, KubeError
from clustermesh.kvstore.connection import Connection, TlsFiles
from clustermesh.kvstore.errors import KvError
from clustermesh.kvstore.lease import Lease
from clustermesh.wire.names import check_cluster_name

log = logging.getLogger(__name__)

# The lease has a number of its own, so that a restarted process finds its keys instead of writing them again.
_LEASE_ID_BASE = 0x636D_0000_0000

_EXPECTED = (ConfigError, CredentialError, KubeError, KvError, ListenError)


@dataclass(frozen=True, slots=True)
class Options:
    """The checked command line."""

    cluster: ClusterIdentity
    access: config.ClusterAccess
    etcd_endpoints: tuple[str, ...]
    etcd_tls: TlsFiles | None
    listen: ListenAddress
    lease_ttl: int  # seconds
    heartbeat: float  # seconds
    identity_grace: float  # seconds


def _cluster_name(_: click.Context, __: click.Parameter, value: str) -> str:
    try:
        check_cluster_name(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


def _listen(_: click.Context, __: click.Parameter, value: str) -> ListenAddress:
    try:
        return ListenAddress.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _endpoints(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    endpoints = tuple(item.strip() for text in value for item in text.split(",") if item.strip())
    try:
        Connection(endpoints, None)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return endpoints


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(context_settings={"show_default": True})
@click.option("--cluster-name", required=True, callback=_cluster_name, help="Name of this cluster in the mesh.")
@click.option("--cluster-id", required=True, type=int, help="Number of this cluster in the mesh, from 1 on.")
@click.option(
    "--max-connected-clusters",
    type=click.Choice(["255", "511"]),
    default="255",
    help="Size of the mesh; the same in all its clusters, for ever.",
)
@click.option("--kubeconfig", type=_FILE, help="Default: KUBECONFIG, ~/.kube/config or the pod's service account.")
@click.option("--context", help="Context of the kubeconfig. Default: its current one.")
@click.option(
    "--etcd-endpoints",
    required=True,
    multiple=True,
    callback=_endpoints,
    help="https://HOST:PORT, several separated by commas.",
)
@click.option("--etcd-ca", type=_FILE, help="CA that signed etcd's certificate.")
@click.option("--etcd-cert", type=_FILE, help="Our certificate, CN admin-<cluster name>.")
@click.option("--etcd-key", type=_FILE, help="Its key.")
@click.option("--listen", default="127.0.0.1:9880", callback=_listen, help="HOST:PORT of /healthz, /readyz, /metrics.")
@click.option(
    "--lease-ttl",
    type=click.IntRange(25, 86400),
    default=900,
    help="Seconds that what we wrote outlives us.",
)
@click.option("--heartbeat", type=click.FloatRange(1, 110), default=60.0, help="Seconds between heartbeats.")
@click.option(
    "--identity-grace", type=click.FloatRange(1), default=900.0, help="Seconds that an unused identity is kept."
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def cli(
    cluster_name: str,
    cluster_id: int,
    max_connected_clusters: str,
    kubeconfig: Path | None,
    context: str | None,
    etcd_endpoints: tuple[str, ...],
    etcd_ca: Path | None,
    etcd_cert: Path | None,
    etcd_key: Path | None,
    listen: ListenAddress,
    lease_ttl: int,
    heartbeat: float,
    identity_grace: float,
    verbose: bool,
) -> None:
    """Export this cluster to its etcd, and mirror its peers there."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        cluster = ClusterIdentity(cluster_name, cluster_id, int(max_connected_clusters))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--cluster-id") from None
    try:
        access = config.load(kubeconfig, context)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    options = Options(
        cluster=cluster,
        access=access,
        etcd_endpoints=etcd_endpoints,
        etcd_tls=_tls(etcd_endpoints, etcd_ca, etcd_cert, etcd_key),
        listen=listen,
        lease_ttl=lease_ttl,
        heartbeat=heartbeat,
        identity_grace=identity_grace,
    )
    sys.exit(asyncio.run(_main(options)))


def _tls(endpoints: tuple[str, ...], ca: Path | None, cert: Path | None, key: Path | None) -> TlsFiles | None:
    if ca and cert and key:
        return TlsFiles(ca, cert, key)
    if ca or cert or key or any(endpoint.startswith("https://") for endpoint in endpoints):
        raise click.UsageError("etcd by TLS needs all of --etcd-ca, --etcd-cert and --etcd-key")
    return None


async def serve(options: Options) -> None:
    """Run everything until cancelled."""
    health = Health()
    metrics = Metrics()
    async with (
        KubeClient(options.access) as client,
        Connection(options.etcd_endpoints, options.etcd_tls) as connection,
    ):
        users = EtcdUsers(connection, options.cluster.name, health)
        # Without a lease nothing is written, so access control is in place before the first record is.
        lease = Lease(connection, options.lease_ttl, _LEASE_ID_BASE + options.cluster.id, prepare=users.ensure)
        exporter = Exporter(
            cluster=options.cluster,
            client=client,
            connection=connection,
            lease=lease,
            health=health,
            metrics=metrics,
            heartbeat=options.heartbeat,
            grace=options.identity_grace,
        )
        peers = PeerManager(
            cluster=options.cluster, client=client, connection=connection, lease=lease, users=users, health=health
        )
        metrics.watch_peers(peers.figures)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Server(options.listen, health, metrics.registry).run())
            tasks.create_task(lease.run())
            tasks.create_task(exporter.run())
            tasks.create_task(peers.run())


async def _main(options: Options) -> int:
    """Exit status: 0 after SIGTERM or SIGINT, 1 after a failure, which is named once."""
    running = asyncio.create_task(serve(options))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stopper(running, number))
    log.info("cluster %s (id %d), Kubernetes at %s", options.cluster.name, options.cluster.id, options.access.server)
    try:
        await running
    except asyncio.CancelledError:
        return 0
    except BaseExceptionGroup as group:
        return _report(group)
    return 0


def _stopper(running: asyncio.Task[None], number: signal.Signals) -> Callable[[], None]:
    def stop() -> None:
        log.info("%s: stopping; what is in etcd stays for the next start", number.name)
        running.cancel()

    return stop


def _report(group: BaseExceptionGroup[BaseException]) -> int:
    """An expected failure gets one line, anything else its traceback."""
    causes = list(_leaves(group))
    for cause in causes:
        if isinstance(cause, _EXPECTED):
            log.error("%s", cause)
        else:
            log.critical("unexpected failure", exc_info=cause)
    return 1


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def main() -> None:
    cli()


if __name__ == "__main__":
    main()
