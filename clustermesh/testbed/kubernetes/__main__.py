"""Run the stand-in: `python -m clustermesh.testbed.kubernetes --cluster-name red --listen 127.0.0.1:6443 …`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from ipaddress import IPv4Network
from pathlib import Path

from clustermesh.kvstore.connection import Connection, TlsFiles

from .server import ApiServer, serving, tls_context


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m clustermesh.testbed.kubernetes", description=__doc__)
    parser.add_argument("--cluster-name", default="")
    parser.add_argument("--etcd-endpoints", required=True, help="comma separated https://host:port")
    parser.add_argument("--listen", required=True, metavar="IP:PORT")
    parser.add_argument("--service-cidr", type=IPv4Network, default=IPv4Network("10.101.0.0/16"))
    for name in ("etcd-ca", "etcd-cert", "etcd-key", "tls-cert", "tls-key", "client-ca"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="FILE")
    return parser.parse_args()


async def _run(arguments: argparse.Namespace) -> None:
    host, _, port = arguments.listen.rpartition(":")
    context = tls_context(arguments.tls_cert, arguments.tls_key, arguments.client_ca)
    tls = TlsFiles(arguments.etcd_ca, arguments.etcd_cert, arguments.etcd_key)
    async with Connection(arguments.etcd_endpoints.split(","), tls) as connection:
        server = ApiServer(connection, arguments.service_cidr)
        async with serving(server, host.strip("[]"), int(port), context):
            task = asyncio.create_task(server.run())
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)
            logging.getLogger(__package__).info("serving cluster %s on %s", arguments.cluster_name, arguments.listen)
            await task


def main() -> int:
    """Returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log = logging.getLogger(__package__)
    arguments = _arguments()
    try:
        asyncio.run(_run(arguments))
    except asyncio.CancelledError:
        log.info("stopped")
    except OSError as error:  # a certificate file is missing, or the port is taken
        log.error("cannot serve on %s: %s", arguments.listen, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
