"""Says so when etcd can be spoken to past its users: by the HTTP gateway, which knows no client certificates."""

import asyncio
import logging
from collections.abc import Sequence
from typing import NoReturn

from apiserver.health import Health
from clustermesh.kvstore.errors import KvError
from clustermesh.kvstore.gateway import gateway_answers
from clustermesh.kvstore.tls import TlsFiles

log = logging.getLogger(__name__)

CHECK_EVERY = 60.0  # seconds; etcd may come back with other flags
_CLAIM = "etcd gateway"


class GatewayCheck:
    """Not ready while any endpoint's gateway answers. An etcd that cannot be asked is others' affair."""

    def __init__(self, endpoints: Sequence[str], tls: TlsFiles | None, health: Health) -> None:
        self._endpoints = endpoints
        self._tls = tls
        self._health = health

    async def run(self) -> NoReturn:
        while True:
            await self.check()
            await asyncio.sleep(CHECK_EVERY)

    async def check(self) -> None:
        for url in self._endpoints:
            try:
                if not await gateway_answers(url, self._tls):
                    continue
            except KvError as error:
                log.debug("gateway: %s", error)
                continue
            problem = f"{url} answers HTTP at /v3, past all users: start etcd with --enable-grpc-gateway=false"
            if not self._problem_known(problem):
                log.error("%s: %s", _CLAIM, problem)
            self._health.set(_CLAIM, False, problem)
            return
        self._health.set(_CLAIM, True)

    def _problem_known(self, problem: str) -> bool:
        claim = self._health.claims.get(_CLAIM)
        return claim is not None and claim.detail == problem
