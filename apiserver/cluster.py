"""Who this cluster is in the mesh."""

from dataclasses import dataclass

from clustermesh.wire.identity import Numbering
from clustermesh.wire.names import check_cluster_name


@dataclass(frozen=True, slots=True)
class ClusterIdentity:
    """Name, id and the size of the mesh. Making one raises ValueError when they are not allowed."""

    name: str
    id: int
    max_clusters: int = 255

    def __post_init__(self) -> None:
        check_cluster_name(self.name)
        self.numbering.check_cluster_id(self.id)

    @property
    def numbering(self) -> Numbering:
        return Numbering(self.max_clusters)
