"""A Cilium installation: recognised and read through the Kubernetes API, and what of it does not fit a mesh with us."""

import asyncio
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from clustermesh.cilium import users
from clustermesh.cilium.objects import (
    AGENTS_SECRET,
    API_SERVER,
    CA,
    CILIUM_NODES,
    CONFIG,
    DEPLOYMENTS,
    MESH_SERVICES,
    MIRROR_SECRET,
    REMOTE_CERT,
    REMOTE_USERS,
    CiliumNode,
    Container,
    Deployment,
    MeshService,
)
from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import Forbidden, NotFound
from clustermesh.kube.objects import CONFIG_MAPS, NODES, SECRETS, ConfigMap, KubeObject, Node, Resource, Secret
from clustermesh.pki import KeyPair
from clustermesh.wire.identity import Numbering
from clustermesh.wire.names import check_cluster_name

# Ours, which a peer's must equal.
TUNNEL_PORT = 8472
# Releases whose layout and records are known.
FIRST_VERSION, LAST_VERSION = (1, 17), (1, 20)
_ETCD_PORT = 2379
# Of the nodes behind a NodePort so many are named; one is enough as long as it lives.
_NODES_NAMED = 5

T = TypeVar("T", bound=KubeObject)


class CiliumError(ValueError):
    """An installation that cannot be a peer; the text names the object or setting and the remedy."""


class MeshNode(NamedTuple):
    name: str
    pod_cidrs: tuple[str, ...]
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Installation:
    """All that is read of it. Keys are never shown and never stored."""

    namespace: str
    name: str
    cluster_id: int
    max_clusters: int = 255
    version: str = ""  # of its API server's image
    settings: Mapping[str, str] = field(default_factory=dict)  # ConfigMap cilium-config
    kvstoremesh: bool = False
    endpoints: tuple[str, ...] = ()
    remark: str = ""  # about the endpoints
    nodes: tuple[MeshNode, ...] = ()
    ca: str = ""  # PEM, what its etcd's certificate is signed by
    signer: KeyPair | None = field(default=None, repr=False)  # its authority, where it may be read
    shared: KeyPair | None = field(default=None, repr=False)  # the certificate that it makes for all its peers
    users: str | None = None  # users.yaml; None: there is none or nobody reads it, only the shared user exists
    secrets: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict, repr=False)  # by name, where they exist
    forbidden: tuple[str, ...] = ()  # objects that the operator may not read

    @property
    def user_per_peer(self) -> bool:
        return self.users is not None


async def read(client: KubeClient, namespace: str) -> Installation | None:
    """The installation in `namespace`; None when there is none.

    CiliumError when it cannot be a peer as it is, KubeError when Kubernetes does not answer or refuses.
    """
    try:
        config = await client.get(CONFIG_MAPS, CONFIG, namespace)
    except NotFound:
        return None
    name, cluster_id, max_clusters = parse_config(config)
    forbidden: list[str] = []

    async def maybe(resource: Resource[T], wanted: str) -> T | None:
        try:
            return await client.get(resource, wanted, namespace)
        except NotFound:
            return None
        except Forbidden:
            forbidden.append(f"{resource} {namespace}/{wanted}")
            return None

    async with asyncio.TaskGroup() as group:
        service = group.create_task(maybe(MESH_SERVICES, API_SERVER))
        deployment = group.create_task(maybe(DEPLOYMENTS, API_SERVER))
        remote_users = group.create_task(maybe(CONFIG_MAPS, REMOTE_USERS))
        authority = group.create_task(maybe(SECRETS, CA))
        shared = group.create_task(maybe(SECRETS, REMOTE_CERT))
        secrets = {wanted: group.create_task(maybe(SECRETS, wanted)) for wanted in (AGENTS_SECRET, MIRROR_SECRET)}
        nodes = group.create_task(_nodes(client))
    endpoints, remark = find_endpoints(service.result(), nodes.result())
    found = deployment.result()
    files = remote_users.result()
    return Installation(
        namespace=namespace,
        name=name,
        cluster_id=cluster_id,
        max_clusters=max_clusters,
        version=parse_version(found),
        settings=config.data,
        kvstoremesh=_has_kvstoremesh(found),
        endpoints=endpoints,
        remark=remark,
        nodes=nodes.result(),
        ca=find_authority(authority.result(), shared.result()),
        signer=_pair(authority.result(), "ca") or _pair(authority.result(), "tls"),
        shared=_pair(shared.result(), "tls"),
        users=files.data.get(users.FILE, "") if files is not None and _reads_users(found) else None,
        secrets={wanted: task_result.data for wanted, task in secrets.items() if (task_result := task.result())},
        forbidden=tuple(sorted(forbidden)),
    )


