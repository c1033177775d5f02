"""Keys of the etcd key space.

Keys are plain UTF-8 text without any escaping. `cilium/state/…` is what a cluster says of itself, `cilium/cache/…`
what its mirror copied from peers, `cilium/synced/…` marks complete prefixes, `clustermesh/…` is private to a cluster:
no peer's user may read it.

Every prefix ends in "/", so that cluster `a` never sees keys of cluster `ab`.
"""

from enum import StrEnum

HEARTBEAT = "cilium/.heartbeat"
STATE = "cilium/state/"
CACHE = "cilium/cache/"
SYNCED = "cilium/synced/"
CLUSTER_CONFIGS = "cilium/cluster-config/"

PRIVATE = "clustermesh/"
LOCAL_SERVICES = "clustermesh/services/v1/"
# What the own agents need and peers must not know: addresses and identities of namespaces that are not global.
LOCAL_ADDRESSES = "clustermesh/addresses/v1/"
LOCAL_IDENTITIES = "clustermesh/identities/v1/"
AGENTS = "clustermesh/agents/v1/"
PEERS = "clustermesh/peers/v1/"
PEER_LIST = "clustermesh/peer-list/v1"


class Kind(StrEnum):
    """The kinds of records a cluster exports."""

    NODES = "nodes"
    IDENTITIES = "identities"
    ADDRESSES = "addresses"
    SERVICES = "services"
    SERVICE_EXPORTS = "serviceexports"
    ENDPOINT_SLICES = "endpointslices"


# What a node needs of a cluster to reach its pods and services. The others are for controllers.
DATAPATH_KINDS = (Kind.NODES, Kind.IDENTITIES, Kind.ADDRESSES, Kind.SERVICES)


# Below `cilium/state/` or `cilium/cache/`: the kind's path, as it stands in the names of canaries.
_PATHS = {
    Kind.NODES: "nodes/v1",
    Kind.IDENTITIES: "identities/v1",
    Kind.ADDRESSES: "ip/v1",
    Kind.SERVICES: "services/v1",
    Kind.SERVICE_EXPORTS: "serviceexports/v1",
    Kind.ENDPOINT_SLICES: "endpointslices/v1",
}

# What follows the path in `cilium/state/`. Identities and addresses carry no cluster name there.
_STATE_SUBPATHS = {
    Kind.NODES: "{cluster}/",
    Kind.IDENTITIES: "id/",
    Kind.ADDRESSES: "default/",
    Kind.SERVICES: "{cluster}/",
    Kind.SERVICE_EXPORTS: "{cluster}/",
    Kind.ENDPOINT_SLICES: "{cluster}/",
}

# What follows the path in `cilium/cache/`: always the cluster; addresses lose "default".
_CACHE_SUBPATHS = {
    Kind.NODES: "{cluster}/",
    Kind.IDENTITIES: "{cluster}/id/",
    Kind.ADDRESSES: "{cluster}/",
    Kind.SERVICES: "{cluster}/",
    Kind.SERVICE_EXPORTS: "{cluster}/",
    Kind.ENDPOINT_SLICES: "{cluster}/",
}


def cluster_config(cluster: str) -> str:
    return CLUSTER_CONFIGS + cluster


def state_prefix(kind: Kind, cluster: str) -> str:
    """Where `cluster` writes its own records of a kind: `cilium/state/nodes/v1/red/`."""
    return f"{STATE}{_PATHS[kind]}/{_STATE_SUBPATHS[kind].format(cluster=cluster)}"


def cache_prefix(kind: Kind, cluster: str) -> str:
    """Where a mirror keeps its copy of `cluster`'s records: `cilium/cache/ip/v1/red/`."""
    return f"{CACHE}{_PATHS[kind]}/{_CACHE_SUBPATHS[kind].format(cluster=cluster)}"


def tail(prefix: str, key: str) -> str:
    """The part of `key` below `prefix`; ValueError when the key is not below it."""
    if not key.startswith(prefix):
        raise ValueError(f"key {key!r} is not below {prefix!r}")
    return key[len(prefix) :]


def cached_key(kind: Kind, cluster: str, state_key: str) -> str:
    """The key of a record's copy in the mirror."""
    return cache_prefix(kind, cluster) + tail(state_prefix(kind, cluster), state_key)


def node(cluster: str, name: str) -> str:
    return state_prefix(Kind.NODES, cluster) + name


def identity(number: int | str) -> str:
    return f"{STATE}identities/v1/id/{number}"


def address(ip: str) -> str:
    """`ip` is an address or, for a range, `address/length`."""
    return f"{STATE}ip/v1/default/{ip}"


def service(cluster: str, namespace: str, name: str) -> str:
    return f"{state_prefix(Kind.SERVICES, cluster)}{namespace}/{name}"


def service_export(cluster: str, namespace: str, name: str) -> str:
    return f"{state_prefix(Kind.SERVICE_EXPORTS, cluster)}{namespace}/{name}"


def endpoint_slice(cluster: str, namespace: str, name: str) -> str:
    """`name` is the slice's own, not its Service's."""
    return f"{state_prefix(Kind.ENDPOINT_SLICES, cluster)}{namespace}/{name}"


def synced_prefix(cluster: str) -> str:
    """Below it stand the canaries of `cluster`, whoever wrote them."""
    return f"{SYNCED}{cluster}/"


def state_canary(kind: Kind, cluster: str) -> str:
    """Written once all records of a kind that the cluster had at its start are in etcd."""
    return f"{SYNCED}{cluster}/{STATE}{_PATHS[kind]}"


def cache_canary(kind: Kind, cluster: str) -> str:
    """The same for a mirror's copy of `cluster`'s records."""
    return f"{SYNCED}{cluster}/{CACHE}{_PATHS[kind]}"


def local_service(namespace: str, name: str) -> str:
    return f"{LOCAL_SERVICES}{namespace}/{name}"


def local_address(ip: str) -> str:
    return LOCAL_ADDRESSES + ip


def local_identity(number: int | str) -> str:
    return f"{LOCAL_IDENTITIES}{number}"


def agent(node_name: str) -> str:
    return AGENTS + node_name


def peer_settings(peer: str) -> str:
    return PEERS + peer
