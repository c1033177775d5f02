"""What is read of Cilium's own objects, and of core objects for its sake. Partial: never to be sent back."""

import msgspec

from clustermesh.kube.objects import KubeObject, Resource

NAMESPACE = "kube-system"  # where Cilium is installed unless told otherwise

CONFIG = "cilium-config"
API_SERVER = "clustermesh-apiserver"  # Service and Deployment
REMOTE_USERS = "clustermesh-remote-users"
CA = "cilium-ca"
REMOTE_CERT = "clustermesh-apiserver-remote-cert"
AGENTS_SECRET = "cilium-clustermesh"  # what agents and operator connect to
MIRROR_SECRET = "cilium-kvstoremesh"  # what KVStoreMesh connects to


class IngressPoint(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    ip: str = ""
    hostname: str = ""


class LoadBalancer(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    ingress: tuple[IngressPoint, ...] | None = None


class MeshServiceStatus(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    load_balancer: LoadBalancer = LoadBalancer()


class MeshServicePort(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    port: int = 0
    node_port: int = 0


class MeshServiceSpec(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(name="clusterIP", default="")
    ports: tuple[MeshServicePort, ...] | None = None


class MeshService(KubeObject, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """A Service with what tells how it is reached from outside."""

    spec: MeshServiceSpec = MeshServiceSpec()
    status: MeshServiceStatus = MeshServiceStatus()


class Container(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    name: str = ""
    image: str = ""


class ConfigMapVolume(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    name: str = ""


class Volume(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    config_map: ConfigMapVolume | None = None


class PodTemplateSpec(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    containers: tuple[Container, ...] | None = None
    volumes: tuple[Volume, ...] | None = None


class PodTemplate(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    spec: PodTemplateSpec = PodTemplateSpec()


class DeploymentSpec(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    template: PodTemplate = PodTemplate()


class Deployment(KubeObject, frozen=True, gc=False, rename="camel", omit_defaults=True):
    spec: DeploymentSpec = DeploymentSpec()


class CiliumNodeAddress(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    type: str = ""
    ip: str = ""


class AllocatedPool(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    cidrs: tuple[str, ...] | None = None


class Pools(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    allocated: tuple[AllocatedPool, ...] | None = None


class Ipam(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    pod_cidrs: tuple[str, ...] | None = msgspec.field(name="podCIDRs", default=None)
    pools: Pools = Pools()


class CiliumNodeSpec(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    addresses: tuple[CiliumNodeAddress, ...] | None = None
    ipam: Ipam = Ipam()


class CiliumNode(KubeObject, frozen=True, gc=False, rename="camel", omit_defaults=True):
    spec: CiliumNodeSpec = CiliumNodeSpec()


MESH_SERVICES = Resource("", "v1", "services", "Service", True, MeshService)
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment", True, Deployment)
CILIUM_NODES = Resource("cilium.io", "v2", "ciliumnodes", "CiliumNode", False, CiliumNode)
