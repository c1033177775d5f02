"""What a testbed needs from the machine under it, so that other kinds of machines can take the place of namespaces."""

from collections.abc import Sequence
from typing import Protocol

from clustermesh.testbed.topology import Node


class Driver(Protocol):
    def create(self) -> None:
        """Make nodes, cables and routes; TestbedError when the machine refuses."""

    def destroy(self) -> None:
        """Remove every trace of them; nothing happens when there is none."""

    def command(self, node: Node, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in a node's network."""

    def cut(self, one: str, other: str) -> None:
        """Part two clusters: no packet passes between their nodes."""

    def heal(self, one: str, other: str) -> None:
        """Undo `cut`."""

    def cuts(self) -> frozenset[tuple[str, str]]:
        """The pairs of clusters that are parted, each in alphabetical order."""