def parse_config(config: ConfigMap) -> tuple[str, int, int]:
    """Name, id and size of the mesh; CiliumError unless it was prepared for one."""
    where = f"ConfigMap {config.namespace}/{config.name}"
    name, text = config.data.get("cluster-name", "default"), config.data.get("cluster-id", "0")
    remedy = "give it a name and an id of its own (Helm cluster.name, cluster.id) and restart its pods"
    if name in ("", "default") or text in ("", "0"):
        raise CiliumError(f"{where}: cluster-name {name!r} with cluster-id {text!r} is no peer of anybody: {remedy}")
    try:
        check_cluster_name(name)
        numbering = Numbering(_number(config.data.get("max-connected-clusters") or "255"))
        cluster_id = _number(text)
        numbering.check_cluster_id(cluster_id)
    except ValueError as error:
        raise CiliumError(f"{where}: {error}") from None
    return name, cluster_id, numbering.max_clusters


def parse_version(deployment: Deployment | None) -> str:
    """The tag of the API server's image without its v; "" when it has none."""
    for container in _containers(deployment):
        if container.name == "apiserver":
            image = container.image.split("@")[0].rsplit("/", 1)[-1]
            return image.partition(":")[2].removeprefix("v")
    return ""


def release(version: str) -> tuple[int, int] | None:
    """Major and minor number; None for a version that is no release's."""
    parts = version.split(".")
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts[:2]):
        return None
    return int(parts[0]), int(parts[1])


def find_endpoints(service: MeshService | None, nodes: Collection[MeshNode]) -> tuple[tuple[str, ...], str]:
    """Where its etcd is reached from outside, and what an operator should know about that; nothing without a way."""
    if service is None:
        return (), ""
    ports = service.spec.ports or ()
    port = next((port for port in ports if port.port == _ETCD_PORT), ports[0] if ports else None)
    if port is None:
        return (), ""
    match service.spec.type:
        case "LoadBalancer":
            points = service.status.load_balancer.ingress or ()
            hosts = [point.ip or point.hostname for point in points]
            return _urls(hosts, port.port), ""
        case "NodePort":
            hosts = [node.addresses[0] for node in sorted(nodes) if node.addresses][:_NODES_NAMED]
            remark = "it is reached by node addresses (Service type NodePort): connect again when these nodes are gone"
            return _urls(hosts, port.node_port), remark
        case _:
            host = service.spec.cluster_ip
            remark = "it is reached by its cluster IP, which has to be routed from outside that cluster"
            return _urls([] if host == "None" else [host], port.port), remark


def find_authority(authority: Secret | None, shared: Secret | None) -> str:
    """PEM of what the certificates of its mesh are signed by.

    The authority beside the shared certificate is the one that etcd was given; cilium-ca is usually the same.
    """
    for secret, entry in ((shared, "ca.crt"), (authority, "ca.crt"), (authority, "tls.crt")):
        pem = secret.data.get(entry) if secret is not None else None
        if pem:
            return pem.decode(errors="replace")
    return ""


