"""Whether a cluster's etcd shows a certificate in the name or address by which others are told to reach it.

Our mirrors ask for `<cluster>.mesh.cilium.io` wherever they connect to. A Cilium client asks for the host of the
endpoint: other names it can only be taught by values of its Helm chart and a restart of its pods.
"""

import asyncio
import ssl
from collections.abc import Sequence
from urllib.parse import urlsplit

from clustermesh.cli.checks import Check, Result
from clustermesh.cli.mesh import ClusterView

_PATIENCE = 4.0  # seconds


async def check_server_names(cluster: ClusterView) -> list[Check]:
    """One check of all the endpoints; what cannot be reached from here is a warning."""
    name = f"{cluster.name}: its etcd's certificate names its endpoints"
    answers = await asyncio.gather(*(_ask(endpoint, cluster.authority) for endpoint in cluster.endpoints))
    return [_sum_up(name, [answer for answer in answers if answer is not None])]


def _sum_up(name: str, answers: Sequence[Check]) -> Check:
    wrong = [answer for answer in answers if answer.result is Result.FAILED] or list(answers)
    if not wrong:
        return Check(name, Result.OK)
    return Check(name, wrong[0].result, "; ".join(answer.detail for answer in wrong))


async def _ask(endpoint: str, authority: str) -> Check | None:
    """What is wrong with an endpoint, None if nothing."""
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port or 2379
        context = ssl.create_default_context(cadata=authority)
    except (ValueError, ssl.SSLError) as error:
        return Check(endpoint, Result.FAILED, f"{endpoint}: {error}")
    try:
        async with asyncio.timeout(_PATIENCE):
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        remedy = f"give its server certificate {host} as a further name, signed by this cluster's CA"
        return Check(endpoint, Result.FAILED, f"{endpoint}: {error.verify_message}: {remedy}")
    except ssl.SSLError:
        return None  # it asks for a client certificate, after its own was found good
    except (OSError, TimeoutError):
        return Check(endpoint, Result.WARNING, f"{endpoint} cannot be asked from here, its names are not checked")
    writer.close()
    return None
