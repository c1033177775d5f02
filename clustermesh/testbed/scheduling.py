"""Which node a pod goes to."""

from collections.abc import Iterable, Mapping, Sequence

from clustermesh.testbed.deployments import owner_uid
from clustermesh.testbed.objects import Pod
from clustermesh.testbed.topology import Node


def labels(node: Node) -> dict[str, str]:
    """The labels of a node's object."""
    return {"kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux"}


def choose(pod: Pod, nodes: Sequence[Node], pods: Iterable[Pod]) -> str | None:
    """In turn: the node with the fewest pods of the same owner, among equals the emptiest; None if none fits."""
    candidates = [node for node in nodes if _fits(pod.spec.node_selector, node)]
    placed = [other for other in pods if other.spec.node_name and not other.terminating and not other.finished]
    owner = owner_uid(pod)

    def load(node: Node) -> tuple[int, int, int]:
        here = [other for other in placed if other.spec.node_name == node.name]
        siblings = sum(owner is not None and owner_uid(other) == owner for other in here)
        return siblings, len(here), node.number

    return min(candidates, key=load).name if candidates else None


def _fits(selector: Mapping[str, str] | None, node: Node) -> bool:
    return (selector or {}).items() <= labels(node).items()