def misfits(installation: Installation) -> Iterator[str]:
    """Settings that keep its packets from us or ours from it: each with its name, value and remedy."""
    settings = installation.settings

    def value(entry: str, default: str) -> str:
        return settings.get(entry, "").strip().lower() or default

    if value("routing-mode", "tunnel") != "tunnel":
        yield "routing-mode is native: pods must be reached through a tunnel (Helm routingMode: tunnel)"
    if (protocol := value("tunnel-protocol", "vxlan")) != "vxlan":
        yield f"tunnel-protocol is {protocol}: ours is vxlan (Helm tunnelProtocol: vxlan)"
    if (port := value("tunnel-port", "0")) not in ("0", str(TUNNEL_PORT)):
        yield f"tunnel-port is {port}: ours is {TUNNEL_PORT} (Helm tunnelPort: {TUNNEL_PORT})"
    if (underlay := value("underlay-protocol", "ipv4")) == "ipv6":
        yield f"underlay-protocol is {underlay}: tunnels end at IPv4 addresses here (Helm underlayProtocol: ipv4)"
    for entry, what in (("enable-wireguard", "WireGuard"), ("enable-ipsec", "IPsec")):
        if value(entry, "false") == "true":
            yield f"{entry} is true: {what} has to be on in all clusters or in none (Helm encryption.enabled: false)"
    if value("enable-ipv4", "true") != "true":
        yield "enable-ipv4 is false: tunnels carry IPv4 only here (Helm ipv4.enabled: true)"
    if value("identity-allocation-mode", "crd") == "kvstore":
        yield "identity-allocation-mode is kvstore: it has an etcd without our users (Helm identityAllocationMode: crd)"
    elif kvstore := value("kvstore", ""):
        yield f"kvstore is {kvstore}: its agents read another etcd than its API server's (Helm etcd.enabled: false)"


async def _nodes(client: KubeClient) -> tuple[MeshNode, ...]:
    try:
        return tuple(map(view_cilium_node, await client.list(CILIUM_NODES)))
    except (NotFound, Forbidden):
        return tuple(map(view_node, await client.list(NODES)))


def view_cilium_node(node: CiliumNode) -> MeshNode:
    """Addresses that others may use first."""
    ipam = node.spec.ipam
    pooled = [cidr for pool in ipam.pools.allocated or () for cidr in pool.cidrs or ()]
    found = [(entry.type, entry.ip) for entry in node.spec.addresses or ()]
    return MeshNode(node.name, (*(ipam.pod_cidrs or ()), *pooled), _ordered(found))


def view_node(node: Node) -> MeshNode:
    """The same of a plain Node."""
    cidrs = node.spec.pod_cidrs or ((node.spec.pod_cidr,) if node.spec.pod_cidr else ())
    return MeshNode(node.name, tuple(cidrs), _ordered([(a.type, a.address) for a in node.status.addresses or ()]))


def _ordered(found: list[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(ip for wanted in ("ExternalIP", "InternalIP") for kind, ip in found if kind == wanted and ip)


def _urls(hosts: Collection[str], port: int) -> tuple[str, ...]:
    if not port:
        return ()
    return tuple(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}" for host in hosts if host)


def _pair(secret: Secret | None, stem: str) -> KeyPair | None:
    if secret is None:
        return None
    cert, key = secret.data.get(f"{stem}.crt"), secret.data.get(f"{stem}.key")
    return KeyPair(key, cert) if cert and key else None


def _has_kvstoremesh(deployment: Deployment | None) -> bool:
    return any(container.name == "kvstoremesh" for container in _containers(deployment))


def _reads_users(deployment: Deployment | None) -> bool:
    """With authMode legacy a ConfigMap may lie there unread."""
    volumes = (deployment.spec.template.spec.volumes or ()) if deployment is not None else ()
    return any(volume.config_map is not None and volume.config_map.name == REMOTE_USERS for volume in volumes)


def _containers(deployment: Deployment | None) -> tuple[Container, ...]:
    return (deployment.spec.template.spec.containers or ()) if deployment is not None else ()


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ValueError(f"{text!r} is no number")
    return int(text)
