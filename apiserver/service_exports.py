"""ServiceExport and the Service of its name → the record by which peers import it (MCS-API). No effects.

The record says that the Service is exported, and how it looks. Its backends travel as those of any global service do:
a controller of MCS-API makes a derived Service in each cluster and marks it global.
"""

import msgspec

from apiserver.cluster import ClusterIdentity
from apiserver.services import ServiceName
from clustermesh.kube.objects import ObjectRef, Service, ServiceExport, ServicePort
from clustermesh.wire import records
from clustermesh.wire.records import ClientIpConfig, ExportedPort, SessionAffinityConfig

_CLIENT_IP_TIMEOUT = 10800  # seconds; what Kubernetes fills in
# Others are refused by Cilium's reader, together with the whole record.
_TRAFFIC_DISTRIBUTIONS = ("PreferClose", "PreferSameZone", "PreferSameNode")


def compile_export(
    cluster: ClusterIdentity, service: Service | None, export: ServiceExport
) -> records.ServiceExport | None:
    """None when there is nothing to export: no such Service, or one that is a name elsewhere.

    What Kubernetes fills in anyway, IPv4 and traffic to all nodes, is left out: the record is then what every version
    of Cilium writes and reads. So are both families, which narrow nothing. ValueError for an export without a usable
    creation time.
    """
    if service is None or service.spec.type == "ExternalName":
        return None
    spec, wishes = service.spec, export.spec
    return records.ServiceExport(
        cluster=cluster.name,
        name=service.name,
        namespace=service.namespace,
        annotations=(wishes and wishes.exported_annotations) or msgspec.UNSET,
        labels=(wishes and wishes.exported_labels) or msgspec.UNSET,
        export_creation_timestamp=export.metadata.creation_timestamp or "",
        ports=tuple(_port(port) for port in spec.ports or ()),
        type=records.HEADLESS if spec.cluster_ip == "None" else records.CLUSTER_SET_IP,
        session_affinity="ClientIP" if _sticks(service) else "None",
        session_affinity_config=_affinity_config(service),
        ip_families=spec.ip_families if spec.ip_families == ("IPv6",) else msgspec.UNSET,
        internal_traffic_policy="Local" if spec.internal_traffic_policy == "Local" else msgspec.UNSET,
        traffic_distribution=(
            spec.traffic_distribution if spec.traffic_distribution in _TRAFFIC_DISTRIBUTIONS else msgspec.UNSET
        ),
    )


def _port(port: ServicePort) -> ExportedPort:
    return ExportedPort(
        name=port.name,
        protocol=port.protocol,
        app_protocol=msgspec.UNSET if port.app_protocol is None else port.app_protocol,
        port=port.port,
    )


def _sticks(service: Service) -> bool:
    return service.spec.session_affinity == "ClientIP"


def _affinity_config(service: Service) -> SessionAffinityConfig | msgspec.UnsetType:
    config = service.spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config is not None and config.client_ip is not None else None
    if seconds is None and _sticks(service):
        seconds = _CLIENT_IP_TIMEOUT
    return msgspec.UNSET if seconds is None else SessionAffinityConfig(ClientIpConfig(seconds))


class ExportTable:
    """The ServiceExports there are; every change names the Services it touches."""

    def __init__(self) -> None:
        self._exports: dict[ServiceName, ServiceExport] = {}

    def __len__(self) -> int:
        return len(self._exports)

    def set_export(self, export: ServiceExport) -> set[ServiceName]:
        name = ServiceName(export.namespace, export.name)
        self._exports[name] = export
        return {name}

    def remove_export(self, ref: ObjectRef) -> set[ServiceName]:
        name = ServiceName(ref.namespace, ref.name)
        return {name} if self._exports.pop(name, None) is not None else set()

    def of_namespace(self, namespace: str) -> set[ServiceName]:
        return {name for name in self._exports if name.namespace == namespace}

    def compile(
        self, cluster: ClusterIdentity, name: ServiceName, service: Service | None
    ) -> records.ServiceExport | None:
        """The record as it stands; None for what must not be in etcd. ValueError as above."""
        export = self._exports.get(name)
        return None if export is None else compile_export(cluster, service, export)
