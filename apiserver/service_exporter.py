"""Services, their slices and their ServiceExports, from Kubernetes' changes to what stands in etcd."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet

from apiserver.backends import Backends
from apiserver.cluster import ClusterIdentity
from apiserver.outbox import LEADING_TO_ADDRESSES, Outbox
from apiserver.service_exports import ExportTable
from apiserver.services import ServiceName, ServiceTable, SliceName, Touched
from clustermesh.kube.objects import EndpointSlice, Service, ServiceExport
from clustermesh.kube.reflector import KubeBatch
from clustermesh.wire import endpoint_slices, keys, private, records
from clustermesh.wire.keys import Kind

log = logging.getLogger(__name__)

# Seconds that an address stays for the sake of a service that still leads to it: whoever keeps it in a slice for longer
# is not waited for.
_PATIENCE = 1.0


class ServiceExporter:
    """`ready` tells whether all that Services consist of is known: half of one looks like a deletion.

    `pods_first` waits for the addresses that services may lead to; `is_global` tells whether peers may know of a
    namespace; `slices` whether endpoint slices are written beside the services.
    """

    def __init__(
        self,
        cluster: ClusterIdentity,
        outbox: Outbox,
        *,
        ready: Callable[[], bool],
        pods_first: Callable[[], Awaitable[None]],
        is_global: Callable[[str], bool],
        slices: bool,
    ) -> None:
        self._cluster = cluster
        self._outbox = outbox
        self._ready = ready
        self._pods_first = pods_first
        self._is_global = is_global
        self._slices = slices
        self._services = ServiceTable()
        self._exports = ExportTable()
        self._touched = Touched()
        self._backends = Backends()
        self._exported = asyncio.Condition()  # told when something was handed to the writers

    # What changes

    async def on_services(self, batch: KubeBatch[Service]) -> None:
        for ref in batch.deletes:
            self._touched |= self._services.remove_service(ref)
        for service in batch.upserts:
            self._touched |= self._services.set_service(service)
        await self.export()

    async def on_slices(self, batch: KubeBatch[EndpointSlice]) -> None:
        for ref in batch.deletes:
            self._touched |= self._services.remove_slice(ref)
        for piece in batch.upserts:
            self._touched |= self._services.set_slice(piece)
        await self.export()

    async def on_exports(self, batch: KubeBatch[ServiceExport]) -> None:
        for ref in batch.deletes:
            self._touched |= Touched(self._exports.remove_export(ref))
        for export in batch.upserts:
            self._touched |= Touched(self._exports.set_export(export))
        await self.export()

    def touch(self, namespace: str) -> None:
        """The namespace has become global, or is not any more; `export` will tell peers."""
        self._touched |= self._services.of_namespace(namespace)
        self._touched |= Touched(self._exports.of_namespace(namespace))

    # What follows from it

    async def export(self) -> None:
        """Compile what has changed and hand it to the writers."""
        if not self._touched or not self._ready():
            return
        await self._pods_first()
        # Nothing is awaited from here on, so that the latest state is what is written last.
        touched, self._touched = self._touched, Touched()
        for name in touched.services:
            self._export(name)
        for slice_name in touched.slices if self._slices else ():
            self._export_slice(slice_name)
        async with self._exported:
            self._exported.notify_all()

    async def withdraw(self, addresses: AbstractSet[str]) -> None:
        """Wait until peers know of no service that leads to any of these addresses, nor are about to."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE), self._exported:
                await self._exported.wait_for(lambda: not self._leads_to(addresses))
        await self._outbox.flush(*LEADING_TO_ADDRESSES)

    def _leads_to(self, addresses: AbstractSet[str]) -> bool:
        return not self._backends.none_of(addresses) or any(
            not addresses.isdisjoint(self._services.addresses(name)) for name in self._touched.services
        )

    def _export(self, name: ServiceName) -> None:
        record, local, export = None, None, None
        if self._is_global(name.namespace):
            record, local = self._services.compile(self._cluster, name)
            export = self._compile_export(name)
        cluster, put = self._cluster.name, self._outbox.set
        put(Kind.SERVICES, keys.service(cluster, *name), None if record is None else records.encode(record))
        put(Kind.SERVICES, keys.local_service(*name), None if local is None else private.encode(local))
        put(
            Kind.SERVICE_EXPORTS,
            keys.service_export(cluster, *name),
            None if export is None else records.encode(export),
        )
        self._backends.set(name, () if record is None else record.backends)

    def _export_slice(self, name: SliceName) -> None:
        record = self._services.compile_slice(self._cluster, name) if self._is_global(name.namespace) else None
        value = None if record is None else endpoint_slices.encode(record)
        self._outbox.set(Kind.ENDPOINT_SLICES, keys.endpoint_slice(self._cluster.name, *name), value)

    def _compile_export(self, name: ServiceName) -> records.ServiceExport | None:
        try:
            return self._exports.compile(self._cluster, name, self._services.service(name))
        except ValueError as error:
            log.error("ServiceExport %s/%s is not exported: %s", *name, error)
            return None
