"""Numbers of security identities: 24 bits that carry the cluster in their upper part.

With up to 255 clusters the cluster takes 8 bits, with up to 511 it takes 9; no other sizes exist. All clusters of a
mesh must agree on the size, since it is fixed in the numbers that travel in tunnels.
"""

from dataclasses import dataclass
from enum import IntEnum

IDENTITY_BITS = 24
MINIMAL_ALLOCATION = 256  # smaller numbers are reserved for all clusters


class Reserved(IntEnum):
    """Identities that mean the same everywhere."""

    UNKNOWN = 0
    HOST = 1
    WORLD = 2
    UNMANAGED = 3
    HEALTH = 4
    INIT = 5
    REMOTE_NODE = 6
    KUBE_APISERVER = 7
    INGRESS = 8
    WORLD_IPV4 = 9
    WORLD_IPV6 = 10


@dataclass(frozen=True, slots=True)
class Numbering:
    """How numbers are dealt out among clusters."""

    max_clusters: int = 255

    def __post_init__(self) -> None:
        if self.max_clusters not in (255, 511):
            raise ValueError(f"max-connected-clusters must be 255 or 511, not {self.max_clusters}")

    @property
    def shift(self) -> int:
        """Bits of a number that are the cluster's own to use."""
        return IDENTITY_BITS - self.max_clusters.bit_length()

    def check_cluster_id(self, cluster_id: int) -> None:
        """Raise ValueError unless a cluster of a mesh may have this id."""
        if not 1 <= cluster_id <= self.max_clusters:
            raise ValueError(f"cluster id must be between 1 and {self.max_clusters}, not {cluster_id}")

    def range(self, cluster_id: int) -> tuple[int, int]:
        """First and last number of a cluster, both included."""
        first = cluster_id << self.shift if cluster_id else MINIMAL_ALLOCATION
        return first, ((cluster_id + 1) << self.shift) - 1

    def cluster_of(self, identity: int) -> int:
        """Id of the cluster that owns an identity; 0 for reserved ones."""
        return (identity >> self.shift) & self.max_clusters
