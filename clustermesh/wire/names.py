"""Which names a cluster of a mesh may have."""

import re

MAX_LENGTH = 32
_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def check_cluster_name(name: str) -> None:
    """Raise ValueError, saying what is wrong, unless a cluster may bear this name."""
    if len(name) > MAX_LENGTH:
        raise ValueError(f"cluster name {name!r} is longer than {MAX_LENGTH} characters")
    if not _PATTERN.fullmatch(name):
        raise ValueError(f"cluster name {name!r} must be lower-case letters, digits and '-', with no '-' at either end")
    if name == "default":
        raise ValueError("cluster name 'default' means a cluster without a mesh: choose another")
