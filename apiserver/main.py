"""`clustermesh-apiserver`: exports this cluster to its etcd and mirrors its peers there."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from apiserver import collector
from apiserver.cluster import ClusterIdentity
from apiserver.leadership import LeadershipLost, Timing
from apiserver.replica import Options, Replica, default_identity
from apiserver.server import ListenAddress, ListenError
from clustermesh.kube import config
from clustermesh.kube.errors import ConfigError, CredentialError, KubeError
from clustermesh.kvstore.connection import Connection, TlsFiles
from clustermesh.kvstore.errors import KvError
from clustermesh.wire.errors import LabelPatternError
from clustermesh.wire.label_filter import LabelFilter
from clustermesh.wire.names import check_cluster_name

log = logging.getLogger(__name__)

_EXPECTED = (ConfigError, CredentialError, KubeError, KvError, ListenError, LeadershipLost)


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


def _labels(_: click.Context, __: click.Parameter, value: str) -> LabelFilter:
    try:
        return LabelFilter.parse(value)
    except LabelPatternError as error:
        raise click.BadParameter(str(error)) from None


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
@click.option(
    "--labels",
    "relevant_labels",
    default="",
    callback=_labels,
    help="Labels that make an identity, as patterns [SOURCE:][!]REGEX separated by spaces or commas, on top of Cilium's"
    " defaults. One pattern without ! and only what such patterns match counts.",
)
@click.option(
    "--default-global-namespace/--no-default-global-namespace",
    default=True,
    help="Whether peers may know of namespaces without the annotation clustermesh.cilium.io/global.",
)
@click.option(
    "--endpoint-slices/--no-endpoint-slices",
    default=True,
    help="Export endpoint slices beside the services; Cilium reads them from 1.20 on.",
)
@click.option(
    "--identity",
    help="This replica's name among several, the same after a restart. Default: POD_NAME, or host name and --listen.",
)
@click.option(
    "--leader-elect/--no-leader-elect",
    default=True,
    help="Lead only while holding a Lease in Kubernetes. Without it this must be the only replica.",
)
@click.option(
    "--leader-elect-lease-duration",
    type=click.IntRange(1, 3600),
    default=15,
    help="Seconds that a leader is not heard of until another replica leads.",
)
@click.option(
    "--leader-elect-renew-deadline",
    type=click.FloatRange(0.1),
    default=10.0,
    help="Seconds a renewal may take.",
)
@click.option(
    "--leader-elect-retry-period", type=click.FloatRange(0.1), default=2.0, help="Seconds between two renewals."
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
    relevant_labels: LabelFilter,
    default_global_namespace: bool,
    endpoint_slices: bool,
    identity: str | None,
    leader_elect: bool,
    leader_elect_lease_duration: int,
    leader_elect_renew_deadline: float,
    leader_elect_retry_period: float,
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
    try:
        timing = Timing(leader_elect_lease_duration, leader_elect_renew_deadline, leader_elect_retry_period)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--leader-elect-lease-duration") from None
    options = Options(
        cluster=cluster,
        access=access,
        etcd_endpoints=etcd_endpoints,
        etcd_tls=_tls(etcd_endpoints, etcd_ca, etcd_cert, etcd_key),
        listen=listen,
        lease_ttl=lease_ttl,
        heartbeat=heartbeat,
        identity_grace=identity_grace,
        relevant_labels=relevant_labels,
        default_global=default_global_namespace,
        endpoint_slices=endpoint_slices,
        identity=identity or default_identity(listen),
        election=timing if leader_elect else None,
    )
    sys.exit(asyncio.run(_main(options)))


def _tls(endpoints: tuple[str, ...], ca: Path | None, cert: Path | None, key: Path | None) -> TlsFiles | None:
    if ca and cert and key:
        return TlsFiles(ca, cert, key)
    if ca or cert or key or any(endpoint.startswith("https://") for endpoint in endpoints):
        raise click.UsageError("etcd by TLS needs all of --etcd-ca, --etcd-cert and --etcd-key")
    return None


async def _main(options: Options) -> int:
    """Exit status: 0 after SIGTERM or SIGINT, 1 after a failure, which is named once."""
    collector.relax()
    running = asyncio.create_task(Replica(options).run())
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
