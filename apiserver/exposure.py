"""Says so when users cannot keep etcd's clients apart: because of its version, or because it answers by HTTP too.

Neither makes this process less ready: what it serves is right, and taking it away would protect nobody.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import NoReturn

from prometheus_client import CollectorRegistry, Gauge

from apiserver.health import Health
from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.errors import KvError
from clustermesh.kvstore.gateway import gateway_answers
from clustermesh.kvstore.tls import TlsFiles

log = logging.getLogger(__name__)

CHECK_EVERY = 60.0  # seconds; etcd may come back with other flags, or be another one
GATEWAY, VERSION = "gateway", "version"

# From these on a transaction inside a transaction, and a watch without an end, are asked for their rights as well
# (GHSA-rfx7-8w68-q57q, GHSA-x35m-3gp4-4fh5, GHSA-q8m4-xhhv-38mg, GHSA-xg4h-6gfc-h4m8).
_FIXED: Mapping[tuple[int, int], int] = {(3, 5): 33, (3, 6): 14, (3, 7): 1}


def keeps_users_apart(version: str) -> bool:
    """Whether an etcd of that version holds every client to its user's rights; unknown versions do."""
    try:
        major, minor, patch = (int(part) for part in version.split("-")[0].split("."))
    except ValueError:
        return True
    if (major, minor) < min(_FIXED):
        return False
    return patch >= _FIXED.get((major, minor), 0)


class ExposureCheck:
    """Looks at every member now and then. An etcd that cannot be asked is others' affair."""

    def __init__(
        self, endpoints: Sequence[str], tls: TlsFiles | None, health: Health, registry: CollectorRegistry
    ) -> None:
        self._endpoints = endpoints
        self._tls = tls
        self._health = health
        self._said: dict[str, str] = {}
        self._exposed = Gauge(
            "clustermesh_apiserver_etcd_exposed",
            "1 if etcd's users do not keep its clients apart, and why",
            ("reason",),
            registry=registry,
        )
        for reason in (GATEWAY, VERSION):
            self._exposed.labels(reason)

    async def run(self) -> NoReturn:
        while True:
            await self.check()
            await asyncio.sleep(CHECK_EVERY)

    async def check(self) -> None:
        """One look at all members."""
        found = {GATEWAY: "", VERSION: ""}
        for url in self._endpoints:
            try:
                if await gateway_answers(url, self._tls):
                    found[GATEWAY] = f"etcd {url} answers by HTTP too: start it with --enable-grpc-gateway=false"
                async with Connection([url], self._tls) as member:
                    version = (await member.status()).version
            except KvError as error:
                log.debug("exposure: %s", error)
                return
            if not keeps_users_apart(version):
                fixed = ", ".join(f"{major}.{minor}.{patch}" for (major, minor), patch in _FIXED.items())
                found[VERSION] = (
                    f"etcd {url} is version {version}, whose users can be got round by any client that holds a"
                    f" certificate of its CA: run {fixed} or later before you mesh with clusters you do not trust"
                )
        for reason, problem in found.items():
            self._tell(reason, problem)

    def _tell(self, reason: str, problem: str) -> None:
        self._exposed.labels(reason).set(bool(problem))
        self._health.note(f"etcd {reason}", problem)
        if problem and self._said.get(reason) != problem:
            log.warning("%s", problem)
        self._said[reason] = problem
