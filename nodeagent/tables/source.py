"""Who says something, in the order in which it is believed."""

from enum import IntEnum
from typing import NamedTuple


class Facet(IntEnum):
    """Which records of a cluster an entry follows from."""

    NODE = 0
    ADDRESSES = 1
    SERVICE = 2


class Source(NamedTuple):
    """Sources sort by how much they are believed: the own cluster before peers, then by cluster id."""

    foreign: bool
    cluster_id: int
    facet: Facet
    name: str = ""  # of the node or service, or where the record stands
