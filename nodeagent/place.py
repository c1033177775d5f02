"""Where this agent runs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """The node and the cluster that an agent serves."""

    node: str
    cluster: str
    cluster_id: int
