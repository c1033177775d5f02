"""Kubernetes objects as far as the testbed's controllers and kubelets read them. What they write is plain JSON."""

from collections.abc import Mapping
from typing import Any

import msgspec

from clustermesh.kube.objects import KubeObject, Resource


class FieldRef(msgspec.Struct, frozen=True, rename="camel"):
    field_path: str


class EnvironmentSource(msgspec.Struct, frozen=True, rename="camel"):
    field_ref: FieldRef | None = None


class EnvironmentVariable(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    value: str = ""
    value_from: EnvironmentSource | None = None


class ContainerPort(msgspec.Struct, frozen=True, rename="camel"):
    container_port: int
    name: str = ""
    protocol: str = "TCP"


class ExecAction(msgspec.Struct, frozen=True):
    command: tuple[str, ...] = ()


class HttpAction(msgspec.Struct, frozen=True):
    port: int | str
    path: str = "/"


class TcpAction(msgspec.Struct, frozen=True):
    port: int | str


class Probe(msgspec.Struct, frozen=True, rename="camel"):
    """Times in seconds."""

    exec: ExecAction | None = None
    http_get: HttpAction | None = None
    tcp_socket: TcpAction | None = None
    initial_delay_seconds: float = 0
    period_seconds: float = 10
    timeout_seconds: float = 1
    success_threshold: int = 1
    failure_threshold: int = 3


class Container(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    image: str = ""
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    working_dir: str = ""
    env: tuple[EnvironmentVariable, ...] | None = None
    ports: tuple[ContainerPort, ...] | None = None
    readiness_probe: Probe | None = None


class PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    containers: tuple[Container, ...] = ()
    node_name: str = ""
    node_selector: Mapping[str, str] | None = None
    restart_policy: str = "Always"
    host_network: bool = False
    termination_grace_period_seconds: int | None = None
    service_account_name: str = ""


class Condition(msgspec.Struct, frozen=True, rename="camel"):
    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


class ContainerStatus(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    restart_count: int = 0


class PodStatus(msgspec.Struct, frozen=True, rename="camel"):
    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    start_time: str | None = None
    conditions: tuple[Condition, ...] | None = None
    container_statuses: tuple[ContainerStatus, ...] | None = None


class Pod(KubeObject, frozen=True):
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def terminating(self) -> bool:
        return self.metadata.deletion_timestamp is not None

    @property
    def finished(self) -> bool:
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def ready(self) -> bool:
        """What its kubelet says, whether or not it is being deleted."""
        return any(
            condition.type == "Ready" and condition.status == "True" for condition in self.status.conditions or ()
        )


class RollingUpdate(msgspec.Struct, frozen=True, rename="camel"):
    max_surge: int | str | None = None
    max_unavailable: int | str | None = None


class DeploymentStrategy(msgspec.Struct, frozen=True, rename="camel"):
    type: str = "RollingUpdate"
    rolling_update: RollingUpdate | None = None


class DeploymentSpec(msgspec.Struct, frozen=True, rename="camel"):
    replicas: int = 1
    paused: bool = False
    template: Mapping[str, Any] = {}  # kept as it is: pods are made of it, and its hash names the revision
    strategy: DeploymentStrategy = DeploymentStrategy()


class Deployment(KubeObject, frozen=True):
    spec: DeploymentSpec = DeploymentSpec()
    status: Mapping[str, Any] = {}


class ServicePort(msgspec.Struct, frozen=True, rename="camel"):
    port: int
    name: str = ""
    protocol: str = "TCP"
    target_port: int | str | None = None


class ServiceSpec(msgspec.Struct, frozen=True, rename="camel"):
    selector: Mapping[str, str] | None = None
    ports: tuple[ServicePort, ...] | None = None
    publish_not_ready_addresses: bool = False


class Service(KubeObject, frozen=True):
    spec: ServiceSpec = ServiceSpec()


class Document(KubeObject, frozen=True):
    """Any object of which the metadata is enough."""


class Slice(KubeObject, frozen=True):
    """An EndpointSlice, its content as it is: it is only compared."""

    address_type: str = ""
    endpoints: tuple[Mapping[str, Any], ...] | None = None
    ports: tuple[Mapping[str, Any], ...] | None = None


PODS = Resource("", "v1", "pods", "Pod", True, Pod)
SERVICES = Resource("", "v1", "services", "Service", True, Service)
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment", True, Deployment)
EVENTS = Resource("", "v1", "events", "Event", True, Document)
SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", True, Slice)
CUSTOM_RESOURCES = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False, Document
)
