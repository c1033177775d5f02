"""What a ClusterMeshPeer's status means to one who waits for it. Pure."""

from clustermesh.kube.objects import ClusterMeshPeer, Condition

# In the order in which they come true.
_CONDITIONS = ("Trusted", "Connected", "Synced", "Applied", "Ready")


def condition(peer: ClusterMeshPeer, kind: str) -> Condition | None:
    return next((found for found in peer.status.conditions if found.type == kind), None)


def is_ready(peer: ClusterMeshPeer) -> bool:
    """Whether the API server says so of the object as it is now, not as it was before it was changed."""
    return why_not_ready(peer) is None


def why_not_ready(peer: ClusterMeshPeer) -> str | None:
    """The first thing that is missing; None when the peer is ready."""
    status = peer.status
    if status.observed_generation < peer.metadata.generation or not status.conditions:
        return "the API server has not acted on it yet"
    trusted = condition(peer, "Trusted")
    if trusted is not None and trusted.reason == "Refused":
        # The connection may go on, or fail, with what was there before.
        return trusted.message
    if status.connection.state == "failed":
        return f"{status.connection.stage}: {status.connection.message}"
    for kind in _CONDITIONS:
        found = condition(peer, kind)
        if found is None or found.status != "True":
            return _describe(kind, found, peer)
    return None


def _describe(kind: str, found: Condition | None, peer: ClusterMeshPeer) -> str:
    if kind == "Ready" and peer.status.agents.waiting:
        waiting = peer.status.agents.waiting
        return f"{len(waiting)} of {peer.status.agents.total} agents: {waiting[0].node}: {waiting[0].reason}"
    if found is None:
        return f"not {kind.lower()}"
    return found.message or f"not {kind.lower()} ({found.reason})"
