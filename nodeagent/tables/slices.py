"""The endpoint slices of a peer that exports no service records, by the service they belong to."""

from clustermesh.wire.endpoint_slices import ClusterEndpointSlice
from clustermesh.wire.records import PortMaps
from nodeagent.compile.slices import SERVICE_NAME, backends_of, merge


class Slices:
    """One change merges the slices of one service anew, whatever the number of services."""

    def __init__(self) -> None:
        self._service_of: dict[str, str | None] = {}  # slice → service; None for one that belongs to none
        self._backends: dict[str, dict[str, PortMaps]] = {}  # service → slice → backends

    def __len__(self) -> int:
        return len(self._service_of)

    def put(self, name: str, record: ClusterEndpointSlice | None) -> dict[str, PortMaps | None]:
        """A slice, or None when it is gone. Both names are namespace/name.

        Returns the services that it changes, each with all its backends now, or None when it has no slice any more.
        """
        service = None
        before = self._service_of.pop(name, None)
        if record is not None:
            label = record.labels.get(SERVICE_NAME)
            service = self._service_of[name] = f"{record.namespace}/{label}" if label else None
        if before is not None and before != service:
            slices = self._backends[before]
            del slices[name]
            if not slices:
                del self._backends[before]
        if record is not None and service is not None:
            self._backends.setdefault(service, {})[name] = backends_of(record)
        return {changed: self._merged(changed) for changed in (before, service) if changed is not None}

    def _merged(self, service: str) -> PortMaps | None:
        slices = self._backends.get(service)
        return None if slices is None else merge(slices[name] for name in sorted(slices))
